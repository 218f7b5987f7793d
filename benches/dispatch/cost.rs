//! What a connection costs, or a request where connections are kept: CPU time of master and workers, each
//! beside the floor's, or beside one process', in the same round.

use super::clients::{Pace, Plan, run};
use super::field::{FLOOR, MASTER, NODE, ONE, SHARED, WORKERS};
use super::field::{all, floor_itself, keeping, variants};
use super::meter::{Spread, cpu, cpu_of_all, status, system_calls};
use crate::peers::roster::Peer;
use crate::peers::server::Server;

/// A burst: so many requests, over so many connections that are kept, or each on its own.
#[derive(Clone, Copy)]
struct Burst {
    requests: usize,
    kept: usize,
}

const FRESH: Burst = Burst { requests: 300, kept: 0 };
/// A hundred requests a connection.
const KEPT: Burst = Burst { requests: 100 * AT_ONCE, kept: AT_ONCE };
/// Per second, where they are paced: with the clients beside, two CPUs are half idle.
const RATE: f64 = 3000.0;
/// At once, where they are not.
const AT_ONCE: usize = 24;

/// A server and its figures.
struct Entry {
    name: String,
    server: Server,
    burst: Burst,
    /// Why it was not measured: its clients were not all answered.
    fails: Option<String>,
    master: u32,
    workers: Vec<u32>,
    paced: Vec<Cost>,
    busy: Vec<Cost>,
    calls: Option<f64>,
    memory: u64,
}

