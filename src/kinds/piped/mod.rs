//! Workers that speak by Node's IPC channel, and are handed connections one by one.
//!
//! Such a worker knows nothing of rcluster. It answers each connection that it is handed, so its answer
//! is the ledger: until then the master keeps a copy of the socket, and whatever the worker declines, or
//! has not answered when its channel has come to its end, goes to others. What is handed over in which
//! words, what an answer is, and how a worker is told to stop, is its *dialect* ([`Words`]).
//!
//! The channel is a dead-man switch as well: Node's cluster workers end at once when the master is gone.

mod answer;
mod asked;
pub(crate) mod cluster;
mod counted;
mod farewell;
mod node_cluster;
mod plain;
pub(crate) mod preload;
mod tally;
mod words;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use serde_json::Value;

use super::native::Client;
use super::pipe::{Message, Pipe};
use super::{Start, Worker};
use crate::supervisor::{ListenerId, Who};
use crate::sys::listen::set_blocking;
use crate::sys::process::Process;
use cluster::Cluster;
pub(crate) use words::Words;

/// The channel is the first descriptor after the standard ones: Node keeps it from its own children
/// only where the numbers below have no gap.
const CHANNEL: &str = "3";

/// The word of the file that is loaded before an application, where it is: `drain.js`.
const REPORT: &str = "NODE_RCLUSTER";

/// The master's end of such a worker's channel, and what goes with it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) pipe: Pipe,
    /// Connections that it was handed and has not answered, oldest first.
    pub(crate) unanswered: VecDeque<HandOver>,
    /// Descriptors that it has not acknowledged, oldest first: the number of the connection, or `None`
    /// for what is no connection.
    pub(crate) unacknowledged: VecDeque<Option<u64>>,
    /// Connections that it was ever handed: what they are numbered by.
    pub(crate) handed: u64,
    pub(crate) words: Words,
    /// It was told to stop, or has said that it does.
    pub(crate) is_leaving: bool,
    /// Its channel has come to its end: it can be given and told nothing.
    pub(crate) has_ended: bool,
    /// It has not read for so long that too much waits for it.
    pub(crate) is_deaf: bool,
    /// When it is to be looked at by the clock.
    pub(crate) look_at: Option<Instant>,
    /// Things that it asked for in vain, and that were spoken of.
    pub(crate) refusals: u32,
    /// A word that nobody heard was spoken of.
    pub(crate) is_unheard: bool,
    /// The poller reports as well when the channel can be written to.
    pub(crate) is_watched_for_room: bool,
    /// Sockets that it is given in the place of the pool's: it serves nobody.
    pub(crate) stand_ins: BTreeMap<ListenerId, OwnedFd>,
}

/// A connection that a worker was handed and has not answered.
#[derive(Debug)]
pub(crate) struct HandOver {
    pub(crate) number: u64,
    pub(crate) listener: ListenerId,
    /// The master's copy.
    pub(crate) client: Client,
}

/// How a connection is handed over.
#[derive(Debug)]
pub(crate) struct Parcel {
    /// What the worker makes of the descriptor.
    pub(crate) kind: &'static str,
    pub(crate) message: Value,
    /// Under which Node counts it.
    pub(crate) key: Option<String>,
}

/// What a message of the worker's comes to.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    Nothing,
    /// Its runtime has started.
    Online,
    /// It takes connections of these listeners now.
    Opened(Vec<ListenerId>),
    /// It takes none of these any more.
    Closed(Vec<ListenerId>),
    /// It is ready.
    Ready,
    /// It stops by itself.
    Leaving,
    /// It asks to be replaced.
    Retiring,
    /// It has taken the connection of this number.
    Taken(u64),
    /// It does not take it.
    Declined(u64),
    /// So many connections that it had taken have ended, in all.
    Ended(u64),
    /// What its server of this listener says of itself; every other one is given it.
    Data(ListenerId, Value),
    /// A word of the application's that nobody is there to hear.
    Unheard,
    /// It asked for something that it cannot have: a sentence about it.
    Refused(String),
    /// It did what it should not do.
    Wrong(String),
}

