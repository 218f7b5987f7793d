//! Many pools beside one while the same clients come: the master's time for each of them, in turns; and
//! whom reloads cost his answer.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::meter::{Spread, cpu};
use super::support::{Cluster, PATIENCE};
use super::{row, serve_pools};

/// New connections a second, over all pools.
const RATE: usize = 300;
/// How many come while nothing else happens, in as many rounds; and as many again while reloads go on.
const COMERS: usize = 1500;
const ROUNDS: usize = 5;
/// Reloads of all pools meanwhile.
const RELOADS: usize = 5;
/// Clients that are there at once; whoever is due waits until one is free, and that counts.
const AT_ONCE: usize = 64;

/// A master, and where clients find its pools.
struct Served {
    cluster: Cluster,
    sockets: Vec<PathBuf>,
    /// The master's CPU for a connection in each round, µs.
    costs: Vec<f64>,
}

pub fn rows() {
    let mut field = [1, 64].map(|count| {
        let cluster = serve_pools(count);
        let socket = |number| cluster.path(&format!("{number}.sock"));
        let sockets = (0..count).map(socket).collect();
        Served { cluster, sockets, costs: Vec::new() }
    });
    for round in 0..=ROUNDS {
        for Served { cluster, sockets, costs } in &mut field {
            let before = cpu(cluster.pid());
            let comers = come(sockets, COMERS / ROUNDS, || {});
            assert_eq!(comers.failed, 0, "{:?}", comers.reasons);
            // The first one warms up.
            if round > 0 {
                costs.push((cpu(cluster.pid()) - before) / comers.count as f64);
            }
        }
    }
    for Served { cluster, sockets, .. } in &field {
        let Comers { count, failed, reasons, longest } = come(sockets, COMERS, || reload(cluster));
        let why = if failed > 0 { format!(": {reasons:?}") } else { String::new() };
        let text = format!("{failed} of {count} failed{why}; the longest wait was {longest:.0?}");
        let pools = sockets.len();
        let what = format!("pools: {pools}, {RATE} connections a second, {RELOADS} reloads");
        row(&what, &text, "0 failed");
    }
    let [one, many] = &field;
    let beside = Spread::of(many.costs.iter().zip(&one.costs).map(|(many, one)| many / one));
    let [one, many] = [one, many].map(|it| Spread::of(it.costs.iter().copied()).median);
    let text = format!("{many:.1} µs, with 1 pool {one:.1} µs, × {beside}");
    row("the master's CPU for a connection with 64 pools", &text, "");
}

/// All of them over the time of those who come.
fn reload(cluster: &Cluster) {
    let begin = Instant::now();
    let gap = Duration::from_secs_f64(COMERS as f64 / RATE as f64 / RELOADS as f64);
    for number in 0..RELOADS as u32 {
        std::thread::sleep((gap * number).saturating_sub(begin.elapsed()));
        cluster.reload().unwrap();
    }
}

/// What became of those who came.
#[derive(Debug, Default)]
struct Comers {
    count: usize,
    failed: usize,
    reasons: BTreeSet<String>,
    /// From when he was due to his whole answer.
    longest: Duration,
}

/// At least so many come at [`RATE`], to one socket after the other, and until `work` is done.
fn come(sockets: &[PathBuf], wanted: usize, work: impl FnOnce() + Send) -> Comers {
    let (next, last) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let all = Mutex::new(Comers::default());
    let begin = Instant::now();
    let client = || {
        loop {
            let number = next.fetch_add(1, Relaxed);
            if number >= last.load(Relaxed) {
                return;
            }
            let due = begin + Duration::from_secs_f64(number as f64 / RATE as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let outcome = ask(&sockets[number % sockets.len()]);
            let mut all = all.lock().unwrap();
            all.count += 1;
            all.longest = all.longest.max(due.elapsed());
            if let Err(error) = outcome {
                all.failed += 1;
                all.reasons.insert(error.to_string());
            }
        }
    };
    std::thread::scope(|scope| {
        (0..AT_ONCE).for_each(|_| drop(scope.spawn(client)));
        // Whatever becomes of it, they stop coming.
        let worked = scope.spawn(work).join();
        last.store(next.load(Relaxed).max(wanted), Relaxed);
        worked.unwrap();
    });
    all.into_inner().unwrap()
}

/// One request on a new connection.
fn ask(socket: &PathBuf) -> std::io::Result<()> {
    let mut client = UnixStream::connect(socket)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    let is_whole = answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n");
    if is_whole { Ok(()) } else { Err(std::io::Error::other(format!("answered {answer:?}"))) }
}
