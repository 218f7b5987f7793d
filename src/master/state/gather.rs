//! How things are, as a [`State`].

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use super::{FORMAT, Packing, State, Text, boot};
use crate::kinds::Worker;
use crate::master::absent::Absent;
use crate::master::adoption::text_of;
use crate::master::listeners::{Listener, Listeners, Origin};
use crate::master::pin::{Directory, Held, Interpreter, Pinned, Program, Stamp};
use crate::master::prepare::Editions;
use crate::master::{Daemon, Outcome, Wish};
use crate::supervisor::{Seat, Times, WishId, WorkerId};
use crate::sys::accepting::inode_of;
use crate::sys::clock::microseconds;
use crate::sys::listen::blocks;
use crate::wire::scoreboard::identity;

impl Daemon {
    /// Everything that the next master must know. What is carried is packed.
    pub(in crate::master) fn gather<'a>(
        &'a self,
        now: Instant,
        attempts: u32,
        packing: &mut Packing<'a>,
    ) -> State {
        let mind = self.supervisor.snapshot(now);
        let seats: BTreeMap<WorkerId, (Seat, bool)> =
            mind.workers().map(|(who, seat, stage)| (who.worker, (seat, stage))).collect();
        let workers = self.workers.iter().filter_map(|(id, worker)| {
            // One that is not in the mind is gone in the same turn.
            Some(self.gather_worker(worker, *seats.get(id)?, now, packing))
        });
        let mut workers: Vec<super::Worker> = workers.collect();
        workers.extend(self.absent.values().map(|absent| gather_absent(absent, packing)));
        let boards = self.boards.all.iter().map(|(&pool, (board, _))| {
            let (device, inode) = board.identity();
            super::Board { pool, device, inode, number: packing.pack(board) }
        });
        let boards = boards.collect();
        State {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            boot: boot(),
            taken: microseconds(),
            attempts,
            started: Times(now).from(self.started),
            mind,
            config: self.config.clone(),
            editions: gather_editions(&self.editions, packing),
            listeners: gather_listeners(&self.listeners, packing),
            workers,
            boards,
            wishes: self.wishes.iter().map(|(&id, wish)| gather_wish(id, wish)).collect(),
            last_wish: self.last_wish,
            last_connection: self.last_connection,
            must_roll: self.must_roll,
            warnings: self.warnings.clone(),
            history: self.history.clone(),
            last_reload: self.last_reload.as_ref().map(|last| gather_outcome(last, now)),
            carried: None,
        }
    }
}

impl Daemon {
    fn gather_worker<'a>(
        &'a self,
        worker: &'a Worker,
        (seat, is_ready): (Seat, bool),
        now: Instant,
        packing: &mut Packing<'a>,
    ) -> super::Worker {
        let (process, board) = (&worker.process, identity(worker.words.as_fd()));
        let of_pool = self.boards.all.get(&worker.who.pool).map(|(board, _)| board.identity());
        let own_board = if of_pool == Some(board) { None } else { packing.pack(&worker.words) };
        let link = worker.native();
        let log = link.and_then(|link| link.log.as_ref());
        let log = log.and_then(|(key, log)| Some((key.clone(), packing.pack(log)?)));
        // Until it is ready nobody knows what it can: if it can come, it will.
        let is_welcomed = link.is_some_and(|link| link.is_welcomed);
        let may_come = is_welcomed || !is_ready;
        super::Worker {
            who: worker.who,
            seat,
            pid: process.id(),
            begun: process.begun(),
            is_child: process.is_child(),
            token: link.and_then(|link| link.token.as_ref()).filter(|_| may_come).map(text_of),
            board,
            own_board,
            absent: None,
            is_welcomed,
            is_joining: self.adoption.is_joining(worker.who.worker),
            hands_back: link.is_some_and(|link| link.hands_back),
            tells: link.is_some_and(|link| link.tells),
            accepts: link.is_some_and(|link| link.accepts),
            sent: link.map_or(0, |link| link.sent),
            log,
            is_notorious: worker.is_notorious,
            is_expelled: worker.is_expelled,
            pidfd: packing.pack(process),
            channel: link.and_then(|link| packing.pack(&link.channel)),
            theirs: link.and_then(|link| packing.pack(&link.theirs)),
            inherited: worker.inherit().map(|link| super::Inherited::gather(link, now, packing)),
            ends_with_master: worker.piped().is_some_and(|link| link.cluster().is_some()),
            piped: worker.piped().and_then(|link| super::Piped::gather(link, Times(now), packing)),
        }
    }
}

