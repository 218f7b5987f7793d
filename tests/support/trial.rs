//! What every program is put through that is a worker: a reload under new connections, with an answer under
//! way; a worker killed; the master replaced; the master killed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::{Cluster, PATIENCE, load_time, signal};

/// New connections per second during all of it.
pub const RATE: u32 = 300;

/// Asks for a path: the body, or what went wrong.
pub type Ask = fn(u16, &str) -> Result<String, String>;

/// Where the applications are that are run.
pub fn applications() -> String {
    format!("{}/tests/programs", env!("CARGO_MANIFEST_DIR"))
}

/// The same of an HTTP server, on a new connection.
pub fn http(port: u16, path: &str) -> Result<String, String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    super::load::exchange(port, &request)
}

/// Clients that come at a pace, until they are told to stop; what failed, and how many were answered.
pub struct Clients {
    threads: Vec<std::thread::JoinHandle<(u64, Vec<String>)>>,
    stop: Arc<AtomicBool>,
}

impl Clients {
    pub fn come(port: u16, ask: Ask) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = 30;
        let gap = Duration::from_secs(1) * threads / RATE;
        let begin = Instant::now();
        let run = move |number: u32, stop: &AtomicBool| {
            let (mut answered, mut failed) = (0, Vec::new());
            let mut due = begin + gap * number / threads;
            while !stop.load(Relaxed) {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                due += gap;
                match ask(port, "/") {
                    Ok(_) => answered += 1,
                    Err(why) => failed.push(why),
                }
            }
            (answered, failed)
        };
        let threads = (0..threads).map(|number| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || run(number, &stop))
        });
        Clients { threads: threads.collect(), stop }
    }

    pub fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Relaxed);
        let (mut answered, mut failed) = (0, Vec::new());
        for thread in self.threads {
            let (count, why) = thread.join().unwrap();
            answered += count;
            failed.extend(why);
        }
        (answered, failed)
    }
}

/// Requests that take a while; when this returns, they are under way.
pub fn slow(
    port: u16,
    ask: Ask,
    count: usize,
) -> Vec<std::thread::JoinHandle<Result<String, String>>> {
    let asked = (0..count).map(|_| std::thread::spawn(move || ask(port, "/slow")));
    let asked = asked.collect();
    // Nobody tells when a program has begun to answer; the slow answer is much longer than this.
    std::thread::sleep(Duration::from_millis(300));
    asked
}

/// Waits until two processes have answered.
pub fn two_answer(port: u16, ask: Ask) {
    let until = Instant::now() + PATIENCE;
    let mut pids = BTreeSet::new();
    while pids.len() < 2 {
        assert!(Instant::now() < until, "only {pids:?} answer");
        // At once, so that one alone does not take them all.
        let asked: Vec<_> = (0..8).map(|_| std::thread::spawn(move || ask(port, "/"))).collect();
        pids.extend(asked.into_iter().map(|it| it.join().unwrap().unwrap()));
    }
}

/// Reloads for a while: nobody notices, and what is under way is answered. What failed, and how often it
/// was reloaded. `can_be_slow`: how many slow requests the workers answer at once; 0: they have none.
pub fn reload_under_load(
    name: &str,
    cluster: &Cluster,
    ask: Ask,
    can_be_slow: usize,
) -> (Vec<String>, usize) {
    let port = cluster.port;
    let clients = Clients::come(port, ask);
    let under_way = slow(port, ask, can_be_slow);
    let end = Instant::now() + load_time();
    let mut reloads = 0;
    while reloads < 2 || Instant::now() < end {
        cluster.reload().unwrap();
        reloads += 1;
        std::thread::sleep(Duration::from_millis(300));
    }
    for one in under_way {
        one.join().unwrap().unwrap();
    }
    let (answered, failed) = clients.finish();
    println!("{name}: {reloads} reloads, {answered} answered, {} failed", failed.len());
    (failed, reloads)
}

/// Kills a worker: the other one's clients do not notice. What failed.
pub fn kill_a_worker(name: &str, cluster: &Cluster, ask: Ask, can_be_slow: usize) -> Vec<String> {
    let port = cluster.port;
    let clients = Clients::come(port, ask);
    let under_way = slow(port, ask, can_be_slow);
    let victim = cluster.pids("web")[0];
    let lost = cluster.count("lost");
    signal(victim, "KILL");
    let results: Vec<_> = under_way.into_iter().map(|it| it.join().unwrap()).collect();
    cluster.wait_for_nth("lost", lost + 1);
    two_answer(port, ask);
    let (answered, failed) = clients.finish();
    let cut = results.iter().filter(|it| it.is_err()).count();
    println!(
        "{name}: a worker killed: {answered} answered, {} failed; of {can_be_slow} slow ones {cut} cut",
        failed.len()
    );
    failed
}

/// Replaces the master by its next image, and reloads. What failed.
pub fn upgrade_under_load(name: &str, cluster: &Cluster, ask: Ask) -> Vec<String> {
    let clients = Clients::come(cluster.port, ask);
    let upgraded = cluster.rcluster(&["upgrade"]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    std::thread::sleep(Duration::from_millis(300));
    cluster.reload().unwrap();
    let (answered, failed) = clients.finish();
    println!("{name}: the master replaced: {answered} answered, {} failed", failed.len());
    failed
}
