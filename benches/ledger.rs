//! What a crash ledger costs: CPU time of master and workers per small request on a kept connection,
//! and per connection with one request, with `crash-ledger` and without, in turns.
//!
//! `cargo bench --bench ledger` prints the table; ROUNDS=n takes more turns.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measuring tool"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use support::{Cluster, pool};

const CLIENTS: u32 = 16;
const REQUESTS: u32 = 40_000;
const CONNECTIONS: u32 = 8_000;

const KEPT: &[u8] = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n";
const LAST: &[u8] = b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";

fn main() {
    // The master runs this executable as its workers.
    if std::env::var_os("RCLUSTER_CHANNEL").is_some() {
        return serve();
    }
    // `cargo bench` and `cargo test --benches` say which; a test run only proves that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return println!("test result: ok. 0 passed; 0 failed; 0 ignored;");
    }
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(9);
    let clusters = [cluster(""), cluster("crash-ledger = true")];
    type Way = fn(&Cluster);
    let ways: [(&str, u32, Way); 2] =
        [("request", REQUESTS, requests), ("connection", CONNECTIONS, connections)];
    println!("| CPU per | without, µs | with, µs | ratio: median | least | most |");
    println!("|---|---|---|---|---|---|");
    for (what, count, way) in ways {
        clusters.iter().for_each(way);
        let mut sums = [0.0; 2];
        let mut ratios = Vec::new();
        for round in 0..rounds {
            let mut costs = [0.0; 2];
            // Who begins takes turns, too.
            for which in [round % 2, 1 - round % 2] {
                let before = cpu(&clusters[which]);
                way(&clusters[which]);
                costs[which] = (cpu(&clusters[which]) - before) / f64::from(count);
                sums[which] += costs[which] / rounds as f64;
            }
            ratios.push(costs[1] / costs[0]);
        }
        ratios.sort_by(f64::total_cmp);
        let [without, with] = sums;
        let (least, median, most) = (ratios[0], ratios[rounds / 2], ratios[rounds - 1]);
        println!("| {what} | {without:.2} | {with:.2} | {median:.3} | {least:.3} | {most:.3} |");
    }
}

fn serve() {
    let app = axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(rcluster::serve(app)).unwrap();
}

fn cluster(extra: &str) -> Cluster {
    let own = std::env::current_exe().unwrap();
    let command = format!("\"{}\"", own.display());
    Cluster::serve(&pool("web", &command, "\"127.0.0.1:{port}\"", extra))
}

/// CPU time of the master and its workers so far, µs.
fn cpu(cluster: &Cluster) -> f64 {
    let processes = cluster.pids("web").into_iter().chain([cluster.pid()]);
    let of_process = |pid: u32| -> f64 {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let of_thread = |path: std::path::PathBuf| -> f64 {
            let stat = std::fs::read_to_string(path.join("schedstat")).unwrap();
            stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1000.0
        };
        threads.map(|thread| of_thread(thread.unwrap().path())).sum()
    };
    processes.map(of_process).sum()
}

/// So many clients at once, each with its share.
fn each(total: u32, client: impl Fn(u32) + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| client(total / CLIENTS));
        }
    });
}

fn connect(cluster: &Cluster) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn requests(cluster: &Cluster) {
    each(REQUESTS, |count| {
        let mut stream = connect(cluster);
        let mut buffer = [0; 1024];
        for _ in 0..count {
            stream.write_all(KEPT).unwrap();
            let mut read = 0;
            while !buffer[..read].ends_with(b"hello") {
                let more = stream.read(&mut buffer[read..]).unwrap();
                assert!(more > 0, "closed");
                read += more;
            }
        }
    });
}

fn connections(cluster: &Cluster) {
    each(CONNECTIONS, |count| {
        for _ in 0..count {
            let mut stream = connect(cluster);
            stream.write_all(LAST).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert!(answer.ends_with(b"hello"));
        }
    });
}
