//! What should be, and how reaching it goes.
//!
//! A pool has up to three plans: what is *wanted*, what was last *settled* (a completed rollout),
//! and the last *good* one (settled, and free of give-up for `restart-window`). A rollout makes
//! another plan wanted; when every slot serves it, it is settled; when it fails, wanted goes back
//! to settled. Vacancies are filled with the last good plan, which is known to work; `reconcile`
//! then replaces what is not as wanted. So a crash never depends on a deploy.
//!
//! Failures are tallied per generation: what the new one does is not held against the old.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::chance::Chance;
use super::{Edition, Generation, ListenerId, Policy, PoolId, Slot, WishId};

/// A worker that served less than this before it was lost makes its slot wait before the next.
pub(super) const QUICK: Duration = Duration::from_secs(1);
/// The first wait after a failed start.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// One pool, as one generation has it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) generation: Generation,
    pub(super) edition: Edition,
    pub(super) policy: Policy,
}

/// What should be.
#[derive(Debug, Default)]
pub(super) struct Goal {
    pub(super) latest: u64,
    pub(super) pools: BTreeMap<PoolId, PoolGoal>,
    pub(super) rollout: Option<Rollout>,
    pub(super) next: Option<Next>,
}

/// The way from the settled plans to the wanted ones: one transaction over its pools.
#[derive(Debug)]
pub(super) struct Rollout {
    pub(super) generation: Generation,
    pub(super) pools: BTreeSet<PoolId>,
    pub(super) wishes: Vec<WishId>,
    pub(super) begun: Instant,
    pub(super) course: Course,
    /// Pools whose canary has not passed. Nobody else is replaced, and nobody retires, until all
    /// have.
    pub(super) untried: BTreeSet<PoolId>,
}

/// Where a rollout is heading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Course {
    /// There is nothing to go back to.
    #[default]
    Boot,
    /// To where it was before the master was killed.
    Resume,
    /// To the new generation.
    Forward,
    /// Back to the settled plans.
    Back { why: String },
}

/// A reload that waits for its turn. Later wishes are folded into it.
#[derive(Debug, Default)]
pub(super) struct Next {
    pub(super) wishes: Vec<WishId>,
    pub(super) pools: BTreeMap<PoolId, Option<(Edition, Policy)>>,
}

/// What one pool should be.
#[derive(Debug, Default)]
pub(super) struct PoolGoal {
    /// `None`: the pool is to go.
    pub(super) wanted: Option<Arc<Plan>>,
    pub(super) settled: Option<Arc<Plan>>,
    pub(super) good: Option<Arc<Plan>>,
    /// When settled becomes good.
    pub(super) proven_at: Option<Instant>,
    /// A size that was asked for by hand; it lasts over reloads.
    pub(super) scaled: Option<u32>,
    pub(super) tallies: BTreeMap<Generation, Tally>,
}

/// How a generation of a pool behaves.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) losses: VecDeque<Instant>,
    pub(super) slots: BTreeMap<Slot, Trouble>,
    /// Why it is not started again.
    pub(super) gave_up: Option<String>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trouble {
    /// Failed starts in a row.
    pub(super) failed: u32,
    /// Failed starts and quick losses in a row.
    pub(super) strikes: u32,
    pub(super) not_before: Option<Instant>,
}

/// What a failure led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The slot is tried again after this time.
    Retry(Duration),
    /// Too often.
    Hopeless(String),
}

impl Goal {
    pub(super) fn fold(
        &mut self,
        wish: WishId,
        edition: Edition,
        pools: Vec<(PoolId, Option<Policy>)>,
    ) {
        let next = self.next.get_or_insert_default();
        next.wishes.push(wish);
        for (pool, policy) in pools {
            next.pools.insert(pool, policy.map(|policy| (edition, policy)));
        }
    }

    /// Whether `pool` takes part in a rollout on this course.
    pub(super) fn is_rolling(&self, pool: PoolId) -> bool {
        self.rollout.as_ref().is_some_and(|rollout| rollout.pools.contains(&pool))
    }

    /// Whether this generation is the one whose first failed start fails the rollout under way.
    pub(super) fn is_rolled_out(&self, generation: Generation) -> bool {
        self.rollout.as_ref().is_some_and(|rollout| {
            rollout.course == Course::Forward && rollout.generation == generation
        })
    }

    /// Editions that some plan or waiting reload refers to.
    pub(super) fn editions(&self) -> BTreeSet<Edition> {
        let planned = self.pools.values().flat_map(PoolGoal::plans).map(|plan| plan.edition);
        let next = self.next.iter().flat_map(|next| next.pools.values().flatten());
        planned.chain(next.map(|(edition, _)| *edition)).collect()
    }

