//! `rcluster reload --check`: would a reload of what is configured now go well?
//!
//! Everything that a reload would look at first is looked at. Then one worker of each pool is started
//! as a reload would start it, but it gets no client, and the mind does not know of it: it has a
//! scoreboard of its own, and is in no status, no generation and no account. When it is ready, and has
//! answered the pool's probe, it is ended; when all are gone, the caller hears of each. So nothing that
//! serves is touched, and it does not matter whether a rollout is under way.
//!
//! One check at a time: it starts a worker for each pool at once.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::diagnose::cannot_run;
use super::journal::{Entry, Level, MessageId, Origin};
use super::pin::{Invocation, Pinned};
use super::probe::Verdict;
use super::record::short;
use super::{Daemon, Token};
use crate::config::{Config, Pool, Probe, why};
use crate::kinds::native::{Heard, Start, Worker};
use crate::supervisor::{PoolId, Seat, Slot, Who, WorkerId};
use crate::sys::process::Ending;
use crate::wire::control::{Answer, Call, ReloadResults};
use crate::wire::message::{ToMaster, ToWorker};
use crate::wire::scoreboard::{STRIDE, Scoreboard};

/// Workers of a check are known by numbers from here on, which no other worker reaches.
const FIRST: u64 = 1 << 48;
/// How long a worker may take to end when it has nothing to do.
const FAREWELL: Duration = Duration::from_secs(2);
/// Messages that are read from one worker per turn.
const MESSAGE_BATCH: usize = 64;

/// The check under way.
#[derive(Debug, Default)]
pub(super) struct Check {
    /// Who waits for its outcome. `None`: there is none under way, or nobody waits any more.
    client: Option<u64>,
    parts: Vec<Part>,
    last: u64,
}

/// One pool of it.
#[derive(Debug)]
struct Part {
    name: String,
    id: WorkerId,
    /// `None`: it is gone, or was never there.
    worker: Option<Worker>,
    probe: Option<Probe>,
    /// The message with which the probe's connection is sent.
    message: Vec<u8>,
    begun: Instant,
    start_timeout: Duration,
    is_ready: bool,
    /// How long that took.
    ready_after: Duration,
    deadline: Option<Instant>,
    /// What it has come to, as in "web: {outcome}".
    outcome: Option<Result<String, String>>,
}

impl Check {
    pub(super) fn knows(&self, id: WorkerId) -> bool {
        self.parts.iter().any(|part| part.id == id)
    }

    pub(super) fn is_under_way(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Whether this client waits for it.
    pub(super) fn is_for(&self, client: u64) -> bool {
        self.client == Some(client)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.parts.iter().filter_map(|part| part.deadline).min()
    }

    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.parts.iter().filter_map(|part| Some(part.worker.as_ref()?.process.id()))
    }

    fn part(&mut self, id: WorkerId) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| part.id == id)
    }
}

impl Part {
    fn new(name: &str, id: WorkerId, now: Instant) -> Part {
        Part {
            name: name.to_owned(),
            id,
            worker: None,
            probe: None,
            message: Vec::new(),
            begun: now,
            start_timeout: Duration::ZERO,
            is_ready: false,
            ready_after: Duration::ZERO,
            deadline: None,
            outcome: None,
        }
    }

    /// It is ended, whatever it does; its exit is awaited.
    fn kill(&mut self) {
        if let Some(worker) = &self.worker {
            // A group that is gone needs no signal.
            let _ = worker.process.signal_group(Signal::SIGKILL);
        }
        self.deadline = None;
    }

    /// It is known what came of it: the worker is let go.
    fn conclude(&mut self, outcome: Result<String, String>, now: Instant) {
        self.outcome.get_or_insert(outcome);
        let Some(worker) = &self.worker else { return };
        let drain = ToWorker::Drain { deadline: FAREWELL, handback: false };
        match self.is_ready && worker.tell(&drain).is_ok() {
            true => self.deadline = Some(now + FAREWELL),
            false => self.kill(),
        }
    }
}

impl Daemon {
    pub(super) fn obey_check(&mut self, id: u64, call: &Call, names: &[String]) -> Option<Answer> {
        if call.oneway {
            return None;
        }
        if !self.check.parts.is_empty() {
            let why = "another `rcluster reload --check` is under way; try again when it is over";
            return Some(Answer::refusal("Refused", why));
        }
        let config = match self.load_anew() {
            Ok(config) => config,
            Err(why) => return Some(Answer::refusal("Refused", why)),
        };
        let active = self.supervisor.sizes().into_keys().collect::<Vec<_>>();
        if let Err(why) = self.editions.refuse_unknown(&config, names, &active) {
            return Some(Answer::refusal("Refused", why));
        }
        self.start_check(&config, names);
        self.check.client = Some(id);
        self.end_check();
        None
    }

