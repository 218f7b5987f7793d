//! Native workers: programs that use the worker library.
//!
//! The worker inherits its end of the channel and the pool's scoreboard, and learns their numbers
//! from its environment. Ctrl-C and `systemctl kill` reach the whole group of processes; the
//! signals that mean something to the master only are therefore ignored in workers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::sys::signal::Signal;

use super::{Start, Worker};
use crate::supervisor::{ConnectionId, WorkerId};
use crate::sys::ancillary::{Received, Sender, look, number_of, receive, send, send_with, skip};
use crate::sys::process::Process;
use crate::wire::channel;
use crate::wire::message::{CONNECTIONS_MAX, LENGTH_MAX, Past, Ready, ToMaster, ToWorker, Token};
use crate::wire::scoreboard::STRIDE;
use crate::wire::{CHANNEL_VARIABLE, LEDGER_VARIABLE, SCOREBOARD_VARIABLE, SEAT_VARIABLE};

/// Signals that are the master's business.
const IGNORED: [Signal; 3] = [Signal::SIGUSR1, Signal::SIGINT, Signal::SIGHUP];

/// Messages that an answer to ASK may take.
pub(crate) const ANSWERS_MAX: usize = CONNECTIONS_MAX + 1;

/// The master's end of a native worker's channel, and what goes with it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) channel: Sender,
    /// A duplicate of the worker's end: the queue outlives the worker, and can be read back.
    pub(crate) theirs: OwnedFd,
    /// By which the next master knows it, should this one be killed.
    pub(crate) token: Option<Token>,
    /// It hands connections back.
    pub(crate) hands_back: bool,
    /// It says what it holds when it is asked.
    pub(crate) tells: bool,
    /// It was told where to accept.
    pub(crate) accepts: bool,
    /// How many HOLDINGs it may still say.
    pub(crate) owed: usize,
    /// The connection in our hand that is still at the head of its channel.
    pub(crate) head: Option<ConnectionId>,
    /// What it hands back is looked at when this one has come, or is gone.
    pub(crate) awaits: Option<WorkerId>,
    /// There was no descriptor for what it hands back: until then it is left alone.
    pub(crate) rests_until: Option<Instant>,
    /// Connections that it was sent, less those that were read back.
    pub(crate) sent: u64,
    /// Connections that were read back.
    pub(crate) read_back: u64,
    /// What was read back and is no connection: it is sent once more.
    aside: Vec<Other>,
    /// It was told how to find the next master.
    pub(crate) is_welcomed: bool,
    /// The read end of its output, by the name under which it is to keep it for the next master;
    /// until it is welcomed.
    pub(crate) log: Option<(String, OwnedFd)>,
}

/// Whose queue is read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// A worker's that is gone: all that is there.
    OfDead,
    /// A worker's that lives: one connection, so that there is never more than one in our hand.
    OfLiving,
}

/// What there is to hear from a worker.
pub(crate) enum Heard {
    /// With the descriptors that came along.
    Message(ToMaster, Descriptors),
    Nothing,
    /// It has shut the channel down, or sent an empty message, which says the same. Its death is
    /// never heard here: the duplicate of its end keeps the channel open.
    End,
}

/// What comes along with a message.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    pub(crate) socket: Option<OwnedFd>,
    /// A memfd with what a worker has read and not used.
    pub(crate) leftover: Option<OwnedFd>,
    /// One of them got lost, for want of a free descriptor.
    pub(crate) swallowed: bool,
}

/// A client's connection on its way from worker to worker.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: OwnedFd,
    /// `None`: no worker has received it yet.
    pub(crate) past: Option<Past>,
    pub(crate) leftover: Option<OwnedFd>,
}

/// Why a worker that says READY like this is of no use. `must_accept`: it is to accept by itself.
pub(crate) fn unfit(ready: &Ready, must_accept: bool) -> Option<String> {
    let Ready { stride, accepts, .. } = *ready;
    // Zero: the worker did not say.
    if stride != 0 && stride != STRIDE as u32 {
        return Some(format!(
            "counts on a scoreboard of stride {stride}, this master's is {STRIDE}: build it with the \
             worker library of this version"
        ));
    }
    let why = "does not know how to accept by itself: build it with the worker library of this version, \
               or write accept = \"master\"";
    (must_accept && !accepts).then(|| why.to_owned())
}

