//! A reload replaces every worker, and no client notices.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::time::{Duration, Instant};

use support::load::Load;
use support::{Cluster, load_time, web};

/// SIGUSR1 every two seconds (or as often as the time allows) under new connections.
fn reload_under(load: Load, cluster: &Cluster) -> (support::load::Tally, u32) {
    let end = Instant::now() + load_time();
    let mut reloads = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_secs(2).min(load_time() / 3));
        cluster.signal("USR1");
        reloads += 1;
        cluster.wait_for(&format!("generation {} serves", reloads + 1));
    }
    (load.finish(), reloads)
}

#[test]
fn no_request_fails_while_workers_are_replaced() {
    let cluster = Cluster::serve(&web(""));
    let load = Load::paced(cluster.port, 600, "/pid");
    let (tally, reloads) = reload_under(load, &cluster);
    println!("fast: {} answered, {} reloads, longest {:?}", tally.answered, reloads, tally.longest);
    assert_eq!(tally.failed, Vec::<String>::new());
    assert!(tally.by_pid.len() as u32 >= 2 * reloads, "all generations answered");
}

#[test]
fn slow_requests_are_answered_by_the_worker_that_took_them() {
    let cluster = Cluster::serve(&web(""));
    let load = Load::paced(cluster.port, 600, "/sleep/{ms}");
    let (tally, reloads) = reload_under(load, &cluster);
    println!("slow: {} answered, {} reloads, longest {:?}", tally.answered, reloads, tally.longest);
    assert_eq!(tally.failed, Vec::<String>::new());
}
