//! The words of an application that takes connections by `process.on('message', (message, socket) => …)`.
//!
//! ```text
//! worker   "ready" · NODE_SOCKET_COUNT · NODE_SOCKET_ALL_CLOSED
//! master   a connection, with {"type":"connection","listener":NAME,"port":N} · NODE_SOCKET_GET_COUNT ·
//!          NODE_SOCKET_NOTIFY_CLOSE · the end of the channel
//! ```
//!
//! The application has to do with the message alone; the other words are Node's own. `"ready"` is what PM2
//! waits for. It says nothing when it takes a connection, so what Node acknowledges counts as taken. Once its
//! channel is closed it sees `'disconnect'`, finishes what it has, and ends because nothing is left to do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::tally::{Question, Tally};
use super::{Parcel, Said};
use crate::kinds::inherit::{Offer, Offered};
use crate::supervisor::ListenerId;
use crate::sys::listen::Local;

/// The name under which Node counts the connections.
const KEY: &str = "rcluster";

/// What is known of such a worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Plain {
    /// What comes with the connections of each listener.
    messages: BTreeMap<ListenerId, Value>,
    pub(crate) tally: Tally,
    pub(crate) is_ready: bool,
}

impl Plain {
    pub(super) fn new(offer: &Offer) -> Plain {
        let message = |offered: &Offered| {
            let name = &offered.entry;
            let message = match port_of(offered) {
                Some(port) => json!({ "type": "connection", "listener": name, "port": port }),
                None => json!({ "type": "connection", "listener": name }),
            };
            (offered.listener, message)
        };
        Plain { messages: offer.sockets.iter().map(message).collect(), ..Plain::default() }
    }

    /// How a connection is handed over.
    pub(super) fn parcel(&self, listener: ListenerId) -> Option<Parcel> {
        let message = self.messages.get(&listener)?.clone();
        Some(Parcel { kind: "net.Socket", message, key: Some(KEY.to_owned()) })
    }

    /// A word of Node's own.
    pub(super) fn heed(&mut self, word: &str, message: &Map<String, Value>) -> Said {
        if message.get("key").and_then(Value::as_str) != Some(KEY) {
            return Said::Nothing;
        }
        match (word, message.get("count").and_then(Value::as_u64)) {
            ("NODE_SOCKET_COUNT", Some(open)) => Said::Ended(self.tally.note_count(open)),
            ("NODE_SOCKET_ALL_CLOSED", _) => Said::Ended(self.tally.note_none()),
            (_, _) => Said::Nothing,
        }
    }

    /// A word of the application's.
    pub(super) fn hear(&mut self, message: &Value) -> Said {
        if message.as_str() != Some("ready") {
            return Said::Unheard;
        }
        match std::mem::replace(&mut self.is_ready, true) {
            true => Said::Nothing,
            false => Said::Ready,
        }
    }
}

/// A question as it is sent.
pub(super) fn question(question: Question) -> Value {
    let word = match question {
        Question::Count => "NODE_SOCKET_GET_COUNT",
        Question::Closed => "NODE_SOCKET_NOTIFY_CLOSE",
    };
    json!({ "cmd": word, "key": KEY })
}

/// The port of a listener, if it has one.
pub(super) fn port_of(offered: &Offered) -> Option<u16> {
    match &offered.local {
        Local::Tcp(address) => Some(address.port()),
        Local::Unix(_) | Local::Abstract(_) | Local::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::listen::listen_tcp;

    fn plain() -> (Plain, u16) {
        let socket = listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let local = crate::sys::listen::local(std::os::fd::AsFd::as_fd(&socket));
        let (listener, entry, name) = (ListenerId(1), "web".to_owned(), "web".to_owned());
        let offered = Offered { listener, entry, name, local, socket };
        let port = port_of(&offered).unwrap();
        let offer = Offer { sockets: vec![offered], ..Offer::default() };
        (Plain::new(&offer), port)
    }

    #[test]
    fn the_application_is_told_where_a_connection_came_from() {
        let (plain, port) = plain();
        let parcel = plain.parcel(ListenerId(1)).unwrap();
        let message = json!({ "type": "connection", "listener": "web", "port": port });
        assert_eq!((parcel.kind, parcel.message), ("net.Socket", message));
        assert!(plain.parcel(ListenerId(2)).is_none(), "it is not of its pool");
    }

    #[test]
    fn it_is_ready_once() {
        let (mut plain, _) = plain();
        assert_eq!(plain.hear(&json!({ "ready": true })), Said::Unheard);
        assert_eq!(plain.hear(&json!("ready")), Said::Ready);
        assert_eq!(plain.hear(&json!("ready")), Said::Nothing);
    }

    #[test]
    fn what_node_counts_for_others_is_passed_over() {
        let (mut plain, _) = plain();
        let mut heed = |word: &str, message: Value| plain.heed(word, message.as_object().unwrap());
        let count = |key: &str| json!({ "key": key, "count": 0 });
        assert_eq!(heed("NODE_SOCKET_COUNT", count("other")), Said::Nothing);
        assert_eq!(heed("NODE_SOCKET_COUNT", count(KEY)), Said::Ended(0));
        assert_eq!(heed("NODE_SOCKET_COUNT", json!({ "key": KEY, "count": -1 })), Said::Nothing);
        assert_eq!(heed("NODE_SOCKET_ALL_CLOSED", json!({ "key": KEY })), Said::Ended(0));
        assert_eq!(heed("NODE_SOMETHING", json!({ "key": KEY })), Said::Nothing);
    }
}
