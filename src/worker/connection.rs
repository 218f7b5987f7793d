//! A client's connection, owned by whoever answers it.
//!
//! Owning it is counting it: the master sends no more than the worker announced to hold, and
//! dropping the connection gives the place back. It reads and writes like the socket that it is.
//!
//! A server of many requests per connection asks [`Connection::wait`] between two requests; that is
//! where a drain ends it, and the only place where it can end without losing a request that has
//! been read. There, and nowhere else, it can be handed back: another worker goes on with it, and the
//! client notices nothing ([`Connection::hand_back`]). A request is counted when bytes are read first, and again when bytes are read after
//! a write: right for protocols of question and answer, a fair guess for others.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::address::Address;
use super::handback::{Kept, Leftover, Parcel};
use super::held::Held;
use super::plain::Plain;
use super::taker::{Fresh, instant_of, now};
use crate::sys::socket::{Open, Peeked, await_bytes, peek, wait_readable};

/// A client's connection. Dropping it closes it and makes room for another. A duplicate of its descriptor
/// may or may not outlive it.
///
/// A socket that is closed while bytes of the client lie unread in it is *reset* by the kernel, and
/// a reset may overtake the answer. Who answers without having read everything shuts down writing
/// first ([`Connection::shutdown`]), then reads until the end, within bounds.
#[derive(Debug)]
pub struct Connection {
    // Closed before `held` is dropped: finished means closed.
    socket: Open<Plain>,
    listener: Arc<str>,
    leftover: Leftover,
    /// An attempt to hand it back failed.
    is_kept: bool,
    held: Held,
}

/// What came while a connection was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// There are bytes to read.
    Bytes,
    /// The client has closed or reset it.
    Closed,
    /// The worker is draining and the client has asked nothing: hand it back, or close it.
    Draining,
}

impl Connection {
    pub(super) fn new(fresh: Fresh) -> io::Result<Connection> {
        let Fresh { socket, listener, leftover, origin, held } = fresh;
        let is_handed_back = held.is_handed_back();
        let socket = Plain::open(socket, origin)?;
        let leftover = Leftover::new(leftover);
        let connection = Connection { socket, listener, leftover, is_kept: false, held };
        if is_handed_back {
            // The bounds of its last owner travel, too.
            connection.set_read_timeout(None)?;
            connection.set_write_timeout(None)?;
        }
        Ok(connection)
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
        self.socket.peer()
    }

    /// The address at which it arrived.
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub fn local(&self) -> io::Result<Address> {
        self.socket.local()
    }

