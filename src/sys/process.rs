//! Processes by pidfd: start, watch, signal, reap.
//!
//! A pidfd cannot mean another process than the one it was opened for. Process *groups* have no
//! such handle; a group is only signalled while its leader is not reaped, so that its number cannot
//! have been given away.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, killpg, signal, sigprocmask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Gid, Pid, Uid, setgroups, setpgid, setresgid, setresuid};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this status.
    Status(i32),
    /// A signal killed it.
    Signal(Signal),
}

/// What a child does between fork and exec.
#[derive(Debug, Default)]
pub struct Preparation {
    /// Descriptors that the program inherits under their numbers.
    pub keep: Vec<OwnedFd>,
    /// The working directory.
    pub directory: Option<OwnedFd>,
    /// User, group and supplementary groups to become.
    pub identity: Option<Identity>,
    /// Signals that the program starts with ignored.
    pub ignore: Vec<Signal>,
}

/// A user to become. Supplementary groups, group, then user: the order that leaves nothing behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub user: u32,
    /// Primary group id.
    pub group: u32,
    /// Supplementary group ids, complete.
    pub groups: Vec<u32>,
}

/// A started process.
#[derive(Debug)]
pub struct Process {
    id: Pid,
    pidfd: OwnedFd,
}

impl Process {
    /// Starts `command` as the leader of a process group of its own, with no signal blocked.
    ///
    /// # Errors
    /// Those of fork, of any step of the preparation, and of exec (`NotFound`: no such program).
    pub fn start(mut command: Command, preparation: Preparation) -> io::Result<Process> {
        let Preparation { keep, directory, identity, ignore } = preparation;
        let groups: Option<Vec<Gid>> = identity
            .as_ref()
            .map(|identity| identity.groups.iter().copied().map(Gid::from_raw).collect());
        let prepare = move || {
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            for &which in &ignore {
                // SAFETY: only the disposition "ignore" is set, no handler.
                unsafe { signal(which, SigHandler::SigIgn)? };
            }
            if let Some(directory) = &directory {
                nix::unistd::fchdir(directory)?;
            }
            for descriptor in &keep {
                // SAFETY: clears close-on-exec of a descriptor that this closure owns.
                if unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if let (Some(identity), Some(groups)) = (&identity, &groups) {
                let (user, group) = (Uid::from_raw(identity.user), Gid::from_raw(identity.group));
                setgroups(groups)?;
                setresgid(group, group, group)?;
                setresuid(user, user, user)?;
            }
            Ok(())
        };
        // SAFETY: the closure makes async-signal-safe system calls only; everything that it needs
        // was allocated before the fork.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn()?;
        let id = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        // A child that is not reaped keeps its number, so this opens the right process.
        match open_pidfd(id) {
            Ok(pidfd) => Ok(Process { id, pidfd }),
            Err(error) => {
                let _ = killpg(id, Signal::SIGKILL);
                let _ = nix::sys::wait::waitpid(id, None);
                Err(error)
            }
        }
    }

    /// Its process id, for people.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id.as_raw().unsigned_abs()
    }

    /// Sends a signal to the process' whole group. Only before [`Process::reap`].
    ///
    /// # Errors
    /// Those of `killpg(3)`.
    pub fn signal_group(&self, which: Signal) -> io::Result<()> {
        Ok(killpg(self.id, which)?)
    }

    /// How it ended, if it did; kills what is left of its group and releases its number.
    ///
    /// # Errors
    /// Those of `waitid(2)`.
    pub fn reap(&self) -> io::Result<Option<Ending>> {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if matches!(self.wait(look)?, WaitStatus::StillAlive) {
            return Ok(None);
        }
        match killpg(self.id, Signal::SIGKILL) {
            // EPERM: only processes of other users are left in the group.
            Ok(()) | Err(nix::errno::Errno::ESRCH | nix::errno::Errno::EPERM) => {}
            Err(error) => return Err(error.into()),
        }
        let status = self.wait(WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)?;
        if let WaitStatus::Signaled(_, which, _) = status {
            return Ok(Some(Ending::Signal(which)));
        }
        if let WaitStatus::Exited(_, status) = status {
            return Ok(Some(Ending::Status(status)));
        }
        Ok(None)
    }

    fn wait(&self, flags: WaitPidFlag) -> nix::Result<WaitStatus> {
        waitid(Id::PIDFd(self.pidfd.as_fd()), flags)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// nix has no `pidfd_open`; the standard library's is unstable. Close-on-exec by default.
fn open_pidfd(id: Pid) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, id.as_raw(), 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: new, and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes orphans of our workers ours, so that none is lost to view (without systemd, whose cgroup
/// does the same).
///
/// # Errors
/// Those of `prctl(2)`.
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Reaps ended children that are nobody's, up to the first that `is_known`.
///
/// # Errors
/// Those of `waitid(2)`.
pub fn reap_strangers(is_known: impl Fn(u32) -> bool) -> io::Result<()> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let id = match waitid(Id::All, look) {
            Ok(status) => status.pid(),
            Err(nix::errno::Errno::ECHILD) => None,
            Err(error) => return Err(error.into()),
        };
        match id {
            Some(id) if !is_known(id.as_raw().unsigned_abs()) => {
                waitid(Id::Pid(id), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)?;
            }
            _ => return Ok(()),
        }
    }
}
