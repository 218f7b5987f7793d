//! From one master to the next.
//!
//! *The kernel's queue is the ledger*, in both directions: a worker that was welcomed holds a
//! duplicate of the master's end of the channel, so the channel outlives the master. What the master
//! has sent is received as ever; what the worker says waits for the next master. There is then no
//! end-of-file, and the master's death is learned from its pidfd (which stays silent when the master
//! replaces its own image).
//!
//! ```text
//!            pidfd readable              connected             WELCOME on the channel
//! mastered ────────────────▶ orphaned ─────────────▶ introduced ──────────────▶ mastered
//!    ▲                        │  ▲  │                   │   │
//!    └────── WELCOME ─────────┘  └──┼─── its end ───────┘   │ BYE
//!                                   │ orphan timeout        ▼
//!                                   └─────────────────▶ drains, and leaves
//! ```
//!
//! The *keeper* is a thread of its own, started by the first WELCOME: a blocking program and an
//! asynchronous one need the same. An orphan serves on. The keeper connects to the adoption socket as
//! soon as somebody listens there, and sends HELLO: the token of the last WELCOME, both ends of the
//! channel, the scoreboard, and then, as KEEP, all that the dead master left for the next one. A
//! master that wants the worker answers with WELCOME on the channel, behind all that is there, and the
//! worker with READY on this connection: then everybody knows where they are. A master that does not
//! want it says BYE on this connection; when the connection just ends, that master is dead, too.
//!
//! Once the drain has begun nobody takes from the channel, so the keeper does: it hears BYE, which
//! says that the last HANDBACK and DRAINED have been read. Until then the process must not end: its
//! duplicate may be all that holds what it has handed back. And it answers the master who asks what
//! the drain waits for; where there was no WELCOME, the thread is started for that by DRAIN.
//!
//! A worker that nobody adopts tells itself to drain, through the end of the master that it holds:
//! so everything that the master sent comes before. It can still be adopted while it drains.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::drain::ORPHAN_GRACE;
use super::link::Link;
use super::orphan::Orphan;
use super::registry;
use super::taker::now;
use super::tell::tell;
use crate::sys::ancillary::{send, send_three, send_with};
use crate::sys::socket::{connect_packets, is_readable, wait_readable, wait_writable};
use crate::wire::LOG_KEY;
use crate::wire::channel::{End, Received, duplicate};
use crate::wire::message::{LENGTH_MAX, ToMaster, ToWorker, Token};

/// What the thread needs: it calls nobody else's code.
const STACK: usize = 128 * 1024;

/// How long a master may take to read an introduction.
const PATIENCE: Duration = Duration::from_secs(5);

/// The descriptors that came with a message.
#[derive(Debug)]
pub(super) struct Luggage {
    pub first: Option<OwnedFd>,
    pub second: Option<OwnedFd>,
    /// The kernel kept something.
    pub swallowed: bool,
}

/// What is there to find the next master, and to be known by him.
#[derive(Debug)]
struct Welcome {
    path: PathBuf,
    token: Token,
    orphan_timeout: Duration,
    /// Readable when the master is dead.
    master: OwnedFd,
    /// A duplicate of the master's end of the channel.
    end: End,
}

/// What the keeper's thread is told.
#[derive(Debug)]
pub(super) struct Keeper {
    inbox: Mutex<Inbox>,
    bell: EventFd,
}

#[derive(Debug, Default)]
struct Inbox {
    /// The newest one, until the thread has it.
    welcome: Option<Welcome>,
    /// Where the worker has introduced itself.
    socket: Weak<OwnedFd>,
    /// For the next master, by key.
    kept: BTreeMap<String, Arc<OwnedFd>>,
    is_running: bool,
}

