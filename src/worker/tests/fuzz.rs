//! A fuzzer of hand-back: clients with every kind of request and body, workers that drain at every
//! moment, and not one answer may be wrong, missing or out of order.
//!
//! A case is made from its seed: up to eleven requests on one connection, written in pieces with
//! pauses. Its worker is drained after a few milliseconds, the connection goes to a new worker, that
//! is drained, and so on until the client has its answers. Bodies are filled with text that is itself
//! a request for a trap: if a worker ever takes the middle of a body for the beginning of a request,
//! the trap is sprung.
//!
//! ```text
//! cargo test --all-features fuzz                       a few thousand requests of each kind
//! FUZZ=500000 cargo test --release --all-features fuzz -- --nocapture --test-threads=1
//! SEED=1234 cargo test --all-features fuzz -- --nocapture      one case again (of each kind)
//! ```
//!
//! The drain's offer comes within three milliseconds: without a drain hyper 1.12 by itself forgets a
//! pipelined request now and then (of which the body before it was read late, beside a long answer).
//!
//! A fuzzer that finds nothing may be blind. So the precautions are taken out, too: without the
//! comparison of events the accounts must prevent every wrong answer, and without both the fuzzer
//! must find one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::routing::{any, get};
use hyper::body::{Bytes, Frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use super::super::serve::Checks;
use super::*;

/// Cases that run at once.
const AT_ONCE: usize = 16;

const TRAP: &[u8] = b"GET /trap HTTP/1.1\r\nHost: x\r\n\r\n";

/// A pseudo-random sequence.
#[derive(Clone)]
struct Chance(u64);

impl Chance {
    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// What a request asks for, and what becomes of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Slow,
    /// Its body is read, then answered.
    Read,
    /// Answered before its body is read, which another task does.
    Elsewhere,
    /// Its body is dropped.
    Dropped,
    /// Another task drops its body later.
    Later,
}

const KINDS: [Kind; 6] =
    [Kind::Plain, Kind::Slow, Kind::Read, Kind::Elsewhere, Kind::Dropped, Kind::Later];

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Kind::Plain => "plain",
            Kind::Slow => "slow",
            Kind::Read => "read",
            Kind::Elsewhere => "elsewhere",
            Kind::Dropped => "dropped",
            Kind::Later => "later",
        }
    }

    fn has_body(self) -> bool {
        !matches!(self, Kind::Plain | Kind::Slow)
    }

    /// A server may close the connection after it.
    fn may_close(self) -> bool {
        matches!(self, Kind::Dropped | Kind::Later)
    }
}

/// All that a client will say, and what it expects to hear.
struct Script {
    bytes: Vec<u8>,
    expected: VecDeque<(u64, Kind, usize)>,
}

impl Script {
    fn new(chance: &mut Chance) -> Script {
        let mut script = Script { bytes: Vec::new(), expected: VecDeque::new() };
        let kinds = 1 + chance.below(KINDS.len() as u64);
        for id in 0..=chance.below(11) {
            let kind = KINDS[chance.below(kinds) as usize];
            let longest = if chance.one_in(20) { 300_000 } else { 2000 };
            let length = chance.below(longest) as usize;
            script.ask(chance, id, kind, length);
        }
        script
    }

    fn ask(&mut self, chance: &mut Chance, id: u64, kind: Kind, length: usize) {
        let (path, method) = (kind.path(), if kind.has_body() { "POST" } else { "GET" });
        let start = format!("{method} /{path}/{id}/{length} HTTP/1.1\r\nHost: x\r\n");
        self.bytes.extend(start.as_bytes());
        self.expected.push_back((id, kind, length));
        if !kind.has_body() {
            self.bytes.extend(b"\r\n");
            return;
        }
        let longest = if chance.one_in(10) { 60_000 } else { 1500 };
        let length = chance.below(longest) as usize;
        let mut body: Vec<u8> = TRAP.iter().copied().cycle().take(length).collect();
        if chance.one_in(2) {
            self.bytes.extend(format!("Content-Length: {length}\r\n\r\n").as_bytes());
            self.bytes.append(&mut body);
            return;
        }
        self.bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
        while !body.is_empty() {
            let count = (1 + chance.below(700) as usize).min(body.len());
            self.bytes.extend(format!("{count:x}\r\n").as_bytes());
            self.bytes.extend(body.drain(..count));
            self.bytes.extend(b"\r\n");
        }
        self.bytes.extend(b"0\r\n\r\n");
    }
}

