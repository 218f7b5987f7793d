//! Moments that mean the same to two processes.

use std::time::{Duration, Instant};

/// µs since another moment; negative: before it.
pub(crate) type Micros = i64;

/// µs of CLOCK_MONOTONIC, which all processes of a machine share.
pub(crate) fn monotonic() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    // That clock cannot fail.
    let time = time.map_or(Duration::ZERO, Duration::from);
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Which run of the machine this is.
pub(crate) fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// `at`, from `taken` on.
pub(crate) fn micros(at: Instant, taken: Instant) -> Micros {
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    match at.checked_duration_since(taken) {
        Some(after) => micros(after),
        None => -micros(taken.saturating_duration_since(at)),
    }
}

/// And back.
pub(crate) fn instant(at: Micros, taken: Instant) -> Instant {
    let distance = Duration::from_micros(at.unsigned_abs());
    let there = if at < 0 { taken.checked_sub(distance) } else { taken.checked_add(distance) };
    there.unwrap_or(taken)
}
