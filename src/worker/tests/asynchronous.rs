//! Connections as tokio streams.

use std::io::Write;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

use super::super::{Address, Stream};
use super::*;

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

async fn capitals(mut stream: Stream) {
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte).await {
        stream.write_all(&byte.map(|byte| byte.to_ascii_uppercase())).await.unwrap();
    }
}

/// Runs the worker on a thread of its own.
pub fn serve(worker: Worker) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        current_thread().block_on(async move {
            let mut incoming = worker.into_incoming().unwrap();
            while let Some(stream) = incoming.next().await {
                tokio::spawn(capitals(stream));
            }
        });
    })
}

#[test]
fn streams_are_answered_and_counted() {
    let (master, worker) = cluster_with_request_limit(4);
    let worker = serve(worker);
    assert!(master.hear_ready() >= 32);
    let mut client = master.dispatch();
    for _ in 0..3 {
        client.write_all(b"x").unwrap();
        assert_eq!(read_exact(&client), *b"X");
    }
    assert_eq!(master.hear_now(), None);
    client.write_all(b"y").unwrap();
    assert_eq!(master.hear(), ToMaster::Retire);
    assert_eq!(read_exact(&client), *b"Y");
    master.drain(LONG);
    while master.seat.counts().progress < 2 {
        std::thread::yield_now();
    }
    // In hand: answered still, and only then is it over.
    client.write_all(b"z").unwrap();
    assert_eq!(read_exact(&client), *b"Z");
    assert_eq!(master.hear_now(), None);
    drop(client);
    assert_eq!(master.hear_other(), ToMaster::Drained);
    let counts = Counts { accepted: 0, taken: 1, finished: 1, requests: 5, progress: 2 };
    assert_eq!(master.seat.counts(), counts);
    worker.join().unwrap();
}

#[test]
fn unix_streams_are_streams_too() {
    let (master, worker) = cluster();
    let runtime = current_thread();
    let mut incoming = runtime.block_on(async { worker.into_incoming().unwrap() });
    let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    master.pass(
        &ToWorker::Connection { listener: "admin", past: None, entry: None }.encode(),
        server.as_fd(),
    );
    drop(server);
    client.write_all(b"x").unwrap();
    let stream = runtime.block_on(incoming.next()).unwrap();
    assert_eq!(stream.listener(), "admin");
    assert_eq!(stream.peer().unwrap(), Address::Unix(String::new()));
    client.shutdown(std::net::Shutdown::Write).unwrap();
    runtime.block_on(capitals(stream));
    assert_eq!(read_all(client), "X");
}

/// No helper thread takes in its stead.
#[test]
fn a_blocked_runtime_takes_nothing() {
    let (master, worker) = cluster();
    let runtime = current_thread();
    let mut incoming = runtime.block_on(async { worker.into_incoming().unwrap() });
    master.hear_ready();
    let _client = master.dispatch();
    master.seat.set_waiting(true);
    assert!(!readable_within(&master, Duration::from_millis(100)), "somebody took it");
    assert_eq!(master.seat.counts(), Counts::default());
    assert!(runtime.block_on(incoming.next()).is_some());
    assert_eq!(master.hear(), ToMaster::Room);
}

fn readable_within(master: &Master, limit: Duration) -> bool {
    wait_readable(&[master.end.as_fd()], Some(limit)).unwrap();
    readable(master.end.as_fd())
}

#[test]
fn a_stream_that_is_held_back_comes_with_its_first_bytes() {
    let (master, worker) = cluster();
    let runtime = current_thread();
    let mut incoming = runtime.block_on(async { worker.when_readable().into_incoming().unwrap() });
    master.hear_ready();
    let silent = master.dispatch();
    let mut talker = master.dispatch();
    talker.write_all(b"x").unwrap();
    let stream = runtime.block_on(incoming.next()).unwrap();
    assert_eq!(stream.peer().unwrap().tcp(), Some(talker.local_addr().unwrap()));
    assert_eq!(master.seat.counts().taken, 2, "held back means taken");
    // Its end counts as its first bytes.
    let address = silent.local_addr().unwrap();
    drop(silent);
    let stream = runtime.block_on(incoming.next()).unwrap();
    assert!(stream.peer().is_err() || stream.peer().unwrap().tcp() == Some(address));
}

#[test]
fn silence_ends_before_the_drain_is_over() {
    let (master, worker) = cluster();
    let runtime = current_thread();
    let draining = worker.draining();
    let mut incoming = runtime.block_on(async { worker.when_readable().into_incoming().unwrap() });
    master.hear_ready();
    let silent = master.dispatch();
    master.drain(Duration::from_millis(50));
    assert!(runtime.block_on(incoming.next()).is_none());
    runtime.block_on(draining);
    assert_eq!(master.hear_other(), ToMaster::Drained);
    assert_eq!(read_all(silent), "");
}

