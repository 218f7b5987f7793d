//! Node applications as they are written, unmodified, as workers: each asks for port 8080, and gets the
//! socket that the pool has.
//!
//! Each is put through what every program is put through, and then its master is killed: Node's cluster
//! workers end with it, so what they had in hand is lost then, and nothing else, because the listening
//! socket is held by somebody else, as by systemd.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests fail loudly"
)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use support::node::{libraries, release};
use support::sockets::place;
use support::trial::{
    Ask, Clients, applications, http, kill_a_worker, reload_under_load, slow, two_answer,
    upgrade_under_load,
};
use support::{Cluster, PATIENCE, RCLUSTER, get, load_time};

/// A master that was given its listening socket, and can be given it again.
struct Service {
    cluster: Cluster,
    socket: OwnedFd,
}

impl Service {
    /// `extra`: lines for the pool.
    fn start(release_name: &str, file: &str, extra: &str) -> Option<Service> {
        let (node, libraries) = (release(release_name)?, libraries()?);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, socket) = (listener.local_addr().unwrap().port(), OwnedFd::from(listener));
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "[pool.web]\ncommand = [\"{}\", \"{}/node/{file}.js\"]\nlisten = [\"web\"]\nworkers = 2\n\
             kind = \"node\"\nmap = {{ 8080 = \"web\" }}\n\
             environment = {{ NODE_PATH = \"{}\", EXPRESS = \"{file}\", TLS_FOLDER = \"{}\" }}\n{extra}\n",
            node.display(),
            applications(),
            libraries.display(),
            folder.path().display()
        );
        let config =
            config.replace("/express4.js", "/express.js").replace("/express5.js", "/express.js");
        if file == "https" {
            make_certificate(folder.path())?;
        }
        let mut master = Command::new(RCLUSTER);
        master.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
        inherit(&mut master, &socket);
        let cluster = Cluster::launch(folder, port, &config, &mut master);
        cluster.wait_for("generation 1 serves");
        Some(Service { cluster, socket })
    }

    /// The master is killed, and another one started, with the same socket.
    fn kill_and_start_again(&mut self) {
        self.cluster.kill_master();
        let socket = &self.socket;
        self.cluster.start_again_by(|command| inherit(command, socket));
    }
}

fn inherit<'a>(command: &'a mut Command, socket: &OwnedFd) -> &'a mut Command {
    command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "web");
    place(command, vec![socket.try_clone().unwrap()])
}

fn make_certificate(folder: &Path) -> Option<()> {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .arg("-keyout")
        .arg(folder.join("key.pem"))
        .arg("-out")
        .arg(folder.join("cert.pem"))
        .output();
    if !made.is_ok_and(|it| it.status.success()) {
        println!("LEFT OUT: openssl, which makes a certificate, is not installed");
        return None;
    }
    Some(())
}

/// Puts an application through all of it.
fn put_through(name: &str, mut service: Service, ask: Ask) {
    let (cluster, port) = (&service.cluster, service.cluster.port);
    two_answer(port, ask);
    let (failed, _) = reload_under_load(name, cluster, ask, 4);
    assert_eq!(failed, Vec::<String>::new(), "reloads");
    let failed = kill_a_worker(name, cluster, ask, 4);
    // What it was answering at that moment; an application has no more than a few in its hand at this pace.
    assert!(failed.len() <= 30, "{failed:?}");
    assert_eq!(upgrade_under_load(name, cluster, ask), Vec::<String>::new(), "an upgrade");

    let clients = Clients::come(port, ask);
    let under_way = slow(port, ask, 4);
    service.kill_and_start_again();
    two_answer(port, ask);
    let cut = under_way.into_iter().map(|it| it.join().unwrap());
    let cut = cut.filter(Result::is_err).count();
    let (answered, failed) = clients.finish();
    println!(
        "{name}: the master killed: {answered} answered, {} failed; of 4 slow ones {cut} cut",
        failed.len()
    );
    // Both workers', as above.
    assert!(failed.len() <= 60, "{failed:?}");
}

fn http_by(release: &str) {
    if let Some(service) = Service::start(release, "http", "") {
        put_through(&format!("http, {release}"), service, http);
    }
}

#[test]
fn http_by_node_18() {
    http_by("node-18");
}

#[test]
fn http_by_node_20() {
    http_by("node-20");
}

#[test]
fn http_by_node_22() {
    http_by("node-22");
}

#[test]
fn http_by_the_newest_node() {
    http_by("node-newest");
}

#[test]
fn http_with_the_preload() {
    let Some(service) = Service::start("node-22", "http", "drain-preload = true") else { return };
    put_through("http, node-22, preload", service, http);
}

#[test]
fn express() {
    for name in ["express4", "express5"] {
        let Some(service) = Service::start("node-20", name, "") else { return };
        assert_eq!(get(service.cluster.port, "/error").unwrap(), "caught: this handler fails");
        put_through(name, service, http);
    }
}

#[test]
fn connect_with_static_files() {
    let Some(service) = Service::start("node-20", "connect", "") else { return };
    let file = get(service.cluster.port, "/static/connect.js").unwrap();
    assert!(file.contains("serveStatic(__dirname)"), "{file}");
    put_through("connect", service, http);
}

#[test]
fn koa() {
    let Some(service) = Service::start("node-20", "koa", "") else { return };
    put_through("koa", service, http);
}

#[test]
fn fastify() {
    let Some(service) = Service::start("node-20", "fastify", "") else { return };
    put_through("fastify", service, http);
}

