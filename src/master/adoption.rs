//! How the workers of a killed master go on with this one.
//!
//! ```text
//! HELLO ─▶ is it the one?  ─▶ WELCOME ─▶ READY ─▶ it has joined ─▶ what it has said is heard
//! at the door  (`door`)    on the channel  at the door                on the channel
//! ```
//!
//! Until its READY comes, a worker is *joining*. WELCOME stands in its queue behind all that the dead
//! master has sent, so it has taken all that when it answers, and its counters are exact. What it said
//! to the dead master, which nobody has heard, stays in the channel until then: nothing is taken into
//! this master's hand that the mind has no place for.
//!
//! Where no service manager keeps descriptors for the next start, the workers do: every welcomed one
//! has a dormant duplicate of each listener, and of the read end of its own output. They bring them
//! along, under the names that they would have in systemd's store.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::absent::Absent;
use super::door::{Door, Guests, Hello};
use super::inherit::{LISTENERS, LOGS};
use super::journal::{Entry, Level};
use super::outbox::clock;
use super::passing::Verdict;
use super::{Daemon, state};
use crate::kinds::native::{self, Heard};
use crate::kinds::{Link, Worker};
use crate::supervisor::{Event, Held, WorkerId};
use crate::sys::socket::wait_readable;
use crate::wire::message::{Ready, ToMaster, ToWorker, Token as Secret};
use crate::wire::scoreboard::Scoreboard;

/// How long to wait at the start for the first worker, who brings the listeners along.
const LISTENERS_PATIENCE: Duration = Duration::from_secs(3);

/// Who comes, and where.
#[derive(Debug, Default)]
pub(crate) struct Adoption {
    pub(super) door: Option<Door>,
    pub(super) guests: Guests,
    /// Those that were welcomed and have not answered.
    joining: BTreeSet<WorkerId>,
    /// Connections that each of those who have come had been sent by the master before, less those
    /// that were read back.
    pub(super) came_with: BTreeMap<WorkerId, u64>,
    /// The mind knows whom to expect.
    pub(super) is_open: bool,
}

impl Adoption {
    /// Another image has welcomed it, and its way to us is lost: it comes again.
    pub(crate) fn await_again(&mut self, worker: WorkerId) {
        self.joining.insert(worker);
    }

    /// Whether this worker was welcomed and has not answered.
    pub(crate) fn is_joining(&self, id: WorkerId) -> bool {
        self.joining.contains(&id)
    }

    /// Whether workers outlive this master.
    pub(crate) fn has_door(&self) -> bool {
        self.door.is_some()
    }
}

/// A secret as text, for the state.
pub(crate) fn text_of(secret: &Secret) -> String {
    secret.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// And back.
pub(crate) fn secret_of(text: &str) -> Option<Secret> {
    let digits = |index: usize| text.get(index * 2..index * 2 + 2);
    let mut secret = Secret::default();
    for (index, byte) in secret.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits(index)?, 16).ok()?;
    }
    (text.len() == 2 * secret.len()).then_some(secret)
}

/// One that nobody can guess.
fn new_secret() -> io::Result<Secret> {
    let mut secret = Secret::default();
    std::fs::File::open("/dev/urandom")?.read_exact(&mut secret)?;
    Ok(secret)
}

impl Daemon {
    /// At the start, before the listeners are opened: where nobody else keeps them, the first worker
    /// that comes brings them along. Nothing else is to be done in this time.
    pub(super) fn await_listeners(&mut self, listeners: &state::Listeners) {
        let is_missing = |it: &state::Listener| match &it.origin {
            state::Origin::Bound { name: Some(name), .. } => !self.listeners.has_kept(name),
            state::Origin::Bound { name: None, .. } | state::Origin::Inherited(_) => false,
        };
        let are_missing = !self.notify.has_manager() && listeners.open.iter().any(is_missing);
        if !are_missing || !self.is_anybody_to_come() || self.adoption.door.is_none() {
            return;
        }
        let end = clock() + LISTENERS_PATIENCE;
        loop {
            self.observe_door();
            for id in self.adoption.guests.all.keys().copied().collect::<Vec<_>>() {
                self.observe_guest(id);
            }
            let guests = &mut self.adoption.guests.all;
            if let Some(guest) = guests.values_mut().find(|guest| guest.is_complete()) {
                let kept = guest.kept.iter().filter(|(key, _)| key.starts_with(LISTENERS));
                let copies = kept.map(|(key, socket)| Ok((key.clone(), socket.try_clone()?)));
                match copies.collect::<io::Result<Vec<_>>>() {
                    Ok(copies) => self.listeners.give_back(copies),
                    Err(error) => self.say(Level::Error, format!("listeners are lost: {error}")),
                }
                return;
            }
            let left = end.saturating_duration_since(clock());
            if left.is_zero() {
                let text = "no worker has brought the listening sockets along: they are bound anew";
                return self.say(Level::Warning, text);
            }
            let door = self.adoption.door.iter().map(|door| door.socket.as_fd());
            let guests = self.adoption.guests.all.values().map(|guest| guest.socket.as_fd());
            let sources: Vec<BorrowedFd<'_>> = door.chain(guests).collect();
            if let Err(error) = wait_readable(&sources, Some(left)) {
                return self.say(Level::Error, format!("no worker can be waited for: {error}"));
            }
        }
    }

