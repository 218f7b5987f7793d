//! The master: owns every descriptor, decides nothing.
//!
//! One thread: readiness becomes facts (`observe`), the mind turns facts into orders, orders become
//! system calls (`perform`); a failed order is again a fact. The clock is read once per turn. What is
//! said is written by two more threads, which never hold this one up (`journal`).
//!
//! ```text
//! observe, perform     the two halves            commands          what is commanded
//! inherit, listeners   sockets, by name          token, signals    what a readable descriptor is
//! stored               sockets kept by systemd   breakdown         what a broken promise leads to
//! reload, prepare      a configuration → a wish  control           who may command
//! probe, check         does a worker work?       history           the last reloads
//! pin, accounts        what a generation runs    boards            scoreboards for the mind
//! linger, diagnose     whom nobody takes, what hangs
//! holding              what a drain waits for       silent   who has said nothing yet
//! journal, record, toll   what is said           report            how things are
//! announce, notify     what systemd is told      outbox            the way to systemd
//! output               where workers' output goes    handback            what workers give back
//! passing              from one worker to the next, whenever a master dies
//! link                 how each kind is spoken to    native       those that use the worker library
//! admission            those of these that accept by themselves
//! inherited, einhorn   those that accept by themselves      takeover      and outlive a master
//! piped, cluster, ipc  those that speak by Node's channel   due           what is due by the clock
//! boot, state          how it begins, goes on   absent      who has not come back yet
//! door, adoption       where workers of a killed master come, and go on with this one
//! upgrade, image       how its next image goes on    ledger, fate    what a worker's death costs
//! ```

mod absent;
mod accounts;
mod admission;
mod adoption;
mod announce;
mod api;
mod boards;
mod boot;
mod breakdown;
mod check;
mod cluster;
mod commands;
mod control;
mod diagnose;
mod door;
mod due;
mod einhorn;
mod fate;
mod handback;
mod history;
mod holding;
mod image;
mod inherit;
mod inherited;
mod ipc;
mod journal;
mod ledger;
mod linger;
mod link;
mod listeners;
mod native;
mod notify;
mod observe;
mod outbox;
mod output;
mod passing;
mod perform;
mod pin;
mod piped;
mod prepare;
mod probe;
mod record;
mod reload;
mod report;
mod signals;
mod silent;
mod source;
mod state;
mod stored;
mod takeover;
mod token;
mod toll;
mod upgrade;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

pub use api::Master;
pub use image::is_continuation;
pub use source::Source;

use crate::config::{Config, Problems};
use crate::kinds::Worker;
use crate::kinds::native::Client;
use crate::supervisor::{ConnectionId, ListenerId, Progress, Supervisor, WishId, WorkerId};
use crate::sys::poller::Poller;
use crate::wire::control::Answer;
use absent::Absent;
use adoption::Adoption;
use announce::{Outcome, Pulse};
use boards::Boards;
use boot::{Keeping, Left};
use check::Check;
use control::Control;
use history::History;
use holding::Round;
use inherit::Inheritance;
use inherited::Inherited;
use journal::Journal;
use ledger::Ledgers;
use linger::Lingering;
use listeners::Listeners;
use notify::Notify;
use output::Outputs;
use prepare::Editions;
use probe::Probes;
use reload::Wish;
use signals::Signals;
use state::kept::Kept;
use token::Token;
use upgrade::Upgrade;

/// Why a master ended.
#[derive(Debug)]
pub enum Error {
    /// Its configuration is not valid.
    Configuration(Problems),
    /// It could not start, or could not go on: a sentence.
    Failed(String),
    /// It broke a promise of its own: a sentence, which it has said itself.
    Broken(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Configuration(problems) => problems.fmt(f),
            Error::Failed(sentence) | Error::Broken(sentence) => f.write_str(sentence),
        }
    }
}

impl std::error::Error for Error {}

impl From<String> for Error {
    fn from(sentence: String) -> Error {
        Error::Failed(sentence)
    }
}

