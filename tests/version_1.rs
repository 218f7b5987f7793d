//! Workers of another age than the master: a frozen one of version 1, and one from the future.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

#[path = "workers/frozen_v1.rs"]
mod frozen_v1;
mod support;

use std::sync::atomic::Ordering::SeqCst;

use frozen_v1::{Channel, READY};
use serde_json::json;
use support::load::Load;
use support::{Cluster, PATIENCE, load_time, pool, wait_gone};

/// No test: the worker, when the master runs this executable.
#[test]
fn as_worker() {
    let Some(channel) = Channel::from_env() else { return };
    match std::env::var("TEST_WORKER").as_deref() {
        Ok("future") => from_the_future(channel),
        _ => {
            channel.say_ready(16);
            channel.serve();
        }
    }
    std::process::exit(0);
}

/// What a worker of version 2 might do: more fields, other messages, the known ones in between.
fn from_the_future(channel: Channel) {
    channel.say(&[2, 200, 0, 0, 77, 2, 1, 2]);
    let unknown_field_first = [2, READY, 9, 9, 77, 3, 1, 2, 3, 1, 1, 16, 2, 2, 0, 1, 78, 0];
    channel.say(&unknown_field_first);
    for kind in 100..200 {
        channel.say(&[2, kind, 0, 0, 1, 1, 1]);
    }
    channel.say(&[2, 3, 1, 1, 79, 1, 0]);
    channel.serve();
}

fn web(extra: &str) -> String {
    pool("web", &frozen_v1::command(), "\"127.0.0.1:{port}\"", extra)
}

#[test]
fn a_worker_of_version_1_serves_and_is_reloaded_without_a_loss() {
    let cluster = Cluster::serve(&web(""));
    let load = Load::closed(cluster.port, 8, "/sleep/5");
    for generation in 2..=4 {
        let enough = load.answered.load(SeqCst) + 50;
        while load.answered.load(SeqCst) < enough {
            std::thread::yield_now();
        }
        let old = cluster.pids("web");
        let outcome = cluster.reload().unwrap();
        assert!(outcome.starts_with(&format!("reloaded: generation {generation} serves")));
        for pid in old {
            assert!(wait_gone(pid, PATIENCE), "it drains and leaves");
        }
    }
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    assert!(tally.by_pid.len() >= 8, "all generations answered: {:?}", tally.by_pid);
    assert_eq!(cluster.count("lost"), 0);
    assert_eq!(cluster.count("ignored"), 0);
    assert_eq!(cluster.count("connections cut"), 0);
    let pool = cluster.status().pools.remove(0);
    assert_eq!(pool.accepted, pool.finished + pool.in_hand + pool.held + pool.refused, "{pool:?}");
}

#[test]
fn a_worker_of_version_1_answers_what_it_has_before_it_leaves() {
    let cluster = Cluster::serve(&web(""));
    let port = cluster.port;
    let slow: Vec<_> =
        (0..6).map(|_| std::thread::spawn(move || support::get(port, "/sleep/4000"))).collect();
    while cluster.status().pools[0].in_hand < 6 {}
    cluster.reload().unwrap();
    // It is not asked what it has: the question would stay in its queue.
    let draining = cluster.call("Draining", json!({})).parameters;
    let workers = draining["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2, "{draining}");
    for worker in workers {
        assert_eq!(worker["silence"], "its worker library is older than this question");
        assert_eq!((&worker["inHand"], &worker["untold"]), (&json!(3), &json!(3)));
        assert_eq!(worker["connections"], json!([]));
    }
    for client in slow {
        assert!(client.join().unwrap().is_ok());
    }
    cluster.wait_for_nth(" left", 2);
    assert_eq!(cluster.count("has not drained"), 0, "DRAINED and the end are understood");
}

#[test]
fn a_crash_of_a_version_1_worker_costs_only_what_it_had_taken() {
    let cluster = Cluster::serve(&web("restart-limit = 1000"));
    let load = Load::closed(cluster.port, 16, "/sleep/2");
    let end = std::time::Instant::now() + load_time();
    let mut crashes = 0;
    while std::time::Instant::now() < end {
        assert!(cluster.get("/die").is_err());
        crashes += 1;
        cluster.wait_for_nth("lost: was killed by SIGABRT", crashes);
        cluster.wait_for_nth("is ready", crashes + 2);
    }
    let tally = load.finish();
    let pool = cluster.status().pools.remove(0);
    println!("{} answered, {crashes} crashes, {} cut", tally.answered, pool.cut);
    assert!(tally.failed.len() as u64 + crashes as u64 <= pool.cut, "{:?}", tally.failed);
    let sum = pool.finished + pool.in_hand + pool.held + pool.refused + pool.cut;
    assert_eq!(pool.accepted, sum, "{pool:?}");
}

#[test]
fn its_limit_holds_and_its_room_is_heard() {
    // Sixteen each, as its READY says: the rest waits in the kernel's queue until ROOM is said.
    let cluster = Cluster::serve(&web(""));
    let port = cluster.port;
    let clients: Vec<_> =
        (0..100).map(|_| std::thread::spawn(move || support::get(port, "/sleep/300"))).collect();
    let mut most = 0;
    while clients.iter().any(|client| !client.is_finished()) {
        most = most.max(cluster.status().pools[0].in_hand);
    }
    assert!(clients.into_iter().all(|client| client.join().unwrap().is_ok()));
    assert!((17..=32).contains(&most), "{most} at once");
}

#[test]
fn a_version_1_worker_goes_when_the_master_is_gone() {
    let mut cluster = Cluster::serve(&web(""));
    let workers = cluster.pids("web");
    support::signal(cluster.pid(), "KILL");
    cluster.wait_end();
    assert!(workers.into_iter().all(|pid| wait_gone(pid, PATIENCE)));
}

#[test]
fn a_worker_from_the_future_serves_and_is_complained_about_once() {
    let cluster = Cluster::serve(&web("environment = { TEST_WORKER = \"future\" }"));
    for _ in 0..20 {
        assert!(cluster.get("/pid").is_ok());
    }
    cluster.reload().unwrap();
    assert!(cluster.get("/pid").is_ok());
    cluster.wait_for_nth(" left", 2);
    assert_eq!(cluster.count("of unknown type 200"), 4, "once for each of four workers");
    assert_eq!(cluster.count("ignored"), 4);
    assert_eq!(cluster.count("lost"), 0);
}

/// It cannot be told of another master: it finishes what it has when its own is killed, as ever.
#[test]
fn a_worker_of_version_1_drains_when_its_master_is_killed() {
    let mut cluster = Cluster::serve(&web(""));
    let workers = cluster.pids("web");
    cluster.kill_master();
    for pid in workers {
        assert!(wait_gone(pid, support::PATIENCE), "{pid} stays");
    }
    cluster.start_again();
    cluster.wait_for_nth("is ready", 4);
}
