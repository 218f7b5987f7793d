//! `rcluster reload --check`: would a reload of what is configured now go well?
//!
//! Everything that a reload would look at first is looked at. Then one worker of each pool is started
//! as a reload would start it, but it gets no client, and the mind does not know of it: it has a
//! scoreboard of its own, and is in no status, no generation and no account. When it is ready, and has
//! answered the pool's probe, it is ended; when all are gone, the caller hears of each. So nothing that
//! serves is touched, and it does not matter whether a rollout is under way.
//!
//! One check at a time: it starts a worker for each pool at once.

mod inherited;
mod piped;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Daemon;
use super::journal::{Entry, Level, MessageId, Origin};
use super::observe::MESSAGE_BATCH;
use super::perform::Parts;
use super::pin::Pinned;
use super::probe::Verdict;
use super::record::short;
use crate::config::{Config, Kind, Pool, Probe, why};
use crate::kinds::inherit::Offer;
use crate::kinds::native::{Heard, unfit};
use crate::kinds::{Link, Worker};
use crate::supervisor::{PoolId, Seat, Slot, Who, WorkerId};
use crate::sys::process::Ending;
use crate::wire::control::{Answer, Call, ReloadResults};
use crate::wire::message::{Ready, ToMaster, ToWorker};
use crate::wire::scoreboard::Scoreboard;

/// Workers of a check are known by numbers from here on, which no other worker reaches.
const FIRST: u64 = 1 << 48;
/// How long a worker may take to end when it has nothing to do.
const FAREWELL: Duration = Duration::from_secs(2);

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
    /// It is to accept by itself.
    must_accept: bool,
    start_timeout: Duration,
    is_ready: bool,
    /// How long that took.
    ready_after: Duration,
    deadline: Option<Instant>,
    /// What it has come to, as in "web: {outcome}".
    outcome: Option<Result<String, String>>,
    /// What may be the cause of that.
    hint: Option<String>,
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
        let looks = self.parts.iter().filter_map(|part| {
            let worker = part.worker.as_ref()?;
            let inherited = worker.inherit().and_then(|link| link.look_at());
            inherited.or_else(|| worker.piped()?.look_at)
        });
        self.parts.iter().filter_map(|part| part.deadline).chain(looks).min()
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
            must_accept: false,
            start_timeout: Duration::ZERO,
            is_ready: false,
            ready_after: Duration::ZERO,
            deadline: None,
            outcome: None,
            hint: None,
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
        let Some(worker) = &mut self.worker else { return };
        let drain = ToWorker::Drain { deadline: FAREWELL, handback: false };
        let is_told = match &mut worker.link {
            Link::Native(link) => self.is_ready && link.tell(&drain).is_ok(),
            Link::Inherit(link) => self.is_ready && link.stop(&worker.process).is_ok(),
            Link::Piped(link) => self.is_ready && link.stop(),
        };
        match is_told {
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
            part.must_accept = pool.policy.admits();
            part.start_timeout = pool.policy.start_timeout;
            match self.start_checked(pool, id) {
                Ok(worker) => {
                    part.worker = Some(worker);
                    part.deadline = Some(self.now + part.start_timeout);
                }
                Err(why) => part.outcome = Some(Err(why)),
            }
            self.check.parts.push(part);
            self.await_checked(id, &pool.manner);
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
        let offer = self.try_listeners(pool)?;
        let pinned = Pinned::new(pool)?;
        let plain = |error: std::io::Error| why(&error);
        let board = Scoreboard::create().map_err(plain)?;
        let words = board.seat(0).map_err(plain)?;
        // As the first worker that a reload would replace; it gets no clients.
        let generation = self.supervisor.next_generation();
        let who = Who { worker: id, pool: PoolId(u32::MAX), slot: Slot(1), generation };
        let (place, name) = ((Seat(0), (board, words)), &pool.name);
        let mut parts = Parts::of(&pinned)?;
        parts.offer = offer;
        parts.offer.preload = self.preload(&pool.manner)?;
        if pool.manner.kind == Kind::Inherit {
            parts.offer.einhorn = self.einhorn_path();
        }
        let (worker, read) = self.start_worker(who, name, parts, place, None)?;
        if let Err(error) = self.watch_worker(id, &worker) {
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
    /// for a moment. What a worker is given that would accept there.
    fn try_listeners(&mut self, pool: &Pool) -> Result<Offer, String> {
        let mut opened = Vec::new();
        let result = self.listeners.open_all(pool, &mut opened);
        let result = result.and_then(|ids| match pool.manner.kind {
            Kind::Native => Ok(Offer::default()),
            Kind::Node | Kind::Ipc | Kind::Inherit => self.stand_ins(pool, &ids),
        });
        opened.into_iter().for_each(|id| self.listeners.close(id));
        result
    }

    /// Something is to be heard of a worker, or it is gone.
    pub(super) fn observe_check(&mut self, id: WorkerId) {
        if self.hear_checked(id) || self.hear_checked_piped(id) {
            return self.reap_checked(id);
        }
        for _ in 0..MESSAGE_BATCH {
            let Some(part) = self.check.part(id) else { return };
            let Some(worker) = &part.worker else { return };
            let Some(link) = worker.native() else { return };
            match link.hear() {
                Ok(Heard::Message(ToMaster::Ready(ready), _)) if !part.is_ready => {
                    part.is_ready = true;
                    self.note_checked_ready(id, &ready);
                }
                Ok(Heard::Message(..)) => {}
                Ok(Heard::Nothing) => break,
                Ok(Heard::End) => {
                    // Its end would be reported again and again.
                    let _ = self.poller.remove(&worker.link);
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

    fn note_checked_ready(&mut self, id: WorkerId, ready: &Ready) {
        let now = self.now;
        let Some(part) = self.check.part(id) else { return };
        if let Some(why) = unfit(ready, part.must_accept) {
            return part.conclude(Err(why), now);
        }
        part.ready_after = now.saturating_duration_since(part.begun);
        let ready = format!("ready in {}", short(part.ready_after));
        let Some(probe) = part.probe.clone() else { return part.conclude(Ok(ready), now) };
        let Some(mut worker) = part.worker.take() else { return };
        let message = std::mem::take(&mut part.message);
        // From now on the probe's own time counts.
        part.deadline = None;
        let asked = self.probe_stranger(id, &mut worker, probe, &message);
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
        let hint = part.hint.take().map_or(String::new(), |hint| format!(" (it {hint})"));
        part.outcome.get_or_insert(Err(format!("{how} {when}{hint}")));
        part.deadline = None;
        if let Some(worker) = part.worker.take() {
            // The channel may have been removed at its end.
            let _ = self.poller.remove(&worker.link);
            let _ = self.poller.remove(&worker.process);
        }
        self.end_probes_of(id);
        self.end_check();
    }

    /// Workers whose time is over.
    pub(super) fn tend_check(&mut self) {
        self.look_after_checked();
        self.look_after_checked_piped();
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
