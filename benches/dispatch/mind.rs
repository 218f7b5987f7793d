//! Choosing alone, without a system call: the mind of the master, and workers that are only counters.
//!
//! What a choice costs is the median time of many, while another thread plays all the workers and changes
//! their counters, so that reading one is as dear as it is in earnest. How good a choice
//! is, is asked in a world whose time is a number: nothing there is noise.

use std::cell::RefCell;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Instant;

use rcluster::supervisor::{
    Action, Balance, Board, Counts, Edition, Event, ListenerId, Policy, PoolId, Seat, Supervisor,
    WishId, WorkerId,
};

use super::clients::fraction;
use super::meter::Spread;

const POOL: PoolId = PoolId(1);
const LISTENER: ListenerId = ListenerId(1);

/// A mind whose pool of so many workers serves, and who sits where.
fn serving(
    count: u32,
    balance: Balance,
    now: Instant,
    board: &impl Board,
) -> (Supervisor, Vec<(WorkerId, Seat)>) {
    let mut mind = Supervisor::new(3, 7);
    let policy = Policy {
        name: "web".to_owned(),
        workers: count,
        listeners: vec![LISTENER],
        balance,
        window: 1 << 30,
        surge: count,
        ..Policy::default()
    };
    let pools = vec![(POOL, Some(policy))];
    let event = Event::ReloadRequested { wish: WishId(1), edition: Edition(1), pools };
    mind.handle_event(event, now, board);
    let mut seats = Vec::new();
    while let Some(action) = mind.poll_action() {
        if let Action::Spawn(spawn) = action {
            seats.push((spawn.who.worker, spawn.seat));
            let ready = Event::Ready { worker: spawn.who.worker, limit: 0, handback: true };
            mind.handle_event(ready, now, board);
        }
    }
    assert_eq!(seats.len(), count as usize);
    seats.sort_unstable();
    (mind, seats)
}

/// One worker's counters, on a pair of lines of its own as on the real board.
#[repr(align(256))]
#[derive(Default)]
struct Line {
    taken: AtomicU64,
    finished: AtomicU64,
}

struct Lines(Vec<Line>);

impl Board for Lines {
    fn counts(&self, _: PoolId, seat: Seat) -> Counts {
        let line = &self.0[seat.0 as usize];
        let finished = line.finished.load(SeqCst);
        let taken = line.taken.load(SeqCst);
        Counts { taken, finished, progress: taken, accepted: 0 }
    }

    fn set_waiting(&self, _: PoolId, _: Seat, _: bool) {}
}

/// Choices of one round.
const CHOICES: usize = 2000;

/// What a choice costs among so many.
struct Contest {
    mind: Supervisor,
    board: Arc<Lines>,
    now: Instant,
    /// By worker.
    seats: Vec<u32>,
    /// Connections that are in hand at once.
    in_hand: usize,
    hand: VecDeque<u32>,
    /// The median of each round.
    costs: Vec<f64>,
}

impl Contest {
    fn new(count: u32, balance: Balance, in_hand: f64) -> Contest {
        let board = Arc::new(Lines((0..=count).map(|_| Line::default()).collect()));
        let now = Instant::now();
        let (mind, pairs) = serving(count, balance, now, &*board);
        let last = pairs.iter().map(|(worker, _)| worker.0).max().unwrap();
        let mut seats = vec![0; usize::try_from(last).unwrap() + 1];
        for (worker, seat) in pairs {
            seats[usize::try_from(worker.0).unwrap()] = seat.0;
        }
        let in_hand = (f64::from(count) * in_hand) as usize;
        Contest { mind, board, now, seats, in_hand, hand: VecDeque::new(), costs: Vec::new() }
    }