/// A WebSocket, to its first message (RFC 6455).
fn web_socket(port: u16, path: &str) -> Result<String, String> {
    let said = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(said)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(said)?;
    let (mut head, mut one) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut one).map_err(said)?;
        head.extend(one);
    }
    // A text, whole and short.
    let mut frame = [0; 2];
    stream.read_exact(&mut frame).map_err(said)?;
    let [0x81, length] = frame else { return Err(format!("answered {head:?} and {frame:?}")) };
    let mut text = vec![0; usize::from(length)];
    stream.read_exact(&mut text).map_err(said)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn web_sockets() {
    let Some(service) = Service::start("node-20", "ws", "") else { return };
    put_through("ws", service, web_socket);
}

/// One request of HTTP/2 with prior knowledge (RFC 9113, RFC 7541): the whole body.
fn http2(port: u16, path: &str) -> Result<String, String> {
    let said = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(said)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    let frame = |kind: u8, flags: u8, stream: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], content].concat()
    };
    // GET, http, the path and the authority, literally.
    let mut fields = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    fields.extend_from_slice(path.as_bytes());
    fields.extend_from_slice(b"\x01\x04test");
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    request.extend(frame(4, 0, 0, &[]));
    request.extend(frame(1, 5, 1, &fields));
    stream.write_all(&request).map_err(said)?;
    let mut body = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).map_err(said)?;
        let [a, b, c, kind, flags, ..] = head;
        let mut content = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        stream.read_exact(&mut content).map_err(said)?;
        match kind {
            0 => body.extend(content),
            3 | 7 => return Err(format!("ended by frame {kind}: {content:?}")),
            4 if flags & 1 == 0 => stream.write_all(&frame(4, 1, 0, &[])).map_err(said)?,
            _ => {}
        }
        if kind < 2 && flags & 1 == 1 {
            return Ok(String::from_utf8_lossy(&body).into_owned());
        }
    }
}

#[test]
fn http_2() {
    let Some(service) = Service::start("node-20", "http2", "") else { return };
    put_through("http2", service, http2);
}

/// Clients that Node itself plays.
struct Players(Child);

impl Players {
    fn come(kind: &str, port: u16) -> Players {
        let script = format!("{}/node/clients.js", applications());
        let child = Command::new(release("node-20").unwrap())
            .args([script.as_str(), kind, &port.to_string()])
            .env("NODE_PATH", libraries().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Players(child.unwrap())
    }

    /// How many were answered, what failed, and by how many workers.
    fn finish(mut self) -> (u64, Vec<String>, usize) {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output().unwrap();
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let failed = result["failed"].as_array().unwrap().iter().map(ToString::to_string);
        let pids = result["pids"].as_array().unwrap().len();
        (result["answered"].as_u64().unwrap(), failed.collect(), pids)
    }
}

#[test]
fn https() {
    let Some(mut service) = Service::start("node-20", "https", "") else { return };
    let port = service.cluster.port;
    let play = |what: &str, act: &mut dyn FnMut(&mut Service), service: &mut Service| {
        let players = Players::come("https", port);
        std::thread::sleep(load_time() / 2);
        act(service);
        std::thread::sleep(load_time() / 2);
        let (answered, failed, workers) = players.finish();
        println!(
            "https: {what}: {answered} answered by {workers} workers, {} failed",
            failed.len()
        );
        assert!(answered > 50 && workers >= 2, "{answered} answered by {workers}");
        failed
    };
    let failed = play("a reload", &mut |it| drop(it.cluster.reload().unwrap()), &mut service);
    assert_eq!(failed, Vec::<String>::new());
    let upgrade = &mut |it: &mut Service| {
        assert!(it.cluster.rcluster(&["upgrade"]).status.success());
    };
    assert_eq!(play("an upgrade", upgrade, &mut service), Vec::<String>::new());
    let kill = &mut |it: &mut Service| support::signal(it.cluster.pids("web")[0], "KILL");
    let failed = play("a worker killed", kill, &mut service);
    assert!(failed.len() <= 60, "{failed:?}");
    let failed = play("the master killed", &mut Service::kill_and_start_again, &mut service);
    assert!(failed.len() <= 120, "{failed:?}");
}

/// Every request of a client comes by a connection of its own, and must get to the worker that knows it.
#[test]
fn socket_io_by_long_polling() {
    let extra = "balance = \"source-hash\"";
    let Some(mut service) = Service::start("node-20", "socket-io", extra) else { return };
    let port = service.cluster.port;
    let talk = |service: &mut Service, act: &mut dyn FnMut(&mut Service)| {
        let players = Players::come("socket-io", port);
        std::thread::sleep(load_time() / 2);
        act(service);
        std::thread::sleep(load_time() / 2);
        players.finish()
    };
    let (answered, failed, workers) = talk(&mut service, &mut |_| {});
    println!("socket.io: {answered} conversations with {workers} workers, {} failed", failed.len());
    assert_eq!(failed, Vec::<String>::new());
    assert!(answered > 0 && workers == 2, "{answered} with {workers}");
    let upgrade = &mut |it: &mut Service| {
        assert!(it.cluster.rcluster(&["upgrade"]).status.success());
    };
    let (answered, failed, _) = talk(&mut service, upgrade);
    println!("socket.io: an upgrade: {answered} conversations, {} failed", failed.len());
    assert_eq!(failed, Vec::<String>::new());
    // A conversation's state is its worker's: those that are under way begin anew.
    let (answered, failed, _) = talk(&mut service, &mut |it| drop(it.cluster.reload().unwrap()));
    println!("socket.io: a reload: {answered} conversations, {} broken off", failed.len());
    assert!(answered > 0 && failed.len() <= 16, "{failed:?}");
}
