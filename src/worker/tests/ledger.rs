//! What the ledger says, at each step of a connection: the test is the master, and looks.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use axum::routing::any;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc};

use super::super::taker::now;
use super::super::{Connection, Handle};
use super::*;
use crate::sys::tcp;
use crate::wire::ledger::{Entry, Said, State};

const BOTH: [&str; 2] = ["serve", "axum"];

/// An answer in pieces that the test gives.
struct Pieces(mpsc::UnboundedReceiver<&'static str>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        let piece = self.0.poll_recv(context);
        piece.map(|piece| piece.map(|text| Ok(hyper::body::Frame::data(text.into()))))
    }
}

type Receiver = Arc<std::sync::Mutex<Option<mpsc::UnboundedReceiver<&'static str>>>>;

/// What the test tells the application.
struct Hands {
    go: Arc<Notify>,
    pieces: mpsc::UnboundedSender<&'static str>,
    receiver: Receiver,
}

/// `/wait` answers when it is let go; `/pieces` in pieces; `/big` with much; `/held` at once, and another task keeps the
/// body; `/last` says that it is the last one.
async fn answer(go: Arc<Notify>, receiver: Receiver, request: Request) -> Response {
    match request.uri().path() {
        "/wait" => go.notified().await,
        "/pieces" => {
            let receiver = receiver.lock().unwrap().take().unwrap();
            return Response::new(Body::new(Pieces(receiver)));
        }
        "/held" => drop(tokio::spawn(async move {
            go.notified().await;
            drop(request);
        })),
        "/big" => return Response::new(Body::from(vec![b'x'; 8 << 20])),
        "/read" => {
            let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
            return Response::new(Body::from(body));
        }
        "/last" => {
            go.notified().await;
            let answer = Response::builder().header("connection", "close");
            return answer.body(Body::from("bye")).unwrap();
        }
        _ => {}
    }
    Response::new(Body::from("hello"))
}

struct Running {
    master: Master,
    ledger: Ledger,
    hands: Hands,
    _handle: Handle,
    _runtime: Runtime,
}

impl Running {
    fn start(kind: &str) -> Running {
        let (master, worker, ledger) = cluster_with_ledger();
        let (pieces, receiver) = mpsc::unbounded_channel();
        let receiver = Arc::new(std::sync::Mutex::new(Some(receiver)));
        let hands = Hands { go: Arc::default(), pieces, receiver };
        let (go, receiver) = (Arc::clone(&hands.go), Arc::clone(&hands.receiver));
        let app = Router::new()
            .fallback(any(move |request| answer(Arc::clone(&go), Arc::clone(&receiver), request)));
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let handle = worker.handle();
        if kind == "serve" {
            runtime.spawn(async move { worker.serve(app).await.unwrap() });
        } else {
            // Else its listener would end this process.
            drop(worker.draining());
            runtime.spawn(async move {
                let listener = worker.into_listener().unwrap();
                axum::serve(listener, super::super::hand_back(app)).await.unwrap();
            });
        }
        let ready = master.hear();
        assert!(matches!(ready, ToMaster::Ready(Ready { ledger: true, .. })), "{ready:?}");
        Running { master, ledger, hands, _handle: handle, _runtime: runtime }
    }

    fn entry(&self, index: u32) -> Entry {
        self.ledger.entry(index).unwrap()
    }

    fn until(&self, index: u32, state: State) -> Said {
        until(&self.entry(index), state)
    }

    fn until_requests(&self, count: u64) {
        while self.master.seat.counts().requests < count {
            std::thread::yield_now();
        }
    }
}

/// Waits until the worker has said this.
fn until(entry: &Entry, state: State) -> Said {
    let end = now() + LONG;
    while entry.state() != state {
        assert!(now() < end, "{:?}, not {state:?}", entry.read());
        std::thread::yield_now();
    }
    entry.read()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// Reads until this has come.
fn expect(mut client: &TcpStream, end: &str) {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        read.extend(read_exact::<1>(&mut client));
    }
}

