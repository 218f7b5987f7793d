//! What Node's own cluster protocol promises to an unmodified application, by a real Node.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail loudly")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use support::node::release;
use support::{Cluster, PATIENCE, RCLUSTER, free_port, get, signal, wait_gone};

/// An application that answers who it is; /slow takes a second.
const WHO: &str = "
const http = require('http');
const answer = (request, response) => {
  const say = () => response.end(String(process.pid));
  if (request.url === '/slow') setTimeout(say, 1000); else say();
};
";

/// Starts a master with a pool `web` of two workers that run this application.
fn start(source: &str, listen: &str, extra: &str) -> Option<Cluster> {
    let node = release("node-20")?;
    Some(start_on(&node, source, listen, extra))
}

fn start_on(node: &std::path::Path, source: &str, listen: &str, extra: &str) -> Cluster {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let source = source.replace("{port}", &port.to_string());
    let source = source.replace("{folder}", folder.path().to_str().unwrap());
    std::fs::write(folder.path().join("app.js"), source).unwrap();
    let config = format!(
        "[pool.web]\ncommand = [\"{}\", \"{{folder}}/app.js\"]\nlisten = [{listen}]\nworkers = 2\n\
         kind = \"node\"\nfirst-byte = false\n{extra}\n",
        node.display()
    );
    let mut master = Command::new(RCLUSTER);
    master.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
    Cluster::launch(folder, port, &config, &mut master)
}

const PORT: &str = "\"127.0.0.1:{port}\"";

/// Asks until this many different workers have answered.
fn all_answer(port: u16, count: usize) {
    let end = Instant::now() + PATIENCE;
    let mut pids = std::collections::BTreeSet::new();
    while pids.len() < count {
        assert!(Instant::now() < end, "only {pids:?} answer");
        pids.insert(get(port, "/").unwrap());
    }
}

#[test]
fn an_application_gets_another_port_than_it_asks_for_and_never_knows() {
    let source = format!(
        "{WHO} const s = http.createServer(answer).listen(3000, () => console.log('told', s.address().port));"
    );
    let Some(cluster) = start(&source, PORT, "map = { 3000 = \"127.0.0.1:{port}\" }") else {
        return;
    };
    cluster.wait_for("generation 1 serves");
    cluster.wait_for("told 3000");
    all_answer(cluster.port, 2);
}

#[test]
fn any_port_and_several_servers_and_a_path_are_found() {
    let source = format!(
        "{WHO}
        const one = http.createServer(answer).listen(0, () => console.log('any', one.address().port));
        http.createServer(answer).listen('{{folder}}/web.sock');
        setTimeout(() => http.createServer(answer).listen({{port}}), 200)"
    );
    let other = free_port();
    let listen = format!("\"127.0.0.1:{other}\", {PORT}, \"{{folder}}/web.sock\"");
    let Some(cluster) = start(&source, &listen, "") else { return };
    cluster.wait_for("generation 1 serves");
    cluster.wait_for(&format!("any {other}"));
    for port in [cluster.port, other] {
        all_answer(port, 2);
    }
    let mut client = UnixStream::connect(cluster.path("web.sock")).unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(cluster.count("does not listen on"), 0, "each was ready when it had all three");
}

#[test]
fn a_worker_gets_clients_only_where_it_listens() {
    let other = free_port();
    let source = format!(
        "{WHO} http.createServer(answer).listen({{port}});
        if (process.env.RCLUSTER_SLOT === '2') http.createServer(answer).listen({other});"
    );
    let listen = format!("{PORT}, \"127.0.0.1:{other}\"");
    let Some(cluster) = start(&source, &listen, "") else { return };
    cluster.wait_for("generation 1 serves");
    cluster.wait_for(&format!("does not listen on 127.0.0.1:{other}: clients who come there wait"));
    all_answer(cluster.port, 2);
    let second = cluster.pids("web")[1].to_string();
    for _ in 0..10 {
        assert_eq!(get(other, "/").unwrap(), second);
    }
}

#[test]
fn what_the_pool_does_not_have_is_refused_with_what_would_be_right() {
    let source = format!(
        "{WHO} const s = http.createServer(answer);
        s.on('error', error => {{ console.log('refused', error.code); http.createServer(answer).listen({{port}}); }});
        s.listen(1234);"
    );
    let Some(cluster) = start(&source, PORT, "") else { return };
    cluster.wait_for("generation 1 serves");
    cluster.wait_for("refused EACCES");
    let said = format!(
        "web asked for port 1234, which its pool does not listen on: write map = {{ 1234 = \
         \"127.0.0.1:{}\" }}",
        cluster.port
    );
    cluster.wait_for(&said);
    assert_eq!(cluster.count("asked for port 1234"), 1, "both workers ask, and it is said once");
    let status = cluster.status();
    assert!(status.warnings.iter().any(|it| it.contains("asked for port 1234")), "{status:?}");
}

