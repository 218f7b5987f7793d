//! `rcluster check`: all that is wrong with a configuration at once, with or without a master.
//!
//! What the files say is judged first; only when they say something whole, what they name (programs,
//! users, directories) is looked for on this machine. Both are mistakes here: a service that starts
//! with either is broken. Advice is neither; nor is what a master that runs has to say about the same
//! pools, such as a program that was overwritten in place.

use std::path::Path;

use serde_json::json;

use crate::config::{self, Config, Problem};
use crate::wire::control::Status;

use super::Failure;
use super::args::{Check, Master};
use super::client::{Client, results};
use super::output::{self, Level};
use super::path::environment;
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
    for warning in warnings(&config) {
        output::tell(Level::Warning, &format!("{warning} (in the running service)"));
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

/// What a running master warns of in these pools. Nothing, where none can be asked.
fn warnings(config: &Config) -> Vec<String> {
    let asked = Client::find(&Master::default(), &environment)
        .and_then(|mut client| client.ask("Status", json!({})))
        .and_then(results::<Status>);
    let Ok(status) = asked else { return Vec::new() };
    let mut warnings = status.warnings;
    warnings.retain(|warning| {
        let pool = warning.split_once(": ").map(|(pool, _)| pool);
        pool.is_some_and(|pool| config.pool(pool).is_some())
    });
    warnings
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
