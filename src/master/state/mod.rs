//! Everything that the next master must know, as plain data.
//!
//! It has two readers. The next image of this same process goes on right after an `execve`
//! ([`super::upgrade`]): for it every descriptor that matters is carried over, and stands in here by
//! its number. And the next process goes on after this one was killed ([`kept`]): it has no
//! descriptors of ours, opens again what can be opened, and waits for the workers.
//!
//! The form is JSON. Whoever reads it may be of another version: what he does not know he skips, and
//! what is missing has a default. [`FORMAT`] grows only when that does not do, and who meets a newer
//! one refuses it.
//!
//! ```text
//! mod        what there is           luggage   which descriptors are carried
//! kept       what outlives a crash   gather    how things are → State
//! carry      what is only carried    resume    State → how things are
//! ledgers    clients' sockets, beside  inherited workers that accept by themselves
//! piped      workers that speak by Node's IPC channel
//! ```

mod carry;
mod format;
mod gather;
mod inherited;
pub(crate) mod kept;
mod ledgers;
mod luggage;
mod moment;
mod piped;
mod resume;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) use inherited::Inherited;
pub(crate) use luggage::{Luggage, Number, Packing};
pub(crate) use moment::boot;
pub(crate) use piped::Piped;
pub(crate) use resume::Descriptors;
pub(crate) use text::Text;

use crate::config::{Config, Manner, Probe};
use crate::master::control::Peer;
use crate::master::history::{Caller, History};
use crate::supervisor::{
    ConnectionId, Edition, ListenerId, Micros, PoolId, Seat, Snapshot, Who, WishId,
};
use crate::sys::process::Identity;

/// In the environment of the next image: its process id and the number of the state, `4711:5`.
pub(crate) const STATE_VARIABLE: &str = "RCLUSTER_STATE";
/// In the environment of a rehearsal: the master's process id and the number of the state.
pub(crate) const REHEARSAL_VARIABLE: &str = "RCLUSTER_REHEARSAL";

/// The form that this version writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;

/// Everything.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    pub(crate) format: u32,
    /// The version of the program that wrote it.
    pub(crate) version: String,
    /// The master.
    pub(crate) pid: u32,
    /// The run of the machine that the clock and the process ids belong to.
    pub(crate) boot: String,
    /// When it was written, in µs of CLOCK_MONOTONIC. Other moments are relative to this one.
    pub(crate) taken: u64,
    /// How often it was tried to go on with it, since a master last served with it.
    pub(crate) attempts: u32,
    pub(crate) started: Micros,
    pub(crate) mind: Snapshot,
    pub(crate) config: Config,
    pub(crate) editions: Editions,
    pub(crate) listeners: Listeners,
    pub(crate) workers: Vec<Worker>,
    pub(crate) boards: Vec<Board>,
    pub(crate) wishes: Vec<Wish>,
    pub(crate) last_wish: u64,
    pub(crate) last_connection: u64,
    pub(crate) must_roll: bool,
    pub(crate) warnings: Vec<String>,
    pub(crate) history: History,
    pub(crate) last_reload: Option<Outcome>,
    /// What only the next image of the same process can be given.
    pub(crate) carried: Option<Carried>,
}

/// Pools by name, and what their generations run.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Editions {
    pub(crate) names: Vec<String>,
    pub(crate) pinned: Vec<(Edition, PoolId, Pinned)>,
    pub(crate) settled: BTreeMap<PoolId, Edition>,
    pub(crate) last: u64,
}

/// What one pool's workers of one generation are started from.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Pinned {
    pub(crate) program: Option<File>,
    pub(crate) interpreter: Option<(File, Option<Text>)>,
    /// Why there is no program.
    pub(crate) missing: Option<String>,
    pub(crate) arguments: Vec<Text>,
    pub(crate) scripts: Vec<File>,
    pub(crate) directory: Option<Directory>,
    pub(crate) environment: Vec<(Text, Text)>,
    pub(crate) identity: Option<Identity>,
    pub(crate) manner: Manner,
    pub(crate) crash_ledger: bool,
    pub(crate) probe: Option<Probe>,
}

/// A file that is held open, or a source, which is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct File {
    pub(crate) path: Text,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) modified: (i64, i64),
    pub(crate) number: Option<Number>,
}

/// A working directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Directory {
    pub(crate) path: Text,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) number: Option<Number>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Listeners {
    pub(crate) open: Vec<Listener>,
    pub(crate) last: u32,
    /// Inherited sockets that no pool uses.
    pub(crate) unclaimed: Vec<(Option<String>, Number)>,
    /// What systemd gave back and nobody has claimed.
    pub(crate) stored: Vec<(String, Number)>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Listener {
    pub(crate) id: ListenerId,
    /// The entry in the configuration.
    pub(crate) name: String,
    pub(crate) origin: Origin,
    pub(crate) attention: crate::supervisor::Attention,
    pub(crate) needs_source: bool,
    pub(crate) first_byte: bool,
    pub(crate) defers: bool,
    /// Whether it blocks, for all who have it. `None`: not known.
    pub(crate) blocks: Option<bool>,
    pub(crate) answer: Option<Vec<u8>>,
    /// What a Node server there says of itself: secrets, which are carried and never written down.
    pub(crate) data: Option<serde_json::Value>,
    /// By which it is found among the descriptors of a worker; 0: not known.
    pub(crate) inode: u64,
    pub(crate) number: Option<Number>,
}

/// Where a listener comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Origin {
    /// From systemd, under this name.
    Inherited(Option<String>),
    /// Ours: its file (path, device, inode), its name in systemd's store, and whether it is there.
    Bound { file: Option<(Text, u64, u64)>, name: Option<String>, is_stored: bool },
}

