//! Accepts clients, where the master has admitted this worker to its listeners.
//!
//! All of a pool's workers wait at the same sockets, each in an epoll set of its own, and the kernel wakes
//! one for a client, not all of them (EPOLLEXCLUSIVE). That one may be the only one that is awake. So:
//!
//! * *Whoever was woken for a client accepts first*, before it reads its channel, where DRAIN may be, or
//!   looks whether others have less to do. Only then may it leave. One client each time: what is left is
//!   reported again, here and to whoever else is awake; or it is looked for, where several threads wait and
//!   are told once. Each of them may have been woken, so whoever leaves clients behind calls: that wakes one
//!   sibling that waits, too.
//! * Who stays away (full, or ahead of its siblings: `balance`) is not in the set, so nobody is woken
//!   in vain. It looks again when one of its connections has ended, when a sibling calls, and after
//!   [`AWAY`]. Whoever leaves the set for another reason calls, since somebody may rely on him.
//! * One who was woken may be killed or stopped before it accepts, and everybody else sleeps. So
//!   whoever waits for long looks for himself every [`LOOK`].
//!
//! Inside of another epoll set, as tokio's is, the kernel wakes all who wait; one of them gets the client.
//!
//! The listeners are left, and the sockets are closed, the moment that DRAIN is taken from the channel: no
//! client is accepted after that.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::balance::{Advice, Balance, is_anybody_away};
use super::bell::Bell;
use super::link::Link;
use super::listeners::Listeners;
use super::taker::{FULL_RETRY, Origin, now};
use super::tell::tell;
use super::watch::{Alarm, Event, Events, Hearing, Watch};
use crate::sys::accept::Accepted;
use crate::wire::siblings::Stand;

/// How long a client is left to others at most.
const AWAY: Duration = Duration::from_millis(50);
/// How often somebody who waits at his listeners looks whether a client does.
const LOOK: Duration = Duration::from_secs(1);

/// Whether this worker is among those that the kernel wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stance {
    /// It is.
    Waiting,
    /// Others have less to do. Until then.
    Away(Instant),
    /// It has as many connections as it can hold.
    Full,
    /// The system is out of something. Until then.
    Resting(Instant),
}

/// What one attempt brought.
#[derive(Debug)]
pub(super) enum Came {
    Client {
        socket: OwnedFd,
        listener: Arc<str>,
        origin: Origin,
    },
    Nobody,
    /// There is no descriptor for it.
    Full,
}

/// A worker's place at its listeners.
#[derive(Debug)]
pub(super) struct Acceptor {
    link: Arc<Link>,
    watch: Arc<Watch>,
    /// What the watch was told.
    alarm: Alarm,
    /// None: this worker does not accept, and only reads its channel.
    listeners: Listeners,
    /// Connections in hand at once.
    limit: u64,
    stance: Stance,
    balance: Balance,
    bell: Bell,
    /// There may be a message on the channel.
    hears: bool,
    /// Something has happened since it was decided whether to be woken.
    is_unsettled: bool,
    /// A client, since then.
    has_accepted: bool,
    /// A sibling has called, since then.
    is_called: bool,
}

impl Acceptor {
    /// One that has no listener yet.
    pub fn new(link: &Arc<Link>, watch: Arc<Watch>) -> Acceptor {
        Acceptor {
            link: Arc::clone(link),
            watch,
            alarm: Alarm::Never,
            listeners: Listeners::default(),
            limit: u64::MAX,
            stance: Stance::Full,
            balance: Balance::default(),
            bell: Bell::default(),
            hears: true,
            is_unsettled: true,
            has_accepted: false,
            is_called: false,
        }
    }

    /// Where it waits.
    #[cfg(feature = "tokio")]
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// From now on so many connections may be in hand at once.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// From now on clients of this socket are accepted, too. One that is known changes nothing.
    pub fn listen(&mut self, socket: OwnedFd, name: &str) {
        if !self.listeners.knows(&socket) {
            self.while_away(|listeners| listeners.add(socket, name));
        }
    }

    /// From now on siblings call by this bell, and are called.
    pub fn hear_bell(&mut self, bell: OwnedFd) {
        let stance = self.stance;
        self.take_place(Stance::Full);
        self.bell.replace(&self.watch, bell);
        self.take_place(stance);
    }