#[test]
fn a_second_server_on_the_same_port_fails_as_it_would_alone() {
    let source = format!(
        "{WHO} http.createServer(answer).listen({{port}}, () => {{
          const s = http.createServer(answer);
          s.on('error', error => console.log('second', error.code));
          s.listen({{port}});
        }});"
    );
    let Some(cluster) = start(&source, PORT, "") else { return };
    cluster.wait_for("second EADDRINUSE");
    cluster.wait_for("generation 1 serves");
    all_answer(cluster.port, 2);
}

#[test]
fn an_application_may_close_its_server_and_open_it_again() {
    let source = format!(
        "{WHO} let s = http.createServer(answer).listen({{port}}, () => s.close(() => {{
          s = http.createServer(answer).listen({{port}}, () => console.log('again'));
        }}));"
    );
    let Some(cluster) = start(&source, PORT, "") else { return };
    cluster.wait_for_nth("again", 2);
    cluster.wait_for("generation 1 serves");
    all_answer(cluster.port, 2);
    assert_eq!(cluster.count("drains"), 0);
}

#[test]
fn who_binds_by_itself_is_told_why_it_is_never_ready() {
    let source = format!("{WHO} http.createServer(answer).listen({{ port: 0, exclusive: true }});");
    // Node takes its time to start on a busy machine.
    let extra = "start-timeout = \"8s\"\nrestart-limit = 1";
    let Some(mut cluster) = start(&source, PORT, extra) else { return };
    cluster.wait_for("is online, but has asked for nothing to listen on");
    assert!(!cluster.wait_end().success());

    let Some(mut cluster) = start("", PORT, extra) else { return };
    let config = "[pool.web]\ncommand = [\"sleep\", \"60\"]\nlisten = [\"127.0.0.1:{port}\"]\n\
                  kind = \"node\"\nstart-timeout = \"1s\"\nrestart-limit = 1\n";
    cluster.wait_end();
    cluster.configure(config);
    cluster.start_again();
    cluster.wait_for("has not said that it is online: its command starts no Node program");
}

