//! How a connection that was handed back goes on to the next worker, and what a master's death in
//! between leaves of that.
//!
//! What waits in a worker's channel outlives the master, what is in the master's hand does not. So a
//! HANDBACK is *looked at* (with copies of its descriptors) and stays at the head of the channel until
//! somebody else has the connection. That somebody has got it, and that the head is gone, cannot become
//! true in one moment; if the next master sent it again, two workers would answer on one stream, which
//! is worse than a connection lost. So four steps, in this order:
//!
//! ```text
//!             the next master finds at the head, when this one was killed after it
//! write down  one that is written down, and not counted: *in doubt*
//! send        the same
//! count       one that is written down, and counted: it was passed on, and is taken out
//! take out    another one, or nothing
//! ```
//!
//! The *note* ([`Passing`], on the scoreboard) says which connection, by the inode of its socket, and how
//! many the receiver had been sent before it. That decides the doubt: a worker that outlived its master
//! has taken all that it was sent when it has joined the next one (`adoption`), and its counter says how
//! many that were. One that died before had taken what its counter says; what it had not taken comes out
//! of its queue with the rest, where that still is, or is gone, and then the head is all that is left of
//! the connection. Until the receiver has come or is gone the channel is left alone. Where nothing is
//! known of the receiver, the connection is taken for passed on.
//!
//! The counter `received back` is thus never ahead of the truth by more than the head, and the note says
//! when it is; so the accounts are exact. What is taken out without being passed on (nobody can have it,
//! it is none, the image is replaced, its worker is dead) is taken out first and counted then: a death
//! in between costs one connection, which is counted as cut.
//!
//! A connection that nobody has room for waits at the head, however long that lasts. Where there is no
//! descriptor for a copy, nothing is lost, either: it is looked at again a moment later. And a worker
//! that is dead has no channel that could outlive anybody: what it has handed back is taken into our
//! hand at once.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::Daemon;
use super::journal::{Entry, Level, MessageId};
use super::link::Hearing;
use crate::kinds::Worker;
use crate::kinds::native::{Client, Descriptors, Heard, Link};
use crate::supervisor::{ConnectionId, Event, ListenerId, WorkerId};
use crate::sys::socket::identity_of;
use crate::wire::message::{Past, ToMaster};
use crate::wire::scoreboard::{Passing, SeatWords};

/// When no descriptor is left, so long nothing is looked at.
const RETRY: Duration = Duration::from_millis(50);

/// See the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    WriteDown,
    Send,
    Count,
    TakeOut,
}

const STEPS: [Step; 4] = [Step::WriteDown, Step::Send, Step::Count, Step::TakeOut];

/// What is known of a connection that a worker has handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody else has it.
    IsOurs,
    /// The master before has passed it on.
    WasPassedOn {
        /// And has counted it.
        is_counted: bool,
    },
    /// It may have passed it on to this worker, which has not come yet.
    IsInDoubt(WorkerId),
}

/// What the note in its worker's seat says of a connection. `was_sent`: whether it has reached the one
/// that it was meant for; `None`: nobody can know yet.
fn judge(
    words: &SeatWords,
    socket: u64,
    was_sent: impl FnOnce(&Passing) -> Option<bool>,
) -> Verdict {
    let Some(passing) = words.passing().filter(|it| it.socket == socket && socket != 0) else {
        return Verdict::IsOurs;
    };
    if passing.number <= words.handed_back().1 {
        return Verdict::WasPassedOn { is_counted: true };
    }
    match was_sent(&passing) {
        Some(true) => Verdict::WasPassedOn { is_counted: false },
        Some(false) => Verdict::IsOurs,
        None => Verdict::IsInDoubt(WorkerId(passing.to)),
    }
}

/// What is written down of a connection on its way to a worker.
fn note(
    from: &SeatWords,
    socket: u64,
    (to, words, link): (WorkerId, &SeatWords, &Link),
) -> Passing {
    let number = from.handed_back().1 + 1;
    Passing { number, socket, to: to.0, seat: words.seat(), sent: link.sent }
}

