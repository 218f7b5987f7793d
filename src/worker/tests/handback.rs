//! Connections that are handed back, by blocking handlers: what arrives, in which order, and what
//! happens to those that cannot be.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::{Connection, Kept, Wait};
use super::*;
use crate::error::Result;
use crate::sys::leftover::pack;

/// One line, one answer; a partial line travels.
fn lines(mut connection: Connection) {
    let mut read = Vec::new();
    loop {
        while let Some(end) = read.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = read.drain(..=end).collect();
            connection.write_all(&line.to_ascii_uppercase()).unwrap();
        }
        match connection.wait_to_hand_back().unwrap() {
            Wait::Bytes => {}
            Wait::Closed => return,
            Wait::Draining if !connection.can_hand_back() => return,
            Wait::Draining => match connection.hand_back(&read) {
                Ok(()) => return,
                Err(kept) => {
                    read.clear();
                    connection = kept.connection;
                    continue;
                }
            },
        }
        let mut buffer = [0; 4096];
        let count = connection.read(&mut buffer).unwrap();
        read.extend(&buffer[..count]);
    }
}

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

fn ask(mut client: impl Read + Write, text: &str) {
    client.write_all(text.as_bytes()).unwrap();
    expect(client, text);
}

fn expect(mut client: impl Read, text: &str) {
    let mut answer = vec![0; text.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), text.to_uppercase());
}

/// Idle, in the middle of a line, fresh, fresh with a part: all go on with the next worker, and the
/// next, as if nothing had been.
#[test]
fn a_client_notices_nothing() {
    let (master, worker) = cluster();
    let mut serving = (master, serve(worker, lines));
    serving.0.hear_ready();
    let clients = [(); 4].map(|()| serving.0.dispatch());
    let [idle, mut half, mut fresh, mut part] = clients;
    ask(&idle, "one\n");
    ask(&half, "two\n");
    half.write_all(b"thr").unwrap();
    part.write_all(b"fo").unwrap();
    while serving.0.seat.counts().requests < 4 {
        std::thread::yield_now();
    }
    for round in 0..20 {
        let (master, worker) = cluster();
        let next = (master, serve(worker, lines));
        next.0.hear_ready();
        serving.0.drain_to_others(LONG);
        for _ in 0..4 {
            let returned = serving.0.hear_handback();
            assert_eq!(returned.listener, "web");
            next.0.pass_on(&returned);
        }
        assert_eq!(serving.0.seat.counts().taken, 4);
        finish(&serving.0, serving.1);
        assert_eq!(serving.0.seat.counts().finished, 0, "handed back is not finished");
        serving = next;
        if round % 2 == 0 {
            ask(&idle, "x\n");
        }
    }
    half.write_all(b"ee\n").unwrap();
    expect(&half, "three\n");
    part.write_all(b"ur\n").unwrap();
    expect(&part, "four\n");
    fresh.write_all(b"five\n").unwrap();
    expect(&fresh, "five\n");
    idle.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(idle), "");
    drop([half, fresh, part]);
    serving.0.drain_to_others(LONG);
    finish(&serving.0, serving.1);
}

#[test]
fn its_past_travels_and_is_told() {
    let (master, worker) = cluster();
    let worker = serve(worker, lines);
    master.hear_ready();
    let client = master.dispatch();
    ask(&client, "a\n");
    ask(&client, "b\n");
    (&client).write_all(b"c").unwrap();
    while master.seat.counts().requests < 3 {
        std::thread::yield_now();
    }
    master.drain_to_others(LONG);
    let returned = master.hear_handback();
    assert_eq!(returned.leftover, b"c");
    assert_eq!(returned.past.requests, 2, "the third is its next owner's");
    finish(&master, worker);

    let (master, worker) = cluster();
    let (told, hear) = channel();
    let worker = serve(worker, move |mut connection: Connection| {
        let facts = (connection.handed_back(), connection.requests(), connection.idle_since());
        told.send(facts).unwrap();
        read_exact::<2>(&connection);
        connection.write_all(b"C\n").unwrap();
        told.send((true, connection.requests(), connection.idle_since())).unwrap();
    });
    master.pass_on(&returned);
    let (handed_back, requests, before) = hear.recv().unwrap();
    assert!(handed_back && requests == 2);
    (&client).write_all(b"\n").unwrap();
    let (_, requests, after) = hear.recv().unwrap();
    assert_eq!(requests, 3);
    // The clocks of both tellings differ by less than the microseconds that are cut off.
    assert!(after + Duration::from_millis(1) > before, "{before:?} {after:?}");
    expect(&client, "c\n");
    master.hear_ready();
    master.drain(LONG);
    finish(&master, worker);
}

