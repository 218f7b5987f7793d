//! How a master begins: from its configuration, or from what a killed one has left.

use std::sync::Arc;

use super::control::Control;
use super::inherit::Inheritance;
use super::journal::{CAUSE, Entry, Level, MessageId};
use super::prepare::Editions;
use super::state::kept::{self, Found, Kept};
use super::state::{self, Luggage, Packing, State};
use super::{Daemon, Options, Token, Wish};
use crate::config::{Config, MasterSettings};
use crate::supervisor::{How, Supervisor};

/// Tries to go on with what a killed master has left; after so many it may be the reason.
const ATTEMPTS_MAX: u32 = 3;

/// What a killed master has left.
#[derive(Default)]
pub(super) struct Left {
    pub(super) kept: Option<Kept>,
    pub(super) state: Option<Box<State>>,
    /// Why there is no state, if one was expected.
    pub(super) why_not: Option<String>,
    /// It was carried over by an earlier image of this process.
    pub(super) luggage: Option<Luggage>,
    /// systemd keeps the memfd already.
    is_stored: bool,
}

impl Left {
    /// From an earlier image of this process.
    pub(super) fn carried((state, luggage): (State, Luggage)) -> Left {
        Left { state: Some(Box::new(state)), luggage: Some(luggage), ..Left::default() }
    }

    /// Looks where the state is kept, and makes the place if there is none.
    pub(super) fn find(
        inheritance: &mut Inheritance,
        control: Option<&std::path::Path>,
        has_manager: bool,
    ) -> Left {
        let mut given_back = inheritance.take_stored(kept::NAME);
        let is_stored = given_back.len() == 1;
        let found = match (has_manager, given_back.pop(), control) {
            (true, Some((_, memfd)), _) => Ok(Kept::given_back(memfd)),
            (true, None, _) => Kept::in_memory().map(|kept| Found { kept, state: None }),
            (false, _, Some(control)) => Kept::beside(control),
            (false, _, None) => return Left::default(),
        };
        match found {
            Err(error) => Left {
                why_not: Some(format!("the state cannot be kept: {error}")),
                ..Left::default()
            },
            Ok(Found { kept, state }) => {
                let read = state.map(|bytes| usable(&bytes)).transpose();
                let (state, why_not) = match read {
                    Ok(state) => (state.flatten().map(Box::new), None),
                    Err(why) => (None, Some(why)),
                };
                Left { kept: Some(kept), state, why_not, is_stored, luggage: None }
            }
        }
    }
}

/// How the kept state stands.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// The mind's, when it was written last.
    pub(super) revision: Option<u64>,
    /// How often it was tried to go on with it, since a master last served with it.
    pub(super) attempts: u32,
}

/// The state in these bytes. `None`: nobody is to go on with it.
fn usable(bytes: &[u8]) -> Result<Option<State>, String> {
    let state = State::decode(bytes)?;
    if state.boot != state::boot() {
        // The machine was started anew: nothing of it is left.
        return Ok(None);
    }
    if state.attempts >= ATTEMPTS_MAX {
        return Err(format!("{ATTEMPTS_MAX} masters that went on with it have ended"));
    }
    // It was being stopped: that is over now.
    Ok(Some(state).filter(|state| !state.mind.is_stopping()))
}

impl Daemon {
    /// Takes over everything, and begins.
    pub(super) fn boot(&mut self) -> Result<(), String> {
        let limit = crate::sys::limits::raise_descriptor_limit();
        self.ledgers.set_limit(*limit.as_ref().unwrap_or(&0));
        if let Some(luggage) = self.left.luggage.take() {
            let state = self.left.state.take().unwrap_or_default();
            return self.arrive(*state, luggage);
        }
        match limit {
            Ok(limit) if limit < 1024 => self.say(
                Level::Warning,
                format!("only {limit} descriptors are allowed; raise LimitNOFILE="),
            ),
            Ok(_) => {}
            Err(error) => {
                self.say(Level::Warning, format!("the descriptor limit stays: {error}"));
            }
        }
        if std::env::var_os("INVOCATION_ID").is_none() {
            match crate::sys::process::become_subreaper() {
                Ok(()) => self.is_subreaper = true,
                Err(error) => {
                    self.say(Level::Warning, format!("orphans of workers are not seen: {error}"));
                }
            }
        }
        self.watch_own()?;
        self.open_door()?;
        self.follow_orphans();
        let Left { kept, state, why_not, is_stored, luggage: _ } = std::mem::take(&mut self.left);
        if let Some(kept) = kept.as_ref().filter(|kept| kept.is_systemds() && !is_stored) {
            self.notify.discard(kept::NAME, self.now);
            self.notify.store(kept::NAME, std::os::fd::AsFd::as_fd(kept), self.now);
        }
        self.kept = kept;
        let why_not = match (state, why_not) {
            (Some(state), _) => self.go_on_after(*state).err(),
            (None, why_not) => why_not,
        };
        if let Some(why) = why_not {
            let text = format!("what a killed master left cannot be used: {why}");
            let entry = Entry::new(Level::Warning, text).id(MessageId::StateUnused);
            self.journal.say(entry.with(CAUSE, why));
        } else if self.is_resumed {
            self.take_over_inherited();
            self.adopt_guests();
            return Ok(());
        }
        self.begin()?;
        self.adopt_guests();
        Ok(())
    }