    /// Listeners that some wanted or settled plan, or a waiting reload, uses.
    pub(super) fn listeners(&self) -> BTreeSet<ListenerId> {
        let plans = self.pools.values().flat_map(|pool| pool.wanted.iter().chain(&pool.settled));
        let next = self.next.iter().flat_map(|next| next.pools.values().flatten());
        plans
            .map(|plan| &plan.policy)
            .chain(next.map(|(_, policy)| policy))
            .flat_map(|policy| policy.listeners.iter().copied())
            .collect()
    }
}

impl PoolGoal {
    fn plans(&self) -> impl Iterator<Item = &Arc<Plan>> {
        self.wanted.iter().chain(&self.settled).chain(&self.good)
    }

    /// The policy by which the pool is run now.
    pub(super) fn policy(&self) -> Option<&Policy> {
        self.settled.as_ref().or(self.wanted.as_ref()).map(|plan| &plan.policy)
    }

    /// How many workers should serve. None, where the pool is to go.
    pub(super) fn size(&self) -> u32 {
        self.size_of(self.wanted.as_deref())
    }

    /// How many slots are kept filled: those of what is wanted, and while a rollout is under way
    /// those of what is settled, too, because it may come to that again.
    pub(super) fn span(&self, is_rolling: bool) -> u32 {
        let settled = if is_rolling { self.size_of(self.settled.as_deref()) } else { 0 };
        self.size().max(settled)
    }

    fn size_of(&self, plan: Option<&Plan>) -> u32 {
        plan.map_or(0, |plan| self.scaled.unwrap_or(plan.policy.workers))
    }

    pub(super) fn knows(&self, generation: Generation) -> bool {
        self.plans().any(|plan| plan.generation == generation)
    }

    pub(super) fn wants(&self, generation: Generation) -> bool {
        self.wanted.as_ref().is_some_and(|plan| plan.generation == generation)
    }

    /// Whether this generation was rolled back: it is newer than what is wanted.
    pub(super) fn is_rejected(&self, generation: Generation) -> bool {
        self.wanted.as_ref().is_some_and(|plan| plan.generation < generation)
    }

    pub(super) fn is_hopeless(&self, generation: Generation) -> bool {
        self.tallies.get(&generation).is_some_and(|tally| tally.gave_up.is_some())
    }

    /// Why nothing more is started for this pool, if that is so.
    pub(super) fn gave_up(&self) -> Option<&str> {
        let wanted = self.wanted.as_ref()?;
        self.tallies.get(&wanted.generation)?.gave_up.as_deref()
    }

    /// Whether there is no plan left that a slot could be filled with.
    pub(super) fn is_lost(&self) -> bool {
        self.plans().all(|plan| self.is_hopeless(plan.generation))
    }

    /// The plan for an empty slot: the best known one, unless the slot is new in this rollout.
    pub(super) fn plan_for_vacancy(&self, slot: Slot) -> Option<&Arc<Plan>> {
        self.good
            .iter()
            .chain(&self.settled)
            .chain(&self.wanted)
            .find(|plan| !self.is_hopeless(plan.generation) && slot.0 <= self.size_of(Some(plan)))
    }

    /// When `slot` may be filled with this generation.
    pub(super) fn not_before(&self, generation: Generation, slot: Slot) -> Option<Instant> {
        self.tallies.get(&generation)?.slots.get(&slot)?.not_before
    }

