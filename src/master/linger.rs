//! Clients whom nobody can take, answered by the master.
//!
//! The answer is written, our direction is closed, and what the client still sends is read and
//! thrown away until it closes too: were the socket closed with unread data, the kernel would send
//! a reset, which may overtake the answer.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Reads per turn: one client's flood must not hold up the others.
const READS: usize = 16;

/// How long a client may take to close.
const PATIENCE: Duration = Duration::from_secs(2);

/// Clients that linger at once; beyond that the oldest is closed.
pub(crate) const CLIENTS_MAX: usize = 256;

/// Clients that were answered and have not closed yet.
#[derive(Debug, Default)]
pub(crate) struct Lingering {
    pub(super) clients: BTreeMap<u64, Client>,
    pub(super) last: u64,
}

/// The standard library's stream serves Unix sockets as well: read, write and shutdown are the
/// same system calls.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) until: Instant,
}

impl Lingering {
    /// Answers a client. The number under which to watch it, if it must linger.
    pub(crate) fn answer(&mut self, client: OwnedFd, bytes: &[u8], now: Instant) -> Option<u64> {
        let mut stream = TcpStream::from(client);
        // The buffer of a fresh socket holds any answer that a configuration may have; a client
        // that is gone already wants none.
        stream.write_all(bytes).ok()?;
        stream.shutdown(Shutdown::Write).ok()?;
        self.last += 1;
        self.clients.insert(self.last, Client { stream, until: now + PATIENCE });
        Some(self.last)
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
                Ok(_) => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
        false
    }

    /// Closes a client.
    pub(crate) fn close(&mut self, id: u64) {
        self.clients.remove(&id);
    }

    /// Clients that are to be closed now.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<u64> {
        let surplus = self.clients.len().saturating_sub(CLIENTS_MAX);
        self.clients
            .iter()
            .enumerate()
            .filter(|(position, (_, client))| *position < surplus || client.until <= now)
            .map(|(_, (&id, _))| id)
            .collect()
    }

    /// When the next one is to be closed.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.clients.values().next().map(|client| client.until)
    }
}
