//! What a worker says that is asked what it holds: blocking, as tokio streams, and under servers that
//! the library watches.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;

#[cfg(feature = "axum")]
use super::super::Handle;
use super::super::{Connection, Wait, registry};
use super::*;
use crate::error::Result;
use crate::sys::clock::microseconds;
use crate::wire::message::{Activity, CONNECTIONS_MAX, HeldConnection, Holding};

impl Master {
    /// Asks, and hears the whole answer.
    fn ask(&self, round: u32) -> (Vec<HeldConnection>, u32) {
        self.say(&ToWorker::Ask { round });
        self.hear_holding(round)
    }

    fn hear_holding(&self, round: u32) -> (Vec<HeldConnection>, u32) {
        let mut connections = Vec::new();
        loop {
            let message = self.hear_other();
            let ToMaster::Holding(holding) = message else { panic!("{message:?}") };
            assert_eq!(holding.round, round);
            connections.extend(holding.connections);
            if let Some(rest) = holding.rest {
                return (connections, rest);
            }
        }
    }

    /// Asks until the answer is as wished: what a worker has received it may not have read yet.
    fn ask_until(&self, wished: impl Fn(&[HeldConnection]) -> bool) -> Vec<HeldConnection> {
        self.again(|| self.say(&ToWorker::Ask { round: 1 }), wished)
    }

    /// The same without a drain.
    #[cfg(feature = "axum")]
    fn until_told(
        &self,
        handle: &Handle,
        wished: impl Fn(&[HeldConnection]) -> bool,
    ) -> Vec<HeldConnection> {
        self.again(|| assert!(registry::answer(&handle.0, 1)), wished)
    }

    fn again(
        &self,
        ask: impl Fn(),
        wished: impl Fn(&[HeldConnection]) -> bool,
    ) -> Vec<HeldConnection> {
        let end = microseconds() + u64::try_from(LONG.as_micros()).unwrap();
        loop {
            ask();
            let (connections, rest) = self.hear_holding(1);
            assert_eq!(rest, 0);
            if wished(&connections) {
                return connections;
            }
            assert!(microseconds() < end, "{connections:?}");
            std::thread::yield_now();
        }
    }
}

fn run(
    worker: Worker,
    handler: impl Fn(Connection) + Send + Sync + 'static,
) -> JoinHandle<Result<()>> {
    std::thread::spawn(move || worker.ready(handler))
}

fn address(client: &TcpStream) -> String {
    client.local_addr().unwrap().to_string()
}

/// Echoes bytes, and asks the library nothing.
fn echo(mut connection: Connection) {
    let mut byte = [0];
    while connection.read(&mut byte).is_ok_and(|count| count > 0) {
        connection.write_all(&byte).unwrap();
    }
}

#[test]
fn each_connection_is_told_with_its_client_and_its_age() {
    let (master, worker) = cluster();
    let before = microseconds();
    let worker = run(worker, echo);
    master.hear_ready();
    let mut first = master.dispatch();
    first.write_all(b"ab").unwrap();
    assert_eq!(read_exact(&first), *b"ab");
    let (silent, unix) = (master.dispatch(), master.dispatch_unix());
    master.until(|counts| counts.taken == 3);
    let after = microseconds();
    master.drain(LONG);
    let (told, rest) = master.ask(7);
    assert_eq!(rest, 0);
    let seen: Vec<_> = told.iter().map(|it| (it.peer.as_str(), it.activity)).collect();
    let (first_address, silent_address) = (address(&first), address(&silent));
    let wanted = [
        // It asks the library nothing, so that cannot tell.
        (first_address.as_str(), Activity::Unknown),
        (&silent_address, Activity::Idle),
        ("unix", Activity::Idle),
    ];
    assert_eq!(seen, wanted, "the one that is held longest is the first");
    assert!(told.iter().all(|it| it.listener == "web"), "{told:?}");
    assert!(told[0].requests > 0 && told[1].requests == 0, "{told:?}");
    assert!(told.iter().all(|it| (before..=after).contains(&it.held_since)), "{told:?}");
    drop((first, silent, unix));
    assert_eq!(master.hear_other(), ToMaster::Drained);
    worker.join().unwrap().unwrap();
}

