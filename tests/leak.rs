//! Nothing grows: descriptors and memory of the master after many reloads, crashes and failures.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use support::{Cluster, descriptors, descriptors_are_back, memory, pool, signal, web};

/// What the master may have more at the end than at the beginning, KiB.
const MARGIN: u64 = 1024;

/// How many reloads: 100, or `RCLUSTER_TEST_RELOADS`.
fn reloads() -> usize {
    let count = std::env::var("RCLUSTER_TEST_RELOADS").ok().and_then(|text| text.parse().ok());
    count.unwrap_or(100)
}

/// Repeats `step`, which is given its number, and compares the master after the first `settled`
/// times with the master after the last.
fn compare(
    cluster: &Cluster,
    settled: usize,
    times: usize,
    what: &str,
    mut step: impl FnMut(usize),
) {
    (1..=settled).for_each(&mut step);
    let (open, resident) = (descriptors(cluster.pid()), memory(cluster.pid()));
    (settled + 1..=times).for_each(step);
    descriptors_are_back(cluster.pid(), open);
    let resident_now = memory(cluster.pid());
    println!("{times} {what}: {open} descriptors, {resident} KiB then {resident_now} KiB");
    assert!(resident_now <= resident + MARGIN, "{resident} KiB became {resident_now} KiB");
}

#[test]
fn reloads_leave_nothing_behind() {
    let cluster = Cluster::serve(&web(""));
    compare(&cluster, 10, reloads(), "reloads", |round| {
        cluster.reload().unwrap();
        cluster.wait_for_nth(" left", 2 * round);
    });
    assert!(cluster.get("/pid").is_ok());
}

#[test]
fn crashes_leave_nothing_behind() {
    // Many workers, so that no slot's back-off grows long.
    const WORKERS: usize = 40;
    let config = web("restart-limit = 1000").replace("workers = 2", "workers = 40");
    let cluster = Cluster::serve(&config);
    compare(&cluster, 1, 6, "times forty crashes", |round| {
        cluster.pids("web").into_iter().for_each(|pid| signal(pid, "KILL"));
        cluster.wait_for_nth("lost: was killed by SIGKILL", WORKERS * round);
        cluster.wait_for_nth("is ready", WORKERS * (1 + round));
    });
    assert!(cluster.get("/pid").is_ok());
}

#[test]
fn failed_reloads_leave_nothing_behind() {
    let cluster = Cluster::serve(&web(""));
    // A new listener each time, which must be closed again; and no program behind it.
    let bad = pool("bad", "\"/bin/false\"", "\"{folder}/bad.sock\"", "");
    cluster.configure(&(web("") + &bad));
    compare(&cluster, 10, 200, "failed reloads", |_| {
        cluster.reload().unwrap_err();
    });
    assert!(!cluster.path("bad.sock").exists());
    assert!(cluster.get("/pid").is_ok());
}
