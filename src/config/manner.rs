//! How a pool's workers are started and spoken to, beyond their command: its kind and what the kind
//! needs, and what the process may do.
//!
//! Each kind can do other things, so many keys hold for some kinds only. [`misfit`] knows which, and
//! says why; a key that would silently do nothing is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::supervisor::{Accept, Policy};

use super::entry::{Entry, Read, Section};
use super::error::{Mistake, Report, one_of, quote};
use super::time::{HOUR, SHORTEST};
use super::{Kind, Pool, Preset, keys, limits, map};

/// The kinds as they are written.
pub(super) const KINDS: &[(&str, Kind)] = &[
    ("native", Kind::Native),
    ("node", Kind::Node),
    ("ipc", Kind::Ipc),
    ("inherit", Kind::Inherit),
];

/// How a pool's workers are started and spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manner {
    /// How workers are spoken to.
    pub kind: Kind,
    /// `node`: the ports, paths or addresses that an application asks for, and the entry of `listen`
    /// that each gets.
    pub map: BTreeMap<String, String>,
    /// `node`: a file that is loaded before the application makes drains immediate and counts
    /// connections.
    pub drain_preload: bool,
    /// `node`, `ipc`: only clients who have said something are passed on.
    pub first_byte: bool,
    /// `ipc`: what the application expects.
    pub dialect: Dialect,
    /// `inherit`: the number of the signal that ends a worker gracefully.
    pub stop_signal: i32,
    /// `inherit`: the listening sockets are blocking ones.
    pub blocking: bool,
    /// `inherit`: how a worker shows that it is ready.
    pub ready: Ready,
    /// How long a worker must live to count as ready, where it does not say so itself.
    pub settle: Duration,
    /// What the processes may do.
    pub limits: Limits,
}

impl Default for Manner {
    fn default() -> Self {
        Manner::of(Kind::Native)
    }
}

impl Manner {
    /// The defaults of a kind.
    pub fn of(kind: Kind) -> Manner {
        Manner {
            kind,
            map: BTreeMap::new(),
            drain_preload: false,
            first_byte: matches!(kind, Kind::Node | Kind::Ipc),
            dialect: Dialect::default(),
            stop_signal: Signal::SIGTERM as i32,
            blocking: false,
            ready: Ready::default(),
            settle: Duration::from_secs(1),
            limits: Limits::default(),
        }
    }

    /// Whether `settle` decides when a worker is ready.
    pub(super) fn settles(&self) -> bool {
        match self.kind {
            Kind::Inherit => self.ready == Ready::Settle,
            Kind::Ipc => self.dialect == Dialect::Plain,
            Kind::Native | Kind::Node => false,
        }
    }
}

impl Kind {
    /// As it is written.
    pub fn word(self) -> &'static str {
        word(KINDS, self)
    }

    /// Who accepts connections, unless it is said otherwise.
    pub(super) fn accept(self) -> Accept {
        match self {
            Kind::Native | Kind::Node | Kind::Ipc => Accept::Master,
            Kind::Inherit => Accept::Workers,
        }
    }

    /// Whether workers that accept by themselves count what they accept.
    pub(super) fn is_counted(self) -> bool {
        match self {
            Kind::Native => true,
            Kind::Node | Kind::Ipc | Kind::Inherit => false,
        }
    }

    /// Connections that a worker may have that it has not taken yet. Node answers each one, and the
    /// answer is the sign that it has time for the next.
    pub(super) fn window(self) -> u64 {
        match self {
            Kind::Native | Kind::Inherit => Policy::default().window,
            Kind::Node | Kind::Ipc => 1,
        }
    }
}

/// What an application of the kind `ipc` expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dialect {
    /// `process.on('message', (message, socket) => …)`.
    #[default]
    Plain,
    /// `require('node-cluster').Worker()`.
    NodeCluster,
}

/// How a worker shows that it is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ready {
    /// It says `READY=1`, or acknowledges as an Einhorn worker does.
    Notify,
    /// One of its processes waits for clients on one of its listening sockets.
    Probe,
    /// It has lived for `settle`, or says earlier that it is ready, as under [`Ready::Notify`]. The
    /// default, because it holds for every program; one that says `READY=1` is better told so.
    #[default]
    Settle,
}

/// What the processes of a pool may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Their nice value. `None`: the master's own.
    pub nice: Option<i32>,
    /// Resource limits by their names (`nofile`): soft and hard; the largest number: without limit.
    pub rlimits: BTreeMap<String, (u64, u64)>,
    /// The file mode creation mask. `None`: the master's own.
    pub umask: Option<u32>,
    /// The kernel's inclination to kill them when memory is short. `None`: the master's own.
    pub oom_score_adjust: Option<i32>,
    /// They can never gain privileges, by a setuid program for one.
    pub no_new_privileges: bool,
}

