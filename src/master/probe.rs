//! Probes: one worker is asked whether it works, over a connection of the master's own.
//!
//! The worker gets one end of a socket pair as if a client had come to a listener of its pool; the
//! question is written at once (it is far shorter than an empty socket buffer), and the answer is read
//! in the loop, a bit at a time. The verdict comes with the answer's first line, or with the bytes
//! that were expected; then the sending side is shut down, and the probe is over when the worker has
//! closed its end, too. So what it counts agrees with what the mind counts.
//!
//! A worker that dies closes its end, and its exit may be heard a moment later. The exit says more,
//! so an end without an answer is held back for [`GRACE`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::record::short;
use super::{Daemon, Token};
use crate::config::{Probe, Question};
use crate::kinds::Worker;
use crate::supervisor::{Edition, Event, ListenerId, WorkerId};

/// Bytes of an answer that are looked at.
const ANSWER_MAX: usize = 64 * 1024;
/// Bytes that are read per turn.
const TURN_MAX: usize = 64 * 1024;
/// Bytes of an answer that are quoted.
const QUOTED_MAX: usize = 60;
/// How long an end without an answer is held back.
const GRACE: Duration = Duration::from_millis(100);

/// What a probe found: what was answered, or why the worker is not well, as in "its probe {why}".
pub(super) type Verdict = Result<String, String>;

/// The probes under way, one per worker at most.
#[derive(Debug, Default)]
pub(super) struct Probes {
    asked: BTreeMap<WorkerId, Asked>,
    /// The worker's ends of those that were given up.
    left: BTreeMap<WorkerId, FileId>,
}

/// Which file a descriptor is: device and inode. Both ends of a socket pair have their own.
type FileId = (u64, u64);

/// A question that was asked.
#[derive(Debug)]
struct Asked {
    probe: Probe,
    ours: UnixStream,
    /// The worker's end.
    theirs: FileId,
    answer: Vec<u8>,
    verdict: Option<Verdict>,
    /// The worker has closed its end.
    is_over: bool,
    begun: Instant,
    deadline: Instant,
}

impl Probes {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.asked.values().map(|asked| asked.deadline).min()
    }

    /// Whether an answer is awaited.
    pub(super) fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    fn overdue(&self, now: Instant) -> Vec<WorkerId> {
        let overdue = self.asked.iter().filter(|(_, asked)| asked.deadline <= now);
        overdue.map(|(&id, _)| id).collect()
    }
}

impl Daemon {
    /// Asks a worker of the mind's.
    pub(super) fn probe(&mut self, worker: WorkerId, listener: ListenerId, edition: Edition) {
        let Some((to, listener)) = self.workers.get_mut(&worker).zip(self.listeners.get(listener))
        else {
            return;
        };
        let pinned = self.editions.get(edition, to.who.pool);
        let Some(probe) = pinned.and_then(|pinned| pinned.probe.clone()) else { return };
        match ask(probe, to, &listener.message, self.now) {
            Ok(asked) => {
                self.ledgers.note_own(worker);
                self.watch_probe(worker, asked);
            }
            Err(error) => {
                let result = Err(format!("could not be sent: {error}"));
                self.report(Event::ProbeReturned { worker });
                self.report(Event::Probed { worker, result, is_left: false });
            }
        }
    }

    /// Waits for the answer.
    fn watch_probe(&mut self, worker: WorkerId, mut asked: Asked) {
        if let Err(error) = self.poller.add(&asked.ours, Token::Probe(worker).encode()) {
            asked.verdict = Some(Err(format!("cannot be watched: {error}")));
            asked.deadline = self.now;
        }
        self.probes.asked.insert(worker, asked);
    }

    /// Asks a worker that the mind does not know.
    ///
    /// # Errors
    /// Those of the system calls.
    pub(super) fn probe_stranger(
        &mut self,
        id: WorkerId,
        worker: &mut Worker,
        probe: Probe,
        message: &[u8],
    ) -> io::Result<()> {
        let asked = ask(probe, worker, message, self.now)?;
        self.watch_probe(id, asked);
        Ok(())
    }

    pub(super) fn observe_probe(&mut self, id: WorkerId) {
        let Some(asked) = self.probes.asked.get_mut(&id) else { return };
        asked.hear(self.now);
        if !asked.is_over {
            return;
        }
        if asked.verdict.is_some() {
            return self.conclude_probe(id);
        }
        asked.deadline = asked.deadline.min(self.now + GRACE);
        // Its end would be reported again and again.
        let _ = self.poller.remove(&asked.ours);
    }

