//! `serve` and `hand_back`, case by case: what a connection is in the middle of when the drain comes,
//! and what becomes of it. The fuzzer does the rest.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::routing::any;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use super::super::{Handle, Peer};
use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Serve,
    Axum,
}

const BOTH: [Kind; 2] = [Kind::Serve, Kind::Axum];

/// A worker with the application that all cases share.
struct Running {
    master: Master,
    handle: Handle,
    go: Arc<Notify>,
    runtime: Runtime,
    serving: Option<JoinHandle<()>>,
}

/// `/` answers at once; `/wait` when it is let go; `/big` with much; `/read` reads its body; `/drop`
/// drops it; `/held` gives its body to another task that waits; `/upgrade` switches protocols and
/// says what comes back.
async fn answer(State(go): State<Arc<Notify>>, request: Request) -> axum::response::Response {
    let path = request.uri().path().to_owned();
    let ok = |body: Body| axum::response::Response::new(body);
    match path.as_str() {
        "/wait" | "/drop" => go.notified().await,
        "/big" => return ok(Body::from(vec![b'x'; 8 << 20])),
        "/read" => {
            let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
            return ok(Body::from(body.len().to_string()));
        }
        "/held" => drop(tokio::spawn(async move {
            go.notified().await;
            drop(request);
        })),
        "/upgrade" => return upgrade(request),
        _ => {}
    }
    ok(Body::from("hello"))
}

fn upgrade(mut request: Request) -> axum::response::Response {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let peer = request.extensions().get::<Peer>().unwrap().clone();
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = hyper_util::rt::TokioIo::new(upgraded.await.unwrap());
        io.write_all(b"switched").await.unwrap();
        peer.until_draining().await;
        io.write_all(b"draining").await.unwrap();
        let mut byte = [0];
        io.read_exact(&mut byte).await.unwrap();
        io.write_all(&byte).await.unwrap();
    });
    let answer = axum::response::Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    answer.header("connection", "upgrade").header("upgrade", "x").body(Body::empty()).unwrap()
}

impl Running {
    fn start(kind: Kind) -> Running {
        let (master, worker) = cluster();
        let (handle, go) = (worker.handle(), Arc::new(Notify::new()));
        let app = Router::new().fallback(any(answer)).with_state(Arc::clone(&go));
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let inside = runtime.handle().clone();
        let serving = match kind {
            Kind::Serve => {
                let served = move || inside.block_on(async { worker.serve(app).await.unwrap() });
                Some(std::thread::spawn(served))
            }
            Kind::Axum => {
                // Else its listener would end this process.
                drop(worker.draining());
                runtime.spawn(async move {
                    let listener = worker.into_listener().unwrap();
                    axum::serve(listener, super::super::hand_back(app)).await.unwrap();
                });
                None
            }
        };
        master.hear_ready();
        Running { master, handle, go, runtime, serving }
    }

    fn drain(&self) {
        self.master.drain_to_others(LONG);
        while !self.handle.draining() {
            std::thread::yield_now();
        }
    }

    /// Drains, and expects the connection back.
    fn hand_back(&self, leftover: &str, requests: u64) -> Returned {
        self.drain();
        self.take_back(leftover, requests)
    }

    fn take_back(&self, leftover: &str, requests: u64) -> Returned {
        let returned = self.master.hear_handback();
        assert_eq!(String::from_utf8_lossy(&returned.leftover), leftover);
        assert_eq!((returned.listener.as_str(), returned.past.requests), ("web", requests));
        returned
    }

    fn until_requests(&self, count: u64) {
        while self.master.seat.counts().requests < count {
            std::thread::yield_now();
        }
    }

