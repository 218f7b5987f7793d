//! What a child does between fork and exec, step by step.
//!
//! Everything here is async-signal-safe: it makes system calls, and allocates nothing. Each step that
//! fails is named.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::unistd::{Gid, Pid, Uid, setpgid, setresgid, setresuid};

use super::place::Placed;
use super::resource::Limits;
use super::step::Step;

/// What a child does between fork and exec.
#[derive(Debug, Default)]
pub struct Preparation {
    /// Descriptors that the program inherits under their numbers.
    pub keep: Vec<OwnedFd>,
    /// Descriptors that the program inherits as 3, 4 and so on. What is kept under its own number
    /// must be above those: [`HIGH`](super::place::HIGH).
    pub place: Vec<OwnedFd>,
    /// Descriptors that are needed until the program runs.
    pub hold: Vec<OwnedFd>,
    /// The working directory.
    pub directory: Option<OwnedFd>,
    /// User, group and supplementary groups to become.
    pub identity: Option<Identity>,
    /// What the program may do.
    pub limits: Limits,
    /// Signals that the program starts with ignored.
    pub ignore: Vec<Signal>,
    /// What the program is told that it is called; `None`: its path.
    pub name: Option<OsString>,
}

impl Preparation {
    /// In the child: all of it, less the name.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) fn carry_out(&self, place: &Placed) -> io::Result<()> {
        lead_group().map_err(|error| Step::Group.failed(&error))?;
        set_signals(&self.ignore).map_err(|error| Step::Signals.failed(&error))?;
        if let Some(directory) = &self.directory {
            nix::unistd::fchdir(directory)
                .map_err(|error| Step::Directory.failed(&error.into()))?;
        }
        keep_open(&self.keep).map_err(|error| Step::Descriptors.failed(&error))?;
        place.put().map_err(|error| Step::Descriptors.failed(&error))?;
        self.limits.set()?;
        if let Some(identity) = &self.identity {
            identity.become_it()?;
        }
        self.limits.close()
    }
}

/// A user to become. Supplementary groups, group, then user: the order that leaves nothing behind.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// User id.
    pub user: u32,
    /// Primary group id.
    pub group: u32,
    /// Supplementary group ids, complete.
    pub groups: Vec<u32>,
}

impl Identity {
    /// In the child.
    fn become_it(&self) -> io::Result<()> {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        clear_ambient_capabilities().map_err(|error| Step::Capabilities.failed(&error))?;
        set_groups(&self.groups).map_err(|error| Step::SupplementaryGroups.failed(&error))?;
        setresgid(group, group, group).map_err(|error| Step::GroupId.failed(&error.into()))?;
        setresuid(user, user, user).map_err(|error| Step::UserId.failed(&error.into()))
    }
}

/// In the child.
fn lead_group() -> io::Result<()> {
    Ok(setpgid(Pid::from_raw(0), Pid::from_raw(0))?)
}

/// In the child: none is blocked, and these are ignored.
fn set_signals(ignore: &[Signal]) -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    for &which in ignore {
        // SAFETY: only the disposition "ignore" is set, no handler.
        unsafe { signal(which, SigHandler::SigIgn)? };
    }
    Ok(())
}

/// In the child: exec leaves these open.
fn keep_open(descriptors: &[OwnedFd]) -> io::Result<()> {
    for descriptor in descriptors {
        // SAFETY: clears close-on-exec of a descriptor that the caller owns.
        if unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// nix takes its own type of numbers, which would have to be made first.
fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: as many numbers as are said to be there.
    if unsafe { libc::setgroups(groups.len(), groups.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Ambient capabilities are kept by a change between users that are not root, and by exec.
fn clear_ambient_capabilities() -> io::Result<()> {
    let (clear, none): (libc::c_ulong, libc::c_ulong) = (libc::PR_CAP_AMBIENT_CLEAR_ALL as _, 0);
    // SAFETY: plain numbers.
    if unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear, none, none, none) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // The kernel is older than they are.
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        error => Err(error),
    }
}
