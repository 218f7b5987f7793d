//! How long the fast requests wait when some are slow: real workers that answer one at a time.

use super::clients::{Pace, Plan, fraction, run};
use super::field::{floor, rcluster};
use super::meter::Spread;
use crate::peers::roster::Peer;
use crate::peers::server::Server;

const WORKERS: u32 = 16;
/// Half of what the workers can do.
const RATE: f64 = 2000.0;
const COUNT: usize = 4000;

/// 2 ms, or 200 ms for one in a hundred.
fn work(request: usize) -> u32 {
    if is_slow(request) { 2000 } else { 20 }
}

/// By lot, so that no turn of anybody's falls in with it.
fn is_slow(request: usize) -> bool {
    fraction(&mut (request as u64)) < 0.01
}

const fn peer(
    name: &'static str,
    set_up: fn(&crate::peers::server::Site<'_>) -> Result<crate::peers::server::Setup, String>,
) -> Peer {
    Peer { name, keeps_connections: false, set_up }
}

/// Those with a limit of one have the rest wait with the master; the others queue at their workers.
const FIELD: [Peer; 5] = [
    peer("rcluster, workers that announce one at a time", |site| rcluster(site, "", WORKERS, 1)),
    peer("rcluster, least connections", |site| rcluster(site, "", WORKERS, 1000)),
    peer("rcluster, round robin", |site| {
        rcluster(site, "balance = \"round-robin\"", WORKERS, 1000)
    }),
    peer("SO_REUSEPORT", |site| floor(site, "reuseport", WORKERS as u16)),
    peer("shared accept", |site| floor(site, "shared", WORKERS as u16)),
];

/// Who it is, and what the median and the 99th part of 100 were in each round, ms.
type Entry = (&'static str, Server, Vec<(f64, f64)>);

pub fn table(rounds: usize, peers: &std::path::Path) {
    let mut field: Vec<Entry> = Vec::new();
    for peer in &FIELD {
        match Server::start(peer, peers) {
            Ok(server) => field.push((peer.name, server, Vec::new())),
            Err(why) => println!("LEFT OUT: {} ({why})", peer.name),
        }
    }
    for round in 0..rounds + 1 {
        for (name, server, waits) in &mut field {
            let pace = Pace::Random(RATE, round as u64);
            let outcome = run(Plan { work, ..Plan::fresh(server.port, pace, COUNT) });
            outcome.assert_whole(name);
            let of = |part| outcome.quantile(part, |it| !is_slow(it)).as_secs_f64() * 1e3;
            // The first one warms up.
            if round > 0 {
                waits.push((of(0.5), of(0.99)));
            }
        }
    }
    println!(
        "| | fast requests, p50, ms | p99, ms | p99 beside `SO_REUSEPORT` | beside round robin |"
    );
    println!("|---|---|---|---|---|");
    let find = |name: &str| field.iter().find(|(it, ..)| *it == name).map(|(.., waits)| waits);
    for (name, _, waits) in &field {
        let beside = |other: &str| match find(other) {
            Some(other) => {
                Spread::of(waits.iter().zip(other).map(|(one, other)| one.1 / other.1)).to_string()
            }
            None => "-".to_owned(),
        };
        let (p50, p99) =
            (Spread::of(waits.iter().map(|it| it.0)), Spread::of(waits.iter().map(|it| it.1)));
        println!(
            "| {name} | {:.1} | {:.1} ({:.1}–{:.1}) | {} | {} |",
            p50.median,
            p99.median,
            p99.least,
            p99.most,
            beside("SO_REUSEPORT"),
            beside("rcluster, round robin")
        );
    }
    println!(
        "\n{WORKERS} workers that answer one request at a time; {RATE:.0} requests a second at random, each on a \
         connection of its own, of 2 ms, 1 % of 200 ms: half of what the workers can do; {rounds} rounds in turns \
         of {COUNT}, the same arrivals for all; median (least–most)."
    );
}