#[test]
fn an_answer_from_the_first_byte_to_the_last() {
    for kind in BOTH {
        let running = Running::start(kind);
        let (mut client, ours) = running.master.dispatch_kept(7);
        running.master.until(|counts| counts.taken == 1);
        assert_eq!(running.until(7, State::Queued).requests, 0);
        client.write_all(b"GET /wait HT").unwrap();
        assert!(running.until(7, State::Dirty).is_http, "{kind}");
        client.write_all(b"TP/1.1\r\nHost: x\r\n\r\n").unwrap();
        running.until_requests(1);
        assert_eq!(running.entry(7).state(), State::Dirty, "{kind}: nothing is written");
        running.hands.go.notify_one();
        expect(&client, "hello");
        let said = running.until(7, State::Clean);
        assert_eq!(said.requests, 1, "{kind}");
        assert!(said.idle_since > 0);
        // What the master would ask the kernel, had the worker died a moment earlier.
        assert_eq!((said.from, Some(said.until)), (0, tcp::written(ours.as_fd())), "{kind}");
        client.write_all(get("/").as_bytes()).unwrap();
        expect(&client, "hello");
        assert_eq!(running.until(7, State::Clean).requests, 2);
        client.shutdown(Shutdown::Write).unwrap();
        running.until(7, State::Closed);
        assert_eq!(read_all(&client), "", "{kind}: shut down, though we hold it, too");
        running.master.until(|counts| counts.finished == 1);
    }
}

#[test]
fn an_answer_in_pieces_has_begun_until_its_end() {
    for kind in BOTH {
        let running = Running::start(kind);
        let (mut client, ours) = running.master.dispatch_kept(0);
        client.write_all(get("/pieces").as_bytes()).unwrap();
        for piece in ["one", "two", "three"] {
            running.hands.pieces.send(piece).unwrap();
            expect(&client, &format!("{piece}\r\n"));
            let said = running.until(0, State::Wrote);
            assert_eq!((said.from, said.until), (0, 0), "{kind}: it is not known where it ends");
        }
        let mut running = running;
        running.hands.pieces = mpsc::unbounded_channel().0;
        expect(&client, "0\r\n\r\n");
        let said = running.until(0, State::Clean);
        assert_eq!(Some(said.until), tcp::written(ours.as_fd()), "{kind}");
    }
}

/// Two requests at once: when the first is answered, the second one is read and not answered.
#[test]
fn the_second_of_two_requests_is_not_taken_for_answered() {
    for kind in BOTH {
        let running = Running::start(kind);
        let (mut client, ours) = running.master.dispatch_kept(1);
        client.write_all([get("/"), get("/wait")].concat().as_bytes()).unwrap();
        expect(&client, "hello");
        running.until_requests(2);
        let said = running.until(1, State::Dirty);
        let first = tcp::written(ours.as_fd()).unwrap();
        assert_eq!((said.until, said.is_http), (first, true), "{kind}");
        running.hands.go.notify_one();
        expect(&client, "hello");
        assert_eq!(running.until(1, State::Clean).requests, 2, "{kind}");
        // Half of the next one with the end of this one.
        client.write_all([&get("/"), "GET / HT"].concat().as_bytes()).unwrap();
        expect(&client, "hello");
        running.until(1, State::Dirty);
    }
}

/// A slow reader: the worker has made the whole answer, and the kernel has not taken it yet.
#[test]
fn the_end_of_a_long_answer_is_known_before_it_is_written() {
    for (kind, more) in BOTH.iter().flat_map(|kind| ["", "GET / HT"].map(|more| (kind, more))) {
        let running = Running::start(kind);
        let (mut client, ours) = running.master.dispatch_kept(8);
        client.write_all([&get("/big"), more].concat().as_bytes()).unwrap();
        let end = now() + LONG;
        while running.entry(8).read().until == 0 {
            assert!(now() < end, "{kind}: {:?}", running.entry(8).read());
            std::thread::yield_now();
        }
        let said = running.until(8, State::Wrote);
        assert_eq!((said.from, said.is_pending), (0, !more.is_empty()), "{kind}, {more:?}");
        assert!(said.until > 8 << 20 && tcp::written(ours.as_fd()).unwrap() < said.until);
        let mut left = said.until;
        while left > 0 {
            let count = client.read(&mut [0; 65_536]).unwrap();
            assert!(count > 0);
            left -= count as u64;
        }
        running.until(8, if more.is_empty() { State::Clean } else { State::Dirty });
        assert_eq!(tcp::written(ours.as_fd()), Some(said.until), "{kind}: not a byte more");
    }
}

/// A body that is held by somebody else, long after the answer.
#[test]
fn a_body_that_is_held_ends_no_request() {
    for kind in BOTH {
        let running = Running::start(kind);
        let (mut client, _ours) = running.master.dispatch_kept(2);
        let head = "POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
        client.write_all(head.as_bytes()).unwrap();
        expect(&client, "hello");
        assert_ne!(running.entry(2).state(), State::Clean, "{kind}");
        running.hands.go.notify_one();
        // hyper reads the rest of a body that was dropped, then it is at rest; or it closes.
        let end = now() + LONG;
        while !matches!(running.entry(2).state(), State::Clean | State::Closed) {
            assert!(now() < end, "{kind}: {:?}", running.entry(2).read());
            std::thread::yield_now();
        }
    }
}

