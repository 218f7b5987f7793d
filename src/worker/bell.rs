//! By which workers that accept by themselves call each other.

use std::os::fd::OwnedFd;

use nix::unistd::write;

use super::watch::{Hearing, Watch};

/// The pool's bell, once there is one.
#[derive(Debug, Default)]
pub(super) struct Bell {
    socket: Option<OwnedFd>,
    hearing: Option<Hearing>,
}

impl Bell {
    /// From now on it is this one. The one before is not heard any more.
    pub fn replace(&mut self, watch: &Watch, socket: OwnedFd) {
        self.hear(watch, None);
        self.socket = Some(socket);
    }

    /// Has those who are away look again, and one of those who wait.
    pub fn ring(&self) {
        // Only a counter near its maximum could refuse.
        let _ = self.socket.as_ref().map(|bell| write(bell, &1_u64.to_ne_bytes()));
    }

    /// From now on it is heard so.
    pub fn hear(&mut self, watch: &Watch, hearing: Option<Hearing>) {
        let Some(bell) = &self.socket else { return };
        let before = std::mem::replace(&mut self.hearing, hearing);
        if before != hearing {
            // Where it cannot be heard, the clock tells.
            let _ = watch.hear_bell(bell, before, hearing);
        }
    }
}
