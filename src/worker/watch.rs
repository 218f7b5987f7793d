//! What a worker's threads wait at: the channel, listeners where it accepts by itself, and whatever else
//! calls them. One epoll set, so that one wait is enough.
//!
//! *Several* threads may wait at it. The kernel wakes one for each event, the one that went to wait last
//! (`ep_poll` puts it at the head of the queue), and tells nobody else (EPOLLET): so whoever is woken takes
//! all that is there, or sees to it that somebody else does.
//!
//! Or *one* waits at it, and what is left is reported again. Another may *stand in* for it at the channel: it
//! is woken for a message only while the first does not wait (EPOLLEXCLUSIVE goes by who was there first).
//! Or nobody waits but at another set that has this one, as tokio's does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::link::Link;
use super::taker::now;
use crate::sys::clock::timer_span;

/// Events fetched per wait. What does not fit is reported by the next.
const BATCH: usize = 16;

/// Tokens of the set. Listeners have their numbers.
const CHANNEL: u64 = u64::MAX;
const NUDGE: u64 = u64::MAX - 1;
const BELL: u64 = u64::MAX - 2;
const ALARM: u64 = u64::MAX - 3;
const CALL: u64 = u64::MAX - 4;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// There may be a message.
    Channel,
    /// A connection has ended that was waited for.
    Nudge,
    /// A sibling calls.
    Bell,
    /// It is time to look.
    Alarm,
    /// Another thread calls, or the drain has begun.
    Call,
    /// A client may wait at the listener of this number.
    Listener(usize),
}

/// Who of a pool's workers hears a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hearing {
    /// Each of these.
    All,
    /// One of these, beside the others.
    One,
}

/// When it is time to look, whatever happens until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    Never,
    In(Duration),
    At(Instant),
}

/// What one wait brought.
#[derive(Debug)]
pub(super) struct Events {
    events: [EpollEvent; BATCH],
    count: usize,
    /// Nothing has happened for as long as was waited.
    pub is_timeout: bool,
}

impl Events {
    /// Whether something else may have happened.
    pub fn is_full(&self) -> bool {
        self.count == BATCH
    }

    pub fn iter(&self) -> impl Iterator<Item = Event> {
        self.events[..self.count].iter().map(|event| match event.data() {
            CHANNEL => Event::Channel,
            NUDGE => Event::Nudge,
            BELL => Event::Bell,
            ALARM => Event::Alarm,
            CALL => Event::Call,
            index => Event::Listener(usize::try_from(index).unwrap_or(usize::MAX)),
        })
    }
}

/// See the head of the file.
#[derive(Debug)]
pub(super) struct Watch {
    set: Epoll,
    /// An event is reported once, whatever is left.
    tells_once: bool,
    calls: Option<Calls>,
}

/// What wakes those who wait at it themselves. They are never read: each time is an event of its own.
#[derive(Debug)]
struct Calls {
    /// By which one thread calls another.
    call: EventFd,
    /// For who decides when it is time; one that stands in does not.
    alarm: Option<TimerFd>,
}

impl Watch {
    /// For one who waits at it inside of another set.
    pub fn nested(link: &Link) -> io::Result<Watch> {
        let watch = Watch::new(false)?;
        watch.add(link.channel(), CHANNEL, EpollFlags::empty())?;
        watch.add(link.nudge(), NUDGE, EpollFlags::empty())?;
        Ok(watch)
    }

    /// For several threads.
    pub fn several(link: &Link) -> io::Result<Watch> {
        let watch = Watch::new(true)?.with_calls(link)?.with_alarm()?;
        watch.add(link.channel(), CHANNEL, EpollFlags::empty())?;
        watch.add(link.nudge(), NUDGE, EpollFlags::empty())?;
        Ok(watch)
    }

    /// For one thread; and one that stands in for it at the channel.
    pub fn pair(link: &Link) -> io::Result<(Watch, Watch)> {
        let first = Watch::new(false)?.with_calls(link)?.with_alarm()?;
        first.add(link.channel(), CHANNEL, EpollFlags::EPOLLEXCLUSIVE)?;
        first.add(link.nudge(), NUDGE, EpollFlags::empty())?;
        let second = Watch::new(false)?.with_calls(link)?;
        second.add(link.channel(), CHANNEL, EpollFlags::EPOLLEXCLUSIVE)?;
        Ok((first, second))
    }

