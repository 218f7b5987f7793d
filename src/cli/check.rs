//! `rcluster check`: all that is wrong with a configuration at once, without any master.
//!
//! What the files say is judged first; only when they say something whole, what they name (programs,
//! users, directories) is looked for on this machine. Both are mistakes here: a service that starts
//! with either is broken. Advice is neither.

use std::path::Path;

use crate::config::{self, Config, Problem};

use super::Failure;
use super::args::Check;
use super::output::{self, Level};
use super::source::file_or_default;

/// `rcluster check`.
pub(super) fn check(typed: &Check) -> Result<(), Failure> {
    let file = file_or_default(typed.file.as_deref());
    let config = match config::load(file) {
        Ok(config) => config,
        Err(problems) => return refuse(file, &problems.0),
    };
    let explained = match typed.explain {
        true => output::print(&config::explain(&config)),
        false => Ok(()),
    };
    for advice in config.advice() {
        output::tell(Level::Warning, &format!("{advice} (advice)"));
    }
    let missing = config.check_programs();
    if !missing.is_empty() {
        return refuse(file, &missing);
    }
    explained?;
    let verdict = verdict(file, &config);
    // stdout has the configuration itself, which another program may read.
    match typed.explain {
        true => output::tell(Level::Info, &verdict),
        false => output::print(&(verdict + "\n"))?,
    }
    Ok(())
}

fn refuse(file: &Path, problems: &[Problem]) -> Result<(), Failure> {
    for problem in problems {
        output::tell(Level::Bad, &problem.to_string());
    }
    let count = count(problems.len(), "problem");
    output::tell(Level::Bad, &format!("{}: {count}", file.display()));
    Err(Failure::Told)
}

fn verdict(file: &Path, config: &Config) -> String {
    format!("{}: ok, {}", file.display(), count(config.pools.len(), "pool"))
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}
