//! Node programs that are handed their connections (`kind = "ipc"`): by `process.on('message', …)`, and by
//! the library node-cluster as npm has it.
//!
//! What `tests/programs/install-node` has installed is run; what is missing is left out, and said.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests fail loudly"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::sockets::{deferral, place};
use support::trial::{
    Clients, applications, http, kill_a_worker, reload_under_load, slow, two_answer,
    upgrade_under_load,
};
use support::{Cluster, PATIENCE, RCLUSTER, node, pool, wait_gone};

/// A pool of two such workers.
fn handed(release: &str, script: &str, extra: &str) -> Option<String> {
    let (program, libraries) = (node::release(release)?, node::libraries()?);
    let command = format!("\"{}\", \"{script}\"", program.display());
    let extra = format!(
        "kind = \"ipc\"\nworking-directory = \"{}\"\nenvironment = {{ NODE_PATH = \"{}\", \
         NODE_NO_WARNINGS = \"1\" }}\n{extra}",
        applications(),
        libraries.display()
    );
    Some(pool("web", &command, "\"127.0.0.1:{port}\"", &extra))
}

const SEED: &str = "dialect = \"node-cluster\"";

/// A master whose listening socket outlives it, as systemd's do.
struct Kept {
    cluster: Cluster,
    socket: TcpListener,
}

impl Kept {
    fn serve(config: &str) -> Kept {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(RCLUSTER);
        command.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
        command.env("LISTEN_FDS", "1");
        place(&mut command, vec![socket.try_clone().unwrap().into()]);
        let cluster = Cluster::launch(folder, port, config, &mut command);
        cluster.wait_for("generation 1 serves");
        Kept { cluster, socket }
    }

    fn start_again(&mut self) {
        let socket = &self.socket;
        self.cluster.start_again_by(|command| {
            place(command.env("LISTEN_FDS", "1"), vec![socket.try_clone().unwrap().into()])
        });
    }
}

/// Puts an application through reloads, a killed worker, a replaced and a killed master.
fn put_through(name: &str, config: Option<String>) {
    let Some(config) = config else { return };
    let mut kept = Kept::serve(&config);
    let cluster = &kept.cluster;
    let port = cluster.port;
    two_answer(port, http);
    let (failed, _) = reload_under_load(name, cluster, http, 4);
    assert!(failed.is_empty(), "reloads: {failed:?}");
    let failed = kill_a_worker(name, cluster, http, 4);
    // What it was answering at that moment, which are a few at this pace.
    assert!(failed.len() <= 30, "{failed:?}");
    let failed = upgrade_under_load(name, cluster, http);
    assert!(failed.is_empty(), "an upgrade: {failed:?}");
    let pool = cluster.status().pools.remove(0);
    let sum = pool.finished + pool.in_hand + pool.held + pool.refused + pool.cut;
    assert_eq!(pool.accepted, sum, "the accounts balance: {pool:?}");

    let clients = Clients::come(port, http);
    let under_way = slow(port, http, 4);
    kept.cluster.kill_master();
    let killed = Instant::now();
    kept.start_again();
    kept.cluster.wait_for("everything is as before the master was killed");
    let gap = killed.elapsed();
    two_answer(port, http);
    let results: Vec<_> = under_way.into_iter().map(|it| it.join().unwrap()).collect();
    let cut = results.iter().filter(|it| it.is_err()).count();
    let (answered, failed) = clients.finish();
    println!(
        "{name}: the master killed: {answered} answered, {} failed; of 4 slow ones {cut} cut; served \
         again after {gap:.1?}",
        failed.len()
    );
    // What was on its way, or being answered by workers that ended with it.
    assert!(failed.len() <= 30, "{failed:?}");
}

#[test]
fn plain_on_node_18() {
    put_through("plain on node-18", handed("node-18", "plain.js", ""));
}

#[test]
fn plain_on_node_20() {
    put_through("plain on node-20", handed("node-20", "plain.js", ""));
}

#[test]
fn plain_on_the_newest_node() {
    put_through("plain on node-newest", handed("node-newest", "plain.js", ""));
}

#[test]
fn node_cluster_on_node_18() {
    put_through("node-cluster on node-18", handed("node-18", "seed-http.js", SEED));
}

