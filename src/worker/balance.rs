//! When a worker that accepts by itself leaves new clients to its siblings.
//!
//! A worker *stays away* while it has more in hand than a sibling that waits for clients, by more than a
//! [margin](is_fewer). It looks at the board: nobody is asked. How each stands is written there, so that
//! nobody relies on one that stays away itself. Two who look at each other cannot both go: each takes its
//! own word back first, then looks once more, and one of them sees the other's.
//!
//! Nobody tells when a sibling's counters change. So it is for those who wait to look whether somebody
//! who stays away has fewer in hand by now, after each client, and to *call* them: a bell wakes all who
//! are away. Whoever stays away also looks when one of its own connections has ended, and after a while
//! in any case. If somebody waits for a worker then, he is accepted by this one, whatever it has in hand;
//! and a sibling that has accepted nobody all the while is relied on no more until it does. So a client
//! waits no longer than that on account of balance, and a sibling that is stalled or dead is found out by
//! the first.
//!
//! Of a pool of many, [`LOOKS`] are looked at, others every time.

use std::collections::BTreeMap;

use crate::wire::scoreboard::SeatWords;
use crate::wire::siblings::{Sibling, Stand};

/// Siblings that are looked at.
const LOOKS: usize = 16;
/// Siblings that are asked whether they are to be called; the others find out after a while.
const CALLS: usize = 64;

/// What a worker should do about the next client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Wait for him.
    Wait,
    /// The same, and call those who are away: one of them has fewer in hand.
    Call,
    /// Leave him to a sibling.
    Leave,
}

/// What a worker knows of its siblings.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// Where it looks next.
    cursor: usize,
    /// On whom it relies, by seat, and what they had accepted then.
    relied_on: BTreeMap<u64, u64>,
    /// Who is not relied on, until they have accepted more than this.
    shunned: BTreeMap<u64, u64>,
}

impl Balance {
    /// What this worker should do. `is_away`: it leaves clients to others already.
    pub fn advise(&mut self, own: &SeatWords, is_away: bool) -> Advice {
        match self.compare(own) {
            Advice::Leave if is_away => return Advice::Leave,
            Advice::Leave => {}
            advice @ (Advice::Wait | Advice::Call) => {
                self.relied_on.clear();
                return advice;
            }
        }
        // Whoever looks at this one now does not rely on it.
        own.set_stand(Stand::IsAway);
        let advice = self.compare(own);
        if advice != Advice::Leave {
            own.set_stand(Stand::Waits);
            self.relied_on.clear();
        }
        advice
    }

    /// Somebody waits though this worker has left him to others: who has accepted nobody since is
    /// relied on no more.
    pub fn was_let_down(&mut self, own: &SeatWords) {
        for sibling in own.siblings().from(0) {
            let accepted = sibling.accepted();
            if self.relied_on.get(&sibling.seat()) == Some(&accepted) {
                self.shunned.insert(sibling.seat(), accepted);
            }
        }
        self.relied_on.clear();
    }

    fn compare(&mut self, own: &SeatWords) -> Advice {
        let (in_hand, seat) = (own.own().in_hand(), own.own().seat());
        let siblings = own.siblings();
        let count = siblings.count();
        if !is_fewer(0, in_hand) || count == 0 {
            return Advice::Wait;
        }
        let start = self.cursor % count;
        self.cursor = (start + LOOKS.min(count)) % count;
        let mut advice = Advice::Wait;
        for sibling in siblings.from(start).take(LOOKS) {
            if sibling.seat() == seat || !is_fewer(sibling.in_hand(), in_hand) {
                continue;
            }
            match sibling.stand() {
                Stand::Waits if self.may_rely_on(sibling) => advice = Advice::Leave,
                Stand::IsAway if advice == Advice::Wait => advice = Advice::Call,
                Stand::Waits | Stand::IsAway | Stand::IsElsewhere => {}
            }
        }
        advice
    }

    fn may_rely_on(&mut self, sibling: Sibling<'_>) -> bool {
        let (seat, accepted) = (sibling.seat(), sibling.accepted());
        if self.shunned.get(&seat) == Some(&accepted) {
            return false;
        }
        self.shunned.remove(&seat);
        self.relied_on.entry(seat).or_insert(accepted);
        true
    }
}

/// Whether there are siblings to be called: somebody leaves clients to others.
pub(super) fn is_anybody_away(own: &SeatWords) -> bool {
    own.siblings().from(0).take(CALLS).any(|sibling| sibling.stand() == Stand::IsAway)
}

/// Whether so few in hand are notably fewer than `many`: two at least, and more than an eighth.
fn is_fewer(few: u64, many: u64) -> bool {
    few.saturating_add(1).saturating_add(few / 8) < many
}
