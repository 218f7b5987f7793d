//! The last reloads: who asked, when, what came of it, and what it cost.
//!
//! A reload enters when it begins, or when it is refused; several that were folded into one are one
//! entry with all their callers. What became of the connections of the workers that it retired is
//! added when the last of them is gone. The boot is no reload.
//!
//! Times are those of the wall clock, for people, and so that the whole is plain data, which outlives
//! the process.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Daemon;
use crate::supervisor::{Generation, PoolId, Toll};
use crate::wire::control::{PastReload, ReloadsResults};

/// Reloads that are remembered.
const REMEMBERED: usize = 100;
/// Callers of one reload that are named.
const CALLERS_MAX: usize = 8;
/// Bytes of a sentence.
const SENTENCE_MAX: usize = 1000;

/// How a reload that is under way is called.
const UNDER_WAY: &str = "under way";

/// Who asked for a reload, and when.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Caller {
    pub(super) name: String,
    pub(super) at: SystemTime,
}

impl Caller {
    pub(super) fn new(name: impl Into<String>) -> Caller {
        Caller { name: name.into(), at: SystemTime::now() }
    }
}

/// The last reloads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct History {
    /// Oldest first.
    reloads: VecDeque<PastReload>,
}

impl History {
    fn add(&mut self, reload: PastReload) {
        self.reloads.push_back(reload);
        while self.reloads.len() > REMEMBERED {
            self.reloads.pop_front();
        }
    }

    /// A reload has begun.
    pub(super) fn begin(&mut self, generation: u64, pools: Vec<String>, callers: &[Caller]) {
        let Some(first) = callers.iter().map(|caller| caller.at).min() else { return };
        let mut names: Vec<String> = Vec::new();
        for caller in callers {
            if !names.contains(&caller.name) {
                names.push(caller.name.clone());
            }
        }
        let more = names.len().saturating_sub(CALLERS_MAX);
        names.truncate(CALLERS_MAX);
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        self.add(PastReload {
            at: seconds(first),
            asked_by: names,
            pools,
            generation: Some(generation),
            outcome: UNDER_WAY.to_owned(),
            ..PastReload::default()
        });
    }

    /// A reload was over as soon as it was asked for: refused, or nothing but a size has changed.
    pub(super) fn note(&mut self, caller: &Caller, outcome: &str, message: &str) {
        let at = seconds(caller.at);
        self.add(PastReload {
            at,
            asked_by: vec![caller.name.clone()],
            outcome: outcome.to_owned(),
            message: bounded(message),
            took: Some(elapsed(at)),
            ..PastReload::default()
        });
    }

    fn of(&mut self, generation: u64) -> Option<&mut PastReload> {
        self.reloads.iter_mut().rfind(|reload| reload.generation == Some(generation))
    }

    /// Why a reload goes back.
    pub(super) fn explain(&mut self, generation: u64, message: &str) {
        if let Some(reload) = self.of(generation) {
            reload.message = bounded(message);
        }
    }

    /// A reload is over. One that was done may be rolled back later, which is told here, too.
    pub(super) fn finish(&mut self, generation: u64, outcome: &str) {
        if let Some(reload) = self.of(generation) {
            outcome.clone_into(&mut reload.outcome);
            reload.took.get_or_insert(elapsed(reload.at));
        }
    }

    /// The service ends: what is under way comes to nothing.
    pub(super) fn stop(&mut self) {
        for reload in self.reloads.iter_mut().filter(|reload| reload.outcome == UNDER_WAY) {
            "stopped".clone_into(&mut reload.outcome);
            "the service is stopping".clone_into(&mut reload.message);
            reload.took = Some(elapsed(reload.at));
        }
    }

    /// The last worker that a reload retired is gone.
    pub(super) fn settle(&mut self, generation: u64, toll: Toll) {
        if let Some(reload) = self.of(generation) {
            add_toll(reload, toll);
        }
    }
}

