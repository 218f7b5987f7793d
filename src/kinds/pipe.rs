//! Node's IPC channel: lines of JSON over a stream, a descriptor beside some of them.
//!
//! One message is one JSON text and a line feed, both ways. A message that brings a descriptor is
//! `{"cmd":"NODE_HANDLE","type":…,"msg":…}`; whoever receives it answers `NODE_HANDLE_ACK`, or
//! `NODE_HANDLE_NACK` where the descriptor is missing, before anything else. The rules of this
//! protocol were found by experiment on Node 4 to 26:
//!
//! * One descriptor per `sendmsg`: a second one stays with the receiver, which gives it to a later
//!   message, a stranger's.
//! * The descriptor goes with the first part of a message; after a partial write the rest goes alone.
//! * What the worker sends a descriptor with must be answered, or it says nothing more.
//! * A text that is no JSON, or an empty line, kills a worker: nothing but whole messages is sent.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use serde_json::{Map, Value};

use crate::sys::ancillary::{Received, receive, send_part};

/// A line may have so many bytes: applications send each other megabytes.
const LINE_MAX: usize = 16 << 20;
/// So many bytes may wait for a worker that does not read.
const UNSENT_MAX: usize = 1 << 20;
/// So many messages with a descriptor may.
const UNSENT_DESCRIPTORS_MAX: usize = 64;
/// Descriptors may come before their lines: reading stops where one is, so there are never many.
const EARLY_MAX: usize = 4;
/// Bytes read at once.
const PART: usize = 64 << 10;

/// The master's end of such a channel.
#[derive(Debug)]
pub(crate) struct Pipe {
    socket: OwnedFd,
    /// What has come of a line that is not complete, and whole lines that were not looked at yet.
    received: Vec<u8>,
    /// So many bytes of it were looked at, as lines.
    taken: usize,
    /// So many bytes of it have no line feed after those.
    searched: usize,
    /// Descriptors that have come before their line.
    descriptors: VecDeque<OwnedFd>,
    unsent: VecDeque<Unsent>,
    /// Bytes of that.
    waiting: usize,
}

/// A message that the worker's queue had no room for, or the rest of one.
#[derive(Debug)]
struct Unsent {
    bytes: Vec<u8>,
    /// So many bytes are sent.
    sent: usize,
    descriptor: Option<OwnedFd>,
}

/// What there is to hear.
#[derive(Debug)]
pub(crate) enum Heard {
    Message(Message),
    /// A part of a line. There may be more.
    Part,
    Nothing,
    /// The worker has closed its end, or has died, and everything that it sent was heard.
    End,
}

/// A message of a worker.
#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    /// It has the descriptor of the oldest message that brought one and was not answered.
    Ack,
    /// It has not got it.
    Nack,
    /// A word of the cluster protocol (`NODE_CLUSTER`).
    Cluster(Map<String, Value>),
    /// Another word of Node itself: its name, and all of it.
    Internal(String, Map<String, Value>),
    /// The application's own.
    User(Value),
}

