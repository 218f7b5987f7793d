//! Connections as an iterator lends them out.
//!
//! The thread that iterates takes them itself, see `intake`. While it is away, a thread of our own stands in
//! for it at the channel. Clients whom this worker may accept by itself are left where they wait: a sibling
//! may come for them first.

use std::io;
use std::sync::Arc;

use super::adopt;
use super::connection::Connection;
use super::drain::Drain;
use super::intake::Intake;
use super::link::Link;
use super::taker::now;
use super::tell::tell;
use super::watch::Watch;

/// Connections, as they come.
///
/// Ends when the worker is drained: the master said so, and every connection that this iterator
/// lent out is dropped. A program may end then, and must not before: leaving the loop early drops
/// clients ([`Handle::retire`] is the way out). So do not keep connections in the thread that
/// iterates while asking for the next.
///
/// [`Handle::retire`]: crate::worker::Handle::retire
pub struct Connections(Arc<Shared>);

struct Shared {
    intake: Intake,
    /// Where the one who stands in waits.
    second: Watch,
}

impl Connections {
    pub(super) fn new(link: &Arc<Link>, descriptors: u64, limit: u32) -> io::Result<Connections> {
        let (first, second) = Watch::pair(link)?;
        let intake = Intake::new(link, descriptors, limit, first);
        let shared = Arc::new(Shared { intake, second });
        let theirs = Arc::clone(&shared);
        let receiver = std::thread::Builder::new().name("rcluster-receiver".into());
        receiver.spawn(move || receive(&theirs))?;
        Ok(Connections(shared))
    }
}

impl Iterator for Connections {
    type Item = Connection;

    fn next(&mut self) -> Option<Connection> {
        let Shared { intake, second } = &*self.0;
        let mut state = intake.lock();
        loop {
            state.take_alone();
            if let Some(fresh) = state.queue.pop_front() {
                if state.is_full {
                    second.call();
                }
                drop(state);
                if let Some(connection) = adopt(fresh) {
                    return Some(connection);
                }
                state = intake.lock();
                continue;
            }
            if let Some(end) = &mut state.end {
                let end = std::mem::replace(end, Ok(()));
                drop(state);
                conclude(intake, end);
                intake.link().wait_over();
                return None;
            }
            (state, _) = intake.wait(state, None);
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        // Nobody asks for them any more: no more are taken, and those who were are closed.
        self.0.intake.lock().end.get_or_insert(Ok(()));
        self.0.second.call();
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

/// Takes messages while nobody asks for what they bring, until nothing more is taken.
fn receive(shared: &Shared) {
    let Shared { intake, second } = shared;
    let mut state = intake.lock();
    loop {
        state.take_messages();
        if let Some(end) = &mut state.end {
            let end = std::mem::replace(end, Ok(()));
            drop(state);
            return conclude(intake, end);
        }
        if state.free > 0 {
            // It has come back meanwhile, and may not know of what was taken.
            intake.call();
        }
        (state, _) = intake.wait_at(second, state, None);
    }
}

/// Where the channel has failed, nobody is heard any more.
fn conclude(intake: &Intake, end: io::Result<()>) {
    if let Err(error) = end {
        tell!("the channel to the master failed: {error}");
        intake.link().drain(Drain::orphaned(now()));
    }
}
