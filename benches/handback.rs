//! Measures a reload of many idle connections: how long until the last has gone over, and how long
//! one of them has no owner.
//!
//! `cargo bench --bench handback` prints both for 8 000, or RCLUSTER_BENCH_CONNECTIONS, over two
//! workers. Who has no owner is asked from outside: while the reload goes on, connections send a
//! request at random moments, and the longest answer is the longest time without an owner, and more.
//! The same requests without a reload say how much more.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measuring tool"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use support::idle::{Heard, Idle};
use support::{Cluster, pool};

const ROUNDS: usize = 5;

fn main() {
    // `cargo bench` and `cargo test --benches` say which; a test run only proves that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return println!("test result: ok. 0 passed; 0 failed; 0 ignored;");
    }
    let count = std::env::var("RCLUSTER_BENCH_CONNECTIONS").ok();
    let count: usize = count.map_or(8000, |text| text.parse().unwrap());
    let own = std::env::current_exe().unwrap();
    let mixed = own.parent().unwrap().parent().unwrap().join("examples/mixed");
    assert!(mixed.exists(), "first: cargo build --release --all-features --example mixed");
    let command = format!("\"{}\", \"serve\"", mixed.display());
    let cluster = Cluster::serve(&pool("web", &command, "\"0.0.0.0:{port}\"", ""));
    let mut idle = Idle::connect(cluster.port, count);
    say("first request of each", &idle.ask(1, Duration::ZERO));
    let mut reloads = 0;
    let mut during = Duration::ZERO;
    for _ in 0..ROUNDS {
        let (told, gone) = reload(&cluster, &mut reloads);
        during = during.max(gone);
        println!(
            "{count} idle connections: reload answered after {told:.0?}, all gone over {gone:.0?}"
        );
    }
    for (nth, who) in [(10, "one in ten asks"), (1, "each asks")] {
        say(&format!("{who} within {during:.0?}, no reload"), &idle.ask(nth, during));
        for _ in 0..ROUNDS {
            let (heard, gone) = std::thread::scope(|scope| {
                let asking = scope.spawn(|| idle.ask(nth, during));
                let (_, gone) = reload(&cluster, &mut reloads);
                (asking.join().unwrap(), gone)
            });
            say(&format!("{who} within {during:.0?}, a reload of {gone:.0?}"), &heard);
        }
    }
    let pool = cluster.status().pools.remove(0);
    println!("{reloads} reloads: {} handed back, {} cut", pool.handed_back, pool.cut);
    assert_eq!((pool.accepted, pool.cut), (count as u64, 0), "{pool:?}");
}

/// From the order to its answer, and until the last of the old workers has left.
fn reload(cluster: &Cluster, reloads: &mut usize) -> (Duration, Duration) {
    let begin = Instant::now();
    cluster.reload().unwrap();
    let told = begin.elapsed();
    *reloads += 1;
    cluster.wait_for_nth(" left", 2 * *reloads);
    (told, begin.elapsed())
}

fn say(what: &str, heard: &Heard) {
    assert_eq!(heard.failed, Vec::<String>::new());
    let (median, longest) = (heard.median(), heard.longest());
    println!("{what}: {} answered, median {median:.1?}, longest {longest:.1?}", heard.answered);
}