#[test]
fn node_cluster_on_node_20() {
    put_through("node-cluster on node-20", handed("node-20", "seed-http.js", SEED));
}

#[test]
fn node_cluster_on_the_newest_node() {
    put_through("node-cluster on node-newest", handed("node-newest", "seed-http.js", SEED));
}

/// Waits until the status of the pool is as wanted.
fn await_status(
    cluster: &Cluster,
    what: &str,
    is_it: impl Fn(&rcluster::wire::control::Pool) -> bool,
) {
    let until = Instant::now() + PATIENCE;
    loop {
        let pool = cluster.status().pools.remove(0);
        if is_it(&pool) {
            return;
        }
        assert!(Instant::now() < until, "{what}: {pool:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks over a connection that is there already.
fn ask(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.trim().to_owned()
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reloads, and waits until the old workers have left: they have a minute, which they must not need.
fn reload_at_once(cluster: &Cluster) {
    let old = cluster.pids("web");
    let begin = Instant::now();
    cluster.reload().unwrap();
    for pid in old {
        assert!(wait_gone(pid, Duration::from_secs(45)), "{pid} waits for who has said nothing");
    }
    println!("the old workers were gone after {:?}", begin.elapsed());
}

const PATIENT: &str = "drain-timeout = \"60s\"";

#[test]
fn silent_clients_hold_up_no_drain_and_are_served_when_they_speak() {
    let Some(config) = handed("node-20", "plain.js", PATIENT) else { return };
    let cluster = Cluster::serve(&config);
    let mut silent: Vec<TcpStream> = (0..20).map(|_| connect(cluster.port)).collect();
    // The kernel keeps them for a second.
    await_status(&cluster, "they are accepted", |pool| pool.silent == 20 && pool.held == 20);
    reload_at_once(&cluster);
    let new: Vec<String> = cluster.pids("web").iter().map(u32::to_string).collect();
    assert!(new.contains(&ask(&mut silent.remove(0))), "{new:?}");
    // Over an upgrade, too; and those who go are forgotten.
    assert!(cluster.rcluster(&["upgrade"]).status.success());
    await_status(&cluster, "they are there", |pool| pool.silent == 19);
    assert!(new.contains(&ask(&mut silent.remove(0))), "{new:?}");
    silent.truncate(9);
    await_status(&cluster, "half have gone", |pool| pool.silent == 9);
    reload_at_once(&cluster);
    let pool = cluster.status().pools.remove(0);
    let sum = pool.finished + pool.in_hand + pool.held + pool.refused + pool.cut;
    assert_eq!(pool.accepted, sum, "the accounts balance: {pool:?}");
    assert_eq!((pool.accepted, pool.cut, pool.refused), (20, 0, 0), "{pool:?}");
    // The end of the service is the end for them.
    cluster.signal("TERM");
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed, and not reset");
    }
}

#[test]
fn silent_clients_of_a_unix_socket_wait_in_the_master() {
    let Some(config) = handed("node-20", "plain.js", PATIENT) else { return };
    let cluster = Cluster::serve(&config.replace("127.0.0.1:{port}", "{folder}/web"));
    let mut silent = UnixStream::connect(cluster.path("web")).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    await_status(&cluster, "it is accepted", |pool| pool.silent == 1);
    reload_at_once(&cluster);
    let answer = ask(&mut silent);
    assert!(cluster.pids("web").iter().any(|pid| pid.to_string() == answer), "{answer}");
    await_status(&cluster, "it is over", |pool| pool.finished == 1 && pool.accepted == 1);
}

#[test]
fn where_the_server_speaks_first_nobody_waits_for_a_byte() {
    let extra = format!("{SEED}\nfirst-byte = false\n{PATIENT}");
    let Some(config) = handed("node-20", "seed-echo.js", &extra) else { return };
    let cluster = Cluster::serve(&config);
    let mut session = BufReader::new(connect(cluster.port));
    let mut line = String::new();
    session.read_line(&mut line).unwrap();
    let pid: u32 = line.trim().strip_prefix("hello from ").unwrap().parse().unwrap();
    // A session goes on over a reload, and is what the old worker waits for.
    cluster.reload().unwrap();
    for word in ["one", "two"] {
        session.get_mut().write_all(format!("{word}\n").as_bytes()).unwrap();
        line.clear();
        session.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), format!("echo {word}"));
    }
    assert!(support::is_alive(pid), "its session is not over");
    session.get_mut().write_all(b"bye\n").unwrap();
    line.clear();
    session.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "good bye");
    drop(session);
    assert!(wait_gone(pid, Duration::from_secs(45)), "it has nothing left to wait for");
    cluster.wait_for("reload of generation 2: 0 handed back, 0 re-dispatched, 0 cut");
}

