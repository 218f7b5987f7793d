//! Clients whom nobody can take, answered by the master; and those whose worker has died.
//!
//! The answer is written, our direction is closed, and what the client still sends is read and
//! thrown away until it closes too: were the socket closed with unread data, the kernel would send
//! a reset, which may overtake the answer. Who is turned away has not much to send. Who loses his
//! worker may be in the middle of a large body: he is listened to as long as he goes on, within
//! bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Reads per turn: one client's flood must not hold up the others.
const READS: usize = 16;

/// How long a client may take to close, or to send more.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long he may go on sending.
const LONGEST: Duration = Duration::from_secs(30);

/// Clients that nobody could take and that linger at once; beyond that the oldest is closed. Those
/// whose worker has died are not counted: their descriptors were there before.
pub(crate) const CLIENTS_MAX: usize = 256;

/// Clients that were answered and have not closed yet.
#[derive(Debug, Default)]
pub(crate) struct Lingering {
    pub(super) clients: BTreeMap<u64, Client>,
    due: BTreeSet<(Instant, u64)>,
    refused: BTreeSet<u64>,
    pub(super) last: u64,
    /// Nobody is put off beyond that.
    until: Option<Instant>,
}

/// The standard library's stream serves Unix sockets as well: read, write and shutdown are the
/// same system calls.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: TcpStream,
    due: Instant,
    /// Until when it may be put off.
    pub(super) latest: Instant,
    /// Something came since it was put off.
    goes_on: bool,
}

impl Lingering {
    /// Answers a client. The number under which to watch it, if it must linger.
    pub(crate) fn answer(&mut self, client: OwnedFd, bytes: &[u8], now: Instant) -> Option<u64> {
        let mut stream = TcpStream::from(client);
        // The buffer of a fresh socket holds any answer that a configuration may have; a client
        // that is gone already wants none.
        stream.write_all(bytes).ok()?;
        stream.shutdown(Shutdown::Write).ok()?;
        let id = self.insert(stream, now, now + PATIENCE);
        self.refused.insert(id);
        Some(id)
    }

    /// Tells a client whose worker has died. The number under which to watch it; none if it has gone
    /// and there is nobody to tell.
    ///
    /// # Errors
    /// When it could not be told.
    pub(crate) fn tell(
        &mut self,
        client: OwnedFd,
        bytes: &[u8],
        now: Instant,
    ) -> io::Result<Option<u64>> {
        let mut stream = TcpStream::from(client);
        // The dead worker may have changed that, and it must not hold up the master.
        stream.set_nonblocking(true)?;
        let told = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        match told {
            Ok(()) => Ok(Some(self.insert(stream, now, now + LONGEST))),
            Err(error) => {
                // The worker's children may hold it, too. It fails when the client has gone.
                let _ = stream.shutdown(Shutdown::Both);
                let gone = [
                    io::ErrorKind::BrokenPipe,
                    io::ErrorKind::ConnectionReset,
                    io::ErrorKind::NotConnected,
                ];
                if gone.contains(&error.kind()) { Ok(None) } else { Err(error) }
            }
        }
    }

    fn insert(&mut self, stream: TcpStream, now: Instant, latest: Instant) -> u64 {
        self.last += 1;
        let due = now + PATIENCE;
        self.clients.insert(self.last, Client { stream, due, latest, goes_on: false });
        self.due.insert((due, self.last));
        self.last
    }

    /// One that an earlier image of this process has answered.
    pub(super) fn resume(&mut self, stream: TcpStream, now: Instant, latest: Instant) {
        self.insert(stream, now, latest);
    }

    /// The service ends: so does everybody's time. Whether nobody is left.
    pub(crate) fn wind_up(&mut self, now: Instant) -> bool {
        self.until.get_or_insert(now + PATIENCE);
        self.clients.is_empty()
    }

    /// The socket to watch.
    pub(crate) fn socket(&self, id: u64) -> Option<&TcpStream> {
        Some(&self.clients.get(&id)?.stream)
    }

