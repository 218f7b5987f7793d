//! A reload: from the asking to the answer.
//!
//! What is configured now is looked at first, as a whole: that it is valid, that its users, groups,
//! directories and programs are there, that its addresses can be had. Only then does a wish go to the
//! mind; what is refused before has changed nothing. The answer comes with the outcome of the rollout
//! that contained the wish.

use std::sync::Arc;

use super::Daemon;
use super::commands::parameters;
use super::history::Caller;
use super::journal::{CAUSE, Entry, Level, MessageId};
use super::prepare::Prepared;
use super::toll::toll_in_words;
use crate::config::Config;
use crate::supervisor::{Edition, Event, Generation, PoolId, Progress, Toll, WishId};
use crate::wire::control::{Answer, Call, ReloadParameters, ReloadResults};

/// A wish whose outcome somebody awaits.
pub(super) struct Wish {
    /// The control client, and whether it wants to hear of progress.
    pub(super) client: Option<(u64, bool)>,
    /// Who asked for it; nobody for the boot.
    pub(super) caller: Option<Caller>,
    pub(super) config: Arc<Config>,
    pub(super) names: Vec<String>,
    pub(super) edition: Edition,
}

impl Daemon {
    pub(super) fn obey_reload(&mut self, id: u64, call: &Call) -> Option<Answer> {
        let parameters: ReloadParameters = match parameters(call) {
            Ok(parameters) => parameters,
            Err(refusal) => return Some(refusal),
        };
        if parameters.check {
            return self.obey_check(id, call, &parameters.pools);
        }
        let caller = Caller::new(self.name_client(id));
        let client = (!parameters.no_wait && !call.oneway).then_some((id, call.more));
        match self.reload(&parameters.pools, client, caller) {
            Err(why) => Some(Answer::refusal("Refused", why)),
            Ok(Some(message)) => {
                Some(Answer::results(&ReloadResults { message, ..ReloadResults::default() }))
            }
            Ok(None) if parameters.no_wait => {
                let message = "the reload has begun".to_owned();
                Some(Answer::results(&ReloadResults { message, ..ReloadResults::default() }))
            }
            Ok(None) => None,
        }
    }

    pub(super) fn reload_by_signal(&mut self, signal: &str) {
        self.say(Level::Notice, format!("{signal}: reloading"));
        // Why it cannot be done is said already.
        if let Ok(Some(message)) = self.reload(&[], None, Caller::new(signal)) {
            self.say(Level::Notice, message);
        }
    }

    /// Makes a wish for what is configured now. A sentence when it is fulfilled at once; an error,
    /// with nothing changed, when it cannot be made.
    fn reload(
        &mut self,
        names: &[String],
        client: Option<(u64, bool)>,
        caller: Caller,
    ) -> Result<Option<String>, String> {
        let result = self.try_reload(names, client, &caller);
        if let Ok(Some(message)) = &result {
            self.history.note(&caller, "resized", message);
        }
        result.inspect_err(|why| {
            let entry = Entry::new(Level::Error, format!("not reloaded: {why}"));
            self.journal.say(entry.id(MessageId::ReloadRefused).with(CAUSE, why));
            self.history.note(&caller, "refused", why);
            self.note_refusal(why.clone());
        })
    }

    fn try_reload(
        &mut self,
        names: &[String],
        client: Option<(u64, bool)>,
        caller: &Caller,
    ) -> Result<Option<String>, String> {
        let config = self.load_anew()?;
        let status = self.supervisor.status(self.now, &self.boards);
        let is_settled = status.progress.is_none() && !status.is_reload_waiting;
        let is_same = is_settled
            && !self.must_roll
            && self.config.differs_only_in_workers(&config)
            && config.pools.iter().all(|pool| self.editions.is_as_settled(pool));
        if names.is_empty() && is_same {
            return Ok(Some(self.resize(config)));
        }
        let active: Vec<PoolId> = self.supervisor.sizes().into_keys().collect();
        let prepared = self.editions.prepare(&config, names, &active, &mut self.listeners)?;
        if let Some(why) = self.editions.missing(prepared.edition) {
            self.withdraw(&prepared);
            return Err(why);
        }
        if config.master != self.config.master {
            let text = "what changed in [master] holds from the next start on";
            self.journal.say(Entry::new(Level::Warning, text).id(MessageId::Warning));
        }
        let (config, names) = (Arc::new(config), names.to_vec());
        let caller = Some(caller.clone());
        let wish = Wish { client, caller, config, names, edition: prepared.edition };
        self.wish(wish, prepared);
        Ok(None)
    }

    /// What is configured now.
    ///
    /// # Errors
    /// A sentence; all mistakes are in the log.
    pub(super) fn load_anew(&mut self) -> Result<Config, String> {
        self.source.load().map_err(|problems| {
            for problem in &problems.0 {
                self.say(Level::Error, problem);
            }
            let more = match problems.0.len() {
                0 | 1 => String::new(),
                count => format!(" (and {} more mistakes)", count - 1),
            };
            let first = problems.0.first().map(ToString::to_string).unwrap_or_default();
            format!("the configuration is not valid: {first}{more}")
        })
    }