#[test]
fn who_waits_for_the_next_request_is_idle_and_who_has_one_is_not() {
    let (master, worker) = cluster();
    let worker = run(worker, |mut connection| {
        while connection.wait().is_ok_and(|it| it == Wait::Bytes) {
            let [byte] = read_exact(&connection);
            if byte == b'w' {
                // Until the client says more.
                let [_] = read_exact(&connection);
            }
            connection.write_all(&[byte]).unwrap();
        }
    });
    master.hear_ready();
    let mut busy = master.dispatch();
    busy.write_all(b"aw").unwrap();
    assert_eq!(read_exact(&busy), *b"a");
    let idle = master.dispatch();
    master.until(|counts| counts.taken == 2);
    master.drain(LONG);
    let told = master.ask_until(|told| {
        // That it is there is known before it is read.
        told[0].activity == Activity::Busy && told[0].requests == 2
    });
    assert_eq!((told[0].peer.clone(), told[0].requests), (address(&busy), 2));
    assert_eq!((told[1].peer.clone(), told[1].activity), (address(&idle), Activity::Idle));
    busy.write_all(b"!").unwrap();
    assert_eq!(read_exact(&busy), *b"w");
    drop(idle);
    assert_eq!(master.hear_other(), ToMaster::Drained);
    worker.join().unwrap().unwrap();
}

#[test]
fn what_is_finished_is_told_no_more_and_its_place_is_used_again() {
    let (master, worker) = cluster();
    let worker = run(worker, capitals);
    master.hear_ready();
    let mut last = None;
    for finished in 0..50 {
        last = Some(master.dispatch());
        master.until(|counts| counts.taken == finished + 1);
        if finished < 49 {
            drop(last.take());
            master.until(|counts| counts.finished == finished + 1);
        }
    }
    let last = last.unwrap();
    master.drain(LONG);
    // It leaves the list a moment after it was counted.
    let told = master.ask_until(|told| told.len() == 1);
    assert_eq!(told[0].peer, address(&last));
    drop(last);
    assert_eq!(master.hear_other(), ToMaster::Drained);
    worker.join().unwrap().unwrap();
}

/// More than are listed: those that are held longest, and the number of the others.
#[test]
fn of_very_many_the_oldest_are_told_and_the_rest_is_counted() {
    let (master, worker) = cluster();
    let mut connections = worker.limit(2000).connections().unwrap();
    master.hear_ready();
    let count = CONNECTIONS_MAX + 30;
    let (mut clients, mut held) = (Vec::new(), Vec::new());
    for _ in 0..count {
        clients.push(master.dispatch_unix());
        held.push(connections.next().unwrap());
    }
    // The oldest has gone, and the newest stands in its place.
    drop(held.remove(0));
    let _newest = master.dispatch();
    held.push(connections.next().unwrap());
    master.drain(LONG);
    let (told, rest) = master.ask(3);
    assert_eq!((told.len(), rest), (CONNECTIONS_MAX, 30));
    assert!(told.iter().all(|it| it.peer == "unix"), "the newest is not among them");
    assert!(told.windows(2).all(|it| it[0].held_since <= it[1].held_since));
    drop(held);
    assert_eq!(connections.next().map(|_| ()), None);
}

/// A master that does not read is not waited for for ever; when it reads again, it can ask again.
#[test]
fn a_queue_that_is_full_costs_the_answer_and_nothing_else() {
    let (master, worker) = cluster();
    let handle = worker.handle();
    let mut connections = worker.limit(2000).connections().unwrap();
    master.hear_ready();
    let (mut clients, mut held) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        clients.push(master.dispatch_unix());
        held.push(connections.next().unwrap());
    }
    let mut round = 1;
    while registry::answer(&handle.0, round) {
        round += 1;
    }
    let (mut ended, mut last) = (Vec::new(), 0);
    while let Some(message) = master.hear_now() {
        let ToMaster::Holding(Holding { round, rest, .. }) = message else { continue };
        last = round;
        ended.extend(rest.map(|_| round));
    }
    assert_eq!(ended, (1..round).collect::<Vec<_>>(), "all are whole but the last one");
    assert_eq!(last, round, "which was begun");
    master.drain(LONG);
    assert_eq!(master.ask(1000).0.len(), 200);
    drop(held);
    assert_eq!(connections.next().map(|_| ()), None);
}

/// The number of its socket is soon another's.
#[test]
fn a_connection_that_is_closed_has_no_client_any_more() {
    let (master, worker) = cluster();
    let handle = worker.handle();
    let mut connections = worker.limit(2).connections().unwrap();
    master.hear_ready();
    let (first, second) = (master.dispatch(), master.dispatch());
    let (held, other) = (connections.next().unwrap(), connections.next().unwrap());
    let all = handle.0.lock().registry.all();
    let number = held.as_fd().as_raw_fd();
    assert_eq!(all[0].tell().peer, address(&first));
    drop(held);
    // Whoever gets the number: another test may be as quick.
    let again = nix::unistd::dup(other.as_fd()).unwrap();
    println!("{number} was closed, {} is new", again.as_raw_fd());
    assert_eq!((all[0].tell().peer.as_str(), all[1].tell().peer), ("", address(&second)));
    master.drain(LONG);
    drop(other);
    assert_eq!(connections.next().map(|_| ()), None);
}

