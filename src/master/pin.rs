//! What a generation runs, held fast when the generation is made.
//!
//! A crash must never depend on a deploy: a worker of an old generation that is started again is
//! the old program, even if its file has been replaced or its `current` symlink moved on. So when a
//! goal is made, its programs and working directories are opened, and symlinks on the way to them
//! and in arguments are resolved. A program is executed by its path as long as the path still names
//! the file that was opened, and by its descriptor after that; scripts through their interpreter,
//! which is held in the same way. The last part of the program's own path keeps its name, because
//! programs look at it (a virtual environment's `python` is a symlink, and must stay one).
//!
//! What is overwritten in place cannot be held fast: the file that is open has changed, too. That
//! is detected, and said. So it is for sources that arguments name (`node server.js`): an
//! interpreter opens them by their paths, and finds its modules beside them.

mod head;
pub(super) mod script;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use head::{is_foreign, shebang};
use nix::libc;
use script::Script;

use super::accounts::identity;
use crate::config::{Manner, Pool, Probe, why};
use crate::sys::ancillary::number_of;
use crate::sys::place::{HIGH, duplicate_from};
use crate::sys::process::Identity;

/// Variables of the master that workers never see: they speak of the master's own sockets.
const PRIVATE: &[&str] = &[
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_FDS_FIRST_FD",
    "FDSTORE",
    "NODE_CHANNEL_FD",
    "NODE_CHANNEL_SERIALIZATION_MODE",
    "NODE_UNIQUE_ID",
    super::state::STATE_VARIABLE,
    super::state::REHEARSAL_VARIABLE,
];

/// Everything that a pool's workers of one generation are started from.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(super) program: Result<Program, String>,
    pub(super) arguments: Vec<OsString>,
    /// Sources that its arguments name.
    pub(super) scripts: Vec<Script>,
    pub(super) directory: Option<Directory>,
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(crate) identity: Option<Identity>,
    /// How they are started and spoken to.
    pub(crate) manner: Manner,
    /// Its workers keep a crash ledger.
    pub(crate) crash_ledger: bool,
    pub(crate) probe: Option<Probe>,
}

/// A working directory, opened.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) handle: OwnedFd,
    /// Device and inode.
    pub(super) place: (u64, u64),
}

/// A file, opened; and what it was when it was opened.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) stamp: Stamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) modified: (i64, i64),
}

/// How a program is started.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) command: Command,
    /// What it is told that it is called: its own path, also where another one must be executed.
    pub(crate) name: OsString,
    /// Descriptors that it must inherit.
    pub(crate) keep: Vec<OwnedFd>,
    /// What it is executed from.
    pub(crate) hold: Vec<OwnedFd>,
}

#[derive(Debug)]
pub(super) struct Program {
    pub(super) held: Held,
    pub(super) interpreter: Option<Interpreter>,
}

#[derive(Debug)]
pub(super) struct Interpreter {
    pub(super) held: Held,
    pub(super) argument: Option<OsString>,
}

impl Pinned {
    /// Opens and resolves what `pool` names. A program that is not there is no error here: it makes
    /// every start fail, with a sentence.
    ///
    /// # Errors
    /// A sentence about a working directory, user or group that does not exist, or about what this
    /// master may not give to workers.
    pub(crate) fn new(pool: &Pool) -> Result<Pinned, String> {
        if let Some(refusal) = pool.refusal() {
            return Err(refusal.to_string());
        }
        let directory = pool.working_directory.as_ref().map(|path| open_directory(path));
        let directory = directory.transpose()?;
        let base = pool.working_directory.as_deref().map(resolve);
        let environment = environment(pool);
        let program = pool
            .program()
            .map_err(|mistake| mistake.to_string())
            .and_then(|path| Program::open(&keep_name(&path)));
        let words = pool.command.iter().skip(1).map(OsString::from);
        let arguments = words.map(|word| resolve_argument(word, base.as_deref()));
        let arguments: Vec<OsString> = arguments.collect();
        let scripts = script::among(&arguments, base.as_deref());
        let identity = identity(pool)?;
        if let Some(why) = pool.manner.limits.to_set().forbidden() {
            return Err(why);
        }
        Ok(Pinned {
            program,
            arguments,
            scripts,
            directory,
            environment,
            identity,
            manner: pool.manner.clone(),
            crash_ledger: pool.crash_ledger,
            probe: pool.probe.clone(),
        })
    }

