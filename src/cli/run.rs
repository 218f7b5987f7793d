//! The verbs that run something: the daemon, the demo and the built-in workers.

use super::Failure;
use super::args::Run;
use super::source::Source;

/// `rcluster run`.
pub(super) fn run(typed: &Run) -> Result<(), Failure> {
    let _source = Source::of(typed)?;
    later("run")
}

/// `rcluster demo`.
pub(super) fn demo() -> Result<(), Failure> {
    later("demo")
}

/// `rcluster demo-worker NAME`, which the demo's pools run.
pub(super) fn demo_worker(_name: &str) -> Result<(), Failure> {
    later("demo-worker")
}

/// `rcluster hello`.
pub(super) fn hello() -> Result<(), Failure> {
    later("hello")
}

fn later(what: &'static str) -> Result<(), Failure> {
    Err(Failure::Later { what, instead: "wait for the next one" })
}
