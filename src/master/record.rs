//! Transitions in words: one line each.

use std::time::Duration;

use super::Daemon;
use super::diagnose::diagnose;
use super::journal::Level;
use crate::supervisor::{Generation, PoolId, Reason, Record, Who, WorkerId};

impl Daemon {
    /// `web/1 (pid 4711, generation 2)`
    pub(super) fn describe(&self, id: WorkerId) -> String {
        match self.workers.get(&id) {
            Some(worker) => self.who(&worker.who),
            None => format!("worker {id}"),
        }
    }

    fn who(&self, who: &Who) -> String {
        let pool = self.editions.name(who.pool);
        let generation = who.generation.0;
        match self.workers.get(&who.worker) {
            Some(worker) => {
                let pid = worker.process.id();
                format!("{pool}/{} (pid {pid}, generation {generation})", who.slot.0)
            }
            None => format!("{pool}/{} (generation {generation})", who.slot.0),
        }
    }

    /// Writes a transition to the journal, and lets those know who wait for it.
    pub(super) fn write_down(&mut self, record: &Record) {
        self.is_news = true;
        let (level, text) = self.line(record);
        self.say(level, &text);
        match record {
            Record::RolloutBegun { .. } | Record::Ready(_) | Record::StartFailed { .. } => {
                self.tell_progress(&text);
            }
            Record::RollingBack { .. } => {
                self.must_roll = true;
                self.tell_progress(&text);
                self.note_outcome(false, text);
            }
            // The first one is the boot, not a reload.
            Record::RolloutDone { generation: Generation(1), .. } => {}
            Record::RolloutDone { .. } => self.note_outcome(true, text),
            Record::RolledBack { .. } => {
                let why = self.last_reload.as_ref().map(|last| last.message.clone());
                self.note_outcome(false, why.unwrap_or(text));
            }
            Record::GaveUp { pool, why, .. } => {
                self.must_roll = true;
                self.tell_give_up(*pool, why);
            }
            Record::Lost { .. }
            | Record::Stalled { .. }
            | Record::Draining { .. }
            | Record::Overdue { .. }
            | Record::Left { .. }
            | Record::Resized { .. }
            | Record::Idle { .. }
            | Record::Stopping { .. } => {}
        }
    }

    fn tell_give_up(&mut self, pool: PoolId, why: &str) {
        if let Some(callback) = &mut self.on_give_up {
            callback(self.editions.name(pool), why);
        }
    }

    fn line(&self, record: &Record) -> (Level, String) {
        match record {
            Record::Ready(who) => (Level::Info, format!("{} is ready", self.who(who))),
            Record::StartFailed { who, why, retry } => {
                let next = match retry {
                    Some(wait) => format!("; next try in {}", short(*wait)),
                    None => String::new(),
                };
                (Level::Warning, format!("{}: {why}{next}", self.who(who)))
            }
            Record::Lost { who, why, cut, rescued } => {
                let text = format!(
                    "{} lost: {why}; connections cut: {cut}, given to others: {rescued}",
                    self.who(who)
                );
                (Level::Warning, text)
            }
            Record::Stalled { who, since, in_hand } => {
                let pid = self.workers.get(&who.worker).map_or(0, |worker| worker.process.id());
                let text = format!(
                    "{} stalled: it took nothing for {} while connections waited ({}; connections \
                     in hand: {in_hand}); it is killed and replaced",
                    self.who(who),
                    short(*since),
                    diagnose(pid)
                );
                (Level::Error, text)
            }
            Record::Draining { who, reason } => {
                let reason = match reason {
                    Reason::Replaced => "its successor serves",
                    Reason::Surplus => "the pool needs it no more",
                    Reason::Stop => "the service ends",
                };
                (Level::Info, format!("{} drains: {reason}", self.who(who)))
            }
            Record::Overdue { who, in_hand } => {
                let text = format!(
                    "{} has not drained in time (connections in hand: {in_hand}); it is ended",
                    self.who(who)
                );
                (Level::Warning, text)
            }
            Record::Left { who, cut: 0 } => (Level::Info, format!("{} left", self.who(who))),
            Record::Left { who, cut } => {
                (Level::Warning, format!("{} left; connections cut: {cut}", self.who(who)))
            }
            Record::RolloutBegun { .. }
            | Record::RolloutDone { .. }
            | Record::RollingBack { .. }
            | Record::RolledBack { .. }
            | Record::GaveUp { .. }
            | Record::Resized { .. }
            | Record::Idle { .. }
            | Record::Stopping { .. } => self.line_about_pools(record),
        }
    }

    fn line_about_pools(&self, record: &Record) -> (Level, String) {
        match record {
            Record::RolloutBegun { generation, pools } => {
                let names: Vec<&str> = pools.iter().map(|&id| self.editions.name(id)).collect();
                let text =
                    format!("rollout of generation {} begun: {}", generation.0, names.join(", "));
                (Level::Notice, text)
            }
            Record::RolloutDone { generation, took } => {
                let text = format!("generation {} serves; it took {}", generation.0, short(*took));
                (Level::Notice, text)
            }
            Record::RollingBack { generation, why } => {
                (Level::Error, format!("generation {} is rolled back: {why}", generation.0))
            }
            Record::RolledBack { generation, took } => {
                let text = format!(
                    "rolled back from generation {}; it took {}",
                    generation.0,
                    short(*took)
                );
                (Level::Notice, text)
            }
            Record::GaveUp { pool, generation, why, serving } => {
                let rest = match serving {
                    0 => "no worker of it is left".to_owned(),
                    1 => "1 worker of it still serves".to_owned(),
                    many => format!("{many} workers of it still serve"),
                };
                let text = format!(
                    "{} gave up on generation {}: {why}; {rest}; a reload tries again",
                    self.editions.name(*pool),
                    generation.0
                );
                (Level::Error, text)
            }
            Record::Resized { pool, workers } => {
                let text = format!("{} has {workers} workers now", self.editions.name(*pool));
                (Level::Notice, text)
            }
            Record::Idle { quiet } => {
                let quiet = short(*quiet);
                let text = format!(
                    "nobody has connected for {quiet}: ending; the next client starts the service \
                     again"
                );
                (Level::Notice, text)
            }
            Record::Stopping { workers } => {
                (Level::Notice, format!("stopping: {workers} workers drain"))
            }
            Record::Ready(_)
            | Record::StartFailed { .. }
            | Record::Lost { .. }
            | Record::Stalled { .. }
            | Record::Draining { .. }
            | Record::Overdue { .. }
            | Record::Left { .. } => self.line(record),
        }
    }
}

/// A duration as people say it: two digits are enough.
fn short(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", duration.as_secs_f64()),
        _ => format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60),
    }
}