    /// Whether workers started from this and from `other` would be the same.
    pub(crate) fn is_same(&self, other: &Pinned) -> bool {
        let programs = match (&self.program, &other.program) {
            (Ok(one), Ok(two)) => one.is_same(two),
            (Err(_), _) | (_, Err(_)) => false,
        };
        programs
            && self.arguments == other.arguments
            && self.scripts == other.scripts
            && self.environment == other.environment
            && self.identity == other.identity
            && self.manner == other.manner
            && self.crash_ledger == other.crash_ledger
            && self.directory.as_ref().map(|it| it.place)
                == other.directory.as_ref().map(|it| it.place)
    }

    /// Why it cannot be started, as far as that is known without trying.
    pub(crate) fn missing(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }

    /// What of it has been overwritten in place since, for people.
    pub(crate) fn overwritten(&self) -> Option<String> {
        let program = self.program.as_ref().ok()?;
        let held = [Some(&program.held), program.interpreter.as_ref().map(|it| &it.held)];
        if let Some(changed) = held.into_iter().flatten().find(|held| held.is_overwritten()) {
            return Some(format!("{} was overwritten in place", changed.path.display()));
        }
        let changed = self.scripts.iter().find_map(Script::changed)?;
        Some(format!("{} is not what it was", changed.display()))
    }

    /// How to start it.
    ///
    /// # Errors
    /// A sentence: the program cannot be run.
    pub(crate) fn invocation(&self) -> Result<Invocation, String> {
        let program = self.program.as_ref().map_err(Clone::clone)?;
        let mut invocation = program.invocation().map_err(|error| error.to_string())?;
        invocation.command.args(&self.arguments).env_clear();
        invocation.command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        Ok(invocation)
    }

    /// The working directory for one more child.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(crate) fn directory(&self) -> io::Result<Option<OwnedFd>> {
        self.directory.as_ref().map(|directory| directory.handle.try_clone()).transpose()
    }
}

