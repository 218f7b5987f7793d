//! The bounded queue before the writer, and what did not fit into it.
//!
//! The writer may be held up for as long as journald likes; so whoever fills the queue waits only
//! for a while, and then drops. What is dropped is counted where it would have stood: a mark in the
//! queue, which the writer turns into one record for each pool.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::entry::Entry;

/// What workers say may fill the queue so far, bytes.
const ROOM_FOR_WORKERS: usize = 1 << 20;
/// What the master says may fill it so far: no worker's chatter keeps it out.
const ROOM: usize = ROOM_FOR_WORKERS + (1 << 18);
/// Counted for each record beside its text, bytes.
const OVERHEAD: usize = 256;

/// How many records were dropped of each pool's workers; `None`: of the master's own.
pub(crate) type Dropped = BTreeMap<Option<String>, u64>;

/// What comes out of the queue.
#[derive(Debug)]
pub(crate) enum Item {
    Entry(Box<Entry>),
    /// Here some are missing.
    Dropped(Dropped),
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// `None`: the mark of what was dropped, at most one.
    entries: VecDeque<Option<Box<Entry>>>,
    /// Bytes of all entries.
    weight: usize,
    dropped: Dropped,
    is_closed: bool,
    writer_waits: bool,
    /// Below this weight those who wait for room are woken.
    wake_below: Option<usize>,
}

fn weight_of(entry: &Entry) -> usize {
    OVERHEAD + entry.text.len()
}

impl State {
    fn has_room(&self, weight: usize, room: usize) -> bool {
        self.weight == 0 || self.weight + weight <= room
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an entry in, waiting for room so long at most. Whether there was room; if not, it is
    /// dropped and counted.
    pub(crate) fn push(&self, entry: Entry, patience: Duration) -> bool {
        let weight = weight_of(&entry);
        let room = if entry.speaker.is_some() { ROOM_FOR_WORKERS } else { ROOM };
        let mut state = self.lock();
        if !state.has_room(weight, room) && !patience.is_zero() {
            // Half of it, so that one is not woken for every record.
            let half = room / 2;
            state.wake_below = Some(half);
            let is_full = |state: &mut State| state.weight > half;
            let waited = self.emptied.wait_timeout_while(state, patience, is_full);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            state.wake_below = None;
        }
        if !state.has_room(weight, room) {
            drop(state);
            self.drop_one(&entry);
            return false;
        }
        state.weight += weight;
        state.entries.push_back(Some(Box::new(entry)));
        self.wake_writer(state);
        true
    }

    /// Counts an entry that nobody will write.
    pub(crate) fn drop_one(&self, entry: &Entry) {
        let mut state = self.lock();
        if state.dropped.is_empty() {
            state.entries.push_back(None);
        }
        let pool = entry.speaker.as_ref().map(|speaker| speaker.pool.clone());
        *state.dropped.entry(pool).or_default() += 1;
        self.wake_writer(state);
    }

    fn wake_writer(&self, state: MutexGuard<'_, State>) {
        let waits = state.writer_waits;
        drop(state);
        if waits {
            self.filled.notify_one();
        }
    }

    /// Nothing more will be put in.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.filled.notify_one();
    }

    /// The next item, when there is one; `None` at the end.
    pub(crate) fn pop(&self) -> Option<Item> {
        let mut state = self.lock();
        let next = loop {
            if let Some(next) = state.entries.pop_front() {
                break next;
            }
            if state.is_closed {
                return None;
            }
            state.writer_waits = true;
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.writer_waits = false;
        };
        let Some(entry) = next else {
            return Some(Item::Dropped(std::mem::take(&mut state.dropped)));
        };
        state.weight -= weight_of(&entry);
        let is_awaited = state.wake_below.is_some_and(|below| state.weight <= below);
        drop(state);
        if is_awaited {
            self.emptied.notify_one();
        }
        Some(Item::Entry(entry))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::entry::{Level, Origin};
    use super::*;

    fn words(pool: &str, text: &str) -> Entry {
        let origin = Origin { pool: pool.into(), slot: 1, generation: 1, pid: 1 };
        Entry::words(Level::Info, text.into(), Arc::new(origin))
    }

    fn say(text: &str) -> Entry {
        Entry::new(Level::Info, text)
    }

    /// The queue's contents, in words.
    fn drain(queue: &Queue) -> Vec<String> {
        queue.close();
        let texts = std::iter::from_fn(|| queue.pop()).map(|item| match item {
            Item::Entry(entry) => entry.text,
            Item::Dropped(dropped) => format!("{dropped:?}"),
        });
        texts.collect()
    }

    #[test]
    fn what_does_not_fit_is_counted_where_it_is_missing() {
        let queue = Queue::default();
        let big = "x".repeat(ROOM_FOR_WORKERS / 2);
        assert!(queue.push(words("a", &big), Duration::ZERO));
        for pool in ["a", "b", "a"] {
            assert!(!queue.push(words(pool, &big), Duration::ZERO));
        }
        assert!(queue.push(words("c", "small"), Duration::ZERO));
        assert!(!queue.push(words("c", &big), Duration::ZERO));
        let left = drain(&queue);
        assert_eq!(left[1..], [r#"{Some("a"): 2, Some("b"): 1, Some("c"): 1}"#, "small"]);
    }

    #[test]
    fn the_master_is_heard_beside_chattering_workers_and_bounded_itself() {
        let queue = Queue::default();
        let mut said = 0;
        while queue.push(words("a", "chatter"), Duration::ZERO) {
            said += 1;
            assert!(said < 100_000, "the queue has no bound");
        }
        assert!(queue.push(say("own"), Duration::ZERO));
        let mut own = 1;
        while queue.push(say("own"), Duration::ZERO) {
            own += 1;
            assert!(own < 100_000, "the queue has no bound");
        }
        assert!(own > 100);
        let left = drain(&queue);
        assert_eq!(left.iter().filter(|text| *text == "chatter").count(), said);
        assert_eq!(left.iter().filter(|text| *text == "own").count(), own);
        assert!(left.contains(&r#"{None: 1, Some("a"): 1}"#.to_owned()));
    }

    #[test]
    fn a_record_that_is_larger_than_the_queue_goes_alone() {
        let queue = Queue::default();
        let huge = "x".repeat(2 * ROOM);
        assert!(queue.push(words("a", &huge), Duration::ZERO));
        assert!(!queue.push(words("a", "x"), Duration::ZERO));
        assert_eq!(drain(&queue), [huge, r#"{Some("a"): 1}"#.to_owned()]);
    }

    #[test]
    fn who_waits_for_room_gets_it() {
        let queue = Arc::new(Queue::default());
        let half = "x".repeat(ROOM_FOR_WORKERS / 2 - OVERHEAD);
        assert!(queue.push(words("a", &half), Duration::ZERO));
        assert!(queue.push(words("a", &half), Duration::ZERO));
        let other = Arc::clone(&queue);
        let writer = std::thread::spawn(move || {
            while other.lock().wake_below.is_none() {
                std::thread::yield_now();
            }
            drain(&other).len()
        });
        assert!(queue.push(words("a", "waited"), Duration::from_secs(3600)));
        let before = writer.join().unwrap();
        assert_eq!(before + drain(&queue).len(), 3);
    }
}
