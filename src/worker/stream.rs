//! A client's connection as a tokio stream.
//!
//! Owning it is counting it, as with [`Connection`](super::Connection). What a previous worker left
//! over is read first. A request is counted as there: when bytes are read first, and again when
//! bytes are read after a write.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::address::Address;
use super::handback::{Kept, Parcel};
use super::held::Held;
#[cfg(feature = "serve")]
use super::ledger::Tail;
use super::link::Link;
#[cfg(feature = "serve")]
use super::serve::tracker::Tracker;
use super::socket::Socket;
use super::taker::{Fresh, instant_of};
#[cfg(feature = "axum")]
use super::tell::tell;
use crate::sys::socket::Open;

/// A client's connection. Dropping it closes it and makes room for another.
#[derive(Debug)]
pub struct Stream {
    // Closed before `held` is dropped: finished means closed.
    socket: Open<Socket>,
    listener: Arc<str>,
    leftover: Leftover,
    /// An attempt to hand it back failed.
    is_kept: bool,
    /// The next write is the rest of an answer.
    #[cfg(feature = "serve")]
    tail: Option<Tail>,
    held: Arc<Held>,
}

/// What a previous owner left over, as far as it is not read yet.
#[derive(Debug, Default)]
struct Leftover {
    bytes: Vec<u8>,
    /// How much of it is read.
    read: usize,
}

impl Leftover {
    fn unread(&self) -> &[u8] {
        &self.bytes[self.read..]
    }

    fn read(&mut self, buffer: &mut ReadBuf<'_>) {
        let count = self.unread().len().min(buffer.remaining());
        buffer.put_slice(&self.bytes[self.read..self.read + count]);
        self.read += count;
        if self.unread().is_empty() {
            *self = Leftover::default();
        }
    }
}

impl Stream {
    pub(super) fn new(fresh: Fresh) -> io::Result<Stream> {
        let Fresh { socket, listener, leftover, held, .. } = fresh;
        let socket = Socket::new(socket)?;
        let leftover = Leftover { bytes: leftover, read: 0 };
        Ok(Stream {
            socket: Open::new(socket),
            listener,
            leftover,
            is_kept: false,
            #[cfg(feature = "serve")]
            tail: None,
            held: Arc::new(held),
        })
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        self.held.link()
    }

    /// The next read begins with `bytes`, before what was left over.
    pub(super) fn read_again(&mut self, bytes: &[u8]) {
        self.leftover = Leftover { bytes: [bytes, self.leftover.unread()].concat(), read: 0 };
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
        match &*self.socket {
            Socket::Tcp(stream) => stream.peer_addr().map(Address::Tcp),
            Socket::Unix(stream) => stream.peer_addr().map(|it| Address::of_unix(&it.into())),
        }
    }

    /// The address at which it arrived.
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub fn local(&self) -> io::Result<Address> {
        match &*self.socket {
            Socket::Tcp(stream) => stream.local_addr().map(Address::Tcp),
            Socket::Unix(stream) => stream.local_addr().map(|it| Address::of_unix(&it.into())),
        }
    }

    /// Whether the worker was told to finish what it has in hand.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.held.link().drain_told().is_some()
    }

    /// Waits until the worker is told to finish what it has in hand. For connections that were
    /// upgraded and have no boundary of their own: time to say good-bye.
    pub async fn until_draining(&self) {
        self.held.link().until_drain().await;
    }

    /// Whether another worker had this connection before and handed it back: a greeting, for
    /// example, has been said already.
    #[must_use]
    pub fn handed_back(&self) -> bool {
        self.held.is_handed_back()
    }

    /// How many requests it has made so far, in all the workers that had it.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.held.requests()
    }

    /// When something was written to it last, or when it was first taken if nothing was, by
    /// whichever worker had it.
    #[must_use]
    pub fn idle_since(&self) -> Instant {
        instant_of(self.held.idle_since())
    }

    /// Whether [`Stream::hand_back`] may be called now: the worker is draining, the master gives
    /// connections to other workers, and no attempt with this one has failed.
    #[must_use]
    pub fn can_hand_back(&self) -> bool {
        !self.is_kept && self.held.is_wanted_back()
    }

    /// Gives the connection to another worker, through the master. Its client notices nothing.
    ///
    /// Only call it where the next owner can begin anew: every request that was read is answered,
    /// and what is known of the client (that it has logged in, for example) is not needed any more.
    /// `leftover` is what has been read and not used, in part or whole the next request; the next
    /// owner reads it first.
    ///
    /// Waits while the master's queue is full, until shortly before the drain's deadline. When the
    /// future is dropped before it is done, the connection is closed.
    ///
    /// # Errors
    /// [`Kept`] has the stream, to be served on, and says why it stays.
    pub async fn hand_back(mut self, leftover: &[u8]) -> Result<(), Kept<Stream>> {
        self.read_again(leftover);
        let parcel = Parcel::new(&self.held, &self.listener, self.leftover.unread());
        let given = match parcel {
            Ok(parcel) => parcel.give_async(self.held.link(), self.socket.as_fd()).await,
            Err(why) => Err(why),
        };
        match given {
            Ok(()) => {
                self.socket.give_away();
                self.held.give_away();
                Ok(())
            }
            Err(why) => {
                self.is_kept = true;
                Err(Kept { connection: self, why })
            }
        }
    }

    /// Lets it go to another worker, though its owner still holds it, and will only drop it.
    /// Closed, for everybody, if it cannot.
    #[cfg(feature = "axum")]
    pub(super) fn leave(&mut self, leftover: &[u8]) -> io::Result<Leaving> {
        self.read_again(leftover);
        let parcel = Parcel::new(&self.held, &self.listener, self.leftover.unread())?;
        let socket = Open::new(self.socket.as_fd().try_clone_to_owned()?);
        self.socket.give_away();
        Ok(Leaving { socket, parcel, held: Arc::clone(&self.held) })
    }

    /// Waits until there are bytes to read, or the end.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn readable(&self) -> io::Result<()> {
        if !self.leftover.unread().is_empty() {
            return Ok(());
        }
        match &*self.socket {
            Socket::Tcp(stream) => stream.readable().await,
            Socket::Unix(stream) => stream.readable().await,
        }
    }
}

