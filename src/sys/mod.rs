//! The only unsafe code, one thing per file.
//!
//! Everything here is a thin, safe face over a system call that the standard library and nix do
//! not offer in the form needed. Nothing here decides anything.
#![allow(
    unsafe_code,
    clippy::disallowed_types,
    reason = "system calls deal in numbers; nothing above this module sees one"
)]

pub mod ancillary;
#[cfg(feature = "daemon")]
pub mod exec;
pub mod leftover;
pub mod limits;
#[cfg(feature = "daemon")]
pub mod listen;
#[cfg(feature = "daemon")]
pub mod output;
#[cfg(feature = "daemon")]
pub mod poller;
#[cfg(feature = "daemon")]
pub mod process;
pub mod shared;
pub mod socket;
#[cfg(feature = "daemon")]
pub mod tcp;
