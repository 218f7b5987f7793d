//! A reload while very many are connected and idle: each of them goes over, and none is closed.
//! How long that takes is measured by `cargo bench --bench handback`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail loudly")]

mod support;

use std::time::Duration;

use rcluster::wire::control::Pool;
use support::idle::Idle;
use support::{Cluster, pool};

const COUNT: usize = 500;

#[test]
fn hundreds_of_idle_connections_go_over_and_none_is_closed() {
    let own = std::env::current_exe().unwrap();
    let mixed = own.parent().unwrap().parent().unwrap().join("examples/mixed");
    if !mixed.exists() {
        println!("LEFT OUT: the example mixed is not built; `cargo test` without --test does it");
        return;
    }
    let command = format!("\"{}\", \"serve\"", mixed.display());
    let cluster = Cluster::serve(&pool("web", &command, "\"0.0.0.0:{port}\"", ""));
    let mut idle = Idle::connect(cluster.port, COUNT);
    let first = idle.ask(1, Duration::ZERO);
    assert_eq!((first.answered, first.failed), (COUNT, vec![]));
    // While nobody says anything, and while everybody does.
    for (reloads, during) in [(1, Duration::ZERO), (2, Duration::from_millis(200))] {
        // One that no worker has taken yet is not handed back, but dispatched again.
        let moved = |pool: &Pool| pool.handed_back + pool.redispatched;
        let before = moved(&cluster.status().pools[0]);
        let heard = std::thread::scope(|scope| {
            let reload = scope.spawn(|| cluster.reload().unwrap());
            if during.is_zero() {
                reload.join().unwrap();
            }
            idle.ask(1, during)
        });
        assert_eq!((heard.answered, heard.failed), (COUNT, vec![]));
        cluster.wait_for_nth(" left", 2 * reloads);
        let pool = cluster.status().pools.remove(0);
        assert!(moved(&pool) >= before + COUNT as u64, "{pool:?}");
        assert_eq!((pool.cut, pool.accepted), (0, COUNT as u64), "{pool:?}");
    }
}
