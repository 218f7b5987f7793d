//! The state that outlives a master that is killed.
//!
//! It is written anew whenever goal or roster have changed, at the end of a turn of the loop. Under
//! systemd it lies in a memfd in the descriptor store, which comes back with the next start; without,
//! in a file beside the control socket. A clean end discards it: a restart begins with the
//! configuration.
//!
//! A master may be killed in the middle of a write. So there are two halves, written in turn; each
//! begins with a head, and the one with the higher sequence number that is whole counts.
//!
//! ```text
//! half   +0   magic · sequence · length · checksum       8 bytes each, little-endian
//!        +32  the state
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Its name in systemd's store.
pub(crate) const NAME: &str = "rcluster-state";
/// What the file is called after the control socket.
const SUFFIX: &str = ".state";
/// Where the second half begins. What is not written takes no room.
pub(super) const HALF: u64 = 256 * 1024 * 1024;
const MAGIC: u64 = u64::from_le_bytes(*b"rcl-kept");
const HEAD: usize = 32;

/// One half, for this sequence number.
pub(crate) fn encode(sequence: u64, state: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + state.len());
    for word in [MAGIC, sequence, state.len() as u64, checksum(sequence, state)] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(state);
    bytes
}

/// The sequence number and the state of a half, if it is whole.
pub(crate) fn decode(half: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = half.split_at_checked(HEAD)?;
    let word = |index: usize| {
        let bytes = head.get(index * 8..index * 8 + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let (sequence, length) = (word(1)?, usize::try_from(word(2)?).ok()?);
    let state = rest.get(..length)?;
    let is_whole = word(0)? == MAGIC && word(3)? == checksum(sequence, state);
    is_whole.then_some((sequence, state))
}

/// FNV-1a, 64 bits (Fowler, Noll and Vo 1991), eight bytes at a time: it tells a torn write from a
/// whole one, not an attacker's from ours.
fn checksum(sequence: u64, state: &[u8]) -> u64 {
    let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
    let mut mix = |word: u64| {
        sum ^= word;
        sum = sum.wrapping_mul(0x0000_0100_0000_01b3);
        sum ^= sum >> 29;
    };
    mix(sequence);
    mix(state.len() as u64);
    for chunk in state.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(u64::from_le_bytes(word));
    }
    sum
}

/// Where the state is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(super) file: File,
    /// `None`: it is systemd's to keep.
    pub(super) path: Option<PathBuf>,
    pub(super) sequence: u64,
}

/// What was found.
pub(crate) struct Found {
    pub(crate) kept: Kept,
    /// The state, if one was whole.
    pub(crate) state: Option<Vec<u8>>,
}

impl Kept {
    /// A memfd for systemd's store.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left.
    pub(crate) fn in_memory() -> io::Result<Kept> {
        let file = File::from(memfd_create(c"rcluster-state", MFdFlags::MFD_CLOEXEC)?);
        Ok(Kept { file, path: None, sequence: 0 })
    }

    /// What systemd has given back.
    pub(crate) fn given_back(memfd: OwnedFd) -> Found {
        Kept { file: memfd.into(), path: None, sequence: 0 }.read()
    }

    /// The file beside the control socket at `control`, with its name; made, if there is none.
    ///
    /// # Errors
    /// Those of opening it; `PermissionDenied` when it belongs to somebody else.
    pub(crate) fn beside(control: &Path) -> io::Result<Found> {
        let mut path = control.as_os_str().to_owned();
        path.push(SUFFIX);
        let path = PathBuf::from(path);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path)?;
        let metadata = file.metadata()?;
        let is_ours = metadata.uid() == nix::unistd::geteuid().as_raw();
        if !metadata.is_file() || !is_ours || metadata.mode() & 0o077 != 0 {
            let text = format!("{} is not a file of this user's alone", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(Kept { file, path: Some(path), sequence: 0 }.read())
    }

    fn read(mut self) -> Found {
        let halves = [self.half(0), self.half(HALF)];
        let best = halves.iter().filter_map(|half| decode(half)).max_by_key(|(number, _)| *number);
        let state = best.map(|(sequence, state)| {
            self.sequence = sequence;
            state.to_vec()
        });
        Found { kept: self, state }
    }

    /// The bytes of a half, as far as its head says, or none.
    fn half(&self, start: u64) -> Vec<u8> {
        let read = || -> io::Result<Vec<u8>> {
            let mut head = [0; HEAD];
            self.file.read_exact_at(&mut head, start)?;
            let length = u64::from_le_bytes(head[16..24].try_into().map_err(io::Error::other)?);
            let end = self.file.metadata()?.len();
            if length > HALF || start + HEAD as u64 + length > end {
                return Ok(Vec::new());
            }
            let mut bytes = vec![0; HEAD + usize::try_from(length).map_err(io::Error::other)?];
            self.file.read_exact_at(&mut bytes, start)?;
            Ok(bytes)
        };
        // What cannot be read is not whole.
        read().unwrap_or_default()
    }

    /// Writes the state over the older half.
    ///
    /// # Errors
    /// Those of writing; `FileTooLarge` when it is larger than a half.
    pub(crate) fn write(&mut self, state: &[u8]) -> io::Result<()> {
        let bytes = encode(self.sequence + 1, state);
        if bytes.len() as u64 > HALF {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.sequence += 1;
        self.file.write_all_at(&bytes, (self.sequence % 2) * HALF)
    }

    /// Whether it is systemd that keeps it.
    pub(crate) fn is_systemds(&self) -> bool {
        self.path.is_none()
    }

    /// After a clean end nobody is to go on with it. systemd is told by the caller.
    pub(crate) fn discard(self) {
        if let Some(path) = &self.path {
            // Whoever removed it meanwhile has done the same.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
