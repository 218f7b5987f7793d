//! What is: every process of ours that is not yet reaped. The only file that moves a [`Phase`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::action::Who;
use super::declined::Declined;
use super::event::Past;
use super::goal::Plan;
use super::records::Records;
use super::seats::Seats;
use super::stall::Stuck;
use super::{Counts, Generation, ListenerId, PoolId, Seat, Slot, WorkerId};

/// Where a worker is in its life. It only ever moves down this list.
///
/// A deadline lives in the phase it limits, so leaving the phase disarms it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Spawned, has not said READY.
    Starting { deadline: Instant },
    /// Has said READY, and is asked whether it works before it gets anything.
    Probing { deadline: Instant },
    /// Takes connections.
    Serving { since: Instant },
    /// Finishes what it has, until it is sent SIGTERM.
    Draining { deadline: Instant },
    /// Was sent SIGTERM.
    Terminated { deadline: Instant },
    /// Was sent SIGKILL; only its exit is awaited.
    Killed,
}

/// One process in a slot, from spawn to reap. Never reused.
///
/// What is read to choose among many comes first, in two lines of the cache, side by side.
#[derive(Clone, Debug)]
#[repr(C, align(128))]
pub(super) struct Worker {
    /// Connections sent to it, less those read back.
    pub(super) dispatched: u64,
    /// Of these, the ones that it handed back.
    pub(super) handed_back: u64,
    /// Of those that it accepted by itself, the ones that it handed back. Its pool's accounts have them.
    pub(super) own_back: u64,
    /// Messages sent to it that it has received or will receive.
    pub(super) messages: u64,
    /// Connections it can hold at once.
    pub(super) limit: u64,
    pub(super) plan: Arc<Plan>,
    /// It has declined a connection.
    pub(super) declined: Option<Box<Declined>>,
    pub(super) who: Who,
    pub(super) seat: Seat,
    /// It takes nothing while messages wait.
    pub(super) stuck: Option<Stuck>,
    phase: Phase,
    /// The master that it knew was killed, and it has not found this one yet. Until then it is
    /// waited for; it fills its slot, and can be given and told nothing.
    absent: Option<Instant>,
    /// It asked to be replaced.
    pub(super) due: bool,
    /// It hands live connections back, and takes those of others.
    pub(super) handback: bool,
    /// Its pool's listeners of which it takes nothing.
    pub(super) closed: BTreeSet<ListenerId>,
    /// The verdict of a probe is awaited.
    pub(super) is_probed: bool,
    /// One of the connections that were sent to it is a probe's.
    pub(super) has_probe: bool,
    /// When it is probed next.
    pub(super) probe_at: Option<Instant>,
    /// The reload that retired it.
    pub(super) retired_by: Option<Generation>,
}

impl Worker {
    /// One that nothing was sent to yet.
    pub(super) fn new(
        who: Who,
        seat: Seat,
        plan: Arc<Plan>,
        phase: Phase,
        absent: Option<Instant>,
    ) -> Worker {
        let (due, dispatched, messages, limit, stuck) = (false, 0, 0, 0, None);
        let (handback, handed_back, own_back) = (false, 0, 0);
        Worker {
            who,
            seat,
            plan,
            phase,
            absent,
            due,
            handback,
            dispatched,
            handed_back,
            own_back,
            messages,
            limit,
            stuck,
            declined: None,
            closed: BTreeSet::new(),
            is_probed: false,
            has_probe: false,
            probe_at: None,
            retired_by: None,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving { .. })
    }

    /// Whether it has not come back yet, from a master that was killed.
    pub(super) fn is_absent(&self) -> bool {
        self.absent.is_some()
    }

    /// Until when it is waited for.
    pub(super) fn absent_until(&self) -> Option<Instant> {
        self.absent
    }

    /// Whether it serves and can be spoken to.
    pub(super) fn is_at_work(&self) -> bool {
        self.is_serving() && !self.is_absent()
    }

