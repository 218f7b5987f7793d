//! The door: where the workers of a killed master come.
//!
//! A socket of its own: systemd's, so that it is there while no master is, or one that the master
//! makes beside its control socket. Anybody may knock. Whoever says nothing, says something else than
//! HELLO, or is not who the state of the dead master says, is sent away; that is bounded in number
//! and in time, and holds nothing up.
//!
//! A worker is known by its token, which only it and its masters have; by its process, which was
//! looked up by number and moment of start; and by its scoreboard. What it says counts only when all
//! three are right.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::accounts::may_change_identity;
use super::adoption::text_of;
use super::journal::{Entry, Level, MessageId};
use super::state::{self, Luggage, Packing};
use super::stored::SocketFile;
use super::{Daemon, Token};
use crate::supervisor::WorkerId;
use crate::sys::accept::{Accepted, accept};
use crate::sys::ancillary::{Received, receive, send};
use crate::sys::listen::{Local, check_packets, listen_packets, local};
use crate::sys::process::pidfd_of;
use crate::sys::socket::{is_channel, is_readable};
use crate::wire::message::{LENGTH_MAX, ToMaster, ToWorker, Token as Secret};
use crate::wire::scoreboard::identity;

/// The FileDescriptorName of a door that systemd holds.
pub(crate) const DOOR: &str = "rcluster-adopt";
/// What the name of a door of our own ends with; before that is that of the control socket.
const SUFFIX: &str = ".adopt";

/// Guests at once who have not proven who they are; beyond that the first one goes.
const GUESTS_MAX: usize = 64;
/// How long a guest may take to say who it is. A worker says it at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// Keepsakes of one worker at most.
const KEPT_MAX: u32 = 16 * 1024;

/// Where workers come.
#[derive(Debug)]
pub(crate) struct Door {
    pub(super) socket: OwnedFd,
    pub(super) path: String,
    /// Ours to remove. `None`: systemd's.
    file: Option<SocketFile>,
    /// By which workers learn of this master's death.
    pub(super) pidfd: OwnedFd,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.file.iter().for_each(SocketFile::remove);
    }
}

/// Who has come.
#[derive(Debug, Default)]
pub(super) struct Guests {
    pub(super) all: BTreeMap<u64, Guest>,
    last: u64,
}

/// Somebody who has come.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) socket: OwnedFd,
    /// The process that it is.
    pid: u32,
    /// When it is sent away.
    until: Instant,
    pub(super) hello: Option<Hello>,
    pub(super) kept: Vec<(String, OwnedFd)>,
    /// It is this one, and was welcomed.
    pub(super) worker: Option<WorkerId>,
}

/// Who a guest has proven to be.
#[derive(Debug)]
pub(super) struct Hello {
    pub(super) worker: WorkerId,
    pub(super) theirs: OwnedFd,
    pub(super) ours: OwnedFd,
    pub(super) board: OwnedFd,
    /// Keepsakes that are to come.
    kept: usize,
}

/// Why a guest is sent away.
enum Refusal {
    /// A worker, but nobody's.
    Unknown,
    /// No worker; a sentence.
    Stranger(&'static str),
}

impl Door {
    /// A socket that systemd holds.
    ///
    /// # Errors
    /// A sentence about what it is instead.
    pub(crate) fn inherited(socket: OwnedFd) -> Result<Door, String> {
        let wrong = |what: &str| {
            format!(
                "inherited socket {DOOR} {what}: it is where workers find the next master after \
                 this one was killed; use ListenSequentialPacket= with an absolute path"
            )
        };
        check_packets(&socket).map_err(|error| wrong(&error.to_string()))?;
        let Local::Unix(path) = local(socket.as_fd()) else {
            return Err(wrong("has no path"));
        };
        let path = path.to_str().ok_or_else(|| wrong("has a path that is not UTF-8"))?.to_owned();
        Door::new(socket, path, None).map_err(|error| wrong(&error.to_string()))
    }

    /// One of our own. It appears complete: who finds it can connect.
    ///
    /// # Errors
    /// Those of the system calls; `InvalidInput` when the path is too long or not UTF-8.
    fn beside(control: &Path) -> io::Result<Door> {
        let mut path = control.as_os_str().to_owned();
        path.push(SUFFIX);
        let path = std::path::PathBuf::from(path);
        // Workers may be other users; that is theirs who may become other users.
        let mode = if may_change_identity() { 0o666 } else { 0o600 };
        let socket = listen_packets(&path, mode)?;
        let file = SocketFile::of(&path);
        let text = path.to_str().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        Door::new(socket, text, file)
    }

