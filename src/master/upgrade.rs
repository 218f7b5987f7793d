//! The master replaces its own image: same process, same workers, nothing closed.
//!
//! ```text
//!  SIGUSR2, Upgrade ─▶ rehearsal ─▶ the log is written out ─▶ signals wait ─▶ execve
//!                      (a child)                                                 │
//!  answer ◀─ everything is watched again ◀─ handlers stand ◀─ the next image ◀───┘
//! ```
//!
//! An image that starts and then fails is a killed master. So the program that is installed shows
//! first, in a child with the same arguments, that it can read the state and go on with it; the loop
//! turns meanwhile. Only then the log threads end, with everything written, and the program is
//! executed by the path under which this one was started. What fails until then leaves this image
//! serving with everything as it was.
//!
//! Signals that come in the gap are blocked, so that they wait for the next image; those that have
//! come and were not looked at are sent again, for the same reason.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, Signal, kill};
use serde_json::json;

use super::image::PASSED;
use super::journal::{CAUSE, Entry, Followed, Journal, Level, MessageId, TOOK_USEC};
use super::state::{Packing, REHEARSAL_VARIABLE, STATE_VARIABLE};
use super::{Daemon, Token};
use crate::config::why;
use crate::sys::ancillary::number_of;
use crate::sys::leftover::pack_as;
use crate::sys::output::pipe;
use crate::sys::process::{Ending, Preparation, Process};
use crate::wire::control::Answer;

/// How long a rehearsal may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of what a rehearsal printed, so much is read.
const OUTPUT_MAX: u64 = 64 * 1024;

/// What of the master's environment is between it and the service manager.
const MANAGER: &[&str] = &["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE"];
/// What is only meant for the image that finds it.
const STALE: &[&str] = &[
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    STATE_VARIABLE,
    REHEARSAL_VARIABLE,
];

/// An upgrade that was asked for.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// Control clients that await the answer.
    asked_by: Vec<u64>,
    rehearsal: Process,
    /// What it prints.
    output: OwnedFd,
    until: Instant,
    was_killed: bool,
    /// The rehearsal went well.
    is_rehearsed: bool,
}

impl Upgrade {
    pub(super) fn deadline(&self) -> Option<Instant> {
        Some(self.until).filter(|_| !self.was_killed && !self.is_rehearsed)
    }

    pub(super) fn process(&self) -> &Process {
        &self.rehearsal
    }

    pub(super) fn is_awaited_by(&self, client: u64) -> bool {
        self.asked_by.contains(&client)
    }
}

impl Daemon {
    /// Somebody wants the installed program to go on. One who asks during a rehearsal waits for the
    /// same.
    pub(super) fn ask_upgrade(&mut self, client: Option<u64>) {
        if self.was_told_to_stop {
            self.refuse_upgrade(client.into_iter().collect(), "the service is stopping");
            return;
        }
        if let Some(upgrade) = &mut self.upgrade {
            return upgrade.asked_by.extend(client);
        }
        let asked_by = client.into_iter().collect();
        match self.begin_rehearsal() {
            Ok((rehearsal, output)) => {
                self.upgrade = Some(Upgrade {
                    asked_by,
                    rehearsal,
                    output,
                    until: self.now + PATIENCE,
                    was_killed: false,
                    is_rehearsed: false,
                });
            }
            Err(why) => self.fail_upgrade(asked_by, &why),
        }
    }

    fn begin_rehearsal(&mut self) -> Result<(Process, OwnedFd), String> {
        let mut packing = Packing::Carried(Vec::new());
        let state = self.gather_all(self.now, &[], Vec::new(), &mut packing).encode()?;
        let name = self.own_path.display();
        let fail = |error: std::io::Error| format!("{name} cannot be tried: {}", why(&error));
        let state = pack_as(c"rcluster-rehearsal", &state).map_err(fail)?;
        let (output, write) = pipe().map_err(fail)?;
        let mut arguments = std::env::args_os();
        let mut command = Command::new(&self.own_path);
        let name = arguments.next();
        command.args(arguments);
        let is_theirs = |key: &OsStr| MANAGER.iter().chain(STALE).any(|other| key == *other);
        command.envs(std::env::vars_os().filter(|(key, _)| !is_theirs(key)));
        let value = format!("{}:{}", std::process::id(), number_of(&state));
        command.env(REHEARSAL_VARIABLE, value).stdin(Stdio::null());
        command.stdout(write.try_clone().map_err(fail)?).stderr(write);
        let preparation = Preparation { keep: vec![state], name, ..Preparation::default() };
        let rehearsal = Process::start(command, preparation).map_err(fail)?;
        if let Err(error) = self.poller.add(&rehearsal, Token::Rehearsal.encode()) {
            // Nobody would see its end.
            let _ = rehearsal.signal_group(Signal::SIGKILL);
            return Err(fail(error));
        }
        Ok((rehearsal, output))
    }

