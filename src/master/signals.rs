//! Signals, as a readable descriptor.

use std::os::unix::net::UnixStream;

use nix::sys::signal::SigSet;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// Says which signals have come; each once, however often it came.
pub(super) type Signals = SignalDelivery<UnixStream, SignalOnly>;

/// Whether this process was started with the signal ignored, as `nohup` does it.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// Catches all that mean something to the master.
///
/// # Errors
/// When the system has no descriptors left.
pub(super) fn catch() -> std::io::Result<Signals> {
    let (read, write) = UnixStream::pair()?;
    let mut all = vec![SIGCHLD, SIGINT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2];
    if !is_ignored(SIGHUP) {
        all.push(SIGHUP);
    }
    let signals = SignalDelivery::with_pipe(read, write, SignalOnly, all)?;
    // A careless parent may have left them blocked; now that the handlers stand, they may come.
    SigSet::all().thread_unblock()?;
    Ok(signals)
}
