//! A worker of version 1, frozen: written against the bytes that version 1 documents, and against
//! nothing of this package. Programs like it are in the field, so it must never need a change.
//!
//! The test executable is its own worker: the master runs it with the name of the one test that
//! calls [`Channel::from_env`]. In an ordinary run there is no channel, and that test is empty.
//!
//! ```text
//! message   version 1 · type · 0 · 0 · then fields: tag u8, length u8, value (little-endian)
//! board     header 256 bytes: "RCLUSTER" · version u32, stride u32 · seats
//!           seat n at (n + 1) * 256: +0 taken · +8 finished · +16 requests · +24 progress
//!                                    +128 waiting · +136 request limit
//! ```
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unsafe_code, clippy::disallowed_types, reason = "raw bytes and inherited numbers")]

use std::io::{IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, send, sendmsg};

pub const READY: u8 = 1;
pub const CONNECTION: u8 = 2;
pub const ROOM: u8 = 3;
pub const DRAIN: u8 = 4;
pub const DRAINED: u8 = 5;
pub const PING: u8 = 6;
pub const RETIRE: u8 = 7;

const STRIDE: usize = 256;

pub const TAKEN: usize = 0;
pub const FINISHED: usize = 8;
pub const PROGRESS: usize = 24;
const WAITING: usize = 128;

/// What the master left for this process.
#[derive(Clone, Copy)]
pub struct Channel {
    pub number: RawFd,
    board: &'static [u8],
    seat: usize,
}

/// A message as it came.
pub struct Message {
    pub kind: u8,
    pub fields: Vec<u8>,
    pub client: Option<TcpStream>,
}

impl Channel {
    /// `None`: this is no worker.
    pub fn from_env() -> Option<Channel> {
        let number = |name: &str| -> RawFd {
            std::env::var(name).unwrap_or_else(|_| panic!("{name}")).parse().unwrap()
        };
        std::env::var_os("RCLUSTER_CHANNEL")?;
        let seat = usize::try_from(number("RCLUSTER_SEAT")).unwrap();
        // SAFETY: inherited for this purpose, and used by nobody else.
        let memory = unsafe { std::fs::File::from_raw_fd(number("RCLUSTER_SCOREBOARD")) };
        let size = usize::try_from(memory.metadata().unwrap().len()).unwrap();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping of a file of sealed size, never unmapped.
        let board = unsafe {
            let length = size.try_into().unwrap();
            let start = mmap(None, length, access, MapFlags::MAP_SHARED, &memory, 0).unwrap();
            std::slice::from_raw_parts(start.as_ptr().cast::<u8>(), size)
        };
        let channel = Channel { number: number("RCLUSTER_CHANNEL"), board, seat };
        assert_eq!(channel.at(0).load(SeqCst).to_le_bytes(), *b"RCLUSTER", "the board's name");
        assert_eq!(channel.at(8).load(SeqCst) >> 32, STRIDE as u64, "the board's stride");
        Some(channel)
    }

    fn at(&self, offset: usize) -> &AtomicU64 {
        let bytes = &self.board[offset..offset + 8];
        // SAFETY: aligned, inside the mapping, and only ever accessed atomically.
        unsafe { AtomicU64::from_ptr(bytes.as_ptr().cast_mut().cast()) }
    }

    /// A word of our seat.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        self.at((self.seat + 1) * STRIDE + offset)
    }

    /// Sends bytes; whether they went out.
    pub fn say(&self, bytes: &[u8]) -> bool {
        send(self.number, bytes, MsgFlags::MSG_NOSIGNAL).is_ok()
    }

    /// Sends bytes if the queue has room.
    pub fn try_say(&self, bytes: &[u8]) -> bool {
        send(self.number, bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT).is_ok()
    }

    /// Sends bytes with descriptors.
    pub fn say_with(&self, bytes: &[u8], descriptors: &[RawFd]) {
        let slices = [std::io::IoSlice::new(bytes)];
        let rights = [ControlMessage::ScmRights(descriptors)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.number, &slices, &rights, flags, None).unwrap();
    }

    /// READY, for so many connections at once.
    pub fn say_ready(&self, limit: u32) {
        let mut bytes = vec![1, READY, 0, 0, 1, 4];
        bytes.extend(limit.to_le_bytes());
        bytes.extend([2, 4]);
        bytes.extend((STRIDE as u32).to_le_bytes());
        bytes.extend([3, 4]);
        bytes.extend((self.board.len() as u32).to_le_bytes());
        assert!(self.say(&bytes));
    }

    pub fn say_kind(&self, kind: u8) -> bool {
        self.say(&[1, kind, 0, 0])
    }

    /// Waits for the next message. `None`: the master is gone.
    pub fn hear(&self) -> Option<Message> {
        let mut buffer = [0; 1024];
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.number, &mut slices, Some(&mut space), flags).ok()?;
        let mut client = None;
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                // SAFETY: new, and ours alone.
                client = numbers.first().map(|&it| unsafe { OwnedFd::from_raw_fd(it) });
            }
        }
        let length = message.bytes;
        if length == 0 {
            return None;
        }
        assert!(length >= 4 && buffer[0] >= 1, "a header of version 1 or more");
        self.word(PROGRESS).fetch_add(1, SeqCst);
        let (kind, fields) = (buffer[1], buffer[4..length].to_vec());
        Some(Message { kind, fields, client: client.map(TcpStream::from) })
    }

    /// One more of a counter; ROOM if the master waits for it.
    pub fn count(&self, offset: usize) {
        self.word(offset).fetch_add(1, SeqCst);
        let waiting = self.word(WAITING);
        if waiting.load(SeqCst) != 0 && waiting.swap(0, SeqCst) != 0 {
            self.say_kind(ROOM);
        }
    }

    /// The life of a good worker: READY is said, everything is answered, DRAINED is said.
    pub fn serve(self) {
        let mut threads = Vec::new();
        while let Some(message) = self.hear() {
            match message.kind {
                CONNECTION => {
                    assert_eq!(message.fields[0], 4, "the listener's name");
                    self.count(TAKEN);
                    let client = message.client.expect("a connection comes with its socket");
                    threads.push(std::thread::spawn(move || {
                        answer(client);
                        self.count(FINISHED);
                    }));
                }
                DRAIN => {
                    assert_eq!(message.fields[..2], [5, 8], "the deadline in milliseconds");
                    threads.drain(..).for_each(|thread| thread.join().unwrap());
                    self.say_kind(DRAINED);
                    return;
                }
                PING => drop(self.say_kind(ROOM)),
                _ => {}
            }
        }
        threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// One request, one answer: `/pid`, `/sleep/MS`, `/die`.
pub fn answer(mut client: TcpStream) {
    client.set_nonblocking(false).unwrap();
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match client.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => head.extend(&buffer[..count]),
        }
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or("/");
    if path == "/die" {
        std::process::abort();
    }
    if let Some(ms) = path.strip_prefix("/sleep/") {
        std::thread::sleep(Duration::from_millis(ms.parse().unwrap()));
    }
    let body = std::process::id().to_string();
    let length = body.len();
    let _ = write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
}

/// How a test's master runs this executable: the command of a pool.
pub fn command() -> String {
    let own = std::env::current_exe().unwrap();
    format!("\"{}\", \"--exact\", \"as_worker\", \"--nocapture\"", own.display())
}
