//! Choosing among many, whose counters are old or new, or not read at all.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

use super::super::*;

const POOL: PoolId = PoolId(1);
const LISTENER: ListenerId = ListenerId(1);

/// What workers counted, and how often the master has looked.
#[derive(Default)]
struct Counted {
    counts: RefCell<BTreeMap<Seat, Counts>>,
    looks: Cell<usize>,
}

impl Board for Counted {
    fn counts(&self, _: PoolId, seat: Seat) -> Counts {
        self.looks.set(self.looks.get() + 1);
        self.counts.borrow().get(&seat).copied().unwrap_or_default()
    }

    fn set_waiting(&self, _: PoolId, _: Seat, _: bool) {}
}

/// A pool that serves, and what it was sent.
struct Pool {
    mind: Supervisor,
    board: Counted,
    now: Instant,
    seats: BTreeMap<WorkerId, Seat>,
    sent: BTreeMap<WorkerId, u64>,
}

impl Pool {
    #[expect(clippy::disallowed_methods, reason = "some instant to begin with")]
    fn serving(workers: u32, limit: u32) -> Pool {
        let (mind, board, now) = (Supervisor::new(3, 7), Counted::default(), Instant::now());
        let mut pool = Pool { mind, board, now, seats: BTreeMap::new(), sent: BTreeMap::new() };
        let policy = Policy {
            workers,
            listeners: vec![LISTENER],
            window: u64::MAX,
            surge: workers,
            ..Policy::default()
        };
        let pools = vec![(POOL, Some(policy))];
        pool.tell(Event::ReloadRequested { wish: WishId(1), edition: Edition(1), pools });
        while let Some(action) = pool.mind.poll_action() {
            if let Action::Spawn(Spawn { who: Who { worker, .. }, seat, .. }) = action {
                pool.seats.insert(worker, seat);
                pool.tell(Event::Ready { worker, limit, handback: true });
            }
        }
        assert_eq!(pool.seats.len(), workers as usize);
        pool
    }

    fn tell(&mut self, event: Event) {
        self.mind.handle_event(event, self.now, &self.board);
    }

    fn connect(&mut self) -> Option<WorkerId> {
        let worker = self.mind.choose(LISTENER, None, self.now, &self.board)?;
        self.mind.note_dispatched(worker, self.now);
        *self.sent.entry(worker).or_default() += 1;
        Some(worker)
    }

    /// It has taken all that it was sent, and finished all but so many.
    fn finish_but(&self, worker: WorkerId, left: u64) {
        let taken = self.sent.get(&worker).copied().unwrap_or(0);
        let counts = Counts { taken, finished: taken - left, progress: taken, accepted: 0 };
        self.board.counts.borrow_mut().insert(self.seats[&worker], counts);
    }

    fn ids(&self) -> Vec<WorkerId> {
        self.seats.keys().copied().collect()
    }
}

#[test]
fn nobody_is_flooded_while_counters_are_old() {
    for workers in [1, 2, 3, 7, 64, 256] {
        let mut pool = Pool::serving(workers, 0);
        for _ in 0..9 * workers {
            pool.connect().unwrap();
        }
        let counts: Vec<u64> = pool.sent.values().copied().collect();
        assert_eq!(counts, vec![9; workers as usize], "of {workers}");
    }
}

#[test]
fn whoever_is_idle_is_found_within_a_round() {
    for workers in [2, 16, 64, 256_u32] {
        let mut pool = Pool::serving(workers, 0);
        for _ in 0..5 * workers {
            pool.connect().unwrap();
        }
        for worker in pool.ids() {
            pool.finish_but(worker, 3);
        }
        let idle = pool.ids()[workers as usize / 2];
        pool.finish_but(idle, 0);
        let tries = (0..).find(|_| pool.connect() == Some(idle)).unwrap();
        assert!(tries < workers, "found after {tries} others of {workers}");
    }
}

#[test]
fn a_choice_among_idle_ones_looks_at_nobody() {
    let mut pool = Pool::serving(256, 0);
    pool.board.looks.set(0);
    for _ in 0..256 {
        pool.connect().unwrap();
    }
    assert_eq!(pool.board.looks.get(), 0);
}

#[test]
fn a_choice_looks_at_few_however_many_there_are() {
    let mut pool = Pool::serving(256, 0);
    for round in 0..2000 {
        pool.board.looks.set(0);
        let worker = pool.connect().unwrap();
        assert!(pool.board.looks.get() <= 20, "{} looks", pool.board.looks.get());
        if round % 3 > 0 {
            pool.finish_but(worker, 0);
        }
    }
}

#[test]
fn the_last_one_with_room_is_found() {
    for workers in [2, 16, 64, 256_u32] {
        let mut pool = Pool::serving(workers, 4);
        for _ in 0..4 * workers {
            pool.connect().unwrap();
        }
        assert_eq!(pool.connect(), None, "everybody has what he can hold");
        for worker in pool.ids() {
            pool.finish_but(worker, 4);
        }
        let other = pool.ids()[workers as usize - 1];
        pool.finish_but(other, 3);
        pool.tell(Event::Room { worker: other });
        assert_eq!(pool.connect(), Some(other), "of {workers}");
        assert_eq!(pool.connect(), None, "he had room for one");
    }
}
