//! A worker that accepts by itself, and siblings that the test plays.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use super::super::Connection;
use super::super::taker::now;
use super::*;
use crate::sys::ancillary::send_with;
use crate::wire::siblings::Stand;

/// A sibling's seat.
const OTHER: u32 = 8;

/// A master whose worker accepts, and the bell.
struct Accepting {
    master: Master,
    bell: EventFd,
    /// A sibling, as the test plays it.
    sibling: SeatWords,
}

/// Which library the worker uses.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Blocking,
    Lent,
    #[cfg(feature = "tokio")]
    Tokio,
}

const MANNERS: &[Manner] = &[
    Manner::Blocking,
    Manner::Lent,
    #[cfg(feature = "tokio")]
    Manner::Tokio,
];

/// A worker that has been let in, with nothing further on its channel.
fn let_in(manner: Manner, limit: u32) -> (Accepting, JoinHandle<()>) {
    let (master, worker) = cluster();
    let running = match manner {
        Manner::Blocking => std::thread::spawn(move || worker.ready(capitals).unwrap()),
        Manner::Lent => std::thread::spawn(move || {
            for connection in worker.limit(100).connections().unwrap() {
                std::thread::spawn(move || capitals(connection));
            }
        }),
        #[cfg(feature = "tokio")]
        Manner::Tokio => super::asynchronous::serve(worker),
    };
    master.hear_ready();
    let accepting = alone(master);
    accepting.listen(limit);
    (accepting, running)
}

/// A worker that has not been let in yet.
fn alone(master: Master) -> Accepting {
    master.listener.set_nonblocking(true).unwrap();
    let sibling = master.board.seat(OTHER).unwrap();
    master.board.set_siblings(&[SEAT, OTHER]);
    Accepting { master, bell: EventFd::new().unwrap(), sibling }
}

impl Accepting {
    fn listen(&self, limit: u32) {
        let message = ToWorker::Listen { listener: "web", limit }.encode();
        let (end, listener) = (self.master.end.as_fd(), self.master.listener.as_fd());
        send_with(end, &message, listener, Some(self.bell.as_fd())).unwrap();
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(("127.0.0.1", self.master.port())).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        client
    }

    /// A client who has been answered.
    fn answered(&self) -> TcpStream {
        let mut client = self.connect();
        client.write_all(b"x").unwrap();
        assert_eq!(read_exact(&client), *b"X");
        client
    }

    /// Waits until the worker stands like this.
    fn until(&self, stand: Stand) {
        let end = now() + LONG;
        while self.master.seat.own().stand() != stand {
            assert!(now() < end, "it is {:?}", self.master.seat.own().stand());
            std::thread::yield_now();
        }
    }

    fn end(self, running: JoinHandle<()>) {
        self.master.drain(LONG);
        assert_eq!(self.master.hear_other(), ToMaster::Drained);
        running.join().unwrap();
    }
}

#[test]
fn whoever_comes_is_accepted_and_counted() {
    for &manner in MANNERS {
        let (accepting, running) = let_in(manner, 0);
        drop(accepting.answered());
        let counts = accepting.master.until(|counts| counts.finished == 1);
        assert_eq!((counts.accepted, counts.taken, counts.progress), (1, 0, 0), "{manner:?}");
        // What comes through the channel is served beside.
        let mut client = accepting.master.dispatch_unix();
        client.write_all(b"y").unwrap();
        assert_eq!(read_exact(&client), *b"Y");
        // And to be told twice changes nothing.
        accepting.listen(0);
        drop((client, accepting.answered()));
        let counts = accepting.master.until(|counts| counts.finished == 3);
        assert_eq!((counts.accepted, counts.taken), (2, 1), "{manner:?}");
        accepting.end(running);
    }
}

/// Those who come at once are told of once.
#[test]
fn who_comes_at_once_is_answered_side_by_side() {
    let (master, worker) = cluster();
    let together = std::sync::Arc::new(std::sync::Barrier::new(16));
    let running = std::thread::spawn(move || {
        let handler = move |mut connection: Connection| {
            together.wait();
            connection.write_all(b"x").unwrap();
        };
        worker.threads(16).ready(handler).unwrap();
    });
    master.hear_ready();
    let accepting = alone(master);
    for round in 0..20 {
        let mut clients: Vec<TcpStream> = (0..16).map(|_| accepting.connect()).collect();
        if round == 0 {
            // They were there before it was.
            accepting.listen(0);
        }
        clients.iter_mut().for_each(|client| assert_eq!(read_exact(client), *b"x"));
    }
    accepting.end(running);
}

#[test]
fn a_drain_ends_accepting_at_once() {
    for &manner in MANNERS {
        let (accepting, running) = let_in(manner, 0);
        // One that is silent is waited for.
        let mut kept = accepting.connect();
        let end = now() + LONG;
        while accepting.master.seat.counts().accepted == 0 {
            assert!(now() < end, "{manner:?}: nobody accepts");
            std::thread::yield_now();
        }
        accepting.master.drain(LONG);
        accepting.until(Stand::IsElsewhere);
        // Nobody accepts this one but we.
        let _waits = accepting.connect();
        accepting.master.listener.set_nonblocking(false).unwrap();
        drop(accepting.master.listener.accept().unwrap());
        kept.write_all(b"z").unwrap();
        assert_eq!(read_exact(&kept), *b"Z");
        drop(kept);
        assert_eq!(accepting.master.hear_other(), ToMaster::Drained);
        assert_eq!(accepting.master.seat.counts().accepted, 1, "{manner:?}");
        running.join().unwrap();
    }
}

