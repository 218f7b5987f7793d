//! The words of Node's cluster module, by which an unmodified application becomes a worker.
//!
//! An application that calls `listen(8080)` under `NODE_UNIQUE_ID` does not bind the port: its runtime asks
//! the master for it (`queryServer`) and waits for the answer. So the application decides what it listens
//! on, and the pool what there is ([`Door`]); which of the doors is meant is decided here, and nothing is
//! opened that the pool's `listen` does not name. A server that was granted has a key, under which
//! connections are handed to it.
//!
//! ```text
//! worker   online · queryServer · listening · close · exitedAfterDisconnect · answers to newconn
//! master   answers to the questions · newconn, with a connection · disconnect
//! ```
//!
//! What a worker sends is parsed loosely: fields came and went from Node 4 to 26.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use nix::libc;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Parcel;
use super::asked::{Asked, Place};
use crate::config::Manner;
use crate::kinds::inherit::Offer;
use crate::supervisor::ListenerId;

/// Servers that one worker may have open.
const SERVERS_MAX: usize = 1024;
/// The number that the first listening socket has in a process that systemd started.
const FIRST_FD: i64 = 3;

/// What is known of such a worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Cluster {
    /// Messages that it was sent.
    sent: u64,
    doors: Vec<Door>,
    map: BTreeMap<String, String>,
    /// The worker accepts by itself: it is given listening sockets.
    pub(crate) accepts: bool,
    /// A file is to be loaded before the application.
    pub(crate) has_preload: bool,
    /// It was: it tells when connections end.
    pub(crate) tells_ends: bool,
    servers: BTreeMap<String, Server>,
    /// Servers that it ever had: what their keys are numbered by.
    granted: u64,
    /// The number of the last thing that it is handed before it is told to finish.
    pub(super) last: Option<u64>,
    /// Its runtime has started.
    pub(crate) is_online: bool,
    pub(crate) is_ready: bool,
}

/// A listener of the pool's.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Door {
    listener: ListenerId,
    /// Its entry of `listen`.
    entry: String,
    place: Place,
}

/// A server that the application has open.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Server {
    listeners: Vec<ListenerId>,
    is_listening: bool,
}

/// What is said to that.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// The server gets connections of these listeners.
    Server { key: String, listeners: Vec<ListenerId> },
    /// The server of that listener is open already.
    IsOpen,
    /// A UDP socket of its own.
    Datagrams { address: Option<String>, port: u16, is_v6: bool },
    /// There is no such listener: what was asked for.
    Nothing(Asked),
}

impl Cluster {
    pub(super) fn new(manner: &Manner, offer: &Offer) -> Cluster {
        let doors = offer.sockets.iter().map(|offered| Door {
            listener: offered.listener,
            entry: offered.entry.clone(),
            place: Place::from(&offered.local),
        });
        Cluster {
            doors: doors.collect(),
            map: manner.map.clone(),
            accepts: offer.are_shared,
            has_preload: offer.preload.is_some(),
            ..Cluster::default()
        }
    }

    /// What makes Node a cluster worker.
    pub(super) fn prepare(&self, command: &mut Command, id: u32) {
        command.env("NODE_UNIQUE_ID", id.to_string());
    }

