//! The blocking core.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::super::{Address, Connection, Handle, Wait};
use super::*;
use crate::error::Result;
use crate::wire::scoreboard::STRIDE;

fn serve<R>(
    worker: Worker,
    handler: impl Fn(Connection) -> R + Send + Sync + 'static,
) -> JoinHandle<Result<()>> {
    std::thread::spawn(move || worker.ready(handler))
}

fn finish(master: &Master, worker: JoinHandle<Result<()>>) {
    assert_eq!(master.hear_other(), ToMaster::Drained);
    worker.join().unwrap().unwrap();
}

#[test]
fn connections_are_answered_and_counted() {
    let (master, worker) = cluster();
    assert_eq!((worker.pool(), worker.slot(), worker.generation()), ("web", 1, 3));
    let worker = serve(worker.threads(5), capitals);
    let ready = master.hear();
    let board = u32::try_from(master.board.size()).unwrap();
    let wanted = Ready {
        limit: 5,
        stride: STRIDE as u32,
        board,
        handback: true,
        ledger: false,
        adoption: true,
        draining: false,
        tells: true,
        accepts: true,
    };
    assert_eq!(ready, ToMaster::Ready(wanted));
    for _ in 0..2 {
        let mut client = master.dispatch();
        for _ in 0..3 {
            client.write_all(b"x").unwrap();
            assert_eq!(read_exact(&client), *b"X");
        }
    }
    let counts = master.until(|counts| counts.finished == 2);
    assert_eq!(counts, Counts { accepted: 0, taken: 2, finished: 2, requests: 6, progress: 2 });
    master.drain(LONG);
    finish(&master, worker);
}

#[test]
fn a_connection_knows_where_it_comes_from() {
    let (master, worker) = cluster();
    let (told, hear) = channel();
    let worker = serve(worker, move |connection: Connection| {
        let facts = (connection.listener().to_owned(), connection.peer(), connection.port());
        told.send(facts).unwrap();
    });
    let client = master.dispatch();
    let (listener, peer, port) = hear.recv().unwrap();
    assert_eq!(listener, "web");
    assert_eq!(peer.unwrap(), Address::Tcp(client.local_addr().unwrap()));
    assert_eq!(port, Some(master.port()));

    let (client, server) = UnixStream::pair().unwrap();
    master.pass(
        &ToWorker::Connection { listener: "admin", past: None, entry: None }.encode(),
        server.as_fd(),
    );
    let (listener, peer, port) = hear.recv().unwrap();
    assert_eq!(listener, "admin");
    assert_eq!(peer.unwrap(), Address::Unix(String::new()));
    assert_eq!(port, None);
    drop(client);
    master.drain(LONG);
    assert_eq!(master.hear_ready(), super::super::THREADS_DEFAULT);
    finish(&master, worker);
}

#[test]
fn unix_and_tcp_are_served_alike_and_block() {
    let (master, worker) = cluster();
    let worker = serve(worker, |connection| {
        let flags = fcntl(&connection, FcntlArg::F_GETFL).unwrap();
        assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK), "reads would fail");
        capitals(connection);
    });
    master.hear_ready();
    let mut tcp = master.dispatch();
    tcp.write_all(b"ab").unwrap();
    assert_eq!(read_exact(&tcp), *b"AB");
    drop(tcp);
    let (mut client, server) = UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    master.pass(
        &ToWorker::Connection { listener: "web", past: None, entry: None }.encode(),
        server.as_fd(),
    );
    drop(server);
    client.set_read_timeout(Some(LONG)).unwrap();
    client.write_all(b"ab").unwrap();
    assert_eq!(read_exact(&client), *b"AB");
    master.drain(LONG);
    finish(&master, worker);
}

/// The master sets `waiting` when it has no credit left, and hears ROOM once for it.
#[test]
fn room_answers_waiting_once() {
    let (master, worker) = cluster();
    let worker = serve(worker, capitals);
    master.hear_ready();
    let one = master.dispatch();
    let two = master.dispatch();
    master.until(|counts| counts.taken == 2);
    while master.hear_now().is_some() {}
    master.seat.set_waiting(true);
    drop(one);
    assert_eq!(master.hear(), ToMaster::Room);
    drop(two);
    master.drain(LONG);
    assert_eq!(master.hear(), ToMaster::Drained, "nobody waited for the second");
    worker.join().unwrap().unwrap();
}

