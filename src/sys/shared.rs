//! Memory that several processes see: a sealed memfd, mapped as words.
//!
//! Only atomic words are ever lent out, so that no process can make another's reference dangle or
//! its reads tear.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A shared mapping of a memfd whose size can never change.
#[derive(Debug)]
pub struct SharedMemory {
    memfd: OwnedFd,
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping is plain memory that lives as long as the value; it is only reached through
// atomic words.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Makes a memfd of `size` bytes, all zero and not yet backed by memory, and seals its size.
    ///
    /// # Errors
    /// Those of the system calls: out of memory or descriptors.
    pub fn create(name: &std::ffi::CStr, size: usize) -> io::Result<SharedMemory> {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let memfd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&memfd, i64::try_from(size).map_err(io::Error::other)?)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals))?;
        SharedMemory::map(memfd, size)
    }

    /// Maps a memfd that another process made, after checking that it cannot shrink.
    ///
    /// # Errors
    /// `InvalidData` when it is no memfd of sealed size, else those of the system calls.
    pub fn open(memfd: OwnedFd) -> io::Result<SharedMemory> {
        let seals = fcntl(&memfd, FcntlArg::F_GET_SEALS)?;
        if !SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its size is not sealed"));
        }
        let size = std::fs::File::from(memfd.try_clone()?).metadata()?.len();
        SharedMemory::map(memfd, usize::try_from(size).map_err(io::Error::other)?)
    }

    fn map(memfd: OwnedFd, size: usize) -> io::Result<SharedMemory> {
        let length = NonZeroUsize::new(size)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is empty"))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, of a file whose size is
        // sealed, so that no access within `size` can fault.
        let start = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &memfd, 0)? };
        Ok(SharedMemory { memfd, start: start.cast(), size })
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The word at byte `offset`.
    ///
    /// # Panics
    /// When `offset` is not a multiple of eight, or the word does not lie within the mapping.
    #[must_use]
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(
            offset % 8 == 0 && offset.checked_add(8).is_some_and(|end| end <= self.size),
            "word at {offset} of a mapping of {}",
            self.size
        );
        // SAFETY: aligned (the mapping starts at a page) and inside the mapping, which lives as
        // long as `self`; every access by any process is atomic.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this size, and nothing lent out outlives `self`. A failure
        // would only leave the mapping in place.
        let _ = unsafe { munmap(self.start.cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_second_mapping_sees_the_first_ones_stores() {
        let one = SharedMemory::create(c"test", 4096).unwrap();
        let two = SharedMemory::open(one.as_fd().try_clone_to_owned().unwrap()).unwrap();
        one.word(64).store(7, Ordering::SeqCst);
        assert_eq!(two.word(64).load(Ordering::SeqCst), 7);
    }

    #[test]
    fn an_unsealed_or_foreign_descriptor_is_refused() {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        assert!(SharedMemory::open(file).is_err());
    }

    #[test]
    #[should_panic(expected = "word at 4096")]
    fn a_word_outside_is_never_lent() {
        let _ = SharedMemory::create(c"test", 4096).unwrap().word(4096);
    }
}