    /// Probes whose time is over.
    pub(super) fn end_overdue_probes(&mut self) {
        for id in self.probes.overdue(self.now) {
            self.conclude_probe(id);
        }
    }

    fn conclude_probe(&mut self, id: WorkerId) {
        let Some(asked) = self.forget_probe(id) else { return };
        let (is_left, theirs) = (!asked.is_over, asked.theirs);
        let verdict = asked.conclude();
        if self.check.knows(id) {
            return self.note_checked_probe(id, verdict);
        }
        // A good answer has come to its end, even if the worker has not closed its own yet.
        let is_left = is_left && verdict.is_err();
        if is_left {
            self.probes.left.insert(id, theirs);
        }
        self.report(Event::Probed { worker: id, result: verdict.map(drop), is_left });
    }

    /// The worker is gone.
    pub(super) fn end_probes_of(&mut self, id: WorkerId) {
        self.forget_probe(id);
        self.probes.left.remove(&id);
    }

    /// Nobody waits for the answer any more.
    fn forget_probe(&mut self, id: WorkerId) -> Option<Asked> {
        let asked = self.probes.asked.remove(&id)?;
        // It may have been removed at its end.
        let _ = self.poller.remove(&asked.ours);
        Some(asked)
    }

    /// Whether this connection, which came back from the worker's queue, is its probe's. It is over
    /// then.
    pub(super) fn take_back_probe(&mut self, id: WorkerId, socket: &OwnedFd) -> bool {
        let asked = self.probes.asked.get(&id).map(|asked| asked.theirs);
        let mut known = asked.into_iter().chain(self.probes.left.get(&id).copied());
        // Most workers are never probed.
        if !known.any(|theirs| file_of(socket).is_ok_and(|file| file == theirs)) {
            return false;
        }
        self.end_probes_of(id);
        self.report(Event::ProbeReturned { worker: id });
        true
    }
}

/// Sends a worker a connection, and the question over it.
fn ask(probe: Probe, to: &mut Worker, message: &[u8], now: Instant) -> io::Result<Asked> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    ours.write_all(&probe.question.bytes())?;
    let theirs = OwnedFd::from(theirs);
    let link = to.native_mut().ok_or(io::ErrorKind::Unsupported)?;
    link.send_connection(message, theirs.as_fd(), None)?;
    Ok(Asked {
        theirs: file_of(&theirs)?,
        ours,
        answer: Vec::new(),
        verdict: None,
        is_over: false,
        begun: now,
        deadline: now + probe.timeout,
        probe,
    })
}

fn file_of(descriptor: &OwnedFd) -> io::Result<FileId> {
    let metadata = File::from(descriptor.try_clone()?).metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Asked {
    /// Reads on.
    fn hear(&mut self, now: Instant) {
        let mut buffer = [0; 4096];
        let mut left = TURN_MAX;
        while left > 0 {
            match self.ours.read(&mut buffer) {
                Ok(0) => self.is_over = true,
                Ok(count) => {
                    left = left.saturating_sub(count);
                    if self.verdict.is_none() {
                        self.answer.extend_from_slice(&buffer[..count]);
                    }
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.is_over = true,
            }
            break;
        }
        if self.verdict.is_none() {
            let took = now.saturating_duration_since(self.begun);
            self.verdict = self.probe.question.judge(&self.answer, self.is_over, took);
            if self.verdict.is_some() && !self.is_over {
                // The worker may be gone; then its end is read next.
                let _ = self.ours.shutdown(Shutdown::Write);
            }
        }
    }

    /// What it has come to, now that nothing more is waited for.
    fn conclude(self) -> Verdict {
        let timeout = humantime::format_duration(self.probe.timeout);
        self.verdict.unwrap_or_else(|| match self.is_over {
            true => Err("was closed without an answer".to_owned()),
            false => Err(format!("was not answered within {timeout}")),
        })
    }
}

impl Question {
    /// What is sent.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Question::Http { path } => {
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    .into_bytes()
            }
            Question::Text { send, .. } => send.as_bytes().to_vec(),
        }
    }

    /// What is to be thought of an answer. `None`: there is not enough of it.
    fn judge(&self, answer: &[u8], is_over: bool, took: Duration) -> Option<Verdict> {
        let took = short(took);
        let quoted = || String::from_utf8_lossy(&answer[..answer.len().min(QUOTED_MAX)]);
        let is_all = is_over || answer.len() >= ANSWER_MAX;
        let verdict = match self {
            Question::Http { .. } => match status_of(answer) {
                Ok(Some(status @ 200..=399)) => Ok(format!("answered {status} in {took}")),
                Ok(Some(status)) => Err(format!("was answered {status}")),
                Ok(None) if !is_all => return None,
                Ok(None) | Err(()) => Err(format!("was answered {:?}, no HTTP", quoted())),
            },
            Question::Text { expect, .. } => {
                let expected = expect.as_bytes();
                match answer.windows(expected.len()).any(|part| part == expected) {
                    true => Ok(format!("answered in {took}")),
                    false if !is_all => return None,
                    false => Err(format!("was answered {:?}, without {expect:?}", quoted())),
                }
            }
        };
        // That the worker has died would say more.
        if answer.is_empty() { None } else { Some(verdict) }
    }
}