/// Who does not run, and why.
type LeftOut = (&'static str, String);

/// µs of CPU for a request, its connection included where it has its own; and what clients waited.
#[derive(Clone, Copy, Default)]
struct Cost {
    master: f64,
    whole: f64,
    p50: f64,
    p99: f64,
}

/// Those whose name contains this, and those whom ratios need.
fn meant(mut peers: Vec<Peer>, only: Option<&str>) -> Vec<Peer> {
    let is_base = |peer: &Peer| [FLOOR, ONE].contains(&peer.name);
    peers.retain(|peer| only.is_none_or(|only| is_base(peer) || peer.name.contains(only)));
    peers
}

pub fn table(rounds: usize, only: Option<&str>, peers: &std::path::Path) {
    let (mut field, left_out) = start(meant(all(), only), FRESH, peers);
    measure(&mut field, rounds);
    for entry in field.iter_mut().filter(|entry| entry.fails.is_none()) {
        entry.memory = status(entry.master, "VmRSS");
        entry.calls = entry.count_calls();
    }
    print(&field);
    println!(
        "\n2 workers each; one request per connection; paced: {RATE:.0} connections a second, open \
         loop; busy: {AT_ONCE} at once, closed loop; {rounds} rounds in turns of {} connections; \
         median (least–most). × floor and × one process are ratios within a round.",
        FRESH.requests
    );
    tell(&field, &left_out);
    targets(&field);
}

/// What a request costs over a connection that was handed over long before.
pub fn kept(rounds: usize, only: Option<&str>, peers: &std::path::Path) {
    let (mut field, left_out) = start(meant(keeping(), only), KEPT, peers);
    measure(&mut field, rounds);
    let Some(one) = find(&field, ONE) else {
        return println!("one process could not be measured");
    };
    println!(
        "| | a request, paced: master, µs | whole, µs | × one process | busy: master, µs | whole, µs | \
         × one process | paced: p50 / p99, µs |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for entry in field.iter().filter(|entry| entry.fails.is_none()) {
        let figures = |costs: &[Cost], one: &[Cost]| {
            let master = Spread::of(costs.iter().map(|cost| cost.master)).to_string();
            let master = if entry.has_master() { master } else { "-".to_owned() };
            let whole = Spread::of(costs.iter().map(|cost| cost.whole)).median;
            let beside = ratio(costs, one, |cost| cost.whole, |cost| cost.whole);
            format!("{master} | {whole:.1} | {beside}")
        };
        println!(
            "| {} | {} | {} | {:.0} / {:.0} |",
            entry.name,
            figures(&entry.paced, &one.paced),
            figures(&entry.busy, &one.busy),
            Spread::of(entry.paced.iter().map(|cost| cost.p50)).median,
            Spread::of(entry.paced.iter().map(|cost| cost.p99)).median,
        );
    }
    println!(
        "\n2 workers each; {} connections of {} requests, their hand-over included; paced: {RATE:.0} \
         requests a second, open loop; busy: one under way on each connection, closed loop; {rounds} rounds \
         in turns; median (least–most). × one process are ratios within a round.",
        KEPT.kept,
        KEPT.requests / KEPT.kept
    );
    tell(&field, &left_out);
}

/// What was tried at the floor, beside the floor as it is.
pub fn tried(rounds: usize, peers: &std::path::Path) {
    let wanted = std::iter::once(floor_itself()).chain(variants()).collect();
    let (mut field, left_out) = start(wanted, FRESH, peers);
    measure(&mut field, rounds);
    println!(
        "| tried | paced: master, µs | × floor | whole, × floor | busy: master, × floor | whole, × floor |"
    );
    println!("|---|---|---|---|---|---|");
    let Some((floor, others)) = field.split_first() else { return };
    for entry in others.iter().filter(|entry| entry.fails.is_none()) {
        let beside = |of: Of, one: &[Cost], other: &[Cost]| ratio(one, other, of, of).to_string();
        println!(
            "| {} | {:.1} | {} | {} | {} | {} |",
            entry.name,
            Spread::of(entry.paced.iter().map(|cost| cost.master)).median,
            beside(|cost| cost.master, &entry.paced, &floor.paced),
            beside(|cost| cost.whole, &entry.paced, &floor.paced),
            beside(|cost| cost.master, &entry.busy, &floor.busy),
            beside(|cost| cost.whole, &entry.busy, &floor.busy),
        );
    }
    let failing = others.iter().filter_map(|it| Some((it.name.as_str(), it.fails.as_ref()?)));
    for (name, why) in left_out.iter().map(|(name, why)| (*name, why)).chain(failing) {
        println!("| {name} | {why} | | | | |");
    }
}

/// Everybody in turns.
fn measure(field: &mut [Entry], rounds: usize) {
    for entry in &mut *field {
        // Warm, and the workers are all there.
        entry.measure(Pace::Busy(AT_ONCE));
        let (master, workers) = entry.server.family();
        (entry.master, entry.workers) = (master, workers);
        entry.measure(Pace::Even(RATE));
    }
    for round in 0..rounds {
        for place in 0..field.len() {
            // Who begins takes turns, too.
            let which = (place + round) % field.len();
            let entry = &mut field[which];
            let paced = entry.measure(Pace::Even(RATE));
            entry.paced.extend(paced);
            let busy = entry.measure(Pace::Busy(AT_ONCE));
            entry.busy.extend(busy);
        }
    }
}

/// Those who run; and those who do not, with the reasons.
fn start(wanted: Vec<Peer>, burst: Burst, peers: &std::path::Path) -> (Vec<Entry>, Vec<LeftOut>) {
    let (mut field, mut left_out) = (Vec::new(), Vec::new());
    for peer in wanted {
        match Server::start(&peer, peers) {
            Ok(server) => {
                let name = format!("{} {}", peer.name, server.version).trim().to_owned();
                let (paced, busy, workers) = (Vec::new(), Vec::new(), Vec::new());
                field.push(Entry {
                    name,
                    server,
                    burst,
                    fails: None,
                    master: 0,
                    workers,
                    paced,
                    busy,
                    calls: None,
                    memory: 0,
                });
            }
            Err(why) => left_out.push((peer.name, why)),
        }
    }
    (field, left_out)
}

fn tell(field: &[Entry], left_out: &[LeftOut]) {
    for (name, why) in left_out {
        println!("LEFT OUT: {name} ({why})");
    }
    for entry in field {
        if let Some(why) = &entry.fails {
            println!("LEFT OUT: {} ({why})", entry.name);
        }
    }
}

impl Entry {
    /// One burst; `None` from the first one on that was not answered in full.
    fn measure(&mut self, pace: Pace) -> Option<Cost> {
        if self.fails.is_some() {
            return None;
        }
        let Burst { requests, kept } = self.burst;
        let (master, workers) = (cpu(self.master), cpu_of_all(&self.workers));
        let outcome = run(Plan { kept, ..Plan::fresh(self.server.port, pace, requests) });
        self.fails = outcome.loss();
        let master = (cpu(self.master) - master) / requests as f64;
        let workers = (cpu_of_all(&self.workers) - workers) / requests as f64;
        let of = |part| outcome.quantile(part, |_| true).as_secs_f64() * 1e6;
        let cost = Cost { master, whole: master + workers, p50: of(0.5), p99: of(0.99) };
        self.fails.is_none().then_some(cost)
    }

    /// Of others, the process that was started serves as well, or only looks on.
    fn has_master(&self) -> bool {
        let dispatchers = [FLOOR, MASTER, NODE, "PM2", "HAProxy"];
        dispatchers.iter().any(|name| self.name.starts_with(name))
    }

    /// Of the master, for a paced connection.
    fn count_calls(&self) -> Option<f64> {
        let count = 500;
        let plan = Plan::fresh(self.server.port, Pace::Even(500.0), count);
        let calls = system_calls(self.master, || run(plan).assert_whole(&self.name))?;
        if std::env::var_os("RCLUSTER_BENCH_CALLS").is_some() {
            eprintln!("{}: {calls:?}", self.name);
        }
        Some(calls.iter().map(|(_, count)| *count as f64).sum::<f64>() / count as f64)
    }
}

fn find<'a>(field: &'a [Entry], name: &str) -> Option<&'a Entry> {
    field.iter().find(|entry| entry.name.starts_with(name))
}