    /// Whether there are absent workers that will come.
    fn is_anybody_to_come(&self) -> bool {
        self.absent.values().any(|absent| absent.inherited.is_none())
    }

    /// From now on whoever has proven who he is is adopted, and those first who have done so.
    pub(super) fn adopt_guests(&mut self) {
        self.adoption.is_open = true;
        for id in self.adoption.guests.all.keys().copied().collect::<Vec<_>>() {
            self.observe_guest(id);
        }
    }

    pub(super) fn adopt_guest(&mut self, id: u64) {
        let Some(guest) = self.adoption.guests.all.get_mut(&id) else { return };
        let (Some(hello), kept) = (guest.hello.take(), std::mem::take(&mut guest.kept)) else {
            return;
        };
        guest.worker = Some(hello.worker);
        let worker = hello.worker;
        if let Err(why) = self.adopt_worker(hello, kept) {
            self.forget_guest(id);
            let who = self.describe(worker);
            self.say(Level::Error, format!("{who} cannot be taken over and is killed: {why}"));
            self.signal(worker, Signal::SIGKILL);
        }
    }

    fn adopt_worker(&mut self, hello: Hello, kept: Vec<(String, OwnedFd)>) -> Result<(), String> {
        let plain = |error: io::Error| crate::config::why(&error);
        let Hello { worker: id, theirs, ours, board, .. } = hello;
        let keys = kept.iter().map(|(key, _)| key.clone()).collect();
        if self.adoption.joining.contains(&id) {
            // It lost its way to us before it could answer.
            self.welcome(id, Some(&keys));
            return Ok(());
        }
        let Some(absent) = self.absent.get(&id) else { return Err("it has just ended".into()) };
        let token = secret_of(&absent.token).ok_or("its token is none")?;
        let (who, seat) = (absent.who, absent.seat);
        let board = Scoreboard::open(board).map_err(plain)?;
        let words = self.boards.take_over(who.pool, board, seat).map_err(plain)?;
        let Some(Absent { process, .. }) = self.absent.remove(&id) else { return Ok(()) };
        let mut link = native::Link::new(ours, theirs).map_err(plain)?;
        link.token = Some(token);
        let worker = Worker::new(who, process, words, Link::Native(link));
        self.workers.insert(id, Worker { is_watched: false, ..worker });
        self.adoption.joining.insert(id);
        for (key, what) in kept.into_iter().filter(|(key, _)| key.starts_with(LOGS)) {
            self.follow_again(id, &key, what);
        }
        self.welcome(id, Some(&keys));
        Ok(())
    }

    /// A worker that was welcomed answers: from now on it is as any other.
    pub(super) fn join(&mut self, id: WorkerId, message: &ToMaster) {
        let ToMaster::Ready(ready) = message else { return };
        let Ready { limit, handback, draining, tells, .. } = *ready;
        let is_welcomed = self.native(id).is_some_and(|link| link.is_welcomed);
        if !is_welcomed || !self.adoption.joining.remove(&id) {
            return;
        }
        if let Some(link) = self.native_mut(id) {
            link.tells = tells;
        }
        let Some(worker) = self.workers.get(&id) else { return };
        let (handed_back, rescued) = (worker.words.handed_back().1, Vec::new());
        let taken = worker.words.counts().taken;
        self.adoption.came_with.insert(id, taken);
        if let Some(link) = self.native_mut(id) {
            (link.sent, link.hands_back) = (taken, draining);
        }
        self.report(Event::Joined { worker: id, limit, handback, draining, handed_back, rescued });
        self.watch_channel(id);
    }

    /// A worker that has not joined has died. What it had handed back goes to others, as what it had
    /// not received does. Whether it was one.
    pub(super) fn bury_joining(&mut self, id: WorkerId) -> Option<Vec<Held>> {
        if !self.adoption.joining.remove(&id) {
            return None;
        }
        let mut rescued = Vec::new();
        while let Some(Ok(heard)) = self.native(id).map(native::Link::hear) {
            let Heard::Message(message, descriptors) = heard else { break };
            let ToMaster::Handback { listener, past, entry: _ } = message else { continue };
            // In doubt it is not sent a second time.
            if self.judge_handback(id, &descriptors) == Verdict::IsOurs {
                rescued.extend(self.unpack_back(id, &listener, past, descriptors));
            }
        }
        Some(rescued)
    }

