//! Workers of a master that was killed, which have not come to this one yet.
//!
//! What they are is known from the state; what they have is with them. Each is known for certain by
//! its process id together with the moment of its start. Until it comes it can only be watched, and
//! killed.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::journal::Level;
use super::{Daemon, Token, state};
use crate::supervisor::{Event, Seat, Who, WorkerId};
use crate::sys::process::Process;
use crate::sys::socket::wait_readable;

/// How long a process that was sent SIGKILL may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(1);

/// Such a worker.
#[derive(Debug)]
pub(crate) struct Absent {
    pub(crate) who: Who,
    pub(crate) seat: Seat,
    pub(crate) process: Process,
    /// By which it proves that it is the one.
    pub(crate) token: String,
    /// Device and inode of the scoreboard that it counts on.
    pub(crate) board: (u64, u64),
    /// It accepts by itself, and is taken over as it is.
    pub(crate) inherited: Option<state::Inherited>,
}

impl Daemon {
    /// Looks after the workers of a killed master: answers those who may come. Who is not wanted is
    /// killed; who cannot come drains by itself.
    pub(super) fn look_out(&mut self, state: &state::State) -> BTreeSet<WorkerId> {
        let unwanted: BTreeSet<WorkerId> = state.mind.unwanted().collect();
        for worker in &state.workers {
            let Ok(process) = Process::find(worker.pid, worker.begun) else { continue };
            let id = worker.who.worker;
            if unwanted.contains(&id) {
                // It has ended in this moment, where that fails.
                let _ = process.signal_group(Signal::SIGKILL);
                continue;
            }
            if worker.ends_with_master {
                // It does so by itself, unless it is stuck; nobody waits for its clients any more, and
                // it may hold a listening socket.
                let _ = process.signal_group(Signal::SIGKILL);
                let _ = wait_readable(&[process.as_fd()], Some(GONE_WITHIN));
                continue;
            }
            let inherited = worker.inherited.clone();
            // One that accepts by itself need not come.
            let none = inherited.as_ref().map(|_| String::new());
            let Some(token) = worker.token.clone().or(none) else { continue };
            let board = worker.board;
            if let Err(error) = self.poller.add(&process, Token::Process(id).encode()) {
                self.say(Level::Warning, format!("worker {id} cannot be watched: {error}"));
                continue;
            }
            let (who, seat) = (worker.who, worker.seat);
            self.absent.insert(id, Absent { who, seat, process, token, board, inherited });
        }
        self.absent.keys().copied().collect()
    }

    /// An absent worker's process has ended. Whether it was one.
    pub(super) fn observe_absent(&mut self, id: WorkerId) -> bool {
        let Some(absent) = self.absent.get(&id) else { return false };
        match absent.process.reap() {
            Ok(None) => return true,
            Ok(Some(_)) => {}
            Err(error) => self.say(Level::Warning, format!("worker {id} cannot be seen: {error}")),
        }
        if let Some(absent) = self.absent.remove(&id) {
            // Closing it removes it as well.
            let _ = self.poller.remove(&absent.process);
        }
        let (how, rescued) = ("is gone".to_owned(), Vec::new());
        self.report(Event::Exited { worker: id, how, rescued, answered: 0 });
        true
    }

    /// The process of a worker, come or not.
    pub(super) fn process(&self, id: WorkerId) -> Option<&Process> {
        let here = self.workers.get(&id).map(|worker| &worker.process);
        here.or_else(|| self.absent.get(&id).map(|absent| &absent.process))
    }
}
