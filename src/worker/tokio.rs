//! Connections as tokio streams.
//!
//! One task takes from the channel (and accepts, where the master lets it), inside the author's runtime and on no thread of its own: a
//! runtime that is blocked takes nothing, and that is how the master sees it. It hands the streams
//! to [`Incoming`], at once or, after [`Worker::when_readable`], when the client's first bytes are
//! there; those that are still silent when the drain begins are handed back, if the master offers it.
//!
//! A *graceful shutdown*, as servers know it, closes connections that were accepted but have not
//! sent a byte, and stops accepting. Told too early it loses clients. [`Draining`] is the right
//! moment: the master said DRAIN (which is the last message of the channel), and every connection
//! in hand, handed out or not, has been read from once; or the drain's deadline is near.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout, timeout_at};

use super::Worker;
use super::drain::Drain;
use super::link::{Link, State};
use super::stream::Stream;
use super::taker::{FULL_RETRY, Taken, Taker, now};
use super::tell::tell;
use crate::error::{Error, Result};

impl Worker {
    /// Hands out connections only when their first bytes (or their end) are there. For servers
    /// that close untouched connections when they shut down gracefully.
    #[must_use]
    pub fn when_readable(self) -> Worker {
        Worker { readable: true, ..self }
    }

    /// When it is time to shut down gracefully.
    #[must_use]
    pub fn draining(&self) -> Draining {
        self.graceful.store(true, Relaxed);
        Draining::new(Arc::clone(&self.link))
    }

    /// Says READY and lends the connections out as tokio streams. Inside a runtime whose I/O and
    /// time are enabled.
    ///
    /// # Errors
    /// Outside of a runtime, and when the system has no descriptors left.
    pub fn into_incoming(self) -> Result<Incoming> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::new(
                "there is no tokio runtime here; call it inside of `block_on` or an async main",
            ));
        }
        let channel = register(&self.link)?;
        let limit = self.bounded(self.limit.unwrap_or(u32::MAX));
        self.say_ready(limit);
        let taker = Taker::new(Arc::clone(&self.link), self.descriptor_limit, limit);
        let (sender, receiver) = unbounded_channel();
        let sink = Sink { sender, readable: self.readable };
        let task = tokio::spawn(receive(channel, taker, sink));
        Ok(Incoming { receiver, link: self.link, task })
    }
}

/// The channel, registered with the runtime under a number of its own. Only its readiness is asked
/// for, which tokio's datagram socket offers of any socket that is given to it.
pub(super) fn register(link: &Link) -> io::Result<UnixDatagram> {
    watch(link.channel().as_fd())
}

/// The same of anything that becomes readable.
fn watch(source: BorrowedFd<'_>) -> io::Result<UnixDatagram> {
    let source = std::os::unix::net::UnixDatagram::from(source.try_clone_to_owned()?);
    source.set_nonblocking(true)?;
    UnixDatagram::from_std(source)
}

/// The waits of the link, without a thread.
impl Link {
    pub async fn until_over(&self) {
        self.until(&self.notify, |state| state.over).await;
    }

    pub async fn until_drain(&self) {
        self.until(&self.drained, |state| state.drain.is_some()).await;
    }

    /// Until it is drained and every connection in hand has been read from once.
    pub async fn until_no_silent(&self) {
        self.until(&self.notify, |state| state.drain.is_some() && state.silent == 0).await;
    }

    pub async fn until_change(&self) {
        self.notify.notified().await;
    }

    async fn until(&self, notify: &Notify, reached: impl Fn(&State) -> bool) {
        loop {
            let mut notified = std::pin::pin!(notify.notified());
            // Enlisted before the look, so that no change falls between the two.
            notified.as_mut().enable();
            if reached(&self.lock()) {
                return;
            }
            notified.await;
        }
    }
}

/// Connections, as they come.
#[derive(Debug)]
pub struct Incoming {
    // Bounded by the limit that READY announced.
    receiver: UnboundedReceiver<Stream>,
    link: Arc<Link>,
    task: JoinHandle<()>,
}

impl Incoming {
    /// The next connection. `None`: the worker is drained, that is, the master said so and every
    /// stream that was lent out is dropped. A program may end then, and must not before.
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Stream> {
        let next = self.receiver.recv().await;
        if next.is_none() {
            self.link.until_over().await;
        }
        next
    }

    /// When it is time to shut down gracefully.
    #[must_use]
    pub fn draining(&self) -> Draining {
        Draining::new(Arc::clone(&self.link))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Who does not ask takes no more.
        self.task.abort();
    }
}

