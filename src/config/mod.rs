//! The TOML as written becomes a [`Config`]: whole, valid and immutable; or all that is wrong with
//! it, each mistake with file, line, column and remedy.
//!
//! ```text
//!  rcluster.toml ─┐  file: read, merge      pool, master: every key        ┌─▶ Config
//!  conf.d/*.toml ─┴─▶ tables with places ─▶ becomes a type or a problem ───┴─▶ Problems
//! ```
//!
//! [`load`] depends on the files alone (and on the number of CPUs). Whether the named programs,
//! users and directories exist on this machine is another question, asked by
//! [`Config::check_programs`]: a missing program is a failed start, not a broken configuration.

mod address;
mod answer;
mod entry;
mod environment;
mod error;
mod explain;
mod file;
mod keys;
mod limits;
mod manner;
mod map;
mod master;
mod npm;
pub mod placeholder;
mod pool;
mod preset;
mod probe;
mod programs;
mod source;
mod time;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::supervisor::Policy;

pub use address::{Address, Listen};
pub use environment::EnvironmentFile;
pub(crate) use error::why;
pub use error::{Mistake, Problem, Problems};
pub use explain::explain;
pub use file::load;
pub use manner::{Dialect, Limits, Manner, Ready};
pub use preset::Preset;
pub use probe::{Probe, Question};

use error::Place;

/// The most workers of a pool.
pub const MOST_WORKERS: u32 = 1024;

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// What `[master]` says.
    pub master: MasterSettings,
    /// The pools, at least one, in the order of writing.
    pub pools: Vec<Pool>,
    /// The files that were read: the main one first, then those of `conf.d` by name.
    pub files: Vec<PathBuf>,
}

impl Config {
    /// A configuration of these pools without any file.
    pub fn of_pools(pools: Vec<Pool>) -> Config {
        Config { master: MasterSettings::default(), pools, files: Vec::new() }
    }

    /// The pool of a name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// Whether something differs, and nothing but the number of workers of pools. Neither the order
    /// of the pools nor the files that they stand in make a difference.
    pub fn differs_only_in_workers(&self, other: &Config) -> bool {
        let mut some_differs = false;
        for pool in &self.pools {
            let Some(theirs) = other.pool(&pool.name) else {
                return false;
            };
            some_differs |= pool.policy.workers != theirs.policy.workers;
            let mut equal = theirs.clone();
            equal.policy.workers = pool.policy.workers;
            if equal != *pool {
                return false;
            }
        }
        some_differs && self.master == other.master && self.pools.len() == other.pools.len()
    }
}

/// What `[master]` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MasterSettings {
    /// End after this time without a connection. `None`: never.
    pub idle_exit: Option<std::time::Duration>,
    /// Where the workers' output goes.
    pub log: Log,
    /// How many generations may drain at once, 1 or more.
    pub generations: u32,
    /// How long workers wait for the next master after this one was killed.
    pub orphan_timeout: std::time::Duration,
    /// The mode of the control socket.
    pub control_mode: u32,
    /// The group of the control socket. `None`: the master's own.
    pub control_group: Option<String>,
    #[serde(skip)]
    places: Places,
}

impl Default for MasterSettings {
    fn default() -> Self {
        MasterSettings {
            idle_exit: None,
            log: Log::default(),
            generations: 3,
            orphan_timeout: std::time::Duration::from_secs(60),
            control_mode: 0o660,
            control_group: None,
            places: Places::default(),
        }
    }
}

/// Where the workers' output goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Log {
    /// Through the master, line by line, with the worker's name.
    #[default]
    Fields,
    /// To the journal, in a stream of each worker's own.
    Stream,
    /// Where the master's own output goes.
    Inherit,
}

/// How a pool's workers are started and spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// They use the worker library.
    #[default]
    Native,
    /// Node applications, by the protocol of Node's own cluster.
    Node,
    /// Programs that are handed sockets over Node's IPC channel.
    Ipc,
    /// Programs that inherit listening sockets.
    Inherit,
}

impl FromStr for Kind {
    type Err = Mistake;

    fn from_str(word: &str) -> Result<Self, Mistake> {
        manner::kind(word)
    }
}

/// How many workers, as written: `auto` or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// As many as there are CPUs.
    Auto,
    /// This many.
    Count(u32),
}

impl Workers {
    /// The number.
    pub fn count(self) -> u32 {
        match self {
            Workers::Auto => std::thread::available_parallelism()
                .map_or(1, usize::from)
                .try_into()
                .map_or(MOST_WORKERS, |count: u32| count.min(MOST_WORKERS)),
            Workers::Count(count) => count,
        }
    }
}

impl FromStr for Workers {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        match text.parse() {
            _ if text == "auto" => Ok(Workers::Auto),
            Ok(count @ 1..=MOST_WORKERS) => Ok(Workers::Count(count)),
            Ok(_) | Err(_) => Err(Mistake::new(
                format!("there cannot be {} workers", error::quote(text)),
                format!("write `auto` or a number from 1 to {MOST_WORKERS}"),
            )),
        }
    }
}

