//! What a worker's crash would mean for each of its connections, in memory that outlives it.
//!
//! One ledger per worker of a pool with `crash-ledger`, in a memfd of sealed size. The master keeps
//! every client's socket and gives it an *entry*; the worker says in the entry how far it is. When
//! the worker dies, the master reads there who can go on with another worker, who is owed an answer,
//! and whose answer had begun.
//!
//! ```text
//! 0        magic · version and stride · entries                  header, one stride long
//! entry    +0   state and flags                                  master: QUEUED; then the worker
//!          +8   requests · +16 idle since                        as they stand when CLEAN
//!          +24  from · +32 until                                 bytes written, see below
//! ```
//!
//! | state | means | stored by the worker |
//! |---|---|---|
//! | 0 QUEUED | as it was sent: nothing was read from it | (by the master, before it is sent) |
//! | 1 CLEAN | between two requests, nothing of the next one is read | when the answer is flushed and the accounts have nothing pending |
//! | 2 DIRTY | bytes of a request are read, nothing of the answer is written | *before* the read; taken back if it brought nothing |
//! | 3 WROTE | an answer has begun | *before* the write |
//! | 4 CLOSED | closed; the master may use the entry again | after the socket is shut down, *before* it counts as finished |
//!
//! | flag | means |
//! |---|---|
//! | 256 HTTP | HTTP/1, where a 503 says what has happened |
//! | 512 PENDING | at `until` it is not CLEAN but DIRTY: the next request has been read in part |
//!
//! Two moments cannot be told by a word alone, for a write and a store are two steps: WROTE is stored
//! and nothing is written yet; the answer is written whole and CLEAN is not stored yet. Both are
//! decided by the kernel, which has counted. `from` is what this worker had written to the connection
//! when the answer began, `until` what it will have written when the answer is whole (0: not known).
//! A socket that stands at one of them stands at a boundary.
//!
//! Every entry is written by one owner at a time: by the master until the message that carries its
//! index, by the worker from the receipt of that message until it stores CLOSED or hands the connection
//! back, then by the master again. Message and state are the hand-over, so stores of the state are
//! *release* and loads are *acquire*: who sees CLOSED sees that nothing of the old owner follows. The
//! other words are relaxed; they are written before the state that makes them count. When the worker is
//! dead all its stores have happened, in the order of its program as far as it got: a signal interrupts
//! between two instructions. So the order of stores and system calls in the program is all that is
//! needed, and only the compiler could change it: a fence for the compiler stands between the two, which
//! costs nothing.
//!
//! An entry has a cache line of its own. What a worker wrote is untrusted: it decides about its own
//! connections, and about nothing else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence};

use super::VERSION;
use crate::sys::shared::SharedMemory;

/// Bytes per entry.
pub const STRIDE: usize = 64;

/// Entries of a ledger. Only pages of entries that were used take memory.
pub const ENTRIES: u32 = 65_536;

const MAGIC: u64 = u64::from_le_bytes(*b"RCLEDGER");

const HTTP: u64 = 1 << 8;
const PENDING: u64 = 1 << 9;

/// How far a worker is with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it was sent.
    Queued,
    /// Between two requests.
    Clean,
    /// A request is read in part or whole, nothing is answered.
    Dirty,
    /// An answer has begun.
    Wrote,
    /// It is over.
    Closed,
}

impl State {
    fn encode(self) -> u64 {
        match self {
            State::Queued => 0,
            State::Clean => 1,
            State::Dirty => 2,
            State::Wrote => 3,
            State::Closed => 4,
        }
    }

    /// What no version knows is taken for an answer that has begun: nothing is done to its client.
    fn decode(word: u64) -> State {
        match word & 0xff {
            0 => State::Queued,
            1 => State::Clean,
            2 => State::Dirty,
            4 => State::Closed,
            _ => State::Wrote,
        }
    }
}

/// Everything that an entry says, as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// How far the worker is.
    pub state: State,
    /// The protocol is HTTP/1.
    pub is_http: bool,
    /// At `until`, the next request has been read in part.
    pub is_pending: bool,
    /// Requests so far, in all workers.
    pub requests: u64,
    /// When the last answer was finished: microseconds of CLOCK_MONOTONIC.
    pub idle_since: u64,
    /// Bytes that this worker had written when the answer began.
    pub from: u64,
    /// Bytes that this worker has written when the answer is whole. 0: not known.
    pub until: u64,
}

/// The entries of one worker, as the master or the worker sees them.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<SharedMemory>);

impl Ledger {
    /// Makes an empty ledger.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left.
    pub fn create() -> io::Result<Ledger> {
        let size = (ENTRIES as usize + 1) * STRIDE;
        let memory = SharedMemory::create(c"rcluster-ledger", size)?;
        memory.word(0).store(MAGIC, Relaxed);
        memory.word(8).store(u64::from(VERSION) | (STRIDE as u64) << 32, Relaxed);
        memory.word(16).store(u64::from(ENTRIES), Relaxed);
        Ok(Ledger(Arc::new(memory)))
    }