    /// Starts a worker of each pool.
    fn start_check(&mut self, config: &Config, names: &[String]) {
        let is_named = |name: &String| names.is_empty() || names.contains(name);
        for pool in config.pools.iter().filter(|pool| is_named(&pool.name)) {
            self.check.last += 1;
            let id = WorkerId(FIRST + self.check.last);
            let mut part = Part::new(&pool.name, id, self.now);
            let listener = pool.listen.first().map_or("", |entry| entry.text.as_str());
            part.probe.clone_from(&pool.probe);
            part.message = ToWorker::Connection { listener, past: None, entry: None }.encode();
            part.start_timeout = pool.policy.start_timeout;
            match self.start_checked(pool, id) {
                Ok(worker) => {
                    part.worker = Some(worker);
                    part.deadline = Some(self.now + part.start_timeout);
                }
                Err(why) => part.outcome = Some(Err(why)),
            }
            self.check.parts.push(part);
        }
        // Those that a reload would let go need no worker for that.
        for name in names.iter().filter(|name| config.pool(name).is_none()) {
            let mut part = Part::new(name, WorkerId(FIRST), self.now);
            part.outcome = Some(Ok("would be removed".to_owned()));
            self.check.parts.push(part);
        }
    }

    /// # Errors
    /// A sentence.
    fn start_checked(&mut self, pool: &Pool, id: WorkerId) -> Result<Worker, String> {
        self.try_listeners(pool)?;
        let pinned = Pinned::new(pool)?;
        let plain = |error: std::io::Error| why(&error);
        let Invocation { mut command, name: arg0, keep } = pinned.invocation()?;
        let directory = pinned.directory().map_err(plain)?;
        let board = Scoreboard::create().map_err(plain)?;
        let words = board.seat(0).map_err(plain)?;
        // As the first worker that a reload would replace.
        let generation = self.supervisor.next_generation();
        let who = Who { worker: id, pool: PoolId(u32::MAX), slot: Slot(1), generation };
        let program = std::path::PathBuf::from(command.get_program());
        let (output, read) = self.open_output(&pool.name, &who, &mut command)?;
        let (identity, seat, name) = (pinned.identity.clone(), Seat(0), &pool.name);
        let start = Start {
            who,
            pool: name,
            seat,
            board,
            words,
            // It gets no clients.
            ledger: None,
            command,
            name: arg0,
            keep,
            directory,
            identity,
            output,
        };
        let worker = Worker::start(start).map_err(|error| cannot_run(&program, &error))?;
        let watched = self
            .poller
            .add(&worker.channel, Token::Channel(id).encode())
            .and_then(|()| self.poller.add(&worker.process, Token::Process(id).encode()));
        if let Err(error) = watched {
            let _ = worker.process.signal_group(Signal::SIGKILL);
            return Err(format!("cannot be watched: {error}"));
        }
        let pid = worker.process.id();
        let text = format!("{name} is checked: a worker without clients was started (pid {pid})");
        self.journal.say(Entry::new(Level::Info, text).id(MessageId::Started).pool(name));
        if let Some(read) = read {
            let generation = generation.0;
            let origin = Origin { pool: pool.name.clone(), slot: 1, generation, pid };
            self.journal.follow(id.0, origin, read);
        }
        Ok(worker)
    }

    /// Whether the pool's listeners can be had. Those that are open already can; others are opened
    /// for a moment.
    fn try_listeners(&mut self, pool: &Pool) -> Result<(), String> {
        let mut opened = Vec::new();
        let result = self.listeners.open_all(pool, &mut opened);
        opened.into_iter().for_each(|id| self.listeners.close(id));
        result.map(drop)
    }

    /// Something is to be heard of a worker, or it is gone.
    pub(super) fn observe_check(&mut self, id: WorkerId) {
        for _ in 0..MESSAGE_BATCH {
            let Some(part) = self.check.part(id) else { return };
            let Some(worker) = &part.worker else { return };
            match worker.hear() {
                Ok(Heard::Message(ToMaster::Ready { stride, .. }, _)) if !part.is_ready => {
                    part.is_ready = true;
                    self.note_checked_ready(id, stride);
                }
                Ok(Heard::Message(..)) => {}
                Ok(Heard::Nothing) => break,
                Ok(Heard::End) => {
                    // Its end would be reported again and again.
                    let _ = self.poller.remove(&worker.channel);
                    part.conclude(Err("has shut down its channel".to_owned()), self.now);
                    part.kill();
                    break;
                }
                Err(error) => {
                    part.conclude(Err(format!("sent {error}")), self.now);
                    break;
                }
            }
        }
        self.reap_checked(id);
    }

