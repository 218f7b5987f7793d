//! What systemd is told: READY, RELOADING, STOPPING, STATUS, WATCHDOG.
//!
//! Without a NOTIFY_SOCKET all of this does nothing. A message that cannot be sent is said once in
//! the journal and otherwise survived: systemd's view is not worth a client.

use std::time::Duration;

use sd_notify::NotifyState;

/// The manager that started us, if it listens.
#[derive(Debug)]
pub(crate) struct Notify {
    is_listening: bool,
    /// How often WATCHDOG=1 is due, if it is.
    pub(crate) watchdog: Option<Duration>,
    status: String,
    failure: Option<String>,
}

impl Notify {
    /// Reads the environment.
    pub(crate) fn from_env() -> Notify {
        Notify {
            is_listening: std::env::var_os("NOTIFY_SOCKET").is_some(),
            // A third of the limit: two messages may be late before it strikes.
            watchdog: sd_notify::watchdog_enabled().map(|limit| limit / 3),
            status: String::new(),
            failure: None,
        }
    }

    /// READY=1
    pub(crate) fn ready(&mut self) {
        self.send(&[NotifyState::Ready]);
    }

    /// RELOADING=1, with the time that systemd wants to see.
    pub(crate) fn reloading(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(_) => self.send(&[NotifyState::Reloading]),
        }
    }

    /// STOPPING=1
    pub(crate) fn stopping(&mut self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// WATCHDOG=1
    pub(crate) fn alive(&mut self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// STATUS=…, when it has changed. One line: what a field contains must not become another.
    pub(crate) fn status(&mut self, text: &str) {
        if self.is_listening && self.status != text {
            self.status = text.replace(['\n', '\r'], " ");
            let status = self.status.clone();
            self.send(&[NotifyState::Status(&status)]);
        }
    }

    /// Why a message could not be sent, once.
    pub(crate) fn take_failure(&mut self) -> Option<String> {
        let failure = self.failure.take();
        if failure.is_some() {
            self.is_listening = false;
        }
        failure
    }

    fn send(&mut self, state: &[NotifyState<'_>]) {
        if self.is_listening {
            if let Err(error) = sd_notify::notify(state) {
                self.failure = Some(format!("systemd cannot be notified: {error}"));
            }
        }
    }
}
