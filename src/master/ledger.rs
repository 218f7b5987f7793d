//! The clients' sockets that the master keeps beside its workers, and what becomes of them when a
//! worker dies.
//!
//! ```text
//! sent ──▶ kept, one entry each ──┬─ CLOSED ────────────────▶ let go, in a sweep
//!                                 ├─ read back, handed back ─▶ let go at once
//!                                 └─ its worker is dead ────▶ judged, by what the entry says
//! ```
//!
//! Nobody tells the master that a connection is closed: it looks. On the way of every so many-th
//! connection, so that a look costs each of them about two entries, however many there are; and once a
//! second while something is kept, so that on a quiet master a closed client's descriptor goes, too.
//! A worker that claims to have closed connections which its ledger calls open is not believed: were
//! it, it could fill the master's table. Its ledger is then left alone.
//!
//! Where the master's own table is nearly full, nothing is kept: that is served as without a ledger.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

use super::Daemon;
use super::fate::Fate;
use super::journal::{Entry, Level};
use crate::config::Config;
use crate::kinds::native::Client;
use crate::supervisor::{Held, ListenerId, WorkerId};
use crate::sys::ancillary::number_of;
use crate::sys::tcp;
use crate::wire::ledger::{ENTRIES, Ledger, State};

/// How often it is looked whether something was closed, on a master with nothing else to do.
const INTERVAL: Duration = Duration::from_secs(1);

/// So many connections at least between two looks.
const BATCH: usize = 16;

/// Whose request was under way is told so. Whether the method was HEAD is not known, to which a body is
/// no answer; but the connection is closed, so that nobody waits for another answer behind it.
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\n\
    Connection: close\r\n\
    Retry-After: 1\r\n\
    Content-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 108\r\n\r\n\
    The process that worked on this request has ended. \
    Whether the request has had an effect is not known here.\n";

/// A client's socket, as it was sent.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) listener: ListenerId,
    pub(super) client: Client,
    /// Bytes that were written to it before it was sent; `None`: that cannot be known.
    pub(super) base: Option<u64>,
}

/// An entry for a connection that is about to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserved {
    pub(super) index: u32,
    base: Option<u64>,
}

/// What is kept of one worker's connections.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) ledger: Ledger,
    /// The worker said that it keeps it.
    pub(super) is_kept: bool,
    pub(super) places: Vec<Option<Kept>>,
    pub(super) free: Vec<u32>,
    /// Connections that it was sent, with an entry or without, less those that came back.
    pub(super) sent: u64,
    /// Connections sent since the last look.
    unlooked: usize,
    /// What it had finished at the last look by the clock.
    finished: u64,
}

impl Book {
    pub(super) fn new(ledger: Ledger) -> Book {
        Book {
            ledger,
            is_kept: false,
            places: Vec::new(),
            free: Vec::new(),
            sent: 0,
            unlooked: 0,
            finished: 0,
        }
    }

    fn in_use(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// An entry for the next connection, empty.
    fn reserve(&mut self) -> Option<u32> {
        if self.unlooked >= BATCH.max(self.in_use() / 2) {
            self.sweep();
        }
        let index = self.free.pop().or_else(|| {
            let next = u32::try_from(self.places.len()).ok().filter(|&next| next < ENTRIES)?;
            self.places.push(None);
            Some(next)
        })?;
        self.ledger.entry(index)?.clear();
        Some(index)
    }

    /// The connection of this entry is with the master again, or nowhere.
    fn release(&mut self, index: u32) -> Option<Kept> {
        let kept = self.places.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(kept)
    }

    /// Lets go of what the worker has closed, and of leftover that it has begun to read.
    fn sweep(&mut self) {
        self.unlooked = 0;
        for (index, place) in (0..).zip(&mut self.places) {
            let Some(kept) = place else { continue };
            match self.ledger.entry(index).map(|entry| entry.state()) {
                Some(State::Closed) => {
                    *place = None;
                    self.free.push(index);
                }
                Some(State::Queued) | None => {}
                Some(State::Clean | State::Dirty | State::Wrote) => kept.client.leftover = None,
            }
        }
    }

    /// A look by the clock. Whether the worker's ledger agrees with what it counts.
    fn look(&mut self, finished: u64) -> bool {
        if finished == self.finished {
            return true;
        }
        self.finished = finished;
        self.sweep();
        // What was finished when it was counted was closed before.
        self.in_use() as u64 <= self.sent.saturating_sub(finished)
    }
}

/// What is kept of all workers' connections.
#[derive(Debug, Default)]
pub(super) struct Ledgers {
    pub(super) books: BTreeMap<WorkerId, Book>,
    look_at: Option<Instant>,
    /// Sockets of this number and above are not kept.
    watermark: u64,
}

impl Ledgers {
    /// A worker gets a ledger.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left.
    pub(super) fn open(&mut self, worker: WorkerId) -> io::Result<Ledger> {
        let ledger = Ledger::create()?;
        self.books.insert(worker, Book::new(ledger.clone()));
        Ok(ledger)
    }