/// An answer in pieces, whose length is not known before.
struct Pieces(usize);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let count = self.0.min(777);
        self.0 -= count;
        Poll::Ready((count > 0).then(|| Ok(Frame::data(Bytes::from(vec![b'x'; count])))))
    }
}

async fn answer(
    Path((kind, id, length)): Path<(String, u64, usize)>,
    body: Body,
) -> (HeaderMap, Body) {
    let mut chance = Chance(id ^ length as u64);
    let reading = async move |limit| axum::body::to_bytes(body, limit).await.map(drop);
    match kind.as_str() {
        "slow" => sleep(Duration::from_millis(chance.below(3))).await,
        "read" => drop(reading(usize::MAX).await),
        "elsewhere" => drop(tokio::spawn(reading(usize::MAX))),
        "later" => drop(tokio::spawn(async move {
            sleep(Duration::from_millis(chance.below(3))).await;
            drop(reading);
        })),
        _ => drop(reading),
    }
    let mut headers = HeaderMap::new();
    headers.insert("x-id", HeaderValue::from(id));
    let is_known = length % 3 > 0;
    (headers, if is_known { Body::from(vec![b'x'; length]) } else { Body::new(Pieces(length)) })
}

/// Which server, with which precautions.
#[derive(Clone)]
enum Server {
    Own(Checks),
    Axum,
}

#[derive(Default)]
struct Tally {
    requests: AtomicU64,
    handbacks: AtomicU64,
    with_leftover: AtomicU64,
    closed: AtomicU64,
    trapped: AtomicU64,
}

/// Runs one worker after the other until the connection is over.
async fn workers(server: Server, socket: OwnedFd, mut chance: Chance, tally: Arc<Tally>) {
    let trapped = Arc::clone(&tally);
    let trap = |State(tally): State<Arc<Tally>>| async move {
        tally.trapped.fetch_add(1, SeqCst);
    };
    let app = Router::new()
        .route("/{kind}/{id}/{length}", any(answer))
        .route("/trap", get(trap))
        .with_state(trapped);
    let past = Past::default();
    let listener = "web".to_owned();
    let mut returned = Returned { listener, past, socket, leftover: Vec::new() };
    loop {
        let (master, worker) = cluster();
        // Else axum's listener would end the process.
        drop(worker.draining());
        let app = app.clone();
        let serving = match server.clone() {
            Server::Own(checks) => {
                tokio::spawn(async move { worker.serve_with(app, checks).await.unwrap() })
            }
            Server::Axum => tokio::spawn(async move {
                let listener = worker.into_listener().unwrap();
                axum::serve(listener, super::super::hand_back(app)).await.unwrap();
            }),
        };
        master.pass_on(&returned);
        drop(returned);
        sleep_about(chance.below(3000)).await;
        // Never cut: a client may take long to say one request.
        master.drain_to_others(10 * LONG);
        let next = loop {
            match master.until_heard().await {
                Heard::Returned(returned) => break Some(returned),
                Heard::Said(ToMaster::Drained) => break None,
                Heard::Said(_) => {}
            }
        };
        serving.abort();
        let Some(next) = next else { return };
        tally.handbacks.fetch_add(1, SeqCst);
        tally.with_leftover.fetch_add(u64::from(!next.leftover.is_empty()), SeqCst);
        returned = next;
    }
}

/// Microseconds; the timer knows milliseconds only.
async fn sleep_about(time: u64) {
    if time >= 1000 {
        sleep(Duration::from_millis(time / 1000)).await;
    }
    for _ in 0..time % 1000 / 100 {
        yield_now().await;
    }
}

