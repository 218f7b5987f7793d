//! `rcluster status --drain`: real workers that drain, and what they say that they still have; and
//! workers that do not say it, or say too much.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

#[path = "workers/frozen_v1.rs"]
mod frozen_v1;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use frozen_v1::{CONNECTION, Channel, DRAIN, DRAINED, READY, ROOM, TAKEN};
use rcluster::wire::control::{Answer, DrainingResults, DrainingWorker, HeldConnection};
use rcluster::worker::{Connection, Wait, Worker};
use serde_json::{Value, json};
use support::{Cluster, PATIENCE, free_port, outcome, pool};

const ASK: u8 = 14;
const HOLDING: u8 = 15;

/// No test: the worker, when the master runs this executable.
#[test]
fn as_worker() {
    let Ok(way) = std::env::var("TEST_WORKER") else { return };
    match way.as_str() {
        "plain" => Worker::from_env().unwrap().ready(echo).unwrap(),
        "returns" => Worker::from_env().unwrap().ready(hand_back).unwrap(),
        _ => by_hand(&way, Channel::from_env().unwrap()),
    }
    std::process::exit(0);
}

/// Lines, which it gives back. It asks the library nothing, and keeps its clients to their end.
fn echo(connection: Connection) -> std::io::Result<()> {
    let mut lines = BufReader::new(&connection);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        (&connection).write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// The same, byte by byte; and at a drain its clients go to others.
fn hand_back(mut connection: Connection) -> std::io::Result<()> {
    loop {
        match connection.wait_to_hand_back()? {
            Wait::Bytes => {}
            Wait::Closed => return Ok(()),
            Wait::Draining => return connection.hand_back(b"").map_err(|kept| kept.why),
        }
        let mut byte = [0];
        connection.read_exact(&mut byte)?;
        connection.write_all(&byte)?;
    }
}

/// A worker that says that it tells what it holds, and does what it likes.
fn by_hand(way: &str, channel: Channel) {
    assert!(channel.say(&[1, READY, 0, 0, 20, 1, 1]));
    let mut clients = Vec::new();
    if way == "floods unasked" {
        (0..3000).for_each(|_| tell_one(channel));
    }
    while let Some(message) = channel.hear() {
        match message.kind {
            CONNECTION => {
                clients.push(message.client.unwrap());
                channel.count(TAKEN);
            }
            DRAIN if clients.is_empty() => {
                channel.say_kind(DRAINED);
                return;
            }
            ASK => {
                // One line for each: who asks twice is seen.
                eprintln!("{way} was asked");
                match way {
                    "floods" => (0..5000).for_each(|_| tell_one(channel)),
                    "dies" => std::process::abort(),
                    "tells a part" => tell_one(channel),
                    _ => {}
                }
            }
            DRAIN | ROOM => {}
            _ => {}
        }
    }
}

/// HOLDING in answer to the first round, with one connection, and more to come.
fn tell_one(channel: Channel) {
    channel.say(&[1, HOLDING, 0, 0, 21, 4, 1, 0, 0, 0, 4, 1, b'x', 22, 5, 24, 3, b'a', b'b', b'c']);
}

fn one_worker(way: &str) -> String {
    let extra = format!("environment = {{ TEST_WORKER = \"{way}\" }}\ndrain-timeout = \"60s\"");
    let two = pool("web", &frozen_v1::command(), "\"127.0.0.1:{port}\"", &extra);
    two.replace("workers = 2", "workers = 1")
}

fn results(answer: Answer) -> Vec<DrainingWorker> {
    assert_eq!(answer.error, None, "{answer:?}");
    let results: DrainingResults = serde_json::from_value(answer.parameters).unwrap();
    results.workers
}

fn draining(cluster: &Cluster) -> Vec<DrainingWorker> {
    results(cluster.call("Draining", json!({})))
}

/// The same; where a machine was too busy for somebody to answer in time, they are asked again.
fn told(cluster: &Cluster) -> Vec<DrainingWorker> {
    let end = Instant::now() + PATIENCE;
    loop {
        let workers = draining(cluster);
        let is_late = |worker: &DrainingWorker| {
            worker.silence.as_ref().is_some_and(|why| {
                why.ends_with("within 1 s") || why == "it has not found this master yet"
            })
        };
        if Instant::now() > end || !workers.iter().any(is_late) {
            return workers;
        }
    }
}

/// The command line's answer: what it prints.
fn print(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = cluster.rcluster(&[["status", "--drain"].as_slice(), arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until so many connections are in hand.
fn wait_in_hand(cluster: &Cluster, wanted: u64) {
    let end = Instant::now() + PATIENCE;
    loop {
        let pools = cluster.status().pools;
        if pools.iter().map(|pool| pool.in_hand).sum::<u64>() == wanted {
            return;
        }
        assert!(Instant::now() < end, "{pools:?}");
        std::thread::yield_now();
    }
}

/// An idle client of a plain protocol, one that has a slow answer to come over HTTP, and one by a Unix
/// socket that has said nothing.
#[test]
fn every_draining_worker_says_what_it_has() {
    let own = std::env::current_exe().unwrap();
    let mixed = own.parent().unwrap().parent().unwrap().join("examples/mixed");
    if !mixed.exists() {
        println!("LEFT OUT: the example mixed is not built; `cargo test` without --test does it");
        return;
    }
    let long = "drain-timeout = \"60s\"";
    let web = format!("\"{}\", \"serve\"", mixed.display());
    let web = pool("web", &web, "\"127.0.0.1:{port}\"", long);
    let plain_port = free_port();
    let listen = format!("\"127.0.0.1:{plain_port}\", \"{{folder}}/plain.sock\"");
    let extra = format!("environment = {{ TEST_WORKER = \"plain\" }}\n{long}");
    let plain = pool("plain", &frozen_v1::command(), &listen, &extra);
    let cluster = Cluster::serve(&format!("{web}{plain}"));
    assert_eq!(print(&cluster, &[]), "no worker drains\n");
    assert_eq!(print(&cluster, &["web"]), "no worker of web drains\n");

    let mut idle = TcpStream::connect(("127.0.0.1", plain_port)).unwrap();
    idle.write_all(b"hello\n").unwrap();
    idle.read_exact(&mut [0; 6]).unwrap();
    let unix = UnixStream::connect(cluster.path("plain.sock")).unwrap();
    let mut slow = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    slow.write_all(
        b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\nGET /slow/600000 HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .unwrap();
    wait_in_hand(&cluster, 3);
    let requests = |cluster: &Cluster| {
        let pools = cluster.status().pools;
        let workers = pools.iter().flat_map(|pool| &pool.workers);
        workers.map(|worker| worker.requests).sum::<u64>()
    };
    while requests(&cluster) < 3 {}
    let old = [cluster.pids("web"), cluster.pids("plain")].concat();
    cluster.reload().unwrap();

    // Workers that hold nothing leave, and are not there any more or hold nothing.
    let workers = told(&cluster);
    assert!(workers.iter().all(|worker| old.contains(&worker.pid)), "{workers:?}");
    assert!(workers.iter().all(|worker| worker.silence.is_none()), "{workers:?}");
    assert!(workers.iter().all(|worker| worker.generation == 1 && worker.untold == 0));
    let cut_in = |worker: &DrainingWorker| worker.cut_in.unwrap();
    assert!(workers.iter().all(|worker| (1.0..=60.0).contains(&cut_in(worker))), "{workers:?}");
    let listed = |worker: &DrainingWorker| worker.connections.len() as u64;
    assert!(workers.iter().all(|worker| worker.in_hand == Some(listed(worker))), "{workers:?}");
    let address = |client: &TcpStream| client.local_addr().unwrap().to_string();
    let facts = |it: &HeldConnection| {
        assert!((0.0..PATIENCE.as_secs_f64()).contains(&it.held_for), "{it:?}");
        (it.peer.clone(), it.listener.clone(), it.state.clone(), it.requests)
    };
    let of = |pool: &str| {
        let workers = workers.iter().filter(|worker| worker.pool == pool);
        let mut found: Vec<_> = workers.flat_map(|worker| &worker.connections).map(facts).collect();
        found.sort();
        found
    };
    let web_listener = format!("127.0.0.1:{}", cluster.port);
    assert_eq!(of("web"), [(address(&slow), web_listener, "in a request".to_owned(), 2)]);
    let plain_listener = format!("127.0.0.1:{plain_port}");
    let unix_listener = cluster.path("plain.sock").display().to_string();
    let wanted = [
        (address(&idle), plain_listener, "unknown".to_owned(), 1),
        ("unix".to_owned(), unix_listener, "idle".to_owned(), 0),
    ];
    assert_eq!(of("plain"), wanted);

    let page = print(&cluster, &[]);
    assert!(
        page.contains("connections in hand\n\n") && page.contains("  in a request  "),
        "{page}"
    );
    let page = print(&cluster, &["plain"]);
    assert!(page.contains("\nplain/") && !page.contains("web/"), "{page}");
    assert!(page.contains(&address(&idle)) && page.contains("cut in "), "{page}");
    let json: Value = serde_json::from_str(&print(&cluster, &["web", "--json"])).unwrap();
    assert!(json["workers"].as_array().unwrap().iter().all(|it| it["pool"] == "web"), "{json}");
    let refused = cluster.rcluster(&["status", "nobody", "--drain"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(
        (refused.status.code(), said.as_str()),
        (Some(1), "there is no pool nobody; there are: web, plain\n")
    );

    // Another image of the master knows that they tell.
    assert!(cluster.rcluster(&["upgrade"]).status.success());
    assert_eq!(count(&told(&cluster)), 3);
    drop((idle, unix, slow));
    assert_eq!(cluster.count("ignored"), 0, "{}", cluster.log().join("\n"));
}

fn count(workers: &[DrainingWorker]) -> usize {
    assert!(workers.iter().all(|worker| worker.silence.is_none()), "{workers:?}");
    workers.iter().map(|worker| worker.connections.len()).sum()
}

#[test]
fn the_next_master_hears_them_too() {
    let mut cluster = Cluster::serve(&one_worker("plain"));
    let client = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    wait_in_hand(&cluster, 1);
    cluster.reload().unwrap();
    assert_eq!(count(&told(&cluster)), 1);
    cluster.kill_master();
    cluster.start_again();
    cluster.wait_for("everything is as before the master was killed");
    assert_eq!(count(&told(&cluster)), 1);
    drop(client);
}

/// Two clients of one control socket; each has asked.
#[test]
fn who_asks_meanwhile_hears_the_same_and_nobody_waits_for_long() {
    let cluster = Cluster::serve(&one_worker("mute"));
    let client = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    wait_in_hand(&cluster, 1);
    cluster.reload().unwrap();
    const QUESTION: &[u8] = b"{\"method\":\"io.rcluster.Draining\"}\0";
    let connect = || {
        let stream = cluster.connect_control();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        BufReader::new(stream)
    };
    let hear = |client: &mut BufReader<UnixStream>| -> Answer {
        let mut bytes = Vec::new();
        client.read_until(0, &mut bytes).unwrap();
        assert_eq!(bytes.pop(), Some(0));
        serde_json::from_slice(&bytes).unwrap()
    };
    let (mut first, mut second, mut third) = (connect(), connect(), connect());
    // The same client again is refused, at once; and the third has gone before it is answered. All in
    // one go, since a round is over after a second.
    first.get_mut().write_all(&QUESTION.repeat(2)).unwrap();
    second.get_mut().write_all(QUESTION).unwrap();
    third.get_mut().write_all(QUESTION).unwrap();
    drop(third);
    assert!(outcome(&hear(&mut first)).unwrap_err().contains("already"));
    // Meanwhile it serves.
    assert_eq!(cluster.status().state, "running");
    for client in [&mut first, &mut second] {
        let workers = results(hear(client));
        assert_eq!(workers.len(), 1, "{workers:?}");
        let worker = &workers[0];
        assert_eq!(worker.silence.as_deref(), Some("it did not answer within 1 s"));
        assert_eq!((worker.in_hand, worker.untold, worker.connections.len()), (Some(1), 1, 0));
    }
    assert_eq!(cluster.count("mute was asked"), 1, "they shared one round");
    assert_eq!(draining(&cluster).len(), 1);
    cluster.wait_for_nth("mute was asked", 2);
    drop(client);
    assert_eq!(cluster.count("ignored"), 0);
}

#[test]
fn what_is_told_in_part_is_shown_and_said_to_be_a_part() {
    let cluster = Cluster::serve(&one_worker("tells a part"));
    let clients: Vec<_> =
        (0..3).map(|_| TcpStream::connect(("127.0.0.1", cluster.port)).unwrap()).collect();
    wait_in_hand(&cluster, 3);
    cluster.reload().unwrap();
    let worker = draining(&cluster).remove(0);
    assert_eq!(worker.silence.as_deref(), Some("it has told no more within 1 s"));
    assert_eq!((worker.in_hand, worker.untold), (Some(3), 2));
    assert_eq!((worker.connections[0].peer.as_str(), worker.connections.len()), ("abc", 1));
    drop(clients);
}

#[test]
fn a_flood_is_bounded_and_complained_about_once() {
    let cluster = Cluster::serve(&one_worker("floods"));
    let client = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    wait_in_hand(&cluster, 1);
    cluster.reload().unwrap();
    let worker = draining(&cluster).remove(0);
    assert_eq!(worker.silence.as_deref(), Some("it tells of more connections than it may"));
    assert_eq!((worker.connections.len(), worker.untold), (1024, 0));
    for _ in 0..3 {
        assert_eq!(draining(&cluster).len(), 1, "the master goes on");
    }
    cluster.wait_for("it is ignored");
    assert_eq!(cluster.count("it is ignored"), 1, "{}", cluster.log().join("\n"));
    drop(client);

    let cluster = Cluster::serve(&one_worker("floods unasked"));
    cluster.wait_for("told of more connections than it can have been asked for; it is ignored");
    cluster.reload().unwrap();
    cluster.wait_for_nth("it is ignored", 2);
    assert_eq!(cluster.count("it is ignored"), 2, "once for each");
    assert_eq!(cluster.status().state, "running");
}

#[test]
fn a_worker_that_dies_instead_of_answering_is_not_listed() {
    let cluster = Cluster::serve(&one_worker("dies"));
    let client = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    wait_in_hand(&cluster, 1);
    cluster.reload().unwrap();
    assert_eq!(draining(&cluster), []);
    drop(client);
}

/// What it gives back nobody has room for: its channel is left alone, and it with it.
#[test]
fn a_worker_whose_channel_rests_is_reported() {
    let config = one_worker("returns");
    let cluster = Cluster::serve(&config);
    let mut clients: Vec<_> =
        (0..4).map(|_| TcpStream::connect(("127.0.0.1", cluster.port)).unwrap()).collect();
    for client in &mut clients {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    // The next one has room for a single connection.
    cluster.configure(&format!("{config}max-connections = 1\n"));
    cluster.reload().unwrap();
    let is_resting = |worker: &DrainingWorker| {
        let wanted = "it hands back more than anybody has room for at the moment";
        worker.silence.as_deref() == Some(wanted)
    };
    let end = Instant::now() + PATIENCE;
    loop {
        let workers = draining(&cluster);
        assert_eq!(workers.len(), 1, "{workers:?}");
        if is_resting(&workers[0]) {
            // One is served, one is in the master's hand.
            assert_eq!((workers[0].in_hand, workers[0].untold), (Some(2), 2));
            break;
        }
        assert!(Instant::now() < end, "{workers:?}");
    }
    assert!(print(&cluster, &[]).contains("\n       does not tell: it hands back more "));
    // They are served one after the other, and it can leave.
    for client in clients {
        drop(client);
    }
    cluster.wait_for(" left");
}
