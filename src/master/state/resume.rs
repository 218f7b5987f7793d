//! From a [`State`] to how things were: the parts that are opened again, or unpacked.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Luggage, Text};
use crate::config::Listen;
use crate::master::inherit::Inherited;
use crate::master::listeners::{Listener, Listeners, Origin};
use crate::master::pin::script::Script;
use crate::master::pin::{Directory, Held, Interpreter, Pinned, Program, Stamp};
use crate::master::prepare::Editions;
use crate::master::stored::SocketFile;
use crate::sys::listen::{local, set_blocking};

/// Where descriptors come from.
pub(crate) enum Descriptors<'a> {
    /// They were carried over.
    Carried(&'a mut Luggage),
    /// What can be opened again is opened again.
    Reopened,
}

impl Editions {
    /// As they were. What has changed since it was pinned cannot be started as it was, and says so
    /// when it is to be.
    ///
    /// # Errors
    /// A sentence: something was not carried over.
    pub(crate) fn resume(
        state: super::Editions,
        descriptors: &mut Descriptors<'_>,
    ) -> Result<Editions, String> {
        let super::Editions { names, pinned, settled, last } = state;
        let mut editions = Editions { names, settled, last, ..Editions::default() };
        for (edition, pool, pinned) in pinned {
            let pinned = resume_pinned(pinned, descriptors)?;
            editions.pinned.entry(edition).or_default().insert(pool, pinned);
        }
        Ok(editions)
    }
}

fn resume_pinned(
    state: super::Pinned,
    descriptors: &mut Descriptors<'_>,
) -> Result<Pinned, String> {
    let super::Pinned { program, interpreter, missing, directory, .. } = state;
    let super::Pinned { arguments, scripts, environment, identity, .. } = state;
    let super::Pinned { manner, crash_ledger, probe, .. } = state;
    let program = match program {
        None => Err(missing.unwrap_or_else(|| "has no program".to_owned())),
        Some(file) => match (file_of(file, descriptors)?, interpreter) {
            (Ok(held), None) => Ok(Program { held, interpreter: None }),
            (Ok(held), Some((file, argument))) => file_of(file, descriptors)?.map(|its| {
                let interpreter = Interpreter { held: its, argument: argument.map(OsString::from) };
                Program { held, interpreter: Some(interpreter) }
            }),
            (Err(why), _) => Err(why),
        },
    };
    let (directory, program) =
        match directory.map(|it| directory_of(it, descriptors)).transpose()? {
            None => (None, program),
            Some(Ok(directory)) => (Some(directory), program),
            // Anywhere else it would be another program.
            Some(Err(why)) => (None, Err(why)),
        };
    let environment = environment.into_iter().map(|(key, it)| (key.into(), it.into())).collect();
    let arguments = arguments.into_iter().map(OsString::from).collect();
    let scripts = scripts.into_iter().map(|file| {
        let (path, stamp) = stamp_of(file);
        Script { path, stamp }
    });
    Ok(Pinned {
        program,
        arguments,
        scripts: scripts.collect(),
        directory,
        environment,
        identity,
        manner,
        crash_ledger,
        probe,
    })
}

fn stamp_of(state: super::File) -> (PathBuf, Stamp) {
    let super::File { path, device, inode, size, modified, number: _ } = state;
    (PathBuf::from(OsString::from(path)), Stamp { device, inode, size, modified })
}

/// The outer error: it was not carried over. The inner one: it is another file now.
fn file_of(
    state: super::File,
    descriptors: &mut Descriptors<'_>,
) -> Result<Result<Held, String>, String> {
    let number = state.number;
    let (path, stamp) = stamp_of(state);
    match descriptors {
        Descriptors::Carried(luggage) => {
            let file = luggage.unpack_some(number)?.into();
            Ok(Ok(Held { path, file, stamp }))
        }
        Descriptors::Reopened => Ok(match Held::open(&path) {
            Ok(held) if held.stamp == stamp => Ok(held),
            Ok(_) => Err(changed(&path)),
            Err(error) => Err(format!("{}: {error}", changed(&path))),
        }),
    }
}

