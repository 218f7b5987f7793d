//! Runs a service as many worker processes and never drops a client.
//!
//! This crate is two things. For people who write workers it is a small library: a [`Worker`] is
//! handed connections, one by one, and each [`Connection`] reports its own end. For people who run
//! services it is the `rcluster` command: a *master* that takes over listening sockets, accepts,
//! and passes every connection to the best of its workers, keeps the workers alive, and replaces
//! them all while clients are being served. A Rust program can be its own master with [`Master`].
//!
//! ```no_run
//! fn main() -> rcluster::Result<()> {
//!     rcluster::Worker::from_env()?.ready(|mut connection| {
//!         use std::io::Write;
//!         connection.write_all(b"hello\n")
//!     })
//! }
//! ```
//!
//! # The code map
//!
//! ```text
//!  main ──▶ cli ──▶ master ──▶ supervisor          facts in, one pass, orders out
//!            │        │  │
//!            ▼        │  └──▶ kinds ──▶ wire ──▶ sys
//!          config ◀───┘                  ▲
//!            │                           │
//!            ▼                        worker          (in other people's programs)
//!        supervisor (a pool's Policy)
//! ```
//!
//! | part | is | never |
//! |---|---|---|
//! | [`supervisor`] | the mind: goal, roster, `reconcile`, `dispatch` | names a descriptor, a path, a process id, the clock |
//! | [`master`] | one thread that turns readiness into facts and orders into system calls | decides |
//! | `kinds` | how a kind of worker is started and spoken to | |
//! | [`wire`] | the words between processes: messages, scoreboard, control | knows who speaks |
//! | [`worker`] | the library for people who write workers | imports `master` |
//! | [`config`] | the TOML as written → a whole, valid, immutable `Config` | applies half of it |
//! | [`cli`] | what was typed → one request → text and an exit code | |
//! | `sys` | the only unsafe code, one system call family per file | decides |
//!
//! `tests/house.rs` keeps these arrows.
//!
//! # Reading order
//!
//! To understand what rcluster does, read [`supervisor`]: `event`, `action`, `goal`, `roster`,
//! `reconcile`, `dispatch`, and the transcripts in `supervisor/tests/transcripts`, each of which is
//! a story of facts and the orders that follow. To understand how, read `master/mod.rs` (the loop
//! is one screen), `observe`, `perform`. To understand a connection's way, read `wire/message.rs`,
//! `wire/scoreboard.rs`, `kinds/native.rs`, `worker/taker.rs`; where workers accept by themselves,
//! `master/admission.rs`, `worker/acceptor.rs`, `worker/balance.rs`.
//!
//! # Invariants
//!
//! * **The kernel's queue is the ledger.** What a worker has not received can be read back from its
//!   channel, because the master keeps a duplicate of the worker's end.
//! * **Nothing is accepted that cannot be passed on at once.** The rest waits in the listener's
//!   queue, where it survives even the master.
//! * **Death is learned from the pidfd**, after which the channel is read to its end, then the
//!   counters; only then is the exit a fact.
//! * **Credit comes back by an event**, never by polling: see `wire/scoreboard.rs`.
//! * **A connection has one owner.** A draining worker hands a live one back in the very message that
//!   counts it; from then on it is not touched there, and nobody else may end it. With a crash ledger the master keeps the socket as well, and does not
//!   touch it before the worker is dead.
//! * **A crash never depends on a deploy**: vacancies are filled with the last good generation,
//!   whose programs are held open.
//! * What a worker or a control client sends never panics the master.

#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod demo;
mod error;
#[cfg(feature = "daemon")]
mod kinds;
#[cfg(feature = "daemon")]
pub mod master;
#[cfg(feature = "daemon")]
pub mod supervisor;
mod sys;
pub mod wire;
pub mod worker;

pub use error::{Error, Result};
#[cfg(feature = "daemon")]
pub use master::Master;
#[cfg(feature = "axum")]
pub use worker::hand_back;
#[cfg(feature = "serve")]
pub use worker::serve;
pub use worker::{Connection, Worker};
