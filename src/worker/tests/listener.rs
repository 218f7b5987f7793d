//! The listener of `axum::serve`.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::get;
use tokio::runtime::{Builder, Runtime};

use super::super::Peer;
use super::*;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn multi_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

fn assert_answered(client: impl Read, what: &str) {
    let answer = read_all(client);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{what}: {answer:?}");
}

/// The two pitfalls at once: connections that are silent when the drain is told, and connections
/// that were just handed to axum. On several threads, over and over.
#[test]
fn no_connection_is_lost_at_a_drain() {
    let runtime = multi_thread();
    for round in 0..200 {
        let (master, worker) = cluster();
        let draining = worker.draining();
        let served = runtime.spawn(async move {
            let app = Router::new().route("/", get(|| async { "hello" }));
            let listener = worker.into_listener().unwrap();
            axum::serve(listener, app).with_graceful_shutdown(draining).await
        });
        master.hear_ready();
        let mut clients: Vec<_> = (0..8).map(|_| master.dispatch()).collect();
        let (early, late) = clients.split_at_mut(4);
        for client in early {
            client.write_all(REQUEST).unwrap();
        }
        master.drain(LONG);
        if round % 2 == 0 {
            // The drain is known before the late ones speak.
            while master.seat.counts().progress < 9 {
                std::thread::yield_now();
            }
        }
        for client in late {
            client.write_all(REQUEST).unwrap();
        }
        for (number, client) in clients.into_iter().enumerate() {
            assert_answered(client, &format!("round {round}, client {number}"));
        }
        runtime.block_on(served).unwrap().unwrap();
        assert_eq!(master.hear_other(), ToMaster::Drained);
        assert_eq!(master.seat.counts().finished, 8);
    }
}

#[test]
fn axum_sees_no_connection_that_is_silent() {
    use axum::serve::Listener;
    let runtime = multi_thread();
    let (master, worker) = cluster();
    let mut listener = runtime.block_on(async { worker.into_listener().unwrap() });
    let _silent = master.dispatch();
    let mut talker = master.dispatch();
    assert!(master.hear_ready() > 0);
    master.until(|counts| counts.taken == 2);
    talker.write_all(REQUEST).unwrap();
    let (_, address) = runtime.block_on(listener.accept());
    assert_eq!(address, talker.local_addr().unwrap());
}

#[test]
fn connect_info_works_as_with_a_tcp_listener() {
    let runtime = multi_thread();
    let (master, worker) = cluster();
    let draining = worker.draining();
    let served = runtime.spawn(async move {
        let address = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() };
        let app = Router::new().route("/", get(address));
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        let listener = worker.into_listener().unwrap();
        axum::serve(listener, app).with_graceful_shutdown(draining).await
    });
    let mut client = master.dispatch();
    client.write_all(REQUEST).unwrap();
    let address = client.local_addr().unwrap().to_string();
    master.drain(LONG);
    let answer = read_all(client);
    assert!(answer.ends_with(&address), "{answer}");
    runtime.block_on(served).unwrap().unwrap();
}

#[test]
fn a_peer_tells_of_unix_sockets_too() {
    let runtime = multi_thread();
    let (master, worker) = cluster();
    let draining = worker.draining();
    let served = runtime.spawn(async move {
        let app = Router::new().route(
            "/",
            get(|ConnectInfo(peer): ConnectInfo<Peer>| async move { format!("{peer:?}") }),
        );
        let app = app.into_make_service_with_connect_info::<Peer>();
        let listener = worker.into_listener().unwrap();
        axum::serve(listener, app).with_graceful_shutdown(draining).await
    });
    let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    master.pass(
        &ToWorker::Connection { listener: "admin", past: None, entry: None }.encode(),
        server.as_fd(),
    );
    drop(server);
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.write_all(REQUEST).unwrap();
    master.drain(LONG);
    let answer = read_all(client);
    assert!(answer.contains(r#"Unix("")"#) && answer.contains(r#""admin""#), "{answer}");
    runtime.block_on(served).unwrap().unwrap();
}
