//! Where workers' output goes.
//!
//! | `log =` | standard output and error of a worker are | |
//! |---|---|---|
//! | `fields` | a pipe | the log thread makes a record of each line, with the worker's fields |
//! | `stream` | a journal stream | journald knows it by the worker's name, and reads it itself |
//! | `inherit` | the master's own | |
//!
//! systemd keeps the read ends of the pipes, too, so that a worker that outlives a killed master can
//! still write; the next master reads them to their end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use super::Daemon;
use super::inherit::LOGS;
use super::journal::{CAUSE, Entry, Level, MessageId, Origin};
use crate::config::{Log, why};
use crate::supervisor::{Who, WorkerId};
use crate::sys::output::{connect_now, never_wait, pipe};

/// Which file a process' standard error is, where it is a journal stream.
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";
/// Where journald takes streams.
const STREAMS: &str = "/run/systemd/journal/stdout";
/// Bytes of names in the store at most. All of them, and those of listeners, come back in one
/// variable, which the kernel limits to 128 KiB.
const STORED_MAX: usize = 80 * 1024;
/// Pipes of a former master's workers are known by numbers from here on, which no worker reaches.
const ORPHANS: u64 = 1 << 62;

/// Where workers' output goes.
#[derive(Debug)]
pub(crate) struct Outputs {
    log: Log,
    /// The names in systemd's store of the pipes that are being read.
    pub(super) stored: BTreeMap<u64, String>,
    /// Bytes of these names.
    stored_len: usize,
    pub(super) has_warned: bool,
}

impl Outputs {
    pub(crate) fn new(log: Log) -> Outputs {
        Outputs { log, stored: BTreeMap::new(), stored_len: 0, has_warned: false }
    }
}

impl Daemon {
    /// What a new worker gets as standard output and error, and the read end of it, if that is
    /// ours.
    ///
    /// # Errors
    /// A sentence: no descriptor is left.
    pub(super) fn open_output(
        &mut self,
        pool: &str,
        who: &Who,
        command: &mut Command,
    ) -> Result<(Option<OwnedFd>, Option<OwnedFd>), String> {
        match self.outputs.log {
            Log::Inherit => Ok((None, None)),
            Log::Fields => {
                let (read, write) = pipe()
                    .map_err(|error| format!("cannot be given a pipe to write to: {error}"))?;
                command.env_remove(JOURNAL_STREAM);
                Ok((Some(write), Some(read)))
            }
            Log::Stream => {
                let stream = self
                    .journal
                    .identifier()
                    .ok_or_else(|| "standard error of the master is no journal".to_owned())
                    .and_then(|own| open_stream(&format!("{own}-{pool}-{}", who.slot.0)));
                match stream {
                    Ok((stream, name)) => {
                        command.env(JOURNAL_STREAM, name);
                        Ok((Some(stream), None))
                    }
                    Err(why) => {
                        self.warn_of_inheritance(&why);
                        Ok((None, None))
                    }
                }
            }
        }
    }

    fn warn_of_inheritance(&mut self, why: &str) {
        if !std::mem::replace(&mut self.outputs.has_warned, true) {
            let text = format!("workers write where the master does: {why}");
            let entry = Entry::new(Level::Warning, text).id(MessageId::OutputInherited);
            self.journal.say(entry.with(CAUSE, why));
        }
    }

    /// Relays what a new worker writes.
    pub(super) fn follow_output(&mut self, who: &Who, read: OwnedFd) {
        let Some(worker) = self.workers.get(&who.worker) else { return };
        let origin = Origin {
            pool: self.editions.name(who.pool).to_owned(),
            slot: who.slot.0,
            generation: who.generation.0,
            pid: worker.process.id(),
        };
        let name = stored_name(&origin);
        if !self.notify.has_manager() {
            // It goes to the worker itself, when it is welcomed. Without it the worker finds nobody
            // who reads, should this master be killed.
            let log = read.try_clone().map(|read| (name.clone(), read));
            match (log, self.native_mut(who.worker)) {
                (Ok(log), Some(link)) => link.log = Some(log),
                (Err(error), _) => self.say(Level::Warning, format!("{name}: {error}")),
                (Ok(_), None) => {}
            }
        }
        if self.outputs.stored_len + name.len() <= STORED_MAX {
            self.notify.store(&name, read.as_fd(), self.now);
            self.note_stored(who.worker.0, name);
        }
        self.journal.follow(who.worker.0, origin, read);
    }