    /// The TCP port at which it arrived.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.local().ok().and_then(|address| address.port())
    }

    /// Whether the worker was told to finish what it has in hand: answer, and say that this was
    /// the last answer, where the protocol can say so; or hand it back after the answer, if
    /// [`Connection::can_hand_back`].
    #[must_use]
    pub fn draining(&self) -> bool {
        self.held.link().drain_told().is_some()
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

    /// Whether [`Connection::hand_back`] may be called now: the worker is draining, the master
    /// gives connections to other workers, and no attempt with this one has failed.
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
    /// ```no_run
    /// # use std::io::{Read, Write};
    /// # use rcluster::worker::{Connection, Wait};
    /// fn capitals(mut connection: Connection) -> std::io::Result<()> {
    ///     let mut byte = [0];
    ///     loop {
    ///         match connection.wait_to_hand_back()? {
    ///             Wait::Bytes => {}
    ///             Wait::Closed => return Ok(()),
    ///             Wait::Draining if !connection.can_hand_back() => return Ok(()),
    ///             Wait::Draining => match connection.hand_back(b"") {
    ///                 Ok(()) => return Ok(()),
    ///                 Err(kept) => {
    ///                     connection = kept.connection;
    ///                     continue;
    ///                 }
    ///             },
    ///         }
    ///         connection.read_exact(&mut byte)?;
    ///         connection.write_all(&byte.map(|byte| byte.to_ascii_uppercase()))?;
    ///     }
    /// }
    /// ```
    ///
    /// Waits while the master's queue is full, until shortly before the drain's deadline.
    ///
    /// # Errors
    /// [`Kept`] has the connection, to be served on, and says why it stays.
    pub fn hand_back(mut self, leftover: &[u8]) -> Result<(), Kept<Connection>> {
        let all = [leftover, &self.leftover.take()].concat();
        let parcel = Parcel::new(&self.held, &self.listener, &all);
        match parcel.and_then(|parcel| parcel.give(self.held.link(), self.as_fd())) {
            Ok(()) => {
                self.socket.give_away();
                self.held.give_away();
                Ok(())
            }
            Err(why) => {
                self.leftover = Leftover::new(all);
                self.is_kept = true;
                Err(Kept { connection: self, why })
            }
        }
    }

    /// Asks the master to replace this worker.
    pub fn retire(&self) {
        self.held.link().retire();
    }

    /// Shuts down reading, writing or both.
    ///
    /// # Errors
    /// Those of `shutdown(2)`.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match how {
            Shutdown::Write | Shutdown::Both => self.held.mark().before_write(),
            Shutdown::Read => {}
        }
        self.socket.shutdown(how)
    }

    /// Bounds every read and every [`Connection::wait`]; `None`: they wait as long as it takes.
    ///
    /// # Errors
    /// `InvalidInput` for a bound of zero.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(limit)
    }

    /// Bounds every write.
    ///
    /// # Errors
    /// `InvalidInput` for a bound of zero.
    pub fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.socket.set_write_timeout(limit)
    }

    /// Waits between two requests for the next one. Only ask when everything read so far has been
    /// dealt with: bytes in a buffer of your own are not seen here.
    ///
    /// A connection that has not sent a byte yet is waited for even while draining, since its
    /// first request may be on the way; until shortly before the drain's deadline, or ten seconds
    /// when the master is dead. Bytes that are there always go before [`Wait::Draining`].
    ///
    /// # Errors
    /// `TimedOut` when the bound of [`Connection::set_read_timeout`] has passed, else those of
    /// `poll(2)` and `recv(2)`.
    pub fn wait(&self) -> io::Result<Wait> {
        self.held.during(|| self.wait_for_next(false))
    }

    /// Waits as [`Connection::wait`] does, for those who hand back: [`Wait::Draining`] comes at
    /// once, also for a client that has not sent a byte yet, if [`Connection::can_hand_back`].
    ///
    /// # Errors
    /// As [`Connection::wait`].
    pub fn wait_to_hand_back(&self) -> io::Result<Wait> {
        self.held.during(|| self.wait_for_next(true))
    }

    fn wait_for_next(&self, hands_back: bool) -> io::Result<Wait> {
        let idle = self.socket.read_timeout()?;
        // Idle in another worker is idle, too.
        let is_new_here = self.held.is_handed_back() && !self.held.is_used();
        let idle_from = if is_new_here { self.idle_since() } else { now() };
        let idle_until = idle.and_then(|idle| idle_from.checked_add(idle));
        loop {
            if self.leftover.is_there() {
                return Ok(Wait::Bytes);
            }
            // The drain before the socket: a request that came first is then always seen.
            let drain = self.held.link().drain_told();
            match peek(self.as_fd())? {
                Peeked::Bytes => return Ok(Wait::Bytes),
                Peeked::End => return Ok(Wait::Closed),
                Peeked::Nothing => {}
            }
            let now = now();
            let drained_at = match drain {
                Some(_) if self.held.is_touched() => return Ok(Wait::Draining),
                Some(_) if hands_back && self.can_hand_back() => return Ok(Wait::Draining),
                Some(drain) => drain.silent_until,
                None => None,
            };
            if drained_at.is_some_and(|at| at <= now) {
                return Ok(Wait::Draining);
            }
            if idle_until.is_some_and(|at| at <= now) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let next = [drained_at, idle_until].into_iter().flatten().min();
            let limit = next.map(|at| at.saturating_duration_since(now));
            match drain {
                // The bell rings on; it would end every wait.
                Some(_) => wait_readable(&[self.as_fd()], limit)?,
                None => wait_readable(&[self.as_fd(), self.held.link().bell()], limit)?,
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.held.facts().withdraw();
    }
}

/// The socket itself. Who reads from it by other means than [`Read`] misses what a previous worker
/// left over.
impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for &Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mark = self.held.mark();
        if self.leftover.is_there() {
            // There it stays, since nothing says that another thread does not read as well.
            let _ = mark.before_read();
        }
        if let Some(count) = self.leftover.read(buffer) {
            self.held.note_read(count);
            return Ok(count);
        }
        if mark.is_there() && !buffer.is_empty() {
            // Waits as the read would, for as long.
            await_bytes(self.as_fd())?;
            let _ = mark.before_read();
        }
        let result = self.socket.read(buffer);
        if let Ok(count) = result {
            self.held.note_read(count);
        }
        result
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.held.note_write();
        self.held.mark().before_write();
        let written = self.socket.write_vectored(slices);
        written.inspect(|&count| self.held.mark().wrote(count))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