impl Keeper {
    pub fn new() -> io::Result<Keeper> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Keeper { inbox: Mutex::default(), bell })
    }

    /// There is something to look at.
    pub fn ring(&self) {
        // Only a counter near its maximum could refuse.
        let _ = self.bell.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Every update is complete.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what a message says that has to do with the next master. Any thread that takes from the
/// channel; never two at once.
pub(super) fn heed(link: &Arc<Link>, message: &ToWorker<'_>, luggage: Luggage) {
    match *message {
        ToWorker::Welcome { path, token, orphan_timeout, answer } => {
            let (Some(master), Some(end)) = (luggage.first, luggage.second) else {
                tell!("this worker cannot outlive its master: a descriptor got lost on the way");
                return;
            };
            let (path, end) = (PathBuf::from(path), End::new(end));
            let welcome = Welcome { path, token, orphan_timeout, master, end };
            if answer {
                // Before the thread hears of it, which then closes the connection.
                say_ready_again(link);
            }
            if let Err(error) = settle_in(link, welcome) {
                tell!("this worker cannot outlive its master: {error}");
            }
        }
        ToWorker::Bye => link.await_nothing(),
        ToWorker::Keep { key } => {
            if let Some(kept) = luggage.first {
                link.keeper().lock().kept.insert(key.to_owned(), Arc::new(kept));
            }
        }
        ToWorker::Forget { key } => drop(link.keeper().lock().kept.remove(key)),
        // Before the drain nobody asks: the taker must not have to wait here.
        ToWorker::Ask { round } if link.is_draining() => {
            // The master sees what has not come.
            let _ = registry::answer(link, round);
        }
        ToWorker::Connection { .. }
        | ToWorker::Drain { .. }
        | ToWorker::Ping
        | ToWorker::Listen { .. }
        | ToWorker::Ask { .. }
        | ToWorker::Unknown(_) => {}
    }
}

/// Answers where the worker introduced itself: what stands in the channel may be of masters ago. With
/// what has come to pass since.
fn say_ready_again(link: &Link) {
    let Some(mut ready) = link.ready() else { return };
    if let ToMaster::Ready(ready) = &mut ready {
        ready.draining = link.is_draining();
    }
    let socket = link.keeper().lock().socket.upgrade();
    if let Some(Err(error)) = socket.map(|socket| send(socket.as_fd(), &ready.encode())) {
        // It is dead again, or will give this worker up.
        tell!("the next master cannot be answered: {error}");
    }
    if link.is_drained() {
        // Whoever heard it may be dead.
        link.say(&ToMaster::Drained);
    }
}

/// There is a master, the first or the next. The thread is started if it does not run yet.
fn settle_in(link: &Arc<Link>, welcome: Welcome) -> io::Result<()> {
    let keeper = link.keeper();
    let mut inbox = keeper.lock();
    if inbox.is_running {
        inbox.welcome = Some(welcome);
        drop(inbox);
        link.await_bye();
        keeper.ring();
        return Ok(());
    }
    start(link, &mut inbox, Some(welcome))?;
    drop(inbox);
    link.await_bye();
    Ok(())
}

/// The drain has begun: from now on the thread takes from the channel, also where nobody has said
/// WELCOME.
pub(super) fn listen(link: &Arc<Link>) {
    let mut inbox = link.keeper().lock();
    if !inbox.is_running {
        if let Err(error) = start(link, &mut inbox, None) {
            tell!("this worker cannot say what it holds: {error}");
        }
    }
}

fn start(link: &Arc<Link>, inbox: &mut Inbox, welcome: Option<Welcome>) -> io::Result<()> {
    let watch = Watch {
        link: Arc::downgrade(link),
        keeper: Arc::clone(link.keeper()),
        channel: duplicate(link.channel())?,
        board: link.board().try_clone_to_owned()?,
        welcome,
        orphan: None,
        log: None,
        is_deaf: false,
    };
    let thread = std::thread::Builder::new().name("rcluster-keeper".into()).stack_size(STACK);
    thread.spawn(move || watch.run())?;
    inbox.is_running = true;
    Ok(())
}

/// What the thread knows.
struct Watch {
    /// Its end is the thread's end.
    link: Weak<Link>,
    keeper: Arc<Keeper>,
    channel: End,
    board: OwnedFd,
    /// `None`: nobody wants this worker any more.
    welcome: Option<Welcome>,
    /// The master is dead.
    orphan: Option<Orphan>,
    /// Where this process' output ends, when nobody will ever read it.
    log: Option<Arc<OwnedFd>>,
    /// The channel is at its end.
    is_deaf: bool,
}

impl Watch {
    fn run(mut self) {
        loop {
            let is_draining = match self.link.upgrade() {
                None => return,
                Some(link) if link.is_over() => return,
                Some(link) => link.is_draining(),
            };
            if let Err(error) = self.wait(is_draining) {
                // poll(2) fails for want of memory only. Then the channel ends with the master.
                tell!("this worker cannot outlive its master any longer: {error}");
                return self.link.upgrade().iter().for_each(|link| link.await_nothing());
            }
            let _ = self.keeper.bell.read();
            let Some(link) = self.link.upgrade() else { return };
            if link.is_draining() {
                self.hear(&link);
            }
            self.discard();
            self.take_welcome();
            self.look_for_master(&link);
        }
    }

    /// Goes on with a new master. One who is dead already may have left a WELCOME, too.
    fn take_welcome(&mut self) {
        let Some(welcome) = self.keeper.lock().welcome.take() else { return };
        if self.orphan.is_none() || !is_readable(welcome.master.as_fd()).is_ok_and(|it| it) {
            (self.welcome, self.orphan, self.log) = (Some(welcome), None, None);
        }
    }

    /// Waits until there is anything to look at.
    fn wait(&self, is_draining: bool) -> io::Result<()> {
        let mut sources: Vec<BorrowedFd<'_>> = vec![self.keeper.bell.as_fd()];
        if is_draining && !self.is_deaf {
            sources.push(self.channel.as_fd());
        }
        sources.extend(self.log.iter().map(|log| log.as_fd()));
        let mut limit = None;
        match (&self.welcome, &self.orphan) {
            (Some(welcome), None) => sources.push(welcome.master.as_fd()),
            (Some(_), Some(orphan)) => {
                sources.extend(orphan.sources());
                limit = orphan.deadline().map(|at| at.saturating_duration_since(now()));
            }
            (None, _) => {}
        }
        wait_readable(&sources, limit)
    }

    /// Takes from the channel, since the drain keeps everybody else from it.
    fn hear(&mut self, link: &Arc<Link>) {
        let mut buffer = [0; LENGTH_MAX];
        while !self.is_deaf {
            match self.channel.receive(&mut buffer) {
                Ok(Received::Message { len, descriptor, second, swallowed, .. }) => {
                    let luggage = Luggage { first: descriptor, second, swallowed };
                    // The taker has complained about what is malformed.
                    if let Ok(message) = ToWorker::decode(&buffer[..len]) {
                        heed(link, &message, luggage);
                    }
                }
                Ok(Received::Empty) => return,
                Ok(Received::Closed) | Err(_) => self.is_deaf = true,
            }
        }
    }

    /// Nobody will read what this process prints, and it must not wait for that.
    fn discard(&self) {
        let Some(log) = &self.log else { return };
        let mut buffer = [0; 4096];
        while is_readable(log.as_fd()).is_ok_and(|it| it) {
            match nix::unistd::read(log.as_fd(), &mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn look_for_master(&mut self, link: &Link) {
        let Some(welcome) = &self.welcome else { return };
        if self.orphan.is_none() {
            match is_readable(welcome.master.as_fd()) {
                Ok(true) => self.orphan = Some(Orphan::new(now() + welcome.orphan_timeout)),
                Ok(false) | Err(_) => return,
            }
        }
        let Some(orphan) = &mut self.orphan else { return };
        if orphan.until.is_some_and(|until| until <= now()) {
            orphan.until = None;
            let seconds = welcome.orphan_timeout.as_secs_f64();
            tell!("the master is dead, and no other has come for {seconds} s: draining");
            self.give_up(link);
        } else if orphan.is_refused() {
            tell!("the master is dead, and the next one does not want this worker: draining");
            self.give_up(link);
            (self.welcome, self.orphan) = (None, None);
            return;
        }
        let (Some(welcome), Some(orphan)) = (&self.welcome, &mut self.orphan) else { return };
        if orphan.is_due(&welcome.path) {
            let introduced = self.introduce(welcome);
            if let Some(orphan) = &mut self.orphan {
                orphan.note(introduced);
            }
        }
    }

    /// Connects to where the next master listens, and says who this is.
    fn introduce(&self, welcome: &Welcome) -> io::Result<Arc<OwnedFd>> {
        let socket = Arc::new(connect_packets(&welcome.path)?);
        // Before HELLO: the taker may have to answer as soon as that is read.
        self.keeper.lock().socket = Arc::downgrade(&socket);
        let kept: Vec<_> = self.keeper.lock().kept.clone().into_iter().collect();
        let count = u32::try_from(kept.len()).unwrap_or(u32::MAX);
        let hello = ToMaster::Hello { token: welcome.token, kept: count }.encode();
        let descriptors = [self.channel.as_fd(), welcome.end.as_fd(), self.board.as_fd()];
        send_three(socket.as_fd(), &hello, descriptors)?;
        for (key, descriptor) in kept {
            let message = ToMaster::Keep { key }.encode();
            let send = || send_with(socket.as_fd(), &message, descriptor.as_fd(), None);
            match send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_writable(socket.as_fd(), Some(PATIENCE))?;
                    send()?;
                }
                sent => sent?,
            }
        }
        Ok(socket)
    }

    /// Nobody is waited for any longer: the worker drains, after all that it was sent.
    fn give_up(&mut self, link: &Link) {
        let kept = self.keeper.lock().kept.clone();
        self.log = kept.into_iter().find(|(key, _)| key.starts_with(LOG_KEY)).map(|(_, log)| log);
        link.keep_all();
        link.await_nothing();
        if let Some(welcome) = &self.welcome {
            let drain = ToWorker::Drain { deadline: ORPHAN_GRACE, handback: false };
            // A queue that is full is not read by anybody, and one that is closed says the same.
            let _ = welcome.end.send(&drain.encode());
        }
    }
}