#[test]
fn a_reload_that_turns_it_off_hands_the_silent_over() {
    let Some(config) = handed("node-20", "seed-echo.js", SEED) else { return };
    let Kept { cluster, socket } = Kept::serve(&config);
    assert_eq!(deferral(&socket), 1);
    let mut session = BufReader::new(connect(cluster.port));
    await_status(&cluster, "it waits", |pool| pool.silent == 1);
    cluster.configure(&format!("{config}first-byte = false\n"));
    cluster.reload().unwrap();
    let mut line = String::new();
    session.read_line(&mut line).unwrap();
    assert!(line.starts_with("hello from "), "{line}");
    assert_eq!(deferral(&socket), 0, "who comes from now on need not wait for the kernel either");
}

#[test]
fn the_socket_is_left_as_it_was_found() {
    let Some(config) = handed("node-20", "plain.js", "") else { return };
    let Kept { mut cluster, socket } = Kept::serve(&config);
    assert_eq!(deferral(&socket), 1);
    // Over an upgrade it is known who has set it.
    assert!(cluster.rcluster(&["upgrade"]).status.success());
    cluster.signal("TERM");
    assert!(cluster.wait_end().success());
    assert_eq!(deferral(&socket), 0);
}

#[test]
fn the_application_is_told_the_port() {
    let Some(config) = handed("node-newest", "seed-multi-port.js", SEED) else { return };
    let second = support::free_port();
    let both = format!("\"127.0.0.1:{{port}}\", \"127.0.0.1:{second}\"");
    let cluster = Cluster::serve(&config.replace("\"127.0.0.1:{port}\"", &both));
    for port in [cluster.port, second] {
        assert_eq!(http(port, "/").unwrap(), format!("number {port}"));
    }
}

#[test]
fn no_worker_gets_more_than_it_may_have() {
    let extra = "max-connections = 2\nsettle = \"100ms\"";
    let Some(config) = handed("node-20", "plain.js", extra) else { return };
    let cluster = Cluster::serve(&config);
    // Node counts them, and says so: four are there, a fifth waits until one has gone.
    let asked = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    let mut clients: Vec<TcpStream> = (0..4).map(|_| connect(cluster.port)).collect();
    for client in &mut clients {
        client.write_all(asked.as_bytes()).unwrap();
        assert!(client.read(&mut [0; 1024]).unwrap() > 0);
    }
    let in_hand = |count| move |pool: &rcluster::wire::control::Pool| pool.in_hand == count;
    await_status(&cluster, "four are in hand", in_hand(4));
    let mut fifth = connect(cluster.port);
    fifth.write_all(asked.as_bytes()).unwrap();
    fifth.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = fifth.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "nobody may have it");
    drop(clients.remove(0));
    fifth.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(fifth.read(&mut [0; 1024]).unwrap() > 0);
    drop(fifth);
    drop(clients);
    await_status(&cluster, "all have gone", in_hand(0));
}

#[test]
fn a_program_that_does_not_count_is_looked_at() {
    let Some(python) = ["/usr/bin/python3"].iter().find(|it| Path::new(it).exists()) else {
        return println!("LEFT OUT: there is no /usr/bin/python3");
    };
    let command = format!("\"{python}\", \"{}/no-count.py\"", applications());
    let config =
        pool("web", &command, "\"127.0.0.1:{port}\"", "kind = \"ipc\"\nmax-connections = 4");
    let cluster = Cluster::serve(&config.replace("workers = 2", "workers = 1"));
    let mut clients: Vec<TcpStream> = (0..4).map(|_| connect(cluster.port)).collect();
    for client in &mut clients {
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(client.read(&mut [0; 1024]).unwrap() > 0);
    }
    let in_hand = |count| move |pool: &rcluster::wire::control::Pool| pool.in_hand == count;
    await_status(&cluster, "four are in hand", in_hand(4));
    // Whoever comes next needs the place of one who has gone.
    for _ in 0..8 {
        drop(clients.remove(0));
        let mut client = connect(cluster.port);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(client.read(&mut [0; 1024]).unwrap() > 0);
        clients.push(client);
    }
    drop(clients);
    await_status(&cluster, "all have gone", in_hand(0));
    reload_at_once(&cluster);
}

