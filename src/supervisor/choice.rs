//! Who of a pool's workers gets a connection.
//!
//! Least connections without looking at everybody: `ranks` says who has the fewest in hand as far as is
//! known. Who was idle and was sent nothing since is idle, and gets the next without a look. While nobody
//! is known to be idle, some are looked at, until one is idle or better than the best so far: by turns the
//! one that seems best and was neither sent anything nor looked at for the longest, who is likely to have
//! finished, and the next in the row, so that nobody is forgotten. A pool of up to [`LOOKS`] is looked at
//! whole; of a larger one whose workers all have several, fewer are looked at. Nobody is flooded meanwhile:
//! what is sent counts at once.
//!
//! That *nobody* has room is never said on what was known: then everybody is looked at.

use super::chance::mix;
use super::declined::declines;
use super::dispatch::Client;
use super::ranks::Ranks;
use super::roster::Worker;
use super::{Accept, Balance, Board, PoolId, Slot, Supervisor, Who, WorkerId};

/// How many are looked at while nobody is known to be idle.
const LOOKS: usize = 8;
/// How many when everybody is known to have two or more: who has one less is not worth so much.
const LOOKS_BUSY: usize = 2;
/// How many who turn out to have no room, before everybody is looked at.
const TRIES: usize = 4;

/// One who may be chosen. They are in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    slot: Slot,
    pub(super) worker: WorkerId,
    /// Where its record lies.
    pub(super) record: usize,
}

/// Where the one that was chosen last is found, so that sending it something needs no search.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chosen {
    /// Among the candidates.
    pub(super) place: usize,
    /// Where its record lies.
    pub(super) record: usize,
}

impl Supervisor {
    /// Somebody with room for this listener's client. If nobody: those who may get room will say so.
    pub(super) fn find_room(
        &mut self,
        pool: PoolId,
        client: Client,
        board: &impl Board,
    ) -> Option<WorkerId> {
        // Those who decline are to be told apart from the others, which takes a look at each.
        let is_tried = !client.is_held && self.tries(pool, board);
        let likeliest = if is_tried { None } else { self.likeliest(pool, client, board) };
        likeliest.or_else(|| self.with_room(pool, client, is_tried, board)).or_else(|| {
            self.await_room(pool, client, board);
            // The second reading; see the head of `dispatch`.
            self.with_room(pool, client, is_tried, board)
        })
    }

    /// The one with the fewest in hand as far as is known, if it has room. `None` says nothing about the
    /// others.
    fn likeliest(&mut self, pool: PoolId, client: Client, board: &impl Board) -> Option<WorkerId> {
        let is_by_load = match self.goal.pools.get(&pool)?.policy()?.balance {
            Balance::LeastConnections => true,
            Balance::SourceHash => client.source.is_none(),
            Balance::RoundRobin => false,
        };
        let desk = self.desks.get_mut(&pool)?;
        if !is_by_load || desk.resting_until.is_some() {
            return None;
        }
        let count = desk.candidates.len();
        let best = desk.ranks.first().map_or(u64::MAX, |(_, known)| known);
        let mut looked_at = None;
        let looks = if best > 1 && count > LOOKS { LOOKS_BUSY } else { LOOKS };
        for step in 0..looks.min(count) {
            let first = desk.ranks.first();
            let is_better = |known: u64| known == 0 || known < best && count > LOOKS;
            if first.is_some_and(|(_, known)| is_better(known)) {
                break;
            }
            let place = match first {
                Some((place, _)) if step % 2 == 0 && count > LOOKS => place,
                Some(_) | None => {
                    desk.looked_at = (desk.looked_at + 1) % count;
                    desk.looked_at
                }
            };
            let worker = self.roster.records.at(desk.candidates[place].record);
            let room = worker.and_then(|worker| room(worker, board));
            if count > LOOKS {
                desk.ranks.learn_last(place, room);
            } else {
                desk.ranks.learn(place, room);
            }
            looked_at = Some(place);
        }
        for _ in 0..TRIES {
            let (place, known) = desk.ranks.first()?;
            let &Candidate { worker: id, record, .. } = desk.candidates.get(place)?;
            let worker = self.roster.records.at(record)?;
            debug_assert_eq!(worker.who.worker, id, "another's record");
            if !client.is_for(worker) {
                return None;
            }
            // Who was idle and was sent nothing since is idle, unless it accepts by itself.
            let is_sent_all = worker.plan.policy.accept == Accept::Master;
            let is_idle = known == 0 && is_sent_all && !worker.is_suspect() && !worker.rests();
            let is_sure = is_idle || looked_at == Some(place);
            let room = if is_sure { Some(known) } else { room(worker, board) };
            desk.ranks.learn(place, room);
            // More than was known: there may be somebody else.
            if room.is_some_and(|in_hand| in_hand <= known) {
                self.chosen = Chosen { place, record };
                return Some(id);
            }
        }
        None
    }