/// Before DRAIN nobody asks; who does is not answered, and nothing is counted.
#[test]
fn a_worker_that_serves_does_not_answer() {
    let (master, worker) = cluster();
    let worker = run(worker, capitals);
    master.hear_ready();
    master.say(&ToWorker::Ask { round: 1 });
    let mut client = master.dispatch();
    client.write_all(b"x").unwrap();
    assert_eq!(read_exact(&client), *b"X");
    assert_eq!(master.seat.counts().progress, 1, "the connection alone is progress");
    drop(client);
    master.drain(LONG);
    assert_eq!(master.hear_other(), ToMaster::Drained);
    worker.join().unwrap().unwrap();
}

#[cfg(feature = "axum")]
mod served {
    use std::sync::Arc;

    use axum::Router;
    use axum::routing::{get, post};
    use tokio::runtime::Builder;
    use tokio::sync::Notify;

    use super::*;

    /// Serves until drained, on a thread; `/wait` is answered when it is let go.
    fn serve(worker: Worker, by_axum: bool) -> (Arc<Notify>, JoinHandle<()>) {
        let go = Arc::new(Notify::new());
        let waiting = Arc::clone(&go);
        let app = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/read", post(|body: String| async move { body.len().to_string() }))
            .route("/wait", get(async move || waiting.notified().await));
        let serving = std::thread::spawn(move || {
            Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                if by_axum {
                    let draining = worker.draining();
                    let listener = worker.into_listener().unwrap();
                    let served = axum::serve(listener, crate::hand_back(app));
                    served.with_graceful_shutdown(draining).await.unwrap();
                } else {
                    worker.serve(app).await.unwrap();
                }
            });
        });
        (go, serving)
    }

    fn ask(client: &mut TcpStream, path: &str) {
        write!(client, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    }

    fn hear(client: &mut TcpStream, end: &[u8]) {
        let mut seen = Vec::new();
        while !seen.ends_with(end) {
            let [byte] = read_exact(&*client);
            seen.push(byte);
        }
    }

    #[test]
    fn a_server_tells_requests_and_which_connection_is_in_one() {
        for by_axum in [false, true] {
            let (master, worker) = cluster();
            let (go, serving) = serve(worker, by_axum);
            master.hear_ready();
            let mut slow = master.dispatch();
            ask(&mut slow, "/");
            hear(&mut slow, b"hello");
            ask(&mut slow, "/wait");
            while master.seat.counts().requests < 2 {
                assert!(!serving.is_finished());
                std::thread::yield_now();
            }
            // Half a head: it must not be closed, and is in a request.
            let mut half = master.dispatch();
            half.write_all(b"GET / HT").unwrap();
            // The master takes nothing back, and this one has said nothing.
            let silent = master.dispatch();
            master.until(|counts| counts.taken == 3);
            master.drain(LONG);
            let told = master
                .ask_until(|told| told[0].requests == 2 && told[1].activity == Activity::Busy);
            let seen: Vec<_> =
                told.iter().map(|it| (it.peer.clone(), it.activity, it.requests)).collect();
            let wanted = [
                (address(&slow), Activity::Busy, 2),
                (address(&half), Activity::Busy, 0),
                (address(&silent), Activity::Idle, 0),
            ];
            assert_eq!(seen, wanted, "by axum: {by_axum}");
            go.notify_waiters();
            drop((half, silent));
            let mut rest = String::new();
            slow.read_to_string(&mut rest).unwrap();
            assert!(rest.starts_with("HTTP/1.1 200"), "{rest}");
            assert_eq!(master.hear_other(), ToMaster::Drained);
            serving.join().unwrap();
        }
    }

    /// Where answers are written and requests are whole it is idle, however often it has asked; and
    /// what was upgraded speaks what nobody knows.
    #[test]
    fn a_server_tells_what_is_idle_and_what_it_cannot_tell() {
        let (master, worker) = cluster();
        let handle = worker.handle();
        let (_, serving) = serve(worker, false);
        master.hear_ready();
        let mut idle = master.dispatch();
        write!(idle, "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        hear(&mut idle, b"\r\n\r\n5");
        let mut odd = master.dispatch();
        write!(odd, "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\n\r\n").unwrap();
        hear(&mut odd, b"hello");
        // What the client has received may not be noted as written yet.
        let told = master.until_told(&handle, |told| told[0].activity == Activity::Idle);
        assert_eq!((told[0].peer.clone(), told[0].requests), (address(&idle), 1));
        assert_eq!((told[1].activity, told[1].requests), (Activity::Unknown, 1));
        drop((idle, odd));
        master.drain(LONG);
        assert_eq!(master.hear_other(), ToMaster::Drained);
        serving.join().unwrap();
    }
}