    /// Spawned, and not serving yet.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Probing { .. })
    }

    /// Whether it can be given such a connection.
    pub(super) fn understands(&self, past: Past) -> bool {
        match past {
            Past::New | Past::Silent | Past::Spoken | Past::Idle => true,
            Past::Leftover => self.handback,
        }
    }

    /// It takes nothing at the moment, and what it had not received went to others.
    pub(super) fn is_suspect(&self) -> bool {
        self.stuck.is_some_and(|stuck| stuck.suspect)
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. } | Phase::Terminated { .. })
    }

    pub(super) fn untaken_messages(&self, counts: Counts) -> u64 {
        self.messages.saturating_sub(counts.progress)
    }

    fn deadline(&self) -> Option<Instant> {
        match self.phase {
            _ if self.absent.is_some() => self.absent,
            Phase::Starting { deadline }
            | Phase::Probing { deadline }
            | Phase::Draining { deadline }
            | Phase::Terminated { deadline } => Some(deadline),
            Phase::Serving { .. } | Phase::Killed => None,
        }
    }
}

/// Every process of ours that is not yet reaped.
#[derive(Debug, Default)]
pub(super) struct Roster {
    pub(super) records: Records,
    /// Who is where, in order of age. The pass asks for every slot, every time.
    places: BTreeMap<(PoolId, Slot), Vec<WorkerId>>,
    seats: BTreeMap<PoolId, Seats>,
    last: u64,
}

