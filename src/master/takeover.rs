//! How the inherit workers of a killed master go on with this one.
//!
//! They hold the listening sockets and have served on; they know nothing of masters, and need not come. So
//! one is taken over as soon as its process is found, by number and moment of start. Its notices come to
//! the same name as before, which is bound again. What it said in between is lost; of one that was starting
//! it is therefore not known whether it has become ready. It is looked at: one that waits for clients is,
//! any other is ended and started again.
//!
//! Listening sockets that nobody else keeps are had from these workers, as ptrace(2) allows it: the same
//! user, or root. So is the pipe that they write to; they hold its read end themselves, so that writing does
//! not end them in between.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::libc;
use nix::sys::signal::Signal;

use super::absent::Absent;
use super::inherited::is_waiting;
use super::journal::{Level, Origin};
use super::{Daemon, Token, state};
use crate::config::{Log, why};
use crate::kinds::inherit::Readiness;
use crate::kinds::{Link, Worker};
use crate::supervisor::{Event, WorkerId};
use crate::sys::accepting::descriptors;
use crate::sys::family;
use crate::sys::process::Process;

impl Daemon {
    /// The listening sockets of our own that the workers have and nobody else keeps.
    pub(super) fn fetch_listeners(&mut self, listeners: &state::Listeners) {
        let named = listeners.open.iter().filter_map(|listener| match &listener.origin {
            state::Origin::Bound { name: Some(name), .. } => Some((listener.inode, name.clone())),
            state::Origin::Bound { name: None, .. } | state::Origin::Inherited(_) => None,
        });
        let mut missing: BTreeMap<u64, String> = named.filter(|(inode, _)| *inode != 0).collect();
        if self.notify.has_manager() {
            return;
        }
        let inherited = self.absent.values().filter(|absent| absent.inherited.is_some());
        let all: Vec<u32> = inherited.map(|absent| absent.process.id()).collect();
        let (mut found, mut failure) = (Vec::new(), None);
        for member in all.into_iter().flat_map(family::members) {
            if missing.is_empty() {
                break;
            }
            for (number, inode) in descriptors(member.id, &missing.keys().copied().collect()) {
                let process = Process::find(member.id, member.begun);
                match process.and_then(|process| process.fetch(number)) {
                    Ok(socket) => found.extend(missing.remove(&inode).map(|name| (name, socket))),
                    Err(error) => failure = Some(error),
                }
            }
        }
        self.listeners.give_back(found);
        if let Some(error) = failure.filter(|_| !missing.is_empty()) {
            let text = format!(
                "listening sockets that workers have cannot be had from them ({}): run rcluster as \
                 their user or as root, or use sockets of a .socket unit",
                why(&error)
            );
            self.say(Level::Warning, text);
        }
    }

    /// Takes over the inherit workers that are there.
    pub(super) fn take_over_inherited(&mut self) {
        let found = self.absent.iter().filter(|(_, absent)| absent.inherited.is_some());
        for id in found.map(|(&id, _)| id).collect::<Vec<_>>() {
            let Some(Absent { who, seat, process, inherited: Some(inherited), .. }) =
                self.absent.remove(&id)
            else {
                continue;
            };
            let was_ready = inherited.is_ready();
            let link = inherited.resume_alone(&process);
            let words = self.boards.seat(who.pool, seat);
            let taken = link.and_then(|(link, warning)| Ok((link, warning, words?.1)));
            let (link, warning, words) = match taken {
                Ok(taken) => taken,
                Err(error) => {
                    let why = why(&error);
                    self.say(Level::Error, format!("worker {id} cannot be taken over: {why}"));
                    // It has just ended, where that fails.
                    let _ = process.signal_group(Signal::SIGKILL);
                    continue;
                }
            };
            words.clear(0);
            let is_ready = was_ready || is_waiting(&process, &link);
            let is_leaving = link.is_leaving;
            let link = Link::Inherit(Box::new(link));
            self.workers.insert(id, Worker::new(who, process, words, link));
            self.hear_from_now_on(id, warning);
            match is_ready {
                true => self.join_inherited(id, is_leaving),
                false => self.signal(id, Signal::SIGKILL),
            }
        }
    }

    fn hear_from_now_on(&mut self, id: WorkerId, warning: Option<io::Error>) {
        let Some(worker) = self.workers.get(&id) else { return };
        let watched = self.poller.add(&worker.link, Token::Channel(id).encode());
        if let Some(error) = warning.or(watched.err()) {
            let who = self.describe(id);
            self.say(Level::Warning, format!("{who} cannot be heard any more: {}", why(&error)));
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.is_watched = false;
            }
        }
        if let Err(error) = self.follow_inherited(id) {
            let who = self.describe(id);
            let why = why(&error);
            self.say(Level::Warning, format!("the output of {who} cannot be read any more: {why}"));
        }
    }

    fn join_inherited(&mut self, id: WorkerId, draining: bool) {
        if let Some(link) = self.workers.get_mut(&id).and_then(Worker::inherit_mut) {
            link.readiness = Readiness::Known;
        }
        let (limit, handback, handed_back, rescued) = (0, false, 0, Vec::new());
        self.report(Event::Joined { worker: id, limit, handback, draining, handed_back, rescued });
        self.reschedule(id);
    }

    /// Reads on what a worker writes, where no service manager keeps the pipe.
    fn follow_inherited(&mut self, id: WorkerId) -> io::Result<()> {
        let Some(worker) = self.workers.get(&id) else { return Ok(()) };
        if self.notify.has_manager() || self.config.master.log != Log::Fields {
            return Ok(());
        }
        let (who, pid) = (worker.who, worker.process.id());
        let path = format!("/proc/{pid}/fd/1");
        let link = std::fs::read_link(&path)?;
        if !link.as_os_str().to_string_lossy().starts_with("pipe:") {
            // It writes elsewhere by now.
            return Ok(());
        }
        let pipe = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let inode = pipe.metadata()?.ino();
        let is_own = |number| {
            std::fs::metadata(format!("/proc/self/fd/{number}")).is_ok_and(|it| it.ino() == inode)
        };
        if is_own(1) || is_own(2) {
            return Ok(());
        }
        let pool = self.editions.name(who.pool).to_owned();
        let (slot, generation) = (who.slot.0, who.generation.0);
        self.journal.follow(id.0, Origin { pool, slot, generation, pid }, OwnedFd::from(pipe));
        Ok(())
    }
}