#[test]
fn finished_means_closed() {
    let (master, worker) = cluster();
    let worker = serve(worker, |_| ());
    master.hear_ready();
    for number in 1..=200 {
        let mut client = master.dispatch();
        master.until(|counts| counts.finished == number);
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "counted before it was closed");
    }
    master.drain(LONG);
    finish(&master, worker);
}

/// Nothing is cut, and DRAINED comes last, with final counters. Over and over.
#[test]
fn a_drain_finishes_what_is_in_hand() {
    for _ in 0..100 {
        let (master, worker) = cluster();
        let handle = worker.handle();
        let (go, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        let worker = serve(worker, move |mut connection: Connection| {
            gate.lock().unwrap().recv().unwrap();
            connection.write_all(b"answer").unwrap();
        });
        master.hear_ready();
        let clients = [master.dispatch(), master.dispatch(), master.dispatch()];
        master.drain(LONG);
        until_draining(&handle);
        let counts = Counts { accepted: 0, taken: 3, finished: 0, requests: 0, progress: 4 };
        assert_eq!(master.seat.counts(), counts);
        assert_eq!(master.hear_now(), None);
        for _ in 0..3 {
            go.send(()).unwrap();
        }
        for client in clients {
            assert_eq!(read_all(client), "answer");
        }
        assert_eq!(master.hear(), ToMaster::Drained);
        assert_eq!(master.seat.counts(), Counts { finished: 3, ..counts });
        worker.join().unwrap().unwrap();
    }
}

fn until_draining(handle: &Handle) {
    while !handle.draining() {
        std::thread::yield_now();
    }
}

#[test]
fn a_worker_whose_master_died_finishes_and_leaves() {
    let (master, worker) = cluster();
    let worker = serve(worker, capitals);
    master.hear_ready();
    let mut client = master.dispatch();
    client.write_all(b"a").unwrap();
    assert_eq!(read_exact(&client), *b"A");
    let mut queued = master.dispatch();
    queued.write_all(b"b").unwrap();
    master.die();
    assert_eq!(read_all(client), "", "idle, closed");
    assert_eq!(read_all(queued), "B", "was in the channel, answered");
    worker.join().unwrap().unwrap();
}

#[test]
fn a_panicking_handler_loses_its_connection_alone() {
    let (master, worker) = cluster();
    // One thread for the victims, which each of them needs again.
    let worker = serve(worker.threads(2), |connection: Connection| {
        let [byte] = read_exact(&connection);
        assert_ne!(byte, b'!', "told to");
        capitals(connection);
    });
    master.hear_ready();
    let mut other = master.dispatch();
    other.write_all(b"xa").unwrap();
    assert_eq!(read_exact(&other), *b"A");
    for number in 1..=3 {
        let mut victim = master.dispatch();
        victim.write_all(b"!").unwrap();
        assert_eq!(read_all(victim), "");
        master.until(|counts| counts.finished == number);
    }
    other.write_all(b"b").unwrap();
    assert_eq!(read_exact(&other), *b"B");
    master.drain(LONG);
    finish(&master, worker);
}

/// What a handler panicked with may panic itself when it is dropped: that ends the thread.
struct Vicious;

impl Drop for Vicious {
    fn drop(&mut self) {
        panic!("so there");
    }
}

#[test]
fn a_thread_that_ends_unexpectedly_is_replaced() {
    let (master, worker) = cluster();
    let worker = serve(worker.threads(1).limit(4), |connection: Connection| {
        let [byte] = read_exact(&connection);
        if byte == b'!' {
            std::panic::panic_any(Vicious);
        }
        capitals(connection);
    });
    master.hear_ready();
    for round in 1..=3 {
        let mut victims = [master.dispatch(), master.dispatch()];
        let mut queued = master.dispatch();
        master.until(|counts| counts.taken == round * 3);
        queued.write_all(b"xa").unwrap();
        for victim in &mut victims {
            victim.write_all(b"!").unwrap();
        }
        assert_eq!(read_exact(&queued), *b"A", "the only thread was lost twice before it");
    }
    master.drain(LONG);
    finish(&master, worker);
}

#[test]
fn a_silent_connection_is_waited_for_and_an_idle_one_is_not() {
    for _ in 0..100 {
        let (master, worker) = cluster();
        let worker = serve(worker, capitals);
        master.hear_ready();
        let mut idle = master.dispatch();
        idle.write_all(b"i").unwrap();
        assert_eq!(read_exact(&idle), *b"I");
        let mut silent = master.dispatch();
        master.drain(LONG);
        assert_eq!(read_all(idle), "", "closed, since it was answered");
        // Closed after the drain began: so the silent one has been told of it, too.
        silent.write_all(b"s").unwrap();
        assert_eq!(read_all(silent), "S", "answered, then closed");
        finish(&master, worker);
    }
}

#[test]
fn silence_ends_before_the_drain_is_over() {
    let (master, worker) = cluster();
    let (told, hear) = channel();
    let worker = serve(worker, move |connection: Connection| {
        told.send(connection.wait().unwrap()).unwrap();
    });
    master.hear_ready();
    let _silent = master.dispatch();
    master.drain(Duration::from_millis(50));
    assert_eq!(hear.recv_timeout(LONG).unwrap(), Wait::Draining);
    finish(&master, worker);
}

#[test]
fn bytes_go_before_draining() {
    let (master, worker) = cluster();
    let handle = worker.handle();
    let ((arrived, arrival), (go, gate)) = (channel(), channel::<()>());
    let gate = Mutex::new(gate);
    let worker = serve(worker, move |connection: Connection| {
        let [_] = read_exact(&connection);
        arrived.send(()).unwrap();
        gate.lock().unwrap().recv().unwrap();
        capitals(connection);
    });
    master.hear_ready();
    let mut client = master.dispatch();
    client.write_all(b"x").unwrap();
    arrival.recv().unwrap();
    master.drain(LONG);
    until_draining(&handle);
    client.write_all(b"late").unwrap();
    go.send(()).unwrap();
    assert_eq!(read_all(client), "LATE");
    finish(&master, worker);
}

#[test]
fn an_idle_bound_ends_a_wait() {
    let (master, worker) = cluster();
    let (told, hear) = channel();
    let worker = serve(worker, move |connection: Connection| {
        connection.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        told.send(connection.wait().unwrap_err().kind()).unwrap();
    });
    master.hear_ready();
    let _client = master.dispatch();
    assert_eq!(hear.recv_timeout(LONG).unwrap(), std::io::ErrorKind::TimedOut);
    master.drain(LONG);
    finish(&master, worker);
}

#[test]
fn handlers_run_side_by_side_up_to_the_bound() {
    let (master, worker) = cluster();
    let together = Arc::new(Barrier::new(8));
    let worker = serve(worker.threads(8), move |mut connection: Connection| {
        together.wait();
        connection.write_all(b"x").unwrap();
    });
    assert_eq!(master.hear_ready(), 8);
    for _ in 0..3 {
        let clients: Vec<_> = (0..8).map(|_| master.dispatch()).collect();
        for client in clients {
            assert_eq!(read_all(client), "x");
        }
    }
    master.drain(LONG);
    finish(&master, worker);
}

/// Who answers does not listen: somebody else does, however many answer.
#[test]
fn the_master_is_heard_while_all_threads_answer() {
    let (master, worker) = cluster();
    let (go, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let worker = serve(worker.threads(2), move |_| gate.lock().unwrap().recv().unwrap());
    assert_eq!(master.hear_ready(), 2);
    for _ in 0..3 {
        let _clients = [master.dispatch(), master.dispatch()];
        master.say(&ToWorker::Ping);
        assert_eq!(master.hear(), ToMaster::Room);
        (0..2).for_each(|_| go.send(()).unwrap());
    }
    master.drain(LONG);
    finish(&master, worker);
}

/// One after the other, they need hardly more than the one who answers and the one who waits.
#[test]
fn who_takes_a_connection_answers_it() {
    let (master, worker) = cluster();
    let (told, hear) = channel();
    let worker = serve(worker, move |_| told.send(std::thread::current().id()).unwrap());
    master.hear_ready();
    let mut threads = std::collections::HashSet::new();
    for _ in 0..200 {
        assert_eq!(read_all(master.dispatch()), "");
        threads.insert(hear.recv_timeout(LONG).unwrap());
    }
    assert!(threads.len() < 20, "{} threads for 200 connections in a row", threads.len());
    master.drain(LONG);
    finish(&master, worker);
}

#[test]
fn what_is_no_connection_is_skipped() {
    let (master, worker) = cluster();
    let worker = serve(worker, capitals);
    master.hear_ready();
    master.say(&ToWorker::Ping);
    assert_eq!(master.hear(), ToMaster::Room);
    master.say(&ToWorker::Unknown(200));
    master.say_bytes(&[1]);
    master.say_bytes(&[0, 2, 0, 0]);
    master.say(&ToWorker::Connection { listener: "no descriptor", past: None, entry: None });
    let (file, _) = pair().unwrap();
    master.pass(
        &ToWorker::Connection { listener: "no stream", past: None, entry: None }.encode(),
        file.as_fd(),
    );
    let mut client = master.dispatch();
    client.write_all(b"x").unwrap();
    assert_eq!(read_exact(&client), *b"X");
    // Credit came back for the two that were announced.
    let counts = master.seat.counts();
    assert_eq!((counts.taken, counts.finished, counts.progress), (3, 2, 7));
    drop(client);
    master.drain(LONG);
    finish(&master, worker);
}

#[test]
fn it_asks_once_to_be_replaced() {
    let (master, worker) = cluster_with_request_limit(2);
    let handle = worker.handle();
    let worker = serve(worker, capitals);
    master.hear_ready();
    let mut client = master.dispatch();
    client.write_all(b"a").unwrap();
    assert_eq!(read_exact(&client), *b"A");
    assert_eq!(master.hear_now(), None);
    client.write_all(b"b").unwrap();
    assert_eq!(master.hear(), ToMaster::Retire);
    assert_eq!(read_exact(&client), *b"B");
    handle.retire();
    drop(client);
    assert!(!handle.draining());
    master.drain(LONG);
    assert_eq!(master.hear(), ToMaster::Drained, "and nothing else");
    assert!(handle.draining());
    worker.join().unwrap().unwrap();
}

/// Over and over: the thread that iterates and the one that stands in for it are told of things in turns.
#[test]
fn an_iterator_ends_when_what_it_lent_is_dropped() {
    for _ in 0..100 {
        let (master, worker) = cluster();
        let (lend, lent): (Sender<Connection>, Receiver<Connection>) = channel();
        let author = std::thread::spawn(move || {
            for connection in worker.connections().unwrap() {
                lend.send(connection).unwrap();
            }
        });
        assert_eq!(master.hear_ready(), 1);
        let client = master.dispatch();
        let connection = lent.recv_timeout(LONG).unwrap();
        master.drain(LONG);
        while !connection.draining() {
            std::thread::yield_now();
        }
        assert_eq!(master.hear_now(), None);
        assert!(!author.is_finished());
        drop(connection);
        assert_eq!(master.hear_other(), ToMaster::Drained);
        author.join().unwrap();
        drop(client);
    }
}

/// A handler that takes long is no stall: the channel is emptied all the same.
#[test]
fn an_author_who_is_busy_does_not_stall_the_channel() {
    let (master, worker) = cluster();
    let mut connections = worker.limit(2).connections().unwrap();
    assert_eq!(master.hear_ready(), 2);
    let _clients = [master.dispatch(), master.dispatch()];
    master.until(|counts| counts.taken == 2);
    drop(connections.next());
    drop(connections.next());
    master.drain(LONG);
    assert!(connections.next().is_none());
}