    /// The workers are played by another thread, so that their counters are in another processor's
    /// cache; it has done with one connection before the next is chosen for.
    fn round(&mut self) {
        let chosen = Arc::new(AtomicU32::new(NOBODY));
        let (board, theirs, in_hand) = (Arc::clone(&self.board), Arc::clone(&chosen), self.in_hand);
        let mut hand = std::mem::take(&mut self.hand);
        let workers = std::thread::spawn(move || {
            for _ in 0..CHOICES {
                let seat = wait_for(&theirs, |it| it != NOBODY);
                board.0[seat as usize].taken.fetch_add(1, SeqCst);
                hand.push_back(seat);
                if hand.len() > in_hand {
                    let first = hand.pop_front().unwrap();
                    board.0[first as usize].finished.fetch_add(1, SeqCst);
                }
                theirs.store(NOBODY, SeqCst);
            }
            hand
        });
        let mut times = Vec::with_capacity(CHOICES);
        for _ in 0..CHOICES {
            let begin = Instant::now();
            let worker = self.mind.choose(LISTENER, None, self.now, &*self.board).unwrap();
            self.mind.note_dispatched(worker, self.now);
            times.push(begin.elapsed().as_secs_f64() * 1e9);
            chosen.store(self.seats[usize::try_from(worker.0).unwrap()], SeqCst);
            wait_for(&chosen, |it| it == NOBODY);
        }
        self.hand = workers.join().unwrap();
        self.costs.push(Spread::of(times).median - clock_time());
    }
}

const NOBODY: u32 = u32::MAX;