impl Pipe {
    /// A channel, and the worker's end of it.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub(crate) fn pair() -> io::Result<(Pipe, OwnedFd)> {
        let (family, kind) = (AddressFamily::Unix, SockType::Stream);
        let (ours, theirs) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Pipe::new(ours), theirs))
    }

    /// A channel of which nothing is read and nothing waits.
    pub(crate) fn new(socket: OwnedFd) -> Pipe {
        Pipe {
            socket,
            received: Vec::new(),
            taken: 0,
            searched: 0,
            descriptors: VecDeque::new(),
            unsent: VecDeque::new(),
            waiting: 0,
        }
    }

    /// Sends a message, now or as soon as the worker's queue has room.
    ///
    /// # Errors
    /// `EPIPE` when the worker has closed its end: what it sent before can still be heard. `ENOBUFS`
    /// when it has not read for so long that too much waits for it.
    pub(crate) fn post(&mut self, message: &Value) -> io::Result<()> {
        self.enqueue(message, None)
    }

    /// Sends a descriptor, of which the receiver makes a `kind` (`net.Native`), with a message.
    /// It must not block (`O_NONBLOCK`): Node does not see to that.
    ///
    /// # Errors
    /// As [`Pipe::post`].
    pub(crate) fn post_handle(
        &mut self,
        kind: &str,
        message: &Value,
        key: Option<&str>,
        descriptor: OwnedFd,
    ) -> io::Result<()> {
        let mut line = serde_json::json!({ "cmd": "NODE_HANDLE", "type": kind, "msg": message });
        if let (Some(key), Some(line)) = (key, line.as_object_mut()) {
            line.insert("key".to_owned(), key.into());
        }
        self.enqueue(&line, Some(descriptor))
    }

    fn enqueue(&mut self, message: &Value, descriptor: Option<OwnedFd>) -> io::Result<()> {
        let descriptors = self.unsent.iter().filter(|it| it.descriptor.is_some());
        if self.waiting > UNSENT_MAX || descriptors.count() > UNSENT_DESCRIPTORS_MAX {
            return Err(nix::errno::Errno::ENOBUFS.into());
        }
        let mut bytes = serde_json::to_vec(message)?;
        bytes.push(b'\n');
        self.waiting += bytes.len();
        self.unsent.push_back(Unsent { bytes, sent: 0, descriptor });
        let flushed = self.flush();
        if flushed.is_err() && self.unsent.back().is_some_and(|it| it.sent == 0) {
            // Whoever hears that it failed may send it to somebody else.
            self.waiting -= self.unsent.pop_back().map_or(0, |it| it.bytes.len());
            return flushed;
        }
        Ok(())
    }

    /// Sends what waits, as far as the worker's queue has room.
    ///
    /// # Errors
    /// As [`Pipe::post`].
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some(Unsent { bytes, sent, descriptor }) = self.unsent.front_mut() {
            let along = descriptor.as_ref().map(AsFd::as_fd);
            match send_part(self.socket.as_fd(), &bytes[*sent..], along) {
                Ok(count) => {
                    // It has gone with the first byte.
                    *descriptor = None;
                    *sent += count;
                    self.waiting -= count;
                    if *sent == bytes.len() {
                        self.unsent.pop_front();
                    }
                }
                // ETOOMANYREFS: too many descriptors are on their way; that passes, too.
                Err(error) if is_full(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Closes the channel for the worker, which can still be heard.
    ///
    /// # Errors
    /// The worker has closed it.
    pub(crate) fn close(&self) -> io::Result<()> {
        Ok(shutdown(self.socket.as_raw_fd(), Shutdown::Write)?)
    }

    /// Whether something waits for the worker to read.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// The next message. Descriptors that a worker sends are acknowledged and closed: there is
    /// nothing that they could be used for here.
    ///
    /// # Errors
    /// `InvalidData`, with a sentence, for what is no message; those of `recvmsg(2)`.
    pub(crate) fn hear(&mut self) -> io::Result<Heard> {
        if let Some(line) = self.next_line() {
            return self.interpret(&line).map(Heard::Message);
        }
        let mut part = vec![0; PART];
        match receive(self.socket.as_fd(), &mut part)? {
            Received::Message { len, descriptor, second, third, .. } => {
                self.received.extend_from_slice(&part[..len]);
                self.descriptors.extend([descriptor, second, third].into_iter().flatten());
                self.descriptors.truncate(EARLY_MAX);
            }
            Received::Empty => return Ok(Heard::Nothing),
            Received::Closed => return Ok(Heard::End),
        }
        if let Some(line) = self.next_line() {
            return self.interpret(&line).map(Heard::Message);
        }
        if self.received.len() > LINE_MAX {
            self.received = Vec::new();
            self.searched = 0;
            return Err(invalid(format!("a line of more than {LINE_MAX} bytes")));
        }
        Ok(Heard::Part)
    }

    /// Whether a whole message was received and not heard.
    pub(crate) fn has_message(&self) -> bool {
        self.received[self.taken + self.searched..].contains(&b'\n')
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let rest = &self.received[self.taken + self.searched..];
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            self.received.drain(..self.taken);
            (self.taken, self.searched) = (0, self.received.len());
            return None;
        };
        let end = self.taken + self.searched + length;
        let line = self.received[self.taken..end].to_vec();
        (self.taken, self.searched) = (end + 1, 0);
        Some(line)
    }

    fn interpret(&mut self, line: &[u8]) -> io::Result<Message> {
        let value: Value = serde_json::from_slice(line)
            .map_err(|error| invalid(format!("a line that is no JSON ({error})")))?;
        let Value::Object(mut object) = value else { return Ok(Message::User(value)) };
        let word = match object.get("cmd") {
            Some(Value::String(word)) if word.len() > 5 && word.starts_with("NODE_") => {
                word.clone()
            }
            _ => return Ok(Message::User(Value::Object(object))),
        };
        match word.as_str() {
            "NODE_HANDLE_ACK" => Ok(Message::Ack),
            "NODE_HANDLE_NACK" => Ok(Message::Nack),
            "NODE_CLUSTER" => Ok(Message::Cluster(object)),
            "NODE_HANDLE" => {
                let answer = match self.descriptors.pop_front() {
                    Some(_) => "NODE_HANDLE_ACK",
                    None => "NODE_HANDLE_NACK",
                };
                // That it cannot be told is heard as the end of its channel.
                let _ = self.post(&serde_json::json!({ "cmd": answer }));
                Ok(match object.remove("msg") {
                    Some(Value::Object(inner)) if is_cluster(&inner) => Message::Cluster(inner),
                    inner => Message::User(inner.unwrap_or_default()),
                })
            }
            _ => Ok(Message::Internal(word, object)),
        }
    }

    /// What was received of a line that is not complete, to be carried to the next image with what
    /// waits for the worker.
    pub(crate) fn received(&self) -> &[u8] {
        &self.received[self.taken..]
    }

    /// What waits for the worker: bytes, and the descriptor that goes with them.
    pub(crate) fn unsent(&self) -> impl Iterator<Item = (&[u8], Option<&OwnedFd>)> {
        self.unsent.iter().map(|it| (&it.bytes[it.sent..], it.descriptor.as_ref()))
    }

    /// Descriptors whose line has not come.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = &OwnedFd> {
        self.descriptors.iter()
    }

    /// As it was.
    pub(crate) fn resume(
        socket: OwnedFd,
        received: Vec<u8>,
        descriptors: VecDeque<OwnedFd>,
        unsent: Vec<(Vec<u8>, Option<OwnedFd>)>,
    ) -> Pipe {
        let waiting = unsent.iter().map(|(bytes, _)| bytes.len()).sum();
        let unsent =
            unsent.into_iter().map(|(bytes, descriptor)| Unsent { bytes, sent: 0, descriptor });
        Pipe { received, descriptors, unsent: unsent.collect(), waiting, ..Pipe::new(socket) }
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn is_cluster(message: &Map<String, Value>) -> bool {
    message.get("cmd").is_some_and(|word| word == "NODE_CLUSTER")
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || error.raw_os_error() == Some(nix::libc::ETOOMANYREFS)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use serde_json::json;

    use super::*;

    fn pair() -> (Pipe, UnixStream) {
        let (pipe, theirs) = Pipe::pair().unwrap();
        (pipe, theirs.into())
    }

    fn message(pipe: &mut Pipe) -> Message {
        let Heard::Message(message) = pipe.hear().unwrap() else { panic!("nothing is heard") };
        message
    }

    #[test]
    fn lines_are_joined_and_split_as_they_come() {
        let (mut pipe, mut theirs) = pair();
        theirs.write_all(b"{\"cmd\":\"NODE_HANDLE_ACK\"}\n\"hello\"\n{\"a").unwrap();
        assert_eq!(message(&mut pipe), Message::Ack);
        assert_eq!(message(&mut pipe), Message::User(json!("hello")));
        assert!(matches!(pipe.hear().unwrap(), Heard::Nothing));
        theirs.write_all(b"\":1}\n{\"cmd\":\"NODE_CLUSTER\",\"act\":\"online\"}\n").unwrap();
        assert_eq!(message(&mut pipe), Message::User(json!({ "a": 1 })));
        let Message::Cluster(word) = message(&mut pipe) else { panic!() };
        assert_eq!(word["act"], "online");
        theirs.write_all(b"{\"cmd\":\"NODE_NEW\",\"x\":2}\n{\"cmd\":\"NODE_\"}\n").unwrap();
        assert!(matches!(message(&mut pipe), Message::Internal(word, _) if word == "NODE_NEW"));
        assert!(matches!(message(&mut pipe), Message::User(_)), "too short to be Node's");
        drop(theirs);
        assert!(matches!(pipe.hear().unwrap(), Heard::End));
    }

    #[test]
    fn rubbish_is_an_error_and_what_follows_is_heard() {
        let (mut pipe, mut theirs) = pair();
        theirs.write_all(b"no json\n\n5\n").unwrap();
        for _ in 0..2 {
            assert_eq!(pipe.hear().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(message(&mut pipe), Message::User(json!(5)));
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let (mut pipe, mut theirs) = pair();
        let writer = std::thread::spawn(move || {
            let part = vec![b'x'; PART];
            (0..=LINE_MAX / PART).for_each(|_| theirs.write_all(&part).unwrap());
            theirs.write_all(b"x\n7\n").unwrap();
            theirs
        });
        let mut heard = Vec::new();
        while heard.len() < 3 {
            match pipe.hear() {
                Ok(Heard::Nothing | Heard::Part) => std::thread::yield_now(),
                Ok(Heard::Message(message)) => heard.push(Ok(message)),
                Ok(Heard::End) => panic!("it has not ended"),
                Err(error) => heard.push(Err(error.to_string())),
            }
        }
        assert_eq!(heard[0], Err(format!("a line of more than {LINE_MAX} bytes")));
        // The rest of it, and what follows.
        assert!(heard[1].is_err());
        assert_eq!(heard[2], Ok(Message::User(json!(7))));
        assert!(pipe.received.capacity() < LINE_MAX);
        drop(writer.join().unwrap());
    }

    #[test]
    fn a_descriptor_that_a_worker_sends_is_acknowledged_or_missed() {
        let (mut pipe, mut theirs) = pair();
        let line = b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":{\"hi\":1}}\n";
        let (file, mut answer) = (std::fs::File::open("/dev/null").unwrap(), [0; 26]);
        send_part(theirs.as_fd(), line, Some(file.as_fd())).unwrap();
        assert_eq!(message(&mut pipe), Message::User(json!({ "hi": 1 })));
        theirs.read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"{\"cmd\":\"NODE_HANDLE_ACK\"}\n");
        theirs.write_all(line).unwrap();
        assert_eq!(message(&mut pipe), Message::User(json!({ "hi": 1 })));
        let mut answer = [0; 27];
        theirs.read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"{\"cmd\":\"NODE_HANDLE_NACK\"}\n");
    }

    #[test]
    fn what_finds_no_room_waits_and_keeps_its_order_and_its_descriptor() {
        let (mut pipe, theirs) = pair();
        let (client, server) = UnixStream::pair().unwrap();
        let filler = json!("x".repeat(4000));
        let mut posted = 0;
        while !pipe.has_unsent() {
            pipe.post(&filler).unwrap();
            posted += 1;
        }
        pipe.post_handle("net.Native", &json!({ "n": 1 }), Some("k"), server.into()).unwrap();
        let (mut other, mut heard) = (Pipe::new(theirs.into()), 0);
        loop {
            pipe.flush().unwrap();
            let Message::User(value) = message(&mut other) else { panic!("no message") };
            if value == json!({ "n": 1 }) {
                break;
            }
            assert_eq!(value, filler);
            heard += 1;
        }
        assert_eq!(heard, posted);
        // Its descriptor was acknowledged, and closed: the client sees the end.
        assert_eq!(message(&mut pipe), Message::Ack);
        let mut client = client;
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn too_much_for_a_worker_that_does_not_read_is_an_error() {
        let (mut pipe, _theirs) = pair();
        let filler = json!("x".repeat(100_000));
        let error = (0..100).find_map(|_| pipe.post(&filler).err()).unwrap();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOBUFS));
    }

    #[test]
    fn half_a_line_and_half_a_message_go_on_after_an_upgrade() {
        let (mut pipe, mut theirs) = pair();
        theirs.write_all(b"{\"half").unwrap();
        assert!(matches!(pipe.hear().unwrap(), Heard::Part));
        let filler = json!("x".repeat(4000));
        let mut posted = 0;
        while !pipe.has_unsent() {
            pipe.post(&filler).unwrap();
            posted += 1;
        }
        let received = pipe.received().to_vec();
        let unsent = pipe.unsent().map(|(bytes, _)| (bytes.to_vec(), None)).collect();
        let socket = pipe.socket.try_clone().unwrap();
        drop(pipe);
        let mut pipe = Pipe::resume(socket, received, VecDeque::new(), unsent);
        theirs.write_all(b"\":true}\n").unwrap();
        assert_eq!(message(&mut pipe), Message::User(json!({ "half": true })));
        let mut other = Pipe::new(theirs.into());
        for _ in 0..posted {
            pipe.flush().unwrap();
            assert_eq!(message(&mut other), Message::User(filler.clone()));
        }
    }
}