#[test]
fn npm_is_refused_with_the_command_to_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    std::fs::write(folder.path().join("package.json"), r#"{"scripts":{"start":"node lib/a.js"}}"#)
        .unwrap();
    let config = folder.path().join("rcluster.toml");
    let text = format!(
        "[pool.web]\ncommand = [\"npm\", \"start\"]\nworking-directory = \"{path}\"\n\
         listen = [\"127.0.0.1:1\"]\nkind = \"node\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let checked = Command::new(RCLUSTER).arg("check").arg(&config).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr) + String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(1));
    assert!(said.contains("write command = [\"node\", \"lib/a.js\"]"), "{said}");
}

/// A client who has said something and waits for the answer.
fn ask(cluster: &Cluster) -> TcpStream {
    let mut client = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    client.write_all(b"who").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Each worker has room for one connection, by its own word; a third client waits, unharmed, until one
/// is closed. Meanwhile nobody is asked all the time.
#[test]
fn whom_every_worker_declines_waits_until_one_has_room() {
    let source = "
        const s = require('net').createServer(c => c.on('data', () => c.write(process.pid + '\\n')));
        s.maxConnections = 1; s.listen({port});";
    let Some(cluster) = start(source, PORT, "") else { return };
    cluster.wait_for("generation 1 serves");
    let connect = || ask(&cluster);
    let answer = |client: &mut TcpStream| client.read(&mut [0; 64]).unwrap();
    let mut two = [connect(), connect()];
    assert!(two.iter_mut().all(|client| answer(client) > 0));
    let (begun, before) = (Instant::now(), support::cpu_time(cluster.pid()));
    let mut third = connect();
    third.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    assert!(third.read(&mut [0; 64]).is_err(), "nobody has room");
    let spent = support::cpu_time(cluster.pid()) - before;
    assert!(spent < begun.elapsed() / 4, "{spent:?} were spent on asking");
    drop(two);
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(answer(&mut third) > 0);
}

/// Who is declined has not ended, however often: the two that are served stay counted.
#[test]
fn who_is_declined_is_not_counted_as_ended() {
    let source = "
        const s = require('net').createServer(c => c.on('data', () => c.write('x')));
        s.maxConnections = 1; s.listen({port});";
    let Some(cluster) = start(source, PORT, "drain-preload = true") else { return };
    cluster.wait_for("generation 1 serves");
    let connect = || ask(&cluster);
    let mut two = [connect(), connect()];
    two.iter_mut().for_each(|client| client.read_exact(&mut [0]).unwrap());
    let mut third = connect();
    third.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(third.read(&mut [0]).is_err(), "nobody has room");
    let pool = cluster.status().pools.remove(0);
    assert_eq!((pool.finished, pool.accepted - pool.held), (0, 2), "{pool:?}");
    drop((two, third));
    let end = Instant::now() + PATIENCE;
    while cluster.status().pools[0].in_hand > 0 {
        assert!(Instant::now() < end, "{:?}", cluster.status().pools[0]);
    }
}

#[test]
fn a_preload_that_does_not_reach_its_worker_is_said() {
    let source = format!("{WHO} http.createServer(answer).listen({{port}});");
    let Some(node) = release("node-20") else { return };
    let cluster = start_on(&node, &source, PORT, "drain-preload = true");
    cluster.wait_for("generation 1 serves");
    assert!(!cluster.log().iter().any(|line| line.contains("has not loaded")));
    // What starts it forgets the options.
    let file = cluster.folder.path().join("rcluster.toml");
    let config = std::fs::read_to_string(file).unwrap();
    cluster.configure(&config.replacen(
        "command = [",
        "command = [\"/usr/bin/env\", \"-u\", \"NODE_OPTIONS\", ",
        1,
    ));
    cluster.reload().unwrap();
    cluster.wait_for("has not loaded the file of drain-preload");
    all_answer(cluster.port, 2);
}

/// What an application says in one go is heard to its end, however much it is.
#[test]
fn a_burst_of_messages_hides_nothing() {
    let source = format!(
        "{WHO} const cluster = require('cluster');
        http.createServer(answer).listen({{port}});
        const send = process.send;
        process.prependListener('internalMessage', message => {{
          if (message.cmd === 'NODE_CLUSTER' && message.act === 'newconn')
            for (let i = 0; i < 200; i++) send.call(process, {{ i }});
        }});"
    );
    let Some(cluster) = start(&source, PORT, "") else { return };
    cluster.wait_for("generation 1 serves");
    // Each answer to a hand-over comes behind 200 words of the application, in one piece with them.
    for _ in 0..50 {
        get(cluster.port, "/").unwrap();
    }
    // An answer may be with its client before the word of it is read.
    wait_in_hand(&cluster, 0);
}

#[test]
fn whom_every_worker_declines_for_long_is_answered() {
    let source = "
        const s = require('http').createServer((q, r) => q.url === '/' ? r.end('x') : 0);
        s.maxConnections = 1; s.listen({port});";
    let extra = "unavailable = \"HTTP/1.1 503 Busy\\r\\nConnection: close\\r\\nContent-Length: 0\\r\\n\\r\\n\"\n\
                 unavailable-after = \"2s\"";
    let Some(cluster) = start(source, PORT, extra) else { return };
    cluster.wait_for("generation 1 serves");
    let hold = || {
        let mut client = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
        client.write_all(b"GET /for-ever HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        client
    };
    let clients = [hold(), hold(), hold()];
    let refused = |mut client: &TcpStream| {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = [0; 12];
        client.read_exact(&mut text).is_ok() && &text == b"HTTP/1.1 503"
    };
    assert!(refused(&clients[2]));
}

#[test]
fn workers_that_accept_themselves_are_given_the_listening_socket() {
    let source = format!("{WHO} http.createServer(answer).listen({{port}});");
    let Some(cluster) = start(&source, PORT, "accept = \"workers\"") else { return };
    cluster.wait_for("generation 1 serves");
    let asked: Vec<_> = (0..4)
        .map(|_| {
            let port = cluster.port;
            std::thread::spawn(move || get(port, "/slow").unwrap())
        })
        .collect();
    // The slow answers are under way when the workers are replaced.
    std::thread::sleep(Duration::from_millis(300));
    cluster.reload().unwrap();
    all_answer(cluster.port, 1);
    asked.into_iter().for_each(|it| drop(it.join().unwrap()));
    let checked = cluster.rcluster(&["reload", "--check"]);
    assert!(checked.status.success(), "{checked:?}");
}

/// The listening socket is nobody's but the service's, and one worker is stuck when the master is killed.
#[test]
fn a_killed_master_leaves_nobody_who_holds_its_sockets() {
    let source = format!(
        "{WHO} http.createServer((q, r) => {{
          if (q.url === '/stuck') {{ console.log('stuck'); for (;;); }}
          answer(q, r);
        }}).listen({{port}});"
    );
    for extra in ["accept = \"workers\"", ""] {
        let Some(mut cluster) = start(&source, PORT, extra) else { return };
        cluster.wait_for("generation 1 serves");
        let before = cluster.pids("web");
        let mut stuck = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
        stuck.write_all(b"GET /stuck HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        cluster.wait_for("stuck");
        cluster.kill_master();
        cluster.start_again();
        cluster.wait_for("workers that are still there: 0");
        cluster.wait_for("everything is as before the master was killed");
        assert!(before.iter().all(|&pid| wait_gone(pid, PATIENCE)));
        all_answer(cluster.port, 1);
    }
}

#[test]
fn sockets_are_asked_for_by_number_and_by_a_name_without_a_file() {
    let source = format!(
        "{WHO} http.createServer(answer).listen({{ fd: 3 }});
        http.createServer(answer).listen('\\0rcluster-test-{{port}}', () => console.log('abstract'));"
    );
    let listen = format!("{PORT}, \"@rcluster-test-{{port}}\"");
    let Some(cluster) = start(&source, &listen, "") else { return };
    cluster.wait_for("generation 1 serves");
    cluster.wait_for_nth("abstract", 2);
    all_answer(cluster.port, 2);
    assert_eq!(cluster.count("does not listen on"), 0);
}

#[test]
fn each_worker_has_a_udp_socket_of_its_own() {
    let udp = free_port();
    let source = format!(
        "{WHO} http.createServer(answer).listen({{port}});
        const socket = require('dgram').createSocket('udp4');
        socket.on('message', (text, from) => socket.send(process.pid + ' ' + text, from.port, from.address));
        socket.bind({udp}, '127.0.0.1', () => console.log('udp', socket.address().port));
        const low = require('dgram').createSocket('udp4');
        low.on('error', error => console.log('low', error.code)).bind(53, '127.0.0.1');"
    );
    let Some(cluster) = start(&source, PORT, "") else { return };
    cluster.wait_for("generation 1 serves");
    cluster.wait_for_nth(&format!("udp {udp}"), 2);
    cluster.wait_for_nth("low EACCES", 2);
    cluster.wait_for("rcluster binds no UDP port below 1024");
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"hello", ("127.0.0.1", udp)).unwrap();
    let mut answer = [0; 64];
    let (length, _) = client.recv_from(&mut answer).unwrap();
    assert!(answer[..length].ends_with(b" hello"));
    cluster.reload().unwrap();
}