/// What closes after its answer is never at rest: its client waits for the end.
#[test]
fn a_last_answer_leaves_no_boundary() {
    let cases = [
        get("/last"),
        "GET /wait HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Close\r\n\r\n".into(),
        "GET /wait HTTP/1.0\r\n\r\n".into(),
    ];
    for (kind, request) in BOTH.iter().flat_map(|kind| cases.iter().map(move |it| (kind, it))) {
        let running = Running::start(kind);
        let (mut client, _ours) = running.master.dispatch_kept(3);
        client.write_all(request.as_bytes()).unwrap();
        running.until_requests(1);
        let entry = running.entry(3);
        let watch = std::thread::spawn(move || {
            let (mut seen, end) = (Vec::new(), now() + LONG);
            while seen.last() != Some(&State::Closed) {
                assert!(now() < end, "{seen:?}");
                let said = entry.read();
                assert_eq!(said.until, 0, "{said:?}");
                seen.push(said.state);
                seen.dedup();
            }
            seen
        });
        running.hands.go.notify_one();
        read_all(&client);
        drop(client);
        let seen = watch.join().unwrap();
        assert!(!seen.contains(&State::Clean), "{kind}, {request:?}: {seen:?}");
    }
}

#[test]
fn http_2_and_what_is_upgraded_has_begun() {
    for kind in BOTH {
        let running = Running::start(kind);
        // This axum is built without it.
        if kind == "serve" {
            let (mut client, _ours) = running.master.dispatch_kept(4);
            client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
            running.until(4, State::Wrote);
            read_exact::<9>(&client);
            assert_eq!(running.entry(4).read().until, 0);
        }
        let (mut client, _ours) = running.master.dispatch_kept(5);
        let upgrade = "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        client.write_all(upgrade.as_bytes()).unwrap();
        expect(&client, "hello");
        assert_eq!(running.until(5, State::Wrote).until, 0, "{kind}: in doubt for good");
    }
}

/// What goes to another worker is not closed in the ledger: the message says so.
#[test]
fn who_is_handed_back_brings_his_entry() {
    for kind in BOTH {
        let running = Running::start(kind);
        let (mut client, _ours) = running.master.dispatch_kept(6);
        client.write_all([&get("/"), "GET"].concat().as_bytes()).unwrap();
        expect(&client, "hello");
        running.until(6, State::Dirty);
        running.master.drain_to_others(LONG);
        let mut buffer = [0; LENGTH_MAX];
        let handback = loop {
            wait_readable(&[running.master.end.as_fd()], Some(LONG)).unwrap();
            let received = running.master.end.receive(&mut buffer).unwrap();
            let Received::Message { len, .. } = received else { panic!("{received:?}") };
            let message = ToMaster::decode(&buffer[..len]).unwrap();
            if let ToMaster::Handback { entry, past, .. } = message {
                break (entry, past.requests);
            }
        };
        assert_eq!(handback, (Some(6), 1), "{kind}");
        assert_eq!(running.entry(6).state(), State::Dirty, "{kind}: nothing more is said");
    }
}

/// Handlers of their own: nobody knows where their requests end.
#[test]
fn a_plain_connection_is_read_then_written() {
    let (master, worker, ledger) = cluster_with_ledger();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let serving = std::thread::spawn(move || {
        worker.ready(move |mut connection: Connection| {
            let mut bytes = [0; 3];
            connection.read_exact(&mut bytes).unwrap();
            gone.lock().unwrap().recv().unwrap();
            connection.write_all(&bytes).unwrap();
            gone.lock().unwrap().recv().unwrap();
        })
    });
    master.hear_ready();
    let (mut client, _ours) = master.dispatch_kept(9);
    let entry = ledger.entry(9).unwrap();
    let until = |state: State| until(&entry, state);
    master.until(|counts| counts.taken == 1);
    // It waits in the read, and looks as if nothing were.
    assert_eq!(entry.state(), State::Queued);
    client.write_all(b"abc").unwrap();
    assert!(!until(State::Dirty).is_http);
    go.send(()).unwrap();
    assert_eq!(read_exact::<3>(&client), *b"abc");
    until(State::Wrote);
    go.send(()).unwrap();
    until(State::Closed);
    assert_eq!(read_all(&client), "");
    master.drain(LONG);
    assert_eq!(master.hear_other(), ToMaster::Drained);
    serving.join().unwrap().unwrap();
}
