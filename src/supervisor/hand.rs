//! What a worker has in hand, as far as it is to be believed.
//!
//! Two kinds of connections get there: those that the master has sent, and those that the worker has
//! accepted by itself, where its pool lets it. Of the first the master knows how many there are, so no
//! counter of the worker's goes beyond that. Of the others only the worker knows; a false count then
//! spoils the pool's figures, and nothing else: accounts balance whatever it writes, because they are
//! made of the same numbers.

use super::Counts;
use super::roster::Worker;

/// No worker accepts more connections than this in its life.
const ACCEPTED_MAX: u64 = 1 << 48;

/// A worker's counters, bounded by what it was sent where the master knows better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hand {
    /// Connections that it accepted by itself, less those that it handed back.
    pub(super) accepted: u64,
    /// Connections that it has closed.
    pub(super) finished: u64,
    /// Connections that it has, or that wait for it.
    pub(super) in_hand: u64,
    /// Of these, those that it has not received.
    pub(super) untaken: u64,
}

impl Hand {
    /// What becomes of it when the worker is gone: cut, finished, answered for it. `answered`: what the
    /// shell found in the ledger.
    pub(super) fn at_its_end(self, has_probe: bool, answered: u64) -> (u64, u64, u64) {
        // Nobody is cut when a probe is: it was ours, and is over.
        let probes = u64::from(has_probe).min(self.in_hand);
        // What was found is bounded by what the worker was sent, too.
        let answered = answered.min(self.in_hand - probes);
        (self.in_hand - probes - answered, self.finished + probes, answered)
    }
}

impl Worker {
    /// What a worker wrote is bounded by what it was sent before anything is decided on it; and what
    /// it accepts by itself, nobody else can know, by what nobody ever accepts.
    pub(super) fn hand(&self, counts: Counts) -> Hand {
        let accepted = self.accepted(counts).saturating_sub(self.own_back);
        let kept = self.dispatched - self.handed_back + accepted;
        let finished = counts.finished.min(kept);
        // What it has finished or handed back, it has accepted or taken.
        let least = (finished + self.handed_back).saturating_sub(accepted);
        let taken = counts.taken.clamp(least, self.dispatched);
        Hand { accepted, finished, in_hand: kept - finished, untaken: self.dispatched - taken }
    }

    /// Connections that it ever accepted by itself. Of one that has not come back, nothing is known.
    pub(super) fn accepted(&self, counts: Counts) -> u64 {
        let is_known = self.plan.policy.admits() && !self.is_absent();
        if is_known { counts.accepted.min(ACCEPTED_MAX) } else { 0 }
    }

    /// Connections that it has given back alive.
    pub(super) fn given_back(&self) -> u64 {
        self.handed_back + self.own_back
    }
}