    /// For the next image.
    pub(crate) fn gather<'a>(&'a self, packing: &mut Packing<'a>) -> Option<state::Door> {
        let file = self.file.as_ref().map(|file| file.device_and_inode);
        let socket = packing.pack(&self.socket)?;
        Some(state::Door { socket, path: self.path.clone(), file })
    }

    fn new(socket: OwnedFd, path: String, file: Option<SocketFile>) -> io::Result<Door> {
        let pidfd = pidfd_of(std::process::id())?;
        Ok(Door { socket, path, file, pidfd })
    }
}

impl Guest {
    /// It has proven who it is and brought everything.
    pub(super) fn is_complete(&self) -> bool {
        self.hello.as_ref().is_some_and(|hello| self.kept.len() >= hello.kept)
    }
}

impl Daemon {
    /// Opens the door, if there is a place for it. Without one, workers finish what they have when
    /// the master is killed.
    pub(super) fn open_door(&mut self) -> Result<(), String> {
        let control = self.control.as_ref().map(|control| control.path().to_owned());
        let door = match (self.listeners.inheritance.door.take(), control) {
            (Some(socket), _) => Some(Door::inherited(socket)?),
            (None, Some(control)) => match Door::beside(&control) {
                Ok(door) => Some(door),
                Err(error) => {
                    let text = format!(
                        "workers will not outlive this master: no adoption socket can be made \
                         beside {}: {error}",
                        control.display()
                    );
                    self.say(Level::Warning, text);
                    None
                }
            },
            (None, None) => None,
        };
        door.map_or(Ok(()), |door| self.watch_door(door))
    }

    /// As the image before this one had it. Its guests come again.
    pub(super) fn resume_door(
        &mut self,
        door: state::Door,
        luggage: &mut Luggage,
    ) -> Result<(), String> {
        let state::Door { socket, path, file } = door;
        let place = std::path::PathBuf::from(&path);
        let file = file.map(|device_and_inode| SocketFile { path: place, device_and_inode });
        let door = Door::new(luggage.unpack(socket)?, path, file);
        self.adoption.is_open = true;
        self.watch_door(door.map_err(|error| format!("the adoption socket: {error}"))?)
    }

    fn watch_door(&mut self, door: Door) -> Result<(), String> {
        self.poller
            .add(&door.socket, Token::Door.encode())
            .map_err(|error| format!("epoll: {error}"))?;
        self.adoption.door = Some(door);
        Ok(())
    }

    /// Somebody knocks.
    pub(super) fn observe_door(&mut self) {
        for _ in 0..GUESTS_MAX {
            let Some(door) = &self.adoption.door else { return };
            match accept(door.socket.as_fd(), false) {
                Ok(Accepted::Client(socket)) => self.receive_guest(socket),
                Ok(Accepted::Gone) => {}
                Ok(Accepted::Nobody) => return,
                Ok(Accepted::Exhausted(error)) | Err(error) => {
                    let text = format!("the adoption socket cannot accept: {error}");
                    self.say_once(Entry::new(Level::Warning, text).id(MessageId::AcceptFailed));
                    return;
                }
            }
        }
    }

    fn receive_guest(&mut self, socket: OwnedFd) {
        let Ok(peer) = getsockopt(&socket, PeerCredentials) else { return };
        let strangers = self.adoption.guests.all.iter().filter(|(_, guest)| guest.hello.is_none());
        let strangers: Vec<u64> =
            strangers.filter(|(_, guest)| guest.worker.is_none()).map(|(&id, _)| id).collect();
        if strangers.len() >= GUESTS_MAX {
            self.send_away(strangers[0], Refusal::Stranger("came with too many others"));
        }
        self.adoption.guests.last += 1;
        let id = self.adoption.guests.last;
        if let Err(error) = self.poller.add(&socket, Token::Guest(id).encode()) {
            return self.say(Level::Warning, format!("a guest cannot be watched: {error}"));
        }
        let pid = peer.pid().unsigned_abs();
        let until = self.now + PATIENCE;
        let (hello, kept, worker) = (None, Vec::new(), None);
        self.adoption.guests.all.insert(id, Guest { socket, pid, until, hello, kept, worker });
        self.observe_guest(id);
    }

    /// A guest says something, or goes.
    pub(super) fn observe_guest(&mut self, id: u64) {
        let mut buffer = [0; LENGTH_MAX];
        loop {
            let Some(guest) = self.adoption.guests.all.get_mut(&id) else { return };
            if guest.worker.is_none() && guest.is_complete() {
                if !self.adoption.is_open {
                    return;
                }
                self.adopt_guest(id);
                continue;
            }
            match receive(guest.socket.as_fd(), &mut buffer) {
                Ok(Received::Empty) => return,
                Ok(Received::Closed) | Err(_) => return self.forget_guest(id),
                Ok(Received::Message { len, descriptor, second, third, .. }) => {
                    let message = ToMaster::decode(&buffer[..len]);
                    let heard = self.hear_guest(id, message.ok(), [descriptor, second, third]);
                    if let Err(refusal) = heard {
                        return self.send_away(id, refusal);
                    }
                }
            }
        }
    }

