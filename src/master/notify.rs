//! What systemd is told: READY, RELOADING, STOPPING, STATUS, WATCHDOG, and what it keeps for us.
//!
//! sd-notify knows the words; `outbox` does the sending. Without a NOTIFY_SOCKET all of this does
//! nothing.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::outbox::Outbox;

/// The manager that started us, if it listens.
#[derive(Debug)]
pub(crate) struct Notify {
    outbox: Option<Outbox>,
    /// How often WATCHDOG=1 is due, if it is.
    pub(crate) watchdog: Option<Duration>,
    status: String,
}

impl Notify {
    /// Reads the environment.
    ///
    /// # Errors
    /// A sentence: NOTIFY_SOCKET names no socket.
    pub(crate) fn from_env() -> Result<Notify, String> {
        let outbox = match std::env::var_os("NOTIFY_SOCKET") {
            None => None,
            Some(name) => Some(Outbox::new(&name).map_err(|error| {
                let name = name.to_string_lossy();
                format!("NOTIFY_SOCKET={name} cannot be used: {error}")
            })?),
        };
        Ok(Notify {
            outbox,
            // A third of the limit: two messages may be late before it strikes.
            watchdog: sd_notify::watchdog_enabled().map(|limit| limit / 3),
            status: String::new(),
        })
    }

    /// Whether there may be a descriptor store that outlives this process. Not known for sure
    /// before systemd 254, which says so in FDSTORE.
    pub(crate) fn may_have_store(&self) -> bool {
        self.outbox.is_some()
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
        if let Some(outbox) = &self.outbox {
            outbox.post_now(&NotifyState::Watchdog.to_string());
        }
    }

    /// STATUS=…, when it has changed. One line: what a field contains must not become another.
    pub(crate) fn status(&mut self, text: &str, now: Instant) {
        if self.status != text {
            text.clone_into(&mut self.status);
            if let Some(outbox) = &mut self.outbox {
                outbox.forget("STATUS=");
            }
            let line = text.replace(['\n', '\r'], " ");
            self.say(&[NotifyState::Status(&line)], now);
        }
    }

    /// FDSTORE=1: systemd keeps a duplicate of `descriptor` under `name` and hands it to the next
    /// start, after a crash or a `systemctl restart`. Storing under a name that is in use adds
    /// another; see [`Notify::discard`].
    pub(crate) fn store(&mut self, name: &str, descriptor: BorrowedFd<'_>, now: Instant) {
        let name = store_name(name);
        let state =
            [NotifyState::FdStore, NotifyState::FdName(&name), NotifyState::Custom("FDPOLL=0")];
        if let Some(outbox) = &mut self.outbox {
            outbox.post(lines(&state), Some(descriptor), now);
        }
    }

    /// FDSTOREREMOVE=1: systemd closes everything that it keeps under `name`.
    pub(crate) fn discard(&mut self, name: &str, now: Instant) {
        let name = store_name(name);
        self.say(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)], now);
    }

    /// When what is kept is tried again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.outbox.as_ref().and_then(Outbox::deadline)
    }

    /// Tries again what is kept, if it is time.
    pub(crate) fn retry(&mut self, now: Instant) {
        if let Some(outbox) = &mut self.outbox {
            outbox.retry(now);
        }
    }

    /// Why a message could not be sent, once.
    pub(crate) fn take_failure(&mut self) -> Option<String> {
        self.outbox.as_mut().and_then(Outbox::take_failure)
    }

    fn say(&mut self, state: &[NotifyState<'_>], now: Instant) {
        if let Some(outbox) = &mut self.outbox {
            outbox.post(lines(state), None, now);
        }
    }
}

/// One assignment a line.
fn lines(state: &[NotifyState<'_>]) -> String {
    let lines: Vec<String> = state.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// The longest name that systemd takes for a stored descriptor, in bytes.
const NAME_MAX: usize = 255;

/// `name` as systemd takes it: up to 255 printable ASCII characters without a colon. What is not
/// becomes `_`, and what is too long is cut.
pub(crate) fn store_name(name: &str) -> String {
    let plain = |c: char| if matches!(c, ' '..='~') && c != ':' { c } else { '_' };
    name.chars().take(NAME_MAX).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::ffi::OsString;
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};

    use crate::sys::ancillary::{Received, receive};

    #[expect(clippy::disallowed_methods, reason = "a test has no loop")]
    fn now() -> Instant {
        Instant::now()
    }

    fn notify(name: &OsString) -> Notify {
        Notify { outbox: Some(Outbox::new(name).unwrap()), ..Notify::from_env().unwrap() }
    }

    /// A manager that listens at an abstract name.
    fn manager(kind: &str) -> (OsString, UnixDatagram) {
        let name = OsString::from(format!("@rcluster-{kind}-{}", std::process::id()));
        let address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        (name, manager)
    }

    /// Posts until the manager's queue is full.
    fn fill(notify: &mut Notify) {
        let mut rounds = 0;
        while notify.deadline().is_none() {
            notify.reloading(now());
            notify.ready(now());
            rounds += 1;
            assert!(rounds < 10_000, "the queue never filled");
        }
    }

    fn hear(manager: &UnixDatagram) -> Option<(String, Option<std::os::fd::OwnedFd>)> {
        let mut buffer = [0; 512];
        match receive(manager.as_fd(), &mut buffer).unwrap() {
            Received::Message { len, descriptor, .. } => {
                Some((String::from_utf8_lossy(&buffer[..len]).into_owned(), descriptor))
            }
            Received::Empty | Received::Closed => None,
        }
    }

    #[test]
    fn a_manager_that_does_not_read_is_told_later_and_in_order() {
        let (name, manager) = manager("later");
        let mut notify = notify(&name);
        fill(&mut notify);
        notify.status("one", now());
        notify.status("two", now());
        let mut heard = Vec::new();
        loop {
            while let Some((text, _)) = hear(&manager) {
                heard.push(text);
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
        assert_eq!(hear(&manager).unwrap().0, "READY=1");
        assert_eq!(notify.deadline(), None);
    }

    #[test]
    fn what_is_stored_arrives_late_and_in_order_though_its_owner_has_closed_it() {
        let (name, manager) = manager("store");
        let mut notify = notify(&name);
        fill(&mut notify);
        let (ours, theirs) = UnixStream::pair().unwrap();
        notify.discard("a:b", now());
        notify.store("a:b", theirs.as_fd(), now());
        drop(theirs);
        let mut heard = Vec::new();
        loop {
            heard.extend(std::iter::from_fn(|| hear(&manager)));
            let Some(at) = notify.deadline() else { break };
            notify.retry(at);
        }
        let (stored, descriptor) = heard.pop().unwrap();
        assert_eq!(stored, "FDSTORE=1\nFDNAME=a_b\nFDPOLL=0");
        assert_eq!(heard.pop().unwrap().0, "FDSTOREREMOVE=1\nFDNAME=a_b");
        assert!(heard.iter().all(|(_, descriptor)| descriptor.is_none()));
        // It is the one that was stored: what is written there is read here.
        use std::io::{Read, Write};
        UnixStream::from(descriptor.unwrap()).write_all(b"x").unwrap();
        let mut text = String::new();
        (&ours).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn a_stored_name_is_one_that_systemd_takes() {
        assert_eq!(store_name("log.web:1\n\u{e9}\x7f~"), "log.web_1___~");
        assert_eq!(store_name(&"x".repeat(1000)).len(), 255);
    }
}