    /// Nothing is left; the worker says so.
    fn end(self) {
        assert_eq!(self.master.hear_other(), ToMaster::Drained);
        if let Some(serving) = self.serving {
            serving.join().unwrap();
        }
        self.runtime.shutdown_background();
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// Reads one answer of known length; answers head and body.
fn read_answer(mut client: &TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(read_exact::<1>(client));
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    client.read_exact(&mut body).unwrap();
    (head, body)
}

fn expect_hello(client: &TcpStream) {
    let (head, body) = read_answer(client);
    assert!(head.starts_with("http/1.1 200") && !head.contains("connection:"), "{head}");
    assert_eq!(body, b"hello");
}

/// The next worker gets it, and says hello to `rest`, which completes its request.
fn goes_on(kind: Kind, returned: &Returned, mut client: &TcpStream, rest: &str) {
    let next = Running::start(kind);
    next.master.pass_on(returned);
    client.write_all(rest.as_bytes()).unwrap();
    expect_hello(client);
    next.hand_back("", returned.past.requests + 1);
    next.end();
}

/// What a client has said before the drain, what of it is left over, and what completes it.
#[test]
fn at_rest_it_leaves_with_what_is_left() {
    let whole = get("/");
    let cases: [(&str, u64, &str, &str); 5] = [
        ("", 0, "", &whole),
        ("", 0, "GET / HT", "TP/1.1\r\nHost: x\r\n\r\n"),
        (&whole, 1, "", &whole),
        (&whole, 1, "GET", " / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (&whole, 1, "GET / HTTP/1.1\r\n\r", "\n"),
    ];
    for kind in BOTH {
        for (first, requests, left, rest) in cases {
            // Part of a head need not be read when the drain comes, and then it is not left over.
            let running = Running::start(kind);
            let mut client = running.master.dispatch();
            client.write_all(format!("{first}{left}").as_bytes()).unwrap();
            if requests > 0 {
                expect_hello(&client);
            }
            running.drain();
            let returned = running.master.hear_handback();
            assert_eq!(returned.past.requests, requests, "{kind:?} {first:?} {left:?}");
            assert!(left.as_bytes().starts_with(&returned.leftover), "{kind:?} {left:?}");
            running.end();
            goes_on(kind, &returned, &client, rest);
        }
    }
}

/// Noise between requests is no request.
#[test]
fn empty_lines_between_requests_do_no_harm() {
    for kind in BOTH {
        let running = Running::start(kind);
        let mut client = running.master.dispatch();
        client.write_all(format!("\r\n\r\n{}\r\n\r\n", get("/")).as_bytes()).unwrap();
        expect_hello(&client);
        running.drain();
        let returned = running.master.hear_handback();
        running.end();
        goes_on(kind, &returned, &client, &get("/"));
    }
}

/// An answer under way keeps its keep-alive; its connection leaves when it is flushed.
#[test]
fn a_request_in_flight_is_answered_before_it_leaves() {
    for kind in BOTH {
        let running = Running::start(kind);
        let mut client = running.master.dispatch();
        let both = format!("{}{}GET /n", get("/wait"), get("/"));
        client.write_all(both.as_bytes()).unwrap();
        running.until_requests(1);
        running.drain();
        assert_eq!(running.master.hear_now(), None, "{kind:?}");
        running.go.notify_one();
        expect_hello(&client);
        expect_hello(&client);
        let returned = running.take_back("GET /n", 2);
        running.end();
        goes_on(kind, &returned, &client, "ext HTTP/1.1\r\nHost: x\r\n\r\n");
    }
}

/// A body in progress, then a part of the next head.
#[test]
fn a_body_is_read_to_its_end_before_it_leaves() {
    for kind in BOTH {
        for (head, body) in [
            ("Content-Length: 10", "0123456789"),
            ("Transfer-Encoding: chunked", "a\r\n0123456789\r\n0\r\n\r\n"),
            ("Expect: 100-continue\r\nContent-Length: 10", "0123456789"),
        ] {
            let running = Running::start(kind);
            let mut client = running.master.dispatch();
            let (first, second) = body.split_at(4);
            let asks = head.starts_with("Expect");
            let head = format!("POST /read HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n");
            client.write_all(head.as_bytes()).unwrap();
            if asks {
                assert!(read_answer(&client).0.starts_with("http/1.1 100"));
            }
            client.write_all(first.as_bytes()).unwrap();
            running.until_requests(1);
            running.drain();
            assert_eq!(running.master.hear_now(), None);
            client.write_all(format!("{second}GET ").as_bytes()).unwrap();
            let (head, body) = read_answer(&client);
            assert!(!head.contains("connection:"), "{head}");
            assert_eq!(body, b"10");
            let returned = running.take_back("GET ", 1);
            running.end();
            goes_on(kind, &returned, &client, "/ HTTP/1.1\r\nHost: x\r\n\r\n");
        }
    }
}

/// A body that was not read to its end leaves no boundary: the rest must never be taken for a
/// request.
#[test]
fn a_body_that_was_dropped_never_leaves() {
    for kind in BOTH {
        for body in
            ["Content-Length: 99\r\n\r\nsome", "Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n"]
        {
            let running = Running::start(kind);
            let mut client = running.master.dispatch();
            client.write_all(b"POST /drop HTTP/1.1\r\nHost: x\r\n").unwrap();
            client.write_all(body.as_bytes()).unwrap();
            running.until_requests(1);
            running.drain();
            running.go.notify_one();
            expect_hello(&client);
            assert_eq!(read_all(&client), "", "{kind:?}");
            running.end();
        }
    }
}

/// Somebody still holds the body after the answer: it may yet be read.
#[test]
fn a_body_that_is_held_keeps_its_connection() {
    for kind in BOTH {
        let running = Running::start(kind);
        let mut client = running.master.dispatch();
        let request = "POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbodyGET";
        client.write_all(request.as_bytes()).unwrap();
        expect_hello(&client);
        running.drain();
        assert_eq!(running.master.hear_now(), None, "{kind:?}");
        running.go.notify_one();
        let returned = running.take_back("GET", 1);
        running.end();
        goes_on(kind, &returned, &client, " / HTTP/1.1\r\nHost: x\r\n\r\n");
    }
}

/// Eight megabytes to somebody who reads them when everything else is over.
#[test]
fn a_slow_reader_gets_all_of_it() {
    for kind in BOTH {
        let running = Running::start(kind);
        let mut client = running.master.dispatch();
        client.write_all(get("/big").as_bytes()).unwrap();
        assert_eq!(read_exact::<8>(&client), *b"HTTP/1.1");
        running.drain();
        assert_eq!(running.master.hear_now(), None);
        let (head, body) = read_answer(&client);
        assert!(!head.contains("connection:"), "{head}");
        assert_eq!(body.len(), 8 << 20);
        let returned = running.take_back("", 1);
        running.end();
        goes_on(kind, &returned, &client, &get("/"));
    }
}

#[test]
fn http_1_0_leaves_when_it_was_kept_alive() {
    for kind in BOTH {
        let running = Running::start(kind);
        let mut client = running.master.dispatch();
        client.write_all(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let (head, body) = read_answer(&client);
        assert!(head.contains("connection: keep-alive") && body == b"hello", "{head}");
        let returned = running.hand_back("", 1);
        running.end();
        goes_on(kind, &returned, &client, &get("/"));
    }
}

/// What ends by itself, and what is no HTTP, ends as ever.
#[test]
fn what_ends_by_itself_is_not_handed_back() {
    for kind in BOTH {
        for (request, status) in [
            ("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 200"),
            ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200"),
            ("nonsense\r\n\r\n", "HTTP/1.1 400"),
        ] {
            let running = Running::start(kind);
            let mut client = running.master.dispatch();
            client.write_all(request.as_bytes()).unwrap();
            let answer = read_all(&client);
            assert!(answer.starts_with(status), "{kind:?} {request:?}: {answer}");
            running.drain();
            running.end();
        }
    }
}

/// In doubt: closed, not handed back.
#[test]
fn who_asked_for_an_upgrade_is_closed() {
    for kind in BOTH {
        let running = Running::start(kind);
        let mut client = running.master.dispatch();
        let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
        client.write_all(request.as_bytes()).unwrap();
        expect_hello(&client);
        running.drain();
        if kind == Kind::Axum {
            // It stays until its client leaves, as without `hand_back`.
            client.shutdown(std::net::Shutdown::Write).unwrap();
        }
        assert_eq!(read_all(&client), "");
        running.end();
    }
}

#[test]
fn an_upgraded_connection_stays_and_is_told() {
    for kind in BOTH {
        let running = Running::start(kind);
        let mut client = running.master.dispatch();
        let request =
            "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        client.write_all(request.as_bytes()).unwrap();
        assert!(read_answer(&client).0.starts_with("http/1.1 101"));
        assert_eq!(read_exact::<8>(&client), *b"switched");
        running.drain();
        assert_eq!(read_exact::<8>(&client), *b"draining");
        assert_eq!(running.master.hear_now(), None);
        client.write_all(b"!").unwrap();
        assert_eq!(read_all(&client), "!");
        running.end();
    }
}

/// A master that takes nothing back: as gracefully as ever.
#[test]
fn without_an_offer_it_is_closed_and_says_so() {
    let running = Running::start(Kind::Serve);
    let (mut idle, mut busy) = (running.master.dispatch(), running.master.dispatch());
    let mut silent = running.master.dispatch();
    idle.write_all(get("/").as_bytes()).unwrap();
    expect_hello(&idle);
    busy.write_all(get("/wait").as_bytes()).unwrap();
    running.until_requests(2);
    running.master.drain(LONG);
    assert_eq!(read_all(&idle), "");
    running.go.notify_one();
    silent.write_all(get("/").as_bytes()).unwrap();
    for client in [busy, silent] {
        let answer = read_all(client).to_lowercase();
        assert!(
            answer.starts_with("http/1.1 200") && answer.contains("connection: close"),
            "{answer}"
        );
    }
    running.end();
}

/// Silent to the end: given up when the drain's deadline is near.
#[test]
fn silence_ends_before_the_drain_is_over() {
    let running = Running::start(Kind::Serve);
    let silent = running.master.dispatch();
    running.master.drain(Duration::from_millis(50));
    assert_eq!(read_all(silent), "");
    running.end();
}

#[test]
fn requests_know_where_they_come_from() {
    let (master, worker) = cluster();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let address = |ConnectInfo(peer): ConnectInfo<std::net::SocketAddr>,
                   ConnectInfo(ours): ConnectInfo<Peer>| async move {
        assert_eq!(ours.address.as_ref().and_then(super::super::Address::tcp), Some(peer));
        format!("{peer} {}", ours.listener)
    };
    let app = Router::new().route("/", any(address));
    let served = runtime.spawn(worker.serve(app));
    let mut client = master.dispatch();
    client.write_all(get("/").as_bytes()).unwrap();
    let (_, body) = read_answer(&client);
    let expected = format!("{} web", client.local_addr().unwrap());
    assert_eq!(String::from_utf8(body).unwrap(), expected);
    master.hear_ready();
    master.drain_to_others(LONG);
    master.hear_handback();
    runtime.block_on(served).unwrap().unwrap();
}

/// With prior knowledge; at the drain a GOAWAY, and the stream that is open is answered.
#[test]
fn http_2_gets_a_goaway() {
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    // HEADERS, end of stream and of headers, stream 1: GET, http, path /wait, authority x.
    const WAIT: &[u8] = &[
        0, 0, 12, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x04, 5, b'/', b'w', b'a', b'i', b't', 0x41, 1,
        b'x',
    ];
    let running = Running::start(Kind::Serve);
    let mut client = running.master.dispatch();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    client.write_all(&[SETTINGS, WAIT].concat()).unwrap();
    running.until_requests(1);
    running.drain();
    let (mut kinds, mut is_let_go) = (Vec::new(), false);
    let mut head = [0; 9];
    while client.read_exact(&mut head).is_ok() {
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        client.read_exact(&mut payload).unwrap();
        kinds.push(head[3]);
        // An unanswered PING would hold the GOAWAY's second half back.
        if head[3] == 6 && head[4] == 0 {
            client.write_all(&[&[0, 0, 8, 6, 1, 0, 0, 0, 0], &payload[..]].concat()).unwrap();
        }
        if kinds.contains(&7) && !is_let_go {
            is_let_go = true;
            running.go.notify_one();
        }
    }
    let at = |kind| kinds.iter().position(|&found| found == kind);
    assert!(at(7).is_some() && at(7) < at(0), "GOAWAY, then the answer: {kinds:?}");
    running.end();
}
