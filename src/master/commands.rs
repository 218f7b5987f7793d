//! What is commanded: by signals, and by clients of the control socket.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::control::Peer;
use super::journal::{Entry, Level, MessageId};
use super::{Daemon, Token};
use crate::config::MOST_WORKERS;
use crate::supervisor::{Event, Scale};
use crate::wire::control::{Answer, Call, DESCRIPTION, INTERFACE, ScaleParameters};

/// How long control clients wait when the system has no descriptor for one.
const CONTROL_REST: Duration = Duration::from_secs(1);

impl Daemon {
    pub(super) fn observe_control(&mut self) {
        let awaits = |id| {
            let mut clients = self.wishes.values().filter_map(|wish| wish.client);
            let upgrade = self.upgrade.as_ref();
            clients.any(|(client, _)| client == id)
                || self.check.is_for(id)
                || self.round.is_awaited_by(id)
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
        self.abandon_check(id);
        self.round.forget(id);
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
            (Some("Reloads"), _) => Some(Answer::results(&self.wire_reloads())),
            (Some("Draining"), _) => self.obey_draining(id, call),
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

    /// Who a client is: `uid 0, pid 4711 (rcluster)`.
    pub(super) fn name_client(&self, id: u64) -> String {
        let peer = self.control.as_ref().and_then(|control| control.peer(id));
        let Some(Peer { user, process }) = peer else { return "a client".to_owned() };
        let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        let name = name.trim_end().replace(char::is_control, " ");
        match name.is_empty() {
            true => format!("uid {user}, pid {process}"),
            false => format!("uid {user}, pid {process} ({name})"),
        }
    }

    fn stop_by_client(&mut self) {
        if !std::mem::replace(&mut self.was_told_to_stop, true) {
            let text = "a client of the control socket wants a stop: draining";
            self.journal.say(Entry::new(Level::Notice, text).id(MessageId::StopAsked));
        }
        self.report(Event::StopRequested);
    }

    pub(super) fn scale_all(&mut self, scale: Scale) {
        for (pool, size) in self.supervisor.sizes() {
            if scale != Scale::More || size < MOST_WORKERS {
                self.report(Event::ScaleRequested { pool, scale });
            }
        }
    }
}

pub(super) fn parameters<T: DeserializeOwned>(call: &Call) -> Result<T, Answer> {
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
