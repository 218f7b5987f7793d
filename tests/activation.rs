//! Sockets that came with the process: by systemd's own activator, and by hand.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;

use support::sockets::place;
use support::{Cluster, RCLUSTER, free_port, get, pool, web};

/// Whether the program is there; a test without it says so.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("LEFT OUT: {program} is not installed");
    }
    found
}

const INHERITED: &str = "\"{rcluster}\", \"demo-worker\", \"http\"";

/// Starts `rcluster run` through `systemd-socket-activate` and knocks, which starts it.
fn activate(options: &[&str], config: &str) -> (Cluster, Option<TcpStream>) {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = Command::new("systemd-socket-activate");
    command.arg("-l").arg(format!("127.0.0.1:{port}")).args(options);
    command.arg(format!("--setenv=RCLUSTER_CONTROL={}/control", folder.path().display()));
    command.arg(RCLUSTER).arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
    let cluster = Cluster::launch(folder, port, config, &mut command);
    cluster.wait_for("Listening on");
    let knock = TcpStream::connect(("127.0.0.1", port)).ok();
    (cluster, knock)
}

#[test]
fn an_inherited_socket_is_served_by_its_name() {
    if !has("systemd-socket-activate") {
        return;
    }
    let config = pool("web", INHERITED, "\"web\"", "");
    let (mut cluster, knock) = activate(&["--fdname=web"], &config);
    cluster.wait_for("generation 1 serves");
    // A connection that has said nothing yet would hold up the end.
    drop(knock);
    assert!(get(cluster.port, "/pid").is_ok());
    assert_eq!(cluster.reload().unwrap(), "reloaded: generation 2 serves");
    assert!(get(cluster.port, "/pid").is_ok());
    cluster.signal("TERM");
    assert_eq!(cluster.wait_end().code(), Some(0));
}

#[test]
fn an_inherited_socket_is_served_by_its_address() {
    if !has("systemd-socket-activate") {
        return;
    }
    let (cluster, _knock) = activate(&["--fdname=whatever"], &web(""));
    cluster.wait_for("generation 1 serves");
    assert!(get(cluster.port, "/pid").is_ok());
}

#[test]
fn a_name_that_no_socket_has_is_refused() {
    if !has("systemd-socket-activate") {
        return;
    }
    let config = pool("web", INHERITED, "\"api\"", "");
    let (mut cluster, _knock) = activate(&["--fdname=web"], &config);
    assert_eq!(cluster.wait_end().code(), Some(1));
    let line = cluster.wait_for("pool web listens on `api`");
    assert!(line.contains("inherited are web (127.0.0.1:"), "{line}");
}

#[test]
fn a_clients_connection_is_refused_as_a_listener() {
    if !has("systemd-socket-activate") {
        return;
    }
    let config = pool("web", INHERITED, "\"web\"", "");
    // The activator stays, as the parent of what it starts for each connection.
    let (cluster, _knock) = activate(&["--accept"], &config);
    let line = cluster.wait_for("is one client's connection");
    assert!(line.contains("set Accept=no"), "{line}");
}

/// Starts the master with `count` of these descriptors at 3 and up, and this environment.
fn inherit(config: &str, sockets: Vec<OwnedFd>, environment: &[(&str, &str)]) -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = Command::new(RCLUSTER);
    command.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
    command.envs(environment.iter().copied());
    place(&mut command, sockets);
    Cluster::launch(folder, port, config, &mut command)
}

fn listener() -> (OwnedFd, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener.into(), port)
}

#[test]
fn a_foreign_listen_pid_is_refused() {
    let (socket, _) = listener();
    let environment = [("LISTEN_PID", "1"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "web")];
    let mut cluster = inherit(&web(""), vec![socket], &environment);
    assert_eq!(cluster.wait_end().code(), Some(1));
    cluster.wait_for("LISTEN_PID=1 names another process");
}

#[test]
fn missing_names_are_refused_where_a_name_is_needed() {
    let (socket, _) = listener();
    let config = pool("web", INHERITED, "\"web\"", "");
    let mut cluster = inherit(&config, vec![socket], &[("LISTEN_FDS", "1")]);
    assert_eq!(cluster.wait_end().code(), Some(1));
    let line = cluster.wait_for("the inherited sockets came without names");
    assert!(line.contains("set FileDescriptorName=web"), "{line}");
}

#[test]
fn fewer_names_than_sockets_are_refused() {
    let sockets = vec![listener().0, listener().0];
    let environment = [("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "web")];
    let mut cluster = inherit(&web(""), sockets, &environment);
    assert_eq!(cluster.wait_end().code(), Some(1));
    cluster.wait_for("LISTEN_FDNAMES has 1 names (web) for 2 inherited sockets");
}

#[test]
fn what_is_no_stream_socket_is_refused() {
    let (read, _write) = std::io::pipe().unwrap();
    let environment = [("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "web")];
    let config = pool("web", INHERITED, "\"web\"", "");
    let mut cluster = inherit(&config, vec![read.into()], &environment);
    assert_eq!(cluster.wait_end().code(), Some(1));
    cluster.wait_for("inherited socket web is not a stream socket");
    let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut cluster = inherit(&config, vec![datagram.into()], &environment);
    assert_eq!(cluster.wait_end().code(), Some(1));
    cluster.wait_for("inherited socket web is not a stream socket");
}

#[test]
fn several_sockets_of_one_name_are_all_served_even_if_they_came_blocking() {
    let ((one, first), (two, second)) = (listener(), listener());
    let environment = [("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "web:web")];
    let config = pool("web", INHERITED, "\"web\"", "");
    let cluster = inherit(&config, vec![one, two], &environment);
    cluster.wait_for("generation 1 serves");
    for _ in 0..3 {
        assert!(get(first, "/pid").is_ok());
        assert!(get(second, "/pid").is_ok());
    }
}

#[test]
fn a_socket_that_nobody_uses_is_a_warning() {
    let (socket, port) = listener();
    let environment = [("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "spare")];
    let cluster = inherit(&web(""), vec![socket], &environment);
    let line = cluster.wait_for("no pool uses the inherited socket spare");
    assert!(line.contains(&port.to_string()), "{line}");
    cluster.wait_for("generation 1 serves");
    assert_eq!(cluster.status().warnings.len(), 1);
}
