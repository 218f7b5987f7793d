//! How a service ends: everything in hand is answered, and nobody is left behind.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use support::load::Load;
use support::{Cluster, PATIENCE, get, signal, wait_gone, web};

#[test]
fn sigterm_answers_what_is_in_hand_and_exits_0() {
    let mut cluster = Cluster::serve(&web(""));
    let load = Load::paced(cluster.port, 300, "/sleep/300");
    while load.answered.load(std::sync::atomic::Ordering::Relaxed) < 100 {
        std::thread::yield_now();
    }
    cluster.signal("TERM");
    let status = cluster.wait_end();
    let tally = load.finish();
    assert_eq!(status.code(), Some(0), "{:?}", cluster.log());
    // The sockets are ours alone, so they close: new clients are refused, none is cut.
    let cut: Vec<&String> =
        tally.failed.iter().filter(|why| !why.starts_with("connect: Connection refused")).collect();
    assert!(cut.is_empty(), "{cut:?}");
    assert_eq!(cluster.count("connections cut"), 0);
}

#[test]
fn ctrl_c_is_the_same() {
    let mut cluster = Cluster::serve(&web(""));
    cluster.signal("INT");
    assert_eq!(cluster.wait_end().code(), Some(0));
}

#[test]
fn a_stuck_request_cannot_hold_up_the_end() {
    let mut cluster = Cluster::serve(&web("drain-timeout = \"2s\""));
    let mut stuck = std::net::TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    stuck.write_all(b"GET /sleep/60000 HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    while cluster.status().pools[0].in_hand == 0 {}
    let begin = Instant::now();
    cluster.signal("TERM");
    // The request would take a minute.
    let status = cluster.wait_end_within(Duration::from_secs(30));
    println!("a stuck handler, drain-timeout 2 s: ended after {:?}", begin.elapsed());
    assert_eq!(status.code(), Some(0), "{:?}", cluster.log());
    let mut nothing = Vec::new();
    assert_eq!(stuck.read_to_end(&mut nothing).unwrap_or(0), 0);
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let mut cluster = Cluster::serve(&web(""));
    let mut stuck = std::net::TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    stuck.write_all(b"GET /sleep/60000 HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    while cluster.status().pools[0].in_hand == 0 {}
    let workers = cluster.pids("web");
    cluster.signal("TERM");
    cluster.wait_for("stopping");
    cluster.signal("TERM");
    // A drain may take half a minute.
    let status = cluster.wait_end_within(Duration::from_secs(20));
    assert_eq!(status.code(), Some(1));
    assert!(workers.into_iter().all(|pid| wait_gone(pid, PATIENCE)));
}

#[test]
fn workers_of_a_killed_master_finish_and_go() {
    let config = format!("[master]\norphan-timeout = \"100ms\"\n{}", web(""));
    let mut cluster = Cluster::serve(&config);
    let workers = cluster.pids("web");
    let port = cluster.port;
    let slow = std::thread::spawn(move || get(port, "/sleep/700"));
    while cluster.status().pools[0].accepted == 0 {}
    signal(cluster.pid(), "KILL");
    cluster.wait_end();
    let answered = slow.join().unwrap();
    assert!(answered.is_ok(), "{answered:?}");
    for pid in workers {
        assert!(wait_gone(pid, PATIENCE), "an orphan is left");
    }
}

#[test]
fn clients_who_have_connected_are_served_before_our_own_socket_closes() {
    let mut cluster = Cluster::serve(&web("max-connections = 64"));
    // Connected, in the kernel's queue or in a channel, when the stop comes.
    let mut clients: Vec<std::net::TcpStream> = (0..50)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", cluster.port)).unwrap())
        .collect();
    cluster.signal("TERM");
    for client in &mut clients {
        client.write_all(b"GET /pid HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").unwrap();
    }
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    assert_eq!(cluster.wait_end().code(), Some(0));
}

#[test]
fn a_stop_during_a_reload_tells_the_caller() {
    let mut cluster = Cluster::serve(&web(""));
    cluster.configure(&support::pool(
        "web",
        "\"/bin/sleep\", \"1000\"",
        "\"127.0.0.1:{port}\"",
        "",
    ));
    let refusal = std::thread::scope(|scope| {
        let caller = scope.spawn(|| cluster.reload());
        cluster.wait_for("rollout of generation 2 begun");
        cluster.signal("TERM");
        caller.join().unwrap().unwrap_err()
    });
    assert_eq!(refusal, "the service is stopping");
    assert_eq!(cluster.wait_end().code(), Some(0));
}

#[test]
fn a_log_that_nobody_reads_cannot_hold_up_the_end() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while nix::unistd::write(&writer, &[b'x'; 4096]).is_ok() {}
    while nix::unistd::write(&writer, b"x").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let mut child = std::process::Command::new(support::RCLUSTER)
        .args(["run", "--listen", &format!("127.0.0.1:{}", support::free_port()), "--control"])
        .arg(&control)
        .args(["--workers", "1", "--", support::RCLUSTER, "demo-worker", "http"])
        .stderr(writer)
        .spawn()
        .unwrap();
    while std::os::unix::net::UnixStream::connect(&control).is_err() {}
    signal(child.id(), "TERM");
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it never ended");
        }
        std::thread::yield_now();
    };
    assert_eq!(status.code(), Some(0));
}