    /// The number of the next message.
    fn next(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    /// How a connection is handed over.
    pub(super) fn parcel(&mut self, number: u64, listener: ListenerId) -> Option<Parcel> {
        let serves = |server: &Server| server.listeners.contains(&listener);
        let (key, _) = self.servers.iter().find(|(_, server)| serves(server))?;
        // What it answers carries the number.
        let message = json!({ "cmd": "NODE_CLUSTER", "act": "newconn", "key": key, "seq": number });
        Some(Parcel { kind: "net.Native", message, key: None })
    }

    /// What no server gets: it declines it, once it has begun to read from what it was handed before.
    pub(super) fn last_parcel(&mut self, number: u64) -> Value {
        self.last = Some(number);
        json!({ "cmd": "NODE_CLUSTER", "act": "newconn", "key": "rcluster:last", "seq": number })
    }

    /// The order to finish and end.
    pub(super) fn disconnect(&mut self) -> Value {
        json!({ "cmd": "NODE_CLUSTER", "act": "disconnect", "seq": self.next() })
    }

    /// An answer with nothing in it.
    pub(crate) fn acknowledge(&mut self, question: &Value) -> Value {
        json!({ "cmd": "NODE_CLUSTER", "ack": question, "seq": self.next() })
    }

    /// The answer to who may have a server.
    pub(crate) fn granting(
        &mut self,
        question: &Map<String, Value>,
        key: &str,
        data: &Value,
        name: Option<Value>,
    ) -> Value {
        let seq = self.next();
        let mut answer = json!({
            "cmd": "NODE_CLUSTER",
            "ack": question.get("seq"),
            "seq": seq,
            "errno": null,
            "key": key,
            "data": data,
        });
        if let (Some(name), Some(answer)) = (name, answer.as_object_mut()) {
            answer.insert("sockname".to_owned(), name);
        }
        answer
    }

    /// The answer to who may not: `errno` as of the system.
    pub(crate) fn refusing(&mut self, question: &Map<String, Value>, errno: i32) -> Value {
        let seq = self.next();
        json!({
            "cmd": "NODE_CLUSTER",
            "ack": question.get("seq"),
            "seq": seq,
            "errno": -errno,
            "key": "",
            "data": null,
        })
    }

    /// What a server is told of its address. One that asked for a port is told that it has that one, or
    /// it would take it for a failure.
    pub(crate) fn name_of(&self, listener: ListenerId, asked: &Asked) -> Option<Value> {
        let door = self.doors.iter().find(|door| door.listener == listener)?;
        let Place::Tcp(address) = &door.place else { return None };
        let port = match asked {
            Asked::Port(port) if *port != 0 => *port,
            Asked::Address(asked) if asked.port() != 0 => asked.port(),
            Asked::Port(_)
            | Asked::Address(_)
            | Asked::Descriptor(_)
            | Asked::Path(_)
            | Asked::Datagrams { .. } => address.port(),
        };
        let ip = match asked {
            Asked::Address(asked) => asked.ip(),
            Asked::Port(_) | Asked::Descriptor(_) | Asked::Path(_) | Asked::Datagrams { .. } => {
                address.ip()
            }
        };
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        Some(json!({ "address": ip.to_string(), "family": family, "port": port }))
    }

    /// Grants what the application listens on, if the pool has it.
    pub(crate) fn grant(&mut self, asked: Asked) -> Grant {
        if let Asked::Datagrams { address, port, is_v6 } = asked {
            return Grant::Datagrams { address, port, is_v6 };
        }
        let taken: BTreeSet<ListenerId> =
            self.servers.values().flat_map(|server| &server.listeners).copied().collect();
        let mut listeners = self.find(&asked, &taken);
        if listeners.is_empty() {
            return Grant::Nothing(asked);
        }
        if listeners.iter().any(|it| taken.contains(it)) || self.servers.len() >= SERVERS_MAX {
            return Grant::IsOpen;
        }
        if self.accepts {
            // One answer carries one descriptor.
            listeners.truncate(1);
        }
        self.granted += 1;
        let key = format!("rcluster:{}", self.granted);
        let server = Server { listeners: listeners.clone(), is_listening: false };
        self.servers.insert(key.clone(), server);
        Grant::Server { key, listeners }
    }

    /// Takes back what was granted.
    pub(crate) fn revoke(&mut self, key: &str) {
        self.servers.remove(key);
    }

    /// The doors that are meant. One entry may stand for several listeners.
    fn find(&self, asked: &Asked, taken: &BTreeSet<ListenerId>) -> Vec<ListenerId> {
        if let Some(entry) = self.mapped(asked) {
            return self.all(|door| door.entry == *entry);
        }
        match asked {
            Asked::Descriptor(number) => {
                let index = usize::try_from(number - FIRST_FD).ok();
                let door = index.and_then(|index| self.doors.get(index));
                door.map(|door| door.listener).into_iter().collect()
            }
            // Any port will do.
            Asked::Port(0) => self.first_free(taken),
            Asked::Address(address) if address.port() == 0 => self.first_free(taken),
            Asked::Port(port) => self.on_port(*port),
            Asked::Address(address) => {
                let exact = self.all(|door| door.place == Place::Tcp(*address));
                if exact.is_empty() { self.on_port(address.port()) } else { exact }
            }
            Asked::Path(path) => self.all(|door| door.place.is_at(path)),
            Asked::Datagrams { .. } => Vec::new(),
        }
    }

    fn mapped(&self, asked: &Asked) -> Option<&String> {
        match asked {
            Asked::Port(port) => self.map.get(&port.to_string()),
            Asked::Address(address) => {
                let by_port = || self.map.get(&address.port().to_string());
                self.map.get(&address.to_string()).or_else(by_port)
            }
            Asked::Path(path) => self.map.get(path),
            Asked::Descriptor(_) | Asked::Datagrams { .. } => None,
        }
    }

    fn all(&self, is_meant: impl Fn(&Door) -> bool) -> Vec<ListenerId> {
        self.doors.iter().filter(|door| is_meant(door)).map(|door| door.listener).collect()
    }

    fn on_port(&self, port: u16) -> Vec<ListenerId> {
        self.all(|door| matches!(&door.place, Place::Tcp(address) if address.port() == port))
    }

    /// TCP before others, in the order of `listen`; one that nobody has, if there is any.
    fn first_free(&self, taken: &BTreeSet<ListenerId>) -> Vec<ListenerId> {
        let tcp = self.all(|door| matches!(door.place, Place::Tcp(_)));
        let free = tcp.iter().find(|it| !taken.contains(it));
        free.or(tcp.first()).copied().into_iter().collect()
    }

    /// A server listens: those of its listeners that are open now. The worker names it by what it
    /// asked for, so it is the oldest that does not listen yet among those that could be meant.
    pub(crate) fn note_listening(&mut self, asked: &Asked) -> Vec<ListenerId> {
        let meant = self.find(asked, &self.listening());
        let is_it = |server: &&mut Server| {
            !server.is_listening && server.listeners.iter().any(|it| meant.contains(it))
        };
        let Some(server) = self.servers.values_mut().find(is_it) else { return Vec::new() };
        server.is_listening = true;
        server.listeners.clone()
    }

    /// A server is closed: those of its listeners that are open no more.
    pub(crate) fn note_closed(&mut self, key: &str) -> Vec<ListenerId> {
        self.servers.remove(key).map(|server| server.listeners).unwrap_or_default()
    }

    /// Listeners that are open.
    pub(crate) fn listening(&self) -> BTreeSet<ListenerId> {
        let listening = self.servers.values().filter(|server| server.is_listening);
        listening.flat_map(|server| &server.listeners).copied().collect()
    }

    /// Entries of `listen` that are not open.
    pub(crate) fn missing(&self) -> Vec<&str> {
        let open = self.listening();
        let closed = self.doors.iter().filter(|door| !open.contains(&door.listener));
        closed.map(|door| door.entry.as_str()).collect()
    }

    /// Those listeners.
    pub(crate) fn closed(&self) -> Vec<ListenerId> {
        let open = self.listening();
        self.doors.iter().map(|door| door.listener).filter(|it| !open.contains(it)).collect()
    }

    /// Whether the application has asked for anything that it got.
    pub(crate) fn has_servers(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Whether there is anything to listen on.
    pub(crate) fn has_doors(&self) -> bool {
        !self.doors.is_empty()
    }

    /// What was asked for in vain, and what would be right.
    pub(crate) fn remedy(&self, asked: &Asked) -> String {
        let entries: Vec<&str> = self.doors.iter().map(|door| door.entry.as_str()).collect();
        let first = entries.first().copied().unwrap_or_default();
        let key = match asked {
            Asked::Port(port) => port.to_string(),
            Asked::Address(_) | Asked::Path(_) | Asked::Descriptor(_) | Asked::Datagrams { .. } => {
                format!("\"{asked}\"")
            }
        };
        let remedy = match (asked, entries.as_slice()) {
            (Asked::Descriptor(_), _) => {
                "the first socket of `listen` is descriptor 3, the next one 4".to_owned()
            }
            (_, []) => format!("add it to the pool: listen = [{key}]"),
            (_, _) => format!(
                "write map = {{ {key} = \"{first}\" }}, or add it to the pool's listen = [\"{}\"]",
                entries.join("\", \"")
            ),
        };
        format!("asked for {asked}, which its pool does not listen on: {remedy}")
    }
}

/// `EACCES`: there is no such listener.
pub(crate) const REFUSED: i32 = libc::EACCES;
/// `EADDRINUSE`: this worker has it already.
pub(crate) const IN_USE: i32 = libc::EADDRINUSE;
