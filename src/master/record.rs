//! Transitions in words: one line each.

use std::time::Duration;

use super::Daemon;
use super::diagnose::diagnose;
use super::journal::{ANSWERED, CAUSE, CUT, Entry, GIVEN_TO_OTHERS, IN_HAND, Level, MessageId};
use super::journal::{OBJECT_PID, RETRY_USEC, TOOK_USEC, WORKERS};
use super::toll::accounted;
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
        match self.process(who.worker) {
            Some(process) => {
                let pid = process.id();
                format!("{pool}/{} (pid {pid}, generation {generation})", who.slot.0)
            }
            None => format!("{pool}/{} (generation {generation})", who.slot.0),
        }
    }

    /// What may happen many times a second is said once, and stands in the status since.
    pub(super) fn say_once(&mut self, entry: Entry) {
        if !self.warnings.contains(&entry.text) {
            self.warnings.push(entry.text.clone());
            self.journal.say(entry);
        }
    }

    /// Says something that is of no kind.
    pub(super) fn say(&mut self, level: Level, text: impl std::fmt::Display) {
        self.journal.say(Entry::new(level, text));
    }

    /// Writes a transition to the journal, and lets those know who wait for it.
    pub(super) fn write_down(&mut self, record: &Record) {
        self.is_news = true;
        let entry = self.entry(record);
        let text = entry.text.clone();
        match worker_of(record) {
            // What it has said until now comes first.
            Some(worker) => self.journal.say_after(worker.0, entry),
            None => self.journal.say(entry),
        }
        match record {
            Record::RolloutBegun { generation, pools } => {
                self.begin_history(*generation, pools);
                self.tell_progress(&text);
            }
            Record::Ready(_) | Record::OnTrial { .. } | Record::StartFailed { .. } => {
                self.tell_progress(&text);
            }
            Record::Accounted { generation, toll } => self.history.settle(generation.0, *toll),
            Record::RollingBack { generation, why } => {
                self.must_roll = true;
                self.history.explain(generation.0, why);
                self.tell_progress(&text);
                self.note_outcome(false, text);
            }
            // The first one is the boot, not a reload.
            Record::RolloutDone { generation: Generation(1), .. } => {}
            Record::RolloutDone { generation, .. } => {
                self.history.finish(generation.0, "done");
                self.note_outcome(true, text);
            }
            Record::RolledBack { generation, .. } => {
                self.history.finish(generation.0, "rolled back");
                let why = self.last_reload.as_ref().map(|last| last.message.clone());
                self.note_outcome(false, why.unwrap_or(text));
            }
            Record::GaveUp { pool, why, .. } => {
                self.must_roll = true;
                self.tell_give_up(*pool, why);
            }
            Record::Joined(_)
            | Record::Missing(_)
            | Record::Resumed { .. }
            | Record::Lost { .. }
            | Record::Stalled { .. }
            | Record::Broken { .. }
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

    /// A record about a worker.
    pub(super) fn about(&self, who: &Who, level: Level, text: impl std::fmt::Display) -> Entry {
        let entry = Entry::new(level, text)
            .pool(self.editions.name(who.pool))
            .slot(who.slot.0)
            .generation(who.generation.0);
        match self.process(who.worker) {
            Some(process) => entry.with(OBJECT_PID, process.id()),
            None => entry,
        }
    }

    /// A record about a worker that is there.
    pub(super) fn about_worker(&self, id: WorkerId, level: Level, text: String) -> Entry {
        match self.workers.get(&id) {
            Some(worker) => self.about(&worker.who, level, text),
            None => Entry::new(level, text),
        }
    }

    fn entry(&self, record: &Record) -> Entry {
        match record {
            Record::Ready(who) => {
                let text = format!("{} is ready", self.who(who));
                self.about(who, Level::Info, text).id(MessageId::Ready)
            }
            Record::Joined(who) => self.joined(who),
            Record::Missing(who) => self.missing(who),
            Record::OnTrial { who, time } => {
                let text = format!("{} is on trial for {}", self.who(who), short(*time));
                let entry = self.about(who, Level::Info, text).id(MessageId::OnTrial);
                entry.with_time(TOOK_USEC, *time)
            }
            Record::StartFailed { who, why, retry } => {
                let next = match retry {
                    Some(wait) => format!("; next try in {}", short(*wait)),
                    None => String::new(),
                };
                let text = format!("{}: {why}{next}", self.who(who));
                let entry = self.about(who, Level::Warning, text).id(MessageId::StartFailed);
                let entry = entry.with(CAUSE, why);
                retry.iter().fold(entry, |entry, wait| entry.with_time(RETRY_USEC, *wait))
            }
            Record::Lost { .. } => self.lost(record),
            Record::Stalled { who, since, in_hand } => self.stalled(who, *since, *in_hand),
            Record::Broken { who, why } => {
                let text = format!("{} {why}; it is killed and replaced", self.who(who));
                let entry = self.about(who, Level::Error, text).id(MessageId::Stalled);
                entry.with(CAUSE, why)
            }
            Record::Draining { who, reason } => {
                let reason = in_words(*reason);
                let text = format!("{} drains: {reason}", self.who(who));
                let entry = self.about(who, Level::Info, text).id(MessageId::Draining);
                entry.with(CAUSE, reason)
            }
            Record::Overdue { who, in_hand } => self.overdue(who, *in_hand),
            Record::Left { .. } => self.left(record),
            Record::Resumed { .. }
            | Record::RolloutBegun { .. }
            | Record::RolloutDone { .. }
            | Record::RollingBack { .. }
            | Record::RolledBack { .. }
            | Record::Accounted { .. }
            | Record::GaveUp { .. }
            | Record::Resized { .. }
            | Record::Idle { .. }
            | Record::Stopping { .. } => self.entry_about_pools(record),
        }
    }

    fn lost(&self, record: &Record) -> Entry {
        let Record::Lost { who, why, cut, answered, rescued } = record else {
            return self.entry(record);
        };
        if !self.is_counted(who.worker) {
            let given = match rescued {
                0 => String::new(),
                count => format!("connections given to others: {count}; "),
            };
            let who_was = self.who(who);
            let text = format!("{who_was} lost: {why}; {given}what it was answering is not known");
            let entry = self.about(who, Level::Warning, text).id(MessageId::Lost);
            return entry.with(CAUSE, why).with(GIVEN_TO_OTHERS, rescued);
        }
        let text = format!(
            "{} lost: {why}; connections cut: {cut}, given to others: {rescued}{}",
            self.who(who),
            answered_503(*answered)
        );
        let entry = self.about(who, Level::Warning, text).id(MessageId::Lost);
        let entry = entry.with(CAUSE, why).with(CUT, cut).with(ANSWERED, answered);
        entry.with(GIVEN_TO_OTHERS, rescued)
    }

    fn overdue(&self, who: &Who, in_hand: u64) -> Entry {
        if !self.is_counted(who.worker) {
            let text = format!("{} has not stopped in time; it is ended", self.who(who));
            return self.about(who, Level::Warning, text).id(MessageId::Overdue);
        }
        let text = format!(
            "{} has not drained in time (connections in hand: {in_hand}); it is ended",
            self.who(who)
        );
        let entry = self.about(who, Level::Warning, text).id(MessageId::Overdue);
        entry.with(IN_HAND, in_hand)
    }

    fn joined(&self, who: &Who) -> Entry {
        let text = format!("{} has come back", self.who(who));
        self.about(who, Level::Info, text).id(MessageId::Joined)
    }

    fn missing(&self, who: &Who) -> Entry {
        let text = format!("{} has not come back; it is killed", self.who(who));
        self.about(who, Level::Warning, text).id(MessageId::Missing)
    }

    fn stalled(&self, who: &Who, since: Duration, in_hand: u64) -> Entry {
        let pid = self.workers.get(&who.worker).map_or(0, |worker| worker.process.id());
        let cause = diagnose(pid);
        // One that accepts by itself is asked now and then.
        let waited =
            if self.must_accept(who.worker) { "it was asked" } else { "connections waited" };
        let text = format!(
            "{} stalled: it took nothing for {} while {waited} ({cause}; connections in hand: \
             {in_hand}); it is killed and replaced",
            self.who(who),
            short(since),
        );
        let entry = self.about(who, Level::Error, text).id(MessageId::Stalled);
        entry.with(CAUSE, cause).with(IN_HAND, in_hand).with_time(TOOK_USEC, since)
    }

    fn left(&self, record: &Record) -> Entry {
        let Record::Left { who, cut, answered, rescued, handed_back } = record else {
            return self.entry(record);
        };
        let mut text = format!("{} left", self.who(who));
        // Of one that accepts by itself, nothing more is known.
        if self.inherited(who.worker).is_some() {
            return self.about(who, Level::Info, text).id(MessageId::Left);
        }
        for (count, what) in
            [(handed_back, "handed back"), (cut, "cut"), (rescued, "given to others")]
        {
            if *count > 0 {
                text += &format!("; connections {what}: {count}");
            }
        }
        text += &answered_503(*answered);
        let level = if cut + answered > 0 { Level::Warning } else { Level::Info };
        let entry = self.about(who, level, text).id(MessageId::Left);
        let entry = entry.with(CUT, cut).with(ANSWERED, answered);
        entry.with(GIVEN_TO_OTHERS, handed_back + rescued)
    }

    fn begun(&self, generation: Generation, pools: &[PoolId]) -> Entry {
        let names: Vec<&str> = pools.iter().map(|&id| self.editions.name(id)).collect();
        let number = generation.0;
        let text = format!("rollout of generation {number} begun: {}", names.join(", "));
        let entry = Entry::new(Level::Notice, text).id(MessageId::RolloutBegun);
        names.iter().fold(entry.generation(number), |entry, name| entry.pool(name))
    }

    fn entry_about_pools(&self, record: &Record) -> Entry {
        match record {
            Record::RolloutBegun { generation, pools } => self.begun(*generation, pools),
            Record::RolloutDone { generation, took } => {
                let text = format!("generation {} serves; it took {}", generation.0, short(*took));
                let entry = Entry::new(Level::Notice, text).id(MessageId::RolloutDone);
                entry.generation(generation.0).with_time(TOOK_USEC, *took)
            }
            Record::Resumed { generation, took } => resumed(*generation, *took),
            Record::RollingBack { generation, why } => {
                let text = format!("generation {} is rolled back: {why}", generation.0);
                let entry = Entry::new(Level::Error, text).id(MessageId::RollingBack);
                entry.generation(generation.0).with(CAUSE, why)
            }
            Record::RolledBack { generation, took } => {
                let number = generation.0;
                let text =
                    format!("rolled back from generation {number}; it took {}", short(*took));
                let entry = Entry::new(Level::Notice, text).id(MessageId::RolledBack);
                entry.generation(number).with_time(TOOK_USEC, *took)
            }
            Record::Accounted { generation, toll } => accounted(*generation, *toll),
            Record::GaveUp { pool, generation, why, serving } => {
                let rest = match serving {
                    0 => "no worker of it is left".to_owned(),
                    1 => "1 worker of it still serves".to_owned(),
                    many => format!("{many} workers of it still serve"),
                };
                let name = self.editions.name(*pool);
                let text = format!(
                    "{name} gave up on generation {}: {why}; {rest}; a reload tries again",
                    generation.0
                );
                let entry = Entry::new(Level::Error, text).id(MessageId::GaveUp).pool(name);
                entry.generation(generation.0).with(CAUSE, why).with(WORKERS, serving)
            }
            Record::Resized { pool, workers } => resized(self.editions.name(*pool), *workers),
            Record::Idle { quiet } => idle(*quiet),
            Record::Stopping { workers } => {
                let text = format!("stopping: {workers} workers drain");
                Entry::new(Level::Notice, text).id(MessageId::Stopping).with(WORKERS, workers)
            }
            Record::Ready(_)
            | Record::Joined(_)
            | Record::Missing(_)
            | Record::OnTrial { .. }
            | Record::StartFailed { .. }
            | Record::Lost { .. }
            | Record::Stalled { .. }
            | Record::Broken { .. }
            | Record::Draining { .. }
            | Record::Overdue { .. }
            | Record::Left { .. } => self.entry(record),
        }
    }
}

/// Those who were told that their requests are lost, if there are any.
fn answered_503(count: u64) -> String {
    if count > 0 { format!(", answered 503: {count}") } else { String::new() }
}

fn in_words(reason: Reason) -> &'static str {
    match reason {
        Reason::Replaced => "its successor serves",
        Reason::Surplus => "the pool needs it no more",
        Reason::Stop => "the service ends",
        Reason::Own => "it says that it stops",
    }
}

