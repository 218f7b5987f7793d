//! The command line from outside: what is typed, what is printed, which exit code.
//!
//! Masters are scripted: a thread that listens where the real one would, reads the call, and says
//! what the story needs, well or badly.

#![cfg(feature = "daemon")]
#![expect(clippy::unwrap_used, reason = "what a test cannot do is its failure")]

mod check;
mod command;
mod find;
mod look;
mod support;
mod usage;