/// The status of an HTTP answer, interim ones (1xx) left out. `None`: there is not enough of it. An
/// error: it is no HTTP.
fn status_of(mut answer: &[u8]) -> Result<Option<u16>, ()> {
    loop {
        let start = b"HTTP/1.";
        let length = answer.len().min(start.len());
        if answer[..length] != start[..length] {
            return Err(());
        }
        let Some(end) = answer.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
        let line = std::str::from_utf8(&answer[..end]).map_err(drop)?;
        let status = line.split_ascii_whitespace().nth(1).ok_or(())?;
        let status: u16 = status.parse().map_err(drop)?;
        if !(100..=199).contains(&status) {
            return Ok(Some(status));
        }
        let blank = answer.windows(4).position(|part| part == b"\r\n\r\n");
        let Some(blank) = blank else { return Ok(None) };
        answer = &answer[blank + 4..];
        if answer.is_empty() {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_the_first_line_that_counts() {
        for (answer, status) in [
            ("HTTP/1.1 200 OK\r\n", Ok(Some(200))),
            ("HTTP/1.0 302\r\nLocation: /\r\n", Ok(Some(302))),
            ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 503 x\r\n", Ok(Some(503))),
            ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", Ok(None)),
            ("HTTP/1.1 100 Continue\r\n", Ok(None)),
            ("HTTP/1.1 200 OK", Ok(None)),
            ("HT", Ok(None)),
            ("", Ok(None)),
            ("SSH-2.0-x\r\n", Err(())),
            ("HTTP/1.1\r\n", Err(())),
            ("HTTP/1.1 abc\r\n", Err(())),
            ("HTTP/1.1 99999999\r\n", Err(())),
        ] {
            assert_eq!(status_of(answer.as_bytes()), status, "{answer:?}");
        }
    }

    #[test]
    fn an_answer_is_good_bad_or_not_all_there() {
        let took = Duration::from_millis(3);
        let http = Question::Http { path: "/".into() };
        let judge = |text: &str, is_over| http.judge(text.as_bytes(), is_over, took);
        assert_eq!(judge("HTTP/1.1 399 x\r\n", false), Some(Ok("answered 399 in 3 ms".into())));
        assert_eq!(judge("HTTP/1.1 404 x\r\n", false), Some(Err("was answered 404".into())));
        assert_eq!(judge("HTTP/1.1 2", false), None);
        assert!(judge("HTTP/1.1 2", true).unwrap().unwrap_err().contains("no HTTP"));
        assert_eq!(judge("", true), None, "whether it died is heard first");
        let line = Question::Text { send: "PING\r\n".into(), expect: "PONG".into() };
        let judge = |text: &str, is_over| line.judge(text.as_bytes(), is_over, took);
        assert_eq!(judge("+PO", false), None);
        assert_eq!(judge("+PONG", false), Some(Ok("answered in 3 ms".into())));
        let refusal = judge("-ERR loading\r\n", true).unwrap().unwrap_err();
        assert_eq!(refusal, "was answered \"-ERR loading\\r\\n\", without \"PONG\"");
        let endless = "x".repeat(ANSWER_MAX);
        assert!(judge(&endless, false).unwrap().is_err(), "it is not read for ever");
    }
}
