//! `preset`: what a known server wants, in one word.
//!
//! A preset fills in what is not written: the kind, how a worker shows that it is ready, the signal
//! that ends it gracefully, variables. Where the command speaks of no socket by a placeholder, it
//! also adds the arguments that pass the sockets on. Nothing of it is hidden: the configuration holds
//! what came of it, and `rcluster check --explain` prints that.

use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::error::{Mistake, one_of, quote};
use super::{Kind, Pool, Ready, keys, placeholder};

/// A known server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset(&'static Known);

/// What a server wants.
#[derive(Debug, PartialEq)]
struct Known {
    name: &'static str,
    kind: Kind,
    ready: Ready,
    settle: Duration,
    stop_signal: Signal,
    blocking: bool,
    drain_preload: bool,
    /// Added to the command.
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    /// It takes one socket only.
    is_single: bool,
}

/// What most want: `LISTEN_FDS`, and SIGTERM to end gracefully.
const USUAL: Known = Known {
    name: "",
    kind: Kind::Inherit,
    ready: Ready::Probe,
    settle: Duration::from_secs(1),
    stop_signal: Signal::SIGTERM,
    blocking: false,
    drain_preload: false,
    arguments: &[],
    environment: &[],
    is_single: false,
};

const PRESETS: &[Known] = &[
    Known { name: "gunicorn", ready: Ready::Notify, ..USUAL },
    Known { name: "uvicorn", arguments: &["--fd", "{fd}"], is_single: true, ..USUAL },
    Known { name: "hypercorn", arguments: &["{each::--bind=fd://{fd}}"], ..USUAL },
    // It waits for clients by select(2), which cannot be seen; newer ones say READY=1.
    Known {
        name: "puma",
        ready: Ready::Settle,
        settle: Duration::from_secs(5),
        arguments: &["{each::--bind={url}}"],
        ..USUAL
    },
    // With this variable it stays in the foreground.
    Known {
        name: "nginx",
        stop_signal: Signal::SIGQUIT,
        environment: &[("NGINX", "{each::{fd};}")],
        ..USUAL
    },
    Known {
        name: "php-fpm",
        stop_signal: Signal::SIGQUIT,
        blocking: true,
        arguments: &["--nodaemonize"],
        environment: &[("FPM_SOCKETS", "{each:,:{addr-port}={fd}}")],
        ..USUAL
    },
    Known { name: "go", ..USUAL },
    // start_server, too, takes a worker for ready that has lived for a second.
    Known {
        name: "server-starter",
        ready: Ready::Settle,
        environment: &[
            ("SERVER_STARTER_PORT", "{each:;:{listen}={fd}}"),
            ("SERVER_STARTER_GENERATION", "{generation}"),
        ],
        ..USUAL
    },
    Known {
        name: "einhorn",
        ready: Ready::Notify,
        stop_signal: Signal::SIGUSR2,
        environment: &[
            ("EINHORN_MASTER_PID", "{master-pid}"),
            ("EINHORN_FD_COUNT", "{count}"),
            ("EINHORN_FDS", "{each: :{fd}}"),
            ("EINHORN_CHILD_INDEX", "{index}"),
        ],
        ..USUAL
    },
    Known { name: "node", kind: Kind::Node, drain_preload: true, ..USUAL },
];

/// Einhorn's variable of each socket, with its number behind: one for every entry of `listen`.
const EINHORN_FD: (&str, &str) = ("einhorn", "EINHORN_FD_");

impl FromStr for Preset {
    type Err = Mistake;

    fn from_str(name: &str) -> Result<Self, Mistake> {
        let found = PRESETS.iter().find(|known| known.name == name);
        found.map(Preset).ok_or_else(|| {
            let names: Vec<&str> = PRESETS.iter().map(|known| known.name).collect();
            let remedy = match keys::nearest(name, &names) {
                Some(right) => format!("did you mean `{right}`?"),
                None => format!("write {}, or the keys themselves", one_of(&names)),
            };
            Mistake::new(format!("there is no preset {}", quote(name)), remedy)
        })
    }
}

impl Preset {
    /// The kind of its workers.
    pub(super) fn kind(self) -> Kind {
        self.0.kind
    }

    /// The mistake of another kind with it.
    pub(super) fn refuse_kind(self, kind: Kind) -> Option<Mistake> {
        let Known { name, kind: own, .. } = self.0;
        (kind != *own).then(|| {
            let message =
                format!("the preset `{name}` is for workers of the kind `{}`", own.word());
            Mistake::new(message, format!("remove the preset, or the kind `{}`", kind.word()))
        })
    }

    /// Sets the defaults of a pool that has its kind already; what is written comes after.
    pub(super) fn fill(self, pool: &mut Pool) {
        let manner = &mut pool.manner;
        manner.drain_preload = self.0.drain_preload;
        if manner.kind != Kind::Inherit {
            return;
        }
        (manner.ready, manner.settle) = (self.0.ready, self.0.settle);
        manner.stop_signal = self.0.stop_signal as i32;
        manner.blocking = self.0.blocking;
    }

    /// Adds arguments and variables to a pool whose command, sockets and environment are known.
    ///
    /// # Errors
    /// The server cannot serve all the pool's sockets.
    pub(super) fn finish(self, pool: &mut Pool) -> Result<(), Mistake> {
        let Known { name, arguments, environment, is_single, .. } = self.0;
        let is_told = pool.command.iter().any(|argument| placeholder::names_sockets(argument));
        if *is_single && !is_told && pool.listen.len() != 1 {
            let message = format!(
                "{name} takes one listening socket, and `listen` has {}",
                pool.listen.len()
            );
            return Err(Mistake::new(message, "write one entry, for example listen = [\"8080\"]"));
        }
        if !is_told {
            pool.command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        }
        let mut set = |key: String, value: String| {
            pool.environment.entry(key).or_insert(value);
        };
        for (key, value) in *environment {
            set((*key).to_owned(), (*value).to_owned());
        }
        if *name == EINHORN_FD.0 {
            for (index, entry) in pool.listen.iter().enumerate() {
                set(format!("{}{index}", EINHORN_FD.1), format!("{{fd:{}}}", entry.text));
            }
        }
        Ok(())
    }
}
