//! Inherit workers: any program that takes listening sockets from systemd.
//!
//! The worker inherits the pool's listening sockets as descriptors 3, 4 and so on, as
//! sd_listen_fds(3) says, and accepts by itself: the master never sees a client of its. What it says
//! comes by sd_notify(3), to a socket of the worker's own. That has a name without a file: it can be
//! reached by workers of another user and behind a chroot, nothing is left behind in the file system,
//! and the next master has it again by binding the same name. Names of that sort are no secret, so a
//! notice counts only when the kernel says that one of the worker's processes has sent it.
//!
//! Whatever the program does not say is not known: how many clients it has, for one.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Start, Worker};
use crate::config::placeholder::{Socket, Values, expand, expand_argument};
use crate::config::{Manner, Mistake, Ready};
use crate::supervisor::ListenerId;
use crate::sys::accepting::inode_of;
use crate::sys::exec::OWN_PID;
use crate::sys::family;
use crate::sys::listen::Local;
use crate::sys::notices::Notices;
use crate::sys::process::{AnySignal, Process};

/// The first pause between two looks whether a worker waits for clients, and the longest.
pub(crate) const LOOK_FIRST: Duration = Duration::from_millis(20);
const LOOK_LAST: Duration = Duration::from_millis(200);

/// The number of the first listening socket.
const FIRST: u32 = 3;

/// What begins the variables of Einhorn's workers.
const EINHORN: &str = "EINHORN_";

/// What there is to listen on, and more that an inherit worker is given.
#[derive(Debug, Default)]
pub(crate) struct Offer {
    pub(crate) sockets: Vec<Offered>,
    /// How long it may be silent, once it has said that it is alive.
    pub(crate) watchdog: Option<Duration>,
    /// Where Einhorn's workers say that they are ready.
    pub(crate) einhorn: Option<PathBuf>,
    /// What a Node application loads first.
    pub(crate) preload: Option<PathBuf>,
    /// The workers accept there themselves.
    pub(crate) are_shared: bool,
    /// These stand in the place of the pool's own: the worker serves nobody.
    pub(crate) stands_in: bool,
}

/// A listening socket for a worker.
#[derive(Debug)]
pub(crate) struct Offered {
    pub(crate) listener: ListenerId,
    /// Its entry of `listen`.
    pub(crate) entry: String,
    /// The name that the worker is told.
    pub(crate) name: String,
    /// Where clients come.
    pub(crate) local: Local,
    pub(crate) socket: OwnedFd,
}

/// What stands between the master and an inherit worker.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) notices: Notices,
    /// Its name, by which the next master finds the worker's words.
    pub(crate) name: String,
    pub(crate) stop_signal: i32,
    pub(crate) watchdog: Option<Duration>,
    /// The inodes of its listening sockets.
    pub(crate) sockets: BTreeSet<u64>,
    pub(crate) readiness: Readiness,
    /// The process that it has named as its main one. `None`: the one that was started.
    pub(crate) main: Option<Process>,
    /// It was told to stop, or said that it does.
    pub(crate) is_leaving: bool,
    /// What it says about itself, for people.
    pub(crate) status: String,
    /// When it last said that it is alive. `None`: it never has, and need not.
    pub(crate) pinged: Option<Instant>,
    /// The process that has ended is not its last one: this one of its own is waited for.
    pub(crate) rest: Option<Process>,
}

/// How it becomes known that a worker is ready. Whatever else is waited for, READY=1 says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// It says so.
    Told,
    /// It waits for clients on one of its sockets: it is looked at then, and after this pause.
    Seen { at: Instant, pause: Duration },
    /// It lives until then.
    Settled { at: Instant },
    /// It is ready.
    Known,
}

impl Readiness {
    /// That of a worker that starts now.
    pub(crate) fn of(manner: &Manner, has_sockets: bool, now: Instant) -> Readiness {
        match manner.ready {
            Ready::Notify => Readiness::Told,
            // Without a socket there is nothing to be seen.
            Ready::Probe if has_sockets => {
                Readiness::Seen { at: now + LOOK_FIRST, pause: LOOK_FIRST }
            }
            Ready::Probe | Ready::Settle => Readiness::Settled { at: now + manner.settle },
        }
    }

    /// After a look that has seen nothing.
    pub(crate) fn look_again(self, now: Instant) -> Readiness {
        match self {
            Readiness::Seen { pause, .. } => {
                let pause = (pause * 2).min(LOOK_LAST);
                Readiness::Seen { at: now + pause, pause }
            }
            Readiness::Told | Readiness::Settled { .. } | Readiness::Known => self,
        }
    }
}

/// A name for a socket that nobody can have taken before.
///
/// # Errors
/// When the system's source of random numbers cannot be read.
pub(crate) fn new_name() -> io::Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("rcluster/{digits}"))
}