    pub(super) fn forget(&mut self, worker: WorkerId) {
        self.books.remove(&worker);
    }

    pub(super) fn set_limit(&mut self, limit: u64) {
        self.watermark = limit - (limit / 8).clamp(32, 1024).min(limit);
    }

    /// After an upgrade: the next look is due some time soon.
    pub(super) fn resume(&mut self, now: Instant) {
        let is_something_kept = self.books.values().any(|book| book.in_use() > 0);
        self.look_at = is_something_kept.then_some(now + INTERVAL);
    }

    /// The worker keeps its ledger from now on.
    pub(super) fn note_kept(&mut self, worker: WorkerId) {
        if let Some(book) = self.books.get_mut(&worker) {
            book.is_kept = true;
        }
    }

    /// An entry for a connection that is to be sent, if it can have one.
    pub(super) fn reserve(&mut self, worker: WorkerId, client: &Client) -> Option<Reserved> {
        let book = self.books.get_mut(&worker).filter(|book| book.is_kept)?;
        let number = u64::try_from(number_of(&client.socket)).ok()?;
        if number >= self.watermark {
            return None;
        }
        let index = book.reserve()?;
        // Before the worker has it. A new one has not been written to.
        let base = client.past.map_or(Some(0), |_| tcp::written(client.socket.as_fd()));
        Some(Reserved { index, base })
    }

    /// It was sent.
    pub(super) fn keep(
        &mut self,
        worker: WorkerId,
        reserved: Option<Reserved>,
        listener: ListenerId,
        client: Client,
        now: Instant,
    ) {
        let Some(book) = self.books.get_mut(&worker) else { return };
        book.sent += 1;
        book.unlooked += 1;
        let Some(Reserved { index, base }) = reserved else { return };
        let Some(place) = book.places.get_mut(index as usize) else { return };
        *place = Some(Kept { listener, client, base });
        self.look_at.get_or_insert(now + INTERVAL);
    }

    /// A connection of the master's own was sent.
    pub(super) fn note_own(&mut self, worker: WorkerId) {
        if let Some(book) = self.books.get_mut(&worker) {
            book.sent += 1;
        }
    }

    /// It could not be sent.
    pub(super) fn give_up(&mut self, worker: WorkerId, reserved: Option<Reserved>) {
        if let Some((book, reserved)) = self.books.get_mut(&worker).zip(reserved) {
            book.free.push(reserved.index);
        }
    }

    /// It came back: from the worker's queue, or from the worker.
    pub(super) fn release(&mut self, worker: WorkerId, entry: Option<u32>) {
        if let Some(book) = self.books.get_mut(&worker) {
            book.sent = book.sent.saturating_sub(1);
            drop(entry.and_then(|entry| book.release(entry)));
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.look_at
    }

    /// Lets go of what was closed, if it is time to look. Answers workers whose ledger does not agree
    /// with what they count.
    fn look(&mut self, now: Instant, finished: impl Fn(WorkerId) -> u64) -> Vec<WorkerId> {
        let mut liars = Vec::new();
        if self.look_at.is_none_or(|at| at > now) {
            return liars;
        }
        for (&worker, book) in &mut self.books {
            if book.in_use() > 0 && !book.look(finished(worker)) {
                *book = Book::new(book.ledger.clone());
                liars.push(worker);
            }
        }
        let is_something_kept = self.books.values().any(|book| book.in_use() > 0);
        self.look_at = is_something_kept.then_some(now + INTERVAL);
        liars
    }

    /// What is left of a dead worker's connections. Only after its last words and its queue were read.
    fn bury(&mut self, worker: WorkerId) -> Vec<(ListenerId, Fate)> {
        let Some(Book { ledger, places, .. }) = self.books.remove(&worker) else {
            return Vec::new();
        };
        let judged = (0..).zip(places).filter_map(|(index, place)| {
            let (kept, said) = (place?, ledger.entry(index)?.read());
            Some((kept.listener, kept.judge(&said)))
        });
        judged.collect()
    }
}

impl Daemon {
    /// Looks at the ledgers, if it is time to.
    pub(super) fn look_at_ledgers(&mut self) {
        let workers = &self.workers;
        let finished = |id| workers.get(&id).map_or(0, |worker| worker.words.counts().finished);
        for liar in self.ledgers.look(self.now, finished) {
            self.complain(liar, "counts otherwise than its crash ledger says");
        }
    }

