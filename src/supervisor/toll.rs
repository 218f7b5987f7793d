//! What became of the connections of the workers that a reload retired.
//!
//! A reload is over when every slot serves, but its old workers drain on. What they give back alive,
//! what they had not received, and what was cut when they went is counted for that reload, until the
//! last of them is gone. Workers that leave at another time (recycled, too many, lost) do not count.

use serde::{Deserialize, Serialize};

use super::action::{Reason, Record};
use super::event::{Held, Past};
use super::goal::Course;
use super::roster::Worker;
use super::{Generation, Supervisor, WorkerId};

/// What became of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Toll {
    /// Given back alive, for others.
    pub handed_back: u64,
    /// Not received yet, and dispatched to others.
    pub redispatched: u64,
    /// In the hand of a worker at its end, or lost on the way back.
    pub cut: u64,
    /// Workers that accepted by themselves and counted nothing: what they had in hand at their end is not known.
    pub unseen: u64,
}

/// A toll that is still counted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Bill {
    pub(super) toll: Toll,
    /// Retired workers that are not gone.
    pub(super) leaving: u32,
}

impl Supervisor {
    /// What a reload has cost until now, and how many of the workers that it retired are not gone.
    /// `None`: all is told by [`Record::Accounted`].
    #[must_use]
    pub fn toll(&self, generation: Generation) -> Option<(Toll, u32)> {
        self.bills.get(&generation).map(|bill| (bill.toll, bill.leaving))
    }

    /// A rollout has begun.
    pub(super) fn open_bill(&mut self, generation: Generation) {
        self.bills.entry(generation).or_default();
    }

    /// The reload by which whoever retires now is retired.
    pub(super) fn retired_by(&self) -> Option<Generation> {
        let rollout = self.goal.rollout.as_ref()?;
        (rollout.course != Course::Boot).then_some(rollout.generation)
    }

    /// These are about to be told to drain.
    pub(super) fn charge_leaving(
        &mut self,
        leaving: &[(WorkerId, Reason)],
        by: Option<Generation>,
    ) {
        let Some((generation, bill)) = by.and_then(|by| Some((by, self.bills.get_mut(&by)?)))
        else {
            return;
        };
        for &(id, _) in leaving {
            if let Some(worker) = self.roster.get_mut(id) {
                worker.retired_by = Some(generation);
                bill.leaving += 1;
            }
        }
    }

    fn bill(&mut self, id: WorkerId) -> Option<&mut Bill> {
        let generation = self.roster.get(id)?.retired_by?;
        self.bills.get_mut(&generation)
    }

    /// Connections came back that the worker had not received.
    pub(super) fn charge_rescued(&mut self, id: WorkerId, connections: &[Held]) {
        let count = connections.iter().filter(|held| held.past == Past::New).count() as u64;
        if let Some(bill) = self.bill(id) {
            bill.toll.redispatched += count;
        }
    }

    /// The worker gave a connection back; or it was lost on its way.
    pub(super) fn charge_handback(&mut self, id: WorkerId, is_alive: bool) {
        if let Some(bill) = self.bill(id) {
            bill.toll.handed_back += u64::from(is_alive);
            bill.toll.cut += u64::from(!is_alive);
        }
    }

    /// The worker is gone.
    pub(super) fn charge_gone(&mut self, worker: &Worker, cut: u64, saved: u64) {
        let bill = worker.retired_by.and_then(|generation| self.bills.get_mut(&generation));
        if let Some(bill) = bill {
            bill.toll.cut += cut;
            bill.toll.redispatched += saved;
            bill.toll.unseen += u64::from(!worker.plan.policy.is_seen());
            bill.leaving = bill.leaving.saturating_sub(1);
        }
    }

    /// Tells what the reloads have cost whose last retired worker is gone.
    pub(super) fn settle_bills(&mut self) {
        let current = self.goal.rollout.as_ref().map(|rollout| rollout.generation);
        let is_settled = |(generation, bill): &(&Generation, &Bill)| {
            bill.leaving == 0 && Some(**generation) != current
        };
        let settled: Vec<(Generation, Toll)> = self
            .bills
            .iter()
            .filter(is_settled)
            .map(|(&generation, bill)| (generation, bill.toll))
            .collect();
        for (generation, toll) in settled {
            self.bills.remove(&generation);
            self.record(Record::Accounted { generation, toll });
        }
    }
}