/// Starts a worker.
///
/// # Errors
/// Those of the system calls; `NotFound` when the program is missing.
pub(super) fn start(mut start: Start<'_>) -> io::Result<Worker> {
    let (who, words) = (start.who, start.words.clone());
    let offer = std::mem::take(&mut start.offer);
    let name = new_name()?;
    let notices = Notices::bind(&name)?;
    let mut link = Link::new(notices, name, &start.manner, offer.watchdog);
    link.sockets = offer.sockets.iter().map(|offered| inode_of(&offered.socket)).collect();
    let command = &mut start.command;
    command.env("NOTIFY_SOCKET", format!("@{}", link.name));
    if let Some(watchdog) = offer.watchdog {
        command.env("WATCHDOG_USEC", watchdog.as_micros().to_string()).env("WATCHDOG_PID", OWN_PID);
    }
    if !offer.sockets.is_empty() {
        let names: Vec<&str> = offer.sockets.iter().map(|it| it.name.as_str()).collect();
        command
            .env("LISTEN_FDS", offer.sockets.len().to_string())
            .env("LISTEN_PID", OWN_PID)
            .env("LISTEN_FDNAMES", names.join(":"));
    }
    let is_einhorns = command.get_envs().any(|(key, value)| {
        value.is_some() && key.to_str().is_some_and(|key| key.starts_with(EINHORN))
    });
    if let Some(path) = offer.einhorn.filter(|_| is_einhorns) {
        command.env("EINHORN_SOCK_PATH", path);
        command.env("EINHORN_MASTER_PID", std::process::id().to_string());
    }
    let (command, mut preparation) = start.prepare();
    preparation.place = offer.sockets.into_iter().map(|offered| offered.socket).collect();
    let process = Process::start(command, preparation)?;
    Ok(Worker::new(who, process, words, super::Link::Inherit(Box::new(link))))
}

/// The command with its placeholders replaced. Of the environment only what the pool sets has any: a
/// variable that the master itself was given is passed on as it is.
///
/// # Errors
/// `InvalidInput` with a sentence: a placeholder stands for a socket that there is not.
pub(super) fn expanded(start: &Start<'_>) -> io::Result<Command> {
    let sockets: Vec<Socket<'_>> = (FIRST..)
        .zip(&start.offer.sockets)
        .map(|(number, it)| Socket { name: &it.entry, number, local: &it.local })
        .collect();
    let (master, slot) = (std::process::id(), start.who.slot.0);
    let values = Values { sockets: &sockets, master, slot, generation: start.who.generation.0 };
    let wrong = |mistake: Mistake| io::Error::new(io::ErrorKind::InvalidInput, mistake.to_string());
    let mut command = Command::new(start.command.get_program());
    command.env_clear();
    for argument in start.command.get_args() {
        match argument.to_str() {
            Some(text) => command.args(expand_argument(text, &values).map_err(wrong)?),
            None => command.arg(argument),
        };
    }
    for (key, value) in start.command.get_envs() {
        let Some(value) = value else { continue };
        let is_own = std::env::var_os(key).is_some_and(|own| own == value);
        match value.to_str().filter(|_| !is_own) {
            Some(text) => command.env(key, expand(text, &values).map_err(wrong)?),
            None => command.env(key, value),
        };
    }
    Ok(command)
}

impl Link {
    /// Of a worker that has said nothing yet.
    pub(crate) fn new(
        notices: Notices,
        name: String,
        manner: &Manner,
        watchdog: Option<Duration>,
    ) -> Link {
        Link {
            notices,
            name,
            stop_signal: manner.stop_signal,
            watchdog,
            sockets: BTreeSet::new(),
            readiness: Readiness::Told,
            main: None,
            is_leaving: false,
            status: String::new(),
            pinged: None,
            rest: None,
        }
    }

    /// When it is to be looked at by the clock.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.look_at().into_iter().chain(self.silent_at()).min()
    }

    /// When it is to be looked at because it may have become ready.
    pub(crate) fn look_at(&self) -> Option<Instant> {
        match self.readiness {
            Readiness::Seen { at, .. } | Readiness::Settled { at } => Some(at),
            Readiness::Told | Readiness::Known => None,
        }
    }

    /// When it has been silent for too long.
    pub(crate) fn silent_at(&self) -> Option<Instant> {
        Some(self.pinged? + self.watchdog?)
    }

    /// The process that signals are meant for.
    pub(crate) fn main<'a>(&'a self, started: &'a Process) -> &'a Process {
        let is_there = |main: &&Process| !main.has_ended().unwrap_or(true);
        self.main.as_ref().filter(is_there).unwrap_or(started)
    }

    /// Its main process, where that is not in the group of the one that was started.
    pub(crate) fn outsider(&self, started: &Process) -> Option<&Process> {
        let is_outside = |main: &&Process| {
            family::look(main.id()).is_some_and(|it| it.group != started.id() && !it.is_over)
        };
        self.main.as_ref().filter(is_outside)
    }

    /// Whether this is one of the worker's processes.
    pub(crate) fn knows(&self, started: &Process, id: u32) -> bool {
        let main = self.main.as_ref().map(Process::id);
        // The first may have ended by now, and its number mean nobody.
        id != 0
            && (id == started.id()
                || family::belongs(id, started.id())
                || main.is_some_and(|main| family::belongs(id, main)))
    }

    /// Asks it to stop: its main process alone, which knows what to do with its others.
    ///
    /// # Errors
    /// Those of `pidfd_send_signal(2)`; that it has ended is none.
    pub(crate) fn stop(&self, started: &Process) -> io::Result<()> {
        match self.main(started).signal(AnySignal::numbered(self.stop_signal)) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// Who of the worker's is there after the process that was started has ended: its main process, if
    /// that is another; and while it leaves, everybody of its group, who may be busy still.
    pub(crate) fn survivor(&self, started: &Process) -> io::Result<Option<Process>> {
        if let Some(main) = &self.main {
            if main.id() != started.id() && !main.has_ended()? {
                return main.try_clone().map(Some);
            }
        }
        if !self.is_leaving {
            return Ok(None);
        }
        while let Some(one) = family::anybody_of(started.id()) {
            match Process::find(one.id, one.begun) {
                Ok(process) => return Ok(Some(process)),
                // It has just ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.notices.as_fd()
    }
}
