//! What a connection's entry in the ledger is told, at which step. A connection without one tells
//! nobody, and pays for a look.
//!
//! ```text
//!  before a read ─▶ DIRTY     before a write ─▶ WROTE     at rest ─▶ CLEAN     closed ─▶ CLOSED
//! ```
//!
//! Before, because the worker may die in the very system call. So nobody reads on the off chance:
//! where nothing is there to be read, a connection must not look as if something had been.
//!
//! One thread at a time reads from a connection; another may write. Their stores can only meet where
//! both have begun something, and then the later state is right, or the worse one.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::wire::ledger::{Entry, Ledger, State};

/// The rest of an answer, as far as a server knows it before it writes.
#[cfg(feature = "serve")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tail {
    /// Bytes of it.
    pub length: u64,
    /// Part of the next request has been read.
    pub is_pending: bool,
}

/// A connection's entry, if it has one, and what must be known to fill it in.
#[derive(Debug)]
pub(crate) struct Mark(Option<Box<Marked>>);

#[derive(Debug)]
struct Marked {
    index: u32,
    entry: Entry,
    /// Bytes written to the connection by this worker.
    written: AtomicU64,
}

impl Mark {
    /// The entry of this index, as far as there is a ledger and it has one.
    pub fn new(ledger: Option<&Ledger>, index: Option<u32>) -> Mark {
        let marked = ledger.zip(index).and_then(|(ledger, index)| {
            let entry = ledger.entry(index)?;
            Some(Box::new(Marked { index, entry, written: AtomicU64::new(0) }))
        });
        Mark(marked)
    }

    fn entry(&self) -> Option<&Entry> {
        self.0.as_ref().map(|marked| &marked.entry)
    }

    pub fn index(&self) -> Option<u32> {
        self.0.as_ref().map(|marked| marked.index)
    }

    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// What is spoken is HTTP/1, as far as the library can tell.
    #[cfg(feature = "serve")]
    pub fn set_http(&self) {
        if let Some(entry) = self.entry() {
            entry.set_http();
        }
    }

    /// Bytes are there, and about to be read.
    pub fn before_read(&self) -> Option<State> {
        self.entry()?.note_read()
    }

    /// They were not there after all.
    #[cfg(feature = "tokio")]
    pub fn read_nothing(&self, before: Option<State>) {
        if let (Some(entry), Some(before)) = (self.entry(), before) {
            entry.take_back(before);
        }
    }

    /// Something is about to be written, or the end.
    pub fn before_write(&self) {
        if let Some(marked) = &self.0 {
            marked.entry.note_write(marked.written.load(Relaxed), 0, false);
        }
    }

    /// The same, where it is the rest of the answer.
    #[cfg(feature = "serve")]
    pub fn before_tail(&self, tail: Tail) {
        if let Some(marked) = &self.0 {
            let written = marked.written.load(Relaxed);
            marked.entry.note_write(written, written + tail.length, tail.is_pending);
        }
    }

    pub fn wrote(&self, count: usize) {
        if let Some(marked) = &self.0 {
            marked.written.fetch_add(count as u64, Relaxed);
        }
    }

    #[cfg(feature = "serve")]
    pub fn written(&self) -> u64 {
        self.0.as_ref().map_or(0, |marked| marked.written.load(Relaxed))
    }

    /// `None`: there is no entry.
    #[cfg(feature = "serve")]
    pub fn state(&self) -> Option<State> {
        self.entry().map(Entry::state)
    }

    /// Everything that was asked is answered, and part of the next request is read.
    #[cfg(feature = "serve")]
    pub fn is_pending(&self) {
        if let Some(entry) = self.entry() {
            entry.note_pending();
        }
    }

    /// Everything that was asked is answered, and nothing more is read.
    #[cfg(feature = "serve")]
    pub fn is_clean(&self, requests: u64, idle_since: u64) {
        if let Some(entry) = self.entry() {
            entry.note_clean(requests, idle_since);
        }
    }

    /// Its socket is shut down. Nothing follows.
    pub fn closed(&self) {
        if let Some(entry) = self.entry() {
            entry.note_closed();
        }
    }
}