    /// What was prepared is not wished for.
    fn withdraw(&mut self, prepared: &Prepared) {
        self.editions.forget(prepared.edition);
        for &listener in &prepared.opened {
            self.listeners.close(listener);
        }
    }

    /// Hands a wish to the mind.
    pub(super) fn wish(&mut self, wish: Wish, prepared: Prepared) {
        self.warnings = prepared.warnings;
        self.warnings.extend(self.ledger_shortage(&wish.config));
        for warning in &self.warnings {
            self.journal.say(Entry::new(Level::Warning, warning).id(MessageId::Warning));
        }
        self.last_wish += 1;
        let id = WishId(self.last_wish);
        self.wishes.insert(id, wish);
        let Prepared { edition, pools, .. } = prepared;
        self.report(Event::ReloadRequested { wish: id, edition, pools });
    }

    /// Only sizes have changed: nobody is replaced for that.
    fn resize(&mut self, config: Config) -> String {
        let mut changes = Vec::new();
        for pool in &config.pools {
            let before = self.config.pool(&pool.name).map(|old| old.policy.workers);
            let workers = pool.policy.workers;
            if let (Some(id), Some(before)) = (self.editions.id(&pool.name), before) {
                if before != workers {
                    self.report(Event::Resized { pool: id, workers });
                    let size = self.supervisor.sizes().get(&id).copied().unwrap_or(workers);
                    let kept = if size == workers {
                        String::new()
                    } else {
                        format!(" (but `rcluster scale` holds it at {size})")
                    };
                    changes.push(format!("{} from {before} to {workers}{kept}", pool.name));
                }
            }
        }
        self.config = config;
        let message = format!(
            "resized {}; nothing else has changed, so no worker was replaced: reload once more to \
             replace them",
            changes.join(", ")
        );
        self.note_outcome(true, message.clone());
        message
    }

    /// A fulfilled wish's configuration is the one that later ones are compared with.
    pub(super) fn adopt(&mut self, wish: &Wish) {
        self.must_roll = false;
        self.editions.settle(wish.edition);
        let is_named = |name: &String| wish.names.is_empty() || wish.names.contains(name);
        for pool in wish.config.pools.iter().filter(|pool| is_named(&pool.name)) {
            self.listeners.configure_all(pool);
        }
        self.release_silent();
        if wish.names.is_empty() {
            self.config = (*wish.config).clone();
            return;
        }
        for name in &wish.names {
            self.config.pools.retain(|pool| pool.name != *name);
            self.config.pools.extend(wish.config.pool(name).cloned());
        }
    }

    /// Tells those who wait for a reload what has just happened.
    pub(super) fn tell_progress(&mut self, message: &str) {
        let waiting: Vec<u64> = self
            .wishes
            .values()
            .filter_map(|wish| wish.client.filter(|&(_, more)| more).map(|(client, _)| client))
            .collect();
        if waiting.is_empty() {
            return;
        }
        // With the last slot the rollout is over before its line is written.
        let progress = self.supervisor.progress().or_else(|| {
            let last = self.last_progress.take()?;
            Some(Progress { done: last.total, ..last })
        });
        let results = ReloadResults {
            message: message.to_owned(),
            generation: progress.as_ref().map(|progress| progress.generation.0),
            done: progress.as_ref().map(|progress| progress.done),
            total: progress.as_ref().map(|progress| progress.total),
        };
        self.last_progress = progress;
        let answer = Answer { continues: true, ..Answer::results(&results) };
        for client in waiting {
            self.answer(client, &answer);
        }
    }

    pub(super) fn reply(&mut self, id: WishId, outcome: Result<Generation, String>) {
        let Some(wish) = self.wishes.remove(&id) else { return };
        let answer = match outcome {
            Ok(generation) => {
                self.adopt(&wish);
                let toll = self.supervisor.toll(generation);
                let toll = toll.map(|(toll, _)| toll).filter(|toll| *toll != Toll::default());
                let cost = toll.map(|toll| format!("; so far {}", toll_in_words(toll)));
                let results = ReloadResults {
                    message: format!(
                        "reloaded: generation {} serves{}",
                        generation.0,
                        cost.unwrap_or_default()
                    ),
                    generation: Some(generation.0),
                    ..ReloadResults::default()
                };
                Answer::results(&results)
            }
            // A rollout that the end of the service interrupts is not rolled back.
            Err(why) if self.was_told_to_stop => {
                self.history.stop();
                Answer::refusal("Stopping", why)
            }
            Err(why) => Answer::refusal("Failed", format!("rolled back: {why}")),
        };
        if let Some((client, _)) = wish.client {
            self.replies.push((client, answer));
        }
    }
}
