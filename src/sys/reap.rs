//! Children that have ended, and how.
//!
//! nix's `waitid` answers EINVAL for a child that a real-time signal killed, and so never lets go
//! of it; hence one of our own, which takes every number.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use nix::unistd::Pid;

use super::process::{AnySignal, Ending};

/// Children to ask after.
#[derive(Clone, Copy)]
pub(super) enum Which<'a> {
    Any,
    Process(BorrowedFd<'a>),
    Numbered(Pid),
}

/// What becomes of an ended child once it was looked at.
#[derive(Clone, Copy)]
pub(super) enum Then {
    /// It keeps its number and can be looked at again.
    Leave,
    /// Its number is given away.
    Release,
}

/// A child that has ended, if one of these has, and how. Does not wait.
pub(super) fn ended(which: Which<'_>, then: Then) -> io::Result<Option<(Pid, Ending)>> {
    let (kind, number) = match which {
        Which::Any => (libc::P_ALL, 0),
        Which::Process(pidfd) => (libc::P_PIDFD, pidfd.as_raw_fd().unsigned_abs()),
        Which::Numbered(id) => (libc::P_PID, id.as_raw().unsigned_abs()),
    };
    let flags = match then {
        Then::Leave => libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
        Then::Release => libc::WEXITED | libc::WNOHANG,
    };
    // SAFETY: all zeroes are a valid siginfo_t, and mean that nobody has ended.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call; the rest is plain numbers.
    if unsafe { libc::waitid(kind, number, &raw mut info, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: either still zero or filled in by waitid, which knows these two fields.
    let (id, status) = unsafe { (info.si_pid(), info.si_status()) };
    let ending = match info.si_code {
        libc::CLD_EXITED => Ending::Status(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => Ending::Signal(AnySignal(status)),
        // Nobody: the flags ask for no other kind of news.
        _ => return Ok(None),
    };
    Ok(Some((Pid::from_raw(id), ending)))
}

/// Reaps ended children that are nobody's. One that `is_known` stays, however long it does.
///
/// # Errors
/// Those of `waitid(2)`.
pub fn reap_strangers(is_known: impl Fn(u32) -> bool) -> io::Result<()> {
    loop {
        match ended(Which::Any, Then::Leave) {
            Ok(Some((id, _))) if !is_known(id.as_raw().unsigned_abs()) => {
                ended(Which::Numbered(id), Then::Release)?;
            }
            // The kernel names the same one again and again.
            Ok(Some(_)) => return reap_behind(is_known),
            Ok(None) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The same, where one that is known has ended and stays.
fn reap_behind(is_known: impl Fn(u32) -> bool) -> io::Result<()> {
    for id in super::family::ended_children(std::process::id()) {
        if !is_known(id) {
            let id = Pid::from_raw(i32::try_from(id).map_err(io::Error::other)?);
            ended(Which::Numbered(id), Then::Release)?;
        }
    }
    Ok(())
}
