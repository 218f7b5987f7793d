//! A fake master in the test's own process: it holds the other end of the channel, a duplicate of
//! the worker's end (as the real one does) and the board, and does what it is told.

#[cfg(feature = "daemon")]
mod accepting;
#[cfg(feature = "daemon")]
mod adoption;
#[cfg(feature = "tokio")]
mod asynchronous;
mod blocking;
#[cfg(feature = "axum")]
mod fuzz;
mod handback;
mod holding;
#[cfg(feature = "axum")]
mod ledger;
#[cfg(feature = "axum")]
mod listener;
#[cfg(feature = "daemon")]
mod process;
#[cfg(feature = "axum")]
mod serve;
mod table;

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::{Place, Worker};
use crate::sys::leftover::{pack, unpack};
use crate::sys::socket::wait_readable;
use crate::wire::channel::{End, Received, pair};
use crate::wire::ledger::Ledger;
use crate::wire::message::{LENGTH_MAX, Past, Ready, ToMaster, ToWorker};
use crate::wire::scoreboard::{Counts, Scoreboard, SeatWords};

/// Longer than anything here takes; a test that waits this long has failed.
pub const LONG: Duration = Duration::from_secs(20);

pub struct Master {
    end: End,
    duplicate: OwnedFd,
    board: Scoreboard,
    pub seat: SeatWords,
    listener: TcpListener,
}

const SEAT: u32 = 7;

/// What a worker said.
#[cfg(feature = "axum")]
pub enum Heard {
    Returned(Returned),
    Said(ToMaster),
}

/// A connection that a worker has handed back.
#[derive(Debug)]
pub struct Returned {
    pub listener: String,
    pub past: Past,
    pub socket: OwnedFd,
    pub leftover: Vec<u8>,
}

impl Returned {
    pub fn new(listener: String, past: Past, socket: OwnedFd, packed: Option<OwnedFd>) -> Returned {
        assert_eq!(packed.is_some(), past.leftover > 0);
        let leftover = packed.map(|packed| unpack(packed, past.leftover as usize).unwrap());
        Returned { listener, past, socket, leftover: leftover.unwrap_or_default() }
    }
}

/// A worker and its master; the worker has not said READY yet.
pub fn cluster() -> (Master, Worker) {
    cluster_with_request_limit(0)
}

