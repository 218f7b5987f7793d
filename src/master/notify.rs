//! What systemd is told: READY, RELOADING, STOPPING, STATUS, WATCHDOG.
//!
//! sd-notify knows the words; the sending is done here, because a manager that does not read must
//! not stop the loop that dispatches: its socket is never waited for. What cannot be sent now is
//! kept in order (of STATUS only the last one) and sent later. Without a NOTIFY_SOCKET all of this
//! does nothing.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// How long a manager that does not read is left alone.
const RETRY: Duration = Duration::from_millis(200);
/// Messages that are kept for it; beyond that the oldest go.
const KEPT_MAX: usize = 64;

/// The manager that started us, if it listens.
#[derive(Debug)]
pub(crate) struct Notify {
    manager: Option<Manager>,
    /// How often WATCHDOG=1 is due, if it is.
    pub(crate) watchdog: Option<Duration>,
    status: String,
    unsent: VecDeque<String>,
    retry_at: Option<Instant>,
    failure: Option<String>,
    has_complained: bool,
}

#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Notify {
    /// Reads the environment.
    ///
    /// # Errors
    /// A sentence: NOTIFY_SOCKET names no socket.
    pub(crate) fn from_env() -> Result<Notify, String> {
        let manager = match std::env::var_os("NOTIFY_SOCKET") {
            None => None,
            Some(name) => Some(Manager::new(&name).map_err(|error| {
                let name = name.to_string_lossy();
                format!("NOTIFY_SOCKET={name} cannot be used: {error}")
            })?),
        };
        Ok(Notify {
            manager,
            // A third of the limit: two messages may be late before it strikes.
            watchdog: sd_notify::watchdog_enabled().map(|limit| limit / 3),
            status: String::new(),
            unsent: VecDeque::new(),
            retry_at: None,
            failure: None,
            has_complained: false,
        })
    }

    /// READY=1
    pub(crate) fn ready(&mut self, now: Instant) {
        self.say(&[NotifyState::Ready], now);
    }

    /// RELOADING=1, with the time that systemd wants to see.
    pub(crate) fn reloading(&mut self, now: Instant) {
        match NotifyState::monotonic_usec_now() {
            Ok(usec) => self.say(&[NotifyState::Reloading, usec], now),
            Err(_) => self.say(&[NotifyState::Reloading], now),
        }
    }

    /// STOPPING=1
    pub(crate) fn stopping(&mut self, now: Instant) {
        self.say(&[NotifyState::Stopping], now);
    }

    /// WATCHDOG=1. One that cannot be sent is not kept: the next one says more.
    pub(crate) fn alive(&mut self) {
        if let Some(manager) = &self.manager {
            let _ = manager.send(&NotifyState::Watchdog.to_string());
        }
    }

    /// STATUS=…, when it has changed. One line: what a field contains must not become another.
    pub(crate) fn status(&mut self, text: &str, now: Instant) {
        if self.status != text {
            text.clone_into(&mut self.status);
            self.unsent.retain(|kept| !kept.starts_with("STATUS="));
            let line = text.replace(['\n', '\r'], " ");
            self.say(&[NotifyState::Status(&line)], now);
        }
    }

    /// When what is kept is tried again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries again what is kept, if it is time.
    pub(crate) fn retry(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.flush(now);
        }
    }

    /// Why a message could not be sent, once.
    pub(crate) fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    fn say(&mut self, state: &[NotifyState<'_>], now: Instant) {
        if self.manager.is_none() {
            return;
        }
        let lines: Vec<String> = state.iter().map(ToString::to_string).collect();
        self.unsent.push_back(lines.join("\n"));
        if self.unsent.len() > KEPT_MAX {
            self.unsent.pop_front();
        }
        self.flush(now);
    }

    fn flush(&mut self, now: Instant) {
        let Some(manager) = &self.manager else { return };
        self.retry_at = None;
        while let Some(message) = self.unsent.front() {
            if let Err(error) = manager.send(message) {
                self.retry_at = Some(now + RETRY);
                if !std::mem::replace(&mut self.has_complained, true) {
                    self.failure = Some(format!("systemd cannot be notified for now: {error}"));
                }
                return;
            }
            self.unsent.pop_front();
        }
    }
}

impl Manager {
    fn new(name: &OsString) -> io::Result<Manager> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        Ok(Manager { socket, address })
    }

    fn send(&self, message: &str) -> io::Result<()> {
        self.socket.send_to_addr(message.as_bytes(), &self.address).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test has no loop")]
    fn now() -> Instant {
        Instant::now()
    }

    fn notify(name: &OsString) -> Notify {
        Notify { manager: Some(Manager::new(name).unwrap()), ..Notify::from_env().unwrap() }
    }

    #[test]
    fn a_manager_that_does_not_read_is_told_later_and_in_order() {
        let name = OsString::from(format!("@rcluster-notify-{}", std::process::id()));
        let address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        let mut notify = notify(&name);
        let mut rounds = 0;
        while notify.deadline().is_none() {
            notify.reloading(now());
            notify.ready(now());
            rounds += 1;
            assert!(rounds < 10_000, "the queue never filled");
        }
        notify.status("one", now());
        notify.status("two", now());
        let mut buffer = [0; 256];
        let mut heard = Vec::new();
        loop {
            while let Ok(count) = manager.recv(&mut buffer) {
                heard.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
            }
            let Some(at) = notify.deadline() else { break };
            notify.retry(at);
        }
        assert_eq!(heard.last().map(String::as_str), Some("STATUS=two"));
        assert!(!heard.contains(&"STATUS=one".to_owned()));
        let kinds: Vec<bool> = heard.iter().map(|it| it.starts_with("RELOADING")).collect();
        let alternate = kinds[..kinds.len() - 1].windows(2).all(|pair| pair[0] != pair[1]);
        assert!(alternate, "{heard:?}");
        assert!(notify.take_failure().is_some() && notify.take_failure().is_none());
    }

    #[test]
    fn a_manager_that_comes_back_is_told_what_it_missed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let mut notify = notify(&path.clone().into_os_string());
        notify.ready(now());
        let manager = UnixDatagram::bind(&path).unwrap();
        notify.retry(notify.deadline().unwrap());
        let mut buffer = [0; 64];
        let count = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"READY=1");
        assert_eq!(notify.deadline(), None);
    }
}
