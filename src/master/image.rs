//! Which image of the master this process is: the first, one that goes on after another, or a rehearsal
//! of that.
//!
//! The variables that say so carry the master's process id: whoever inherits them by accident is not
//! meant.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::state::{Luggage, REHEARSAL_VARIABLE, STATE_VARIABLE, State};
use crate::supervisor::{How, Supervisor};
use crate::sys::ancillary::take_over;
use crate::sys::leftover::unpack_whole;

/// What a rehearsal that went well prints after its name and version.
pub(super) const PASSED: &str = "can go on from here";

/// The program that this process was started from, by the path that leads to what is installed: as
/// it was called, if that names it; a symlink in it may lead elsewhere after a deploy.
pub(super) fn own_path() -> PathBuf {
    let own = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if called.as_os_str().as_bytes().contains(&b'/') {
        let is_own = called.canonicalize().is_ok_and(|path| path == own);
        if let (true, Ok(path)) = (is_own, std::path::absolute(&called)) {
            return path;
        }
    }
    let deleted = b" (deleted)";
    match own.as_os_str().as_bytes().strip_suffix(deleted) {
        Some(path) => PathBuf::from(OsString::from_vec(path.to_vec())),
        None => own,
    }
}

/// Whether this process continues another image, or rehearses to do so.
#[must_use]
pub fn is_continuation() -> bool {
    addressed(STATE_VARIABLE, std::process::id()).is_some()
        || addressed(REHEARSAL_VARIABLE, nix::unistd::getppid().as_raw().unsigned_abs()).is_some()
}

/// The descriptor that a variable names, if it is meant for us: `master` must be the process in it.
fn addressed(variable: &str, master: u32) -> Option<i32> {
    let text = std::env::var(variable).ok()?;
    let (pid, number) = text.split_once(':')?;
    let number: i32 = number.parse().ok().filter(|&number| number > 2)?;
    (pid.parse() == Ok(master)).then_some(number)
}

/// Reads the state from a descriptor that another image has left open.
fn read_state(number: i32) -> Result<State, String> {
    let memfd = take_over(number).map_err(|error| format!("the state is not there: {error}"))?;
    let bytes = unpack_whole(memfd).map_err(|error| format!("that is no state: {error}"))?;
    State::decode(&bytes)
}

/// Whether this process is a rehearsal: then how it went.
pub(super) fn rehearse() -> Option<Result<String, String>> {
    let number = addressed(REHEARSAL_VARIABLE, nix::unistd::getppid().as_raw().unsigned_abs())?;
    let go_on = || {
        let state = read_state(number)?;
        let taken = state.taken_at(super::outbox::clock());
        state.check()?;
        Supervisor::restore(state.mind, taken, How::Carried)?;
        Ok(format!("rcluster {} {PASSED}", env!("CARGO_PKG_VERSION")))
    };
    Some(go_on())
}

/// Says how the rehearsal went, and ends this process.
pub(super) fn report_rehearsal(outcome: Result<String, String>) -> ! {
    let (text, status) = match outcome {
        Ok(line) => (line, 0),
        Err(why) => (why, 1),
    };
    // The master hears of a line that cannot be written, too: it misses it.
    let _ = writeln!(std::io::stdout(), "{text}");
    std::process::exit(status)
}

/// What an earlier image of this process has left, if there was one.
///
/// # Errors
/// A sentence: it cannot be gone on with.
pub(super) fn continued() -> Option<Result<(State, Luggage), String>> {
    let number = addressed(STATE_VARIABLE, std::process::id())?;
    let go_on = || {
        let state = read_state(number)?;
        let numbers = state.carried.as_ref().map(|carried| carried.numbers.clone());
        Ok((state, Luggage::take_over(&numbers.unwrap_or_default())?))
    };
    Some(go_on())
}
