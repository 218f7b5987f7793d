//! Who accepts beside whom, on the scoreboard: how the workers of a pool that accept by themselves see
//! each other's counters.
//!
//! The master writes down their seats behind the last one (count, then seats), since seats are handed out
//! in turn and most are empty. It does so whole each time, one word after the other: who reads meanwhile
//! may see somebody twice, or miss somebody, and looks again at the next client.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

#[cfg(feature = "daemon")]
use super::scoreboard::Scoreboard;
use super::scoreboard::{ACCEPTED, ACCEPTS, SEATS, STRIDE, SeatWords};
use crate::sys::shared::SharedMemory;

/// In the header: where the siblings begin, 0 if there is no place for them.
const SIBLINGS: usize = 24;
/// Where that is on a board of this version.
const SIBLINGS_AT: usize = (SEATS as usize + 1) * STRIDE;
/// Where a board of this version ends.
pub(super) const END: usize = SIBLINGS_AT + 8 * (SEATS as usize + 1);

/// Notes on a new board that there is a place.
pub(super) fn make_place(memory: &SharedMemory) {
    memory.word(SIBLINGS).store(SIBLINGS_AT as u64, Relaxed);
}

#[cfg(feature = "daemon")]
impl Scoreboard {
    /// Writes down who accepts by himself, for the siblings to see.
    pub(crate) fn set_siblings(&self, seats: &[u32]) {
        let Some(at) = siblings_at(&self.0) else { return };
        let seats = &seats[..seats.len().min(SEATS as usize)];
        for (index, seat) in (1..).zip(seats) {
            self.0.word(at + 8 * index).store(u64::from(*seat), SeqCst);
        }
        self.0.word(at).store(seats.len() as u64, SeqCst);
    }
}

/// How a worker that accepts by itself stands to the next client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It is full, draining or gone, or was not admitted.
    IsElsewhere = 0,
    /// It waits for him.
    Waits = 1,
    /// It leaves him to siblings, and can be called.
    IsAway = 2,
}

/// A seat of the same board, as another worker sees it.
#[derive(Clone, Copy, Debug)]
pub struct Sibling<'a> {
    memory: &'a SharedMemory,
    offset: usize,
}

impl Sibling<'_> {
    fn load(&self, offset: usize) -> u64 {
        self.memory.word(self.offset + offset).load(SeqCst)
    }

    /// Connections in its hand, as it counts them.
    #[must_use]
    pub fn in_hand(&self) -> u64 {
        let gone = self.load(8).saturating_add(self.load(32));
        self.load(0).saturating_add(self.load(ACCEPTED)).saturating_sub(gone)
    }

    /// Connections that it has accepted by itself.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.load(ACCEPTED)
    }

    /// How it stands to the next client.
    #[must_use]
    pub fn stand(&self) -> Stand {
        match self.load(ACCEPTS) {
            1 => Stand::Waits,
            2 => Stand::IsAway,
            _ => Stand::IsElsewhere,
        }
    }

    /// Its seat, from 0.
    #[must_use]
    pub fn seat(&self) -> u64 {
        (self.offset / STRIDE) as u64 - 1
    }
}

impl SeatWords {
    /// This seat as the others see it.
    #[must_use]
    pub fn own(&self) -> Sibling<'_> {
        Sibling { memory: &self.memory, offset: self.offset }
    }

    /// Those of this board who accept by themselves, this one included. What is being written at the
    /// moment may be there twice, or missing.
    pub fn siblings(&self) -> Siblings<'_> {
        let memory = self.memory.as_ref();
        let at = siblings_at(memory).unwrap_or(0);
        let count = if at > 0 { memory.word(at).load(SeqCst).min(u64::from(SEATS)) } else { 0 };
        Siblings { memory, at, count: count as usize }
    }
}

/// The siblings of a board, as they were counted a moment ago.
#[derive(Clone, Copy, Debug)]
pub struct Siblings<'a> {
    memory: &'a SharedMemory,
    at: usize,
    count: usize,
}

impl<'a> Siblings<'a> {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// As many of them as there are at most, from one of them on, and round.
    pub fn from(self, first: usize) -> impl Iterator<Item = Sibling<'a>> {
        let Siblings { memory, at, count } = self;
        (0..count).map(move |step| {
            let index = 1 + (first + step) % count;
            let seat = memory.word(at + 8 * index).load(SeqCst).min(u64::from(SEATS) - 1);
            Sibling { memory, offset: (seat as usize + 1) * STRIDE }
        })
    }
}

/// Where the siblings are, as far as this board has a place for as many as there can be; then it has
/// as many seats, too.
fn siblings_at(memory: &SharedMemory) -> Option<usize> {
    let at = usize::try_from(memory.word(SIBLINGS).load(Relaxed)).ok()?;
    let end = at.checked_add(8 * (SEATS as usize + 1))?;
    (at >= SIBLINGS_AT && at % 8 == 0 && end <= memory.size()).then_some(at)
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "daemon")]
    use super::*;

    #[cfg(feature = "daemon")]
    #[test]
    fn siblings_see_what_each_has_in_hand() {
        let board = Scoreboard::create().unwrap();
        let seats = [7, 2, 4095].map(|seat| board.seat(seat).unwrap());
        assert_eq!(seats[0].siblings().count(), 0, "nobody was admitted");
        board.set_siblings(&[7, 2, 4095]);
        let told = |first| seats[1].siblings().from(first).map(|it| it.seat()).collect::<Vec<_>>();
        assert_eq!((told(0), told(5)), (vec![7, 2, 4095], vec![4095, 7, 2]));
        for _ in 0..3 {
            seats[0].add_accepted();
            assert!(!seats[0].add_taken());
        }
        assert!(!seats[0].add_finished());
        seats[0].add_handed_back();
        seats[0].set_stand(Stand::Waits);
        let seen = seats[1].siblings().from(0).next().unwrap();
        assert_eq!((seen.in_hand(), seen.accepted(), seen.stand()), (4, 3, Stand::Waits));
        seats[0].clear(0);
        assert_eq!((seen.in_hand(), seen.accepted(), seen.stand()), (0, 0, Stand::IsElsewhere));
        board.set_siblings(&[]);
        assert_eq!(seats[1].siblings().count(), 0);
    }
}
