//! What systemd is told: READY, RELOADING, STOPPING, STATUS, ERRNO, WATCHDOG, and what it keeps.
//!
//! sd-notify knows the words; `outbox` does the sending, `announce` knows when. Without a
//! NOTIFY_SOCKET all of this does nothing.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::outbox::{Outbox, clock};

/// The manager that started us, if it listens.
#[derive(Debug, Default)]
pub(crate) struct Notify {
    pub(super) outbox: Option<Outbox>,
    /// How often WATCHDOG=1 is due, if it is.
    pub(crate) watchdog: Option<Duration>,
    pub(super) status: String,
    pub(super) errno: u32,
    /// RELOADING=1 was said, and READY=1 is owed.
    pub(super) is_reloading: bool,
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
            errno: 0,
            is_reloading: false,
        })
    }

    /// Whether somebody listens; it may have a descriptor store that outlives this process. Whether
    /// it has is only known since systemd 254, which says so in FDSTORE.
    pub(crate) fn has_manager(&self) -> bool {
        self.outbox.is_some()
    }

    /// READY=1, with the sentence and the error number that go with it.
    pub(crate) fn ready(&mut self, status: &str, errno: u32, now: Instant) {
        self.is_reloading = false;
        self.tell(&[NotifyState::Ready], status, Some(errno), now);
    }

    /// RELOADING=1, with the time that systemd wants to see. READY=1 follows, whatever happens: see
    /// [`Notify::stopping`] and the end of this object.
    pub(crate) fn reloading(&mut self, status: &str, now: Instant) {
        self.is_reloading = true;
        match NotifyState::monotonic_usec_now() {
            Ok(usec) => self.tell(&[NotifyState::Reloading, usec], status, None, now),
            Err(_) => self.tell(&[NotifyState::Reloading], status, None, now),
        }
    }

    /// STOPPING=1
    pub(crate) fn stopping(&mut self, status: &str, now: Instant) {
        self.conclude(now);
        self.tell(&[NotifyState::Stopping], status, None, now);
    }

    /// WATCHDOG=1. One that cannot be sent is not kept: the next one says more.
    pub(crate) fn alive(&mut self) {
        if let Some(outbox) = &self.outbox {
            outbox.post_now(&NotifyState::Watchdog.to_string());
        }
    }

    /// EXTEND_TIMEOUT_USEC=…: a start, reload or stop under way may take so long from now on, if
    /// its unit's limit has passed by then. Like WATCHDOG=1, it is not kept.
    pub(crate) fn extend(&mut self, time: Duration) {
        if let Some(outbox) = &self.outbox {
            let usec = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
            outbox.post_now(&NotifyState::ExtendTimeoutUsec(usec).to_string());
        }
    }

    /// STATUS=… and ERRNO=…, as far as they have changed. `errno`: how the last reload ended, 0:
    /// well; `None`: not known yet.
    pub(crate) fn status(&mut self, text: &str, errno: Option<u32>, now: Instant) {
        self.tell(&[], text, errno, now);
    }

    /// WATCHDOG=trigger: this process is broken and is to be replaced.
    pub(crate) fn broken(&mut self, now: Instant) {
        self.conclude(now);
        self.say(&[NotifyState::WatchdogTrigger], now);
    }

    /// The process ends right after this, because of that.
    pub(crate) fn fail(&mut self, why: &str) {
        let now = clock();
        self.tell(&[], &format!("Failed: {why}"), None, now);
        self.finish(now);
    }

    /// The process ends right after this. Waits until everything has arrived, but not for ever:
    /// one second for what is kept, one for systemd to read it.
    pub(crate) fn finish(&mut self, now: Instant) {
        self.conclude(now);
        if let Some(outbox) = &mut self.outbox {
            outbox.finish();
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

    /// One datagram: `state`, and what else has changed since the last. A sentence that is kept
    /// meanwhile is forgotten for a newer one; one that comes with something else is not.
    fn tell(&mut self, state: &[NotifyState<'_>], status: &str, errno: Option<u32>, now: Instant) {
        // One line: what a field contains must not become another.
        let status = status.replace(['\n', '\r'], " ");
        let is_news = self.status != status;
        let errno = errno.filter(|&errno| errno != self.errno);
        let mut state = state.to_vec();
        state.extend(errno.map(NotifyState::Errno));
        state.extend(is_news.then_some(NotifyState::Status(&status)));
        if state.is_empty() {
            return;
        }
        if let Some(outbox) = self.outbox.as_mut().filter(|_| is_news) {
            outbox.forget("STATUS=");
        }
        self.say(&state, now);
        self.errno = errno.unwrap_or(self.errno);
        self.status = status;
    }

    /// A reload that has been announced is over, one way or another.
    fn conclude(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_reloading) {
            self.say(&[NotifyState::Ready], now);
        }
    }

    fn say(&mut self, state: &[NotifyState<'_>], now: Instant) {
        if let Some(outbox) = &mut self.outbox {
            outbox.post(lines(state), None, now);
        }
    }
}

impl Drop for Notify {
    /// A RELOADING=1 that no READY=1 follows would make `systemctl reload` wait for ever.
    fn drop(&mut self) {
        if let Some(outbox) = self.outbox.as_mut().filter(|_| self.is_reloading) {
            outbox.flush_now();
            outbox.post_now(&NotifyState::Ready.to_string());
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
        let mut notify = Notify::from_env().unwrap();
        notify.outbox = Some(Outbox::new(name).unwrap());
        notify
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
            notify.reloading("", now());
            notify.ready("", 0, now());
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
        notify.status("one", None, now());
        notify.status("two", None, now());
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
        notify.ready("", 0, now());
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

    fn texts(manager: &UnixDatagram) -> Vec<String> {
        std::iter::from_fn(|| hear(manager).map(|(text, _)| text)).collect()
    }

    #[test]
    fn a_panic_during_a_reload_leaves_nobody_waiting_for_ready() {
        let (name, manager) = manager("panic");
        let panic = std::panic::catch_unwind(|| {
            let mut notify = notify(&name);
            notify.reloading("Rolling restart of web 0/1, generation 2", now());
            std::panic::resume_unwind(Box::new("as if something had gone wrong"));
        });
        assert!(panic.is_err());
        let heard = texts(&manager);
        assert!(heard[0].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{heard:?}");
        assert_eq!(heard[1..], ["READY=1"]);
    }

    #[test]
    fn every_reloading_gets_one_ready_however_it_ends() {
        let (name, manager) = manager("once");
        let mut notify = notify(&name);
        notify.reloading("", now());
        notify.stopping("Stopping: 2 workers left", now());
        notify.broken(now());
        drop(notify);
        let heard = texts(&manager);
        let wanted = ["READY=1", "STOPPING=1\nSTATUS=Stopping: 2 workers left", "WATCHDOG=trigger"];
        assert_eq!(heard[1..], wanted);
    }

    #[test]
    fn an_error_number_goes_with_its_sentence_and_is_taken_back() {
        let (name, manager) = manager("errno");
        let mut notify = notify(&name);
        notify.ready("Running", 0, now());
        notify.status("Reload failed", Some(22), now());
        notify.status("Reload failed", Some(22), now());
        notify.status("Rolling", None, now());
        notify.ready("Running", 0, now());
        let wanted = [
            "READY=1\nSTATUS=Running",
            "ERRNO=22\nSTATUS=Reload failed",
            "STATUS=Rolling",
            "READY=1\nERRNO=0\nSTATUS=Running",
        ];
        assert_eq!(texts(&manager), wanted);
    }

    #[test]
    fn the_last_messages_have_been_read_when_the_end_comes() {
        let (name, manager) = manager("barrier");
        let mut notify = notify(&name);
        fill(&mut notify);
        manager.set_nonblocking(false).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // It is given a second, of which a slow machine may need one to begin.
        let (begun, begins) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut count = 0;
            begun.send(()).unwrap();
            loop {
                let (text, descriptor) = hear_waiting(&manager);
                // Closing it is the answer.
                drop(descriptor);
                if text == "BARRIER=1" {
                    return count;
                }
                count += 1;
            }
        });
        begins.recv().unwrap();
        notify.status("the last", None, now());
        notify.finish(now());
        assert_eq!(notify.deadline(), None, "something is kept");
        assert!(reader.join().unwrap() > 1);
    }

    fn hear_waiting(manager: &UnixDatagram) -> (String, Option<std::os::fd::OwnedFd>) {
        let limit = Some(Duration::from_secs(20));
        crate::sys::socket::wait_readable(&[manager.as_fd()], limit).unwrap();
        hear(manager).expect("nothing came for 20 s")
    }

    #[test]
    fn a_stored_name_is_one_that_systemd_takes() {
        assert_eq!(store_name("log.web:1\n\u{e9}\x7f~"), "log.web_1___~");
        assert_eq!(store_name(&"x".repeat(1000)).len(), 255);
    }
}