    /// The next moment at which an empty slot may be filled, or the plan is proven.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.next_try().into_iter().chain(self.proven_at).min()
    }

    /// The next moment at which an empty slot may be filled.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let waits = self
            .plans()
            .filter(|plan| !self.is_hopeless(plan.generation))
            .filter_map(|plan| self.tallies.get(&plan.generation))
            .flat_map(|tally| tally.slots.values().filter_map(|trouble| trouble.not_before));
        waits.min()
    }

    /// Forgets waits that are over, so that their deadlines do not come again.
    pub(super) fn expire(&mut self, now: Instant) {
        for trouble in self.tallies.values_mut().flat_map(|tally| tally.slots.values_mut()) {
            if trouble.not_before.is_some_and(|at| at <= now) {
                trouble.not_before = None;
            }
        }
    }

    /// A worker of this slot wants to be replaced. One that asks as soon as it serves is replaced
    /// once a second at most.
    pub(super) fn note_due(
        &mut self,
        generation: Generation,
        slot: Slot,
        since: Instant,
        now: Instant,
    ) {
        if since + QUICK > now {
            let tally = self.tallies.entry(generation).or_default();
            let trouble = tally.slots.entry(slot).or_default();
            trouble.not_before = trouble.not_before.max(Some(since + QUICK));
        }
    }

    pub(super) fn note_ready(&mut self, generation: Generation, slot: Slot) {
        let tally = self.tallies.entry(generation).or_default();
        tally.slots.entry(slot).or_default().failed = 0;
    }

    pub(super) fn note_failed_start(
        &mut self,
        plan: &Plan,
        slot: Slot,
        now: Instant,
        chance: &mut Chance,
    ) -> Verdict {
        let limit = plan.policy.restart_limit;
        let trouble =
            self.tallies.entry(plan.generation).or_default().slots.entry(slot).or_default();
        trouble.failed += 1;
        trouble.strikes += 1;
        if trouble.failed >= limit {
            let count = trouble.failed;
            return Verdict::Hopeless(format!("{count} failed starts in a row"));
        }
        let wait = backoff(trouble.strikes, chance);
        trouble.not_before = Some(now + wait);
        Verdict::Retry(wait)
    }

    pub(super) fn note_loss(
        &mut self,
        plan: &Plan,
        slot: Slot,
        served: Duration,
        now: Instant,
        chance: &mut Chance,
    ) -> Verdict {
        let window = plan.policy.restart_window;
        let limit = u64::from(plan.policy.restart_limit) * u64::from(self.size().max(1));
        let tally = self.tallies.entry(plan.generation).or_default();
        tally.losses.push_back(now);
        while tally.losses.front().is_some_and(|&at| now.saturating_duration_since(at) > window) {
            tally.losses.pop_front();
        }
        if tally.losses.len() as u64 >= limit {
            let count = tally.losses.len();
            let workers = if count == 1 { "worker" } else { "workers" };
            return Verdict::Hopeless(format!("{count} {workers} lost within {window:?}"));
        }
        let trouble = tally.slots.entry(slot).or_default();
        trouble.strikes = if served < QUICK { trouble.strikes + 1 } else { 0 };
        let wait = backoff(trouble.strikes, chance);
        trouble.not_before = (!wait.is_zero()).then(|| now + wait);
        Verdict::Retry(wait)
    }

    /// Remembers that a generation fails too often. Whether that is new.
    pub(super) fn note_hopeless(&mut self, generation: Generation, why: &str) -> bool {
        let tally = self.tallies.entry(generation).or_default();
        let is_new = tally.gave_up.is_none();
        tally.gave_up.get_or_insert_with(|| why.to_owned());
        is_new
    }

    /// Where what is settled was given up before it was proven, the good plan is wanted again.
    /// Answers what failed, and why.
    pub(super) fn go_back_to_good(&mut self) -> Option<(Generation, String)> {
        let failed = self.settled.as_ref()?.generation;
        let why = self.tallies.get(&failed)?.gave_up.clone()?;
        let good = self.good.as_ref()?.generation;
        if good == failed || self.is_hopeless(good) {
            return None;
        }
        self.settled.clone_from(&self.good);
        self.wanted.clone_from(&self.good);
        self.proven_at = None;
        Some((failed, why))
    }

    /// The settled plan is proven: every respawn uses it from now on.
    pub(super) fn prove(&mut self) {
        self.proven_at = None;
        if self.settled.as_ref().is_some_and(|plan| !self.is_hopeless(plan.generation)) {
            self.good.clone_from(&self.settled);
        }
        self.forget_strangers();
    }

    /// What is wanted has been reached, or is not to be had.
    pub(super) fn settle(&mut self, now: Instant) {
        let before = self.settled.as_ref().map(|plan| plan.generation);
        self.settled.clone_from(&self.wanted);
        let Some(plan) = &self.settled else {
            (self.good, self.proven_at) = (None, None);
            return;
        };
        if self.is_hopeless(plan.generation) || before == Some(plan.generation) {
            // The proof of a plan that is settled again goes on where it was.
            return self.forget_strangers();
        }
        if self.good.as_ref().is_none_or(|good| self.is_hopeless(good.generation)) {
            return self.prove();
        }
        self.proven_at = Some(now + plan.policy.restart_window);
        self.forget_strangers();
    }

    fn forget_strangers(&mut self) {
        let known: BTreeSet<Generation> = self.plans().map(|plan| plan.generation).collect();
        self.tallies.retain(|generation, _| known.contains(generation));
    }
}

/// How long a slot waits after so many failures in a row: doubling, bounded, a quarter of jitter.
fn backoff(strikes: u32, chance: &mut Chance) -> Duration {
    match strikes.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => {
            let wait = BACKOFF_MIN.saturating_mul(1 << doublings.min(16)).min(BACKOFF_MAX);
            wait.mul_f64(0.75 + 0.5 * chance.fraction())
        }
    }
}