#[test]
fn a_word_for_a_primary_that_is_not_there_is_mentioned_once() {
    let source = format!(
        "{WHO} http.createServer(answer).listen({{port}});
        if (process.env.RCLUSTER_SLOT === '1') for (let i = 0; i < 5; i++) process.send({{ i }});"
    );
    let Some(cluster) = start(&source, PORT, "") else { return };
    cluster.wait_for("generation 1 serves");
    cluster.wait_for("web/1 (pid");
    cluster
        .wait_for("sends messages to its parent process (process.send), which nobody here answers");
    all_answer(cluster.port, 2);
    assert_eq!(cluster.count("sends messages to its parent"), 1);
}

/// Clients who are silent, idle, and in a request, at a drain with the preload: the answer comes whole,
/// and the worker is gone long before anybody's time-out.
#[test]
fn with_the_preload_a_drain_waits_for_requests_alone() {
    let source = format!(
        "{WHO} const s = http.createServer(answer).listen({{port}}); s.keepAliveTimeout = 60000;
        console.log('options', process.env.NODE_OPTIONS, process.execArgv.length);"
    );
    for name in support::node::RELEASES {
        let Some(node) = release(name) else { continue };
        let extra = "drain-preload = true\nmax-connections = 3\n\
                     environment = { NODE_OPTIONS = \"--stack-trace-limit=20\" }";
        let cluster = start_on(&node, &source, PORT, extra);
        cluster.wait_for("generation 1 serves");
        cluster.wait_for("--stack-trace-limit=20");
        let connect = || TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
        let silent = [connect(), connect()];
        let mut idle = connect();
        idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert!(idle.read(&mut [0; 1024]).unwrap() > 0);
        wait_in_hand(&cluster, 3);
        let port = cluster.port;
        let slow = std::thread::spawn(move || get(port, "/slow").unwrap());
        wait_in_hand(&cluster, 4);
        let before = cluster.pids("web");
        let begun = Instant::now();
        cluster.reload().unwrap();
        assert!(before.iter().all(|&pid| wait_gone(pid, PATIENCE)), "{name}");
        let took = begun.elapsed();
        let answered = slow.join().unwrap();
        assert!(before.iter().any(|pid| pid.to_string() == answered), "{name}");
        assert!(took < Duration::from_secs(25), "{name}: the drain took {took:?}");
        assert_eq!(cluster.count("cut: "), 0, "{name}");
        println!("{name}: drained within {took:?}");
        // Every end was told: nothing is in hand any more.
        drop((silent, idle));
        wait_in_hand(&cluster, 0);
    }
}