#[test]
fn a_worker_whose_master_died_finishes_and_leaves() {
    let (master, worker) = cluster();
    let worker = serve(worker);
    master.hear_ready();
    let mut client = master.dispatch();
    client.write_all(b"a").unwrap();
    assert_eq!(read_exact(&client), *b"A");
    master.die();
    client.write_all(b"b").unwrap();
    assert_eq!(read_exact(&client), *b"B");
    assert!(!worker.is_finished());
    drop(client);
    worker.join().unwrap();
}

#[test]
fn without_a_runtime_it_says_so() {
    let (_master, worker) = cluster();
    let refusal = worker.into_incoming().unwrap_err().to_string();
    assert!(refusal.contains("no tokio runtime"), "{refusal}");
}

/// Held back, nobody has touched it: at a drain it goes to another worker at once.
#[test]
fn a_silent_stream_that_is_held_back_is_handed_back() {
    let (master, worker) = cluster();
    let runtime = current_thread();
    let mut incoming = runtime.block_on(async { worker.when_readable().into_incoming().unwrap() });
    master.hear_ready();
    let mut client = master.dispatch();
    master.drain_to_others(LONG);
    assert!(runtime.block_on(incoming.next()).is_none());
    let returned = master.hear_handback();
    assert_eq!((returned.past.requests, returned.leftover.len()), (0, 0));
    assert_eq!(master.hear(), ToMaster::Drained);

    let (master, worker) = cluster();
    let worker = serve(worker);
    master.hear_ready();
    master.pass_on(&returned);
    client.write_all(b"x").unwrap();
    assert_eq!(read_exact(&client), *b"X");
    drop(client);
    master.drain(LONG);
    assert_eq!(master.hear_other(), ToMaster::Drained);
    worker.join().unwrap();
}

/// Idle since another worker, and nobody takes it: closed at once, as idle ones are.
#[test]
fn an_idle_stream_that_is_held_back_does_not_hold_the_worker() {
    let (master, worker) = cluster();
    let runtime = current_thread();
    let mut incoming = runtime.block_on(async { worker.when_readable().into_incoming().unwrap() });
    let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    let past = Past { idle_since: 0, requests: 1, leftover: 0 };
    let (listener, socket) = ("web".to_owned(), server.into());
    let returned = Returned { listener, past, socket, leftover: Vec::new() };
    master.pass_on(&returned);
    master.drain(LONG);
    assert!(runtime.block_on(incoming.next()).is_none());
    drop(returned);
    assert_eq!(read_all(client), "");
}

/// What a stream left over is read first by the next, also where both ends are async.
#[test]
fn a_stream_leaves_with_what_was_read() {
    let (master, worker) = cluster();
    let runtime = current_thread();
    let mut incoming = runtime.block_on(async { worker.into_incoming().unwrap() });
    let mut client = master.dispatch();
    client.write_all(b"abcdef").unwrap();
    runtime.block_on(async {
        let mut stream = incoming.next().await.unwrap();
        assert!(!stream.handed_back() && !stream.can_hand_back());
        let mut read = [0; 4];
        stream.read_exact(&mut read).await.unwrap();
        let kept = stream.hand_back(b"d").await.unwrap_err();
        assert_eq!(kept.why.kind(), std::io::ErrorKind::Unsupported);
        // Never asked again: it is served to its end.
        let mut stream = kept.connection;
        master.drain_to_others(LONG);
        stream.until_draining().await;
        assert!(!stream.can_hand_back());
        stream.read_exact(&mut read[..3]).await.unwrap();
        assert_eq!(&read[..3], b"def");
    });
    assert!(runtime.block_on(incoming.next()).is_none());
    assert_eq!(read_all(&client), "", "closed");

    let (master, worker) = cluster();
    let mut incoming = runtime.block_on(async { worker.into_incoming().unwrap() });
    let mut client = master.dispatch();
    client.write_all(b"abcdef").unwrap();
    runtime.block_on(async {
        let mut stream = incoming.next().await.unwrap();
        let mut read = [0; 4];
        stream.read_exact(&mut read).await.unwrap();
        master.drain_to_others(LONG);
        stream.until_draining().await;
        assert!(stream.hand_back(b"d").await.is_ok());
    });
    master.hear_ready();
    let returned = master.hear_handback();
    assert_eq!(returned.leftover, b"d");
    let (master, worker) = cluster();
    let mut incoming = runtime.block_on(async { worker.into_incoming().unwrap() });
    master.pass_on(&returned);
    runtime.block_on(async {
        let mut stream = incoming.next().await.unwrap();
        assert!(stream.handed_back());
        stream.readable().await.unwrap();
        let mut read = [0; 3];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"def");
    });
}
