//! Nobody who is connected notices a reload: connections are handed from the old workers to the new
//! ones, whatever they are in the middle of.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail loudly")]

mod support;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rcluster::wire::control::{Pool, Status};
use support::keep_alive::{Clients, Seen};
use support::load::Load;
use support::{Cluster, PATIENCE, load_time, pool};

/// From one reload to the next.
const EVERY: Duration = Duration::from_millis(400);

/// A service of two workers of the tests' own. `None`: there is no such worker.
fn serve(mode: &str) -> Option<Cluster> {
    let own = std::env::current_exe().unwrap();
    let mixed = own.parent().unwrap().parent().unwrap().join("examples/mixed");
    if !mixed.exists() {
        println!("LEFT OUT: the example mixed is not built; `cargo test` without --test does it");
        return None;
    }
    let command = format!("\"{}\", \"{mode}\"", mixed.display());
    // Not given up for being killed.
    let extra = "restart-limit = 1000";
    Some(Cluster::serve(&pool("web", &command, "\"127.0.0.1:{port}\"", extra)))
}

/// Reloads while clients stay connected; what they saw. `None`: there is no such worker.
fn reloads(mode: &str) -> Option<Seen> {
    // 1 500 by RCLUSTER_TEST_CONNECTIONS.
    let clients = std::env::var("RCLUSTER_TEST_CONNECTIONS").ok();
    let clients: u64 = clients.and_then(|text| text.parse().ok()).unwrap_or(100);
    let cluster = serve(mode)?;
    let connected = Clients::connect(cluster.port, clients);
    connected.wait(2 * clients);
    let (end, mut count) = (Instant::now() + load_time(), 0);
    while Instant::now() < end {
        let next = Instant::now() + EVERY;
        cluster.reload().unwrap();
        count += 1;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    connected.wait(clients);
    let accounts = cluster.status().pools.remove(0);
    let seen = connected.finish();
    println!(
        "{mode}, {clients} clients, {count} reloads: {} answered, {} failed, {} closed, {} told to \
         close; {} handed back, {} cut",
        seen.answered,
        seen.failed.len(),
        seen.closed,
        seen.announced,
        accounts.handed_back,
        accounts.cut
    );
    assert!(accounts.handed_back > 0, "{accounts:?}");
    assert_eq!(accounts.cut, 0, "{}", cluster.log().join("\n"));
    Some(seen)
}

fn nobody_notices(seen: Option<Seen>) {
    let Some(seen) = seen else { return };
    assert_eq!(seen.failed, Vec::<String>::new());
    assert_eq!((seen.closed, seen.announced), (0, 0));
}

#[test]
fn nobody_notices_a_reload_of_serve() {
    nobody_notices(reloads("serve"));
}

#[test]
fn nobody_notices_a_reload_of_axum_serve() {
    nobody_notices(reloads("listener"));
}

/// A client that somebody else wrote: wrk, for 100 connections as fast as it can.
#[test]
fn wrk_sees_no_error_over_reloads() {
    let Some(cluster) = serve("serve") else { return };
    let seconds = load_time().as_secs().max(1);
    let url = format!("http://127.0.0.1:{}/pid", cluster.port);
    let begin = Instant::now();
    let wrk = Command::new("wrk")
        .args(["-t2", "-c100", &format!("-d{seconds}s"), "--timeout", "60s", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(wrk) = wrk else {
        println!("LEFT OUT: wrk is not installed");
        return;
    };
    // All of them are connected before anything happens.
    while cluster.status().pools[0].in_hand < 100 {
        assert!(Instant::now() < begin + PATIENCE, "{:?}", cluster.status());
    }
    let mut count = 0;
    while count == 0 || Instant::now() + EVERY < begin + load_time() {
        std::thread::sleep(EVERY);
        cluster.reload().unwrap();
        count += 1;
    }
    let said = wrk.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    let pool = cluster.status().pools.remove(0);
    println!("{count} reloads, {} handed back:\n{text}", pool.handed_back);
    assert!(said.status.success() && text.contains("Requests/sec:"), "{text}");
    assert!(!text.contains("Socket errors:") && !text.contains("Non-2xx"), "{text}");
    assert!(count > 0 && pool.handed_back > 0, "{pool:?}");
    assert_eq!(pool.cut, 0, "{}", cluster.log().join("\n"));
}

/// Whatever happens to them, no connection is forgotten and none counted twice.
#[test]
fn the_accounts_balance_at_every_moment() {
    let Some(cluster) = serve("serve") else { return };
    let connected = Clients::connect(cluster.port, 50);
    let coming = Load::paced(cluster.port, 100, "/slow/5");
    let (end, mut looks, mut turn) = (Instant::now() + load_time(), 0, 0);
    let mut most = 0;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                // It may never come to its end: workers are killed as soon as they are ready.
                assert!(cluster.rcluster(&["reload", "--no-wait"]).status.success());
                std::thread::sleep(EVERY / 4);
            }
        });
        // Also when a look fails.
        let _stopping = Stop(&stop);
        // And until there was something to count: a killed worker may have had nothing in hand.
        let (mut is_whole, limit) = (false, end + PATIENCE);
        while Instant::now() < end || !is_whole && Instant::now() < limit {
            let said = cluster.rcluster(&["status", "--json"]);
            let status: Status = serde_json::from_slice(&said.stdout).unwrap();
            status.pools.iter().for_each(balances);
            is_whole = status.pools.iter().any(|pool| pool.cut > 0 && pool.handed_back > 0);
            // A hundred looks; as many as there is time for, on a slow machine.
            let next = Instant::now() + EVERY;
            for _ in 0..100 {
                let pool = cluster.status().pools.remove(0);
                balances(&pool);
                most = most.max(pool.in_hand);
                looks += 1;
                if Instant::now() > next {
                    break;
                }
            }
            turn += 1;
            let workers = cluster.status().pools.remove(0).workers;
            let victim = workers.get(turn % workers.len().max(1)).filter(|it| it.pid != 0);
            if let Some(victim) = victim {
                support::signal(victim.pid, "KILL");
            }
        }
    });
    let (seen, tally) = (connected.finish(), coming.finish());
    let pool = cluster.status().pools.remove(0);
    balances(&pool);
    println!(
        "{looks} looks, {turn} kills: {} answered; {} accepted, at most {most} in hand, {} cut, {} \
         handed back, {} dispatched again",
        seen.answered + tally.answered,
        pool.accepted,
        pool.cut,
        pool.handed_back,
        pool.redispatched
    );
    assert!(pool.cut > 0 && pool.handed_back > 0 && most > 0, "{pool:?}");
}

/// Ends a loop when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[track_caller]
fn balances(pool: &Pool) {
    let sum = pool.finished + pool.in_hand + pool.held + pool.refused + pool.cut;
    assert_eq!(pool.accepted, sum, "{pool:?}");
}