#[test]
fn a_plain_worker_is_told_by_the_end_of_its_channel_and_ends_by_itself() {
    let Some(config) = handed("node-20", "told.js", PATIENT) else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("told.js");
    let text = "const server = require('http').createServer((request, response) => {\n\
                  process.on('disconnect', () => setTimeout(() => response.end('told'), 500));\n\
                });\n\
                process.on('message', (message, socket) => server.emit('connection', socket));\n\
                process.on('SIGTERM', () => console.log('SIGTERM came'));\n\
                process.send('ready');\n";
    std::fs::write(&script, text).unwrap();
    let cluster = Cluster::serve(&config.replace("told.js", &script.display().to_string()));
    let port = cluster.port;
    let asked = std::thread::spawn(move || http(port, "/"));
    await_status(&cluster, "it is asked", |pool| pool.in_hand == 1);
    reload_at_once(&cluster);
    assert_eq!(asked.join().unwrap().unwrap(), "told");
    assert_eq!(cluster.count("SIGTERM came"), 0, "it has ended by itself");
    cluster.wait_for("reload of generation 2: 0 handed back, 0 re-dispatched, 0 cut");
}

#[test]
fn one_that_closes_its_channel_finishes_what_it_has_and_is_replaced() {
    let Some(config) = handed("node-20", "closes.js", PATIENT) else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("closes.js");
    let text = "const server = require('http').createServer((request, response) => {\n\
                  if (request.url === '/close') process.disconnect();\n\
                  setTimeout(() => response.end(String(process.pid)), 2500);\n\
                });\n\
                process.on('message', (message, socket) => server.emit('connection', socket));\n\
                process.send('ready');\n";
    std::fs::write(&script, text).unwrap();
    let cluster = Cluster::serve(&config.replace("closes.js", &script.display().to_string()));
    let pid: u32 = http(cluster.port, "/close").unwrap().parse().unwrap();
    cluster.wait_for("drains: it says that it stops");
    assert!(wait_gone(pid, PATIENCE), "it has nothing left to do");
    cluster.wait_for_nth("is ready", 3);
    assert_eq!(cluster.status().pools.remove(0).cut, 0);
}

/// The same as above, of a worker of Node's own cluster, which would wait for them for ever.
#[test]
fn silent_clients_hold_up_no_cluster_worker() {
    let Some(config) = handed("node-20", "node/http.js", PATIENT) else { return };
    let config = config.replace("\"ipc\"", "\"node\"\nmap = { 8080 = \"127.0.0.1:{port}\" }");
    let cluster = Cluster::serve(&config);
    let mut silent = connect(cluster.port);
    await_status(&cluster, "it is accepted", |pool| pool.silent == 1);
    reload_at_once(&cluster);
    let answer = ask(&mut silent);
    assert!(cluster.pids("web").iter().any(|pid| pid.to_string() == answer), "{answer}");
}

#[test]
fn a_worker_that_wishes_to_be_reloaded_is_replaced() {
    let Some(config) = handed("node-20", "seed-http.js", SEED) else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("wishes.js");
    let text = "const worker = require('node-cluster').Worker();\n\
                const server = require('http').createServer((request, response) => {\n\
                  if (request.url === '/reload') process.send({ type: 2, data: { name: 'web' } });\n\
                  response.end(String(process.pid));\n\
                });\n\
                worker.ready((socket) => server.emit('connection', socket));\n";
    std::fs::write(&script, text).unwrap();
    let config = config.replace("seed-http.js", &script.display().to_string());
    let cluster = Cluster::serve(&config);
    let pid = http(cluster.port, "/reload").unwrap().parse().unwrap();
    assert!(wait_gone(pid, PATIENCE), "it is replaced");
    two_answer(cluster.port, http);
    assert_eq!(cluster.pids("web").len(), 2);
    assert!(!cluster.pids("web").contains(&pid));
}