    /// A rehearsal that takes too long is ended.
    pub(super) fn limit_rehearsal(&mut self) {
        let Some(upgrade) = &mut self.upgrade else { return };
        let is_overdue = upgrade.until <= self.now && !upgrade.is_rehearsed;
        if is_overdue && !std::mem::replace(&mut upgrade.was_killed, true) {
            // It has just ended, where this fails.
            let _ = upgrade.rehearsal.signal_group(Signal::SIGKILL);
        }
    }

    /// The rehearsal is over.
    pub(super) fn observe_rehearsal(&mut self) {
        let Some(upgrade) = &self.upgrade else { return };
        let ending = match upgrade.rehearsal.reap() {
            Ok(None) => return,
            Ok(Some(ending)) => Ok(ending),
            Err(error) => Err(error),
        };
        let Some(mut upgrade) = self.upgrade.take() else { return };
        // Closing it removes it as well.
        let _ = self.poller.remove(&upgrade.rehearsal);
        match judge(&upgrade, &self.own_path, ending) {
            Ok(()) => {
                upgrade.is_rehearsed = true;
                self.upgrade = Some(upgrade);
                self.continue_upgrade();
            }
            Err(why) => self.fail_upgrade(upgrade.asked_by, &why),
        }
    }

    /// After the rehearsal, and once no worker is being asked anything: a question is not carried.
    pub(super) fn continue_upgrade(&mut self) {
        let is_rehearsed = self.upgrade.as_ref().is_some_and(|upgrade| upgrade.is_rehearsed);
        let is_asking = self.probes.is_asking() || self.round.is_under_way();
        if !is_rehearsed || is_asking || self.check.is_under_way() {
            return;
        }
        if let Some(upgrade) = self.upgrade.take() {
            self.upgrade_now(upgrade.asked_by);
        }
    }

    /// Replaces the image. Comes back only if that fails.
    fn upgrade_now(&mut self, asked_by: Vec<u64>) {
        self.perform_all();
        self.take_heads_out();
        self.keep_state();
        self.send_replies();
        if self.was_told_to_stop || self.ended.is_some() {
            return self.fail_upgrade(asked_by, "the service is stopping");
        }
        let (followed, is_written) = self.journal.suspend();
        self.forget_outputs();
        let result = match is_written {
            true => self.hand_over(&followed, asked_by.clone()),
            false => Err("whoever reads the log takes nothing: try again".to_owned()),
        };
        let Err(failure) = result;
        self.resume_journal(followed);
        self.fail_upgrade(asked_by, &failure);
    }

    /// The log threads ended in vain.
    fn resume_journal(&mut self, followed: Vec<Followed>) {
        // Closing the old one removes it as well.
        let _ = self.poller.remove(&self.journal);
        let journal = Journal::start().and_then(|journal| {
            self.poller.add(&journal, Token::Journal.encode())?;
            Ok(journal)
        });
        match journal {
            Ok(journal) => self.journal = journal,
            Err(error) => {
                self.ended = Some(Err(format!("the log threads cannot be started: {error}")));
                return;
            }
        }
        followed.into_iter().for_each(|followed| self.journal.follow_on(followed));
    }

    /// Executes the installed program with everything that it needs.
    fn hand_over(
        &mut self,
        followed: &[Followed],
        asked_by: Vec<u64>,
    ) -> Result<std::convert::Infallible, String> {
        let path = self.own_path.clone();
        let fail = |error: std::io::Error| {
            format!("{} cannot be executed: {}", path.display(), why(&error))
        };
        // From here on they wait for the next image. Those that came before are sent once more.
        SigSet::all().thread_block().map_err(|error| fail(error.into()))?;
        let pending: Vec<i32> = self.signals.pending().collect();
        for signal in pending.into_iter().filter_map(|it| Signal::try_from(it).ok()) {
            // To this very process: it cannot fail.
            let _ = kill(nix::unistd::getpid(), signal);
        }
        let error = self.execute(&path, followed, asked_by).unwrap_err();
        if let Err(error) = SigSet::all().thread_unblock() {
            self.ended = Some(Err(format!("signals stay blocked: {error}")));
        }
        Err(error)
    }

