//! What one thread leaves for another that watches descriptors.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A list with a bell: its descriptor is readable while something may be in it.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    letters: Mutex<VecDeque<T>>,
    bell: EventFd,
}

impl<T> Mailbox<T> {
    /// An empty one.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub(crate) fn new() -> io::Result<Mailbox<T>> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Mailbox { letters: Mutex::default(), bell })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a letter in and rings.
    pub(crate) fn put(&self, letter: T) {
        let mut letters = self.lock();
        let is_first = letters.is_empty();
        letters.push_back(letter);
        drop(letters);
        if is_first {
            // It only fails when it has rung 2^64 times and nobody came.
            let _ = self.bell.write(1);
        }
    }

    /// How many lie there.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Takes all there is.
    pub(crate) fn take(&self) -> VecDeque<T> {
        // First the bell: what is put in from now on rings it again. EAGAIN: it has not rung.
        let _ = self.bell.read();
        std::mem::take(&mut *self.lock())
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
