//! The words of `require('node-cluster').Worker()`, as version 0.1.18 of that library says them.
//!
//! ```text
//! worker   {"type":20,"data":{"status":10,…}}, now and every two seconds · {"type":2,"data":{…}}
//! master   a connection, with {"type":11,"port":N} · SIGTERM, once it has no connection any more
//! ```
//!
//! The library wants the raw handle, and hands its application a socket and the port. Its `status` is 0 before
//! it is ready, 10 while it serves, 20 once it was told to stop. The wish to be reloaded (type 2) is granted to
//! the worker that has it: it is replaced, and none of its clients notices.
//!
//! Closing the channel would end it at the next of its messages. SIGTERM ends it at once where its application
//! does not count requests (`transact`, `release`), as most do not: so it is sent when no connection is left.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::plain::port_of;
use super::tally::Tally;
use super::{Parcel, Said};
use crate::kinds::inherit::Offer;
use crate::supervisor::ListenerId;

/// Types of messages.
const REQUEST: u64 = 11;
const HEARTBEAT: u64 = 20;
const RELOAD: u64 = 2;
/// States of a worker.
const RUNNING: u64 = 10;
const STOPPING: u64 = 20;

/// What is known of such a worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NodeCluster {
    /// What the application is told of each listener: its port, or its entry of `listen`.
    ports: BTreeMap<ListenerId, Value>,
    pub(crate) tally: Tally,
    pub(crate) is_ready: bool,
    is_stopping: bool,
    /// It was sent SIGTERM.
    pub(crate) is_told: bool,
}

impl NodeCluster {
    pub(super) fn new(offer: &Offer) -> NodeCluster {
        let ports = offer.sockets.iter().map(|offered| {
            let port = port_of(offered).map_or_else(|| offered.entry.clone().into(), Value::from);
            (offered.listener, port)
        });
        NodeCluster { ports: ports.collect(), tally: Tally::looking(), ..NodeCluster::default() }
    }

    /// How a connection is handed over.
    pub(super) fn parcel(&self, listener: ListenerId) -> Option<Parcel> {
        let message = json!({ "type": REQUEST, "port": self.ports.get(&listener)? });
        Some(Parcel { kind: "net.Native", message, key: None })
    }

    /// A word of the library's, or of its application's.
    pub(super) fn hear(&mut self, message: &Value) -> Said {
        let number = |value: Option<&Value>| value.and_then(Value::as_u64);
        let status = number(message.get("data").and_then(|data| data.get("status")));
        match (number(message.get("type")), status) {
            (Some(HEARTBEAT), Some(RUNNING)) if !self.is_ready => {
                self.is_ready = true;
                Said::Ready
            }
            (Some(HEARTBEAT), Some(STOPPING)) if !self.is_stopping => {
                self.is_stopping = true;
                Said::Leaving
            }
            (Some(HEARTBEAT), _) => Said::Nothing,
            (Some(RELOAD), _) => Said::Retiring,
            (_, _) => Said::Unheard,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_news_once() {
        let mut worker = NodeCluster::default();
        let state = |status: u64| json!({ "type": 20, "data": { "status": status, "scores": 7 } });
        assert_eq!(worker.hear(&state(0)), Said::Nothing);
        assert_eq!(worker.hear(&state(10)), Said::Ready);
        assert_eq!(worker.hear(&state(10)), Said::Nothing);
        assert_eq!(worker.hear(&state(20)), Said::Leaving);
        assert_eq!(worker.hear(&state(20)), Said::Nothing);
    }

    #[test]
    fn a_wish_for_a_reload_is_its_own_and_the_rest_is_the_applications() {
        let mut worker = NodeCluster::default();
        assert_eq!(worker.hear(&json!({ "type": 2, "data": { "name": "x" } })), Said::Retiring);
        for other in [json!(null), json!("20"), json!({ "type": "20" }), json!({ "type": 11 })] {
            assert_eq!(worker.hear(&other), Said::Unheard, "{other}");
        }
        assert_eq!(worker.hear(&json!({ "type": 20 })), Said::Nothing);
    }
}
