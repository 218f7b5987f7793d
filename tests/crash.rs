//! What a worker's death costs: only what it was answering.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::time::{Duration, Instant};

use support::load::Load;
use support::{Cluster, load_time, signal, web};

#[test]
fn a_killed_worker_costs_only_what_it_had_taken() {
    // Twenty kills in a minute are beyond what a service may lose by default.
    let cluster = Cluster::serve(&web("restart-limit = 100"));
    let load = Load::closed(cluster.port, 64, "/sleep/5");
    let end = Instant::now() + load_time();
    let mut kills = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_secs(1).min(load_time() / 4));
        let victim = cluster.pids("web")[kills % 2];
        signal(victim, "KILL");
        kills += 1;
        cluster.wait_for_nth("lost: was killed by SIGKILL", kills);
        cluster.wait_for_nth("is ready", kills + 2);
    }
    let tally = load.finish();
    let pool = cluster.status().pools.remove(0);
    println!(
        "{} answered, {kills} kills, {} failed, {} cut by the scoreboard, {} given to others, \
         longest {:?}",
        tally.answered,
        tally.failed.len(),
        pool.cut,
        pool.redispatched,
        tally.longest
    );
    assert!(tally.failed.len() as u64 <= pool.cut, "{:?}; cut: {}", tally.failed, pool.cut);
    assert!(pool.cut <= 64 * kills as u64);
    let sum = pool.finished + pool.in_hand + pool.held + pool.refused + pool.cut;
    assert_eq!(pool.accepted, sum, "the accounts balance: {pool:?}");
}

#[test]
fn what_a_dead_worker_never_took_is_answered_by_others() {
    let cluster = Cluster::serve(&web("restart-limit = 100\nbalance = \"round-robin\""));
    let victim = cluster.pids("web")[0];
    // A stopped worker takes nothing: its half waits in its channel.
    signal(victim, "STOP");
    let load = Load::closed(cluster.port, 20, "/pid");
    while load.answered.load(std::sync::atomic::Ordering::Relaxed) < 20 {
        std::thread::yield_now();
    }
    signal(victim, "KILL");
    let line = cluster.wait_for("lost: was killed by SIGKILL");
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new(), "{line}");
    // On a slow machine the master may have taken it back from the one that stood still before.
    assert!(cluster.status().pools[0].redispatched > 0, "{line}");
}

#[test]
fn a_newcomer_gets_its_fair_share_within_a_second() {
    let cluster = Cluster::serve(&web("restart-limit = 100"));
    let before = Load::paced(cluster.port, 300, "/sleep/2");
    while before.answered.load(std::sync::atomic::Ordering::Relaxed) < 300 {
        std::thread::yield_now();
    }
    let victim = cluster.pids("web")[0];
    signal(victim, "KILL");
    cluster.wait_for("lost: was killed by SIGKILL");
    cluster.wait_for_nth("is ready", 3);
    let _ = before.finish();
    // The first second after it is ready.
    let load = Load::paced(cluster.port, 300, "/pid");
    while load.answered.load(std::sync::atomic::Ordering::Relaxed) < 300 {
        std::thread::yield_now();
    }
    let tally = load.finish();
    let newcomer = cluster.pids("web")[0].to_string();
    let share = *tally.by_pid.get(&newcomer).unwrap_or(&0) as f64 / tally.answered as f64;
    println!("the newcomer's share in its first second: {share:.2} of {}", tally.answered);
    // A machine that lets one of them wait leaves it less; one that is starved or flooded gets nothing or all.
    assert!((0.1..0.9).contains(&share), "{share}: {:?}", tally.by_pid);
}

#[test]
fn a_stopped_worker_is_relieved_before_the_watchdog_strikes_and_replaced_once() {
    // Round robin: whoever is stopped gets a connection more, however many he has in hand.
    let cluster = Cluster::serve(&web("watchdog = \"6s\"\nbalance = \"round-robin\""));
    let load = Load::closed(cluster.port, 16, "/pid");
    while load.answered.load(std::sync::atomic::Ordering::Relaxed) < 50 {
        std::thread::yield_now();
    }
    let victim = cluster.pids("web")[0];
    signal(victim, "STOP");
    while cluster.status().pools[0].redispatched == 0 {}
    assert_eq!(cluster.count("stalled"), 0, "what it had not taken went to others long before");
    let line = cluster.wait_for("stalled: it took nothing");
    assert!(line.contains("state T (stopped)"), "{line}");
    cluster.wait_for_nth("is ready", 3);
    let tally = load.finish();
    println!(
        "{} answered, {} failed, longest {:?}",
        tally.answered,
        tally.failed.len(),
        tally.longest
    );
    let pool = cluster.status().pools.remove(0);
    assert!(tally.failed.len() as u64 <= pool.cut, "{:?}; cut: {}", tally.failed, pool.cut);
    assert_eq!(cluster.count(" started"), 3, "replaced once");
}

#[test]
fn an_idle_worker_and_a_long_request_are_no_stall() {
    let cluster = Cluster::serve(&web("watchdog = \"2s\""));
    assert!(cluster.get("/sleep/5000").is_ok());
    assert_eq!(cluster.count("stalled"), 0);
    assert_eq!(cluster.count("lost"), 0);
}

#[test]
fn a_burst_fills_the_windows_and_everyone_is_answered_in_the_end() {
    let cluster = Cluster::serve(&web("max-connections = 16"));
    let request = "GET /sleep/20 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    // All connect before the first reads its answer. 5 000 by RCLUSTER_TEST_BURST.
    let burst = std::env::var("RCLUSTER_TEST_BURST").ok().and_then(|text| text.parse().ok());
    let begin = Instant::now();
    let clients: Vec<_> = (0..burst.unwrap_or(1000))
        .map(|_| {
            use std::io::Write;
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    let pool = &cluster.status().pools[0];
    assert!(pool.in_hand <= 2 * 16, "the rest waits in the kernel's queue: {}", pool.in_hand);
    let count = clients.len();
    for mut stream in clients {
        use std::io::Read;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    println!("a burst of {count}: all answered after {:?}", begin.elapsed());
}

#[test]
fn a_worker_is_replaced_after_its_number_of_requests() {
    let cluster = Cluster::serve(&web("max-requests = 20"));
    let load = Load::closed(cluster.port, 4, "/pid");
    cluster.wait_for_nth("drains: its successor serves", 3);
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    assert_eq!(cluster.count("rollout"), 1, "the boot is the only rollout");
}