impl Default for Origin {
    fn default() -> Origin {
        Origin::Inherited(None)
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Worker {
    pub(crate) who: Who,
    pub(crate) seat: Seat,
    pub(crate) pid: u32,
    /// See [`crate::sys::process::Process::begun`].
    pub(crate) begun: u64,
    pub(crate) is_child: bool,
    /// By which it is known again after a crash. `None`: it cannot be adopted, and drains by itself
    /// when its master is gone.
    pub(crate) token: Option<String>,
    /// Device and inode of the scoreboard that it counts on.
    pub(crate) board: (u64, u64),
    /// It has not come to this master yet, and counts on that scoreboard.
    pub(crate) absent: Option<(u64, u64)>,
    /// That scoreboard, where it is not the pool's.
    pub(crate) own_board: Option<Number>,
    pub(crate) is_welcomed: bool,
    /// It has come and not answered yet.
    pub(crate) is_joining: bool,
    pub(crate) hands_back: bool,
    pub(crate) tells: bool,
    pub(crate) accepts: bool,
    /// Connections that it was sent, less those that were read back.
    pub(crate) sent: u64,
    /// What it is to keep when it is welcomed.
    pub(crate) log: Option<(String, Number)>,
    pub(crate) is_notorious: bool,
    pub(crate) is_expelled: bool,
    pub(crate) pidfd: Option<Number>,
    pub(crate) channel: Option<Number>,
    pub(crate) theirs: Option<Number>,
    pub(crate) inherited: Option<Inherited>,
    pub(crate) piped: Option<Piped>,
    /// Its channel was its life: it cannot outlive its master.
    pub(crate) ends_with_master: bool,
}

/// A pool's scoreboard.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Board {
    pub(crate) pool: PoolId,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) number: Option<Number>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Wish {
    pub(crate) id: WishId,
    /// The control client, and whether it wants to hear of progress.
    pub(crate) client: Option<(u64, bool)>,
    pub(crate) caller: Option<Caller>,
    pub(crate) config: Config,
    pub(crate) names: Vec<String>,
    pub(crate) edition: Edition,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Outcome {
    pub(crate) errno: u32,
    pub(crate) message: String,
    pub(crate) at: Micros,
}

/// What only the next image of the same process can be given.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Carried {
    /// Every descriptor that is carried.
    pub(crate) numbers: Vec<Number>,
    /// Who asked for the upgrade and awaits the answer.
    pub(crate) asked_by: Vec<u64>,
    pub(crate) held: Vec<Connection>,
    pub(crate) lingering: Vec<(Number, Micros)>,
    pub(crate) books: Vec<ledgers::KeptBook>,
    pub(crate) control: Option<Control>,
    pub(crate) door: Option<Door>,
    pub(crate) einhorn: Option<Number>,
    pub(crate) pipes: Vec<Pipe>,
    /// Names in systemd's store of pipes that are being read.
    pub(crate) stored_pipes: BTreeMap<u64, String>,
    pub(crate) notify: Notify,
    pub(crate) kept: Option<Kept>,
    pub(crate) was_told_to_stop: bool,
    pub(crate) is_subreaper: bool,
    pub(crate) has_terminal: bool,
    pub(crate) has_warned_of_output: bool,
}

/// A client's connection in the master's hand.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) listener: ListenerId,
    /// Idle since, requests, bytes of leftover. `None`: no worker has received it yet.
    pub(crate) past: Option<(u64, u64, u32)>,
    pub(crate) socket: Number,
    pub(crate) leftover: Option<Number>,
}

/// Where workers of a killed master come.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Door {
    pub(crate) socket: Number,
    pub(crate) path: String,
    /// Ours to remove: device and inode.
    pub(crate) file: Option<(u64, u64)>,
}

/// The control socket and its clients.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Control {
    pub(crate) path: Text,
    pub(crate) listener: Number,
    pub(crate) inode: u64,
    pub(crate) clients: Vec<ControlClient>,
    pub(crate) last: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ControlClient {
    pub(crate) id: u64,
    pub(crate) number: Number,
    pub(crate) peer: Peer,
    pub(crate) is_trusted: bool,
    pub(crate) received: Vec<u8>,
    pub(crate) unsent: Vec<u8>,
}

/// A worker's output that is being read.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Pipe {
    pub(crate) id: u64,
    pub(crate) number: Number,
    pub(crate) origin: super::journal::Origin,
    pub(crate) lines: super::journal::Lines,
}

/// What systemd was told last, and what it has not taken yet.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Notify {
    pub(crate) status: String,
    pub(crate) errno: u32,
    pub(crate) is_reloading: bool,
    pub(crate) unsent: Vec<(String, Option<Number>)>,
}

/// Where the state is kept for the case of a crash.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Kept {
    pub(crate) number: Number,
    /// `None`: systemd keeps it.
    pub(crate) path: Option<Text>,
    pub(crate) sequence: u64,
}