/// HANDBACK, then DRAINED; and the socket is not ended on the way.
#[test]
fn everything_is_in_the_channel_before_it_is_drained() {
    for _ in 0..200 {
        let (master, worker) = cluster();
        let worker = serve(worker, lines);
        master.hear_ready();
        let client = master.dispatch();
        ask(&client, "x\n");
        master.drain_to_others(LONG);
        let returned = master.hear_handback();
        assert_eq!(master.hear(), ToMaster::Drained);
        worker.join().unwrap().unwrap();
        // Nobody but us holds it now, and it is alive.
        std::fs::File::from(returned.socket).write_all(b"alive").unwrap();
        assert_eq!(read_all(client), "alive");
    }
}

#[test]
fn without_an_offer_nothing_is_handed_back() {
    let (master, worker) = cluster();
    let (told, hear) = channel();
    let worker = serve(worker, move |connection: Connection| {
        assert!(!connection.can_hand_back());
        read_exact::<1>(&connection);
        assert_eq!(connection.wait_to_hand_back().unwrap(), Wait::Draining);
        assert!(!connection.can_hand_back());
        let Err(Kept { connection, why }) = connection.hand_back(b"left") else { panic!("kept") };
        told.send(why.kind()).unwrap();
        assert_eq!(connection.wait().unwrap(), Wait::Bytes, "the leftover is back");
        assert_eq!(read_exact::<4>(&connection), *b"left");
        assert_eq!(connection.wait_to_hand_back().unwrap(), Wait::Draining);
    });
    master.hear_ready();
    let mut client = master.dispatch();
    client.write_all(b"x").unwrap();
    master.drain(LONG);
    assert_eq!(hear.recv().unwrap(), std::io::ErrorKind::Unsupported);
    assert_eq!(read_all(client), "", "closed, as it always was");
    finish(&master, worker);
}

#[test]
fn a_worker_whose_master_died_keeps_what_it_has() {
    let (master, worker) = cluster();
    let (told, hear) = channel();
    let worker = serve(worker, move |connection: Connection| {
        read_exact::<1>(&connection);
        while !connection.can_hand_back() {
            std::thread::yield_now();
        }
        told.send(()).unwrap();
        read_exact::<1>(&connection);
        let Err(Kept { mut connection, .. }) = connection.hand_back(b"") else { panic!("kept") };
        assert!(!connection.can_hand_back(), "once is enough");
        connection.write_all(b"served").unwrap();
    });
    master.hear_ready();
    let mut client = master.dispatch();
    client.write_all(b"x").unwrap();
    master.drain_to_others(LONG);
    hear.recv().unwrap();
    master.die();
    client.write_all(b"y").unwrap();
    assert_eq!(read_all(client), "served");
    worker.join().unwrap().unwrap();
}

/// The channel takes some hundred messages; here are more. Those that find no room wait for it.
#[test]
fn a_full_queue_is_waited_for() {
    const MANY: usize = 700;
    let (master, worker) = cluster();
    let worker = serve(worker.threads(MANY as u32), lines);
    assert!(master.hear_ready() >= MANY as u32, "descriptors");
    let clients: Vec<_> = (0..MANY).map(|_| master.dispatch_unix()).collect();
    master.until(|counts| counts.taken == MANY as u64);
    master.drain_to_others(LONG);
    // Nothing is heard until the queue is full.
    while !master.is_full() {
        std::thread::yield_now();
    }
    let returned: Vec<_> = (0..MANY).map(|_| master.hear_handback()).collect();
    finish(&master, worker);
    assert_eq!(master.seat.counts().finished, 0);
    drop(returned);
    assert!(clients.into_iter().all(|client| read_all(client).is_empty()));
}

#[test]
fn a_queue_that_stays_full_ends_the_wait() {
    const MANY: usize = 600;
    let (master, worker) = cluster();
    let (told, hear) = channel();
    let worker = serve(worker.threads(MANY as u32), move |connection: Connection| {
        assert_eq!(connection.wait_to_hand_back().unwrap(), Wait::Draining);
        if let Err(Kept { why, .. }) = connection.hand_back(b"") {
            told.send(why.kind()).unwrap();
        }
    });
    assert!(master.hear_ready() >= MANY as u32, "descriptors");
    let _clients: Vec<_> = (0..MANY).map(|_| master.dispatch_unix()).collect();
    master.until(|counts| counts.taken == MANY as u64);
    master.drain_to_others(Duration::from_millis(300));
    worker.join().unwrap().unwrap();
    let kept: Vec<_> = hear.try_iter().collect();
    assert!(!kept.is_empty() && kept.iter().all(|&kind| kind == std::io::ErrorKind::TimedOut));
}

