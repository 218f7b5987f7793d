//! What a worker of Node's cluster module says, and what it is answered.
//!
//! Questions are answered here, on its channel; what the master has to know of the rest is a [`Said`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use serde_json::{Map, Value};

use super::asked::Asked;
use super::cluster::{Grant, IN_USE, REFUSED};
use super::{Link, Said, Supply};
use crate::supervisor::ListenerId;
use crate::sys::datagrams::bind_datagrams;

/// Below this number a port is for those who may have it: the master may, and does not lend that.
const FIRST_PORT: u16 = 1024;

/// A word of the cluster protocol.
pub(super) fn heed(link: &mut Link, message: &Map<String, Value>, supply: &Supply<'_>) -> Said {
    let text = |name: &str| message.get(name).and_then(Value::as_str);
    match text("act") {
        Some("online") => {
            if let Some(cluster) = link.cluster_mut() {
                cluster.is_online = true;
            }
            Said::Online
        }
        Some("queryServer") => answer(link, message, supply),
        Some("listening") => {
            let asked = Asked::of(message);
            let cluster = link.cluster_mut();
            Said::Opened(match (asked, cluster) {
                (Some(asked), Some(cluster)) => cluster.note_listening(&asked),
                (None, _) | (_, None) => Vec::new(),
            })
        }
        Some("close") => {
            let key = text("key").unwrap_or_default();
            let cluster = link.cluster_mut();
            Said::Closed(cluster.map(|cluster| cluster.note_closed(key)).unwrap_or_default())
        }
        // The second is what it was called before Node 6.
        Some("exitedAfterDisconnect" | "suicide") => {
            let question = message.get("seq").cloned().unwrap_or_default();
            let answer = link.cluster_mut().map(|cluster| cluster.acknowledge(&question));
            answer.into_iter().for_each(|answer| link.post(&answer));
            Said::Leaving
        }
        // What later versions say.
        Some(_) => Said::Nothing,
        None => hear_answer(message),
    }
}

/// The answer to a connection that it was handed.
fn hear_answer(message: &Map<String, Value>) -> Said {
    let number = message.get("ack").and_then(Value::as_u64);
    let accepted = message.get("accepted").and_then(Value::as_bool);
    match (number, accepted) {
        (Some(number), Some(true)) => Said::Taken(number),
        (Some(number), Some(false)) => Said::Declined(number),
        (Some(_) | None, _) => Said::Nothing,
    }
}

/// The application wants to listen.
fn answer(link: &mut Link, question: &Map<String, Value>, supply: &Supply<'_>) -> Said {
    let asked = Asked::of(question);
    let Some(cluster) = link.cluster_mut() else { return Said::Nothing };
    let Some(asked) = asked else {
        let refusal = cluster.refusing(question, REFUSED);
        link.post(&refusal);
        return Said::Wrong("asked for something to listen on that is not understood".to_owned());
    };
    match cluster.grant(asked.clone()) {
        Grant::Server { key, listeners } => {
            give_server(link, question, &asked, (&key, &listeners), supply)
        }
        Grant::IsOpen => {
            let refusal = cluster.refusing(question, IN_USE);
            link.post(&refusal);
            Said::Nothing
        }
        Grant::Datagrams { address, port, is_v6 } => {
            give_datagrams(link, question, address.as_deref(), port, is_v6)
        }
        Grant::Nothing(asked) => {
            let why = cluster.remedy(&asked);
            let refusal = cluster.refusing(question, REFUSED);
            link.post(&refusal);
            Said::Refused(why)
        }
    }
}

fn give_server(
    link: &mut Link,
    question: &Map<String, Value>,
    asked: &Asked,
    (key, listeners): (&str, &[ListenerId]),
    supply: &Supply<'_>,
) -> Said {
    let Some(&first) = listeners.first() else { return Said::Nothing };
    let stand_in = link.stand_ins.get(&first).map(OwnedFd::try_clone);
    let Some(cluster) = link.cluster_mut() else { return Said::Nothing };
    let own = question.get("data").cloned().unwrap_or_default();
    let (data, news) = match (supply.data)(first) {
        Some(known) => (known, None),
        None if own.is_null() => (own, None),
        None => (own.clone(), Some((first, own))),
    };
    if cluster.accepts {
        let socket = stand_in.unwrap_or_else(|| (supply.socket)(first));
        let answer = cluster.granting(question, key, &data, None);
        match socket {
            Ok(socket) => link.post_handle(&answer, socket),
            Err(error) => {
                cluster.revoke(key);
                let refusal = cluster.refusing(question, error.raw_os_error().unwrap_or(REFUSED));
                link.post(&refusal);
                return Said::Refused(format!("cannot be given its listening socket: {error}"));
            }
        }
    } else {
        let name = cluster.name_of(first, asked);
        let answer = cluster.granting(question, key, &data, name);
        link.post(&answer);
    }
    match news {
        Some((listener, data)) => Said::Data(listener, data),
        None => Said::Nothing,
    }
}

/// A UDP socket of its own: where workers share a port, the kernel spreads what comes over them.
fn give_datagrams(
    link: &mut Link,
    question: &Map<String, Value>,
    address: Option<&str>,
    port: u16,
    is_v6: bool,
) -> Said {
    let any = if is_v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    let ip = address.and_then(|it| it.parse().ok()).unwrap_or(any);
    let place = SocketAddr::new(ip, port);
    let bound = match port {
        1..FIRST_PORT => Err(io::ErrorKind::PermissionDenied.into()),
        0 | FIRST_PORT.. => bind_datagrams(place),
    };
    let Some(cluster) = link.cluster_mut() else { return Said::Nothing };
    match bound {
        Ok(socket) => {
            let key = format!("rcluster:udp:{}", question.get("seq").unwrap_or(&Value::Null));
            let answer = cluster.granting(question, &key, &Value::Null, None);
            link.post_handle(&answer, socket);
            Said::Nothing
        }
        Err(error) => {
            let refusal = cluster.refusing(question, error.raw_os_error().unwrap_or(REFUSED));
            link.post(&refusal);
            let remedy = match port {
                1..FIRST_PORT => format!(
                    "rcluster binds no UDP port below {FIRST_PORT} for an application; let it bind \
                     with exclusive: true"
                ),
                0 | FIRST_PORT.. => error.to_string(),
            };
            Said::Refused(format!("asked for UDP {place}, and was refused: {remedy}"))
        }
    }
}