    /// Whether the channel is to be read: all that is there, before the next wait.
    pub fn hears(&self) -> bool {
        self.hears
    }

    /// A message was taken, or nothing is there any more.
    pub fn note_taken(&mut self, is_empty: bool) {
        // What is left is told again, unless it is told only once.
        self.hears &= !is_empty && self.watch.tells_once();
    }

    /// Accepts a client, if one is known to wait.
    pub fn take(&mut self) -> Came {
        self.is_unsettled = true;
        while let Some(index) = self.listeners.ready() {
            let before = self.stance;
            if !self.may_accept() {
                // Leaving the others has called already.
                let has_left = before == Stance::Waiting && self.stance != Stance::Waiting;
                if !has_left && self.leaves_clients() {
                    self.bell.ring();
                }
                self.listeners.forget_clients();
                break;
            }
            let blocks = self.watch.is_waited_at();
            match self.listeners.accept(index, blocks) {
                Ok(Accepted::Client(socket)) => {
                    // At once: whoever dies in between has cut a connection that nobody knows of.
                    self.link.seat().add_accepted();
                    self.has_accepted = true;
                    if self.watch.tells_once() {
                        // Nobody is told of the next one again.
                        self.listeners.look_at(index);
                    }
                    let listener = Arc::clone(self.listeners.name(index));
                    let origin = Origin::Here { family: self.listeners.family(index), blocks };
                    return Came::Client { socket, listener, origin };
                }
                // Somebody else was faster.
                Ok(Accepted::Nobody) => {}
                Ok(Accepted::Gone) => self.listeners.note_ready(index),
                Ok(Accepted::Exhausted(error)) => {
                    tell!("no connection can be accepted for the moment: {error}");
                    self.rest();
                    return Came::Full;
                }
                Err(_) => self.while_away(|listeners| listeners.remove(index)),
            }
        }
        Came::Nobody
    }

    /// Whether the next client is this worker's. The first one always is, if it can hold him.
    fn may_accept(&mut self) -> bool {
        if std::mem::take(&mut self.has_accepted) {
            self.stand();
            return self.stance == Stance::Waiting;
        }
        self.link.seat().own().in_hand() < self.limit
    }

    /// Whether clients wait of whom nobody else may have been told. Inside of another set, all are told.
    fn leaves_clients(&self) -> bool {
        self.watch.is_waited_at() && self.listeners.have_clients()
    }

    /// The system is out of something: others are to be woken for a while.
    pub fn rest(&mut self) {
        if !self.listeners.is_empty() {
            self.take_place(Stance::Resting(now() + FULL_RETRY));
        }
    }

    /// Decides whether to be woken for the next client. Whether there is something to take before.
    pub fn settle(&mut self) -> io::Result<bool> {
        if self.listeners.is_empty() {
            return Ok(self.hears);
        }
        self.has_accepted = false;
        self.stand();
        self.is_called = false;
        let alarm = match self.stance {
            Stance::Waiting => Alarm::In(LOOK),
            Stance::Away(until) | Stance::Resting(until) => Alarm::At(until),
            Stance::Full => Alarm::Never,
        };
        if std::mem::replace(&mut self.alarm, alarm) != alarm {
            self.watch.set_alarm(alarm)?;
        }
        Ok(self.has_something())
    }

    /// The same, looking at what there is. Whether there is something to take.
    #[cfg(feature = "tokio")]
    pub fn look(&mut self) -> io::Result<bool> {
        // Not between being woken and taking what there is.
        if self.is_unsettled {
            self.settle()?;
        }
        if self.has_something() {
            return Ok(true);
        }
        let events = self.watch.wait(Some(Duration::ZERO))?;
        self.note(&events);
        Ok(!events.is_timeout)
    }

    /// Something has happened.
    pub fn note(&mut self, events: &Events) {
        // There may be no place left for the channel, of which another was not told then.
        self.hears |= events.is_full();
        for event in events.iter() {
            match event {
                Event::Channel => self.hears = true,
                Event::Nudge => {
                    self.is_unsettled = true;
                    let _ = self.link.nudge().read();
                }
                Event::Bell => {
                    (self.is_unsettled, self.is_called) = (true, true);
                    self.look_for_clients();
                }
                Event::Alarm => {
                    self.alarm = Alarm::Never;
                    self.note_timeout();
                }
                Event::Call => {}
                Event::Listener(index) => self.listeners.note_ready(index),
            }
        }
    }