/// Whether a connection has reached the worker that it was meant for. `had`: how many that one has
/// had from the master before, if that is known.
fn was_sent(from: &SeatWords, passing: &Passing, had: Option<u64>) -> bool {
    let counted = || from.of(passing.to, passing.seat).map(|words| words.counts().taken);
    had.or_else(counted).is_none_or(|had| had > passing.sent)
}

impl Daemon {
    /// Looks whether a worker's next message is a connection that it hands back, and passes that on.
    /// `None`: it is something else, to be read.
    pub(super) fn look_at_head(&mut self, id: WorkerId) -> Option<Hearing> {
        let link = self.native(id).filter(|link| link.hands_back)?;
        if link.head.is_some() {
            return Some(Hearing::Pauses);
        }
        let Ok(Heard::Message(ToMaster::Handback { listener, past, entry }, descriptors)) =
            link.look()
        else {
            return None;
        };
        if descriptors.swallowed {
            let rests_until = Some(self.now + RETRY);
            self.native_mut(id)?.rests_until = rests_until;
            let who = self.describe(id);
            let text = format!("what {who} hands back waits: no descriptor is left");
            self.say_once(Entry::new(Level::Warning, text).id(MessageId::AcceptFailed));
            return Some(Hearing::Pauses);
        }
        match self.judge_handback(id, &descriptors) {
            Verdict::IsInDoubt(receiver) => {
                self.native_mut(id)?.awaits = Some(receiver);
                return Some(Hearing::Pauses);
            }
            Verdict::WasPassedOn { is_counted } => {
                if !is_counted {
                    self.note_passed_on(id);
                }
                self.skip_head(id);
            }
            Verdict::IsOurs => {
                // Its worker has done with it, whatever becomes of it.
                self.ledgers.release(id, entry);
                self.offer_head(id, &listener, past, descriptors);
            }
        }
        Some(Hearing::GoesOn)
    }

    /// Somebody else may have what is at the head.
    fn offer_head(&mut self, id: WorkerId, listener: &str, past: Past, descriptors: Descriptors) {
        let held = self.unpack_back(id, listener, past, descriptors);
        match (held, self.native_mut(id)) {
            (Some(held), Some(link)) => link.head = Some(held.connection),
            _ => self.take_head_out(id),
        }
        self.report(Event::HandedBack { worker: id, held });
    }

    /// What is to be thought of a connection that a worker has handed back.
    pub(super) fn judge_handback(&self, from: WorkerId, descriptors: &Descriptors) -> Verdict {
        let Some(worker) = self.workers.get(&from) else { return Verdict::IsOurs };
        let socket = descriptors.socket.as_ref().map_or(0, |socket| identity_of(socket.as_fd()));
        judge(&worker.words, socket, |passing| {
            let to = WorkerId(passing.to);
            let is_known = !self.is_awaited(to);
            let had = self.adoption.came_with.get(&to).copied();
            is_known.then(|| was_sent(&worker.words, passing, had))
        })
    }

    /// Whether it is not known yet what this worker has had.
    pub(super) fn is_awaited(&self, id: WorkerId) -> bool {
        self.absent.contains_key(&id) || self.adoption.is_joining(id)
    }

    /// Counts what the master before has passed on and not counted.
    pub(super) fn note_passed_on(&mut self, from: WorkerId) {
        if let Some(worker) = self.workers.get(&from) {
            worker.words.add_received_back();
        }
        self.report(Event::PassedOn { worker: from });
    }

    /// Carries out the order to dispatch.
    pub(super) fn dispatch(&mut self, to: WorkerId, connection: ConnectionId) {
        // One who was long enough may be silent still.
        self.end_silence(connection);
        let Some((listener, client)) = self.held.remove(&connection) else { return };
        let from = self.whose_head(connection);
        match from.and_then(|from| Some((from, self.note_for(from, to, &client)?))) {
            Some((from, (words, note))) => {
                self.pass_on(from, &words, note, (to, listener, client));
            }
            None => {
                from.into_iter().for_each(|from| self.take_head_out(from));
                self.send(to, listener, client);
            }
        }
    }

    /// What is to be written down, and where. `None`: the receiver does not count for itself.
    fn note_for(
        &self,
        from: WorkerId,
        to: WorkerId,
        client: &Client,
    ) -> Option<(SeatWords, Passing)> {
        let words = self.workers.get(&from)?.words.clone();
        let receiver = self.workers.get(&to)?;
        let socket = identity_of(client.socket.as_fd());
        let note = note(&words, socket, (to, &receiver.words, receiver.native()?));
        Some((words, note))
    }

