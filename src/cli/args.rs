//! What was typed, nothing more: every verb and option of the command line.
//!
//! Help, man pages and completions come from this one definition ([`Arguments::command`] of
//! [`clap::CommandFactory`]). What it means is decided elsewhere; here a value is at most parsed.
//! Options that a later version brings are known, so that they are refused with a sentence, and
//! hidden, so that nobody is sent to them.
//!
//! [`Arguments::command`]: clap::CommandFactory::command

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Listen, MOST_WORKERS, Workers};

/// Runs a service as many worker processes and never drops a client
#[derive(Debug, Parser)]
#[command(name = "rcluster", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  rcluster run --listen 8080 --workers 4 -- ./server   serve without any configuration
  rcluster check                                       is the configuration right?
  rcluster reload                                      new workers, and no client is dropped
  rcluster status --watch                              who serves, and how much

Exit codes: 0 done, 1 failed or refused, 2 wrong usage")]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the service in the foreground, under systemd or without
    #[command(after_help = "\
Examples:
  rcluster run                                         what /etc/rcluster/rcluster.toml says
  rcluster run --config ./rcluster.toml                what another file says
  rcluster run --listen 127.0.0.1:8080 -- ./server     one pool, as many workers as CPUs
  rcluster run --listen 8080 --preset uvicorn -- uvicorn app:app

ADDR is 127.0.0.1:8080, [::]:8080, 8080 (all interfaces), /run/app.sock, @name (an abstract Unix
socket), or the name of a socket that systemd passes on.")]
    Run(Run),
    /// Run a demonstration: HTTP on ports 33749 to 33751, an echo on 8080, workers built in
    #[command(after_help = "\
Example:
  rcluster demo                                        then: curl http://127.0.0.1:33749/")]
    Demo,
    /// Say everything that is wrong with a configuration
    #[command(after_help = "\
Examples:
  rcluster check                                       /etc/rcluster/rcluster.toml and its conf.d
  rcluster check ./rcluster.toml --explain             and what it says with all the defaults")]
    Check(Check),
    /// Replace the workers, one after the other, and wait until it is done or undone
    #[command(after_help = "\
Examples:
  rcluster reload                                      all pools, and the configuration anew
  rcluster reload web api                              these two, together or not at all
  rcluster reload --check                              would it go well? nothing is changed
  rcluster reload --no-wait                            only ask for it")]
    Reload(Reload),
    /// Show pools, workers and connections
    #[command(after_help = "\
Examples:
  rcluster status                                      a page for people
  rcluster status web --watch                          one pool, again every second
  rcluster status --reloads                            who reloaded when, and what came of it
  rcluster status --drain                              which connections old workers wait for
  rcluster status --json                               everything, for programs")]
    Status(Status),
    /// Give a pool another number of workers, until the master ends
    #[command(after_help = "\
Example:
  rcluster scale web 8                                 eight workers; reloads keep them")]
    Scale(Scale),
    /// End the service once its workers have finished what they have
    #[command(after_help = "\
Example:
  rcluster stop                                        returns when the service has ended")]
    Stop(Stop),
    /// Replace the master's own program, with nothing dropped
    #[command(after_help = "\
Example:
  rcluster upgrade                                     after a new rcluster was installed")]
    Upgrade(Upgrade),
    /// Be the built-in worker: a page that says it works and who answered
    #[command(after_help = "\
Example:
  rcluster run --listen 8080 -- rcluster hello         then: curl http://127.0.0.1:8080/")]
    Hello,
    /// Be a worker of the demonstration
    #[command(hide = true)]
    DemoWorker(DemoWorker),
    /// End what is left of a service that has ended; the units run it
    #[command(hide = true)]
    Sweep(Sweep),
}

/// What was typed after `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The configuration [default: /etc/rcluster/rcluster.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to make the control socket
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Where to listen, see below; may be repeated
    #[arg(long, value_name = "ADDR", requires = "command", conflicts_with = "config")]
    pub listen: Vec<Listen>,
    /// How many workers: a number, or auto for as many as CPUs
    #[arg(long, value_name = "N|auto", requires = "command", conflicts_with = "config")]
    pub workers: Option<Workers>,
    /// How workers are spoken to: native, node, ipc or inherit [default: native]
    #[arg(long, value_name = "KIND", requires = "command", conflicts_with = "config")]
    pub kind: Option<String>,
    /// A known server's settings: gunicorn, puma, node and others
    #[arg(long, value_name = "NAME", requires = "command", conflicts_with = "config")]
    pub preset: Option<String>,
    /// The workers' program and its arguments: one pool, without a file
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "config")]
    pub command: Vec<String>,
}

