//! What a connection costs: CPU time of master and workers, each beside the floor's in the same round.

use super::clients::{Pace, Plan, run};
use super::field::{FLOOR, MASTER, NODE, ONE, SHARED, WORKERS, all, floor_itself, variants};
use super::meter::{Spread, cpu, cpu_of_all, status, system_calls};
use crate::peers::roster::Peer;
use crate::peers::server::Server;

/// Connections of one burst.
const BURST: usize = 300;
/// Per second, where they are paced: with the clients beside, two CPUs are half idle.
const RATE: f64 = 3000.0;
/// At once, where they are not.
const AT_ONCE: usize = 24;

/// A server and its figures.
struct Entry {
    name: String,
    server: Server,
    master: u32,
    workers: Vec<u32>,
    paced: Vec<Cost>,
    busy: Vec<Cost>,
    calls: Option<f64>,
    memory: u64,
}

/// Who does not run, and why.
type LeftOut = (&'static str, String);

/// µs of CPU for a connection, and what clients waited.
#[derive(Clone, Copy, Default)]
struct Cost {
    master: f64,
    whole: f64,
    p50: f64,
    p99: f64,
}

pub fn table(rounds: usize, only: Option<&str>, peers: &std::path::Path) {
    // Ratios need these.
    let is_base = |peer: &Peer| [FLOOR, ONE].contains(&peer.name);
    let is_meant = |peer: &Peer| only.is_none_or(|only| is_base(peer) || peer.name.contains(only));
    let (mut field, left_out) = start(all().into_iter().filter(is_meant).collect(), peers);
    measure(&mut field, rounds);
    for entry in &mut field {
        entry.memory = status(entry.master, "VmRSS");
        entry.calls = entry.count_calls();
    }
    print(&field);
    println!(
        "\n2 workers each; one request per connection; paced: {RATE:.0} connections a second, open \
         loop; busy: {AT_ONCE} at once, closed loop; {rounds} rounds in turns of {BURST} connections; \
         median (least–most). × floor and × one process are ratios within a round."
    );
    tell(&left_out);
    targets(&field);
}

/// What was tried at the floor, beside the floor as it is.
pub fn tried(rounds: usize, peers: &std::path::Path) {
    let wanted = std::iter::once(floor_itself()).chain(variants()).collect();
    let (mut field, left_out) = start(wanted, peers);
    measure(&mut field, rounds);
    println!(
        "| tried | paced: master, µs | × floor | whole, × floor | busy: master, × floor | whole, × floor |"
    );
    println!("|---|---|---|---|---|---|");
    let Some((floor, others)) = field.split_first() else { return };
    for entry in others {
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
    for (name, why) in left_out {
        println!("| {name} | {why} | | | | |");
    }
}

/// Everybody in turns.
fn measure(field: &mut [Entry], rounds: usize) {
    for entry in &mut *field {
        // Warm, and the workers are all there.
        entry.burst(Pace::Busy(AT_ONCE));
        let (master, workers) = entry.server.family();
        (entry.master, entry.workers) = (master, workers);
        entry.burst(Pace::Even(RATE));
    }
    for round in 0..rounds {
        for place in 0..field.len() {
            // Who begins takes turns, too.
            let which = (place + round) % field.len();
            let cost = field[which].burst(Pace::Even(RATE));
            field[which].paced.push(cost);
            let cost = field[which].burst(Pace::Busy(AT_ONCE));
            field[which].busy.push(cost);
        }
    }
}

/// Those who run; and those who do not, with the reasons.
fn start(wanted: Vec<Peer>, peers: &std::path::Path) -> (Vec<Entry>, Vec<LeftOut>) {
    let (mut field, mut left_out) = (Vec::new(), Vec::new());
    for peer in wanted {
        match Server::start(&peer, peers) {
            Ok(server) => {
                let name = format!("{} {}", peer.name, server.version).trim().to_owned();
                let (paced, busy, workers) = (Vec::new(), Vec::new(), Vec::new());
                field.push(Entry {
                    name,
                    server,
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

fn tell(left_out: &[LeftOut]) {
    for (name, why) in left_out {
        println!("LEFT OUT: {name} ({why})");
    }
}

impl Entry {
    fn burst(&mut self, pace: Pace) -> Cost {
        let (master, workers) = (cpu(self.master), cpu_of_all(&self.workers));
        let outcome = run(Plan::fresh(self.server.port, pace, BURST));
        outcome.assert_whole(&self.name);
        let master = (cpu(self.master) - master) / BURST as f64;
        let workers = (cpu_of_all(&self.workers) - workers) / BURST as f64;
        let of = |part| outcome.quantile(part, |_| true).as_secs_f64() * 1e6;
        Cost { master, whole: master + workers, p50: of(0.5), p99: of(0.99) }
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
    for entry in field {
        // Of the others, the process that was started serves as well, or only looks on.
        let dispatchers = [FLOOR, MASTER, NODE, "PM2", "HAProxy"];
        let has_master = dispatchers.iter().any(|name| entry.name.starts_with(name));
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
        for (pace, one, other) in
            [("paced", &one.paced, &other.paced), ("busy", &one.busy, &other.busy)]
        {
            let ratio = ratio(one, other, of, of);
            let verdict = if ratio.median <= limit { "kept" } else { "MISSED" };
            println!("{what}, {pace}: {ratio}, promised at most {limit:.2}: {verdict}");
        }
    }
}
