//! Which place on the scoreboard a worker gets.
//!
//! A worker may leave somebody behind who still maps the scoreboard: a grandchild in a session of
//! its own, which no signal reaches. Whoever sat next in the same seat would have its counters
//! written by two. So seats are handed out going round, and one that was left stays empty until all
//! the others had their turn. The ring is bounded, because each page of seats that was ever used
//! takes memory; it grows with the pool.

use std::collections::BTreeSet;

use super::Seat;

/// Seats that a pool's scoreboard has.
pub const SEATS: u32 = 4096;

/// Seats that even the smallest pool goes round.
const RING_MIN: u32 = 64;
/// Seats for each worker that is there.
const RING_PER_WORKER: u32 = 4;

/// The seats of one pool. They outlive it: its board does, too.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taken: BTreeSet<Seat>,
    /// The one after the last that was handed out.
    next: u32,
}

impl Seats {
    /// The first free seat after the last one that was handed out.
    pub(super) fn take(&mut self) -> Seat {
        let workers = u32::try_from(self.taken.len()).unwrap_or(u32::MAX).saturating_add(1);
        let ring = workers.saturating_mul(RING_PER_WORKER).clamp(RING_MIN, SEATS);
        let start = if self.next < ring { self.next } else { 0 };
        // Beyond the ring only when all of it is taken: then the board has no seat left, either,
        // and the spawn fails.
        let seat = (start..ring)
            .chain(0..start)
            .chain(ring..=u32::MAX)
            .map(Seat)
            .find(|seat| !self.taken.contains(seat))
            .unwrap_or(Seat(u32::MAX));
        self.next = seat.0.saturating_add(1);
        self.taken.insert(seat);
        seat
    }

    /// As they were: who sits where, and whose turn it is.
    pub(super) fn restore(taken: BTreeSet<Seat>, next: u32) -> Seats {
        Seats { taken, next }
    }

    /// The one after the last that was handed out.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    pub(super) fn leave(&mut self, seat: Seat) {
        self.taken.remove(&seat);
    }
}
