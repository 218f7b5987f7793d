//! Words for the log, which is stderr.
//!
//! `eprintln!` panics when stderr is gone, as it is when whoever read the log has died. That would
//! cost connections for the sake of a sentence; so what cannot be written is left unwritten. The
//! standard library's own words about a panic are left unwritten alike.

use std::fmt::Arguments;
use std::io::{Write, stderr};

/// Says something, as `format!` has it.
macro_rules! tell {
    ($($words:tt)*) => { $crate::worker::tell::say(format_args!($($words)*)) };
}
pub(super) use tell;

/// In one piece: other workers write to the same place.
pub(super) fn say(words: Arguments<'_>) {
    let _ = stderr().write_all(format!("rcluster: {words}\n").as_bytes());
}