/// What its questions are answered with.
pub(crate) struct Supply<'a> {
    /// What the servers of each listener have said of themselves: keys of TLS tickets.
    pub(crate) data: &'a dyn Fn(ListenerId) -> Option<Value>,
    /// A listening socket.
    pub(crate) socket: &'a dyn Fn(ListenerId) -> io::Result<OwnedFd>,
}

impl Link {
    pub(crate) fn new(pipe: Pipe, words: Words) -> Link {
        Link {
            pipe,
            unanswered: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            handed: 0,
            words,
            is_leaving: false,
            has_ended: false,
            is_deaf: false,
            look_at: None,
            refusals: 0,
            is_unheard: false,
            is_watched_for_room: false,
            stand_ins: BTreeMap::new(),
        }
    }

    /// What a worker of Node's cluster module knows.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        match &self.words {
            Words::Cluster(cluster) => Some(cluster),
            Words::Plain(_) | Words::NodeCluster(_) => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn cluster_mut(&mut self) -> Option<&mut Cluster> {
        match &mut self.words {
            Words::Cluster(cluster) => Some(cluster),
            Words::Plain(_) | Words::NodeCluster(_) => None,
        }
    }

    /// Hands a connection over; a copy of it is kept until it is answered.
    ///
    /// # Errors
    /// It could not be sent: the connection.
    pub(crate) fn hand_over(
        &mut self,
        listener: ListenerId,
        client: Client,
    ) -> Result<(), (Client, io::Error)> {
        let number = self.handed + 1;
        let Some(Parcel { kind, message, key }) = self.words.parcel(number, listener) else {
            return Err((client, nix::errno::Errno::ENOTCONN.into()));
        };
        if self.has_ended {
            return Err((client, nix::errno::Errno::EPIPE.into()));
        }
        // One that a worker of another kind has had may block.
        let prepared = match client.past {
            None => Ok(()),
            Some(_) => set_blocking(client.socket.as_fd(), false),
        };
        let copy = match prepared.and_then(|()| client.socket.try_clone()) {
            Ok(copy) => copy,
            Err(error) => return Err((client, error)),
        };
        if let Err(error) = self.pipe.post_handle(kind, &message, key.as_deref(), copy) {
            return Err((client, error));
        }
        self.handed = number;
        self.unacknowledged.push_back(Some(number));
        self.unanswered.push_back(HandOver { number, listener, client });
        Ok(())
    }

    /// Takes in a message, and answers it where it is a question.
    pub(crate) fn heed(&mut self, message: Message, supply: &Supply<'_>) -> Said {
        let said = self.interpret(message, supply);
        let (Said::Taken(number) | Said::Declined(number)) = &said else { return said };
        if !self.is_last(*number) {
            return said;
        }
        self.disconnect();
        Said::Nothing
    }

    fn interpret(&mut self, message: Message, supply: &Supply<'_>) -> Said {
        match (message, &mut self.words) {
            (Message::Ack, _) => match self.unacknowledged.pop_front() {
                Some(number) => self.acknowledged(number),
                None => Said::Wrong("acknowledged what it was not sent".to_owned()),
            },
            (Message::Nack, _) => match self.unacknowledged.pop_front() {
                Some(Some(number)) => Said::Declined(number),
                Some(None) => Said::Wrong(
                    "has no descriptor left for its listening socket: raise its limit \
                     (rlimits = { nofile = … })"
                        .to_owned(),
                ),
                None => Said::Wrong("missed what it was not sent".to_owned()),
            },
            (Message::Cluster(message), Words::Cluster(_)) => answer::heed(self, &message, supply),
            (Message::Internal(word, message), Words::Plain(plain)) => plain.heed(&word, &message),
            (Message::User(message), Words::Plain(plain)) => plain.hear(&message),
            (Message::User(message), Words::NodeCluster(worker)) => worker.hear(&message),
            (Message::Cluster(_), Words::Plain(_) | Words::NodeCluster(_)) => Said::Nothing,
            (Message::Internal(word, message), Words::Cluster(cluster)) if word == REPORT => {
                cluster.tells_ends = true;
                message.get("ended").and_then(Value::as_u64).map_or(Said::Nothing, Said::Ended)
            }
            // What later versions say.
            (Message::Internal(..), _) => Said::Nothing,
            (Message::User(_), Words::Cluster(_)) => Said::Unheard,
        }
    }