    /// Nothing has come for so long. Somebody may have been woken in vain: whoever waits is accepted.
    pub fn note_timeout(&mut self) {
        self.is_unsettled = true;
        self.look_for_clients();
    }

    fn look_for_clients(&mut self) {
        if self.stance == Stance::Waiting {
            self.listeners.look();
        }
    }

    /// When to look again, whatever happens until then.
    #[cfg(feature = "tokio")]
    pub fn deadline(&self) -> Option<Instant> {
        match self.stance {
            Stance::Away(until) | Stance::Resting(until) => Some(until),
            Stance::Waiting => Some(now() + LOOK),
            Stance::Full => None,
        }
    }

    fn has_something(&self) -> bool {
        self.hears || self.listeners.ready().is_some()
    }

    /// Decides whether to be woken for the next client.
    fn stand(&mut self) {
        self.is_unsettled = false;
        match self.stance {
            Stance::Resting(until) if until > now() => return,
            Stance::Away(until) if until <= now() && self.listeners.have_clients() => {
                self.balance.was_let_down(self.link.seat());
                self.listeners.note_all_ready();
                return self.take_place(Stance::Away(now() + AWAY));
            }
            Stance::Resting(_) | Stance::Away(_) | Stance::Waiting | Stance::Full => {}
        }
        let next = self.choose();
        self.take_place(next);
        if next == Stance::Waiting {
            return;
        }
        // What ends from here on is told; what has ended until here is seen now.
        self.link.await_end();
        let next = self.choose();
        self.take_place(next);
    }

    fn choose(&mut self) -> Stance {
        let seat = self.link.seat();
        if seat.own().in_hand() >= self.limit {
            return Stance::Full;
        }
        let is_away = self.stance != Stance::Waiting;
        match (self.balance.advise(seat, is_away), self.stance) {
            (Advice::Wait, _) => Stance::Waiting,
            (Advice::Call, _) => {
                // Not because of a call, which may have been its own.
                if !self.is_called {
                    self.bell.ring();
                }
                Stance::Waiting
            }
            (Advice::Leave, Stance::Away(until)) if until > now() => Stance::Away(until),
            (Advice::Leave, _) => Stance::Away(now() + AWAY),
        }
    }

    /// Enters the set, or leaves it.
    fn take_place(&mut self, next: Stance) {
        let before = std::mem::replace(&mut self.stance, next);
        let stand = stand_of(next);
        if stand_of(before) == stand {
            return;
        }
        let seat = self.link.seat();
        if stand != Stand::Waits {
            // Before it is true, so that nobody relies on it.
            seat.set_stand(stand);
        }
        // Whoever is away hears each call, and of several who wait one does.
        let hearing = match stand {
            Stand::IsAway => Some(Hearing::All),
            Stand::Waits if self.watch.is_waited_at() => Some(Hearing::One),
            Stand::Waits | Stand::IsElsewhere => None,
        };
        self.bell.hear(&self.watch, hearing);
        let was_woken = stand_of(before) == Stand::Waits;
        if was_woken {
            self.listeners.watch(&self.watch, false);
        }
        if stand == Stand::Waits {
            self.listeners.watch(&self.watch, true);
            self.link.seat().set_stand(stand);
        }
        let is_relied_on = stand == Stand::IsElsewhere && is_anybody_away(self.link.seat());
        if is_relied_on || was_woken && self.leaves_clients() {
            self.bell.ring();
        }
    }

    /// Changes the listeners while this worker is not woken for their clients.
    fn while_away(&mut self, change: impl FnOnce(&mut Listeners)) {
        let stance = self.stance;
        self.take_place(Stance::Full);
        change(&mut self.listeners);
        self.take_place(stance);
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // The sockets leave the watch before they are closed: other processes have them, too.
        self.take_place(Stance::Full);
    }
}

