//! Connections as tokio streams.
//!
//! One task takes from the channel, inside the author's runtime and on no thread of its own: a
//! runtime that is blocked takes nothing, and that is how the master sees it. It hands the streams
//! to [`Incoming`], at once or, after [`Incoming::when_readable`], when the client's first bytes
//! are there.
//!
//! A *graceful shutdown*, as servers know it, closes connections that were accepted but have not
//! sent a byte, and stops accepting. Told too early it loses clients. [`Draining`] is the right
//! moment: the master said DRAIN (which is the last message of the channel), and every connection
//! in hand, handed out or not, has been read from once; or the drain's deadline is near.

use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixDatagram, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};

use super::Worker;
use super::address::Address;
use super::link::{Drain, Held, Link};
use super::taker::{FULL_RETRY, Fresh, Taken, Taker, now};
use super::tell::tell;
use crate::error::{Error, Result};
use crate::sys::socket::{Family, family_of};

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
        // Registered under a number of its own. Only its readiness is asked for, which tokio's
        // datagram socket offers of any socket that is given to it.
        let channel = self.link.channel().as_fd().try_clone_to_owned()?;
        let channel = std::os::unix::net::UnixDatagram::from(channel);
        channel.set_nonblocking(true)?;
        let channel = UnixDatagram::from_std(channel)?;
        let limit = self.limit.unwrap_or(u32::MAX);
        let taker = self.announce(self.bounded(limit));
        let (sender, receiver) = unbounded_channel();
        let task = tokio::spawn(receive(channel, taker, sender, self.readable));
        Ok(Incoming { receiver, link: self.link, task })
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

/// Takes from the channel until the drain begins.
async fn receive(
    channel: UnixDatagram,
    mut taker: Taker,
    sender: UnboundedSender<Stream>,
    readable: bool,
) {
    // An error here is the runtime's shutdown.
    while channel.readable().await.is_ok() {
        let taken = channel.try_io(Interest::READABLE, || match taker.take()? {
            // Makes tokio wait for the next event.
            Taken::Empty => Err(io::ErrorKind::WouldBlock.into()),
            taken @ (Taken::Connection(_) | Taken::Other | Taken::Full | Taken::Over) => Ok(taken),
        });
        match taken {
            Ok(Taken::Connection(fresh)) => match Stream::new(fresh) {
                Ok(stream) if readable => hold_back(stream, sender.clone()),
                Ok(stream) => drop(sender.send(stream)),
                Err(error) => tell!("closed a descriptor from the master: {error}"),
            },
            Ok(Taken::Other | Taken::Empty) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(Taken::Full) => drop(timeout(FULL_RETRY, taker.link().until_change()).await),
            Ok(Taken::Over) => return,
            Err(error) => {
                tell!("the channel to the master failed: {error}");
                taker.link().drain(Drain::orphaned(now()));
                return;
            }
        }
    }
}

/// Sends the stream on when something can be read from it; closes it when it stays silent until
/// the drain's deadline is near.
fn hold_back(stream: Stream, sender: UnboundedSender<Stream>) {
    tokio::spawn(async move {
        let link = Arc::clone(stream.held.link());
        if either(stream.readable(), patience_end(&link)).await {
            drop(sender.send(stream));
        }
    });
}

/// When silent connections are given up.
async fn patience_end(link: &Link) {
    link.until_drain().await;
    match link.drain_told().and_then(|drain| drain.silent_until) {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for one of two; `true`: it was the first.
async fn either<T>(first: impl Future<Output = T>, second: impl Future<Output = ()>) -> bool {
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

/// A client's connection. Dropping it closes it and makes room for another.
#[derive(Debug)]
pub struct Stream {
    // Closed before `held` is dropped: finished means closed.
    socket: Socket,
    listener: Arc<str>,
    held: Held,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn new(fresh: Fresh) -> io::Result<Stream> {
        let Fresh { socket, listener, held } = fresh;
        let socket = match family_of(socket.as_fd())? {
            Family::Tcp => {
                let stream = std::net::TcpStream::from(socket);
                stream.set_nonblocking(true)?;
                Socket::Tcp(TcpStream::from_std(stream)?)
            }
            Family::Unix => {
                let stream = std::os::unix::net::UnixStream::from(socket);
                stream.set_nonblocking(true)?;
                Socket::Unix(UnixStream::from_std(stream)?)
            }
        };
        Ok(Stream { socket, listener, held })
    }

    /// The name of the listener that accepted it.
    #[must_use]
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// The client's address.
    ///
    /// # Errors
    /// `NotConnected` when the client has gone already, else those of `getpeername(2)`.
    pub fn peer(&self) -> io::Result<Address> {
        match &self.socket {
            Socket::Tcp(stream) => stream.peer_addr().map(Address::Tcp),
            Socket::Unix(stream) => stream.peer_addr().map(|it| Address::of_unix(&it.into())),
        }
    }

    /// The address at which it arrived.
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub fn local(&self) -> io::Result<Address> {
        match &self.socket {
            Socket::Tcp(stream) => stream.local_addr().map(Address::Tcp),
            Socket::Unix(stream) => stream.local_addr().map(|it| Address::of_unix(&it.into())),
        }
    }

    /// Whether the worker was told to finish what it has in hand.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.held.link().drain_told().is_some()
    }

    /// Waits until there are bytes to read, or the end.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(stream) => stream.readable().await,
            Socket::Unix(stream) => stream.readable().await,
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let result = match &mut this.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        if result.is_ready() {
            this.held.note_read(buffer.filled().len() - before);
        }
        result
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.held.note_write();
        match &mut this.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
