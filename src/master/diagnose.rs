//! What a worker that does nothing is doing, and why a program does not start: a clause for people.
//!
//! The first from `/proc` (proc_pid_stat(5), proc_pid_wchan(5)); what cannot be read is left out.

use std::fs;
use std::io;
use std::path::Path;

use nix::libc;

use crate::config::why;
use crate::sys::step::Failure;

/// Why a program could not be executed.
pub(crate) fn cannot_run(program: &Path, error: &io::Error) -> String {
    // It was not even tried.
    let failure = error.get_ref().and_then(|inner| inner.downcast_ref::<Failure>());
    if let Some(Failure { step, why: cause }) = failure {
        return format!("cannot {step}: {}", why(cause));
    }
    let more = match error.raw_os_error() {
        Some(libc::ENOEXEC) => ": it is for another kind of machine, or a script without a #! line",
        Some(libc::ENOENT) if program.exists() => ": what is missing is its loader or interpreter",
        _ => "",
    };
    format!("cannot run {}: {}{more}", program.display(), why(error))
}

/// `state T (stopped), in do_signal_stop`
pub(crate) fn diagnose(pid: u32) -> String {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| {
        // The name stands in parentheses and may itself contain some: the state follows the last.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
    });
    let place = fs::read_to_string(format!("/proc/{pid}/wchan")).ok();
    let place = place.filter(|place| !place.is_empty() && place != "0");
    let state = state.map(|state| format!("state {state} ({})", meaning(state)));
    let place = place.map(|place| format!("in {place}"));
    let known: Vec<String> = state.into_iter().chain(place).collect();
    if known.is_empty() { "state unknown".to_owned() } else { known.join(", ") }
}

fn meaning(state: char) -> &'static str {
    match state {
        'R' => "running",
        'S' => "sleeping",
        'D' => "in a wait that cannot be interrupted",
        'T' => "stopped",
        't' => "stopped by a debugger",
        'Z' => "ended",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_knows_its_own_process() {
        let text = super::diagnose(std::process::id());
        assert!(text.starts_with("state R (running)") || text.starts_with("state S"), "{text}");
        assert_eq!(super::diagnose(u32::MAX), "state unknown");
    }
}