/// What was typed after `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The configuration [default: /etc/rcluster/rcluster.toml]
    pub file: Option<PathBuf>,
    /// Print the whole effective configuration, defaults included
    #[arg(long)]
    pub explain: bool,
}

/// What was typed after `reload`.
#[derive(Debug, Args)]
pub struct Reload {
    /// The pools to reload [default: all]
    #[arg(value_name = "POOL")]
    pub pools: Vec<String>,
    /// Return as soon as the reload is accepted
    #[arg(long)]
    pub no_wait: bool,
    /// Change nothing: start one worker of each pool, and say if it works
    #[arg(long, conflicts_with = "no_wait")]
    pub check: bool,
    /// Which master.
    #[command(flatten)]
    pub master: Master,
}

/// What was typed after `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Only this pool
    pub pool: Option<String>,
    /// Print the status as JSON
    #[arg(long)]
    pub json: bool,
    /// Show it again every second, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// Show the last 100 reloads, newest first
    #[arg(long, conflicts_with_all = ["pool", "watch"])]
    pub reloads: bool,
    /// Show the workers that drain, and each connection that they wait for
    #[arg(long, conflicts_with = "reloads")]
    pub drain: bool,
    /// Which master.
    #[command(flatten)]
    pub master: Master,
}

/// What was typed after `scale`.
#[derive(Debug, Args)]
pub struct Scale {
    /// The pool
    pub pool: String,
    /// How many workers, 1 to 1024
    #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_WORKERS)))]
    pub workers: u32,
    /// Which master.
    #[command(flatten)]
    pub master: Master,
}

/// What was typed after `stop`.
#[derive(Debug, Args)]
pub struct Stop {
    /// Which master.
    #[command(flatten)]
    pub master: Master,
}

/// What was typed after `upgrade`.
#[derive(Debug, Args)]
pub struct Upgrade {
    /// Which master.
    #[command(flatten)]
    pub master: Master,
}

/// What was typed after `demo-worker`.
#[derive(Debug, Args)]
pub struct DemoWorker {
    /// Which of the demonstration's workers
    pub name: String,
}

/// What was typed after `sweep`.
#[derive(Debug, Args)]
pub struct Sweep {
    /// The service whose processes are ended, in the slice that this process runs in [default: the
    /// unit that this process belongs to]
    pub unit: Option<String>,
    /// Do nothing unless this file is there
    #[arg(long, value_name = "FILE")]
    pub mark: Option<PathBuf>,
}

/// Which master is meant, when several run.
#[derive(Clone, Debug, Default, Args)]
pub struct Master {
    /// The master's control socket
    #[arg(long, value_name = "PATH", conflicts_with = "instance")]
    pub control: Option<PathBuf>,
    /// The instance rcluster@NAME
    #[arg(short, long, value_name = "NAME", value_parser = instance)]
    pub instance: Option<String>,
}

/// The name of a unit's instance, as systemd has it after the `@`.
fn instance(name: &str) -> Result<String, &'static str> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || ":-_.\\".contains(c);
    if !name.is_empty() && name.chars().all(is_good) && name.len() < 256 {
        return Ok(name.to_owned());
    }
    Err("an instance has letters, digits, `:`, `-`, `_`, `.` and `\\`, as in rcluster@web")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_verb_has_an_example_that_parses() {
        for verb in Arguments::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let help = verb.get_after_help().expect("examples").to_string();
            let lines: Vec<&str> = help.lines().filter(|line| line.starts_with("  ")).collect();
            assert!(!lines.is_empty(), "{}", verb.get_name());
            for line in lines {
                let example = line.trim().split("   ").next().unwrap();
                let parsed = Arguments::try_parse_from(example.split_whitespace());
                assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn every_line_of_the_contract_parses() {
        for typed in [
            "run --config f --control p",
            "run --control p --listen 8080 --listen [::]:8080 --workers auto --kind node -- c -x",
            "run --listen /run/app.sock --preset gunicorn --workers 2 -- c",
            "run -- c",
            "demo",
            "demo-worker echo",
            "check f --explain",
            "reload a b --no-wait --control p",
            "reload a b --check --control p",
            "status a --json --drain -i web",
            "status --reloads --json",
            "status web --drain --watch",
            "status --watch",
            "scale a 3 -i web",
            "stop --control p",
            "upgrade -i web",
            "hello",
            "sweep rcluster.service --mark f",
        ] {
            let words = ["rcluster"].into_iter().chain(typed.split(' '));
            assert!(Arguments::try_parse_from(words).is_ok(), "{typed}");
        }
    }

    #[test]
    fn an_instance_is_no_path() {
        assert!(instance("web-1.a\\x2d").is_ok());
        for name in ["", "../x", "a/b", "a b", "é"] {
            assert!(instance(name).is_err(), "{name}");
        }
    }
}