/// Waits until the workers of the pool have so many connections in hand.
fn wait_in_hand(cluster: &Cluster, count: u64) {
    let end = Instant::now() + PATIENCE;
    while cluster.status().pools[0].in_hand != count {
        assert!(Instant::now() < end, "{:?}", cluster.status().pools[0]);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// With it, `max-connections` is kept by the master: a third client waits for a close.
#[test]
fn with_the_preload_connections_are_bounded() {
    let source = "require('net').createServer(c => c.pipe(c)).listen({port});";
    let extra = "drain-preload = true\nmax-connections = 1";
    let Some(cluster) = start(source, PORT, extra) else { return };
    cluster.wait_for("generation 1 serves");
    let connect = || TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    let two = [connect(), connect()];
    wait_in_hand(&cluster, 2);
    let mut third = connect();
    third.write_all(b"x").unwrap();
    third.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(third.read(&mut [0]).is_err());
    drop(two);
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(third.read(&mut [0]).unwrap(), 1);
}

#[test]
fn a_worker_that_stops_by_itself_is_no_crash() {
    let source = format!(
        "{WHO} const s = http.createServer(answer).listen({{port}});
        process.on('SIGUSR2', () => require('cluster').worker.disconnect());
        process.on('SIGTERM', () => s.close());"
    );
    let Some(cluster) = start(&source, PORT, "") else { return };
    cluster.wait_for("generation 1 serves");
    let pids = cluster.pids("web");
    signal(pids[0], "USR2");
    cluster.wait_for("web/1 (pid");
    assert!(wait_gone(pids[0], PATIENCE));
    // This one closes its server and would stay for ever, held by its channel.
    signal(pids[1], "TERM");
    assert!(wait_gone(pids[1], PATIENCE));
    cluster.wait_for_nth("drains: it says that it stops", 2);
    cluster.wait_for_nth("is ready", 4);
    assert_eq!(cluster.count("lost"), 0);
}

/// Timers and pools of connections to databases keep a process alive that serves nobody any more.
#[test]
fn what_lingers_after_its_last_connection_is_ended_soon() {
    let source =
        format!("{WHO} http.createServer(answer).listen({{port}}); setInterval(() => 0, 1000);");
    let Some(cluster) = start(&source, PORT, "drain-timeout = \"60s\"") else { return };
    cluster.wait_for("generation 1 serves");
    let before = cluster.pids("web");
    let begun = Instant::now();
    cluster.reload().unwrap();
    assert!(before.iter().all(|&pid| wait_gone(pid, PATIENCE)));
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
}

/// Connections that a worker was handed and has not answered survive its death, and the master's next
/// image.
#[test]
fn what_a_busy_worker_has_not_answered_goes_to_the_other_when_it_is_killed() {
    let source = format!(
        "{WHO} http.createServer((q, r) => {{
          if (q.url === '/stuck') {{ r.end('x'); console.log('stuck', process.pid); for (;;); }}
          answer(q, r);
        }}).listen({{port}});"
    );
    let Some(cluster) = start(&source, PORT, "balance = \"round-robin\"") else { return };
    cluster.wait_for("generation 1 serves");
    let port = cluster.port;
    let stuck = std::thread::spawn(move || get(port, "/stuck"));
    let line = cluster.wait_for("stuck ");
    let busy: u32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    // One of these is handed to the stuck one, and waits there.
    let asked: Vec<_> =
        (0..4).map(|_| std::thread::spawn(move || get(port, "/").unwrap())).collect();
    let end = Instant::now() + PATIENCE;
    while cluster.status().pools[0].accepted < 5 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
    let upgraded = cluster.rcluster(&["upgrade"]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    signal(busy, "KILL");
    let answered: Vec<String> = asked.into_iter().map(|it| it.join().unwrap()).collect();
    assert!(answered.iter().all(|pid| *pid != busy.to_string()), "{answered:?}");
    let _ = stuck.join().unwrap();
    cluster.wait_for("given to others: 1; what it was answering is not known");
}

