//! What is due by the clock, and when the loop must look next.

use std::time::Instant;

use super::Daemon;
use super::upgrade::Upgrade;

impl Daemon {
    /// When the loop must turn next because of what a dispatch may have begun: see [`Daemon::watch`].
    pub(super) fn dispatch_deadline(&self) -> Option<Instant> {
        self.supervisor.poll_timeout().into_iter().chain(self.ledgers.deadline()).min()
    }

    /// When the loop must turn next because of anything else.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [
            self.lingering.deadline(),
            self.pulse.deadline(),
            self.control_rests_until,
            self.notify.deadline(),
            self.guest_deadline(),
            self.upgrade.as_ref().and_then(Upgrade::deadline),
            self.probes.deadline(),
            self.check.deadline(),
            self.round.deadline(),
            self.handback_deadline(),
            self.inherited.deadline(),
            self.piped_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What is due by the clock and no business of the mind.
    pub(super) fn tend(&mut self) {
        for id in self.lingering.overdue(self.now) {
            self.close_lingering(id);
        }
        self.look_at_ledgers();
        self.end_overdue_probes();
        self.tend_check();
        self.tend_round();
        self.tend_inherited();
        self.tend_piped();
        self.resume_control();
        self.tend_guests();
        self.limit_rehearsal();
        self.continue_upgrade();
        self.notify.retry(self.now);
    }
}
