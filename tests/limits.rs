//! A master that runs out of something waits, and its clients wait with it: none is lost.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use support::{Cluster, RCLUSTER, free_port, signal, web};

/// Starts the master under a limit of open descriptors, as another user where that is possible:
/// root is exempt from the limit of descriptors in flight.
fn start_limited(config: &str, descriptors: u32, user: Option<u32>) -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={descriptors}:{descriptors}"));
    if let Some(user) = user {
        std::os::unix::fs::chown(folder.path(), Some(user), Some(user)).unwrap();
        command.args(["setpriv", "--reuid", &user.to_string(), "--regid", &user.to_string()]);
        command.arg("--clear-groups");
    }
    command.arg(RCLUSTER).arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
    let cluster = Cluster::launch(folder, free_port(), config, &mut command);
    cluster.wait_for("generation 1 serves");
    cluster
}

fn connect_all(port: u16, count: usize) -> Vec<TcpStream> {
    (0..count)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET /pid HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").unwrap();
            stream
        })
        .collect()
}

fn all_are_answered(clients: Vec<TcpStream>) {
    for mut client in clients {
        client.set_read_timeout(Some(support::PATIENCE)).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
}

#[test]
fn too_many_descriptors_in_flight_only_delay() {
    if !nix::unistd::geteuid().is_root() {
        println!("LEFT OUT: only root can start a master as a user for whom the limit holds");
        return;
    }
    // The queues are read back after a second, so a slow machine may miss the moment.
    let met = (0..5).any(|_| meet_the_limit_in_flight());
    assert!(met, "the limit was never met");
}

/// Whether the limit was met; all clients are answered in any case.
fn meet_the_limit_in_flight() -> bool {
    // A worker announces half its limit: four could have 120 connections in hand; 60 may be in
    // flight.
    let config = web("watchdog = \"20s\"").replace("workers = 2", "workers = 4");
    let cluster = start_limited(&config, 60, Some(54321));
    let workers = cluster.pids("web");
    for &pid in &workers {
        signal(pid, "STOP");
    }
    let clients = connect_all(cluster.port, 100);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(2);
    let mut met = false;
    // The limit is met when one connection waits in the master while the channels are full.
    while !met && std::time::Instant::now() < end {
        let pool = &cluster.status().pools[0];
        met = pool.held >= 1 && pool.in_hand >= 55;
    }
    for &pid in &workers {
        signal(pid, "CONT");
    }
    all_are_answered(clients);
    assert_eq!(cluster.count("lost:"), 0, "{:?}", cluster.log());
    met
}

#[test]
fn a_full_descriptor_table_of_the_master_only_delays() {
    let cluster = start_limited(&web("watchdog = \"20s\""), 64, None);
    // Control clients that stay take all the descriptors that are left.
    let control: Vec<_> = (0..64).map(|_| cluster.connect_control()).collect();
    cluster.wait_for("control clients must wait");
    let clients = connect_all(cluster.port, 10);
    cluster.wait_for("no connection can be accepted for the moment");
    drop(control);
    all_are_answered(clients);
}
