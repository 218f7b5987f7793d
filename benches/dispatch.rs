//! What dispatching costs, beside the same hand-over in plain system calls and beside peers.
//!
//!     benches/install-peers                              the peers, into target/peers
//!     cargo bench --all-features --bench dispatch        the tables, in Markdown
//!     cargo bench --all-features --bench dispatch -- --part cost --only rcluster --rounds 9
//!
//! Every figure is taken in turns with what it is compared with, so that what else the machine does hits
//! both. Servers that are not there are left out, and named below their table.
#![allow(missing_docs, reason = "a bench")]
#![allow(
    dead_code,
    clippy::zombie_processes,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "benches measure time and fail loudly"
)]

#[path = "peers/mod.rs"]
mod peers;

#[path = "dispatch/mod.rs"]
mod dispatch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use dispatch::{cost, floor, meter, mind, tail};
use peers::server;

#[derive(Parser)]
struct Arguments {
    /// Rounds of each comparison
    #[arg(long, default_value_t = 25)]
    rounds: usize,
    /// Only this part: cost, keep-alive, tried, choice, tail
    #[arg(long)]
    part: Option<String>,
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

fn main() -> ExitCode {
    if floor::play() {
        return ExitCode::SUCCESS;
    }
    // `cargo test --all-targets` runs benches, too, but not to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    server::adopt_orphans();
    let peers = std::path::absolute(&arguments.peers).unwrap();
    let wants = |part: &str| arguments.part.as_ref().is_none_or(|it| it == part);
    println!("{}\n", meter::machine());
    if wants("cost") {
        cost::table(arguments.rounds, arguments.only.as_deref(), &peers);
    }
    if wants("keep-alive") {
        println!();
        cost::kept(arguments.rounds, arguments.only.as_deref(), &peers);
    }
    if wants("tried") {
        println!();
        cost::tried(arguments.rounds, &peers);
    }
    if wants("choice") {
        println!();
        mind::costs(arguments.rounds);
        println!();
        mind::quality();
    }
    if wants("tail") {
        println!();
        tail::table(arguments.rounds.div_ceil(5), &peers);
    }
    ExitCode::SUCCESS
}