#[cfg(not(feature = "serve"))]
impl Stream {
    fn note_write(&mut self) {
        self.held.note_write();
        self.held.mark().before_write();
    }
}

/// What those need who serve it and know its requests.
#[cfg(feature = "serve")]
impl Stream {
    pub(super) fn is_kept(&self) -> bool {
        self.is_kept
    }

    pub(super) fn listener_shared(&self) -> Arc<str> {
        Arc::clone(&self.listener)
    }

    /// Its requests are counted by whoever serves it, not guessed from reads and writes.
    pub(super) fn count_by_hand(&self) {
        self.held.count_by_hand();
    }

    /// A server runs it that is watched.
    pub(super) fn attach(&self, tracker: &Arc<Tracker>) {
        self.held.facts().attach(tracker);
    }

    /// The server has let it go, after so many requests.
    pub(super) fn detach(&self, requests: u64) {
        self.held.facts().detach(requests);
    }

    /// What is spoken is HTTP/1: who is not answered can be told so.
    pub(super) fn speak_http(&self) {
        self.held.mark().set_http();
    }

    /// `slices` are written next: the rest of an answer, or that is not known.
    pub(super) fn announce_rest(&mut self, tracker: &Tracker, slices: &[IoSlice<'_>]) {
        let mark = self.held.mark();
        self.tail = if mark.is_there() { tracker.tail(mark.written(), slices) } else { None };
    }

    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    /// Bytes of a previous worker, or that were given back to be read again.
    pub(super) fn has_leftover(&self) -> bool {
        !self.leftover.unread().is_empty()
    }

    fn note_write(&mut self) {
        self.held.note_write();
        match self.tail.take() {
            Some(tail) => self.held.mark().before_tail(tail),
            None => self.held.mark().before_write(),
        }
    }
}

/// A connection on its way to another worker.
#[cfg(feature = "axum")]
pub(super) struct Leaving {
    // Closed before `held` is dropped: finished means closed.
    socket: Open<std::os::fd::OwnedFd>,
    parcel: Parcel,
    held: Arc<Held>,
}

#[cfg(feature = "axum")]
impl Leaving {
    pub(super) async fn go(mut self) {
        match self.parcel.give_async(self.held.link(), self.socket.as_fd()).await {
            Ok(()) => {
                self.socket.give_away();
                self.held.give_away();
            }
            Err(why) => tell!("closed an idle connection that was to be handed back: {why}"),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.held.facts().withdraw();
    }
}

/// The socket itself. Who reads from it by other means than [`AsyncRead`] misses what a previous
/// worker left over.
impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
        let mark = this.held.mark();
        if !this.leftover.unread().is_empty() {
            let _ = mark.before_read();
            this.leftover.read(buffer);
            this.held.note_read(buffer.filled().len() - before);
            return Poll::Ready(Ok(()));
        }
        let result = if mark.is_there() {
            // Nobody reads before there is something.
            match this.socket.poll_read_ready(context) {
                Poll::Ready(Ok(())) => {}
                other @ (Poll::Ready(Err(_)) | Poll::Pending) => return other,
            }
            let state = mark.before_read();
            let result = this.socket.poll_read(context, buffer);
            if buffer.filled().len() == before {
                mark.read_nothing(state);
            }
            result
        } else {
            this.socket.poll_read(context, buffer)
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
        this.note_write();
        this.socket.poll_write(context, slices).map_ok(|count| {
            this.held.mark().wrote(count);
            count
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.held.mark().before_write();
        self.get_mut().socket.poll_shutdown(context)
    }
}