#[test]
fn a_full_worker_accepts_when_it_has_room() {
    for &manner in MANNERS {
        let (accepting, running) = let_in(manner, 2);
        let first = accepting.answered();
        let second = accepting.answered();
        accepting.until(Stand::IsElsewhere);
        let mut third = accepting.connect();
        third.write_all(b"x").unwrap();
        assert_eq!(accepting.master.seat.counts().accepted, 2, "{manner:?}");
        drop(first);
        assert_eq!(read_exact(&third), *b"X", "{manner:?}");
        drop((second, third));
        accepting.end(running);
    }
}

/// A program that answers where it iterates leaves the others where they wait.
#[test]
fn one_that_is_lent_is_followed_by_the_next() {
    let (master, worker) = cluster();
    let running = std::thread::spawn(move || worker.connections().unwrap().for_each(capitals));
    assert_eq!(master.hear_ready(), 1);
    let accepting = alone(master);
    accepting.listen(0);
    for round in 0..20 {
        let mut clients = [accepting.connect(), accepting.connect(), accepting.connect()];
        clients.iter_mut().for_each(|client| client.write_all(b"x").unwrap());
        for (place, client) in clients.into_iter().enumerate() {
            assert_eq!(read_exact(&client), *b"X");
            let counts = accepting.master.seat.counts();
            assert_eq!(counts.accepted, 3 * round + place as u64 + 1, "one at a time");
        }
        // It is heard meanwhile, and between two.
        accepting.master.say(&ToWorker::Ping);
        assert_eq!(accepting.master.hear(), ToMaster::Room);
    }
    accepting.end(running);
}

/// It may be all that was woken for them.
#[test]
fn who_leaves_clients_behind_calls() {
    for (limit, is_somebody_left) in [(2, false), (1, true)] {
        let (master, worker) = cluster();
        let running = std::thread::spawn(move || worker.ready(capitals).unwrap());
        master.hear_ready();
        let accepting = alone(master);
        // They are all there when it looks.
        let mut clients = [accepting.connect(), accepting.connect()];
        clients.iter_mut().for_each(|client| client.write_all(b"x").unwrap());
        let counts = || accepting.master.seat.counts();
        accepting.listen(limit);
        assert_eq!(read_exact(&clients[0]), *b"X");
        if is_somebody_left {
            wait_readable(&[accepting.bell.as_fd()], Some(LONG)).unwrap();
        } else {
            assert_eq!(read_exact(&clients[1]), *b"X");
            accepting.until(Stand::IsElsewhere);
        }
        assert_eq!(counts().accepted, u64::from(limit));
        assert_eq!(readable(accepting.bell.as_fd()), is_somebody_left);
        drop(clients);
        accepting.end(running);
    }
}

#[test]
fn who_is_ahead_leaves_clients_to_a_sibling_until_it_calls() {
    for &manner in MANNERS {
        let (accepting, running) = let_in(manner, 0);
        accepting.sibling.set_stand(Stand::Waits);
        let clients: Vec<TcpStream> = (0..2).map(|_| accepting.answered()).collect();
        accepting.until(Stand::IsAway);
        // By now the sibling has as many, and says so.
        (0..2).for_each(|_| accepting.sibling.add_accepted());
        accepting.bell.write(1).unwrap();
        accepting.until(Stand::Waits);
        drop(clients);
        accepting.end(running);
    }
}

#[test]
fn who_waits_calls_a_sibling_that_has_less_to_do() {
    for &manner in MANNERS {
        let (accepting, running) = let_in(manner, 0);
        accepting.sibling.set_stand(Stand::IsAway);
        let bell = accepting.bell.as_fd();
        let clients: Vec<TcpStream> = (0..2).map(|_| accepting.answered()).collect();
        wait_readable(&[bell], Some(LONG)).unwrap();
        assert!(readable(bell), "{manner:?}: nobody is called");
        assert!(accepting.bell.read().unwrap() < 20, "{manner:?}: it calls because it has called");
        drop(clients);
        accepting.end(running);
    }
}

#[test]
fn a_sibling_that_accepts_nobody_is_relied_on_for_a_moment_only() {
    for &manner in MANNERS {
        let (accepting, running) = let_in(manner, 0);
        accepting.sibling.set_stand(Stand::Waits);
        let mut clients: Vec<TcpStream> = (0..2).map(|_| accepting.answered()).collect();
        accepting.until(Stand::IsAway);
        // The first finds out that nobody comes; the others need not.
        clients.extend((0..20).map(|_| accepting.answered()));
        accepting.until(Stand::Waits);
        // It accepts again: it is relied on again, as long as it does.
        let end = now() + LONG;
        let is_away = || accepting.master.seat.own().stand() == Stand::IsAway;
        while !is_away() {
            assert!(now() < end, "{manner:?}: it is not relied on");
            accepting.sibling.add_accepted();
            let _ = accepting.sibling.add_finished();
            clients.push(accepting.answered());
            // It looks when it has taken a client, perhaps a moment after he is answered.
            let looked = now() + Duration::from_millis(20);
            while !is_away() && now() < looked {}
        }
        drop(clients);
        accepting.end(running);
    }
}

#[test]
fn a_connection_that_was_ended_is_seen_by_who_stays_away() {
    for &manner in MANNERS {
        let (accepting, running) = let_in(manner, 0);
        accepting.sibling.set_stand(Stand::Waits);
        (0..4).for_each(|_| accepting.sibling.add_accepted());
        let mut clients: Vec<TcpStream> = (0..6).map(|_| accepting.answered()).collect();
        accepting.until(Stand::IsAway);
        clients.truncate(3);
        accepting.until(Stand::Waits);
        drop(clients);
        accepting.end(running);
    }
}