fn directory_of(
    state: super::Directory,
    descriptors: &mut Descriptors<'_>,
) -> Result<Result<Directory, String>, String> {
    let path = PathBuf::from(OsString::from(state.path));
    let place = (state.device, state.inode);
    match descriptors {
        Descriptors::Carried(luggage) => {
            let handle = luggage.unpack_some(state.number)?;
            Ok(Ok(Directory { path, handle, place }))
        }
        Descriptors::Reopened => Ok(match Directory::open(&path) {
            Ok(directory) if directory.place == place => Ok(directory),
            Ok(_) => Err(changed(&path)),
            Err(error) => Err(format!("{}: {error}", changed(&path))),
        }),
    }
}

fn changed(path: &Path) -> String {
    let path = path.display();
    format!("cannot be started as it was: {path} has changed since the master was killed")
}

impl Listeners {
    /// Those of a state, under their ids, with the sockets that were carried or are found and bound
    /// again. Nobody is listened to yet.
    ///
    /// # Errors
    /// A sentence about the one that cannot be had; then those that were found are given back.
    pub(crate) fn resume(
        &mut self,
        state: super::Listeners,
        descriptors: &mut Descriptors<'_>,
    ) -> Result<(), String> {
        self.last = state.last;
        match descriptors {
            Descriptors::Carried(luggage) => {
                for (name, number) in state.unclaimed {
                    let socket = luggage.unpack(number)?;
                    let local = local(std::os::fd::AsFd::as_fd(&socket));
                    self.inheritance.put_back(Inherited { name, socket, local });
                }
                for (name, number) in state.stored {
                    self.stored.0.push((name, luggage.unpack(number)?));
                }
                for listener in state.open {
                    let socket = luggage.unpack_some(listener.number)?;
                    let origin = origin_of(listener.origin.clone(), &socket);
                    self.admit(listener, socket, origin);
                }
                Ok(())
            }
            Descriptors::Reopened => {
                let result = self.reopen(state.open);
                if result.is_err() {
                    self.ids().into_iter().for_each(|id| self.close(id));
                }
                result
            }
        }
    }

    /// One entry may stand for several sockets: they come back in their order.
    fn reopen(&mut self, listeners: Vec<super::Listener>) -> Result<(), String> {
        let mut entries: BTreeMap<String, Vec<super::Listener>> = BTreeMap::new();
        for listener in listeners {
            entries.entry(listener.name.clone()).or_default().push(listener);
        }
        for (name, listeners) in entries {
            let entry: Listen = name.parse().map_err(|mistake| format!("{mistake}"))?;
            let found = self.find("of the state", &entry)?;
            if found.len() != listeners.len() {
                let (now, then) = (found.len(), listeners.len());
                return Err(format!("{name} stands for {now} sockets now, it was {then}"));
            }
            for (listener, (socket, origin)) in listeners.into_iter().zip(found) {
                // Its workers accept there already, and systemd may have set it otherwise.
                if let Some(Err(error)) = listener.blocks.map(|it| set_blocking(socket.as_fd(), it))
                {
                    return Err(format!("{name}: {error}"));
                }
                self.admit(listener, socket, origin);
            }
        }
        Ok(())
    }

    fn admit(&mut self, state: super::Listener, socket: std::os::fd::OwnedFd, origin: Origin) {
        let super::Listener { id, name, needs_source, first_byte, defers, answer, data, .. } =
            state;
        let answer: Option<Arc<[u8]>> = answer.map(Arc::from);
        let new = Listener::new(socket, name, origin);
        let listener = Listener { needs_source, first_byte, defers, answer, data, ..new };
        self.open.insert(id, listener);
    }
}

fn origin_of(state: super::Origin, socket: &std::os::fd::OwnedFd) -> Origin {
    match state {
        super::Origin::Inherited(name) => {
            Origin::Inherited(name, local(std::os::fd::AsFd::as_fd(socket)))
        }
        super::Origin::Bound { file, name, is_stored } => Origin::Bound {
            file: file.map(|(path, device, inode): (Text, u64, u64)| SocketFile {
                path: PathBuf::from(OsString::from(path)),
                device_and_inode: (device, inode),
            }),
            name,
            is_stored,
        },
    }
}
