//! What is commanded: by signals, and by clients of the control socket.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::journal::{CAUSE, Entry, Level, MessageId};
use super::prepare::Prepared;
use super::{Daemon, Token, Wish};
use crate::config::{Config, MOST_WORKERS};
use crate::supervisor::{Event, PoolId, Progress, Scale, WishId};
use crate::wire::control::{
    Answer, Call, DESCRIPTION, INTERFACE, ReloadParameters, ReloadResults, ScaleParameters,
};

/// How long control clients wait when the system has no descriptor for one.
const CONTROL_REST: Duration = Duration::from_secs(1);

impl Daemon {
    pub(super) fn observe_control(&mut self) {
        let awaits = |id| {
            let mut clients = self.wishes.values().filter_map(|wish| wish.client);
            let upgrade = self.upgrade.as_ref();
            clients.any(|(client, _)| client == id)
                || upgrade.is_some_and(|upgrade| upgrade.is_awaited_by(id))
        };
        if let Some(id) = self.control.as_ref().and_then(|control| control.surplus(awaits)) {
            self.forget_client(id);
        }
        let accepted = self.control.as_mut().map(super::control::Control::accept);
        let result = match accepted {
            Some(Ok(Some(id))) => self.watch_client(id),
            Some(Ok(None)) | None => Ok(()),
            Some(Err(error)) => Err(error),
        };
        if let Err(error) = result {
            let text = format!("control clients must wait for the moment: {error}");
            self.say_once(Entry::new(Level::Warning, text));
            self.rest_control();
        }
    }

    /// Without a descriptor for a control client, looking again at once would only spin.
    fn rest_control(&mut self) {
        let Some(control) = &self.control else { return };
        if self.poller.remove(control.listener()).is_ok() {
            self.control_rests_until = Some(self.now + CONTROL_REST);
        }
    }

    /// Looks for control clients again, after a rest.
    pub(super) fn resume_control(&mut self) {
        if self.control_rests_until.is_none_or(|until| until > self.now) {
            return;
        }
        let Some(control) = &self.control else { return };
        self.control_rests_until =
            match self.poller.add(control.listener(), Token::Control.encode()) {
                Ok(()) => None,
                Err(_) => Some(self.now + CONTROL_REST),
            };
    }

    fn watch_client(&mut self, id: u64) -> std::io::Result<()> {
        match self.control.as_ref().and_then(|control| control.socket(id)) {
            Some(socket) => self.poller.add(socket, Token::Client(id).encode()),
            None => Ok(()),
        }
    }

    pub(super) fn observe_client(&mut self, id: u64) {
        let Some(control) = &mut self.control else { return };
        let heard = control.hear(id);
        for call in heard.calls {
            match call {
                Ok(call) => self.obey(id, &call),
                Err(why) => self.answer(id, &Answer::refusal("Refused", why)),
            }
        }
        if heard.is_gone {
            self.forget_client(id);
        }
    }

    /// A client that did not read its answers reads again.
    pub(super) fn observe_unsent(&mut self, id: u64) {
        let Some(control) = &mut self.control else { return };
        let is_there = control.flush(id);
        let is_done = !control.has_unsent(id);
        if is_there && is_done {
            // Back to listening.
            let result = control.socket(id).map(|socket| {
                self.poller.remove(socket)?;
                self.poller.add(socket, Token::Client(id).encode())
            });
            if matches!(result, Some(Err(_))) {
                self.forget_client(id);
            }
        } else if !is_there {
            self.forget_client(id);
        }
    }