    /// Maps a ledger that the master made.
    ///
    /// # Errors
    /// `InvalidData` when it is none, or of a layout that this library does not know.
    pub fn open(memfd: OwnedFd) -> io::Result<Ledger> {
        let memory = SharedMemory::open(memfd)?;
        let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if memory.size() < STRIDE || memory.word(0).load(Relaxed) != MAGIC {
            return wrong("it is no ledger of rcluster".into());
        }
        let stride = memory.word(8).load(Relaxed) >> 32;
        if stride != STRIDE as u64 {
            return wrong(format!("its stride is {stride}, this library writes with {STRIDE}"));
        }
        Ok(Ledger(Arc::new(memory)))
    }

    /// An entry. `None`: there is none of this number.
    #[must_use]
    pub fn entry(&self, index: u32) -> Option<Entry> {
        let offset = (index as usize).checked_add(1)?.checked_mul(STRIDE)?;
        let is_inside = offset.checked_add(STRIDE).is_some_and(|end| end <= self.0.size());
        is_inside.then(|| Entry { memory: Arc::clone(&self.0), offset })
    }
}

impl AsFd for Ledger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The words of one entry.
#[derive(Clone, Debug)]
pub struct Entry {
    memory: Arc<SharedMemory>,
    offset: usize,
}

impl Entry {
    fn word(&self, offset: usize) -> &AtomicU64 {
        self.memory.word(self.offset + offset)
    }

    /// Everything it says.
    #[must_use]
    pub fn read(&self) -> Said {
        let word = self.word(0).load(Acquire);
        Said {
            state: State::decode(word),
            is_http: word & HTTP != 0,
            is_pending: word & PENDING != 0,
            requests: self.word(8).load(Relaxed),
            idle_since: self.word(16).load(Relaxed),
            from: self.word(24).load(Relaxed),
            until: self.word(32).load(Relaxed),
        }
    }

    /// How far the worker is.
    #[must_use]
    pub fn state(&self) -> State {
        State::decode(self.word(0).load(Acquire))
    }

    /// Empties it for another connection. The master's, before the connection is sent.
    pub fn clear(&self) {
        for offset in [8, 16, 24, 32] {
            self.word(offset).store(0, Relaxed);
        }
        self.word(0).store(State::Queued.encode(), Release);
    }

    /// The protocol is HTTP/1, from now on. The worker's.
    pub fn set_http(&self) {
        self.word(0).fetch_or(HTTP, Release);
    }

    /// Something is about to be read. The state before, if that was a boundary: for
    /// [`Entry::take_back`]. The worker's.
    #[must_use]
    pub fn note_read(&self) -> Option<State> {
        let word = self.word(0).load(Relaxed);
        let before = State::decode(word);
        match before {
            State::Queued | State::Clean => {
                self.word(0).store(word & HTTP | State::Dirty.encode(), Release);
                compiler_fence(SeqCst);
                Some(before)
            }
            State::Wrote => {
                // Beyond that answer more is read now: it is no boundary any more.
                if self.word(32).load(Relaxed) != 0 {
                    self.word(32).store(0, Release);
                    compiler_fence(SeqCst);
                }
                None
            }
            State::Dirty | State::Closed => None,
        }
    }

    /// The read brought nothing, so it is where it was; unless somebody has written meanwhile. The
    /// worker's.
    pub fn take_back(&self, before: State) {
        let word = self.word(0).load(Relaxed);
        if State::decode(word) == State::Dirty {
            let was = word & HTTP | before.encode();
            // A failure says that it is DIRTY no longer, and that is right.
            let _ = self.word(0).compare_exchange(word, was, Release, Relaxed);
        }
    }

    /// Something is about to be written, after `written` bytes; with it the answer is whole at
    /// `until` (0: that is not known), and then the next request `is_pending` or not. The worker's.
    pub fn note_write(&self, written: u64, until: u64, is_pending: bool) {
        let word = self.word(0).load(Relaxed);
        if State::decode(word) != State::Wrote {
            self.word(24).store(written, Relaxed);
        }
        let flag = if is_pending { PENDING } else { 0 };
        let next = word & HTTP | flag | State::Wrote.encode();
        let was = self.word(32).load(Relaxed);
        if was == until && word == next {
            return;
        }
        if was != until && word != next {
            // Between the two stores it must not say more than is known.
            self.word(32).store(0, Relaxed);
            self.word(0).store(word & HTTP | State::Wrote.encode(), Release);
        }
        self.word(0).store(next, Release);
        self.word(32).store(until, Release);
        compiler_fence(SeqCst);
    }

    /// The answer is flushed, and part of the next request is read. The worker's.
    pub fn note_pending(&self) {
        let word = self.word(0).load(Relaxed);
        self.word(0).store(word & HTTP | State::Dirty.encode(), Release);
    }