fn stand_of(stance: Stance) -> Stand {
    match stance {
        Stance::Waiting => Stand::Waits,
        Stance::Away(_) => Stand::IsAway,
        Stance::Full | Stance::Resting(_) => Stand::IsElsewhere,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, BorrowedFd};

    use nix::sys::eventfd::EventFd;

    use super::super::Worker;
    use super::super::tests::{LONG, cluster};
    use super::*;

    #[test]
    fn a_call_is_heard_once_and_by_those_who_are_away() {
        let (_master, worker) = cluster();
        let watch = Arc::new(Watch::several(&worker.link).unwrap());
        let mut acceptor = Acceptor::new(&worker.link, Arc::clone(&watch));
        let fetch = |acceptor: &mut Acceptor, limit| {
            let events = watch.wait(Some(limit)).unwrap();
            acceptor.note(&events);
            !events.is_timeout
        };
        let bell = EventFd::new().unwrap();
        acceptor.hear_bell(bell.as_fd().try_clone_to_owned().unwrap());
        acceptor.note_taken(true);
        acceptor.take_place(Stance::Away(now() + LONG));
        acceptor.is_unsettled = false;
        assert!(!fetch(&mut acceptor, Duration::ZERO));
        for _ in 0..2 {
            bell.write(1).unwrap();
            assert!(fetch(&mut acceptor, LONG));
            assert!(std::mem::take(&mut acceptor.is_unsettled), "it looks again");
            assert!(!fetch(&mut acceptor, Duration::ZERO));
        }
    }

    /// An acceptor that waits at a listener, and its bell.
    fn waiting(worker: &Worker, watch: Watch, limit: u64) -> (Acceptor, TcpListener, EventFd) {
        let (listener, bell) = (TcpListener::bind("127.0.0.1:0").unwrap(), EventFd::new().unwrap());
        listener.set_nonblocking(true).unwrap();
        let mut acceptor = Acceptor::new(&worker.link, Arc::new(watch));
        let copy = |source: BorrowedFd<'_>| source.try_clone_to_owned().unwrap();
        acceptor.set_limit(limit);
        acceptor.hear_bell(copy(bell.as_fd()));
        acceptor.listen(copy(listener.as_fd()), "web");
        acceptor.note_taken(true);
        assert!(!acceptor.settle().unwrap());
        assert_eq!(acceptor.stance, Stance::Waiting);
        (acceptor, listener, bell)
    }

    #[test]
    fn who_waits_looks_again_and_again() {
        let (_master, worker) = cluster();
        let several = Watch::several(&worker.link).unwrap();
        let (mut acceptor, _listener, _bell) = waiting(&worker, several, 8);
        for _ in 0..3 {
            let events = acceptor.watch.wait(Some(LONG)).unwrap();
            assert_eq!(events.iter().collect::<Vec<_>>(), [Event::Alarm]);
            acceptor.note(&events);
            assert!(!acceptor.settle().unwrap());
        }
    }

    #[test]
    fn who_cannot_take_the_client_whom_it_was_woken_for_calls() {
        let (_master, worker) = cluster();
        for number in 0..2 {
            let watches = [Watch::several(&worker.link), Watch::pair(&worker.link).map(|it| it.0)];
            let watch = watches.into_iter().nth(number).unwrap().unwrap();
            let (mut acceptor, listener, bell) = waiting(&worker, watch, 1);
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let events = acceptor.watch.wait(Some(LONG)).unwrap();
            // Another thread has taken one meanwhile.
            worker.link.seat().add_accepted();
            acceptor.note(&events);
            assert!(matches!(acceptor.take(), Came::Nobody));
            assert_eq!(bell.read().unwrap(), 1);
            // Or the drain has begun.
            let _ = worker.link.seat().add_finished();
            assert!(!acceptor.settle().unwrap() || acceptor.listeners.ready().is_some());
            drop(acceptor);
            assert_eq!(bell.read().unwrap(), 1);
            drop(client);
        }
    }

    #[test]
    fn a_call_is_no_reason_to_call() {
        let (master, worker) = cluster();
        let several = Watch::several(&worker.link).unwrap();
        let (mut acceptor, _listener, bell) = waiting(&worker, several, 8);
        let sibling = master.sibling();
        sibling.set_stand(Stand::IsAway);
        (0..2).for_each(|_| worker.link.seat().add_accepted());
        for _ in 0..20 {
            assert!(!acceptor.settle().unwrap());
            let events = acceptor.watch.wait(Some(Duration::ZERO)).unwrap();
            acceptor.note(&events);
        }
        // Each time that something else has happened, at most.
        assert!(bell.read().unwrap() <= 10);
        drop(acceptor);
    }
}
