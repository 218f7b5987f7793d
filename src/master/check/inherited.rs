//! A worker of a check that accepts by itself.
//!
//! On the pool's own sockets it would take clients, so it gets others: of the same kind, and known to nobody.
//! A program that compares their addresses with a configuration of its own (nginx, php-fpm) does not find
//! what it looks for, and says so.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Daemon;
use crate::config::{Manner, Pool, why};
use crate::kinds::inherit::{Offer, Offered, Readiness, new_name};
use crate::kinds::notice::{Said, read};
use crate::master::inherited::is_waiting;
use crate::master::notify::store_name;
use crate::supervisor::{Accept, ListenerId, WorkerId};
use crate::sys::listen::{Local, listen_abstract, listen_tcp, local, set_blocking};
use crate::wire::message::Ready;

/// Notices that are read per turn.
const BATCH: usize = 64;

/// A socket of the same kind, where nobody comes.
fn stand_in(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    match local(socket) {
        Local::Tcp(SocketAddr::V4(_)) => listen_tcp((Ipv4Addr::LOCALHOST, 0).into()),
        Local::Tcp(SocketAddr::V6(_)) => listen_tcp((Ipv6Addr::LOCALHOST, 0).into()),
        Local::Unix(_) | Local::Abstract(_) | Local::Other => {
            listen_abstract(new_name()?.as_bytes())
        }
    }
}

impl Daemon {
    /// What the worker of a check is given in the place of these listeners.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn stand_ins(&self, pool: &Pool, ids: &[ListenerId]) -> Result<Offer, String> {
        let (watchdog, are_shared) = (pool.policy.watchdog, pool.policy.accept == Accept::Workers);
        let mut offer = Offer { watchdog, are_shared, stands_in: true, ..Offer::default() };
        for &id in ids {
            let Some(listener) = self.listeners.get(id) else { continue };
            let made = stand_in(listener.as_fd()).and_then(|socket| {
                set_blocking(socket.as_fd(), pool.manner.blocking)?;
                Ok(socket)
            });
            let socket = made.map_err(|error| why(&error))?;
            // What it is told of the place is what a worker would be told.
            offer.sockets.push(Offered {
                listener: id,
                entry: listener.name.clone(),
                name: store_name(&listener.name),
                local: local(listener.as_fd()),
                socket,
            });
        }
        Ok(offer)
    }

    /// From now on it is looked after.
    pub(super) fn await_checked(&mut self, id: WorkerId, manner: &Manner) {
        let now = self.now;
        let worker = self.check.part(id).and_then(|part| part.worker.as_mut());
        if let Some(link) = worker.and_then(|worker| worker.inherit_mut()) {
            link.readiness = Readiness::of(manner, !link.sockets.is_empty(), now);
        }
    }

    /// Hears what it has said. Whether it is one that accepts by itself.
    pub(super) fn hear_checked(&mut self, id: WorkerId) -> bool {
        for _ in 0..BATCH {
            let Some(worker) = self.check.part(id).and_then(|part| part.worker.as_ref()) else {
                return false;
            };
            let Some(link) = worker.inherit() else { return false };
            let Ok(Some(notice)) = link.notices.next() else { return true };
            let is_its = link.knows(&worker.process, notice.sender);
            let is_ready = read(&notice.bytes).is_ok_and(|said| said.contains(&Said::Ready));
            if is_its && is_ready {
                self.note_checked_inherited(id);
            }
        }
        true
    }

    /// The worker of a check to which this process belongs says that it is ready. Whether it is one.
    pub(in crate::master) fn acknowledge_checked(&mut self, pid: u32) -> bool {
        let found = self.check.parts.iter().find(|part| {
            let worker = part.worker.as_ref();
            worker.is_some_and(|it| it.inherit().is_some_and(|link| link.knows(&it.process, pid)))
        });
        let id = found.map(|part| part.id);
        id.into_iter().for_each(|id| self.note_checked_inherited(id));
        id.is_some()
    }

    /// Looks whether those have become ready that do not say so.
    pub(super) fn look_after_checked(&mut self) {
        let now = self.now;
        let mut ready = Vec::new();
        for part in &mut self.check.parts {
            let Some(worker) = &mut part.worker else { continue };
            let crate::kinds::Link::Inherit(link) = &mut worker.link else { continue };
            match link.readiness {
                Readiness::Settled { at } if at <= now => ready.push(part.id),
                Readiness::Seen { at, .. } if at <= now => {
                    match is_waiting(&worker.process, link) {
                        true => ready.push(part.id),
                        false => link.readiness = link.readiness.look_again(now),
                    }
                }
                Readiness::Settled { .. }
                | Readiness::Seen { .. }
                | Readiness::Told
                | Readiness::Known => {}
            }
        }
        ready.into_iter().for_each(|id| self.note_checked_inherited(id));
    }

    fn note_checked_inherited(&mut self, id: WorkerId) {
        let Some(part) = self.check.part(id) else { return };
        if let Some(link) = part.worker.as_mut().and_then(|worker| worker.inherit_mut()) {
            link.readiness = Readiness::Known;
        }
        if !std::mem::replace(&mut part.is_ready, true) {
            self.note_checked_ready(id, &Ready::default());
        }
    }
}