    /// It stands between two requests. The worker's.
    pub fn note_clean(&self, requests: u64, idle_since: u64) {
        self.word(8).store(requests, Relaxed);
        self.word(16).store(idle_since, Relaxed);
        let word = self.word(0).load(Relaxed);
        self.word(0).store(word & HTTP | State::Clean.encode(), Release);
    }

    /// It is over: nothing follows from this owner. The worker's, the last thing.
    pub fn note_closed(&self) {
        self.word(0).store(State::Closed.encode(), Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same entry, as the master sees it and as the worker does.
    fn both() -> (Entry, Entry) {
        let ledger = Ledger::create().unwrap();
        let theirs = Ledger::open(ledger.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let entry = ledger.entry(ENTRIES - 1).unwrap();
        entry.clear();
        (entry, theirs.entry(ENTRIES - 1).unwrap())
    }

    #[test]
    fn the_master_sees_how_far_the_worker_is() {
        let (master, worker) = both();
        assert_eq!(master.state(), State::Queued);
        worker.set_http();
        assert_eq!(worker.note_read(), Some(State::Queued));
        assert_eq!(worker.note_read(), None, "it is DIRTY already");
        assert!(master.read().is_http && master.state() == State::Dirty);
        worker.note_write(0, 0, false);
        worker.note_write(100, 150, true);
        let said = master.read();
        assert_eq!((said.state, said.from, said.until), (State::Wrote, 0, 150));
        assert!(said.is_http && said.is_pending);
        worker.note_pending();
        assert_eq!(master.state(), State::Dirty);
        worker.note_write(150, 300, false);
        let said = master.read();
        assert_eq!((said.from, said.until, said.is_pending), (150, 300, false));
        worker.note_clean(7, 99);
        let said = master.read();
        assert_eq!((said.state, said.requests, said.idle_since), (State::Clean, 7, 99));
        assert!(said.is_http, "that stays");
        worker.note_closed();
        assert_eq!(master.state(), State::Closed);
        master.clear();
        let nothing = Said {
            state: State::Queued,
            is_http: false,
            is_pending: false,
            requests: 0,
            idle_since: 0,
            from: 0,
            until: 0,
        };
        assert_eq!(worker.read(), nothing);
    }

    #[test]
    fn a_read_that_brought_nothing_is_taken_back() {
        let (master, worker) = both();
        for state in [State::Queued, State::Clean] {
            if state == State::Clean {
                worker.note_clean(1, 1);
            }
            let before = worker.note_read().unwrap();
            assert_eq!(master.state(), State::Dirty);
            worker.take_back(before);
            assert_eq!(master.state(), state);
        }
        let before = worker.note_read().unwrap();
        worker.note_write(0, 0, false);
        worker.take_back(before);
        assert_eq!(master.state(), State::Wrote, "somebody has written meanwhile");
    }

    /// What is read after a whole answer makes it no boundary any more, and no old `until` is taken
    /// for one of the next answer.
    #[test]
    fn until_holds_for_one_answer_only() {
        let (master, worker) = both();
        let _ = worker.note_read();
        worker.note_write(0, 50, false);
        assert_eq!(worker.note_read(), None);
        assert_eq!(master.read().until, 0);
        worker.note_write(50, 90, false);
        worker.note_clean(1, 1);
        let _ = worker.note_read();
        worker.note_write(90, 0, false);
        let said = master.read();
        assert_eq!((said.from, said.until), (90, 0));
    }

    #[test]
    fn an_untouched_ledger_takes_no_memory_and_has_an_end() {
        let ledger = Ledger::create().unwrap();
        let file = std::fs::File::from(ledger.as_fd().try_clone_to_owned().unwrap());
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert!(blocks * 512 <= 4096, "{blocks} blocks");
        assert!(ledger.entry(ENTRIES).is_none() && ledger.entry(u32::MAX).is_none());
    }

    /// The layout of version 1, frozen: workers that were compiled with it are in the field.
    #[test]
    fn version_1_is_frozen() {
        let ledger = Ledger::create().unwrap();
        let words = |offset: usize| ledger.0.word(offset).load(Relaxed);
        assert_eq!([words(0).to_le_bytes()], [*b"RCLEDGER"]);
        assert_eq!([words(8), words(16)], [1 | 64 << 32, 65_536]);
        let entry = ledger.entry(2).unwrap();
        entry.set_http();
        entry.note_write(5, 9, true);
        assert_eq!([words(192), words(216), words(224)], [3 | 256 | 512, 5, 9]);
        entry.note_clean(6, 7);
        assert_eq!([words(192), words(200), words(208)], [1 | 256, 6, 7]);
        for (number, state) in
            [State::Queued, State::Clean, State::Dirty, State::Wrote, State::Closed]
                .into_iter()
                .enumerate()
        {
            assert_eq!(state.encode(), number as u64);
            assert_eq!(State::decode(number as u64 | 0xff00), state);
        }
        assert_eq!(State::decode(99), State::Wrote);
    }
}