    /// A worker is dead, its last words and its queue are read: who can go on does, who was asking is
    /// told, the rest is closed. Answers those who go on, and how many were told.
    pub(super) fn bury_ledger(&mut self, worker: WorkerId) -> (Vec<Held>, u64) {
        let (mut alive, mut told) = (Vec::new(), 0);
        for (listener, fate) in self.ledgers.bury(worker) {
            match fate {
                Fate::GoesOn(client) => alive.push(self.hold(listener, client)),
                Fate::IsTold(socket) => told += u64::from(self.tell_unavailable(socket)),
                Fate::IsCut(socket) => {
                    // The worker's children may hold it, too. It fails when the client has gone.
                    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
                }
                Fate::IsOver => {}
            }
        }
        (alive, told)
    }

    /// Whether the client has, or could have had, its answer.
    fn tell_unavailable(&mut self, socket: OwnedFd) -> bool {
        let Ok(id) = self.lingering.tell(socket, UNAVAILABLE.as_bytes(), self.now) else {
            return false;
        };
        if let Some(id) = id {
            self.watch_lingering(id);
        }
        true
    }

    /// Fewer descriptors than the pools may want, for people.
    pub(super) fn ledger_shortage(&self, config: &Config) -> Option<String> {
        let pools = config.pools.iter().filter(|pool| pool.crash_ledger);
        let wanted = |policy: &crate::supervisor::Policy| {
            u64::from(policy.workers) * u64::from(policy.max_connections)
        };
        let wanted: u64 = pools.map(|pool| wanted(&pool.policy)).sum();
        let room = self.ledgers.watermark;
        (wanted > room).then(|| {
            format!(
                "crash-ledger: the master would keep up to {wanted} clients' sockets and has room \
                 for {room}; beyond that, connections are served without it: raise LimitNOFILE= to \
                 {} or more",
                wanted + wanted / 4 + 64
            )
        })
    }

