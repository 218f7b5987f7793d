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
//! journal, record      what is said              report            how things are
//! announce, notify     what systemd is told      outbox            the way to systemd
//! output               where workers' output goes    handback     live connections on their way
//! boot, state          how it begins, goes on   absent      who has not come back yet
//! door, adoption       where workers of a killed master come, and go on with this one
//! upgrade, image       how its next image goes on    ledger, fate    what a worker's death costs
//! ```

mod absent;
mod accounts;
mod adoption;
mod announce;
mod api;
mod boards;
mod boot;
mod breakdown;
mod check;
mod commands;
mod control;
mod diagnose;
mod door;
mod fate;
mod handback;
mod history;
mod image;
mod inherit;
mod journal;
mod ledger;
mod linger;
mod listeners;
mod notify;
mod observe;
mod outbox;
mod output;
mod perform;
mod pin;
mod prepare;
mod probe;
mod record;
mod reload;
mod report;
mod signals;
mod source;
mod state;
mod stored;
mod token;
mod upgrade;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

pub use api::Master;
pub use image::is_continuation;
pub use source::Source;

use crate::config::{Config, Problems};
use crate::kinds::native::{Client, Worker};
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
use inherit::Inheritance;
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
    /// Orders are being carried out.
    is_performing: bool,
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

impl Daemon {
    fn new(
        options: Options,
        config: Config,
        signals: Signals,
        listeners: Listeners,
        left: Left,
    ) -> Result<Daemon, String> {
        let control = options.control.as_ref().map(|it| Control::open(it, &config.master));
        #[expect(clippy::disallowed_methods, reason = "the first reading of the one clock")]
        let now = Instant::now();
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
            control: control.transpose()?,
            control_rests_until: None,
            editions: Editions::default(),
            wishes: BTreeMap::new(),
            replies: Vec::new(),
            last_wish: 0,
            history: History::default(),
            probes: Probes::default(),
            check: Check::default(),
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
            is_performing: false,
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
            let deadline = self.deadline();
            if let Err(error) = self.poller.wait(self.now, deadline, &mut ready) {
                return Err(format!("epoll: {error}"));
            }
            #[expect(clippy::disallowed_methods, reason = "the one clock, read once per turn")]
            let now = Instant::now();
            self.now = now;
            for token in ready.drain(..) {
                self.observe(Token::decode(token));
            }
            self.supervisor.handle_timeout(now, &self.boards);
            self.tend();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        [
            self.supervisor.poll_timeout(),
            self.lingering.deadline(),
            self.ledgers.deadline(),
            self.pulse.deadline(),
            self.control_rests_until,
            self.notify.deadline(),
            self.guest_deadline(),
            self.upgrade.as_ref().and_then(Upgrade::deadline),
            self.probes.deadline(),
            self.check.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What is due by the clock and no business of the mind.
    fn tend(&mut self) {
        for id in self.lingering.overdue(self.now) {
            self.close_lingering(id);
        }
        self.look_at_ledgers();
        self.end_overdue_probes();
        self.tend_check();
        self.resume_control();
        self.tend_guests();
        self.limit_rehearsal();
        self.continue_upgrade();
        self.notify.retry(self.now);
    }
}