fn idle(quiet: Duration) -> Entry {
    let span = short(quiet);
    let text = format!(
        "nobody has connected for {span}: ending; the next client starts the service again"
    );
    Entry::new(Level::Notice, text).id(MessageId::Idle).with_time(TOOK_USEC, quiet)
}

fn resized(pool: &str, workers: u32) -> Entry {
    let text = format!("{pool} has {workers} workers now");
    let entry = Entry::new(Level::Notice, text).id(MessageId::Resized);
    entry.pool(pool).with(WORKERS, workers)
}

fn resumed(generation: Generation, took: Duration) -> Entry {
    let text = format!("everything is as before the master was killed; it took {}", short(took));
    let entry = Entry::new(Level::Notice, text).id(MessageId::Resumed);
    entry.generation(generation.0).with_time(TOOK_USEC, took)
}

/// The worker that it is about.
fn worker_of(record: &Record) -> Option<WorkerId> {
    match record {
        Record::Ready(who)
        | Record::Joined(who)
        | Record::Missing(who)
        | Record::OnTrial { who, .. }
        | Record::StartFailed { who, .. }
        | Record::Lost { who, .. }
        | Record::Stalled { who, .. }
        | Record::Broken { who, .. }
        | Record::Draining { who, .. }
        | Record::Overdue { who, .. }
        | Record::Left { who, .. } => Some(who.worker),
        Record::Resumed { .. }
        | Record::RolloutBegun { .. }
        | Record::RolloutDone { .. }
        | Record::RollingBack { .. }
        | Record::RolledBack { .. }
        | Record::Accounted { .. }
        | Record::GaveUp { .. }
        | Record::Resized { .. }
        | Record::Idle { .. }
        | Record::Stopping { .. } => None,
    }
}

/// A duration as people say it: two digits are enough.
pub(super) fn short(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", duration.as_secs_f64()),
        _ => format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60),
    }
}