    fn new(tells_once: bool) -> io::Result<Watch> {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Watch { set, tells_once, calls: None })
    }

    fn with_calls(self, link: &Link) -> io::Result<Watch> {
        let call = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        self.add(&call, CALL, EpollFlags::EPOLLET)?;
        // The drain is for all of them.
        self.set.add(link.bell(), EpollEvent::new(EpollFlags::EPOLLIN, CALL))?;
        Ok(Watch { calls: Some(Calls { call, alarm: None }), ..self })
    }

    fn with_alarm(mut self) -> io::Result<Watch> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let alarm = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        self.add(&alarm, ALARM, EpollFlags::EPOLLET)?;
        if let Some(calls) = &mut self.calls {
            calls.alarm = Some(alarm);
        }
        Ok(self)
    }

    /// Whether threads wait at it themselves, which answer what they take.
    pub fn is_waited_at(&self) -> bool {
        self.calls.is_some()
    }

    /// Whether an event is reported once, whatever is left.
    pub fn tells_once(&self) -> bool {
        self.tells_once
    }

    /// Waits until something happens, or for `limit`, or until a signal comes.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<Events> {
        let mut events = [EpollEvent::empty(); BATCH];
        match self.set.wait(&mut events, timeout(limit)) {
            Ok(count) => Ok(Events { events, count, is_timeout: count == 0 }),
            Err(Errno::EINTR) => Ok(Events { events, count: 0, is_timeout: false }),
            Err(error) => Err(error.into()),
        }
    }

    /// Wakes one of those who wait.
    pub fn call(&self) {
        // Only a counter near its maximum could refuse.
        let _ = self.calls.as_ref().map(|calls| calls.call.write(1));
    }

    /// One of those who wait at it themselves is told when it is time.
    pub fn set_alarm(&self, alarm: Alarm) -> io::Result<()> {
        let Some(Calls { alarm: Some(timer), .. }) = &self.calls else { return Ok(()) };
        let expiration = match alarm {
            Alarm::Never => return Ok(timer.unset()?),
            Alarm::In(time) => Expiration::OneShot(timer_span(time)),
            Alarm::At(at) => Expiration::OneShot(timer_span(at.saturating_duration_since(now()))),
        };
        Ok(timer.set(expiration, TimerSetTimeFlags::empty())?)
    }

    /// From now on one of all the sets that have this listener is woken for a client.
    pub fn add_listener(&self, socket: &impl AsFd, index: usize) -> io::Result<()> {
        self.add(socket, index as u64, EpollFlags::EPOLLEXCLUSIVE)
    }

    pub fn remove_listener(&self, socket: &impl AsFd) -> io::Result<()> {
        Ok(self.set.delete(socket)?)
    }

    /// From now on a sibling's call is heard so, and no longer as before.
    pub fn hear_bell(
        &self,
        bell: &impl AsFd,
        before: Option<Hearing>,
        hearing: Option<Hearing>,
    ) -> io::Result<()> {
        if before.is_some() {
            // It fails where it could not be added.
            let _ = self.set.delete(bell);
        }
        let exclusive = match hearing {
            None => return Ok(()),
            Some(Hearing::All) => EpollFlags::empty(),
            Some(Hearing::One) => EpollFlags::EPOLLEXCLUSIVE,
        };
        // It is never read: that would silence it for those who have not heard it yet. Each ring is an
        // event of its own.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET | exclusive;
        Ok(self.set.add(bell, EpollEvent::new(flags, BELL))?)
    }

    fn add(&self, source: &impl AsFd, token: u64, flags: EpollFlags) -> io::Result<()> {
        let once = if self.tells_once { EpollFlags::EPOLLET } else { EpollFlags::empty() };
        Ok(self.set.add(source, EpollEvent::new(EpollFlags::EPOLLIN | once | flags, token))?)
    }
}

/// The set, whose readiness says that something has happened.
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.0.as_fd()
    }
}

/// Milliseconds, rounded up: a wait that ends early would spin until the deadline.
fn timeout(wait: Option<Duration>) -> EpollTimeout {
    let ms = wait.map(|wait| i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    ms.map_or(EpollTimeout::NONE, |ms| EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::MAX))
}
