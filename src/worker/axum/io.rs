//! The stream that axum serves, and how it leaves.
//!
//! axum keeps hyper to itself, so there is nobody to stop it. Instead, when the worker drains and
//! the connection stands between two requests, the stream *pretends its end*: hyper finds that the
//! client has gone, ends without a word, and drops the stream, which goes to the next worker instead
//! of being closed. What hyper has read and not used is known from the accounts.
//!
//! It stands between two requests when no body is held, everything is written, the accounts say that
//! the last request was delivered whole, and no whole head is pending: hyper parses a head before the
//! application hears of it. Should hyper write after that end, the connection is closed.

use std::io::{self, IoSlice};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::worker::link::Link;
use crate::worker::serve::accounts::Accounts;
use crate::worker::serve::peer::Peer;
use crate::worker::serve::tracker::Tracker;
use crate::worker::stream::Stream;
use crate::worker::tell::tell;

/// A client's connection, as [`Listener`](super::Listener) gives it to axum: a [`Stream`].
pub struct Io {
    stream: Stream,
    /// Set by [`hand_back`](super::hand_back), before the first byte is read.
    tracker: OnceLock<Arc<Tracker>>,
    told: Told,
}

/// Waits for the drain, enlisted once: every read passes here.
struct Told {
    drain: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    waker: Option<Waker>,
}

impl Io {
    pub(super) fn new(stream: Stream) -> Io {
        let link = Arc::clone(stream.link());
        stream.speak_http();
        let drain = Box::pin(async move { link.until_drain().await });
        Io { stream, tracker: OnceLock::new(), told: Told { drain, waker: None } }
    }

    /// From now on it is watched, and leaves when it can.
    pub(super) fn track(&self) -> Arc<Tracker> {
        let make = || {
            self.stream.count_by_hand();
            let (link, peer) = (Arc::clone(self.stream.link()), Peer::of(&self.stream));
            let tracker = Arc::new(Tracker::new(link, peer, Accounts::default()));
            self.stream.attach(&tracker);
            tracker
        };
        Arc::clone(self.tracker.get_or_init(make))
    }

    /// Whether it leaves now: hyper is told that this is its end.
    fn leaves(&mut self, context: &mut Context<'_>) -> bool {
        let Some(tracker) = self.tracker.get() else { return false };
        if tracker.is_leaving() {
            return true;
        }
        if !self.told.poll(self.stream.link(), context) || !self.stream.can_hand_back() {
            return false;
        }
        tracker.watch(context.waker());
        if is_at_rest(tracker) {
            tracker.set_leaving(true);
        }
        tracker.is_leaving()
    }

    fn note_write(&self, context: &mut Context<'_>) {
        if let Some(tracker) = self.tracker.get() {
            tracker.note_write();
            // It was misjudged.
            tracker.set_leaving(false);
            self.watch(tracker, context);
        }
    }

    /// While draining, whatever may bring it to rest wakes hyper, which need not read again before.
    /// (hyper 1.12 can also forget a pipelined request whose predecessor's body was read late.)
    fn watch(&self, tracker: &Tracker, context: &mut Context<'_>) {
        if self.stream.link().is_draining() {
            tracker.watch(context.waker());
        }
    }
}

impl Told {
    fn poll(&mut self, link: &Link, context: &mut Context<'_>) -> bool {
        if link.is_draining() {
            return true;
        }
        if self.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            return false;
        }
        self.waker = Some(context.waker().clone());
        self.drain.as_mut().poll(context).is_ready()
    }
}

fn is_at_rest(tracker: &Tracker) -> bool {
    let is_used = !tracker.in_use().is_none() || tracker.is_unflushed();
    // What is written without a request is a refusal.
    let is_refused = tracker.requests() == 0 && tracker.has_written();
    let accounts = tracker.accounts();
    !is_used && !is_refused && accounts.is_between_requests() && !accounts.has_whole_head()
}

impl Drop for Io {
    fn drop(&mut self) {
        let Some(tracker) = self.tracker.get() else { return };
        if !tracker.is_leaving() || !is_at_rest(tracker) {
            return;
        }
        self.stream.detach(tracker.requests());
        let left = self.stream.leave(tracker.accounts().pending());
        match (left, tokio::runtime::Handle::try_current()) {
            (Ok(leaving), Ok(runtime)) => drop(runtime.spawn(leaving.go())),
            (Err(why), _) => tell!("closed an idle connection that was to be handed back: {why}"),
            // The runtime is being shut down: it is closed with all the others.
            (Ok(_), Err(_)) => {}
        }
    }
}

impl Deref for Io {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        &self.stream
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stream.fmt(f)
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.leaves(context) {
            return Poll::Ready(Ok(()));
        }
        if let Some(tracker) = self.tracker.get() {
            tracker.settle(&self.stream, context.waker());
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let (Poll::Ready(_), Some(tracker)) = (&result, self.tracker.get()) {
            tracker.note_read(&buffer.filled()[before..]);
        }
        result
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Before it is tried: what the socket does not take now waits in the server.
        self.note_write(context);
        let io = &mut *self;
        if let Some(tracker) = io.tracker.get() {
            io.stream.announce_rest(tracker, slices);
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper calls this only when it has nothing left to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tracker) = self.tracker.get() {
            self.watch(tracker, context);
            tracker.note_flush();
            tracker.settle(&self.stream, context.waker());
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.tracker.get().is_some_and(|tracker| tracker.is_leaving()) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
