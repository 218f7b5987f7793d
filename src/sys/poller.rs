//! Level-triggered epoll: what is not handled is simply reported again.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Watches descriptors for readability under tokens of the caller's choice.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

/// Events fetched per wait. What does not fit is reported by the next.
const BATCH: usize = 64;

impl Poller {
    /// A poller that watches nothing.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new() -> io::Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Poller { epoll, events: vec![EpollEvent::empty(); BATCH] })
    }

    /// Reports `token` whenever `source` is readable or at its end. A source must be removed
    /// before it is closed: a registration follows the open file, not the number.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn add(&self, source: &impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(source, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Reports `token` whenever `source` can be written.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn add_writable(&self, source: &impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(source, EpollEvent::new(EpollFlags::EPOLLOUT, token))?)
    }

    /// No longer watches `source`.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn remove(&self, source: &impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(source)?)
    }

    /// Waits until something is ready or `deadline` has come, and appends the tokens. A signal
    /// that interrupts the wait makes an empty round.
    ///
    /// # Errors
    /// Those of `epoll_wait(2)`.
    pub fn wait(
        &mut self,
        now: Instant,
        deadline: Option<Instant>,
        ready: &mut Vec<u64>,
    ) -> io::Result<()> {
        let timeout = match deadline {
            None => EpollTimeout::NONE,
            Some(deadline) => timeout(deadline.saturating_duration_since(now)),
        };
        match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => ready.extend(self.events[..count].iter().map(EpollEvent::data)),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// Milliseconds, rounded up: a wait that ends early would spin until the deadline.
fn timeout(wait: Duration) -> EpollTimeout {
    let ms = wait.as_micros().div_ceil(1000);
    EpollTimeout::try_from(i32::try_from(ms).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::MAX)
}