pub fn cluster_with_request_limit(limit: u64) -> (Master, Worker) {
    let (master, channel) = Master::new(limit);
    let board = Scoreboard::open(master.board.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let place = Place { pool: "web".into(), slot: 1, generation: 3 };
    (master, Worker::new(End::new(channel), &board, SEAT, place, None).unwrap())
}

/// The same, with a ledger.
pub fn cluster_with_ledger() -> (Master, Worker, Ledger) {
    let (master, channel) = Master::new(0);
    let copy = |source: BorrowedFd<'_>| source.try_clone_to_owned().unwrap();
    let board = Scoreboard::open(copy(master.board.as_fd())).unwrap();
    let place = Place { pool: "web".into(), slot: 1, generation: 3 };
    let ledger = Ledger::create().unwrap();
    let theirs = Some(Ledger::open(copy(ledger.as_fd())).unwrap());
    let worker = Worker::new(End::new(channel), &board, SEAT, place, theirs).unwrap();
    (master, worker, ledger)
}

impl Master {
    pub fn new(request_limit: u64) -> (Master, OwnedFd) {
        let (end, channel) = pair().unwrap();
        let board = Scoreboard::create().unwrap();
        let seat = board.seat(SEAT).unwrap();
        seat.clear(request_limit);
        let master = Master {
            end: End::new(end),
            duplicate: channel.try_clone().unwrap(),
            board,
            seat,
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
        };
        (master, channel)
    }

    /// Another seat of the pool.
    pub fn sibling(&self) -> SeatWords {
        self.board.set_siblings(&[SEAT, SEAT + 1]);
        self.board.seat(SEAT + 1).unwrap()
    }

    pub fn say(&self, message: &ToWorker<'_>) {
        self.say_bytes(&message.encode());
    }

    pub fn say_bytes(&self, bytes: &[u8]) {
        self.end.send(bytes).unwrap();
    }

    /// A drain that takes connections back.
    pub fn drain_to_others(&self, deadline: Duration) {
        self.say(&ToWorker::Drain { deadline, handback: true });
    }

    /// The next message, which hands a connection back. Its leftover is unpacked.
    pub fn hear_handback(&self) -> Returned {
        loop {
            let mut buffer = [0; LENGTH_MAX];
            match self.end.receive(&mut buffer).unwrap() {
                Received::Message { len, descriptor, second, .. } => {
                    match ToMaster::decode(&buffer[..len]).unwrap() {
                        ToMaster::Room => {}
                        ToMaster::Handback { listener, past, .. } => {
                            return Returned::new(listener, past, descriptor.unwrap(), second);
                        }
                        other @ (ToMaster::Ready(_)
                        | ToMaster::Drained
                        | ToMaster::Retire
                        | ToMaster::Hello { .. }
                        | ToMaster::Keep { .. }
                        | ToMaster::Holding(_)
                        | ToMaster::Unknown(_)) => panic!("{other:?}"),
                    }
                }
                Received::Empty => {
                    wait_readable(&[self.end.as_fd()], Some(LONG)).unwrap();
                    assert!(readable(self.end.as_fd()), "nothing is handed back");
                }
                Received::Closed => panic!("the worker is gone"),
            }
        }
    }

    /// Gives a connection that was handed back to this master's worker.
    pub fn pass_on(&self, returned: &Returned) {
        let Returned { listener, past, socket, leftover } = returned;
        let message = ToWorker::Connection { listener, past: Some(*past), entry: None }.encode();
        let packed = (!leftover.is_empty()).then(|| pack(leftover).unwrap());
        let packed = packed.as_ref().map(AsFd::as_fd);
        self.end.send_with(&message, socket.as_fd(), packed).unwrap();
    }

    pub fn drain(&self, deadline: Duration) {
        self.say(&ToWorker::Drain { deadline, handback: false });
    }

    pub fn pass(&self, message: &[u8], descriptor: BorrowedFd<'_>) {
        let rights = [descriptor.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&rights)];
        let slices = [IoSlice::new(message)];
        let end = self.end.as_fd().as_raw_fd();
        // Waits while the worker's queue is full.
        sendmsg::<()>(end, &slices, &control, MsgFlags::empty(), None).unwrap();
    }

    /// Connects a client, accepts it as the real master does (non-blocking), passes it on.
    pub fn dispatch(&self) -> TcpStream {
        self.connect_through(self)
    }

    /// The same, with the descriptor passed by another master: one with two listeners.
    pub fn connect_through(&self, other: &Master) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        let (server, _) = self.listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        other.pass(
            &ToWorker::Connection { listener: "web", past: None, entry: None }.encode(),
            server.as_fd(),
        );
        client
    }

    /// The same with an entry in the ledger; answers our copy of the socket, too.
    pub fn dispatch_kept(&self, entry: u32) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        let (server, _) = self.listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let message =
            ToWorker::Connection { listener: "web", past: None, entry: Some(entry) }.encode();
        self.pass(&message, server.as_fd());
        (client, server)
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// Waits for the next message without a thread.
    #[cfg(feature = "axum")]
    pub async fn until_heard(&self) -> Heard {
        let end = self.end.as_fd().try_clone_to_owned().unwrap();
        let end = std::os::unix::net::UnixDatagram::from(end);
        end.set_nonblocking(true).unwrap();
        let end = tokio::net::UnixDatagram::from_std(end).unwrap();
        loop {
            let mut buffer = [0; LENGTH_MAX];
            let received = end.try_io(tokio::io::Interest::READABLE, || {
                match self.end.receive(&mut buffer).unwrap() {
                    Received::Empty => Err(std::io::ErrorKind::WouldBlock.into()),
                    received @ (Received::Message { .. } | Received::Closed) => Ok(received),
                }
            });
            match received {
                Ok(Received::Message { len, descriptor, second, .. }) => {
                    return match ToMaster::decode(&buffer[..len]).unwrap() {
                        ToMaster::Handback { listener, past, .. } => {
                            let socket = descriptor.unwrap();
                            Heard::Returned(Returned::new(listener, past, socket, second))
                        }
                        other @ (ToMaster::Ready(_)
                        | ToMaster::Room
                        | ToMaster::Drained
                        | ToMaster::Retire
                        | ToMaster::Hello { .. }
                        | ToMaster::Keep { .. }
                        | ToMaster::Holding(_)
                        | ToMaster::Unknown(_)) => Heard::Said(other),
                    };
                }
                Ok(Received::Closed | Received::Empty) => panic!("the worker is gone"),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    end.readable().await.unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next message, if one is there.
    pub fn hear_now(&self) -> Option<ToMaster> {
        let mut buffer = [0; LENGTH_MAX];
        match self.end.receive(&mut buffer).unwrap() {
            Received::Message { len, .. } => Some(ToMaster::decode(&buffer[..len]).unwrap()),
            Received::Empty => None,
            Received::Closed => panic!("the worker is gone"),
        }
    }

    /// The next message.
    pub fn hear(&self) -> ToMaster {
        loop {
            if let Some(message) = self.hear_now() {
                return message;
            }
            wait_readable(&[self.end.as_fd()], Some(LONG)).unwrap();
            assert!(readable(self.end.as_fd()), "the worker says nothing");
        }
    }

    pub fn hear_ready(&self) -> u32 {
        let message = self.hear();
        let ToMaster::Ready(Ready { limit, .. }) = message else { panic!("{message:?}") };
        limit
    }

    /// Waits, by the credit handshake, until the counters are as wished. Eats ROOMs.
    pub fn until(&self, wished: impl Fn(Counts) -> bool) -> Counts {
        loop {
            self.seat.set_waiting(true);
            let counts = self.seat.counts();
            if wished(counts) {
                self.seat.set_waiting(false);
                return counts;
            }
            assert_eq!(self.hear(), ToMaster::Room, "at {counts:?}");
        }
    }

    /// Passes on the other end of a Unix pair, which takes no port.
    pub fn dispatch_unix(&self) -> std::os::unix::net::UnixStream {
        let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        server.set_nonblocking(true).unwrap();
        let message = ToWorker::Connection { listener: "web", past: None, entry: None }.encode();
        self.pass(&message, server.as_fd());
        client
    }

    /// Whether the worker's queue towards us takes no further message.
    pub fn is_full(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut end = [PollFd::new(self.duplicate.as_fd(), PollFlags::POLLOUT)];
        poll(&mut end, PollTimeout::ZERO).unwrap() == 0
    }

    /// The next message that is no ROOM.
    pub fn hear_other(&self) -> ToMaster {
        loop {
            let message = self.hear();
            if message != ToMaster::Room {
                return message;
            }
        }
    }

    /// Dies as by SIGKILL: all its descriptors are closed.
    pub fn die(self) {
        drop(self.duplicate);
        drop(self.end);
    }
}

fn readable(source: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    poll(&mut [PollFd::new(source, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() > 0
}

/// Reads a line's worth of bytes.
pub fn read_exact<const N: usize>(mut stream: impl Read) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

pub fn read_all(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Answers every byte by its capital, as a keep-alive protocol: one byte, one request.
pub fn capitals(mut connection: super::Connection) {
    while let Ok(super::Wait::Bytes) = connection.wait() {
        let [byte] = read_exact(&connection);
        connection.write_all(&[byte.to_ascii_uppercase()]).unwrap();
    }
}