    /// The queue of a worker that has not joined was read back: it had taken the rest.
    pub(super) fn note_came_with(&mut self, id: WorkerId) {
        let Some((worker, link)) = self.workers.get(&id).and_then(|it| Some((it, it.native()?)))
        else {
            return;
        };
        let had = worker.words.counts().taken.saturating_add(link.read_back);
        self.adoption.came_with.insert(id, had);
    }

    /// By which the next master will know a worker, if there can be one.
    pub(super) fn new_token(&mut self) -> Option<Secret> {
        self.adoption.door.as_ref()?;
        match new_secret() {
            Ok(secret) => Some(secret),
            Err(error) => {
                let text = format!("workers will not outlive this master: {error}");
                self.say_once(Entry::new(Level::Warning, text));
                None
            }
        }
    }

    /// Tells a worker how it outlives this master, after all that it is to keep for the next one.
    /// `known`: it outlived another, and keeps this.
    pub(super) fn welcome(&mut self, id: WorkerId, known: Option<&BTreeSet<String>>) {
        let Some(door) = &self.adoption.door else { return };
        let Some(link) = self.native(id) else { return };
        let Some(token) = link.token else { return };
        let kept = if self.notify.has_manager() { Vec::new() } else { self.listeners.keepsakes() };
        let path = door.path.as_str();
        let orphan_timeout = self.config.master.orphan_timeout;
        let answer = known.is_some();
        let tell = || -> io::Result<()> {
            let is_new = |key: &str| known.is_none_or(|known| !known.contains(key));
            for (key, socket) in kept.iter().filter(|(key, _)| is_new(key)) {
                link.entrust(key, *socket)?;
            }
            if let Some((key, log)) = &link.log {
                link.entrust(key, log.as_fd())?;
            }
            let is_needed =
                |key: &str| key.starts_with(LOGS) || kept.iter().any(|(other, _)| *other == key);
            for key in known.into_iter().flatten().filter(|key| !is_needed(key)) {
                link.tell(&ToWorker::Forget { key })?;
            }
            let message = ToWorker::Welcome { path, token, orphan_timeout, answer }.encode();
            link.channel.send(&message, door.pidfd.as_fd(), Some(link.channel.as_fd()))
        };
        let told = tell();
        let Some(link) = self.native_mut(id) else { return };
        link.log = None;
        match told {
            Ok(()) => link.is_welcomed = true,
            Err(error) => {
                let who = self.describe(id);
                let text = format!("{who} will not outlive this master: {error}");
                self.say(Level::Warning, text);
            }
        }
    }

    /// A worker is done, and everything that it said has been read.
    pub(super) fn say_bye(&mut self, id: WorkerId) {
        if self.native(id).is_some_and(|link| link.is_welcomed) {
            self.tell(id, &ToWorker::Bye);
        }
    }

    /// Every welcomed worker keeps duplicates of the sockets of these names, where no service
    /// manager does.
    pub(super) fn entrust_all(&mut self, names: &[String]) {
        let kept: BTreeMap<&str, BorrowedFd<'_>> = self.listeners.keepsakes().into_iter().collect();
        let told = self.tell_welcomed(|link| {
            let mut named = names.iter().filter_map(|name| Some((name, *kept.get(name.as_str())?)));
            named.try_for_each(|(name, socket)| link.entrust(name, socket))
        });
        self.say_untold(told);
    }

    /// They close what they keep under this name.
    pub(super) fn forget_all(&mut self, key: &str) {
        let told = self.tell_welcomed(|link| link.tell(&ToWorker::Forget { key }));
        self.say_untold(told);
    }

    /// Answers those that cannot be told.
    fn tell_welcomed(
        &self,
        tell: impl Fn(&native::Link) -> io::Result<()>,
    ) -> Vec<(WorkerId, io::Error)> {
        if self.notify.has_manager() {
            return Vec::new();
        }
        let alive = self.workers.iter().filter(|(_, worker)| !worker.is_reaped);
        let links = alive.filter_map(|(&id, worker)| Some((id, worker.native()?)));
        let welcomed = links.filter(|(_, link)| link.is_welcomed);
        welcomed.filter_map(|(id, link)| Some((id, tell(link).err()?))).collect()
    }

    fn say_untold(&mut self, untold: Vec<(WorkerId, io::Error)>) {
        for (id, error) in untold {
            let who = self.describe(id);
            let text = format!("{who} does not know the listeners for the next master: {error}");
            self.say(Level::Warning, text);
        }
    }
}
