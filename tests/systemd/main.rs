//! rcluster under real systemd, end to end: machines are booted, the service is installed in them,
//! clients come, and things happen to it. Every scenario runs on both releases.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail loudly")]
#![allow(missing_docs, reason = "tests")]

mod machine;
mod service;
#[path = "../support/mod.rs"]
mod support;

mod adoption;
mod basics;
mod control;
mod inherit;
mod journald;
mod notify;
mod package;
mod units;

use machine::{Machine, Tree};

/// Makes a test of each scenario (a function that is given a machine), on each release.
#[macro_export]
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        mod on_252 {
            $(#[test] fn $name() { $crate::play($crate::machine::Tree::Own, super::$name); })*
        }
        mod on_257 {
            $(#[test] fn $name() { $crate::play($crate::machine::Tree::Trixie, super::$name); })*
        }
    };
}

/// Plays a scenario on a machine of its own.
fn play(tree: Tree, scenario: fn(&Machine)) {
    match Machine::boot(tree) {
        Ok(machine) => scenario(&machine),
        Err(why) => println!("LEFT OUT: {why}"),
    }
}
