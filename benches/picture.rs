//! Draws a reload under load: who answered, and how many requests failed, fifth of a second by fifth.
//!
//! `cargo bench --bench picture` prints the picture that the README shows.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measuring tool"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use support::load::exchange;
use support::{Cluster, web};

const RATE: u32 = 600;
const LENGTH: Duration = Duration::from_millis(3000);
const STEP: Duration = Duration::from_millis(200);
const RELOADS: [Duration; 2] = [Duration::from_millis(900), Duration::from_millis(1900)];
/// Requests that one character stands for.
const SCALE: u64 = 4;

fn main() {
    // `cargo bench` and `cargo test --benches` say which; a test run only proves that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return println!("test result: ok. 0 passed; 0 failed; 0 ignored;");
    }
    let cluster = Cluster::serve(&web(""));
    let generations = Mutex::new(generations(&cluster));
    let answers = Mutex::new(BTreeMap::<(u64, u64), u64>::new());
    let failed = AtomicU64::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..RATE / 10 {
            let (cluster, generations, answers, failed) =
                (&cluster, &generations, &answers, &failed);
            scope.spawn(move || {
                let mut due = begin + Duration::from_secs(1) * client / RATE;
                while due < begin + LENGTH {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    let request = "GET /pid HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
                    let step = begin.elapsed().as_millis() / STEP.as_millis();
                    match exchange(cluster.port, request) {
                        Ok(pid) => {
                            let mut known = generations.lock().unwrap();
                            if !known.contains_key(&pid) {
                                known.extend(self::generations(cluster));
                            }
                            let generation = known.get(&pid).copied().unwrap_or(0);
                            let key = (u64::try_from(step).unwrap(), generation);
                            *answers.lock().unwrap().entry(key).or_default() += 1;
                        }
                        Err(_) => drop(failed.fetch_add(1, Relaxed)),
                    }
                    due += Duration::from_millis(100);
                }
            });
        }
        for at in RELOADS {
            std::thread::sleep((begin + at).saturating_duration_since(Instant::now()));
            cluster.reload().unwrap();
            generations.lock().unwrap().extend(self::generations(&cluster));
        }
    });
    draw(&answers.into_inner().unwrap(), failed.into_inner());
}

/// Workers by process id, with their generation.
fn generations(cluster: &Cluster) -> BTreeMap<String, u64> {
    let pools = cluster.status().pools;
    let workers = pools.into_iter().flat_map(|pool| pool.workers);
    workers.map(|worker| (worker.pid.to_string(), worker.generation)).collect()
}

fn draw(answers: &BTreeMap<(u64, u64), u64>, failed: u64) {
    let answered: u64 = answers.values().sum();
    for step in 0..u64::try_from(LENGTH.as_millis() / STEP.as_millis()).unwrap() {
        let of = |generation| answers.get(&(step, generation)).copied().unwrap_or(0);
        let bar: String = [(1, '░'), (2, '▒'), (3, '█')]
            .into_iter()
            .map(|(generation, mark)| mark.to_string().repeat((of(generation) / SCALE) as usize))
            .collect();
        let at = STEP * u32::try_from(step).unwrap();
        let note = if RELOADS.iter().any(|&reload| reload >= at && reload < at + STEP) {
            "  ← rcluster reload"
        } else {
            ""
        };
        println!("{:>4.1} s  {bar}{note}", at.as_secs_f64());
    }
    println!(
        "\n{RATE} new connections a second, two workers: {answered} answered, {failed} failed\n\
         answered by generation 1 ░  2 ▒  3 █"
    );
}