/// What is damaged costs its connection, which ends for everybody; the worker serves on.
#[test]
fn damaged_leftover_costs_its_connection_alone() {
    let (master, worker) = cluster();
    let worker = serve(worker, lines);
    master.hear_ready();
    let past = |leftover| Past { idle_since: 0, requests: 1, leftover };
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    let cases: [(u32, Option<OwnedFd>); 5] = [
        (5, None),
        (5, Some(pack(b"four").unwrap())),
        (3, Some(pack(b"four").unwrap())),
        (5, Some(file)),
        (crate::wire::message::LEFTOVER_MAX + 1, Some(pack(b"four").unwrap())),
    ];
    let count = cases.len() as u64;
    for (length, packed) in cases {
        let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
        let message =
            ToWorker::Connection { listener: "web", past: Some(past(length)), entry: None }
                .encode();
        let packed = packed.as_ref().map(AsFd::as_fd);
        master.end.send_with(&message, server.as_fd(), packed).unwrap();
        drop(server);
        assert_eq!(read_all(client), "");
    }
    // Nobody announced it: not looked at.
    let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    let message = ToWorker::Connection { listener: "web", past: None, entry: None }.encode();
    let stray = pack(b"stray").unwrap();
    master.end.send_with(&message, server.as_fd(), Some(stray.as_fd())).unwrap();
    drop(server);
    ask(&client, "well\n");
    drop(client);
    let counts = master.until(|counts| counts.finished == count + 1);
    assert_eq!(counts.taken, count + 1);
    master.drain(LONG);
    finish(&master, worker);
}

#[test]
fn too_much_leftover_stays() {
    let (master, worker) = cluster();
    let worker = serve(worker, |mut connection: Connection| {
        read_exact::<1>(&connection);
        while !connection.can_hand_back() {
            std::thread::yield_now();
        }
        let much = vec![b'x'; crate::wire::message::LEFTOVER_MAX as usize + 1];
        let Err(Kept { connection: kept, why }) = connection.hand_back(&much) else {
            panic!("kept")
        };
        assert_eq!(why.kind(), std::io::ErrorKind::InvalidInput);
        connection = kept;
        connection.write_all(b"served").unwrap();
    });
    master.hear_ready();
    let mut client = master.dispatch();
    client.write_all(b"x").unwrap();
    master.drain_to_others(LONG);
    assert_eq!(read_all(client), "served");
    finish(&master, worker);
}

/// The bounds that one owner set are not the next one's, and idle time goes on.
#[test]
fn an_idle_bound_counts_from_the_last_answer() {
    let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    server.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let (master, worker) = cluster();
    let (told, hear) = channel();
    let worker = serve(worker, move |connection: Connection| {
        assert_eq!(read_exact::<1>(&connection), *b"x", "not bounded by a millisecond");
        told.send(()).unwrap();
    });
    let past = Past { idle_since: 0, requests: 1, leftover: 0 };
    let (listener, leftover) = ("web".to_owned(), Vec::new());
    let socket: OwnedFd = server.into();
    let returned = Returned { listener, past, socket: socket.try_clone().unwrap(), leftover };
    master.hear_ready();
    master.pass_on(&returned);
    master.until(|counts| counts.taken == 1);
    (&client).write_all(b"x").unwrap();
    hear.recv().unwrap();
    master.drain(LONG);
    finish(&master, worker);

    // Idle since the machine has started: long over.
    let (_client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    let (master, worker) = cluster();
    let (told, hear) = channel();
    let worker = serve(worker, move |connection: Connection| {
        connection.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        told.send(connection.wait().unwrap_err().kind()).unwrap();
    });
    let socket: OwnedFd = server.into();
    let listener = "web".to_owned();
    master.pass_on(&Returned { listener, past, socket, leftover: Vec::new() });
    assert_eq!(hear.recv().unwrap(), std::io::ErrorKind::TimedOut);
    master.hear_ready();
    master.drain(LONG);
    finish(&master, worker);
}

/// Somebody else may hold the same socket: a connection that is closed is closed for all.
#[test]
fn closing_is_for_everybody() {
    let (master, worker) = cluster();
    let worker = serve(worker, |connection: Connection| read_exact::<1>(&connection));
    master.hear_ready();
    let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    master.pass(
        &ToWorker::Connection { listener: "web", past: None, entry: None }.encode(),
        server.as_fd(),
    );
    client.write_all(b"x").unwrap();
    assert_eq!(read_all(&client), "", "though it is held here");
    drop(server);
    master.drain(LONG);
    finish(&master, worker);
}