    fn pass_on(
        &mut self,
        from: WorkerId,
        words: &SeatWords,
        note: Passing,
        (to, listener, client): (WorkerId, ListenerId, Client),
    ) {
        if let Some(link) = self.native_mut(from) {
            link.head = None;
        }
        let mut client = Some(client);
        for step in STEPS {
            match step {
                Step::WriteDown => words.begin_passing(&note),
                Step::Send => {
                    let sent = client.take().map(|it| self.try_send_native(to, listener, it));
                    let Some(Err((client, is_full))) = sent else { continue };
                    words.undo_passing();
                    let held = self.hold(listener, client);
                    if let Some(link) = self.native_mut(from) {
                        link.head = Some(held.connection);
                    }
                    return self.report(Event::Returned { held, worker: to, is_full });
                }
                Step::Count => words.add_received_back(),
                Step::TakeOut => self.skip_head(from),
            }
        }
    }

    /// At the head of whose channel a connection in our hand is.
    fn whose_head(&self, connection: ConnectionId) -> Option<WorkerId> {
        let is_it = |worker: &Worker| worker.native().and_then(|it| it.head) == Some(connection);
        self.workers.iter().find(|(_, worker)| is_it(worker)).map(|(&id, _)| id)
    }

    /// A connection in our hand goes to nobody.
    pub(super) fn let_go_of_head(&mut self, connection: ConnectionId) {
        let from = self.whose_head(connection);
        from.into_iter().for_each(|from| self.take_head_out(from));
    }

    /// Takes the head out of a worker's channel, though nobody else has it.
    fn take_head_out(&mut self, from: WorkerId) {
        self.skip_head(from);
        let Some(worker) = self.workers.get_mut(&from) else { return };
        worker.words.add_received_back();
        if let Some(link) = worker.native_mut() {
            link.head = None;
        }
    }

    fn skip_head(&mut self, from: WorkerId) {
        let skipped = self.native(from).map(Link::skip);
        if let Some(Err(error)) = skipped {
            self.complain(from, &format!("cannot be heard: {error}"));
        }
    }

