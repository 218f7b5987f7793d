//! A reload replaces every worker, and no client notices.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::time::{Duration, Instant};

use support::load::Load;
use support::{Cluster, PATIENCE, load_time, pool, web};

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

/// A replaced worker waits for the master's word that everything which it said was read; then it ends
/// by itself. Nobody has to send it a signal.
#[test]
fn a_replaced_worker_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let statuses = folder.path().join("statuses");
    // The shell catches the signal, so that it lives to tell how the worker ended.
    let script = format!(
        "trap : TERM; {rcluster} demo-worker http & \
         while :; do wait $!; status=$?; kill -0 $! 2>/dev/null || break; done; \
         echo $status >>{}",
        statuses.display(),
        rcluster = support::RCLUSTER,
    );
    let command = format!("\"/bin/sh\", \"-c\", \"\"\"{script}\"\"\"");
    let cluster = Cluster::serve(&pool("web", &command, "\"127.0.0.1:{port}\"", ""));
    cluster.reload().unwrap();
    let until = Instant::now() + PATIENCE;
    let told = || std::fs::read_to_string(&statuses).unwrap_or_default();
    while told().lines().count() < 2 {
        assert!(Instant::now() < until, "{:?}", told());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(told(), "0\n0\n", "143 is SIGTERM");
}

#[test]
fn slow_requests_are_answered_by_the_worker_that_took_them() {
    let cluster = Cluster::serve(&web(""));
    let load = Load::paced(cluster.port, 600, "/sleep/{ms}");
    let (tally, reloads) = reload_under(load, &cluster);
    println!("slow: {} answered, {} reloads, longest {:?}", tally.answered, reloads, tally.longest);
    assert_eq!(tally.failed, Vec::<String>::new());
}