    /// A connection is sent without an entry, though its worker keeps a ledger.
    pub(super) fn note_unkept(&mut self, worker: WorkerId, client: &Client) {
        let is_kept = self.ledgers.books.get(&worker).is_some_and(|book| book.is_kept);
        let number = u64::try_from(number_of(&client.socket)).unwrap_or(u64::MAX);
        if is_kept && number >= self.ledgers.watermark {
            let text = "the master's descriptors are nearly used up: further connections are served \
                        without the crash ledger; raise LimitNOFILE=";
            self.say_once(Entry::new(Level::Warning, text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ledger;
    use crate::wire::message::Past;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    const WORKER: WorkerId = WorkerId(1);
    const LISTENER: ListenerId = ListenerId(1);

    /// The master's side, and the worker's, which the test plays.
    struct Pair {
        ledgers: Ledgers,
        theirs: Ledger,
        listener: TcpListener,
        now: Instant,
    }

    /// A connection that was sent: the client, the worker's socket and its entry.
    struct Sent {
        _client: TcpStream,
        socket: TcpStream,
        entry: ledger::Entry,
    }

    impl Pair {
        fn new() -> Pair {
            let mut ledgers = Ledgers::default();
            ledgers.set_limit(1024);
            let ours = ledgers.open(WORKER).unwrap();
            let theirs = Ledger::open(ours.as_fd().try_clone_to_owned().unwrap()).unwrap();
            ledgers.note_kept(WORKER);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            #[expect(clippy::disallowed_methods, reason = "where virtual time begins")]
            let now = Instant::now();
            Pair { ledgers, theirs, listener, now }
        }

        fn send(&mut self, past: Option<Past>) -> Sent {
            let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
            let (socket, _) = self.listener.accept().unwrap();
            if past.is_some() {
                (&socket).write_all(b"an earlier answer").unwrap();
            }
            let ours = OwnedFd::from(socket.try_clone().unwrap());
            let ours = Client { socket: ours, past, leftover: None };
            let reserved = self.ledgers.reserve(WORKER, &ours).unwrap();
            self.ledgers.keep(WORKER, Some(reserved), LISTENER, ours, self.now);
            let entry = self.theirs.entry(reserved.index).unwrap();
            Sent { _client: client, socket, entry }
        }

        /// The worker is dead.
        fn fates(&mut self) -> Vec<Fate> {
            self.ledgers.bury(WORKER).into_iter().map(|(_, fate)| fate).collect()
        }

        fn fate(&mut self) -> Fate {
            let fates = self.fates();
            assert_eq!(fates.len(), 1);
            fates.into_iter().next().unwrap()
        }

        fn in_use(&self) -> usize {
            self.ledgers.books[&WORKER].in_use()
        }
    }

    fn past(requests: u64) -> Past {
        Past { idle_since: 5, requests, leftover: 0 }
    }

    /// What a worker does, and what its death then means; in the order in which it does it.
    #[test]
    fn each_step_of_a_request_has_its_own_end() {
        for step in 0.. {
            let mut pair = Pair::new();
            let mut sent = pair.send(Some(past(3)));
            let steps: [&dyn Fn(&mut Sent); 7] = [
                &|sent| sent.entry.set_http(),
                &|sent| _ = sent.entry.note_read(),
                &|sent| sent.entry.note_write(0, 10, false),
                &|sent| sent.socket.write_all(b"hello").unwrap(),
                &|sent| sent.socket.write_all(b"world").unwrap(),
                &|sent| sent.entry.note_clean(4, 77),
                &|sent| sent.entry.note_closed(),
            ];
            for done in steps.iter().take(step) {
                done(&mut sent);
            }
            match (step, pair.fate()) {
                (0 | 1, Fate::GoesOn(Client { past: found, .. })) => {
                    assert_eq!(found, Some(past(3)), "as it was sent")
                }
                // About to answer is not having answered.
                (2 | 3, Fate::IsTold(_)) | (4, Fate::IsCut(_)) => {}
                // The whole answer is there, and nobody was told.
                (5, Fate::GoesOn(Client { past: Some(found), .. })) => {
                    assert_eq!(found.requests, 1, "one more than when it was clean last");
                    assert!(found.idle_since > 0);
                }
                (6, Fate::GoesOn(Client { past: Some(found), .. })) => {
                    assert_eq!(found, Past { idle_since: 77, requests: 4, leftover: 0 });
                }
                (7, Fate::IsOver) => return,
                (step, fate) => panic!("after {step} steps: {fate:?}"),
            }
        }
    }

    #[test]
    fn nobody_tells_what_is_no_http_and_nobody_believes_what_is_not_known() {
        let mut pair = Pair::new();
        let _ = pair.send(None).entry.note_read();
        assert!(matches!(pair.fate(), Fate::IsCut(_)), "no HTTP");
        // Between two answers, the second request read in part: told, not passed on.
        let mut pair = Pair::new();
        let mut sent = pair.send(None);
        sent.entry.set_http();
        sent.entry.note_write(0, 5, true);
        sent.socket.write_all(b"hello").unwrap();
        assert!(matches!(pair.fate(), Fate::IsTold(_)));
        // A state of no known version.
        let mut pair = Pair::new();
        let sent = pair.send(None);
        sent.entry.note_write(u64::MAX, u64::MAX, true);
        assert!(matches!(pair.fate(), Fate::IsCut(_)));
    }

    /// A worker that was never told of a leftover's end must not have it passed on without.
    #[test]
    fn a_leftover_stays_with_its_connection_until_it_is_read() {
        for is_read in [false, true] {
            let mut pair = Pair::new();
            let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
            let leftover = Some(crate::sys::leftover::pack(b"GET").unwrap());
            let past = Some(Past { leftover: 3, ..past(1) });
            let client = Client { socket: socket.into(), past, leftover };
            let reserved = pair.ledgers.reserve(WORKER, &client).unwrap();
            pair.ledgers.keep(WORKER, Some(reserved), LISTENER, client, pair.now);
            if is_read {
                let _ = pair.theirs.entry(reserved.index).unwrap().note_read();
            }
            match pair.fate() {
                Fate::GoesOn(client) => {
                    assert!(!is_read && client.leftover.is_some() && client.past == past)
                }
                Fate::IsCut(_) => assert!(is_read),
                other @ (Fate::IsTold(_) | Fate::IsOver) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_came_back_is_not_there_any_more() {
        let mut pair = Pair::new();
        let sent = [pair.send(None), pair.send(None)];
        pair.ledgers.release(WORKER, Some(0));
        pair.ledgers.release(WORKER, Some(0));
        pair.ledgers.release(WORKER, Some(u32::MAX));
        pair.ledgers.release(WORKER, None);
        assert_eq!(pair.in_use(), 1);
        drop(sent);
        let _reused = pair.send(None);
        assert_eq!((pair.in_use(), pair.fates().len()), (2, 2));
    }

    /// However many come and go, few are kept; and what is in use costs a few looks for each.
    #[test]
    fn closed_ones_are_let_go_on_the_way() {
        let mut pair = Pair::new();
        let staying: Vec<Sent> = (0..40).map(|_| pair.send(None)).collect();
        let mut most = 0;
        for _ in 0..400 {
            pair.send(None).entry.note_closed();
            most = most.max(pair.in_use());
        }
        assert!((40..=40 + 40).contains(&most), "{most}");
        drop(staying);
    }

    #[test]
    fn closed_ones_are_let_go_by_the_clock() {
        let mut pair = Pair::new();
        let sent: Vec<Sent> = (0..3).map(|_| pair.send(None)).collect();
        sent.iter().take(2).for_each(|sent| sent.entry.note_closed());
        let due = pair.ledgers.deadline().unwrap();
        assert!(due <= pair.now + Duration::from_secs(1), "soon");
        assert!(pair.ledgers.look(pair.now, |_| 2).is_empty());
        assert_eq!(pair.in_use(), 3, "not before it is time");
        assert!(pair.ledgers.look(due, |_| 2).is_empty());
        assert_eq!(pair.in_use(), 1);
        let due = pair.ledgers.deadline().unwrap();
        sent[2].entry.note_closed();
        assert!(pair.ledgers.look(due, |_| 3).is_empty());
        assert_eq!((pair.in_use(), pair.ledgers.deadline()), (0, None), "the clock rests");
    }

    /// Who counts connections as finished and keeps them open in the ledger would fill our table.
    #[test]
    fn who_counts_otherwise_than_he_says_has_no_ledger_any_more() {
        let mut pair = Pair::new();
        let sent: Vec<Sent> = (0..3).map(|_| pair.send(None)).collect();
        let due = pair.ledgers.deadline().unwrap();
        assert_eq!(pair.ledgers.look(due, |_| 1), [WORKER]);
        assert_eq!(pair.in_use(), 0);
        let socket = OwnedFd::from(sent[0].socket.try_clone().unwrap());
        let client = Client { socket, past: None, leftover: None };
        assert!(pair.ledgers.reserve(WORKER, &client).is_none());
        assert!(pair.fates().is_empty());
    }

    #[test]
    fn an_old_library_and_a_full_table_have_no_entries() {
        let mut pair = Pair::new();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let client = Client { socket: socket.into(), past: None, leftover: None };
        pair.ledgers.set_limit(0);
        assert!(pair.ledgers.reserve(WORKER, &client).is_none());
        pair.ledgers.set_limit(1024);
        assert!(pair.ledgers.reserve(WORKER, &client).is_some());
        let _ = pair.ledgers.open(WorkerId(2)).unwrap();
        assert!(pair.ledgers.reserve(WorkerId(2), &client).is_none(), "it has not said so");
    }

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let (head, body) = UNAVAILABLE.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
    }
}
