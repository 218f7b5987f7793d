//! Descriptors at numbers that a program expects.
//!
//! The protocols of systemd and of Node count from 3. What is moved there must not be overwritten
//! before it is moved, must not overwrite what the child still needs, and must not be taken for the
//! standard library's own channel to the child, which it opens at whatever number is free.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;

/// Descriptors on their way to fixed numbers from [`FIRST_PLACED`] on.
pub(super) struct Placed(Vec<OwnedFd>);

/// Above every place: 64 listeners and more.
pub const HIGH: libc::c_int = 128;

/// Where the protocols of systemd and of Node have their first descriptor.
const FIRST_PLACED: libc::c_int = 3;

impl Placed {
    /// Duplicates with numbers above all places, so that none is overwritten before it is moved.
    pub(super) fn new(descriptors: &[OwnedFd]) -> io::Result<Placed> {
        let above = Placed::end(descriptors.len())?;
        let high = descriptors.iter().map(|it| duplicate_from(it.as_fd(), above));
        Ok(Placed(high.collect::<io::Result<_>>()?))
    }

    fn end(count: usize) -> io::Result<libc::c_int> {
        let count = libc::c_int::try_from(count).map_err(io::Error::other)?;
        Ok(FIRST_PLACED + count)
    }

    /// Occupies the places until the child is there: what is opened for it meanwhile (by the
    /// standard library, to be told of failures) must not have one of these numbers.
    pub(super) fn fill_gaps(&self) -> io::Result<Vec<OwnedFd>> {
        let (end, mut fillers) = (Placed::end(self.0.len())?, Vec::new());
        while let Some(one) = self.0.first() {
            let filler = duplicate_from(one.as_fd(), FIRST_PLACED)?;
            if filler.as_raw_fd() >= end {
                break;
            }
            fillers.push(filler);
        }
        Ok(fillers)
    }

    /// In the child: moves each to its place. Async-signal-safe.
    pub(super) fn put(&self) -> io::Result<()> {
        for (number, descriptor) in (FIRST_PLACED..).zip(&self.0) {
            // SAFETY: in the child, these numbers belong to nobody but what is placed there.
            if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// A duplicate whose number is at least `least`.
///
/// # Errors
/// When no such descriptor is left.
pub fn duplicate_from(descriptor: BorrowedFd<'_>, least: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: a valid descriptor goes in, and a new one that nobody owns comes out.
    let number = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_up_to_the_last_place_and_duplicates_are_above() {
        let files: Vec<OwnedFd> =
            (0..20).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
        let placed = Placed::new(&files).unwrap();
        let end = FIRST_PLACED + 20;
        assert!(placed.0.iter().all(|it| it.as_raw_fd() >= end));
        let fillers = placed.fill_gaps().unwrap();
        // Other tests open and close files at the same time; what is filled is below the end.
        assert!(fillers.iter().all(|it| (FIRST_PLACED..end).contains(&it.as_raw_fd())));
        assert!(duplicate_from(files[0].as_fd(), HIGH).unwrap().as_raw_fd() >= HIGH);
    }
}
