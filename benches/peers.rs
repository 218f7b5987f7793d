//! What clients notice of a reload: rcluster and its peers, measured the same way.
//!
//! Each server runs with two workers and is reloaded by its own documented means every two
//! seconds, while some clients come anew for each request and others keep their connections. What
//! fails is counted, and which connections the server closes.
//!
//!     benches/install-peers                          the peers, into target/peers
//!     cargo bench --bench peers [-- --seconds 20]    the table, in Markdown
//!     cargo bench --bench peers -- --control         without reloads, where nothing may fail
//!
//! Servers that are not there are left out, and named below the table.
#![allow(missing_docs, reason = "a bench")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "benches measure time and fail loudly"
)]

#[path = "peers/mod.rs"]
mod peers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use peers::load::{Load, PATIENCE, Tally};
use peers::roster::{PEERS, Peer};
use peers::server::{self, Server};

/// New connections per second.
const RATE: u32 = 300;
/// Clients that keep their connections, and how often each of them asks.
const KEPT: u32 = 100;
const KEPT_GAP: Duration = Duration::from_millis(100);
/// From one reload to the next, unless the first takes longer.
const RELOAD_GAP: Duration = Duration::from_secs(2);
/// How long a reload may take.
const RELOAD_MAX: Duration = Duration::from_secs(10);
/// How long clients are served before the first reload, and after the last.
const CALM: Duration = Duration::from_secs(1);

#[derive(Parser)]
struct Arguments {
    /// How long each server is reloaded
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// No reloads: nothing may fail, and nothing be closed
    #[arg(long)]
    control: bool,
    /// Only servers whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Where `benches/install-peers` has put them
    #[arg(long, default_value = "target/peers")]
    peers: PathBuf,
    /// Said by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// One line of the table.
struct Line {
    server: String,
    reloads: Reloads,
    fresh: Tally,
    /// `None`: the server keeps no connections.
    kept: Option<Tally>,
}

#[derive(Default)]
struct Reloads {
    ordered: u32,
    done: u32,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` runs benches, too, but not to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    server::adopt_orphans();
    let wanted =
        |peer: &&Peer| arguments.only.as_ref().is_none_or(|only| peer.name.contains(only.as_str()));
    let mut lines = Vec::new();
    let mut left_out = Vec::new();
    for peer in PEERS.iter().filter(wanted) {
        match measure(peer, &arguments) {
            Ok(line) => lines.push(line),
            Err(why) => left_out.push(format!("left out: {} ({why})", peer.name)),
        }
    }
    print_table(&lines);
    println!("\n{}", describe(&arguments));
    for line in left_out {
        println!("{line}");
    }
    if arguments.control && !lines.iter().all(is_calm) {
        eprintln!("without a reload nothing may fail or be closed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn measure(peer: &Peer, arguments: &Arguments) -> Result<Line, String> {
    let peers = std::path::absolute(&arguments.peers).map_err(|error| error.to_string())?;
    let mut server = Server::start(peer, &peers)?;
    let fresh = Load::paced(server.port, RATE);
    let kept = peer.keeps_connections.then(|| Load::kept(server.port, KEPT, KEPT_GAP));
    let both_serve = fresh.seen.wait_for(2, RELOAD_MAX);
    std::thread::sleep(CALM);
    let time = Duration::from_secs(arguments.seconds);
    let reloads = if arguments.control {
        std::thread::sleep(time);
        Ok(Reloads::default())
    } else {
        reload(&mut server, time, &fresh)
    };
    std::thread::sleep(CALM);
    let left = server.processes();
    // Both at once, as some of their last requests may take long.
    fresh.stop();
    let kept = kept.map(Load::finish);
    let fresh = fresh.finish();
    let name = format!("{} {}", peer.name, server.version);
    server.stop();
    if !both_serve {
        return Err("its two workers did not both answer".to_owned());
    }
    let line = Line { server: name, reloads: reloads?, fresh, kept };
    tell(&line, left);
    Ok(line)
}

/// Reloads every so often; the next waits for the one before it.
fn reload(server: &mut Server, time: Duration, load: &Load) -> Result<Reloads, String> {
    let mut reloads = Reloads::default();
    let end = Instant::now() + time;
    while Instant::now() < end {
        let next = Instant::now() + RELOAD_GAP;
        // Done: two workers answer that had not answered before.
        let before = load.seen.count();
        server.reload()?;
        reloads.ordered += 1;
        if load.seen.wait_for(before + 2, RELOAD_MAX) {
            reloads.done += 1;
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(reloads)
}

fn is_calm(line: &Line) -> bool {
    let kept = line.kept.as_ref();
    line.fresh.failed() == 0 && kept.is_none_or(|kept| kept.failed() == 0 && kept.closed == 0)
}

fn print_table(lines: &[Line]) {
    println!(
        "| server | reloads | new connections: answered / failed | keep-alive: requests failed / connections closed |"
    );
    println!("|---|---|---|---|");
    for Line { server, reloads, fresh, kept } in lines {
        let reloads = match reloads {
            Reloads { ordered, done } if ordered == done => format!("{done}"),
            Reloads { ordered, done } => format!("{done} of {ordered}"),
        };
        let kept = kept
            .as_ref()
            .map_or("has none".to_owned(), |kept| format!("{} / {}", kept.failed(), kept.closed));
        println!("| {server} | {reloads} | {} / {} | {kept} |", fresh.answered, fresh.failed());
    }
}

/// To the one who watches: what the table has no room for.
fn tell(line: &Line, left: usize) {
    eprintln!("{}: at the end {left} processes", line.server);
    for (name, tally) in [("new", Some(&line.fresh)), ("keep-alive", line.kept.as_ref())] {
        let Some(tally) = tally else { continue };
        let Tally { answered, workers, longest, .. } = tally;
        eprintln!("  {name}: {answered} answered by {workers} workers, longest {longest:?}");
        for (why, count) in &tally.reasons {
            eprintln!("    failed: {count} x {why}");
        }
    }
}

/// What the numbers were measured on, and how.
fn describe(arguments: &Arguments) -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model);
    let kernel = read("/proc/sys/kernel/osrelease");
    let reloads = match arguments.control {
        true => "no reloads".to_owned(),
        false => format!("a reload every {} s", RELOAD_GAP.as_secs()),
    };
    format!(
        "{cpus} CPUs ({model}), Linux {}; {} s for each server, 2 workers, {reloads}; {RATE} new \
         connections per second with one request each, and {KEPT} kept ones with a request every \
         {} ms, over loopback. Failed: not wholly answered within {} s. Closed: while no request \
         was under way, or announced with an answer.",
        kernel.trim(),
        arguments.seconds,
        KEPT_GAP.as_millis(),
        PATIENCE.as_secs(),
    )
}
