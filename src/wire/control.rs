//! What the command line asks of the master: the Varlink interface `io.rcluster`.
//!
//! Varlink (<https://varlink.org>) is one JSON object a message, ended by a NUL byte, over a Unix
//! stream socket. A call with `more` may be answered several times; every answer but the last has
//! `continues`. So `varlinkctl` is a client, too. An answer without results omits `parameters`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The interface's name.
pub const INTERFACE: &str = "io.rcluster";

/// The longest call that the master reads, bytes.
pub const CALL_MAX: usize = 64 * 1024;

/// The interface, as `varlinkctl introspect` shows it.
pub const DESCRIPTION: &str = include_str!("io.rcluster.varlink");

/// A call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The method with its interface: `io.rcluster.Reload`.
    pub method: String,
    /// Its parameters, an object.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub parameters: Value,
    /// The caller wants to hear of progress.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// The caller wants no answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Results, or what belongs to the error.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub parameters: Value,
    /// More answers follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// The error's name: `io.rcluster.Refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Parameters of `io.rcluster.Reload`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReloadParameters {
    /// The pools to reload; none: all.
    pub pools: Vec<String>,
    /// Answer only when the rollout is over. Default: true.
    #[serde(rename = "noWait", skip_serializing_if = "std::ops::Not::not")]
    pub no_wait: bool,
    /// Change nothing: start one worker of each pool without clients, see whether it gets ready, and
    /// end it. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub check: bool,
}

/// Results of `io.rcluster.Upgrade`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpgradeResults {
    /// A sentence: which version serves now, and which did.
    pub message: String,
}

/// Results of `io.rcluster.Reload`: progress while `continues`, then the outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadResults {
    /// A sentence: what has happened just now, or the outcome.
    pub message: String,
    /// The generation that rolls or has rolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Slots that serve what is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<u32>,
    /// All slots that roll.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
}

/// Parameters of `io.rcluster.Scale`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleParameters {
    /// The pool.
    pub pool: String,
    /// Workers, 1 to 1024.
    pub workers: u32,
}

/// What belongs to the error `io.rcluster.Refused` or `io.rcluster.Failed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One sentence: why, and what to do.
    pub reason: String,
}

/// Results of `io.rcluster.Status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    /// The master's version.
    pub version: String,
    /// The master's process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime: f64,
    /// `starting`, `running`, `reloading`, `rolling back`, `resuming` (after the master was killed) or
    /// `stopping`.
    pub state: String,
    /// One sentence for people.
    pub summary: String,
    /// The rollout under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Another reload waits for its turn.
    pub reload_waiting: bool,
    /// How the last reload ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_reload: Option<LastReload>,
    /// In the order in which they became known.
    pub pools: Vec<Pool>,
    /// Warnings that an administrator should see.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Results of `io.rcluster.Reloads`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadsResults {
    /// Newest first.
    pub reloads: Vec<PastReload>,
}

/// A reload of the past, or the one under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PastReload {
    /// When it was asked for: seconds since 1970.
    pub at: f64,
    /// Who asked for it: signals and clients. Several, where it contains several wishes.
    pub asked_by: Vec<String>,
    /// The pools that rolled.
    pub pools: Vec<String>,
    /// Its generation; none where it did not come to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// `under way`, `done`, `rolled back`, `refused`, `resized` or `stopped`.
    pub outcome: String,
    /// Why, in a sentence; empty where it went well.
    pub message: String,
    /// Seconds from the asking to the outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took: Option<f64>,
    /// Connections that the workers it retired gave back alive, for others.
    pub handed_back: u64,
    /// Connections that these had not received, and that others got.
    pub redispatched: u64,
    /// Connections in the hand of one of these at its end.
    pub cut: u64,
    /// How many of these accepted by themselves: what they had in hand at their end is not known.
    #[serde(skip_serializing_if = "is_none")]
    pub unseen: u64,
    /// How many of these are not gone, so that the numbers may grow.
    #[serde(skip_serializing_if = "is_zero")]
    pub leaving: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Parameters of `io.rcluster.Draining`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainingParameters {
    /// Only workers of this pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

/// Results of `io.rcluster.Draining`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainingResults {
    /// By pool and slot.
    pub workers: Vec<DrainingWorker>,
}

