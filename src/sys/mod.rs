//! The only unsafe code, one thing per file.
//!
//! Everything here is a thin, safe face over a system call that the standard library and nix do
//! not offer in the form needed. Nothing here decides anything.
#![allow(
    unsafe_code,
    clippy::disallowed_types,
    reason = "system calls deal in numbers; nothing above this module sees one"
)]

pub mod accept;
#[cfg(feature = "daemon")]
pub mod accepting;
pub mod ancillary;
#[cfg(feature = "daemon")]
pub mod child;
pub mod clock;
#[cfg(feature = "daemon")]
pub mod datagrams;
#[cfg(feature = "daemon")]
pub mod exec;
#[cfg(feature = "daemon")]
pub mod family;
pub mod leftover;
pub mod limits;
#[cfg(feature = "daemon")]
pub mod listen;
#[cfg(feature = "daemon")]
pub mod notices;
#[cfg(feature = "daemon")]
pub mod output;
#[cfg(feature = "daemon")]
pub mod place;
#[cfg(feature = "daemon")]
pub mod poller;
#[cfg(feature = "daemon")]
pub mod process;
#[cfg(feature = "daemon")]
pub mod reap;
#[cfg(feature = "daemon")]
pub mod resource;
pub mod shared;
pub mod socket;
#[cfg(feature = "daemon")]
pub mod sockets;
#[cfg(feature = "daemon")]
pub mod step;
#[cfg(feature = "daemon")]
pub mod tcp;