impl Daemon {
    /// A rollout has begun, and every wish that waits is in it.
    pub(super) fn begin_history(&mut self, generation: Generation, pools: &[PoolId]) {
        let callers = self.wishes.values().filter_map(|wish| wish.caller.clone());
        let callers: Vec<Caller> = callers.collect();
        let pools = pools.iter().map(|&id| self.editions.name(id).to_owned()).collect();
        self.history.begin(generation.0, pools, &callers);
    }

    /// All that is known, newest first; what is still counted, as it stands.
    pub(super) fn wire_reloads(&self) -> ReloadsResults {
        let mut reloads: Vec<PastReload> = self.history.reloads.iter().rev().cloned().collect();
        for reload in &mut reloads {
            let open = reload.generation.and_then(|it| self.supervisor.toll(Generation(it)));
            if let Some((toll, leaving)) = open {
                add_toll(reload, toll);
                reload.leaving = leaving;
            }
        }
        ReloadsResults { reloads }
    }
}

fn add_toll(reload: &mut PastReload, toll: Toll) {
    let Toll { handed_back, redispatched, cut, unseen } = toll;
    reload.handed_back += handed_back;
    reload.redispatched += redispatched;
    reload.cut += cut;
    reload.unseen += unseen;
}

/// Seconds since 1970.
fn seconds(at: SystemTime) -> f64 {
    rounded(at.duration_since(UNIX_EPOCH).as_ref().map_or(0.0, Duration::as_secs_f64))
}

/// To whole milliseconds, which come back from any text as they were.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Seconds since then; none, where the clock was set back.
fn elapsed(since: f64) -> f64 {
    rounded(seconds(SystemTime::now()) - since).max(0.0)
}

fn bounded(message: &str) -> String {
    let mut end = message.len().min(SENTENCE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toll(handed_back: u64, cut: u64) -> Toll {
        Toll { handed_back, redispatched: 0, cut, unseen: 0 }
    }

    #[test]
    fn a_reload_is_one_entry_with_all_its_callers() {
        let mut history = History::default();
        let callers: Vec<Caller> =
            (0..12).map(|id| Caller::new(format!("caller {}", id % 10))).collect();
        history.begin(7, vec!["web".into()], &callers);
        assert_eq!(history.reloads.len(), 1);
        let reload = &history.reloads[0];
        assert_eq!(reload.asked_by.len(), CALLERS_MAX + 1);
        assert_eq!(reload.asked_by.last().unwrap(), "and 2 more");
        assert_eq!((reload.outcome.as_str(), reload.took), (UNDER_WAY, None));
        history.finish(7, "done");
        history.settle(7, toll(3, 1));
        let reload = &history.reloads[0];
        assert!(reload.outcome == "done" && reload.took.is_some());
        assert_eq!((reload.handed_back, reload.cut), (3, 1));
    }

    #[test]
    fn a_boot_is_no_reload() {
        let mut history = History::default();
        history.begin(1, vec!["web".into()], &[]);
        assert!(history.reloads.is_empty());
        // Nobody is confused by what follows from it.
        history.finish(1, "done");
        history.settle(1, toll(1, 1));
        assert!(history.reloads.is_empty());
    }

    #[test]
    fn the_last_hundred_are_remembered_and_come_back_as_they_were() {
        let mut history = History::default();
        for generation in 1..=150 {
            history.begin(generation, Vec::new(), &[Caller::new("SIGUSR1")]);
            history.explain(generation, &"é".repeat(800));
            history.finish(generation, "rolled back");
        }
        history.note(&Caller::new("x"), "refused", "why");
        assert_eq!(history.reloads.len(), REMEMBERED);
        assert_eq!(history.reloads[0].generation, Some(52));
        assert!(history.reloads[0].message.len() <= SENTENCE_MAX);
        let text = serde_json::to_string(&history).unwrap();
        let again: History = serde_json::from_str(&text).unwrap();
        assert_eq!(again.reloads, history.reloads);
        let bare: History = serde_json::from_str("{\"later\": 1}").unwrap();
        assert!(bare.reloads.is_empty(), "what is not known is skipped");
    }
}
