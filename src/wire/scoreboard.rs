//! What a worker counts, in memory that the master reads without asking.
//!
//! One board per pool, in a memfd of sealed size; one place per *seat*. A seat's words lie on two
//! lines of 128 bytes (a pair of cache lines, which the prefetcher fetches together), one for each
//! writer:
//!
//! ```text
//! 0      magic · version and stride · seats · where the siblings are    header, one stride long
//! seat   +0    taken · finished · requests · progress · handed back      written by the worker
//!        +40   accepted · accepts
//!        +128  waiting · request limit · received back           written by the master
//!        +152  worker · what is passed on (5 words)
//! then   count · seats                                          the siblings, written by the master
//! ```
//!
//! * `taken`: connections received from the master. Stored before the first byte of the connection is
//!   read.
//! * `accepted`: connections accepted from a listening socket. Stored right after accept(2): a worker
//!   that is killed between the two has cut one connection that nobody counts.
//! * `accepts`: 1 while it waits for the next client at its listeners, 2 while it leaves him to siblings,
//!   else 0; see `worker/balance.rs`. Of one that is gone the master takes it back.
//! * `finished`: connections closed, not those handed back (HANDBACK counts these).
//! * `requests`: requests begun, as far as the library can tell.
//! * `progress`: messages received, but those about adoption.
//! * `handed back`: HANDBACKs sent; `received back`: HANDBACKs that masters have passed on, or taken
//!   out of the channel.
//! * `worker`: who sits here. What is passed on: see [`Passing`], and `master/passing.rs`.
//! * `waiting`: the master awaits ROOM. Set by the master, taken back by whoever acts on it.
//!
//! The handshake that makes credit always come back: the master sets `waiting`, *then* reads the
//! counters once more; the worker stores its counter, *then* looks at `waiting`. Both sides are
//! sequentially consistent, so at least one of the two sees the other.
//!
//! The *siblings* are the seats of those who accept by themselves; a board of an older master has no
//! place for them. Siblings may read each other's lines. What a worker wrote is untrusted: the mind bounds it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::VERSION;
use super::siblings::{self, Stand};
use crate::sys::shared::SharedMemory;

/// Bytes per seat.
pub const STRIDE: usize = 256;

/// Seats of a board: room for the largest pool (1024 workers) in four generations. Only pages of
/// seats that were used take memory.
pub const SEATS: u32 = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"RCLUSTER");
const MASTER_LINE: usize = 128;
/// On a seat.
pub(super) const ACCEPTED: usize = 40;
pub(super) const ACCEPTS: usize = 48;
/// The worker in this seat, by the number that its masters know it by.
const WORKER: usize = MASTER_LINE + 24;
/// What is passed on: number, socket, to, seat, sent.
const PASSING: usize = MASTER_LINE + 32;

/// A pool's counters, as the master or one of its workers sees them.
#[derive(Clone, Debug)]
pub struct Scoreboard(pub(super) Arc<SharedMemory>);

impl Scoreboard {
    /// Makes an empty board.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left.
    pub fn create() -> io::Result<Scoreboard> {
        let memory = SharedMemory::create(c"rcluster-scoreboard", siblings::END)?;
        memory.word(0).store(MAGIC, Relaxed);
        memory.word(8).store(u64::from(VERSION) | (STRIDE as u64) << 32, Relaxed);
        memory.word(16).store(u64::from(SEATS), Relaxed);
        siblings::make_place(&memory);
        Ok(Scoreboard(Arc::new(memory)))
    }

    /// Maps a board that the master made.
    ///
    /// # Errors
    /// `InvalidData` when it is none, or of a layout that this library does not know.
    pub fn open(memfd: OwnedFd) -> io::Result<Scoreboard> {
        let memory = SharedMemory::open(memfd)?;
        let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if memory.size() < STRIDE || memory.word(0).load(Relaxed) != MAGIC {
            return wrong("it is no scoreboard of rcluster".into());
        }
        let stride = memory.word(8).load(Relaxed) >> 32;
        if stride != STRIDE as u64 {
            return wrong(format!("its stride is {stride}, this library counts with {STRIDE}"));
        }
        Ok(Scoreboard(Arc::new(memory)))
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.size()
    }