/// Says it all, in pieces. `said` counts them.
async fn speak(
    mut half: tokio::net::unix::OwnedWriteHalf,
    bytes: Vec<u8>,
    mut chance: Chance,
    said: Arc<AtomicU64>,
) {
    let longest = if chance.one_in(3) { 40 } else { 4000 };
    let patience = 1 + chance.below(12);
    let mut left = &bytes[..];
    while !left.is_empty() {
        let count = (1 + chance.below(longest) as usize).min(left.len());
        // A server that has closed is found out by the listener.
        if half.write_all(&left[..count]).await.is_err() {
            return;
        }
        left = &left[count..];
        said.fetch_add(1, SeqCst);
        if chance.one_in(patience) {
            sleep_about(chance.below(1800)).await;
        }
    }
    // Not closed before the answers are there: a server may take that for an end.
    half.forget();
}

/// What a client reads.
struct Listener {
    half: tokio::net::unix::OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Listener {
    /// `false`: the end.
    async fn fill(&mut self) -> bool {
        matches!(self.half.read_buf(&mut self.buffer).await, Ok(count) if count > 0)
    }

    /// Up to and with `end`; `None`: the end came before.
    async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Some(self.buffer.drain(..at + end.len()).collect());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    /// Head and length of the next answer. `Ok(None)`: a clean end.
    async fn answer(&mut self) -> Result<Option<(String, usize)>, String> {
        let Some(head) = self.until(b"\r\n\r\n").await else {
            let rest = String::from_utf8_lossy(&self.buffer);
            return if rest.is_empty() { Ok(None) } else { Err(format!("cut in {rest:?}")) };
        };
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let cut = || format!("cut in the body after {head:?}");
        if let Some(length) = length {
            let body = self.exactly(length.parse().unwrap()).await.ok_or_else(cut)?;
            return Ok(Some((head, body.len())));
        }
        let mut length = 0;
        loop {
            let size = self.until(b"\r\n").await.ok_or_else(cut)?;
            let size = String::from_utf8_lossy(&size);
            let size = usize::from_str_radix(size.trim(), 16)
                .map_err(|_| format!("{size:?} is no size, after {head:?}"))?;
            self.exactly(size + 2).await.ok_or_else(cut)?;
            if size == 0 {
                return Ok(Some((head, length)));
            }
            length += size;
        }
    }
}

/// A client's life; what was wrong, if something was.
async fn listen(
    half: tokio::net::unix::OwnedReadHalf,
    script: Script,
    tally: &Tally,
) -> Result<(), String> {
    let mut listener = Listener { half, buffer: Vec::new() };
    let mut may_close = false;
    for (id, kind, length) in script.expected {
        may_close |= kind.may_close();
        let Some((head, read)) = listener.answer().await? else {
            if may_close {
                tally.closed.fetch_add(1, SeqCst);
                return Ok(());
            }
            return Err(format!("closed before answer {id}"));
        };
        tally.requests.fetch_add(1, SeqCst);
        if !head.starts_with("http/1.1 200 ") || !head.contains(&format!("x-id: {id}\r\n")) {
            return Err(format!("answer {id} is {head:?}"));
        }
        if read != length {
            return Err(format!("answer {id} has {read} bytes, not {length}"));
        }
        if head.contains("connection: close") {
            return Err(format!("answer {id} announces a close"));
        }
    }
    Ok(())
}

/// Waits for a client's answers as long as he has more to say: some take thousands of pauses, which
/// is far longer than any answer.
async fn patiently(
    listening: impl Future<Output = Result<(), String>>,
    said: &AtomicU64,
) -> Result<(), String> {
    let mut listening = std::pin::pin!(listening);
    loop {
        let before = said.load(SeqCst);
        if let Ok(result) = timeout(LONG, listening.as_mut()).await {
            return result;
        }
        if said.load(SeqCst) == before {
            return Err("an answer does not come".into());
        }
    }
}

/// One case; what was wrong, if something was.
async fn case(server: Server, seed: u64, tally: Arc<Tally>) -> Result<(), String> {
    let mut chance = Chance(seed);
    let script = Script::new(&mut chance);
    let (client, socket) = std::os::unix::net::UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    let (reading, writing) = UnixStream::from_std(client).unwrap().into_split();
    let serving = workers(server, socket.into(), chance.clone(), Arc::clone(&tally));
    let serving = tokio::spawn(serving);
    let said = Arc::new(AtomicU64::new(0));
    let speaking = speak(writing, script.bytes.clone(), chance, Arc::clone(&said));
    let speaking = tokio::spawn(speaking);
    let result = patiently(listen(reading, script, &tally), &said).await;
    speaking.abort();
    match timeout(LONG, serving).await {
        Ok(ended) => ended.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("the last worker does not end ({result:?})")),
    }
    result
}

