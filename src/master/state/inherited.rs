//! What there is to know of an inherit worker.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Luggage, Number, Packing};
use crate::config::Manner;
use crate::kinds::inherit::{LOOK_FIRST, Link, Readiness};
use crate::supervisor::{Micros, Times};
use crate::sys::notices::Notices;
use crate::sys::process::Process;

/// An inherit worker, beyond its process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Inherited {
    name: String,
    stop_signal: i32,
    watchdog: Option<Duration>,
    sockets: BTreeSet<u64>,
    readiness: Stage,
    /// Process id, moment of start, and its pidfd where it is carried.
    main: Option<(u32, u64, Option<Number>)>,
    is_leaving: bool,
    status: String,
    pinged: Option<Micros>,
    notices: Option<Number>,
}

/// How it becomes known that it is ready.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
enum Stage {
    Told,
    Seen,
    Settled(Micros),
    #[default]
    Known,
}

impl Inherited {
    pub(crate) fn gather<'a>(link: &'a Link, now: Instant, packing: &mut Packing<'a>) -> Inherited {
        let Link { notices, name, stop_signal, watchdog, sockets, readiness, .. } = link;
        // Who is waited for in the place of one that has ended is found again.
        let Link { main, is_leaving, status, pinged, rest: _, .. } = link;
        let times = Times(now);
        Inherited {
            name: name.clone(),
            stop_signal: *stop_signal,
            watchdog: *watchdog,
            sockets: sockets.clone(),
            readiness: match *readiness {
                Readiness::Told => Stage::Told,
                Readiness::Seen { .. } => Stage::Seen,
                Readiness::Settled { at } => Stage::Settled(times.from(at)),
                Readiness::Known => Stage::Known,
            },
            main: main.as_ref().map(|main| (main.id(), main.begun(), packing.pack(main))),
            is_leaving: *is_leaving,
            status: status.clone(),
            pinged: pinged.map(|at| times.from(at)),
            notices: packing.pack(notices),
        }
    }

    /// Whether it was ready when this was written.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.readiness, Stage::Known)
    }

    /// In the next image of the same process.
    ///
    /// # Errors
    /// A sentence: something was not carried over.
    pub(crate) fn resume(self, taken: Instant, luggage: &mut Luggage) -> Result<Link, String> {
        let notices = Notices::resumed(luggage.unpack_some(self.notices)?);
        let main = match self.main {
            None => None,
            Some((id, begun, number)) => {
                Some(Process::resumed(id, begun, luggage.unpack_some(number)?, false))
            }
        };
        let pinged = self.pinged.map(|at| Times(taken).to(at));
        let readiness = match self.readiness {
            Stage::Told => Readiness::Told,
            Stage::Seen => Readiness::Seen { at: taken, pause: LOOK_FIRST },
            Stage::Settled(at) => Readiness::Settled { at: Times(taken).to(at) },
            Stage::Known => Readiness::Known,
        };
        Ok(Link { main, pinged, readiness, ..self.link(notices) })
    }

    /// In another process. Where its name cannot be had, nothing that it says is heard, and why comes
    /// along.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub(crate) fn resume_alone(self, started: &Process) -> io::Result<(Link, Option<io::Error>)> {
        let (notices, warning) = match Notices::bind(&self.name) {
            Ok(notices) => (notices, None),
            Err(error) => (Notices::mute()?, Some(error)),
        };
        let main = self.main.and_then(|(id, begun, _)| Process::find(id, begun).ok());
        let main = main.filter(|main| main.id() != started.id());
        Ok((Link { main, ..self.link(notices) }, warning))
    }

    fn link(self, notices: Notices) -> Link {
        let Inherited { name, stop_signal, watchdog, sockets, is_leaving, status, .. } = self;
        let manner = Manner { stop_signal, ..Manner::default() };
        let link = Link::new(notices, name, &manner, watchdog);
        Link { sockets, is_leaving, status, ..link }
    }
}
