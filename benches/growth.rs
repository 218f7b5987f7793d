//! What grows with the service, and what does not: memory, descriptors and time of the master with many
//! workers, pools, connections and reloads.
//!
//! `cargo bench --all-features --bench growth` prints a table; `-- --connections 100000 --reloads 10000`
//! sets how many of these there are.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a measuring tool"
)]

#[path = "growth/load.rs"]
mod load;
#[path = "dispatch/meter.rs"]
mod meter;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::{Cluster, PATIENCE, descriptors, pool};

/// The worker of those rows that need many connections in one process.
const MANY: &str = "GROWTH_MANY";
/// What a process of clients is to hold: port, count, host.
const HOLD: &str = "GROWTH_HOLD";

#[derive(Parser)]
struct Arguments {
    /// Idle connections that are open at once
    #[arg(long, default_value_t = 20_000)]
    connections: usize,
    /// Reloads in a row
    #[arg(long, default_value_t = 300)]
    reloads: usize,
    /// Only this part: start, workers, pools, load, connections, reloads
    #[arg(long)]
    part: Option<String>,
    /// Said by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

type Part = fn(&Arguments);

fn main() {
    if let Ok(what) = std::env::var(HOLD) {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        return hold(&what);
    }
    // The master runs this executable as its workers.
    if std::env::var_os("RCLUSTER_CHANNEL").is_some() {
        return serve();
    }
    // `cargo bench` and `cargo test --benches` say which; a test run only proves that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return println!("test result: ok. 0 passed; 0 failed; 0 ignored;");
    }
    let arguments = Arguments::parse();
    let parts: [(&str, Part); 6] = [
        ("start", |_| start()),
        ("workers", |_| workers()),
        ("pools", |_| pools()),
        ("load", |_| load::rows()),
        ("connections", |it| connections(it.connections)),
        ("reloads", |it| reloads(it.reloads)),
    ];
    println!("| | | promised |\n|---|---|---|");
    for (name, part) in parts {
        if arguments.part.as_ref().is_none_or(|only| only == name) {
            part(&arguments);
        }
    }
}

fn row(what: &str, figure: &str, promised: &str) {
    println!("| {what} | {figure} | {promised} |");
}

/// Answers one request a connection, or, where many are held at once, as many as come.
fn serve() {
    if std::env::var_os(MANY).is_some() {
        let app = axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(rcluster::serve(app)).unwrap();
    }
    let worker = rcluster::Worker::from_env().unwrap();
    for mut connection in worker.connections().unwrap() {
        let _ = connection.read(&mut [0; 1024]);
        let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    }
}

fn config(workers: usize, lines: &str) -> String {
    let own = std::env::current_exe().unwrap();
    let text = pool("web", &format!("\"{}\"", own.display()), "\"0.0.0.0:{port}\"", lines);
    text.replace("workers = 2", &format!("workers = {workers}"))
}

/// Milliseconds since midnight that a line of the log begins with.
fn time_of(line: &str) -> f64 {
    let clock = line.split_once('T').and_then(|(_, rest)| rest.split_once('Z')).unwrap().0;
    let parts: Vec<f64> = clock.split(':').map(|part| part.parse().unwrap()).collect();
    ((parts[0] * 60.0 + parts[1]) * 60.0 + parts[2]) * 1000.0
}

/// All that is resident, the program's text included, in KB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// From exec to the first worker's start, and from the last worker's READY to the service's.
fn start() {
    let (mut up, mut ready) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        let begin = Instant::now();
        let cluster = Cluster::start(&config(2, ""));
        cluster.wait_for("rollout of generation 1 begun");
        up.push(begin.elapsed().as_secs_f64() * 1000.0);
        let serves = time_of(&cluster.wait_for("generation 1 serves"));
        let log = cluster.log();
        let last = log.iter().filter(|it| it.contains("is ready")).map(|it| time_of(it));
        ready.push(serves - last.fold(0.0, f64::max));
    }
    row("the master is up after", &format!("{:.1} ms", median(up)), "10 ms");
    row("ready after the last worker's READY", &format!("{:.0} ms", median(ready)), "20 ms");
}

fn workers() {
    let mut figures = Vec::new();
    for count in [2, 256] {
        let begin = Instant::now();
        let cluster = Cluster::serve(&config(count, ""));
        let time = begin.elapsed();
        figures.push((resident(cluster.pid()), descriptors(cluster.pid()), time));
        if count == 256 {
            reload_of(&cluster, count);
        }
    }
    let [(few, few_open, _), (many, many_open, time)] = figures[..] else { return };
    row("memory with 2 workers", &format!("{:.1} MB", few as f64 / 1024.0), "6 MB");
    let each = (many - few) as f64 / 254.0;
    row("memory for each further worker", &format!("{each:.1} KB"), "64 KB");
    let each = (many_open - few_open) as f64 / 254.0;
    row("descriptors for each further worker", &format!("{each:.1}"), "");
    row("start with 256 workers", &format!("{time:.1?}"), "");
}