/// One pool: workers that share a command and listeners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The workers' program and its arguments; never empty.
    pub command: Vec<String>,
    /// Where it listens. Nowhere: a resident pool.
    pub listen: Vec<Listen>,
    /// How workers are started and spoken to.
    pub manner: Manner,
    /// The workers' working directory, absolute. `None`: the master's own.
    pub working_directory: Option<PathBuf>,
    /// Name or number of the workers' user. `None`: the master's own.
    pub user: Option<String>,
    /// Name or number of the workers' group. `None`: the user's.
    pub group: Option<String>,
    /// Names or numbers of further groups.
    pub supplementary_groups: Vec<String>,
    /// What is set in the workers' environment: `environment`, and over it what the environment
    /// files say.
    pub environment: BTreeMap<String, String>,
    /// The files that were read into [`Pool::environment`].
    pub environment_files: Vec<EnvironmentFile>,
    /// Whether workers start from an empty environment, not from the master's.
    pub clear_environment: bool,
    /// Whether the master keeps every client's socket, so that a worker's crash costs only answers
    /// that had begun.
    pub crash_ledger: bool,
    /// What clients are answered whom no worker can take. `None`: nothing, they wait.
    pub answer: Option<Vec<u8>>,
    /// How a worker is asked whether it works. `None`: it is not.
    pub probe: Option<Probe>,
    /// What decisions depend on; without listeners, which only the shell knows.
    pub policy: Policy,
    #[serde(skip)]
    places: Places,
}

impl Default for Pool {
    /// A pool without a name and without a command.
    fn default() -> Self {
        Pool::new(String::new(), Vec::new())
    }
}

impl Pool {
    /// A pool with all the defaults.
    pub fn new(name: impl Into<String>, command: Vec<String>) -> Pool {
        let name = name.into();
        Pool {
            command,
            listen: Vec::new(),
            manner: Manner::default(),
            working_directory: None,
            user: None,
            group: None,
            supplementary_groups: Vec::new(),
            environment: BTreeMap::new(),
            environment_files: Vec::new(),
            clear_environment: false,
            crash_ledger: false,
            answer: None,
            probe: None,
            policy: Policy {
                name: name.clone(),
                workers: Workers::Auto.count(),
                counted: Kind::Native.is_counted(),
                ..Policy::default()
            },
            name,
            places: Places::default(),
        }
    }

    /// Takes on a kind, with its defaults.
    fn become_kind(&mut self, kind: Kind) {
        self.manner = Manner::of(kind);
        self.policy.accept = kind.accept();
        self.policy.counted = kind.is_counted();
        self.policy.window = kind.window();
    }

    /// The pool of a command line, named after the command's file. Without a kind, it is the
    /// preset's, else `native`.
    pub fn from_command(
        listen: Vec<Listen>,
        workers: Workers,
        kind: Option<Kind>,
        preset: Option<Preset>,
        command: Vec<String>,
    ) -> Result<Pool, Mistake> {
        let Some(program) = command.first().filter(|program| !program.is_empty()) else {
            let remedy = "write it after `--`: rcluster run -- COMMAND";
            return Err(Mistake::new("there is no command", remedy));
        };
        if command.iter().any(|argument| argument.contains('\0')) {
            let message = "the command has a zero byte, which no program can be given";
            return Err(Mistake::new(message, "remove the zero byte"));
        }
        for (index, entry) in listen.iter().enumerate() {
            if let Some(earlier) = listen[..index].iter().find(|other| entry.conflicts(other)) {
                let (entry, earlier) = (error::quote(&entry.text), error::quote(&earlier.text));
                let message = format!("{entry} and {earlier} are the same address");
                return Err(Mistake::new(message, "give one of them"));
            }
        }
        let mut pool = Pool::new(pool::name_after(program), command);
        pool.listen = listen;
        let default = preset.map(Preset::kind).unwrap_or_default();
        pool.become_kind(kind.unwrap_or(default));
        if let Some(preset) = preset {
            if let Some(mistake) = preset.refuse_kind(pool.manner.kind) {
                return Err(mistake);
            }
            preset.fill(&mut pool);
            preset.finish(&mut pool)?;
        }
        if pool.manner.kind == Kind::Inherit {
            let mut arguments = pool.command.iter();
            arguments.try_for_each(|argument| placeholder::check(argument, &pool.listen))?;
        }
        pool.policy.workers = workers.count();
        Ok(pool)
    }
}

/// Where things were written, for what is only checked later. Never part of what a configuration
/// says: all places are equal.
#[derive(Clone, Debug, Default)]
struct Places {
    header: Option<Place>,
    keys: BTreeMap<&'static str, Place>,
}

impl Places {
    /// The place of a key's value, else of the header, else none.
    fn of(&self, key: &str) -> Place {
        let place = self.keys.get(key).or(self.header.as_ref());
        place.cloned().unwrap_or_else(Place::nowhere)
    }

    /// The same places, with this section's values of `keys` and its header.
    fn with(mut self, section: &entry::Section<'_>, keys: &[&'static str]) -> Places {
        let header = || section.source.place(section.offset);
        self.header.get_or_insert_with(header);
        for key in keys {
            if let Some(entry) = section.entry(key) {
                self.keys.insert(key, section.source.place(entry.offset()));
            }
        }
        self
    }
}

impl PartialEq for Places {
    fn eq(&self, _: &Places) -> bool {
        true
    }
}

/// A path as written in `file`: relative ones start at the file's directory.
fn resolve(written: &str, file: &Path) -> PathBuf {
    let directory = file.parent().unwrap_or(Path::new(""));
    let path = directory.join(written);
    std::path::absolute(&path).unwrap_or(path)
}

#[cfg(test)]
mod tests;