    /// A seat's place.
    ///
    /// # Errors
    /// `InvalidInput` when the board has no such seat.
    pub fn seat(&self, seat: u32) -> io::Result<SeatWords> {
        let offset = (seat as usize + 1) * STRIDE;
        if seat >= SEATS || offset + STRIDE > self.0.size() {
            let text = format!("the scoreboard has no seat {seat}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(SeatWords { memory: Arc::clone(&self.0), offset })
    }
}

impl Scoreboard {
    /// The device and inode of its memory: by these one is known again.
    #[cfg(feature = "daemon")]
    pub(crate) fn identity(&self) -> (u64, u64) {
        identity(self.as_fd())
    }
}

/// The device and inode of a board's memory.
#[cfg(feature = "daemon")]
pub(crate) fn identity(board: BorrowedFd<'_>) -> (u64, u64) {
    nix::sys::stat::fstat(board).map_or((0, 0), |it| (it.st_dev, it.st_ino))
}

impl AsFd for Scoreboard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The words of one seat.
#[derive(Clone, Debug)]
pub struct SeatWords {
    pub(super) memory: Arc<SharedMemory>,
    pub(super) offset: usize,
}

/// The board that it is on.
impl AsFd for SeatWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_ref().as_fd()
    }
}

/// What a seat's worker counted, as it stands, unbounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections received from the master.
    pub taken: u64,
    /// Connections accepted by itself.
    pub accepted: u64,
    /// Connections closed.
    pub finished: u64,
    /// Requests begun.
    pub requests: u64,
    /// Messages received.
    pub progress: u64,
}

impl SeatWords {
    fn word(&self, offset: usize) -> &AtomicU64 {
        self.memory.word(self.offset + offset)
    }

    /// Everything the worker counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        // `finished` before `taken` and `accepted`: a connection that is taken and finished in
        // between is then seen as at most taken, never as finished only.
        let finished = self.word(8).load(SeqCst);
        Counts {
            finished,
            taken: self.word(0).load(SeqCst),
            accepted: self.word(ACCEPTED).load(SeqCst),
            requests: self.word(16).load(Relaxed),
            progress: self.word(24).load(SeqCst),
        }
    }

    /// Empties the seat for a new worker, which asks to retire after `request_limit` requests
    /// (0: never). The master does this, while nobody holds the seat.
    pub fn clear(&self, request_limit: u64) {
        let of_worker = [0, 8, 16, 24, 32, ACCEPTED, ACCEPTS];
        let of_master = [MASTER_LINE, MASTER_LINE + 16, WORKER, PASSING];
        for offset in of_worker.into_iter().chain(of_master) {
            self.word(offset).store(0, SeqCst);
        }
        self.word(MASTER_LINE + 8).store(request_limit, SeqCst);
    }

    /// Sets or clears `waiting`. The master's.
    pub fn set_waiting(&self, waiting: bool) {
        self.word(MASTER_LINE).store(u64::from(waiting), SeqCst);
    }

    /// One more connection handed back. The worker's.
    pub fn add_handed_back(&self) {
        self.word(32).fetch_add(1, SeqCst);
    }

    /// One more connection received back. The master's, after it has passed the connection on, or
    /// taken it out of the channel.
    pub fn add_received_back(&self) {
        self.word(MASTER_LINE + 16).fetch_add(1, SeqCst);
    }

    /// Connections handed back: what the worker has sent, and what masters have received of it.
    #[must_use]
    pub fn handed_back(&self) -> (u64, u64) {
        let received = self.word(MASTER_LINE + 16).load(SeqCst);
        (self.word(32).load(SeqCst), received)
    }

    /// One more message received. The worker's.
    pub fn add_progress(&self) {
        self.word(24).fetch_add(1, SeqCst);
    }

    /// One more connection taken; `true`: the master awaits ROOM. The worker's.
    #[must_use]
    pub fn add_taken(&self) -> bool {
        self.word(0).fetch_add(1, SeqCst);
        self.take_waiting()
    }

    /// One more connection accepted by itself. It makes no room. The worker's.
    pub fn add_accepted(&self) {
        self.word(ACCEPTED).fetch_add(1, SeqCst);
    }

    /// How this worker stands to the next client. The worker's; the master's when it is gone.
    pub fn set_stand(&self, stand: Stand) {
        self.word(ACCEPTS).store(stand as u64, SeqCst);
    }

    /// One more connection finished; `true`: the master awaits ROOM. The worker's.
    #[must_use]
    pub fn add_finished(&self) -> bool {
        self.word(8).fetch_add(1, SeqCst);
        self.take_waiting()
    }

    /// One more request; `true`: the limit is reached by it. The worker's.
    #[must_use]
    pub fn add_request(&self) -> bool {
        let requests = self.word(16).fetch_add(1, Relaxed) + 1;
        requests == self.word(MASTER_LINE + 8).load(Relaxed)
    }

    /// Takes `waiting` back, so that only one ROOM answers it.
    fn take_waiting(&self) -> bool {
        let waiting = self.word(MASTER_LINE);
        waiting.load(SeqCst) != 0 && waiting.swap(0, SeqCst) != 0
    }
}