    /// Begins with the configuration: makes the first wish.
    fn begin(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.is_resumed) {
            // It was the one of the state that could not be gone on with.
            for (_, absent) in std::mem::take(&mut self.absent) {
                // Closing it removes it as well; one that has just ended needs no signal.
                let _ = self.poller.remove(&absent.process);
                let _ = absent.process.signal_group(nix::sys::signal::Signal::SIGKILL);
            }
            self.config = self.source.load().map_err(|problems| problems.to_string())?;
            self.supervisor = mind(&self.config.master);
        }
        let config = Arc::new(self.config.clone());
        self.listeners.discard_unused(&config);
        let prepared = self.editions.prepare(&config, &[], &[], &mut self.listeners)?;
        let edition = prepared.edition;
        self.wish(
            Wish { client: None, caller: None, config, names: Vec::new(), edition },
            prepared,
        );
        Ok(())
    }

    /// Goes on where a killed master was.
    fn go_on_after(&mut self, state: State) -> Result<(), String> {
        self.is_resumed = true;
        let (now, taken) = (self.now, state.taken_at(self.now));
        let mut reopened = state::Descriptors::Reopened;
        let awaited = self.look_out(&state);
        let (pid, count) = (state.pid, awaited.len());
        self.fetch_listeners(&state.listeners);
        self.await_listeners(&state.listeners);
        let editions = Editions::resume(state.editions, &mut reopened)?;
        let mind = Supervisor::restore(state.mind, taken, How::Orphaned { now, awaited })?;
        self.listeners.resume(state.listeners, &mut reopened)?;
        self.listeners.discard_unclaimed();
        (self.supervisor, self.editions) = (mind, editions);
        for state::Wish { id, caller, config, names, edition, .. } in state.wishes {
            let config = Arc::new(config);
            let wish = Wish { client: None, caller, config, names, edition };
            self.wishes.insert(id, wish);
        }
        (self.last_wish, self.last_connection) = (state.last_wish, state.last_connection);
        (self.must_roll, self.warnings) = (state.must_roll, state.warnings);
        self.history = state.history;
        self.last_reload = state.last_reload.map(|last| last.resume(taken));
        self.keeping.attempts = state.attempts + 1;
        self.keep_state();
        let text = format!(
            "going on after the master {pid}, which was killed; workers that are still there: {count}"
        );
        self.say(Level::Warning, text);
        Ok(())
    }

    pub(super) fn watch_own(&mut self) -> Result<(), String> {
        let watch = || -> std::io::Result<()> {
            self.poller.add(self.signals.get_read(), Token::Signals.encode())?;
            self.poller.add(&self.journal, Token::Journal.encode())?;
            if let Some(control) = &self.control {
                self.poller.add(control.listener(), Token::Control.encode())?;
            }
            Ok(())
        };
        watch().map_err(|error| format!("epoll: {error}"))
    }

    /// Writes down how things are, for the case that this master is killed: at the end of a turn,
    /// if goal or roster may have changed.
    pub(super) fn keep_state(&mut self) {
        let revision = self.supervisor.revision();
        if self.kept.is_none() || self.keeping.revision == Some(revision) {
            return;
        }
        if self.keeping.attempts > 0
            && self.supervisor.is_settled()
            && self.keeping.revision.is_some()
        {
            self.keeping.attempts = 0;
        }
        self.keeping.revision = Some(revision);
        let state = self.gather(self.now, self.keeping.attempts, &mut Packing::Left).encode();
        let Some(kept) = &mut self.kept else { return };
        let written = state.and_then(|state| kept.write(&state).map_err(|it| it.to_string()));
        if let Err(why) = written {
            let text = format!("the state cannot be kept for the case of a crash: {why}");
            self.say_once(Entry::new(Level::Warning, text));
        }
    }

    /// A clean end: nobody is to go on with it.
    pub(super) fn discard_state(&mut self) {
        let Some(kept) = self.kept.take() else { return };
        if kept.is_systemds() {
            self.notify.discard(kept::NAME, self.now);
        }
        kept.discard();
    }
}

pub(super) fn mind(settings: &MasterSettings) -> Supervisor {
    let seed = u64::from(std::process::id()) ^ unique_number();
    let supervisor = Supervisor::new(settings.generations as usize, seed);
    match settings.idle_exit {
        Some(after) => supervisor.with_idle_exit(after),
        None => supervisor,
    }
}

/// Differs from one start to the next: the addresses of a fresh process and its clock.
fn unique_number() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// The control socket, where one is wanted.
///
/// # Errors
/// A sentence: it cannot be made.
pub(super) fn open_control(options: &Options, config: &Config) -> Result<Option<Control>, String> {
    options.control.as_ref().map(|path| Control::open(path, &config.master)).transpose()
}
