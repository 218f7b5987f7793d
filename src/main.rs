//! The `rcluster` command: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use rcluster::cli::{self, args::Arguments};

fn main() -> ExitCode {
    // Wrong usage ends here with exit code 2, --help and --version with 0.
    cli::execute(Arguments::parse())
}