/// Starts a worker.
///
/// # Errors
/// Those of the system calls; `NotFound` when the program is missing.
pub(super) fn start(mut start: Start<'_>) -> io::Result<Worker> {
    let (who, words) = (start.who, start.words.clone());
    let (ours, theirs) = channel::pair()?;
    let inherited = theirs.try_clone()?;
    let board = start.board.as_fd().try_clone_to_owned()?;
    start
        .command
        .env(CHANNEL_VARIABLE, number_of(&inherited).to_string())
        .env(SCOREBOARD_VARIABLE, number_of(&board).to_string())
        .env(SEAT_VARIABLE, start.seat.0.to_string())
        .env_remove(LEDGER_VARIABLE);
    if let Some(ledger) = start.ledger.take() {
        let memory = ledger.as_fd().try_clone_to_owned()?;
        start.command.env(LEDGER_VARIABLE, number_of(&memory).to_string());
        start.keep.push(memory);
    }
    start.keep.extend([inherited, board]);
    let (command, mut preparation) = start.prepare();
    preparation.ignore = IGNORED.to_vec();
    let process = Process::start(command, preparation)?;
    Ok(Worker::new(who, process, words, super::Link::Native(Link::new(ours, theirs)?)))
}

impl Link {
    /// Our end of its channel, and a duplicate of the worker's.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub(crate) fn new(ours: OwnedFd, theirs: OwnedFd) -> io::Result<Link> {
        Ok(Link {
            channel: Sender::new(ours)?,
            theirs,
            token: None,
            hands_back: false,
            tells: false,
            accepts: false,
            // Another image may have asked it.
            owed: ANSWERS_MAX,
            head: None,
            awaits: None,
            rests_until: None,
            sent: 0,
            read_back: 0,
            aside: Vec::new(),
            is_welcomed: false,
            log: None,
        })
    }

    /// The next message of the worker.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`, or `InvalidData` for what is no message.
    pub(crate) fn hear(&self) -> io::Result<Heard> {
        self.hear_by(receive)
    }

    /// The same, and it stays in the channel.
    ///
    /// # Errors
    /// As [`Link::hear`].
    pub(crate) fn look(&self) -> io::Result<Heard> {
        self.hear_by(look)
    }

    /// Takes the next message out of the channel, unheard.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub(crate) fn skip(&self) -> io::Result<()> {
        skip(self.channel.as_fd())
    }

    fn hear_by(
        &self,
        take: fn(BorrowedFd<'_>, &mut [u8]) -> io::Result<Received>,
    ) -> io::Result<Heard> {
        let mut buffer = [0; LENGTH_MAX];
        match take(self.channel.as_fd(), &mut buffer)? {
            Received::Message { len, descriptor, second, swallowed, .. } => {
                let descriptors = Descriptors { socket: descriptor, leftover: second, swallowed };
                ToMaster::decode(&buffer[..len])
                    .map(|message| Heard::Message(message, descriptors))
                    .map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong.to_string()))
            }
            Received::Empty => Ok(Heard::Nothing),
            Received::Closed => Ok(Heard::End),
        }
    }

    /// Sends the worker a connection, as `message` says.
    ///
    /// # Errors
    /// Those of [`Sender::send`].
    pub(crate) fn send_connection(
        &mut self,
        message: &[u8],
        socket: BorrowedFd<'_>,
        leftover: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        self.channel.send(message, socket, leftover)?;
        self.sent += 1;
        Ok(())
    }

    /// Tells the worker something that carries no descriptor.
    ///
    /// # Errors
    /// `WouldBlock` when its queue is full, else those of `send(2)`.
    pub(crate) fn tell(&self, message: &ToWorker<'_>) -> io::Result<()> {
        send(self.channel.as_fd(), &message.encode())
    }

    /// Has it accept from this socket, beside those who hear this bell.
    ///
    /// # Errors
    /// As [`Link::tell`].
    pub(crate) fn let_accept(
        &self,
        listener: &str,
        limit: u32,
        socket: BorrowedFd<'_>,
        bell: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let message = ToWorker::Listen { listener, limit }.encode();
        send_with(self.channel.as_fd(), &message, socket, Some(bell))
    }

    /// Has it keep what comes along for the next master.
    ///
    /// # Errors
    /// As [`Link::tell`].
    pub(crate) fn entrust(&self, key: &str, what: BorrowedFd<'_>) -> io::Result<()> {
        send_with(self.channel.as_fd(), &ToWorker::Keep { key }.encode(), what, None)
    }

    /// Reads back what the worker has not received: all of it, or the first connection. As long as
    /// it lives, what there is no descriptor for stays in its queue; and [`Link::end_read_back`] is to
    /// follow.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`.
    pub(crate) fn take_back(&mut self, queue: Queue) -> io::Result<TakenBack> {
        let mut taken = TakenBack::default();
        while queue == Queue::OfDead || taken.connections.is_empty() {
            if !self.take_one_back(queue, &mut taken)? {
                break;
            }
        }
        Ok(taken)
    }

    /// Sends once more what was read back of a living worker's queue and is no connection.
    ///
    /// # Errors
    /// Those of `sendmsg(2)`.
    pub(crate) fn end_read_back(&mut self) -> io::Result<()> {
        for Other { bytes, first, second } in std::mem::take(&mut self.aside) {
            match first {
                None => send(self.channel.as_fd(), &bytes)?,
                Some(first) => {
                    let second = second.as_ref().map(AsFd::as_fd);
                    send_with(self.channel.as_fd(), &bytes, first.as_fd(), second)?;
                }
            }
        }
        Ok(())
    }

    /// Whether there was a message.
    fn take_one_back(&mut self, queue: Queue, taken: &mut TakenBack) -> io::Result<bool> {
        let mut buffer = [0; LENGTH_MAX];
        if queue == Queue::OfLiving && self.theirs.try_clone().is_err() {
            return Ok(false);
        }
        let (len, socket, leftover, swallowed) = match receive(self.theirs.as_fd(), &mut buffer)? {
            Received::Message { len, descriptor, second, swallowed, .. } => {
                (len, descriptor, second, swallowed)
            }
            Received::Empty | Received::Closed => return Ok(false),
        };
        // Without its leftover, a connection's stream has a hole.
        let socket = socket.filter(|_| !swallowed);
        // The master wrote it, so it is one.
        let message = ToWorker::decode(&buffer[..len]);
        if matches!(message, Ok(ToWorker::Connection { .. })) {
            self.sent = self.sent.saturating_sub(1);
            self.read_back += 1;
        }
        taken.lost += u64::from(swallowed);
        match (message, socket) {
            (Ok(ToWorker::Connection { listener, past, entry }), Some(socket)) => {
                let client = Client { socket, past, leftover };
                taken.connections.push((listener.to_owned(), client, entry));
            }
            (Ok(ToWorker::Ping), _) => taken.had_ping = true,
            (Ok(_), first) if queue == Queue::OfLiving => {
                let bytes = buffer[..len].to_vec();
                self.aside.push(Other { bytes, first, second: leftover });
            }
            _ => {}
        }
        Ok(true)
    }
}

/// A message that is no connection, with its descriptors.
#[derive(Debug)]
struct Other {
    bytes: Vec<u8>,
    first: Option<OwnedFd>,
    second: Option<OwnedFd>,
}

/// What came back from a worker's queue.
#[derive(Debug, Default)]
pub(crate) struct TakenBack {
    /// Connections with their listeners' names and their entries in the ledger, oldest first.
    pub(crate) connections: Vec<(String, Client, Option<u32>)>,
    /// Connections that the kernel swallowed because our table is full.
    pub(crate) lost: u64,
    /// A PING was among it.
    pub(crate) had_ping: bool,
}