/// Hears that a pool gave up: its name, and why.
pub type OnGiveUp = Box<dyn FnMut(&str, &str)>;

/// What a master is started with.
pub struct Options {
    /// The configuration.
    pub source: Source,
    /// The control socket; `None`: without one.
    pub control: Option<PathBuf>,
    /// Called when a pool gives up.
    pub on_give_up: Option<OnGiveUp>,
    /// Said once, when every pool is ready.
    pub greeting: Option<Box<dyn FnOnce()>>,
}

/// What the loop knows of its turns.
#[derive(Debug, Default)]
struct Turn {
    /// Orders are being carried out.
    is_performing: bool,
    /// Something else than a dispatch has happened in this one.
    is_stirred: bool,
    /// Workers whose channels are left alone for now; see `handback`.
    resting: BTreeSet<WorkerId>,
}

/// How the master ends.
type Ending = Result<(), String>;

pub(crate) struct Daemon {
    supervisor: Supervisor,
    boards: Boards,
    poller: Poller,
    signals: Signals,
    listeners: Listeners,
    workers: BTreeMap<WorkerId, Worker>,
    /// Those of a killed master that have not come yet.
    absent: BTreeMap<WorkerId, Absent>,
    adoption: Adoption,
    held: BTreeMap<ConnectionId, (ListenerId, Client)>,
    last_connection: u64,
    lingering: Lingering,
    ledgers: Ledgers,
    inherited: Inherited,
    control: Option<Control>,
    /// Control clients are not looked at until then.
    control_rests_until: Option<Instant>,
    editions: Editions,
    wishes: BTreeMap<WishId, Wish>,
    /// Outcomes for control clients, until they are written down.
    replies: Vec<(u64, Answer)>,
    last_wish: u64,
    history: History,
    probes: Probes,
    check: Check,
    round: Round,
    source: Source,
    /// What the settled pools were configured with.
    config: Config,
    /// Something went back or gave up since: what runs may not be what is configured.
    must_roll: bool,
    journal: Journal,
    outputs: Outputs,
    notify: Notify,
    pulse: Pulse,
    /// Something happened that people may want to see.
    is_news: bool,
    warnings: Vec<String>,
    last_reload: Option<Outcome>,
    /// What those who wait for a reload were told last.
    last_progress: Option<Progress>,
    on_give_up: Option<OnGiveUp>,
    greeting: Option<Box<dyn FnOnce()>>,
    is_subreaper: bool,
    /// A terminal controlled this process when it started: SIGHUP means that it was closed. The
    /// kernel takes it away before it sends that, so it is asked for at the start.
    has_terminal: bool,
    was_told_to_stop: bool,
    /// What a killed master has left, until it is gone on with.
    left: Left,
    /// It was gone on with.
    is_resumed: bool,
    /// Where the state is kept for the case of a crash, and which one.
    kept: Option<Kept>,
    keeping: Keeping,
    /// The program that goes on where this image ends.
    own_path: PathBuf,
    upgrade: Option<Upgrade>,
    turn: Turn,
    started: Instant,
    now: Instant,
    ended: Option<Ending>,
}

/// Runs a master until it is told to stop.
///
/// Call it from the main thread before any other thread runs: it takes the inherited sockets out of
/// the environment.
///
/// # Errors
/// It could not start, or no pool can be served any more.
pub fn run(mut options: Options) -> Result<(), Error> {
    if let Some(outcome) = image::rehearse() {
        image::report_rehearsal(outcome);
    }
    // The handlers stand before anything else: until then SIGUSR1 would end the process.
    let signals = signals::catch().map_err(|error| format!("signals cannot be caught: {error}"))?;
    let mut inheritance = Inheritance::take()?;
    let mut notify = Notify::from_env()?;
    let may_be_kept = notify.has_manager();
    let left = match image::continued() {
        Some(Ok(carried)) => {
            // It is carried over, too.
            options.control = None;
            Left::carried(carried)
        }
        Some(Err(error)) => {
            notify.fail(&error);
            return Err(Error::Failed(error));
        }
        None => Left::find(&mut inheritance, options.control.as_deref(), may_be_kept),
    };
    let config = match &left.state {
        // A crash must not depend on a deploy.
        Some(state) => Ok(state.config.clone()),
        None => options.source.load().map_err(Error::Configuration),
    };
    let daemon = config.and_then(|config| {
        let listeners = Listeners::new(inheritance, may_be_kept);
        Ok(Daemon::new(options, config, signals, listeners, left)?)
    });
    match daemon {
        Ok(daemon) => Daemon { notify, ..daemon }.run(),
        Err(error) => {
            notify.fail(&error.to_string());
            Err(error)
        }
    }
}