    /// Looks at everybody, but at no more than it takes to be sure.
    fn with_room(
        &mut self,
        pool: PoolId,
        client: Client,
        is_tried: bool,
        board: &impl Board,
    ) -> Option<WorkerId> {
        let desk = self.desks.get_mut(&pool)?;
        let policy = self.goal.pools.get(&pool)?.policy()?;
        if desk.resting_until.is_some() || !policy.is_seen() {
            return None;
        }
        let count = desk.candidates.len();
        let mut look = |place: usize| {
            let worker = self.roster.records.at(desk.candidates[place].record)?;
            let room = room(worker, board);
            desk.ranks.learn(place, room);
            room.filter(|_| client.is_for(worker) && !(is_tried && declines(worker, board)))
        };
        // From the one after the last: ties go round.
        let cursor = desk.cursor;
        let mut in_turn = (1..=count).map(|step| (cursor + step) % count);
        let chosen = match (policy.balance, client.source) {
            (Balance::RoundRobin, _) => in_turn.find(|&place| look(place).is_some()),
            (Balance::SourceHash, Some(source)) => {
                let draw = |place: &usize| draw(source, desk.candidates[*place].slot);
                // As a rule the first has room.
                let first = in_turn.clone().max_by_key(draw);
                first.filter(|&place| look(place).is_some()).or_else(|| {
                    let mut others: Vec<usize> = in_turn.collect();
                    others.sort_by_key(|place| std::cmp::Reverse(draw(place)));
                    others.into_iter().find(|&place| look(place).is_some())
                })
            }
            (Balance::LeastConnections | Balance::SourceHash, _) => in_turn
                .filter_map(|place| Some((place, look(place)?)))
                .min_by_key(|&(_, in_hand)| in_hand)
                .map(|(place, _)| place),
        };
        let place = chosen?;
        let Candidate { worker, record, .. } = desk.candidates[place];
        self.chosen = Chosen { place, record };
        Some(worker)
    }

    /// Whether the worker can be sent a connection.
    pub(super) fn can_take(&self, id: WorkerId, board: &impl Board) -> bool {
        let worker = self.roster.get(id);
        worker.is_some_and(|worker| {
            !worker.plan.policy.listeners.is_empty() && room(worker, board).is_some()
        })
    }

    /// Renews the list of those who may be chosen, after a worker began or ceased to serve.
    pub(super) fn renew_candidates(&mut self, pool: PoolId) {
        let serving = self.roster.of(pool).filter(|worker| worker.is_at_work());
        let serving: Vec<&Worker> = serving.collect();
        let has_decliners = serving.iter().any(|worker| worker.declined.is_some());
        let candidate = |worker: &Worker| {
            let Who { worker, slot, .. } = worker.who;
            Some(Candidate { slot, worker, record: self.roster.records.place(worker)? })
        };
        let mut candidates: Vec<Candidate> = serving.into_iter().filter_map(candidate).collect();
        candidates.sort_unstable();
        let desk = self.desks.entry(pool).or_default();
        // A new one has in hand what it was sent, at most.
        let sent = |it: &Worker| it.dispatched - it.handed_back;
        let known = |candidate: &Candidate| match desk.candidates.binary_search(candidate) {
            Ok(place) => desk.ranks.known(place),
            Err(_) => self.roster.records.at(candidate.record).map(sent),
        };
        let known: Vec<Option<u64>> = candidates.iter().map(known).collect();
        desk.ranks = Ranks::new(&known, desk.cursor);
        desk.candidates = candidates;
        (desk.looked_at, desk.has_decliners) = (0, has_decliners);
    }
}

/// What a slot draws for a client. The highest draw is chosen (rendezvous hashing, Thaler and
/// Ravishankar 1996): when a slot is full or gone, only its clients move.
fn draw(source: u64, slot: Slot) -> u64 {
    mix(source ^ mix(u64::from(slot.0)))
}

/// How many connections the worker has in hand, if it can take one more.
fn room(worker: &Worker, board: &impl Board) -> Option<u64> {
    if worker.is_suspect() || worker.rests() {
        return None;
    }
    let hand = worker.hand(board.counts(worker.who.pool, worker.seat));
    (hand.untaken < worker.plan.policy.window && hand.in_hand < worker.limit)
        .then_some(hand.in_hand)
}