    /// Relays on what a worker writes that another master has started.
    pub(super) fn follow_again(&mut self, id: WorkerId, name: &str, read: OwnedFd) {
        match origin_of(name).filter(|_| never_wait(&read).is_ok()) {
            Some(origin) => self.journal.follow(id.0, origin, read),
            None => self.say(Level::Warning, format!("a worker brought {name}: no log pipe")),
        }
    }

    pub(super) fn note_stored(&mut self, pipe: u64, name: String) {
        self.outputs.stored_len += name.len();
        self.outputs.stored.insert(pipe, name);
    }

    /// Has systemd forget the pipes that have ended.
    pub(super) fn forget_outputs(&mut self) {
        for pipe in self.journal.ended() {
            if let Some(name) = self.outputs.stored.remove(&pipe) {
                self.outputs.stored_len -= name.len();
                self.notify.discard(&name, self.now);
            }
        }
    }

    /// Reads to their end the pipes of workers of a master that was killed.
    pub(super) fn follow_orphans(&mut self) {
        let stored = self.listeners.inheritance.take_stored(LOGS);
        for (number, (name, read)) in (ORPHANS..).zip(stored) {
            let origin = origin_of(&name).filter(|_| never_wait(&read).is_ok());
            let Some(origin) = origin else {
                self.say(
                    Level::Warning,
                    format!("{name} came out of systemd's store: no log pipe"),
                );
                self.notify.discard(&name, self.now);
                continue;
            };
            self.note_stored(number, name);
            self.journal.follow(number, origin, read);
        }
    }
}

/// The name of a worker's pipe in systemd's store.
fn stored_name(origin: &Origin) -> String {
    let Origin { pool, slot, generation, pid } = origin;
    format!("{LOGS}{pool}.{slot}.{generation}.{pid}")
}

/// The worker whose pipe has this name.
fn origin_of(name: &str) -> Option<Origin> {
    let mut parts = name.strip_prefix(LOGS)?.rsplitn(4, '.');
    let pid = parts.next()?.parse().ok()?;
    let generation = parts.next()?.parse().ok()?;
    let slot = parts.next()?.parse().ok()?;
    let pool = parts.next()?.to_owned();
    Some(Origin { pool, slot, generation, pid })
}

/// A stream to the journal under this identifier, and what `JOURNAL_STREAM` is to say about it.
fn open_stream(identifier: &str) -> Result<(OwnedFd, String), String> {
    // Identifier, unit, level of lines without one, whether lines may have one; forward to syslog,
    // the kernel's log, the console.
    let header = format!("{identifier}\n\n6\n1\n0\n0\n0\n");
    let open = || {
        let mut stream = connect_now(Path::new(STREAMS))?;
        stream.write_all(header.as_bytes())?;
        stream.shutdown(Shutdown::Read)?;
        stream.set_nonblocking(false)?;
        let file = File::from(OwnedFd::from(stream));
        let metadata = file.metadata()?;
        Ok((OwnedFd::from(file), format!("{}:{}", metadata.dev(), metadata.ino())))
    };
    open().map_err(|error| format!("no stream to {STREAMS} can be had: {}", why(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_pipe_tells_whose_it_was() {
        for pool in ["web", "a.b-c_d", "1.2.3"] {
            let origin = Origin { pool: pool.into(), slot: 3, generation: 12, pid: 4711 };
            assert_eq!(origin_of(&stored_name(&origin)), Some(origin));
        }
        for name in ["rcluster-log.web.1.2", "rcluster-log.web.x.1.2", "web.1.2.3", LOGS] {
            assert_eq!(origin_of(name), None, "{name}");
        }
    }
}