    /// It has the descriptor of this connection, or of something else.
    fn acknowledged(&mut self, number: Option<u64>) -> Said {
        match (&self.words, number) {
            (Words::Plain(_) | Words::NodeCluster(_), Some(number)) => Said::Taken(number),
            // It says more.
            (Words::Cluster(_), Some(_)) | (_, None) => Said::Nothing,
        }
    }

    /// Tells it to finish what it has, and to end. Once: a second time would end it at once. Whether it
    /// was told.
    pub(crate) fn stop(&mut self) -> bool {
        if std::mem::replace(&mut self.is_leaving, true) || self.has_ended {
            return false;
        }
        match &self.words {
            Words::Cluster(_) => self.hand_over_last(),
            Words::Plain(_) => return self.close(),
            // It is sent a signal when it has nothing in hand.
            Words::NodeCluster(_) => return false,
        }
        true
    }

    /// Tells it something. Where that fails, its channel has come to its end, which is heard; or it
    /// reads nothing, and is deaf.
    pub(crate) fn post(&mut self, message: &Value) {
        let posted = self.pipe.post(message);
        self.note_posted(&posted);
    }

    /// The same, with a descriptor that is no connection.
    fn post_handle(&mut self, message: &Value, descriptor: OwnedFd) {
        let posted = self.pipe.post_handle("net.Native", message, None, descriptor);
        self.note_posted(&posted);
        if posted.is_ok() {
            self.unacknowledged.push_back(None);
        }
    }

    fn note_posted(&mut self, posted: &io::Result<()>) {
        let error = posted.as_ref().err().and_then(io::Error::raw_os_error);
        self.is_deaf |= error == Some(nix::libc::ENOBUFS);
    }

    /// Takes one out of those that were not answered.
    pub(crate) fn answered(&mut self, number: u64) -> Option<HandOver> {
        let at = self.unanswered.iter().position(|it| it.number == number)?;
        self.unanswered.remove(at)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Starts a worker.
///
/// # Errors
/// Those of the system calls; `NotFound` when the program is missing.
pub(super) fn start(mut start: Start<'_>) -> io::Result<Worker> {
    let (who, words) = (start.who, start.words.clone());
    let mut offer = std::mem::take(&mut start.offer);
    let (pipe, theirs) = Pipe::pair()?;
    let mut link = Link::new(pipe, Words::new(&start.manner, &offer));
    if offer.stands_in {
        let sockets = std::mem::take(&mut offer.sockets);
        link.stand_ins = sockets.into_iter().map(|it| (it.listener, it.socket)).collect();
    }
    start
        .command
        .env("NODE_CHANNEL_FD", CHANNEL)
        .env("NODE_CHANNEL_SERIALIZATION_MODE", "json")
        .env_remove("NODE_UNIQUE_ID");
    if let Some(cluster) = link.cluster() {
        cluster.prepare(&mut start.command, id_of(who));
    }
    if let Some(file) = &offer.preload {
        preload::load(&mut start.command, file)?;
    }
    let (command, mut preparation) = start.prepare();
    preparation.place = vec![theirs];
    let process = Process::start(command, preparation)?;
    Ok(Worker::new(who, process, words, super::Link::Piped(Box::new(link))))
}

/// What a worker is known by to its application: its slot, which its successor has as well.
fn id_of(who: Who) -> u32 {
    who.slot.0
}