    pub(super) fn answer(&mut self, id: u64, answer: &Answer) {
        let Some(control) = &mut self.control else { return };
        if control.socket(id).is_none() {
            return;
        }
        let had_unsent = control.has_unsent(id);
        let is_there = control.answer(id, answer);
        let result = match control.socket(id) {
            Some(socket) if is_there && control.has_unsent(id) && !had_unsent => self
                .poller
                .remove(socket)
                .and_then(|()| self.poller.add_writable(socket, Token::Unsent(id).encode())),
            Some(_) if is_there => Ok(()),
            _ => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        if result.is_err() {
            self.forget_client(id);
        }
    }

    fn forget_client(&mut self, id: u64) {
        let Some(control) = &mut self.control else { return };
        if let Some(socket) = control.socket(id) {
            // Closing it removes it as well.
            let _ = self.poller.remove(socket);
        }
        control.close(id);
        // A vanished client is normal; what he wished for goes on.
        for wish in self.wishes.values_mut() {
            wish.client = wish.client.filter(|&(client, _)| client != id);
        }
    }

    fn obey(&mut self, id: u64, call: &Call) {
        let may_command = self.control.as_ref().is_some_and(|control| control.is_trusted(id));
        let method = call.method.strip_prefix(INTERFACE).and_then(|rest| rest.strip_prefix('.'));
        let answer = match (method, call.method.as_str()) {
            (Some("Status"), _) => Some(Answer::results(&self.wire_status())),
            (Some("Reload" | "Scale" | "Stop" | "Upgrade"), _) if !may_command => {
                let why = "only root and the user that the service runs as may command it";
                Some(Answer::refusal("Refused", why))
            }
            (Some("Reload"), _) => self.obey_reload(id, call),
            (Some("Scale"), _) => Some(self.obey_scale(call)),
            (Some("Stop"), _) => {
                if !call.oneway {
                    self.answer(id, &Answer::default());
                }
                return self.stop_by_client();
            }
            (Some("Upgrade"), _) => {
                return self.ask_upgrade(Some(id).filter(|_| !call.oneway));
            }
            (_, "org.varlink.service.GetInfo") => Some(info()),
            (_, "org.varlink.service.GetInterfaceDescription") => Some(describe(call)),
            (_, method) => Some(Answer {
                error: Some("org.varlink.service.MethodNotFound".into()),
                parameters: json!({ "method": method }),
                continues: false,
            }),
        };
        if let Some(answer) = answer.filter(|_| !call.oneway) {
            self.answer(id, &answer);
        }
    }

    fn obey_reload(&mut self, id: u64, call: &Call) -> Option<Answer> {
        let parameters: ReloadParameters = match parameters(call) {
            Ok(parameters) => parameters,
            Err(refusal) => return Some(refusal),
        };
        let client = (!parameters.no_wait && !call.oneway).then_some((id, call.more));
        match self.reload(&parameters.pools, client) {
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

    fn obey_scale(&mut self, call: &Call) -> Answer {
        let ScaleParameters { pool, workers } = match parameters(call) {
            Ok(parameters) => parameters,
            Err(refusal) => return refusal,
        };
        let sizes = self.supervisor.sizes();
        let Some(id) = self.editions.id(&pool).filter(|id| sizes.contains_key(id)) else {
            let known: Vec<&str> = sizes.keys().map(|&id| self.editions.name(id)).collect();
            let why = format!("there is no pool {pool}; there are: {}", known.join(", "));
            return Answer::refusal("Refused", why);
        };
        if !(1..=MOST_WORKERS).contains(&workers) {
            let why = format!("a pool has 1 to {MOST_WORKERS} workers, not {workers}");
            return Answer::refusal("Refused", why);
        }
        self.report(Event::ScaleRequested { pool: id, scale: Scale::To(workers) });
        Answer::default()
    }

    fn stop_by_client(&mut self) {
        if !std::mem::replace(&mut self.was_told_to_stop, true) {
            let text = "a client of the control socket wants a stop: draining";
            self.journal.say(Entry::new(Level::Notice, text).id(MessageId::StopAsked));
        }
        self.report(Event::StopRequested);
    }

    pub(super) fn reload_by_signal(&mut self, signal: &str) {
        self.say(Level::Notice, format!("{signal}: reloading"));
        // Why it cannot be done is said already.
        if let Ok(Some(message)) = self.reload(&[], None) {
            self.say(Level::Notice, message);
        }
    }

    pub(super) fn scale_all(&mut self, scale: Scale) {
        for (pool, size) in self.supervisor.sizes() {
            if scale != Scale::More || size < MOST_WORKERS {
                self.report(Event::ScaleRequested { pool, scale });
            }
        }
    }

    /// Makes a wish for what is configured now. A sentence when it is fulfilled at once; an error,
    /// with nothing changed, when it cannot be made.
    fn reload(
        &mut self,
        names: &[String],
        client: Option<(u64, bool)>,
    ) -> Result<Option<String>, String> {
        self.try_reload(names, client).inspect_err(|why| {
            let entry = Entry::new(Level::Error, format!("not reloaded: {why}"));
            self.journal.say(entry.id(MessageId::ReloadRefused).with(CAUSE, why));
            self.note_refusal(why.clone());
        })
    }

    fn try_reload(
        &mut self,
        names: &[String],
        client: Option<(u64, bool)>,
    ) -> Result<Option<String>, String> {
        let config = self.source.load().map_err(|problems| {
            for problem in &problems.0 {
                self.say(Level::Error, problem);
            }
            let more = match problems.0.len() {
                0 | 1 => String::new(),
                count => format!(" (and {} more mistakes)", count - 1),
            };
            let first = problems.0.first().map(ToString::to_string).unwrap_or_default();
            format!("the configuration is not valid: {first}{more}")
        })?;
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
        if config.master != self.config.master {
            let text = "what changed in [master] holds from the next start on";
            self.journal.say(Entry::new(Level::Warning, text).id(MessageId::Warning));
        }
        let (config, names) = (Arc::new(config), names.to_vec());
        let wish = Wish { client, config, names, edition: prepared.edition };
        self.wish(wish, prepared);
        Ok(None)
    }

    /// Hands a wish to the mind.
    pub(super) fn wish(&mut self, wish: Wish, prepared: Prepared) {
        for warning in &prepared.warnings {
            self.journal.say(Entry::new(Level::Warning, warning).id(MessageId::Warning));
        }
        self.warnings = prepared.warnings;
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
}

fn parameters<T: DeserializeOwned>(call: &Call) -> Result<T, Answer> {
    let given = if call.parameters.is_null() { json!({}) } else { call.parameters.clone() };
    serde_json::from_value(given)
        .map_err(|error| Answer::refusal("Refused", format!("{}: {error}", call.method)))
}

fn info() -> Answer {
    Answer::results(&json!({
        "vendor": "rcluster",
        "product": "rcluster",
        "version": env!("CARGO_PKG_VERSION"),
        "url": "",
        "interfaces": ["org.varlink.service", INTERFACE],
    }))
}

fn describe(call: &Call) -> Answer {
    match call.parameters.get("interface").and_then(Value::as_str) {
        Some(INTERFACE) => Answer::results(&json!({ "description": DESCRIPTION })),
        other => Answer {
            error: Some("org.varlink.service.InterfaceNotFound".into()),
            parameters: json!({ "interface": other }),
            continues: false,
        },
    }
}
