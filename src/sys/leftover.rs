//! Bytes on their way to another process: a memfd that is written once, sealed, and read once.
//!
//! Sealed, it can be neither resized nor rewritten while somebody reads it, and nothing but a memfd
//! has such seals: reading it can neither block nor fail half way.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE)
    .union(SealFlag::F_SEAL_SEAL);

/// Packs `bytes`.
///
/// # Errors
/// When the system has no memory or descriptors left.
pub fn pack(bytes: &[u8]) -> io::Result<OwnedFd> {
    pack_as(c"rcluster-leftover", bytes)
}

/// The same, under a name that people see in `/proc/PID/fd`.
///
/// # Errors
/// When the system has no memory or descriptors left.
pub fn pack_as(name: &std::ffi::CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(name, flags)?);
    file.write_all(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file.into())
}

/// Reads what another process packed: exactly `length` bytes. The caller bounds `length`.
///
/// # Errors
/// `InvalidData` when it is no sealed memfd, or of another size; else those of the system calls.
pub fn unpack(memfd: OwnedFd, length: usize) -> io::Result<Vec<u8>> {
    let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let seals = fcntl(&memfd, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
    if !seals.is_ok_and(|seals| seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE)) {
        return wrong("the leftover is no sealed memfd".into());
    }
    let file = File::from(memfd);
    let size = file.metadata()?.len();
    if usize::try_from(size) != Ok(length) {
        return wrong(format!("the leftover has {size} bytes, announced were {length}"));
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Reads all that was packed, however much it is: the caller trusts who packed it.
///
/// # Errors
/// `InvalidData` when it is no sealed memfd, else those of the system calls.
#[cfg(feature = "daemon")]
pub fn unpack_whole(memfd: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(memfd);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    unpack(file.into(), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_were() {
        for length in [1, 4096, 1024 * 1024] {
            let bytes: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
            let packed = pack(&bytes).unwrap();
            let file = File::from(packed.try_clone().unwrap());
            assert!(file.write_at(b"x", 0).is_err() && file.set_len(0).is_err(), "sealed");
            assert_eq!(unpack(packed, length).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_not_as_announced_is_refused() {
        let refusal = |memfd: OwnedFd, length| unpack(memfd, length).unwrap_err().to_string();
        for length in [0, 2, 4, usize::MAX] {
            let said = refusal(pack(b"abc").unwrap(), length);
            assert!(said.contains("has 3 bytes"), "{said}");
        }
        let unsealed = memfd_create(c"unsealed", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        for foreign in [unsealed, file, pipe] {
            let said = refusal(foreign, 0);
            assert!(said.contains("no sealed memfd"), "{said}");
        }
    }
}