    /// Takes out what is in our hand, for the next image: it finds it there.
    pub(super) fn take_heads_out(&mut self) {
        let has_head = |worker: &Worker| worker.native().is_some_and(|link| link.head.is_some());
        let heads = self.workers.iter().filter(|(_, worker)| has_head(worker));
        for from in heads.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.take_head_out(from);
        }
    }

    /// A worker is dead: from now on its channel is just read.
    pub(super) fn bury_head(&mut self, id: WorkerId) {
        if self.native(id).is_some_and(|link| link.head.is_some()) {
            self.take_head_out(id);
        }
        if let Some(link) = self.native_mut(id) {
            (link.hands_back, link.awaits, link.rests_until) = (false, None, None);
        }
    }

    /// When a channel that is left alone for want of a descriptor is looked at again.
    pub(super) fn handback_deadline(&self) -> Option<Instant> {
        self.turn.resting.iter().filter_map(|&id| self.native(id)?.rests_until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ancillary::{Received, receive};
    use crate::wire::channel::{duplicate, pair};
    use crate::wire::message::{LENGTH_MAX, ToWorker};
    use crate::wire::scoreboard::Scoreboard;
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    const GIVER: WorkerId = WorkerId(11);
    const TAKER: WorkerId = WorkerId(12);
    const OTHER: WorkerId = WorkerId(13);

    /// A worker: both ends of its channel, as every worker has them that outlives its master, what it
    /// counts, and what it has taken.
    struct Worker {
        ours: OwnedFd,
        theirs: OwnedFd,
        words: SeatWords,
        taken: Vec<u64>,
    }

    impl Worker {
        fn new(id: WorkerId, seat: u32, board: &Scoreboard) -> Worker {
            let (ours, theirs) = pair().unwrap();
            let words = board.seat(seat).unwrap();
            words.clear(0);
            words.set_worker(id.0);
            Worker { ours, theirs, words, taken: Vec::new() }
        }

        /// What a master has of it, who knows that it was sent so many.
        fn link(&self, sent: u64) -> Link {
            let (ours, theirs) = (self.ours.try_clone(), self.theirs.try_clone());
            let mut link = Link::new(ours.unwrap(), theirs.unwrap()).unwrap();
            link.sent = sent;
            link
        }

        fn hand_back(&self, socket: &UnixStream) {
            let past = Past { idle_since: 1, requests: 1, leftover: 0 };
            let message = ToMaster::Handback { listener: "l".into(), past, entry: None }.encode();
            duplicate(&self.theirs).unwrap().send_with(&message, socket.as_fd(), None).unwrap();
            self.words.add_handed_back();
        }

        fn take(&mut self) {
            let mut buffer = [0; LENGTH_MAX];
            while let Received::Message { descriptor: Some(socket), .. } =
                receive(self.theirs.as_fd(), &mut buffer).unwrap()
            {
                let _ = self.words.add_taken();
                self.taken.push(identity_of(socket.as_fd()));
            }
        }
    }

    /// What has become of the taker when the next master comes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fate {
        /// It has come, and taken all.
        HasCome,
        /// It has come, and was sent more since.
        HasMore,
        /// It died without a master, and its queue with it.
        DiedBefore,
        /// The same, after it had taken all.
        DiedAfter,
        /// It died on its way to the next master, who has read its queue back.
        DiedJoining,
        /// It died, and somebody else has its seat.
        IsForgotten,
    }

    const FATES: [Fate; 6] = [
        Fate::HasCome,
        Fate::HasMore,
        Fate::DiedBefore,
        Fate::DiedAfter,
        Fate::DiedJoining,
        Fate::IsForgotten,
    ];

    struct World {
        giver: Worker,
        taker: Worker,
        other: Worker,
        sockets: Vec<(UnixStream, UnixStream)>,
    }

    impl World {
        fn new() -> World {
            let board = Scoreboard::create().unwrap();
            let [giver, mut taker, other] = [(GIVER, 1), (TAKER, 2), (OTHER, 3)]
                .map(|(id, seat)| Worker::new(id, seat, &board));
            let sockets: Vec<_> = (0..4).map(|_| UnixStream::pair().unwrap()).collect();
            // It has had one before, and another one waits for it.
            let mut link = taker.link(0);
            send(&mut link, sockets[2].0.as_fd());
            taker.take();
            sockets.iter().take(2).for_each(|(socket, _)| giver.hand_back(socket));
            World { giver, taker, other, sockets }
        }

        fn ids(&self) -> Vec<u64> {
            self.sockets.iter().map(|(socket, _)| identity_of(socket.as_fd())).collect()
        }

        /// A master, who dies after so many steps. Passes on all that it finds; whether it lived.
        fn master(&mut self, mut steps: usize, to: WorkerId, sent: u64, had: Option<u64>) -> bool {
            let giver = self.giver.link(0);
            let words = self.giver.words.clone();
            let mut link = if to == TAKER { self.taker.link(sent) } else { self.other.link(sent) };
            let receiver = if to == TAKER { &self.taker.words } else { &self.other.words };
            let mut may_go_on = || {
                let goes_on = steps > 0;
                steps = steps.saturating_sub(1);
                goes_on
            };
            loop {
                let Heard::Message(_, descriptors) = giver.look().unwrap() else { return true };
                let socket = descriptors.socket.unwrap();
                let identity = identity_of(socket.as_fd());
                match judge(&words, identity, |passing| Some(was_sent(&words, passing, had))) {
                    Verdict::IsInDoubt(_) => panic!("everybody has come"),
                    Verdict::WasPassedOn { is_counted } => {
                        if !is_counted {
                            if !may_go_on() {
                                return false;
                            }
                            words.add_received_back();
                        }
                        if !may_go_on() {
                            return false;
                        }
                        giver.skip().unwrap();
                    }
                    Verdict::IsOurs => {
                        let note = note(&words, identity, (to, receiver, &link));
                        for step in STEPS {
                            if !may_go_on() {
                                return false;
                            }
                            match step {
                                Step::WriteDown => words.begin_passing(&note),
                                Step::Send => send(&mut link, socket.as_fd()),
                                Step::Count => words.add_received_back(),
                                Step::TakeOut => giver.skip().unwrap(),
                            }
                        }
                    }
                }
            }
        }
    }

    fn send(link: &mut Link, socket: BorrowedFd<'_>) {
        let message = ToWorker::Connection { listener: "l", past: None, entry: None }.encode();
        link.send_connection(&message, socket, None).unwrap();
    }

    /// A master is killed after any step, the next one as well, and the third one finds what they left.
    #[test]
    fn whenever_masters_die_each_connection_is_with_one_worker() {
        for (fate, first, second) in FATES
            .into_iter()
            .flat_map(|fate| (0..=8).map(move |first| (fate, first)))
            .flat_map(|(fate, first)| (0..=8).map(move |second| (fate, first, second)))
        {
            let mut world = World::new();
            let ids = world.ids();
            world.master(first, TAKER, 1, None);
            // Those that the taker was sent: after the second step of each.
            let sent = (first + 2) / 4;
            let mut rescued = Vec::new();
            let mut had = None;
            match fate {
                Fate::HasCome | Fate::HasMore => {
                    world.taker.take();
                    had = Some(world.taker.words.counts().taken);
                }
                Fate::DiedBefore => {}
                Fate::DiedAfter | Fate::IsForgotten => world.taker.take(),
                Fate::DiedJoining => {
                    let mut link = world.taker.link(0);
                    let taken = link.take_back(crate::kinds::native::Queue::OfDead).unwrap();
                    let sockets = taken.connections.iter().map(|(_, client, _)| &client.socket);
                    rescued.extend(sockets.map(|socket| identity_of(socket.as_fd())));
                    had = Some(world.taker.words.counts().taken + link.read_back);
                }
            }
            if fate == Fate::HasMore {
                let mut link = world.taker.link(0);
                send(&mut link, world.sockets[3].0.as_fd());
                world.taker.take();
            }
            if fate == Fate::IsForgotten {
                world.taker.words.clear(0);
                world.taker.words.set_worker(99);
            }
            // The second has nobody but the third worker, and so has the third master.
            world.master(second, OTHER, 0, had);
            world.other.take();
            let others_had = world.other.words.counts().taken;
            // Of two receivers, the note names the last.
            let names = world.giver.words.passing().map(|passing| WorkerId(passing.to));
            let had = if names == Some(OTHER) { Some(others_had) } else { had };
            assert!(world.master(usize::MAX, OTHER, others_had, had));
            world.other.take();
            let name = format!("{fate:?}, killed after {first} and {second}");
            let (_, received) = world.giver.words.handed_back();
            assert_eq!(received, 2, "the count is exact: {name}");
            for (index, id) in ids.into_iter().enumerate().take(2) {
                let holders = [&world.taker.taken, &world.other.taken, &rescued];
                let owners = holders.into_iter().flatten().filter(|it| **it == id).count();
                let was_in_queue = index < sent;
                // It went with its worker; or nobody knows, and what is in doubt is lost.
                let may_be_lost =
                    fate == Fate::IsForgotten || fate == Fate::DiedBefore && was_in_queue;
                let expected = owners == 1 || owners == 0 && may_be_lost;
                assert!(expected, "connection {index} has {owners} owners: {name}");
                if fate == Fate::IsForgotten && first % 4 != 1 {
                    assert_eq!(owners, 1, "connection {index} was not in doubt: {name}");
                }
            }
        }
    }

    /// The receiver has not come yet: nobody can know, and nothing is done.
    #[test]
    fn what_is_in_doubt_waits() {
        let board = Scoreboard::create().unwrap();
        let words = board.seat(1).unwrap();
        words.begin_passing(&Passing { number: 1, socket: 7, to: 12, seat: 2, sent: 0 });
        assert_eq!(judge(&words, 7, |_| None), Verdict::IsInDoubt(TAKER));
        assert_eq!(judge(&words, 8, |_| None), Verdict::IsOurs, "another one is not");
        assert_eq!(judge(&words, 0, |_| None), Verdict::IsOurs, "what is no connection is not");
        words.add_received_back();
        assert_eq!(judge(&words, 7, |_| None), Verdict::WasPassedOn { is_counted: true });
    }
}