    fn note_checked_ready(&mut self, id: WorkerId, stride: u32) {
        let now = self.now;
        let Some(part) = self.check.part(id) else { return };
        if stride != 0 && stride != STRIDE as u32 {
            let why = format!(
                "counts on a scoreboard of stride {stride}, this master's is {STRIDE}: build it with \
                 the worker library of this version"
            );
            return part.conclude(Err(why), now);
        }
        part.ready_after = now.saturating_duration_since(part.begun);
        let ready = format!("ready in {}", short(part.ready_after));
        let Some(probe) = part.probe.clone() else { return part.conclude(Ok(ready), now) };
        let Some(worker) = part.worker.take() else { return };
        let message = std::mem::take(&mut part.message);
        // From now on the probe's own time counts.
        part.deadline = None;
        let asked = self.probe_stranger(id, &worker, probe, &message);
        let Some(part) = self.check.part(id) else { return };
        part.worker = Some(worker);
        if let Err(error) = asked {
            part.conclude(Err(format!("is ready, but its probe could not be sent: {error}")), now);
        }
    }

    /// The probe of a worker has come to its end.
    pub(super) fn note_checked_probe(&mut self, id: WorkerId, verdict: Verdict) {
        let now = self.now;
        let Some(part) = self.check.part(id) else { return };
        let ready = format!("ready in {}", short(part.ready_after));
        let outcome = match verdict {
            Ok(answer) => Ok(format!("{ready}, probe {answer}")),
            Err(why) => Err(format!("{ready}, but its probe {why}")),
        };
        part.conclude(outcome, now);
    }

    fn reap_checked(&mut self, id: WorkerId) {
        let Some(part) = self.check.part(id) else { return };
        let Some(worker) = &part.worker else { return };
        let how = match worker.process.reap() {
            Ok(None) => return,
            Ok(Some(Ending::Status(status))) => format!("exited with status {status}"),
            Ok(Some(Ending::Signal(signal))) => format!("was killed by {signal}"),
            Ok(Some(Ending::Unknown)) => "is gone".to_owned(),
            Err(error) => format!("is gone ({error})"),
        };
        let when = if part.is_ready { "while it was probed" } else { "before it was ready" };
        part.outcome.get_or_insert(Err(format!("{how} {when}")));
        part.deadline = None;
        if let Some(worker) = part.worker.take() {
            // The channel may have been removed at its end.
            let _ = self.poller.remove(&worker.channel);
            let _ = self.poller.remove(&worker.process);
        }
        self.end_probes_of(id);
        self.end_check();
    }

    /// Workers whose time is over.
    pub(super) fn tend_check(&mut self) {
        let now = self.now;
        for part in &mut self.check.parts {
            if part.deadline.is_some_and(|at| at <= now) {
                let limit = humantime::format_duration(part.start_timeout);
                part.outcome.get_or_insert(Err(format!("was not ready within {limit}")));
                part.kill();
            }
        }
    }

    /// Nobody waits for the outcome any more, or the service ends.
    pub(super) fn abandon_check(&mut self, client: u64) {
        if self.check.is_for(client) {
            self.check.client = None;
            self.kill_check();
        }
    }

    /// Ends the workers of a check at once.
    pub(super) fn kill_check(&mut self) {
        for part in &mut self.check.parts {
            part.outcome.get_or_insert(Err("was ended".to_owned()));
            part.kill();
        }
    }

    /// Answers, once every worker is gone.
    fn end_check(&mut self) {
        if self.check.parts.iter().any(|part| part.worker.is_some()) {
            return;
        }
        let parts = std::mem::take(&mut self.check.parts);
        let Some(client) = self.check.client.take() else { return };
        let is_well = |part: &&Part| matches!(part.outcome, Some(Ok(_)));
        let (well, ill): (Vec<&Part>, Vec<&Part>) = parts.iter().partition(is_well);
        let answer = if ill.is_empty() {
            let message = format!("{}; nothing was changed", sentences(&well));
            Answer::results(&ReloadResults { message, ..ReloadResults::default() })
        } else {
            Answer::refusal("Failed", format!("{}; nothing was changed", sentences(&ill)))
        };
        self.answer(client, &answer);
    }
}

/// `web: ready in 200 ms; api: exited with status 1 before it was ready`
fn sentences(parts: &[&Part]) -> String {
    let sentence = |part: &&Part| match &part.outcome {
        Some(Ok(text) | Err(text)) => format!("{}: {text}", part.name),
        None => part.name.clone(),
    };
    parts.iter().map(sentence).collect::<Vec<_>>().join("; ")
}