/// A worker that answers nothing for as long as the watchdog allows is killed, and nobody is lost.
#[test]
fn a_worker_that_never_answers_a_hand_over_is_killed_by_the_watchdog() {
    let source = format!(
        "{WHO} http.createServer(answer).listen({{port}}, () => {{
          if (process.env.RCLUSTER_SLOT === '1') setTimeout(() => {{ for (;;); }}, 300);
        }});"
    );
    let extra = "watchdog = \"2s\"\nbalance = \"round-robin\"\nrestart-limit = 100";
    let Some(cluster) = start(&source, PORT, extra) else { return };
    cluster.wait_for("generation 1 serves");
    // Some of these are with it when it stalls, and wait for its end.
    let clients = support::load::Load::closed(cluster.port, 8, "/");
    cluster.wait_for("stalled");
    cluster.wait_for("left; connections given to others: 1");
    let seen = clients.finish();
    assert!(seen.failed.iter().all(|why| why.contains("closed without") || why.contains("reset")));
    assert!(seen.failed.len() <= 8 && seen.answered > 0, "{:?}", seen.failed);
}

/// Sessions of TLS go on at any worker: all of them have the keys of the first.
#[test]
fn tls_sessions_are_resumed_at_every_worker() {
    let source = "
        const tls = require('tls'), fs = require('fs');
        const options = { key: fs.readFileSync('{folder}/key.pem'), cert: fs.readFileSync('{folder}/cert.pem') };
        tls.createServer(options, c => { c.end(process.pid + ' ' + c.isSessionReused() + '\\n'); c.on('error', () => 0); })
          .listen({port});";
    let client = "
        const tls = require('tls');
        const port = +process.argv[2], seen = new Set();
        let session, asked = 0, resumed = 0;
        (function ask() {
          let text = '', next;
          const c = tls.connect({ port, rejectUnauthorized: false, session, maxVersion: 'TLSv1.2' });
          c.on('session', it => next = it);
          c.on('data', it => text += it);
          c.on('close', () => {
            const [pid, reused] = text.trim().split(' ');
            seen.add(pid); asked++;
            if (session && reused === 'true') resumed++;
            session = next || session;
            if (asked < 20) return ask();
            console.log(seen.size, resumed);
          });
        })();";
    let Some(node) = release("node-20") else { return };
    let openssl = Command::new("openssl").arg("version").output();
    if !openssl.is_ok_and(|it| it.status.success()) {
        println!("LEFT OUT: openssl, which makes a certificate, is not installed");
        return;
    }
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ])
        .arg("-keyout")
        .arg(path("key.pem"))
        .arg("-out")
        .arg(path("cert.pem"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let here = folder.path().to_str().unwrap().to_owned();
    let source = source.replace("{port}", &port.to_string()).replace("{folder}", &here);
    std::fs::write(path("app.js"), source).unwrap();
    std::fs::write(path("client.js"), client).unwrap();
    let config = format!(
        "[pool.web]\ncommand = [\"{}\", \"{here}/app.js\"]\nlisten = [{PORT}]\nworkers = 2\n\
         kind = \"node\"\nfirst-byte = false\nbalance = \"round-robin\"\n",
        node.display()
    );
    let mut master = Command::new(RCLUSTER);
    master.arg("run").arg("--config").arg(path("rcluster.toml"));
    let client = path("client.js");
    let cluster = Cluster::launch(folder, port, &config, &mut master);
    cluster.wait_for("generation 1 serves");
    let ask = || {
        let ran = Command::new(&node).arg(&client).arg(port.to_string()).output().unwrap();
        String::from_utf8_lossy(&ran.stdout).trim().to_owned()
    };
    assert_eq!(ask(), "2 19", "workers, and resumed sessions of 19");
    // Those who come later have the keys as well, and so has the next image of the master.
    cluster.rcluster(&["upgrade"]);
    cluster.reload().unwrap();
    assert_eq!(ask(), "2 19");
}
