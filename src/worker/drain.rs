//! The drain, once it has begun: what it allows, and until when.

use std::time::{Duration, Instant};

/// How long silent connections are waited for when the master is dead.
pub(super) const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// The most that is kept back from the drain's deadline to close what stayed silent.
const MARGIN_MAX: Duration = Duration::from_secs(2);

/// The drain, once it has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// When silent connections are given up; `None`: never.
    pub silent_until: Option<Instant>,
    /// The master takes connections back.
    pub handback: bool,
    /// The master is dead, and there will be no other: nobody listens.
    pub orphaned: bool,
}

impl Drain {
    /// Told by the master, which cuts what is left after `deadline`.
    pub fn told(now: Instant, deadline: Duration, handback: bool) -> Drain {
        let grace = deadline.saturating_sub(MARGIN_MAX.min(deadline / 10));
        Drain { silent_until: now.checked_add(grace), handback, orphaned: false }
    }

    /// Concluded from the end of the channel.
    pub fn orphaned(now: Instant) -> Drain {
        let silent_until = now.checked_add(ORPHAN_GRACE);
        Drain { silent_until, handback: false, orphaned: true }
    }
}
