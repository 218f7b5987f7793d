//! Level-triggered epoll: what is not handled is simply reported again.
//!
//! Deadlines move with nearly everything that happens, and a time limit costs every wait a timer that is
//! started and stopped. So there is one timer beside, which is set only for what comes sooner than it; when
//! it goes off too early, that is an empty round.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::clock::timer_span;

/// Watches descriptors for readability under tokens of the caller's choice.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    timer: TimerFd,
    /// When it goes off.
    set_to: Option<Instant>,
    events: Vec<EpollEvent>,
}

/// The timer's token, which must be nobody else's.
const TIMER: u64 = u64::MAX;

/// Events fetched per wait. What does not fit is reported by the next.
const BATCH: usize = 64;

impl Poller {
    /// A poller that watches nothing.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new() -> io::Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        // Each time is an event of its own, so that it need not be read.
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER))?;
        Ok(Poller { epoll, timer, set_to: None, events: vec![EpollEvent::empty(); BATCH] })
    }

    /// Reports `token`, which is not the highest of all, whenever `source` is readable or at its end. A
    /// source must be removed before it is closed: a registration follows the open file, not the number.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn add(&self, source: &impl AsFd, token: u64) -> io::Result<()> {
        debug_assert_ne!(token, TIMER);
        Ok(self.epoll.add(source, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Reports `token` whenever `source` can be written.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn add_writable(&self, source: &impl AsFd, token: u64) -> io::Result<()> {
        debug_assert_ne!(token, TIMER);
        Ok(self.epoll.add(source, EpollEvent::new(EpollFlags::EPOLLOUT, token))?)
    }

    /// From now on `token` is reported as well, or no more, whenever `source` can be written.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn renew(&self, source: &impl AsFd, token: u64, writes: bool) -> io::Result<()> {
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, writes);
        Ok(self.epoll.modify(source, &mut EpollEvent::new(flags, token))?)
    }

    /// No longer watches `source`.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn remove(&self, source: &impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(source)?)
    }

    /// Waits until something is ready or `deadline` has come, and appends the tokens. A signal
    /// that interrupts the wait makes an empty round, and so may a deadline of a wait before.
    ///
    /// # Errors
    /// Those of `epoll_wait(2)` and `timerfd_settime(2)`.
    pub fn wait(
        &mut self,
        now: Instant,
        deadline: Option<Instant>,
        ready: &mut Vec<u64>,
    ) -> io::Result<()> {
        let timeout = match deadline {
            Some(deadline) if deadline <= now => EpollTimeout::ZERO,
            Some(deadline) => {
                self.set_timer(now, deadline)?;
                EpollTimeout::NONE
            }
            None => EpollTimeout::NONE,
        };
        match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => {
                for event in &self.events[..count] {
                    match event.data() {
                        TIMER => self.set_to = None,
                        token => ready.push(token),
                    }
                }
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The timer goes off at `deadline`, or before.
    fn set_timer(&mut self, now: Instant, deadline: Instant) -> io::Result<()> {
        if self.set_to.is_none_or(|set_to| deadline < set_to) {
            // From when it is set on, which is later than `now`: it never goes off too early for this one.
            let span = timer_span(deadline.saturating_duration_since(now));
            self.timer.set(Expiration::OneShot(span), TimerSetTimeFlags::empty())?;
            self.set_to = Some(deadline);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::eventfd::EventFd;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test's clock")]
    fn now() -> Instant {
        Instant::now()
    }

    /// Until `deadline`, whatever was waited for before.
    fn wait_until(poller: &mut Poller, deadline: Instant) -> usize {
        let (mut ready, mut rounds) = (Vec::new(), 0);
        while now() < deadline {
            poller.wait(now(), Some(deadline), &mut ready).unwrap();
            assert_eq!(ready, [0_u64; 0]);
            rounds += 1;
        }
        rounds
    }

    #[test]
    fn a_deadline_is_kept_whatever_was_waited_for_before() {
        let mut poller = Poller::new().unwrap();
        let ms = |count| now() + Duration::from_millis(count);
        // Sooner, later, and one after the other: two rounds at most, since one may be another's.
        let (far, source) = (ms(600_000), EventFd::new().unwrap());
        poller.add(&source, 7).unwrap();
        source.write(1).unwrap();
        let mut ready = Vec::new();
        poller.wait(now(), Some(far), &mut ready).unwrap();
        assert_eq!(ready, [7]);
        poller.remove(&source).unwrap();
        for span in [5, 1, 20, 0, 3] {
            let rounds = wait_until(&mut poller, ms(span));
            assert!(rounds <= 2, "{rounds} rounds for {span} ms");
        }
    }

    #[test]
    fn without_a_deadline_a_timer_that_is_set_makes_one_empty_round() {
        let mut poller = Poller::new().unwrap();
        let source = EventFd::new().unwrap();
        poller.add(&source, 7).unwrap();
        source.write(1).unwrap();
        let mut ready = Vec::new();
        poller.wait(now(), Some(now() + Duration::from_millis(2)), &mut ready).unwrap();
        poller.remove(&source).unwrap();
        poller.wait(now(), None, &mut ready).unwrap();
        assert_eq!(ready, [7], "and nothing beside");
        // And then none is set.
        assert_eq!(poller.set_to, None);
    }
}