fn gather_absent<'a>(absent: &'a Absent, packing: &mut Packing<'a>) -> super::Worker {
    let Absent { who, seat, process, token, board, inherited } = absent;
    super::Worker {
        who: *who,
        seat: *seat,
        pid: process.id(),
        begun: process.begun(),
        is_child: process.is_child(),
        token: Some(token.clone()),
        board: *board,
        absent: Some(*board),
        pidfd: packing.pack(process),
        inherited: inherited.clone(),
        ..super::Worker::default()
    }
}

fn gather_wish(id: WishId, wish: &Wish) -> super::Wish {
    let Wish { client, caller, config, names, edition } = wish;
    let (caller, config) = (caller.clone(), (**config).clone());
    super::Wish { id, client: *client, caller, config, names: names.clone(), edition: *edition }
}

fn gather_outcome(outcome: &Outcome, now: Instant) -> super::Outcome {
    let Outcome { errno, message, at } = outcome;
    super::Outcome { errno: *errno, message: message.clone(), at: Times(now).from(*at) }
}

fn gather_editions<'a>(editions: &'a Editions, packing: &mut Packing<'a>) -> super::Editions {
    let mut pinned = Vec::new();
    for (&edition, pools) in &editions.pinned {
        for (&pool, held) in pools {
            pinned.push((edition, pool, gather_pinned(held, packing)));
        }
    }
    super::Editions {
        names: editions.names.clone(),
        pinned,
        settled: editions.settled.clone(),
        last: editions.last,
    }
}

fn gather_pinned<'a>(pinned: &'a Pinned, packing: &mut Packing<'a>) -> super::Pinned {
    let Pinned { program, arguments, scripts, directory, environment, identity, .. } = pinned;
    let Pinned { manner, crash_ledger, probe, .. } = pinned;
    let (program, interpreter, missing) = match program {
        Err(why) => (None, None, Some(why.clone())),
        Ok(Program { held, interpreter }) => {
            let interpreter = interpreter.as_ref().map(|Interpreter { held, argument }| {
                (gather_file(held, packing), argument.as_ref().map(Text::from))
            });
            (Some(gather_file(held, packing)), interpreter, None)
        }
    };
    let directory = directory.as_ref().map(|Directory { path, handle, place }| super::Directory {
        path: Text::from(path),
        device: place.0,
        inode: place.1,
        number: packing.pack(handle),
    });
    super::Pinned {
        program,
        interpreter,
        missing,
        arguments: arguments.iter().map(Text::from).collect(),
        scripts: scripts.iter().map(|it| gather_stamp(&it.path, it.stamp)).collect(),
        directory,
        environment: environment
            .iter()
            .map(|(key, it)| (Text::from(key), Text::from(it)))
            .collect(),
        identity: identity.clone(),
        manner: manner.clone(),
        crash_ledger: *crash_ledger,
        probe: probe.clone(),
    }
}

fn gather_file<'a>(held: &'a Held, packing: &mut Packing<'a>) -> super::File {
    super::File { number: packing.pack(&held.file), ..gather_stamp(&held.path, held.stamp) }
}

fn gather_stamp(path: &Path, stamp: Stamp) -> super::File {
    let Stamp { device, inode, size, modified } = stamp;
    super::File { path: Text::from(path), device, inode, size, modified, number: None }
}

fn gather_listeners<'a>(listeners: &'a Listeners, packing: &mut Packing<'a>) -> super::Listeners {
    let open = listeners.open.iter().map(|(&id, listener)| {
        let Listener { socket, name, origin, attention, message: _, needs_source, .. } = listener;
        let Listener { first_byte, defers, answer, data, .. } = listener;
        let number = packing.pack(socket);
        let origin = match origin {
            Origin::Inherited(name, _) => super::Origin::Inherited(name.clone()),
            Origin::Bound { file, name, is_stored } => super::Origin::Bound {
                file: file.as_ref().map(|file| {
                    let (device, inode) = file.device_and_inode;
                    (Text::from(&file.path), device, inode)
                }),
                name: name.clone(),
                is_stored: *is_stored,
            },
        };
        super::Listener {
            id,
            name: name.clone(),
            origin,
            attention: *attention,
            needs_source: *needs_source,
            first_byte: *first_byte,
            defers: *defers,
            blocks: blocks(listener.as_fd()).ok(),
            answer: answer.as_deref().map(<[u8]>::to_vec),
            inode: inode_of(socket),
            data: number.and(data.clone()),
            number,
        }
    });
    let open = open.collect();
    let unclaimed =
        listeners.inheritance.sockets.iter().filter_map(|inherited| {
            Some((inherited.name.clone(), packing.pack(&inherited.socket)?))
        });
    let unclaimed = unclaimed.collect();
    let stored = listeners.stored.0.iter().chain(&listeners.inheritance.stored);
    let stored = stored.filter_map(|(name, it)| Some((name.clone(), packing.pack(it)?))).collect();
    super::Listeners { open, last: listeners.last, unclaimed, stored }
}