type Of = fn(&Cost) -> f64;

/// Ratios of one to another, round by round.
fn ratio(one: &[Cost], other: &[Cost], of: Of, of_other: Of) -> Spread {
    Spread::of(one.iter().zip(other).map(|(one, other)| of(one) / of_other(other)))
}

fn print(field: &[Entry]) {
    let (Some(floor), Some(one)) = (find(field, FLOOR), find(field, ONE)) else {
        return println!("the floor itself could not be measured");
    };
    println!(
        "| | master, µs | × floor | whole, µs | × one process | busy: master, µs | × floor | busy: \
         whole, µs | master's system calls | master's RSS, MB | p50 / p99, µs |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for entry in field.iter().filter(|entry| entry.fails.is_none()) {
        let has_master = entry.has_master();
        let master = |costs: &[Cost]| Spread::of(costs.iter().map(|cost| cost.master)).median;
        let whole = |costs: &[Cost]| Spread::of(costs.iter().map(|cost| cost.whole)).median;
        let (paced, busy) = (&entry.paced, &entry.busy);
        let beside = |costs: &[Cost], floor: &[Cost]| match has_master {
            true => format!(
                "{:.1} | {}",
                master(costs),
                ratio(costs, floor, |cost| cost.master, |cost| cost.master)
            ),
            false => "- | -".to_owned(),
        };
        println!(
            "| {} | {} | {:.1} | {} | {} | {:.1} | {} | {:.1} | {:.0} / {:.0} |",
            entry.name,
            beside(paced, &floor.paced),
            whole(paced),
            ratio(paced, &one.paced, |cost| cost.whole, |cost| cost.whole),
            beside(busy, &floor.busy),
            whole(busy),
            entry.calls.filter(|_| has_master).map_or("-".to_owned(), |it| format!("{it:.1}")),
            entry.memory as f64 / 1024.0,
            Spread::of(paced.iter().map(|cost| cost.p50)).median,
            Spread::of(paced.iter().map(|cost| cost.p99)).median,
        );
    }
}

/// The promises, and whether they are kept.
fn targets(field: &[Entry]) {
    let master: Of = |cost| cost.master;
    let whole: Of = |cost| cost.whole;
    let promises = [
        ("master's CPU beside the floor's", MASTER, FLOOR, master, 1.10),
        ("master's CPU beside that of Node's primary", MASTER, NODE, master, 0.4),
        ("whole cost beside shared accept", WORKERS, SHARED, whole, 1.05),
    ];
    for (what, one, other, of, limit) in promises {
        let (Some(one), Some(other)) = (find(field, one), find(field, other)) else { continue };
        if one.paced.is_empty() || other.paced.is_empty() {
            continue;
        }
        for (pace, one, other) in
            [("paced", &one.paced, &other.paced), ("busy", &one.busy, &other.busy)]
        {
            let ratio = ratio(one, other, of, of);
            let verdict = if ratio.median <= limit { "kept" } else { "MISSED" };
            println!("{what}, {pace}: {ratio}, promised at most {limit:.2}: {verdict}");
        }
    }
}