/// What a master writes down in a worker's seat before it passes on a connection which that worker
/// has handed back. See `master/passing.rs`.
#[cfg(feature = "daemon")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passing {
    /// Which of the worker's HANDBACKs it is, from 1.
    pub(crate) number: u64,
    /// The connection: the inode of its socket.
    pub(crate) socket: u64,
    /// The worker that it is sent to,
    pub(crate) to: u64,
    /// which has this seat,
    pub(crate) seat: u64,
    /// and was sent so many connections before, less those that were read back.
    pub(crate) sent: u64,
}

#[cfg(feature = "daemon")]
impl SeatWords {
    /// Who sits here, and where.
    pub(crate) fn set_worker(&self, worker: u64) {
        self.word(WORKER).store(worker, SeqCst);
    }

    /// Which seat it is.
    pub(crate) fn seat(&self) -> u64 {
        (self.offset / STRIDE) as u64 - 1
    }

    /// The words of another seat, if this worker sits there.
    pub(crate) fn of(&self, worker: u64, seat: u64) -> Option<SeatWords> {
        let seat = u32::try_from(seat).ok()?;
        let other = Scoreboard(Arc::clone(&self.memory)).seat(seat).ok()?;
        (other.word(WORKER).load(SeqCst) == worker).then_some(other)
    }

    /// Writes down what is about to be passed on: whole, or not at all.
    pub(crate) fn begin_passing(&self, passing: &Passing) {
        let Passing { number, socket, to, seat, sent } = *passing;
        self.undo_passing();
        for (word, value) in (1..).zip([socket, to, seat, sent]) {
            self.word(PASSING + 8 * word).store(value, SeqCst);
        }
        self.word(PASSING).store(number, SeqCst);
    }

    /// It was not passed on.
    pub(crate) fn undo_passing(&self) {
        self.word(PASSING).store(0, SeqCst);
    }

    /// What was written down last.
    pub(crate) fn passing(&self) -> Option<Passing> {
        let word = |index: usize| self.word(PASSING + 8 * index).load(SeqCst);
        let (number, socket, to) = (word(0), word(1), word(2));
        (number > 0).then(|| Passing { number, socket, to, seat: word(3), sent: word(4) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_sees_the_masters_line_and_the_master_the_workers() {
        let board = Scoreboard::create().unwrap();
        let theirs = Scoreboard::open(board.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let (master, worker) = (board.seat(3).unwrap(), theirs.seat(3).unwrap());
        master.clear(2);
        assert!(!worker.add_taken());
        master.set_waiting(true);
        assert!(worker.add_finished(), "the master waits");
        assert!(!worker.add_taken(), "and is told once");
        assert!(!worker.add_request());
        assert!(worker.add_request(), "the second is the limit");
        assert!(!worker.add_request(), "which is told once, too");
        let counts = Counts { taken: 2, accepted: 0, finished: 1, requests: 3, progress: 0 };
        assert_eq!(master.counts(), counts);
        worker.add_handed_back();
        worker.add_handed_back();
        master.add_received_back();
        assert_eq!(worker.handed_back(), (2, 1));
        master.clear(0);
        assert_eq!((master.counts(), master.handed_back()), (Counts::default(), (0, 0)));
        assert_eq!(board.seat(2).unwrap().counts(), Counts::default());
    }

    #[cfg(feature = "daemon")]
    #[test]
    fn what_is_passed_on_is_there_until_the_next_one_or_the_next_worker() {
        let board = Scoreboard::create().unwrap();
        let (one, two) = (board.seat(1).unwrap(), board.seat(2).unwrap());
        assert_eq!(one.passing(), None);
        let passing = Passing { number: 1, socket: 7, to: 22, seat: two.seat(), sent: 5 };
        one.begin_passing(&passing);
        assert_eq!((one.passing(), two.passing()), (Some(passing), None));
        let next = Passing { number: 2, socket: 8, ..passing };
        one.begin_passing(&next);
        assert_eq!(one.passing(), Some(next));
        one.undo_passing();
        assert_eq!(one.passing(), None);
        one.begin_passing(&next);
        two.set_worker(22);
        assert_eq!(one.of(22, 2).map(|it| it.seat()), Some(2));
        assert!(
            one.of(23, 2).is_none() && one.of(22, 1).is_none() && one.of(22, u64::MAX).is_none()
        );
        one.clear(0);
        two.clear(0);
        assert!(one.passing().is_none() && one.of(22, 2).is_none());
    }

    #[test]
    fn an_untouched_board_takes_no_memory() {
        let board = Scoreboard::create().unwrap();
        let file = std::fs::File::from(board.as_fd().try_clone_to_owned().unwrap());
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert!(blocks * 512 <= 4096, "{blocks} blocks");
        assert!(board.seat(SEATS).is_err());
    }
}