    /// Reads what a client sends. Whether it is done.
    pub(crate) fn hear(&mut self, id: u64) -> bool {
        let Some(client) = self.clients.get_mut(&id) else { return true };
        let mut waste = [0; 4096];
        for _ in 0..READS {
            match client.stream.read(&mut waste) {
                Ok(0) => return true,
                Ok(_) => client.goes_on = true,
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
        false
    }

    /// Closes a client, for everybody who holds it.
    pub(crate) fn close(&mut self, id: u64) {
        self.refused.remove(&id);
        if let Some(client) = self.clients.remove(&id) {
            self.due.remove(&(client.due, id));
            // It fails when the client has gone.
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }

    /// Clients that are to be closed now. Those that go on sending are put off.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<u64> {
        let surplus = self.refused.len().saturating_sub(CLIENTS_MAX);
        let mut overdue: Vec<u64> = self.refused.iter().copied().take(surplus).collect();
        while let Some(&(due, id)) = self.due.first().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, id));
            let Some(client) = self.clients.get_mut(&id) else { continue };
            let latest = self.until.map_or(client.latest, |until| client.latest.min(until));
            if std::mem::take(&mut client.goes_on) && now < latest {
                client.due = latest.min(now + PATIENCE);
                self.due.insert((client.due, id));
            } else {
                overdue.push(id);
            }
        }
        overdue
    }

    /// When the next one is to be closed, or put off.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0.into())
    }

    #[expect(clippy::disallowed_methods, reason = "where virtual time begins")]
    fn start() -> Instant {
        Instant::now()
    }

    /// Who goes on sending is put off, but not for ever; who is silent is not.
    #[test]
    fn who_goes_on_sending_is_listened_to() {
        listen(false);
    }

    #[test]
    fn at_the_end_of_the_service_nobody_is_listened_to_for_long() {
        listen(true);
    }

    fn listen(ends: bool) {
        let now = start();
        let mut lingering = Lingering::default();
        let (mut sending, socket) = pair();
        let (_silent, other) = pair();
        // As a blocking worker left it.
        let sending_id = lingering.tell(socket, b"told", now).unwrap().unwrap();
        let silent_id = lingering.tell(other, b"told", now).unwrap().unwrap();
        let mut closed_after = 0;
        for second in 1..60 {
            sending.write_all(b"more").unwrap();
            while sending_id != 0 && !lingering.clients[&sending_id].goes_on {
                assert!(!lingering.hear(sending_id));
            }
            if ends && second == 9 {
                assert!(!lingering.wind_up(now + Duration::from_secs(second)));
            }
            let overdue = lingering.overdue(now + Duration::from_secs(second));
            match second {
                2 => assert_eq!(overdue, [silent_id]),
                _ if overdue == [sending_id] => {
                    closed_after = second;
                    break;
                }
                _ => assert!(overdue.is_empty(), "{overdue:?} after {second} s"),
            }
        }
        let expected = if ends { 11 } else { LONGEST.as_secs() };
        assert_eq!(closed_after, expected);
        lingering.close(sending_id);
        lingering.close(silent_id);
        assert!(lingering.clients.is_empty() && lingering.deadline().is_none());
    }

    #[test]
    fn only_those_whom_nobody_took_are_counted() {
        let now = start();
        let mut lingering = Lingering::default();
        let mut clients = Vec::new();
        for _ in 0..CLIENTS_MAX / 8 {
            let (client, socket) = pair();
            lingering.tell(socket, b"told", now).unwrap();
            clients.push(client);
        }
        let mut first = None;
        for _ in 0..=CLIENTS_MAX {
            let (client, socket) = pair();
            let id = lingering.answer(socket, b"busy", now);
            first = first.or(id);
            clients.push(client);
        }
        assert_eq!(lingering.overdue(now), [first.unwrap()]);
    }

    #[test]
    fn nobody_is_told_who_has_gone() {
        let mut lingering = Lingering::default();
        let (client, socket) = pair();
        let ours = TcpStream::from(socket.try_clone().unwrap());
        ours.shutdown(Shutdown::Both).unwrap();
        drop(client);
        assert_eq!(lingering.tell(socket, b"told", start()).unwrap(), None);
        assert!(lingering.clients.is_empty());
    }
}
