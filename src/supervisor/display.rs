//! Orders and records in one short line each: what transcripts are made of, and debug logs.

use std::fmt;

use super::Toll;
use super::action::{Action, Announcement, Attention, Reason, Record, Spawn, Who};

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Spawn(spawn) => write!(f, "spawn {spawn}"),
            Action::Drain { worker, deadline, take_back, handback } => {
                let how = if *take_back { ", take back what it has not received" } else { "" };
                let more = if *handback { ", and its live connections" } else { "" };
                write!(f, "drain {worker} within {deadline:?}{how}{more}")
            }
            Action::Probe { worker, listener, .. } => {
                write!(f, "probe {worker} as from {listener}")
            }
            Action::Admit { worker } => write!(f, "let {worker} accept"),
            Action::Ping { worker } => write!(f, "ping {worker}"),
            Action::TakeBack { worker } => write!(f, "take back from {worker}, and ping it"),
            Action::Terminate { worker } => write!(f, "terminate {worker}"),
            Action::Kill { worker } => write!(f, "kill {worker}"),
            Action::Dispatch { worker, connection } => {
                write!(f, "dispatch {connection} to {worker}")
            }
            Action::Refuse { listener, connection } => {
                write!(f, "refuse {connection} of {listener}")
            }
            Action::Attend { listener, attention } => write!(f, "{attention} {listener}"),
            Action::Close { listener } => write!(f, "close {listener}"),
            Action::Sweep => f.write_str("sweep"),
            Action::Forget { edition } => write!(f, "forget {edition}"),
            Action::Reply { wish, outcome: Ok(generation) } => {
                write!(f, "reply {wish}: done, {generation}")
            }
            Action::Reply { wish, outcome: Err(why) } => write!(f, "reply {wish}: failed, {why}"),
            Action::Announce(announcement) => write!(f, "announce {announcement}"),
            Action::Record(record) => write!(f, "record: {record}"),
            Action::Exit { failure: None } => f.write_str("exit"),
            Action::Exit { failure: Some(why) } => write!(f, "exit with failure: {why}"),
        }
    }
}

impl fmt::Display for Spawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}, {}", self.who, self.seat, self.edition)?;
        if self.request_limit > 0 {
            write!(f, ", for {} requests", self.request_limit)?;
        }
        if self.last_resort { f.write_str(", last resort") } else { Ok(()) }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} {} {})", self.worker, self.pool, self.slot, self.generation)
    }
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Attention::Pause => "pause",
            Attention::Accept => "accept",
            Attention::Answer => "answer",
        })
    }
}

impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Announcement::Ready => "READY",
            Announcement::Reloading => "RELOADING",
            Announcement::Stopping => "STOPPING",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Replaced => "replaced",
            Reason::Surplus => "surplus",
            Reason::Stop => "stop",
            Reason::Own => "by itself",
        })
    }
}

/// Clients who were told, if there are any.
struct Told(u64);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 0 { write!(f, ", {} told", self.0) } else { Ok(()) }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Record::Ready(who) => write!(f, "{who} ready"),
            Record::Joined(who) => write!(f, "{who} joined"),
            Record::Missing(who) => write!(f, "{who} missing"),
            Record::OnTrial { who, time } => write!(f, "{who} on trial for {time:?}"),
            Record::StartFailed { who, why, retry: Some(wait) } => {
                write!(f, "{who} {why}; again in {:.1} s", wait.as_secs_f64())
            }
            Record::StartFailed { who, why, retry: None } => write!(f, "{who} {why}"),
            Record::Lost { who, why, cut, answered, rescued } => {
                write!(f, "{who} lost: {why}; {cut} cut, {rescued} rescued")?;
                Told(*answered).fmt(f)
            }
            Record::Stalled { who, since, in_hand } => {
                write!(f, "{who} stalled for {since:?}; {in_hand} in hand")
            }
            Record::Broken { who, why } => write!(f, "{who} broken: {why}"),
            Record::Draining { who, reason } => write!(f, "{who} draining: {reason}"),
            Record::Overdue { who, in_hand } => write!(f, "{who} overdue; {in_hand} in hand"),
            Record::Left { who, cut, answered, rescued, handed_back } => {
                write!(f, "{who} left; {cut} cut")?;
                for (count, what) in [(handed_back, "handed back"), (rescued, "rescued")] {
                    if *count > 0 {
                        write!(f, ", {count} {what}")?;
                    }
                }
                Told(*answered).fmt(f)
            }
            Record::RolloutBegun { generation, pools } => {
                write!(f, "rollout of {generation} begun: {pools:?}")
            }
            Record::RolloutDone { generation, took } => {
                write!(f, "rollout of {generation} done in {:.1} s", took.as_secs_f64())
            }
            Record::Resumed { generation, took } => {
                write!(f, "resumed {generation} after {:.1} s", took.as_secs_f64())
            }
            Record::RollingBack { generation, why } => {
                write!(f, "rolling back {generation}: {why}")
            }
            Record::RolledBack { generation, took } => {
                write!(f, "rolled back {generation} after {:.1} s", took.as_secs_f64())
            }
            Record::Accounted { generation, toll } => {
                let Toll { handed_back, redispatched, cut, unseen } = toll;
                write!(f, "reload of {generation}: {handed_back} handed back, ")?;
                write!(f, "{redispatched} re-dispatched, {cut} cut")?;
                if *unseen > 0 { write!(f, ", {unseen} unseen") } else { Ok(()) }
            }
            Record::GaveUp { pool, generation, why, serving } => {
                write!(f, "{pool} gave up on {generation}: {why}; {serving} serving")
            }
            Record::Resized { pool, workers } => write!(f, "{pool} resized to {workers}"),
            Record::Idle { quiet } => write!(f, "idle for {:.1} s", quiet.as_secs_f64()),
            Record::Stopping { workers } => write!(f, "stopping {workers} workers"),
        }
    }
}