/// A worker that drains, and what it waits for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DrainingWorker {
    /// Its pool.
    pub pool: String,
    /// Its position, 1…N.
    pub slot: u32,
    /// Its generation.
    pub generation: u64,
    /// Its process id; 0 when there is no process.
    pub pid: u32,
    /// Seconds until it is sent SIGKILL, and what it has is cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_in: Option<f64>,
    /// Connections that it has, by its counters. `None`: that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_hand: Option<u64>,
    /// Connections that it has and that are not listed here.
    pub untold: u64,
    /// Why it does not tell, or not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence: Option<String>,
    /// Those that it has had longest, 1024 at most.
    pub connections: Vec<HeldConnection>,
}

/// A connection that a draining worker has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HeldConnection {
    /// The client's address; `unix` when it has no name, empty when it is not known.
    pub peer: String,
    /// The listener that accepted it.
    pub listener: String,
    /// Seconds for which this worker has had it.
    pub held_for: f64,
    /// `idle`, `in a request`, or `unknown`: the worker's library cannot tell.
    pub state: String,
    /// Requests so far, in all workers.
    pub requests: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_none(number: &u64) -> bool {
    *number == 0
}

/// A rollout under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rollout {
    /// Its generation.
    pub generation: u64,
    /// Slots that serve what is wanted.
    pub done: u32,
    /// All slots that roll.
    pub total: u32,
    /// Why it goes back, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub going_back: Option<String>,
}

/// How a reload ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LastReload {
    /// Whether every slot serves the new generation.
    pub ok: bool,
    /// The outcome in a sentence.
    pub message: String,
    /// Seconds ago.
    pub ago: f64,
}

/// A pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// `serving`, `starting`, `degraded` (fewer workers than wanted) or `gave up`.
    pub state: String,
    /// Where it listens, as written in the configuration.
    pub listen: Vec<String>,
    /// Workers that should serve.
    pub workers_wanted: u32,
    /// Workers that serve.
    pub workers_serving: u32,
    /// The generation that is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The last good generation, which respawns use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good_generation: Option<u64>,
    /// Why nothing more is started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gave_up: Option<String>,
    /// `workers`, where these accept by themselves; else `master`, or empty.
    pub accept: String,
    /// Where workers accept by themselves: they count their connections. Where they do not, nothing is
    /// known of these, and every count is 0.
    pub counted: bool,
    /// accepted = finished + in hand + held + refused + cut.
    pub accepted: u64,
    /// Closed by a worker.
    pub finished: u64,
    /// In the hand of a worker, or on the way to it.
    pub in_hand: u64,
    /// Wait in the master: they came back from a worker and wait for another, or have said nothing yet.
    pub held: u64,
    /// Of these, the ones whose clients have said nothing yet. Not part of the sum.
    #[serde(default)]
    pub silent: u64,
    /// Answered or closed by the master because nobody could take them.
    pub refused: u64,
    /// In the hand of a worker when it died, and not to be saved.
    pub cut: u64,
    /// Came back from a worker that died or stalled, and went to another. Not part of the sum.
    pub redispatched: u64,
    /// Of the refused: those whose worker died with their request, and who were answered 503.
    pub answered: u64,
    /// Given back alive by draining workers, for others. Not part of the sum.
    #[serde(default)]
    pub handed_back: u64,
    /// Its workers, by slot.
    pub workers: Vec<Worker>,
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Worker {
    /// Its position, 1…N.
    pub slot: u32,
    /// Its process id; 0 when there is no process yet.
    pub pid: u32,
    /// Its generation.
    pub generation: u64,
    /// `starting`, `serving`, `stalled`, `draining` or `ending`.
    pub state: String,
    /// Seconds since it became ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving_for: Option<f64>,
    /// Connections that it was handed.
    pub connections: u64,
    /// Connections that it has.
    pub in_hand: u64,
    /// Requests that it has begun, as far as its library can tell.
    pub requests: u64,
    /// What it says about itself (`STATUS=`).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub said: String,
}

impl Answer {
    /// The last answer, with results.
    ///
    /// # Panics
    /// Never: the results of this interface are plain data.
    #[must_use]
    pub fn results(results: &impl Serialize) -> Answer {
        let parameters = serde_json::to_value(results).unwrap_or(Value::Null);
        Answer { parameters, ..Answer::default() }
    }

    /// An error of this interface: `Refused` or `Failed`, with its reason.
    #[must_use]
    pub fn refusal(name: &str, reason: impl Into<String>) -> Answer {
        let refusal = Refusal { reason: reason.into() };
        Answer { error: Some(format!("{INTERFACE}.{name}")), ..Answer::results(&refusal) }
    }
}

/// A message with its ending NUL.
#[must_use]
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(message).unwrap_or_default();
    bytes.push(0);
    bytes
}