/// The one that comes first, of those that there are.
fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

impl Daemon {
    fn new(
        options: Options,
        config: Config,
        signals: Signals,
        listeners: Listeners,
        left: Left,
    ) -> Result<Daemon, String> {
        let now = outbox::clock();
        Ok(Daemon {
            supervisor: boot::mind(&config.master),
            boards: Boards::default(),
            poller: Poller::new().map_err(|error| format!("epoll: {error}"))?,
            signals,
            listeners,
            workers: BTreeMap::new(),
            absent: BTreeMap::new(),
            adoption: Adoption::default(),
            held: BTreeMap::new(),
            last_connection: 0,
            lingering: Lingering::default(),
            ledgers: Ledgers::default(),
            inherited: Inherited::default(),
            control: boot::open_control(&options, &config)?,
            control_rests_until: None,
            editions: Editions::default(),
            wishes: BTreeMap::new(),
            replies: Vec::new(),
            last_wish: 0,
            history: History::default(),
            probes: Probes::default(),
            check: Check::default(),
            round: Round::default(),
            source: options.source,
            outputs: Outputs::new(config.master.log),
            config,
            must_roll: false,
            journal: Journal::start().map_err(|error| format!("the log thread: {error}"))?,
            notify: Notify::default(),
            pulse: Pulse::default(),
            is_news: true,
            warnings: Vec::new(),
            last_reload: None,
            last_progress: None,
            on_give_up: options.on_give_up,
            greeting: options.greeting,
            is_subreaper: false,
            has_terminal: std::fs::File::open("/dev/tty").is_ok(),
            was_told_to_stop: false,
            left,
            is_resumed: false,
            kept: None,
            keeping: Keeping::default(),
            own_path: image::own_path(),
            upgrade: None,
            turn: Turn::default(),
            started: now,
            now,
            ended: None,
        })
    }

    /// The loop.
    fn serve(&mut self) -> Ending {
        let mut ready = Vec::new();
        loop {
            self.perform_all();
            self.resume_channels();
            self.keep_listeners();
            self.keep_state();
            self.send_replies();
            // Who was answered last may need a moment to close.
            let fails = matches!(self.ended, Some(Err(_)));
            if fails || self.ended.is_some() && self.lingering.wind_up(self.now) {
                if let Some(ending) = self.ended.take() {
                    return ending;
                }
            }
            self.publish();
            if let Err(error) = self.watch(&mut ready) {
                return Err(format!("epoll: {error}"));
            }
            self.supervisor.handle_timeout(self.now, &self.boards);
            self.tend();
        }
    }

    /// Waits for what happens and takes it in. While nothing does but clients coming and going on to
    /// workers, there is nothing to tend or to tell: then this goes on.
    fn watch(&mut self, ready: &mut Vec<u64>) -> std::io::Result<()> {
        let tended = self.deadline();
        self.turn.is_stirred = false;
        while !self.turn.is_stirred {
            let deadline = earliest(tended, self.dispatch_deadline());
            self.poller.wait(self.now, deadline, ready)?;
            #[expect(clippy::disallowed_methods, reason = "the one clock, read once per turn")]
            let now = Instant::now();
            self.now = now;
            self.turn.is_stirred = deadline.is_some_and(|at| at <= now);
            for token in ready.drain(..) {
                self.observe(Token::decode(token));
            }
        }
        Ok(())
    }
}