/// Runs cases until so many requests were answered, or `is_enough` of the wrong ones.
fn run(
    server: &Server,
    requests: u64,
    is_enough: impl Fn(usize) -> bool,
) -> (Arc<Tally>, Vec<String>) {
    let runtime: Runtime =
        Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let tally = Arc::new(Tally::default());
    let (mut seeds, mut left) = match std::env::var("SEED") {
        Ok(seed) => (seed.parse().unwrap(), 1),
        Err(_) => (std::process::id().into(), u64::MAX),
    };
    seeds &= u64::MAX >> 8;
    println!("seeds from {seeds}");
    let mut wrong = Vec::new();
    runtime.block_on(async {
        let mut cases = JoinSet::new();
        loop {
            let is_over = tally.requests.load(SeqCst) >= requests || is_enough(wrong.len());
            while !is_over && left > 0 && cases.len() < AT_ONCE {
                let (server, tally, seed) = (server.clone(), Arc::clone(&tally), seeds);
                (seeds, left) = (seeds + 1, left - 1);
                cases.spawn(async move { (seed, case(server, seed, tally).await) });
            }
            match cases.join_next().await {
                None => return,
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((seed, Err(what)))) => wrong.push(format!("SEED={seed}: {what}")),
                Some(Err(error)) => panic!("{error}"),
            }
        }
    });
    let count = |counter: &AtomicU64| counter.load(SeqCst);
    println!(
        "{} requests, {} hand-backs ({} with leftover), {} closed after a dropped body, {} trapped, {} wrong",
        count(&tally.requests),
        count(&tally.handbacks),
        count(&tally.with_leftover),
        count(&tally.closed),
        count(&tally.trapped),
        wrong.len()
    );
    for what in wrong.iter().take(5) {
        println!("  {what}");
    }
    (tally, wrong)
}

/// How many requests: the variable FUZZ, or `usually`.
fn how_many(usually: u64) -> u64 {
    std::env::var("FUZZ").map_or(usually, |text| text.parse().unwrap())
}

fn find_nothing(server: &Server) -> Arc<Tally> {
    let (tally, wrong) = run(server, how_many(4000), |wrong| wrong > 20);
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(tally.trapped.load(SeqCst), 0);
    if std::env::var("SEED").is_err() {
        assert!(tally.with_leftover.load(SeqCst) > 0, "it was tried");
    }
    tally
}

#[test]
fn fuzz_serve() {
    let checks = Checks::default();
    find_nothing(&Server::Own(checks.clone()));
    let (vetoes, misjudged) = (checks.vetoes.load(SeqCst), checks.misjudged.load(SeqCst));
    println!("{vetoes} vetoes, {misjudged} misjudged");
    assert_eq!((vetoes, misjudged), (0, 0), "the comparison of events suffices");
}

#[test]
fn fuzz_axum_serve() {
    find_nothing(&Server::Axum);
}

#[test]
fn fuzz_serve_by_the_accounts_alone() {
    let checks = Checks { events: false, ..Checks::default() };
    find_nothing(&Server::Own(checks.clone()));
    let (vetoes, misjudged) = (checks.vetoes.load(SeqCst), checks.misjudged.load(SeqCst));
    println!("{vetoes} vetoes, {misjudged} misjudged");
    if std::env::var("SEED").is_err() {
        assert!(vetoes > 0, "there was something to prevent");
    }
}

/// The test of the test.
#[test]
fn fuzz_finds_what_the_precautions_prevent() {
    let checks = Checks { events: false, accounts: false, ..Checks::default() };
    let (_, wrong) = run(&Server::Own(checks), how_many(100_000), |wrong| wrong > 0);
    assert!(std::env::var("SEED").is_ok() || !wrong.is_empty(), "it is blind");
}