impl Roster {
    pub(super) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.records.get(id)
    }

    /// For everything about a worker but its phase.
    pub(super) fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.records.get_mut(id, None)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.records.iter()
    }

    /// By slot, the oldest of each first.
    pub(super) fn of(&self, pool: PoolId) -> impl Iterator<Item = &Worker> {
        let places = self.places.range((pool, Slot(0))..=(pool, Slot(u32::MAX)));
        places.flat_map(|(_, ids)| ids).filter_map(|&id| self.get(id))
    }

    pub(super) fn in_slot(&self, pool: PoolId, slot: Slot) -> impl Iterator<Item = &Worker> {
        self.places.get(&(pool, slot)).into_iter().flatten().filter_map(|&id| self.get(id))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(super) fn starting(&self, pool: PoolId) -> u32 {
        count(self.of(pool).filter(|worker| worker.is_starting()))
    }

    pub(super) fn serving(&self, pool: PoolId) -> u32 {
        count(self.of(pool).filter(|worker| worker.is_at_work()))
    }

    /// Generations that are leaving while a newer worker of their pool is there.
    pub(super) fn leaving_generations(&self) -> BTreeSet<Generation> {
        let generation = |worker: &Worker| (worker.who.pool, worker.who.generation);
        let staying: BTreeSet<_> =
            self.iter().filter(|worker| !worker.is_leaving()).map(generation).collect();
        self.iter()
            .filter(|worker| worker.is_leaving() && !staying.contains(&generation(worker)))
            .map(|worker| worker.who.generation)
            .collect()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.iter().filter_map(Worker::deadline).min()
    }

    /// Workers whose phase has lasted too long.
    pub(super) fn overdue(&self, now: Instant) -> Vec<WorkerId> {
        let is_overdue = |worker: &&Worker| worker.deadline().is_some_and(|at| at <= now);
        self.iter().filter(is_overdue).map(|worker| worker.who.worker).collect()
    }

    /// A new worker.
    pub(super) fn hire(
        &mut self,
        pool: PoolId,
        slot: Slot,
        plan: Arc<Plan>,
        now: Instant,
    ) -> &Worker {
        let seat = self.seats.entry(pool).or_default().take();
        self.last += 1;
        let id = WorkerId(self.last);
        let who = Who { worker: id, pool, slot, generation: plan.generation };
        let phase = Phase::Starting { deadline: now + plan.policy.start_timeout };
        self.places.entry((pool, slot)).or_default().push(id);
        self.records.insert(Worker::new(who, seat, plan, phase, None))
    }

    /// The last id that was given, and whose turn it is in each pool's seats.
    pub(super) fn turns(&self) -> (u64, BTreeMap<PoolId, u32>) {
        (self.last, self.seats.iter().map(|(&pool, seats)| (pool, seats.next())).collect())
    }

    /// As it was, with these workers.
    pub(super) fn restore(workers: Vec<Worker>, last: u64, turns: BTreeMap<PoolId, u32>) -> Roster {
        let mut roster = Roster { last, ..Roster::default() };
        for (pool, next) in turns {
            let sitting = workers.iter().filter(|worker| worker.who.pool == pool);
            let taken = sitting.map(|worker| worker.seat).collect();
            roster.seats.insert(pool, Seats::restore(taken, next));
        }
        for worker in workers {
            let who = worker.who;
            roster.places.entry((who.pool, who.slot)).or_default().push(who.worker);
            roster.records.insert(worker);
        }
        roster
    }

    /// Everybody is away, and is waited for until then.
    pub(super) fn miss_all(&mut self, until: Instant) {
        for worker in self.records.iter_mut() {
            worker.absent = Some(until);
        }
    }

    /// It is back. Whether it was away.
    pub(super) fn join(&mut self, id: WorkerId, limit: u32, now: Instant) -> bool {
        let Some(worker) = self.get_mut(id).filter(|worker| worker.is_absent()) else {
            return false;
        };
        worker.absent = None;
        if worker.is_starting() {
            // It was ready before the master was killed.
            worker.phase = Phase::Serving { since: now };
        }
        worker.limit = limit_of(&worker.plan, limit);
        true
    }

    /// It said READY. Not if it was told to leave before, or said so twice.
    pub(super) fn note_ready(&mut self, id: WorkerId, limit: u32) -> bool {
        let Some(worker) = self.get_mut(id) else { return false };
        let Phase::Starting { deadline } = worker.phase else { return false };
        worker.phase = Phase::Probing { deadline };
        worker.limit = limit_of(&worker.plan, limit);
        true
    }

    /// Probing → Serving.
    pub(super) fn promote(&mut self, id: WorkerId, now: Instant) {
        if let Some(worker) = self.get_mut(id) {
            debug_assert!(matches!(worker.phase, Phase::Probing { .. }));
            worker.phase = Phase::Serving { since: now };
        }
    }

    /// Serving → Draining. Answers the time that the worker has until it is cut.
    pub(super) fn drain(&mut self, id: WorkerId, now: Instant) -> Duration {
        let Some(worker) = self.get_mut(id) else { return Duration::ZERO };
        debug_assert!(worker.is_serving(), "{id} drains out of {:?}", worker.phase);
        let time = worker.plan.policy.drain_timeout;
        worker.phase = Phase::Draining { deadline: now + time - notice(time) };
        time
    }

    /// It has until then at least, to get ready or to drain.
    pub(super) fn extend(&mut self, id: WorkerId, until: Instant) {
        use Phase::{Draining, Probing, Starting};
        let phase = self.get_mut(id).map(|worker| &mut worker.phase);
        if let Some(Starting { deadline } | Probing { deadline } | Draining { deadline }) = phase {
            *deadline = until.max(*deadline);
        }
    }

    /// A draining worker has nothing left to do: it gets a second to exit.
    pub(super) fn note_drained(&mut self, id: WorkerId, now: Instant) {
        if let Some(Worker { phase: Phase::Draining { deadline }, .. }) = self.get_mut(id) {
            *deadline = (now + Duration::from_secs(1)).min(*deadline);
        }
    }

    /// Draining → Terminated.
    pub(super) fn terminate(&mut self, id: WorkerId, now: Instant) {
        let Some(worker) = self.get_mut(id) else { return };
        debug_assert!(matches!(worker.phase, Phase::Draining { .. }));
        let deadline = now + notice(worker.plan.policy.drain_timeout);
        worker.phase = Phase::Terminated { deadline };
    }

    /// Any → Killed.
    pub(super) fn kill(&mut self, id: WorkerId) {
        if let Some(worker) = self.get_mut(id) {
            (worker.phase, worker.absent) = (Phase::Killed, None);
        }
    }

    /// Its process is gone.
    pub(super) fn bury(&mut self, id: WorkerId) -> Option<Worker> {
        let worker = self.records.remove(id)?;
        let place = (worker.who.pool, worker.who.slot);
        if let Some(ids) = self.places.get_mut(&place) {
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                self.places.remove(&place);
            }
        }
        if let Some(seats) = self.seats.get_mut(&worker.who.pool) {
            seats.leave(worker.seat);
        }
        Some(worker)
    }
}

/// Connections that a worker can hold which announces `limit`.
fn limit_of(plan: &Plan, limit: u32) -> u64 {
    let limits = [plan.policy.max_connections, limit].into_iter().filter(|&limit| limit > 0);
    limits.min().map_or(u64::MAX, u64::from)
}

/// How long before the end of its drain timeout a worker is sent SIGTERM.
pub(super) fn notice(drain_timeout: Duration) -> Duration {
    (drain_timeout / 10).min(Duration::from_secs(1))
}

fn count<'a>(workers: impl Iterator<Item = &'a Worker>) -> u32 {
    u32::try_from(workers.count()).unwrap_or(u32::MAX)
}