impl Program {
    fn is_same(&self, other: &Program) -> bool {
        let interpreters = match (&self.interpreter, &other.interpreter) {
            (None, None) => true,
            (Some(one), Some(two)) => one.held.is_same(&two.held) && one.argument == two.argument,
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.held.is_same(&other.held) && interpreters
    }

    fn open(path: &Path) -> Result<Program, String> {
        let name = path.display();
        let held = Held::open(path)
            .map_err(|error| format!("the program {name} cannot be opened: {}", why(&error)))?;
        if is_foreign(&held.file) {
            return Err(format!("the program {name} is built for another kind of machine"));
        }
        let interpreter = match shebang(&held.file) {
            None => None,
            Some((path, argument)) => {
                let held = Held::open(&path).map_err(|error| {
                    let interpreter = path.display();
                    let why = why(&error);
                    format!("the interpreter {interpreter} of {name} cannot be opened: {why}")
                })?;
                Some(Interpreter { held, argument })
            }
        };
        Ok(Program { held, interpreter })
    }

    fn invocation(&self) -> io::Result<Invocation> {
        let (path, mut keep, mut hold) = (&self.held.path, Vec::new(), Vec::new());
        let plain = |program: PathBuf| (Command::new(program), path.into());
        let (command, name) = match &self.interpreter {
            None => plain(self.held.runnable(&mut hold)?),
            // The kernel finds the interpreter.
            Some(interpreter) if self.held.is_in_place() && interpreter.held.is_in_place() => {
                plain(path.clone())
            }
            Some(Interpreter { held, argument }) => {
                let mut command = Command::new(held.runnable(&mut hold)?);
                command.args(argument);
                if self.held.is_in_place() {
                    command.arg(path);
                } else {
                    let script = duplicate_from(self.held.file.as_fd(), HIGH)?;
                    command.arg(format!("/proc/self/fd/{}", number_of(&script)));
                    keep.push(script);
                }
                (command, held.path.clone().into())
            }
        };
        Ok(Invocation { command, name, keep, hold })
    }
}

impl Held {
    pub(super) fn open(path: &Path) -> io::Result<Held> {
        // A program may be executable without being readable; then a handle must do.
        let file = File::open(path).or_else(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                return File::options().read(true).custom_flags(libc::O_PATH).open(path);
            }
            Err(error)
        })?;
        let stamp = Stamp::of(&file.metadata()?);
        Ok(Held { path: path.to_owned(), file, stamp })
    }

    fn is_same(&self, other: &Held) -> bool {
        self.path == other.path && self.stamp == other.stamp
    }

    /// Whether its path still names it.
    fn is_in_place(&self) -> bool {
        self.path.metadata().is_ok_and(|metadata| Stamp::of(&metadata).is_same_file(self.stamp))
    }

    fn is_overwritten(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| Stamp::of(&metadata) != self.stamp)
    }

    /// A path that runs it, whatever its own path names by now.
    fn runnable(&self, hold: &mut Vec<OwnedFd>) -> io::Result<PathBuf> {
        if self.is_in_place() {
            return Ok(self.path.clone());
        }
        let file = duplicate_from(self.file.as_fd(), HIGH)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", number_of(&file)));
        hold.push(file);
        Ok(path)
    }
}

impl Stamp {
    pub(super) fn of(metadata: &std::fs::Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    fn is_same_file(self, other: Stamp) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// Without symlinks on the way, but under its own last name.
fn keep_name(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolve(parent).join(name),
        _ => path,
    }
}

fn absolute(path: &Path, base: Option<&Path>) -> PathBuf {
    match base {
        Some(base) => base.join(path),
        None => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// Without symlinks, as far as it exists.
fn resolve(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// An argument that names something through a symlink names what the symlink points to now.
fn resolve_argument(word: OsString, base: Option<&Path>) -> OsString {
    let path = Path::new(&word);
    // What lies in /proc and /dev means another thing to each process.
    let is_own = path.starts_with("/proc") || path.starts_with("/dev");
    if is_own || !word.as_bytes().contains(&b'/') || word.as_bytes().starts_with(b"-") {
        return word;
    }
    let plain = absolute(path, base);
    match plain.canonicalize() {
        Ok(real) if real != plain.components().collect::<PathBuf>() => real.into_os_string(),
        _ => word,
    }
}

fn open_directory(path: &Path) -> Result<Directory, String> {
    Directory::open(path).map_err(|error| {
        format!("working-directory {} cannot be opened: {}", path.display(), why(&error))
    })
}

impl Directory {
    pub(super) fn open(path: &Path) -> io::Result<Directory> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let handle = File::options().read(true).custom_flags(flags).open(path)?;
        let metadata = handle.metadata()?;
        let place = (metadata.dev(), metadata.ino());
        Ok(Directory { path: path.to_owned(), handle: handle.into(), place })
    }
}

/// The workers' environment, without what belongs to one worker.
fn environment(pool: &Pool) -> Vec<(OsString, OsString)> {
    let mut environment: std::collections::BTreeMap<OsString, OsString> =
        if pool.clear_environment { Default::default() } else { std::env::vars_os().collect() };
    environment.retain(|key, _| {
        !PRIVATE.iter().any(|name| key == name) && !key.as_bytes().starts_with(b"RCLUSTER_")
    });
    for (key, value) in &pool.environment {
        environment.insert(key.into(), value.into());
    }
    environment.into_iter().collect()
}

#[cfg(test)]
mod tests;