    fn hear_guest(
        &mut self,
        id: u64,
        message: Option<ToMaster>,
        descriptors: [Option<OwnedFd>; 3],
    ) -> Result<(), Refusal> {
        let Some(guest) = self.adoption.guests.all.get(&id) else { return Ok(()) };
        match (message, descriptors) {
            (Some(message @ ToMaster::Ready(_)), _) if guest.worker.is_some() => {
                if let Some(worker) = guest.worker {
                    self.join(worker, &message);
                }
                Ok(())
            }
            (Some(ToMaster::Hello { token, kept }), [Some(theirs), Some(ours), Some(board)])
                if guest.hello.is_none() && kept <= KEPT_MAX =>
            {
                let worker = self.recognize(&token, guest.pid, [&theirs, &ours, &board])?;
                let hello = Hello { worker, theirs, ours, board, kept: kept as usize };
                if let Some(guest) = self.adoption.guests.all.get_mut(&id) {
                    guest.hello = Some(hello);
                }
                Ok(())
            }
            (Some(ToMaster::Keep { key }), [Some(what), _, _]) if guest.hello.is_some() => {
                if let Some(guest) = self.adoption.guests.all.get_mut(&id) {
                    guest.kept.push((key, what));
                }
                Ok(())
            }
            _ => Err(Refusal::Stranger("does not introduce itself as a worker")),
        }
    }

    /// Whether it is the worker whom the state of the dead master knows. The process was looked up
    /// before, by its number and the moment of its start, and still lives.
    fn recognize(
        &self,
        token: &Secret,
        pid: u32,
        [theirs, ours, board]: [&OwnedFd; 3],
    ) -> Result<WorkerId, Refusal> {
        let text = text_of(token);
        let here = self.workers.iter().find(|(_, worker)| {
            worker.native().is_some_and(|link| link.token.as_ref() == Some(token))
        });
        if let Some((&id, worker)) = here {
            let is_it = worker.process.id() == pid && self.adoption.is_joining(id);
            let refusal = Refusal::Stranger("is a worker that is here already");
            return is_it.then_some(id).ok_or(refusal);
        }
        let found = self.absent.iter().find(|(_, absent)| absent.token == text);
        let Some((&worker, absent)) = found else { return Err(Refusal::Unknown) };
        if absent.process.id() != pid || is_readable(absent.process.as_fd()).unwrap_or(true) {
            return Err(Refusal::Stranger("has the token of another process"));
        }
        if identity(board.as_fd()) != absent.board {
            return Err(Refusal::Stranger("counts on another scoreboard"));
        }
        if !is_channel(theirs.as_fd()) || !is_channel(ours.as_fd()) {
            return Err(Refusal::Stranger("has brought no channel"));
        }
        Ok(worker)
    }

    fn send_away(&mut self, id: u64, refusal: Refusal) {
        let Some(guest) = self.adoption.guests.all.get(&id) else { return };
        let what = match refusal {
            Refusal::Stranger(what) => what,
            Refusal::Unknown => {
                // It is told that nobody waits for it. That it does not read is its affair.
                let _ = send(guest.socket.as_fd(), &ToWorker::Bye.encode());
                "is a worker that nobody knows; it drains"
            }
        };
        self.forget_guest(id);
        let text = format!("sent away at the adoption socket: somebody who {what}");
        self.say_once(Entry::new(Level::Warning, text).id(MessageId::SentAway));
    }

    pub(super) fn forget_guest(&mut self, id: u64) {
        if let Some(guest) = self.adoption.guests.all.remove(&id) {
            // Closing it removes it as well.
            let _ = self.poller.remove(&guest.socket);
        }
    }

    pub(super) fn guest_deadline(&self) -> Option<Instant> {
        let guests = self.adoption.guests.all.values().filter(|guest| guest.worker.is_none());
        guests.map(|guest| guest.until).min()
    }

    /// Sends those away who have not said who they are in time.
    pub(super) fn tend_guests(&mut self) {
        let late = |guest: &Guest| guest.worker.is_none() && guest.until <= self.now;
        let late: Vec<u64> =
            self.adoption.guests.all.iter().filter(|(_, it)| late(it)).map(|(&id, _)| id).collect();
        for id in late {
            self.send_away(id, Refusal::Stranger("says nothing"));
        }
    }
}