/// Takes until the drain begins: from the channel, and from listeners, once the master lets it.
async fn receive(channel: UnixDatagram, mut taker: Taker, sink: Sink) {
    let (mut source, mut is_set) = (channel, false);
    loop {
        let mut deadline = taker.acceptor().and_then(|acceptor| acceptor.deadline());
        if let Some(acceptor) = taker.acceptor().filter(|_| !is_set) {
            // It has the channel, too. Nothing may be there that could wake us: it is looked at.
            match watch(acceptor.watch().as_fd()) {
                Ok(set) => (source, is_set, deadline) = (set, true, Some(now())),
                Err(error) => return fail(&taker, &error),
            }
        }
        let flow = match until(source.readable(), deadline).await {
            Some(Ok(())) => {
                let taken = source.try_io(Interest::READABLE, || attempt(&mut taker));
                sink.deal_with(taken, &taker).await
            }
            // The runtime shuts down.
            Some(Err(_)) => return,
            None => look_around(&mut taker, &sink).await,
        };
        if flow.is_break() {
            return;
        }
    }
}

/// Takes one thing. `WouldBlock`: nothing more happens before the next event.
fn attempt(taker: &mut Taker) -> io::Result<Taken> {
    let nothing = || Err(io::ErrorKind::WouldBlock.into());
    let accepts = match taker.acceptor() {
        None => false,
        Some(acceptor) => match acceptor.look()? {
            true => true,
            false => return nothing(),
        },
    };
    match taker.take()? {
        Taken::Empty if !accepts => nothing(),
        // There may be more in the set.
        Taken::Empty => Ok(Taken::Other),
        taken @ (Taken::Connection(_) | Taken::Other | Taken::Full | Taken::Over) => Ok(taken),
    }
}

/// No event has come for a while.
async fn look_around(taker: &mut Taker, sink: &Sink) -> ControlFlow<()> {
    taker.acceptor().into_iter().for_each(|acceptor| acceptor.note_timeout());
    loop {
        let taken = attempt(taker);
        let is_all = taken.as_ref().is_err_and(|it| it.kind() == io::ErrorKind::WouldBlock);
        if is_all {
            return ControlFlow::Continue(());
        }
        sink.deal_with(taken, taker).await?;
    }
}

/// Waits, if need be no longer than until `deadline`; then `None`.
async fn until<T>(future: impl Future<Output = T>, deadline: Option<Instant>) -> Option<T> {
    match deadline {
        Some(at) => timeout_at(at.into(), future).await.ok(),
        None => Some(future.await),
    }
}

/// Nobody can be heard any more.
fn fail(taker: &Taker, error: &io::Error) {
    tell!("the channel to the master failed: {error}");
    taker.link().drain(Drain::orphaned(now()));
}

/// Where streams go.
struct Sink {
    sender: UnboundedSender<Stream>,
    /// When something can be read from them.
    readable: bool,
}

impl Sink {
    /// Sends a connection on. Whether more may follow.
    async fn deal_with(&self, taken: io::Result<Taken>, taker: &Taker) -> ControlFlow<()> {
        match taken {
            Ok(Taken::Connection(fresh)) => match Stream::new(fresh) {
                Ok(stream) if self.readable => hold_back(stream, self.sender.clone()),
                Ok(stream) => drop(self.sender.send(stream)),
                Err(error) => tell!("closed a descriptor from the master: {error}"),
            },
            Ok(Taken::Other | Taken::Empty) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(Taken::Full) => drop(timeout(FULL_RETRY, taker.link().until_change()).await),
            Ok(Taken::Over) => return ControlFlow::Break(()),
            Err(error) => {
                fail(taker, &error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}

/// Sends the stream on when something can be read from it. At a drain it is handed back, since
/// nobody has touched it; else an idle one is closed, and one that is silent is waited for until the
/// drain's deadline is near.
fn hold_back(mut stream: Stream, sender: UnboundedSender<Stream>) {
    tokio::spawn(async move {
        let link = Arc::clone(stream.link());
        if either(stream.readable(), link.until_drain()).await {
            drop(sender.send(stream));
            return;
        }
        if stream.can_hand_back() {
            match stream.hand_back(b"").await {
                Ok(()) => return,
                Err(kept) => stream = kept.connection,
            }
        }
        let is_idle = stream.requests() > 0;
        if !is_idle && either(stream.readable(), patience_end(&link)).await {
            drop(sender.send(stream));
        }
    });
}

/// When silent connections are given up.
pub(super) async fn patience_end(link: &Link) {
    link.until_drain().await;
    match link.drain_told().and_then(|drain| drain.silent_until) {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for one of two; `true`: it was the first.
pub(super) async fn either<T>(
    first: impl Future<Output = T>,
    second: impl Future<Output = ()>,
) -> bool {
    let mut first = std::pin::pin!(first);
    let mut second = std::pin::pin!(second);
    std::future::poll_fn(|context| {
        if first.as_mut().poll(context).is_ready() {
            Poll::Ready(true)
        } else {
            second.as_mut().poll(context).map(|()| false)
        }
    })
    .await
}

/// Ready when a server may shut down gracefully: the master said DRAIN, and every connection in
/// hand has been read from once or the drain's deadline is near.
pub struct Draining(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Draining {
    fn new(link: Arc<Link>) -> Draining {
        Draining(Box::pin(async move {
            either(link.until_no_silent(), patience_end(&link)).await;
        }))
    }
}

impl Future for Draining {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl std::fmt::Debug for Draining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Draining")
    }
}