/// What a reload takes for each worker beyond that worker's own start.
fn reload_of(cluster: &Cluster, count: usize) {
    let before = cluster.log().len();
    let begin = Instant::now();
    cluster.reload().unwrap();
    let took = begin.elapsed().as_secs_f64() * 1000.0;
    cluster.wait_for_nth(" left", count);
    let log = cluster.log();
    let times = |what: &str| -> f64 {
        log[before..].iter().filter(|line| line.contains(what)).map(|it| time_of(it)).sum()
    };
    let own = times("is ready") - times("started");
    let each = (took - own) / count as f64;
    let text = format!("{each:.2} ms, of {:.2} ms", took / count as f64);
    row("a reload of 256, for each worker beyond its own start", &text, "");
}

/// So many pools of one worker, each at a socket of its own: its number, and `.sock`.
fn serve_pools(count: usize) -> Cluster {
    let own = std::env::current_exe().unwrap();
    let pools = (0..count).map(|number| {
        let socket = format!("\"{{folder}}/{number}.sock\"");
        let text = pool(&format!("p{number}"), &format!("\"{}\"", own.display()), &socket, "");
        text.replace("workers = 2", "workers = 1")
    });
    Cluster::serve(&pools.collect::<String>())
}

fn pools() {
    let mut figures = Vec::new();
    for count in [1, 64] {
        let cluster = serve_pools(count);
        figures.push((resident(cluster.pid()), descriptors(cluster.pid())));
    }
    let each = (figures[1].0 - figures[0].0) as f64 / 63.0;
    row("memory for each further pool of one worker", &format!("{each:.1} KB"), "");
    let each = (figures[1].1 - figures[0].1) as f64 / 63.0;
    row("descriptors for each further pool of one worker", &format!("{each:.1}"), "");
}

/// Connections that one process of clients holds at most.
const EACH: usize = 8000;

/// Connections that a process may hold: half of its descriptors, which is also where a worker stops.
fn room() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    usize::try_from(hard / 2).unwrap_or(usize::MAX)
}

/// Idle connections, over eight workers, or as many as may hold them: for 100 000 over eight, a process
/// needs 25 000 descriptors.
fn connections(wanted: usize) {
    let workers = wanted.div_ceil(room()).max(8);
    let each = EACH.min(room());
    let lines = format!("environment = {{ {MANY} = \"1\" }}");
    let cluster = Cluster::serve(&config(workers, &lines));
    let first = Clients::connect(cluster.port, 100, 0);
    let (before, open) = (resident(cluster.pid()), descriptors(cluster.pid()));
    let rest = (0..wanted - 100).step_by(each).zip(1..);
    let rest = rest
        .map(|(from, host)| Clients::connect(cluster.port, each.min(wanted - 100 - from), host));
    let rest: Vec<Clients> = rest.collect();
    let more = resident(cluster.pid()).saturating_sub(before);
    let more_open = descriptors(cluster.pid()).saturating_sub(open);
    let status = cluster.status();
    let pool = &status.pools[0];
    let hands: Vec<u64> = pool.workers.iter().map(|it| it.in_hand).collect();
    assert_eq!(hands.iter().sum::<u64>(), wanted as u64);
    let (least, most) = (hands.iter().min().unwrap(), hands.iter().max().unwrap());
    let text = format!(
        "{more} KB and {more_open} descriptors more; {least} to {most} in each of {workers} workers"
    );
    row(&format!("{wanted} idle connections"), &text, "nothing for each");
    drop((first, rest));
}

/// A process that holds connections, until it is dropped.
struct Clients(Child);

impl Clients {
    /// Each host has ports of its own.
    fn connect(port: u16, count: usize, host: usize) -> Clients {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(HOLD, format!("{port} {count} {host}"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let held = child.stdout.as_mut().unwrap().read(&mut [0; 8]).unwrap();
        assert!(held > 0, "clients have failed");
        Clients(child)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Holds connections, as told, until nobody holds this process' standard input.
fn hold(what: &str) {
    let numbers: Vec<u16> = what.split(' ').map(|word| word.parse().unwrap()).collect();
    let host = Ipv4Addr::new(127, 0, 1, u8::try_from(1 + numbers[2]).unwrap());
    let clients = (0..numbers[1]).map(|_| {
        let mut client = TcpStream::connect((host, numbers[0])).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
        assert!(client.read(&mut [0; 1024]).unwrap() > 0, "closed");
        client
    });
    let clients: Vec<TcpStream> = clients.collect();
    println!("held");
    let _ = std::io::stdin().read(&mut [0]);
    drop(clients);
}

fn reloads(count: usize) {
    let cluster = Cluster::serve(&config(2, ""));
    let reload = |times: usize| {
        (0..times).for_each(|_| drop(cluster.reload().unwrap()));
        let end = Instant::now() + PATIENCE;
        while cluster.status().pools[0].workers.len() > 2 {
            assert!(Instant::now() < end, "the old workers never leave");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    reload(20);
    let (before, open) = (resident(cluster.pid()), descriptors(cluster.pid()));
    reload(count);
    let (now, now_open) = (resident(cluster.pid()), descriptors(cluster.pid()));
    let more = i128::from(now) - i128::from(before);
    let text = format!("{more:+} KB, descriptors {open} then {now_open}");
    row(&format!("{count} reloads"), &text, "equal, within 1 MB");
}
