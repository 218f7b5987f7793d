//! What was typed becomes one request, and its answer becomes text and an exit code.
//!
//! ```text
//!  args ──▶ execute ─┬─ source ──▶ run      the daemon, the demo, the built-in worker
//!  what was typed    ├─ check               a configuration, read and judged here
//!                    └─ path ──▶ client ──▶ control, status ──▶ render
//!                       where it listens    one call, its answers
//! ```
//!
//! * [`args`]: every verb and option; help, man pages and completions come from it.
//! * [`source`]: where a daemon's configuration comes from.
//! * [`path`]: where the control socket is, for the daemon and for the client.
//! * [`client`]: one connection to a master, one call, its answers.
//! * [`control`]: the verbs that command a master.
//! * [`status`]: the verb that looks at one; [`render`] and [`reloads`] turn what it sees into text.
//! * [`check`]: all that is wrong with a configuration.
//! * [`sweep`]: what the units run when the service has ended.
//! * [`output`]: what is printed, where, and how bad it is.
//!
//! Exit codes: 0 done, 1 failed or refused (one sentence says why and what to do), 2 usage. A reader
//! of the output who has left is no failure.

pub mod args;
mod check;
pub mod client;
mod control;
mod draining;
pub mod output;
pub mod path;
mod reloads;
mod render;
mod run;
pub mod source;
mod status;
mod sweep;

use std::fmt;
use std::io;
use std::process::ExitCode;

use crate::config::Mistake;

use args::{Arguments, Verb};
use output::Level;

/// The definition that help, man pages and completions come from.
#[must_use]
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Does what was typed.
#[must_use]
pub fn execute(arguments: Arguments) -> ExitCode {
    let outcome = match arguments.verb {
        Verb::Run(typed) => run::run(&typed),
        Verb::Demo => run::demo(),
        Verb::DemoWorker(typed) => run::demo_worker(&typed.name),
        Verb::Hello => run::hello(),
        Verb::Check(typed) => check::check(&typed),
        Verb::Reload(typed) => control::reload(&typed),
        Verb::Status(typed) => status::status(&typed),
        Verb::Scale(typed) => control::scale(&typed),
        Verb::Stop(typed) => control::stop(&typed),
        Verb::Upgrade(typed) => control::upgrade(&typed),
        Verb::Sweep(typed) => sweep::sweep(&typed),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Output(cause)) if cause.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(Failure::Told) => ExitCode::FAILURE,
        Err(failure) => {
            output::tell(Level::Bad, &failure.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Why a verb did not do what was asked. Exit code 1.
#[derive(Debug)]
pub enum Failure {
    /// The master was not reached, or said no.
    Client(client::Error),
    /// What was typed cannot be done.
    Mistake(Mistake),
    /// No pool has this name.
    UnknownPool {
        /// As typed.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// The master ended while something was waited for.
    Gone {
        /// When that was: what follows "the master ended".
        when: &'static str,
    },
    /// The daemon or a worker could not start, or could not go on.
    Master(String),
    /// Nothing could be printed.
    Output(io::Error),
    /// Whoever failed has said it already.
    Told,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Client(error) => error.fmt(f),
            Failure::Mistake(mistake) => mistake.fmt(f),
            Failure::Master(sentence) => f.write_str(sentence),
            Failure::UnknownPool { name, known } => {
                write!(f, "there is no pool `{name}`; ")?;
                match known.as_slice() {
                    [] => f.write_str("this rcluster has none"),
                    known => write!(f, "this rcluster has: {}", known.join(", ")),
                }
            }
            Failure::Gone { when } => write!(f, "the master ended {when}"),
            Failure::Output(cause) => write!(f, "the output cannot be written: {cause}"),
            Failure::Told => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        Failure::Client(error)
    }
}

impl From<Mistake> for Failure {
    fn from(mistake: Mistake) -> Self {
        Failure::Mistake(mistake)
    }
}

impl From<io::Error> for Failure {
    fn from(cause: io::Error) -> Self {
        Failure::Output(cause)
    }
}