    fn execute(
        &self,
        path: &Path,
        followed: &[Followed],
        asked_by: Vec<u64>,
    ) -> Result<std::convert::Infallible, String> {
        let fail = |error: std::io::Error| {
            format!("{} cannot be executed: {}", path.display(), why(&error))
        };
        let mut packing = Packing::Carried(Vec::new());
        let state = self.gather_all(self.now, followed, asked_by, &mut packing).encode()?;
        let state = pack_as(c"rcluster-state", &state).map_err(fail)?;
        fcntl(&state, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| fail(error.into()))?;
        let own = format!("{STATE_VARIABLE}={}:{}", std::process::id(), number_of(&state));
        let is_stale = |key: &OsStr| STALE.iter().any(|stale| key == *stale);
        let inherited = std::env::vars_os().filter(|(key, _)| !is_stale(key));
        let environment = inherited.filter_map(|(key, value)| {
            let bytes = [key.as_bytes(), b"=", value.as_bytes()].concat();
            CString::new(bytes).ok()
        });
        let environment: Vec<CString> = environment.chain(CString::new(own).ok()).collect();
        let arguments: Vec<CString> = std::env::args_os().filter_map(|it| c_string(&it)).collect();
        let program = c_string(path.as_os_str()).ok_or("the program's path has a zero byte")?;
        packing.survive(true).map_err(fail)?;
        let Err(error) = nix::unistd::execve(&program, &arguments, &environment);
        let _ = packing.survive(false);
        Err(fail(error.into()))
    }

    /// The next image is this one: says so, and answers who asked for it.
    pub(super) fn note_upgraded(&mut self, before: &str, asked_by: Vec<u64>, since: Instant) {
        self.reap_strangers();
        let took = self.now.saturating_duration_since(since);
        let text = format!(
            "rcluster {} serves (was {before}), same process {}, {} ms",
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            took.as_millis().max(1)
        );
        let entry = Entry::new(Level::Notice, &text).id(MessageId::Upgraded);
        self.journal.say(entry.with_time(TOOK_USEC, took));
        let answer = Answer { parameters: json!({ "message": text }), ..Answer::default() };
        asked_by.into_iter().for_each(|client| self.answer(client, &answer));
    }

    fn fail_upgrade(&mut self, asked_by: Vec<u64>, why: &str) {
        let text = self.refuse_upgrade(asked_by, why);
        let entry = Entry::new(Level::Error, text).id(MessageId::UpgradeFailed);
        self.journal.say(entry.with(CAUSE, why));
    }

    fn refuse_upgrade(&mut self, asked_by: Vec<u64>, why: &str) -> String {
        let own = env!("CARGO_PKG_VERSION");
        let text = format!("not upgraded: {why}; rcluster {own} serves on");
        let answer = Answer::refusal("Failed", text.clone());
        asked_by.into_iter().for_each(|client| self.answer(client, &answer));
        text
    }
}

/// What the rehearsal has shown.
fn judge(upgrade: &Upgrade, path: &Path, ending: std::io::Result<Ending>) -> Result<(), String> {
    let name = path.display();
    if upgrade.was_killed {
        return Err(format!("{name} did not answer within {} s", PATIENCE.as_secs()));
    }
    let mut text = Vec::new();
    if let Ok(output) = upgrade.output.as_fd().try_clone_to_owned() {
        // What cannot be read, or comes after its end, is not there.
        let _ = File::from(output).take(OUTPUT_MAX).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let has_passed = lines().any(|line| line.starts_with("rcluster ") && line.ends_with(PASSED));
    let said = lines().next_back().unwrap_or("it said nothing").trim_start_matches("<3>");
    match ending {
        Ok(Ending::Status(0)) if has_passed => Ok(()),
        Ok(Ending::Status(0)) => Err(format!(
            "{name} does not know how to go on for another image: restart the service ({said})"
        )),
        Ok(Ending::Status(status)) => Err(format!("{name} exited with status {status}: {said}")),
        Ok(Ending::Signal(signal)) => Err(format!("{name} was killed by {signal}: {said}")),
        Ok(Ending::Unknown) => Err(format!("{name} is gone: {said}")),
        Err(error) => Err(format!("{name} cannot be seen: {error}")),
    }
}

/// Without a zero byte in it, which the system could not have given us.
fn c_string(text: &OsStr) -> Option<CString> {
    CString::new(text.as_bytes()).ok()
}
