//! The dialects that are spoken over Node's IPC channel.

use serde::{Deserialize, Serialize};

use super::Parcel;
use super::cluster::Cluster;
use super::node_cluster::NodeCluster;
use super::plain::Plain;
use super::tally::Tally;
use crate::config::{Dialect, Kind, Manner};
use crate::kinds::inherit::Offer;
use crate::supervisor::ListenerId;

/// What a dialect knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Words {
    /// Node's cluster module.
    Cluster(Box<Cluster>),
    /// `process.on('message', (message, socket) => …)`.
    Plain(Box<Plain>),
    /// `require('node-cluster').Worker()`.
    NodeCluster(Box<NodeCluster>),
}

impl Words {
    pub(super) fn new(manner: &Manner, offer: &Offer) -> Words {
        match (manner.kind, manner.dialect) {
            (Kind::Ipc, Dialect::Plain) => Words::Plain(Box::new(Plain::new(offer))),
            (Kind::Ipc, Dialect::NodeCluster) => {
                Words::NodeCluster(Box::new(NodeCluster::new(offer)))
            }
            (Kind::Node | Kind::Native | Kind::Inherit, _) => {
                Words::Cluster(Box::new(Cluster::new(manner, offer)))
            }
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Words::Cluster(_) => Kind::Node,
            Words::Plain(_) | Words::NodeCluster(_) => Kind::Ipc,
        }
    }

    /// How a connection of this listener is handed over. `None`: the worker does not listen there.
    pub(crate) fn parcel(&mut self, number: u64, listener: ListenerId) -> Option<Parcel> {
        match self {
            Words::Cluster(cluster) => cluster.parcel(number, listener),
            Words::Plain(plain) => plain.parcel(listener),
            Words::NodeCluster(worker) => worker.parcel(listener),
        }
    }

    /// Whether it is heard or seen when a connection has ended. Where it is not, one counts as finished
    /// as soon as it was taken.
    pub(crate) fn tells_ends(&self) -> bool {
        match self {
            Words::Cluster(cluster) => cluster.tells_ends,
            Words::Plain(plain) => plain.tally.is_known(),
            Words::NodeCluster(worker) => worker.tally.is_known(),
        }
    }

    /// Whether it has shown that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Words::Cluster(cluster) => cluster.is_ready,
            Words::Plain(plain) => plain.is_ready,
            Words::NodeCluster(worker) => worker.is_ready,
        }
    }

    /// How many connections it has, where the master counts.
    pub(crate) fn tally(&self) -> Option<&Tally> {
        match self {
            Words::Cluster(_) => None,
            Words::Plain(plain) => Some(&plain.tally),
            Words::NodeCluster(worker) => Some(&worker.tally),
        }
    }

    pub(super) fn tally_mut(&mut self) -> Option<&mut Tally> {
        match self {
            Words::Cluster(_) => None,
            Words::Plain(plain) => Some(&mut plain.tally),
            Words::NodeCluster(worker) => Some(&mut worker.tally),
        }
    }
}