const DIALECTS: &[(&str, Dialect)] =
    &[("plain", Dialect::Plain), ("node-cluster", Dialect::NodeCluster)];

const READIES: &[(&str, Ready)] =
    &[("notify", Ready::Notify), ("probe", Ready::Probe), ("settle", Ready::Settle)];

impl Dialect {
    /// As it is written.
    pub fn word(self) -> &'static str {
        word(DIALECTS, self)
    }
}

impl Ready {
    /// As it is written.
    pub fn word(self) -> &'static str {
        word(READIES, self)
    }
}

/// The word of a meaning. Every meaning has one.
fn word<T: PartialEq>(words: &[(&'static str, T)], meaning: T) -> &'static str {
    words.iter().find(|(_, other)| *other == meaning).map_or("", |(word, _)| word)
}

/// The kind that somebody named.
pub(super) fn kind(name: &str) -> Result<Kind, Mistake> {
    let words: Vec<&str> = KINDS.iter().map(|(word, _)| *word).collect();
    let known = KINDS.iter().find(|(word, _)| *word == name);
    known.map(|(_, kind)| *kind).ok_or_else(|| {
        let remedy = match keys::nearest(name, &words) {
            Some(right) => format!("did you mean `{right}`?"),
            None => format!("write {}", one_of(&words)),
        };
        Mistake::new(format!("there is no kind {}", quote(name)), remedy)
    })
}

/// Reads a pool's kind, and the keys that depend on it. After `listen` and `user`.
pub(super) fn read(
    pool: &mut Pool,
    preset: Option<Preset>,
    section: &Section<'_>,
    report: &mut Report,
) {
    let found = report.len();
    let default = preset.map_or(pool.manner.kind, Preset::kind);
    let kind = section.read_or("kind", default, report, |entry| {
        let kind = entry.word(KINDS)?;
        match preset.and_then(|preset| preset.refuse_kind(kind)) {
            None => Ok(kind),
            Some(Mistake { message, remedy }) => entry.refuse(message, remedy.unwrap_or_default()),
        }
    });
    pool.become_kind(kind);
    if let Some(preset) = preset {
        preset.fill(pool);
    }
    // A preset that was refused may be of any kind.
    let is_known = preset.is_some() || section.entry("preset").is_none();
    pool.policy.accept = section.read_or("accept", pool.policy.accept, report, |entry| {
        let accept = entry.word(&[("master", Accept::Master), ("workers", Accept::Workers)])?;
        match refused_accept(kind, accept) {
            None => Ok(accept),
            Some(Mistake { message, remedy }) => entry.refuse(message, remedy.unwrap_or_default()),
        }
    });
    read_own(&mut pool.manner, section, report);
    // What a key means that is wrong is not known; nor what else it would contradict.
    if is_known && report.len() == found {
        refuse_misfits(pool, section, report);
    }
    map::read(pool, section, report);
    limits::read(pool, section, report);
}

/// The keys that belong to one kind or the other.
fn read_own(manner: &mut Manner, section: &Section<'_>, report: &mut Report) {
    let mut truth =
        |key, default| section.read_or(key, default, report, |entry: &Entry<'_>| entry.boolean());
    manner.drain_preload = truth("drain-preload", manner.drain_preload);
    manner.first_byte = truth("first-byte", manner.first_byte);
    manner.blocking = truth("blocking", manner.blocking);
    manner.dialect =
        section.read_or("dialect", manner.dialect, report, |entry| entry.word(DIALECTS));
    manner.ready = section.read_or("ready", manner.ready, report, |entry| entry.word(READIES));
    manner.stop_signal = section.read_or("stop-signal", manner.stop_signal, report, stop_signal);
    manner.settle =
        section.read_or("settle", manner.settle, report, |entry| entry.duration(SHORTEST..=HOUR));
}

/// Why a kind's connections cannot be accepted like that.
fn refused_accept(kind: Kind, accept: Accept) -> Option<Mistake> {
    match (kind, accept) {
        (Kind::Ipc, Accept::Workers) => Some(Mistake::new(
            "workers of the kind `ipc` are handed connections and never accept any",
            "remove the line, or write kind = \"node\" or kind = \"inherit\"",
        )),
        (Kind::Inherit, Accept::Master) => Some(Mistake::new(
            "workers of the kind `inherit` accept from the listening sockets themselves",
            "remove the line",
        )),
        (Kind::Native | Kind::Node | Kind::Ipc, Accept::Master)
        | (Kind::Native | Kind::Node | Kind::Inherit, Accept::Workers) => None,
    }
}

/// Whether a key means anything in this pool.
pub(super) fn holds(key: &str, pool: &Pool) -> bool {
    misfit(key, pool).is_none()
}

fn refuse_misfits(pool: &Pool, section: &Section<'_>, report: &mut Report) {
    for key in keys::POOL {
        if let (Some(entry), Some(mistake)) = (section.entry(key), misfit(key, pool)) {
            section.report(entry.key_offset, mistake, report);
        }
    }
}

/// Why a key means nothing in a pool, if so.
fn misfit(key: &str, pool: &Pool) -> Option<Mistake> {
    let (kind, manner) = (pool.manner.kind, &pool.manner);
    let only = |kinds: &[Kind]| {
        let words: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
        let message = format!("`{key}` has no meaning for the kind `{}`", kind.word());
        let remedy = format!("remove it; it is for the kind {}", one_of(&words));
        (!kinds.contains(&kind)).then(|| Mistake::new(message, remedy))
    };
    let because = |why: &str, remedy: &str| {
        Some(Mistake::new(format!("`{key}` has no meaning here: {why}"), remedy))
    };
    let accepts_itself = pool.policy.accept == Accept::Workers;
    match key {
        "map" | "drain-preload" => only(&[Kind::Node]),
        "dialect" => only(&[Kind::Ipc]),
        "first-byte" => only(&[Kind::Node, Kind::Ipc]),
        "stop-signal" | "blocking" | "ready" => only(&[Kind::Inherit]),
        "settle" if !matches!(kind, Kind::Inherit | Kind::Ipc) => only(&[Kind::Inherit, Kind::Ipc]),
        "settle" if !manner.settles() => because(
            "the workers show otherwise that they are ready",
            match kind {
                Kind::Inherit => "remove it, or write ready = \"settle\"",
                Kind::Native | Kind::Node | Kind::Ipc => "remove it",
            },
        ),
        "crash-ledger" | "max-requests" | "probe" | "probe-timeout" if kind != Kind::Native => {
            let why = match key {
                "crash-ledger" => "only the worker library writes down what becomes of clients",
                "max-requests" => "only the worker library counts requests",
                _ => "only the worker library answers a question of the master's",
            };
            because(why, "remove it; it is for the kind `native`")
        }
        "balance" | "max-connections" | "unavailable" | "unavailable-after" | "watchdog"
            if accepts_itself && !is_told(key, kind) =>
        {
            let remedy = match kind {
                Kind::Native | Kind::Node => "remove it, or write accept = \"master\"",
                Kind::Ipc | Kind::Inherit => "remove it",
            };
            because("the workers accept connections themselves", remedy)
        }
        "crash-ledger" if accepts_itself => because(
            "the workers accept connections themselves, and the master holds none that it could save",
            "remove it, or write accept = \"master\"",
        ),
        "max-connections" if kind == Kind::Node && !manner.drain_preload => because(
            "without the preload, the master does not see when a Node worker's connection ends",
            "remove it, or write drain-preload = true",
        ),
        "max-connections" if kind == Kind::Ipc && manner.dialect == Dialect::NodeCluster => {
            because(
                "such a worker does not say when a connection ends",
                "remove it; the application can bound itself",
            )
        }
        _ => None,
    }
}

/// Whether workers that accept by themselves are told this, so that it holds for them, too.
fn is_told(key: &str, kind: Kind) -> bool {
    match kind {
        Kind::Native => matches!(key, "max-connections" | "watchdog"),
        Kind::Inherit => key == "watchdog",
        Kind::Node | Kind::Ipc => false,
    }
}

/// The signal of a name, with or without `SIG`.
fn stop_signal(entry: &Entry<'_>) -> Read<i32> {
    let text = entry.text_of("the name of a signal", "\"SIGTERM\"")?;
    let whole = |name: &str| match name.strip_prefix("SIG") {
        Some(_) => name.to_owned(),
        None => format!("SIG{name}"),
    };
    match whole(text).parse() {
        Ok(Signal::SIGKILL | Signal::SIGSTOP) => entry.refuse(
            format!("`stop-signal` cannot be {}, which no program can act upon", quote(text)),
            "write one that ends the program gracefully; what does not end in time is killed anyway",
        ),
        Ok(signal) => Ok(signal as i32),
        Err(_) => {
            let names: Vec<&str> = Signal::iterator().map(Signal::as_str).collect();
            let right = whole(&text.to_uppercase());
            let remedy = match names.iter().find(|name| **name == right) {
                Some(name) => format!("did you mean `{name}`?"),
                None => "write the name of a signal, for example \"SIGTERM\", \"SIGQUIT\" or \
                         \"SIGUSR2\""
                    .to_owned(),
            };
            entry.refuse(format!("there is no signal {}", quote(text)), remedy)
        }
    }
}

/// The name of a signal, as [`stop_signal`] reads it.
pub(super) fn signal_name(number: i32) -> &'static str {
    Signal::try_from(number).map_or("SIGTERM", Signal::as_str)
}
