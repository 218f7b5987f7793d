//! Nobody who is connected notices a reload: connections are handed from the old workers to the new
//! ones, whatever they are in the middle of.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail loudly")]

mod support;

use std::time::{Duration, Instant};

use support::keep_alive::{Clients, Seen};
use support::{Cluster, load_time, pool};

/// Reloads while clients stay connected; what they saw. `None`: there is no such worker.
fn reloads(mode: &str) -> Option<Seen> {
    // 1 500 by RCLUSTER_TEST_CONNECTIONS.
    let clients = std::env::var("RCLUSTER_TEST_CONNECTIONS").ok();
    let clients: u64 = clients.and_then(|text| text.parse().ok()).unwrap_or(100);
    let own = std::env::current_exe().unwrap();
    let mixed = own.parent().unwrap().parent().unwrap().join("examples/mixed");
    if !mixed.exists() {
        println!("LEFT OUT: the example mixed is not built; `cargo test` without --test does it");
        return None;
    }
    let command = format!("\"{}\", \"{mode}\"", mixed.display());
    let cluster = Cluster::serve(&pool("web", &command, "\"127.0.0.1:{port}\"", ""));
    let connected = Clients::connect(cluster.port, clients);
    connected.wait(2 * clients);
    let (end, mut count) = (Instant::now() + load_time(), 0);
    while Instant::now() < end {
        let next = Instant::now() + Duration::from_millis(400);
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
