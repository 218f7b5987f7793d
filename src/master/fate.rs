//! What becomes of a connection whose worker is dead: what its entry in the crash ledger says, and what
//! the kernel has sent.

use std::os::fd::{AsFd, OwnedFd};

use super::ledger::Kept;
use crate::kinds::native::Client;
use crate::sys::clock::microseconds;
use crate::sys::tcp;
use crate::wire::ledger::{Said, State};
use crate::wire::message::Past;

/// What becomes of a dead worker's connection.
#[derive(Debug)]
pub(super) enum Fate {
    /// Another worker goes on with it.
    GoesOn(Client),
    /// Its request was under way, and it is told.
    IsTold(OwnedFd),
    /// Its answer had begun, or nobody knows how to tell it.
    IsCut(OwnedFd),
    /// The worker had closed it.
    IsOver,
}

impl Kept {
    pub(super) fn judge(self, said: &Said) -> Fate {
        let Kept { client, base, .. } = self;
        let unanswered = |client: Client| match said.is_http {
            true => Fate::IsTold(client.socket),
            false => Fate::IsCut(client.socket),
        };
        let goes_on = |client: Client, past: Past| {
            Fate::GoesOn(Client { past: Some(past), leftover: None, ..client })
        };
        let past = Past { idle_since: said.idle_since, requests: said.requests, leftover: 0 };
        match said.state {
            State::Queued => Fate::GoesOn(client),
            State::Clean => goes_on(client, past),
            State::Dirty => unanswered(client),
            State::Wrote => {
                let total = tcp::written(client.socket.as_fd());
                match total.zip(base).and_then(|(total, base)| total.checked_sub(base)) {
                    // It was about to answer.
                    Some(written) if written == said.from => unanswered(client),
                    // It has answered, and died before it could say so.
                    Some(written) if said.until > said.from && written == said.until => {
                        match said.is_pending {
                            true => unanswered(client),
                            false => {
                                let requests = said.requests.saturating_add(1);
                                goes_on(
                                    client,
                                    Past { idle_since: microseconds(), requests, ..past },
                                )
                            }
                        }
                    }
                    Some(_) | None => Fate::IsCut(client.socket),
                }
            }
            State::Closed => Fate::IsOver,
        }
    }
}