fn wait_for(word: &AtomicU32, is_meant: impl Fn(u32) -> bool) -> u32 {
    for turn in 0_u32.. {
        let value = word.load(SeqCst);
        if is_meant(value) {
            return value;
        }
        // The other thread may need this processor.
        if turn % 64 == 63 { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
    unreachable!("it waits as long as it takes")
}

/// What reading the clock twice takes, in ns.
fn clock_time() -> f64 {
    Spread::of((0..200).map(|_| Instant::now().elapsed().as_secs_f64() * 1e9)).median
}

/// What choosing costs, by the size of the pool.
pub fn costs(rounds: usize) {
    let sizes = [2, 16, 64, 256];
    let least = Balance::LeastConnections;
    let ways = [
        ("`least-connections`, half of them idle", least, 0.5),
        ("`least-connections`, two in each hand", least, 2.0),
        ("`round-robin`", Balance::RoundRobin, 0.5),
    ];
    println!("| choosing, ns | among 2 | 16 | 64 | 256 | 256 beside 2 |");
    println!("|---|---|---|---|---|---|");
    for (name, balance, in_hand) in ways {
        let contests = sizes.iter().map(|&it| Contest::new(it, balance, in_hand));
        let mut contests: Vec<Contest> = contests.collect();
        for round in 0..rounds + 2 {
            for contest in &mut contests {
                contest.round();
                // The first ones warm up.
                if round < 2 {
                    contest.costs.clear();
                }
            }
        }
        let medians = contests.iter().map(|it| Spread::of(it.costs.iter().copied()).median);
        let medians: Vec<String> = medians.map(|it| format!("{it:.0}")).collect();
        let pairs = contests[3].costs.iter().zip(&contests[0].costs);
        let ratio = Spread::of(pairs.map(|(large, small)| large / small));
        println!("| {name} | {} | {ratio} |", medians.join(" | "));
    }
    println!(
        "\nMedians of {rounds} rounds of {CHOICES} choices; promised: 256 beside 2 at most 1.20."
    );
}

/// Workers in a world of its own time, each of whom answers one request at a time.
struct World {
    counts: RefCell<Vec<Counts>>,
}

impl Board for World {
    fn counts(&self, _: PoolId, seat: Seat) -> Counts {
        self.counts.borrow()[seat.0 as usize]
    }

    fn set_waiting(&self, _: PoolId, _: Seat, _: bool) {}
}

/// Who gets the next.
enum Chooser {
    /// The mind of the master.
    Mind(Box<Supervisor>, Vec<usize>),
    /// Looks at everybody.
    Exact,
    /// The better of two by lot.
    TwoChoices(u64),
    Lot(u64),
    InTurn(usize),
}

/// How long fast requests take from their arrival to their end, in units of a fast one's work: the median
/// and the 99th part of 100. 1 % takes 100 times as long.
fn play(chooser: &mut Chooser, world: &World, count: usize, load: f64, seed: u64) -> (f64, f64) {
    const REQUESTS: usize = 120_000;
    let mut seed = seed;
    let gap = 1.99 / (load * count as f64);
    let mut queues: Vec<VecDeque<(f64, f64)>> = vec![VecDeque::new(); count];
    // The next end of each busy worker; the heap's greatest is the earliest.
    let mut ends: BinaryHeap<(std::cmp::Reverse<u64>, usize)> = BinaryHeap::new();
    let key = |time: f64| std::cmp::Reverse((time * 1e6) as u64);
    let (mut now, mut waits) = (0.0, Vec::with_capacity(REQUESTS));
    for _ in 0..REQUESTS {
        now += -(1.0 - fraction(&mut seed)).ln() * gap;
        while let Some(&(std::cmp::Reverse(end), worker)) =
            ends.peek().filter(|it| it.0 >= key(now))
        {
            ends.pop();
            let end = end as f64 / 1e6;
            let (came, work) = queues[worker].pop_front().unwrap();
            world.counts.borrow_mut()[worker].finished += 1;
            if work < 2.0 {
                waits.push(end - came);
            }
            if let Some((_, work)) = queues[worker].front() {
                ends.push((key(end + work), worker));
            }
        }
        let worker = chooser.choose(world, &queues);
        let counts = &mut world.counts.borrow_mut()[worker];
        (counts.taken, counts.progress) = (counts.taken + 1, counts.progress + 1);
        let work = if fraction(&mut seed) < 0.01 { 100.0 } else { 1.0 };
        queues[worker].push_back((now, work));
        if queues[worker].len() == 1 {
            ends.push((key(now + work), worker));
        }
    }
    // Without those at the beginning, when nobody had anything to do.
    let mut waits = waits.split_off(REQUESTS / 6);
    waits.sort_by(f64::total_cmp);
    (waits[waits.len() / 2], waits[waits.len() * 99 / 100])
}

impl Chooser {
    fn choose(&mut self, world: &World, queues: &[VecDeque<(f64, f64)>]) -> usize {
        let count = queues.len();
        let lot = |seed: &mut u64| (fraction(seed) * count as f64) as usize;
        match self {
            Chooser::Mind(mind, seats) => {
                let now = Instant::now();
                let worker = mind.choose(LISTENER, None, now, world).unwrap();
                mind.note_dispatched(worker, now);
                seats[usize::try_from(worker.0).unwrap()]
            }
            Chooser::Exact => (0..count).min_by_key(|&it| queues[it].len()).unwrap(),
            Chooser::TwoChoices(seed) => {
                let (one, other) = (lot(seed), lot(seed));
                if queues[one].len() <= queues[other].len() { one } else { other }
            }
            Chooser::Lot(seed) => lot(seed),
            Chooser::InTurn(last) => {
                *last = (*last + 1) % count;
                *last
            }
        }
    }
}

/// How good a choice is.
pub fn quality() {
    println!(
        "| fast requests, p50 / p99 | 16 workers, half busy | 16, at 80 % | 256, half busy | 256, at 80 % |"
    );
    println!("|---|---|---|---|---|");
    let names = [
        "`least-connections`",
        "everybody looked at",
        "better of two by lot",
        "by lot (as `SO_REUSEPORT`)",
        "round robin",
    ];
    for (which, name) in names.iter().enumerate() {
        let cells = [(16, 0.5), (16, 0.8), (256, 0.5), (256, 0.8)].map(|(count, load)| {
            let counts = RefCell::new(vec![Counts::default(); count + 1]);
            let world = World { counts };
            let mut chooser = match which {
                0 => {
                    let workers = u32::try_from(count).unwrap();
                    let (mind, seats) =
                        serving(workers, Balance::LeastConnections, Instant::now(), &world);
                    let last = seats.last().unwrap().0.0;
                    let mut places = vec![0; usize::try_from(last).unwrap() + 1];
                    for (worker, seat) in seats {
                        places[usize::try_from(worker.0).unwrap()] = seat.0 as usize;
                    }
                    Chooser::Mind(Box::new(mind), places)
                }
                1 => Chooser::Exact,
                2 => Chooser::TwoChoices(5),
                3 => Chooser::Lot(5),
                _ => Chooser::InTurn(0),
            };
            let (p50, p99) = play(&mut chooser, &world, count, load, 11);
            format!("{p50:.1} / {p99:.1}")
        });
        println!("| {name} | {} |", cells.join(" | "));
    }
    println!(
        "\nIn units of a fast request's own time; simulated, so exact: 120 000 requests that come at \
         random, 1 % of which take 100 times as long, to workers that answer one at a time."
    );
}
