//! What a worker's death costs where its pool has a crash ledger: an answer that had begun, and
//! nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

#[path = "workers/frozen_v1.rs"]
mod frozen_v1;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use frozen_v1::{Channel, READY};
use rcluster::wire::control::Pool;
use support::keep_alive::{BROKEN_OFF, Clients, Seen};
use support::load::Load;
use support::{Cluster, PATIENCE, descriptors, pool, signal};

const LEDGER: &str = "crash-ledger = true\nrestart-limit = 1000\n";

/// The command of a worker that serves everything there is. `None`: it is not built.
fn mixed(mode: &str) -> Option<String> {
    let own = std::env::current_exe().unwrap();
    let mixed = own.parent().unwrap().parent().unwrap().join("examples/mixed");
    if !mixed.exists() {
        println!("LEFT OUT: the example mixed is not built; `cargo test` without --test does it");
        return None;
    }
    Some(format!("\"{}\", \"{mode}\"", mixed.display()))
}

fn serve_mixed(mode: &str, extra: &str) -> Option<Cluster> {
    Some(Cluster::serve(&pool("web", &mixed(mode)?, "\"127.0.0.1:{port}\"", extra)))
}

fn accounts(cluster: &Cluster) -> Pool {
    let pool = cluster.status().pools.remove(0);
    let sum = pool.finished + pool.in_hand + pool.held + pool.refused + pool.cut;
    assert_eq!(pool.accepted, sum, "the accounts balance: {pool:?}");
    pool
}

/// Kills workers under mixed traffic, one after the other: what clients saw, and the accounts.
fn kills(mode: &str, extra: &str) -> Option<(Seen, Pool)> {
    let clients = 100;
    let cluster = serve_mixed(mode, extra)?;
    let connected = Clients::connect(cluster.port, clients);
    connected.wait(2 * clients);
    let count = std::env::var("RCLUSTER_TEST_KILLS").ok().and_then(|text| text.parse().ok());
    // Thirty and more by RCLUSTER_TEST_KILLS.
    let count = count.unwrap_or(10);
    for kill in 0..count {
        let victim = cluster.pids("web")[kill % 2];
        signal(victim, "KILL");
        cluster.wait_for_nth("lost: was killed by SIGKILL", kill + 1);
        accounts(&cluster);
        cluster.wait_for_nth("is ready", kill + 3);
        connected.wait(clients / 2);
    }
    connected.wait(2 * clients);
    let pool = accounts(&cluster);
    let seen = connected.finish();
    assert_eq!(cluster.count("writes otherwise than expected"), 0);
    println!(
        "{mode}, {clients} clients, {count} kills{}: {} answered, {} closed while idle, {} told, {} \
         failed; accounts: {} given to others, {} answered 503, {} cut",
        if extra.contains("ledger") { ", ledger" } else { "" },
        seen.answered,
        seen.closed,
        seen.told,
        seen.failed.len(),
        pool.redispatched,
        pool.answered,
        pool.cut
    );
    Some((seen, pool))
}

/// The next image of the master goes on with the ledgers of the one before.
#[test]
fn an_upgrade_of_the_master_keeps_what_is_kept() {
    let clients = 50;
    let Some(cluster) = serve_mixed("serve", LEDGER) else { return };
    let connected = Clients::connect(cluster.port, clients);
    for kill in 0..4 {
        connected.wait(2 * clients);
        cluster.signal("USR2");
        cluster.wait_for_nth("same process", kill + 1);
        // Connections from before the upgrade are with this worker.
        let victim = cluster.pids("web")[kill % 2];
        signal(victim, "KILL");
        cluster.wait_for_nth("lost: was killed by SIGKILL", kill + 1);
        accounts(&cluster);
        cluster.wait_for_nth("is ready", kill + 3);
    }
    connected.wait(2 * clients);
    let pool = accounts(&cluster);
    only_begun_answers_are_lost(Some((connected.finish(), pool)));
}

fn only_begun_answers_are_lost(found: Option<(Seen, Pool)>) {
    let Some((seen, pool)) = found else { return };
    assert_eq!((seen.closed, seen.announced), (0, 0), "{:?}", seen.failed);
    assert!(seen.failed.iter().all(|why| why == BROKEN_OFF), "{:?}", seen.failed);
    assert_eq!(seen.failed.len() as u64, pool.cut, "each of them was cut, and nobody else");
    assert_eq!((seen.told, pool.refused), (pool.answered, pool.answered));
    assert!(pool.redispatched > pool.cut && pool.answered > 0, "{pool:?}");
}

#[test]
fn a_killed_worker_costs_only_begun_answers_of_serve() {
    only_begun_answers_are_lost(kills("serve", LEDGER));
}

#[test]
fn a_killed_worker_costs_only_begun_answers_of_axum_serve() {
    only_begun_answers_are_lost(kills("listener", LEDGER));
}

#[test]
fn without_a_ledger_exactly_what_it_had_taken_is_lost() {
    let Some((seen, pool)) = kills("serve", "restart-limit = 1000\n") else { return };
    assert_eq!(seen.closed + seen.failed.len() as u64, pool.cut, "{:?}", seen.failed);
    assert_eq!((seen.told, pool.answered, pool.refused), (0, 0, 0));
    assert!(seen.closed > 0);
}

/// A pool of one worker, so that it is known who is killed.
fn alone(mode: &str, extra: &str) -> Option<Cluster> {
    let command = mixed(mode)?;
    Some(Cluster::serve(&format!(
        "[pool.web]\ncommand = [{command}]\nlisten = [\"127.0.0.1:{{port}}\"]\nworkers = 1\n{LEDGER}{extra}"
    )))
}

fn connect(cluster: &Cluster) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn get(mut stream: &TcpStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{:?}", String::from_utf8_lossy(&answer));
        answer.push(byte[0]);
    }
    let head = String::from_utf8(answer).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

fn is_whole_503(answer: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.starts_with("HTTP/1.1 503 "), "{answer:?}");
    let has = |line: &str| head.split("\r\n").any(|it| it.eq_ignore_ascii_case(line));
    assert!(has("connection: close") && has("retry-after: 1"), "{answer:?}");
    assert!(has(&format!("content-length: {}", body.len())), "{answer:?}");
}

/// Ten times what the buffers hold, sent after the worker has died: no reset overtakes the 503.
#[test]
fn who_is_still_sending_gets_the_whole_503() {
    for mode in ["serve", "listener"] {
        let Some(cluster) = alone(mode, "") else { return };
        let idle = connect(&cluster);
        let before = get(&idle, "/pid");
        let mut sending = connect(&cluster);
        sending
            .write_all(b"POST /read HTTP/1.1\r\nHost: t\r\nContent-Length: 60000000\r\n\r\n")
            .unwrap();
        let asked = std::iter::repeat_with(|| cluster.status().pools.remove(0))
            .find(|pool| pool.workers.iter().any(|worker| worker.requests >= 2));
        assert!(asked.is_some());
        signal(cluster.pids("web")[0], "KILL");
        cluster.wait_for("answered 503: 1");
        sending.write_all(&vec![b'x'; 60_000_000]).unwrap();
        let mut answer = String::new();
        sending.read_to_string(&mut answer).unwrap();
        is_whole_503(&answer);
        assert_ne!(get(&idle, "/pid"), before, "who was idle goes on with another worker");
        let pool = accounts(&cluster);
        assert_eq!((pool.answered, pool.refused, pool.cut), (1, 1, 0), "{pool:?}");
    }
}

/// Ended by the drain's deadline, a worker counts as any other that dies.
#[test]
fn a_worker_that_is_ended_by_the_drains_deadline_counts_the_same_way() {
    let Some(cluster) = alone("serve", "drain-timeout = \"1s\"\n") else { return };
    let mut asking = connect(&cluster);
    asking.write_all(b"GET /slow/60000 HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    let idle = connect(&cluster);
    let before = get(&idle, "/pid");
    while cluster.status().pools[0].workers[0].requests < 2 {}
    cluster.reload().unwrap();
    let line = cluster.wait_for("answered 503: 1");
    assert!(line.contains(" left"), "{line}");
    let mut answer = String::new();
    asking.read_to_string(&mut answer).unwrap();
    is_whole_503(&answer);
    assert_ne!(get(&idle, "/pid"), before);
    assert_eq!(accounts(&cluster).cut, 0);
}

/// At the end of the service nobody goes on; who was asking is told, and the master waits for that.
#[test]
fn at_a_stop_who_was_asking_is_told_too() {
    let Some(mut cluster) = alone("serve", "drain-timeout = \"1s\"\n") else { return };
    let mut asking = connect(&cluster);
    asking.write_all(b"POST /read HTTP/1.1\r\nHost: t\r\nContent-Length: 3000000\r\n\r\n").unwrap();
    while cluster.status().pools[0].workers[0].requests < 1 {}
    cluster.signal("TERM");
    cluster.wait_for("answered 503: 1");
    asking.write_all(&vec![b'x'; 3_000_000]).unwrap();
    let mut answer = String::new();
    asking.read_to_string(&mut answer).unwrap();
    is_whole_503(&answer);
    drop(asking);
    assert_eq!(cluster.wait_end().code(), Some(0));
}

/// What is closed is let go, on a master that does nothing else; and a client sees the end at once.
#[test]
fn the_master_keeps_no_socket_for_long() {
    let Some(cluster) = alone("serve", "") else { return };
    let before = descriptors(cluster.pid());
    let clients: Vec<TcpStream> = (0..200).map(|_| connect(&cluster)).collect();
    clients.iter().for_each(|client| drop(get(client, "/pid")));
    assert!(descriptors(cluster.pid()) >= before + 200, "they are kept");
    drop(clients);
    let end = Instant::now() + PATIENCE;
    while descriptors(cluster.pid()) > before {
        assert!(Instant::now() < end, "{} descriptors, not {before}", descriptors(cluster.pid()));
    }
    let mut last = connect(&cluster);
    last.write_all(b"GET /pid HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").unwrap();
    let begin = Instant::now();
    last.read_to_end(&mut Vec::new()).unwrap();
    println!("the end came after {:?}", begin.elapsed());
    // Nor what belonged to a worker that has died.
    for kill in 1..=3 {
        signal(cluster.pids("web")[0], "KILL");
        cluster.wait_for_nth("lost: was killed by SIGKILL", kill);
        cluster.wait_for_nth("is ready", kill + 1);
    }
    while descriptors(cluster.pid()) > before {
        assert!(Instant::now() < end, "{} descriptors, not {before}", descriptors(cluster.pid()));
    }
}

/// So many connections that keeping them would fill the table: they are served all the same.
#[test]
fn a_full_table_costs_the_ledger_and_no_client() {
    let Some(command) = mixed("serve") else { return };
    let config =
        pool("web", &command, "\"127.0.0.1:{port}\"", &format!("{LEDGER}max-connections = 1000\n"));
    let cluster = Cluster::start_by(&config, |command| {
        use std::os::unix::process::CommandExt;
        #[expect(unsafe_code, reason = "the child's limit, not ours")]
        // SAFETY: setrlimit is a plain system call.
        unsafe {
            command.pre_exec(|| {
                use nix::sys::resource::{Resource, setrlimit};
                Ok(setrlimit(Resource::RLIMIT_NOFILE, 200, 200)?)
            })
        }
    });
    cluster.wait_for("generation 1 serves");
    let warning =
        cluster.wait_for("crash-ledger: the master would keep up to 2000 clients' sockets");
    assert!(warning.contains("raise LimitNOFILE="), "{warning}");
    // The workers have the same limit: half of 200 each.
    let clients: Vec<TcpStream> = (0..180).map(|_| connect(&cluster)).collect();
    clients.iter().for_each(|client| drop(get(client, "/pid")));
    cluster.wait_for("the master's descriptors are nearly used up");
    assert_eq!(cluster.count("no connection can be accepted"), 0);
    clients.iter().for_each(|client| drop(get(client, "/pid")));
}

/// No test: the worker, when the master runs this executable.
#[test]
fn as_worker() {
    let Some(channel) = Channel::from_env() else { return };
    if std::env::var("RCLUSTER_SLOT").unwrap() == "1" {
        scribble(channel);
    }
    channel.say_ready(16);
    channel.serve();
    std::process::exit(0);
}

/// Says that it keeps its ledger, serves, and writes rubbish all over it.
fn scribble(channel: Channel) {
    let number: i32 = std::env::var("RCLUSTER_LEDGER").unwrap().parse().unwrap();
    assert!(channel.say(&[1, READY, 0, 0, 1, 4, 16, 0, 0, 0, 16, 1, 1]));
    std::thread::spawn(move || {
        let path = format!("/proc/self/fd/{number}");
        let file = std::fs::File::options().write(true).open(path).unwrap();
        let mut seed = 7_u64;
        loop {
            // The first entries are the ones that are used.
            for word in 0..8 * 64 {
                use std::os::unix::fs::FileExt;
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let value = match seed >> 61 {
                    0..4 => seed >> 33 & 0x7ff,
                    4 => u64::MAX,
                    _ => seed,
                };
                file.write_all_at(&value.to_le_bytes(), word * 8).unwrap();
            }
        }
    });
    channel.serve();
    std::process::exit(0);
}

#[test]
fn rubbish_in_a_ledger_harms_nobody_else() {
    let config = pool("web", &frozen_v1::command(), "\"127.0.0.1:{port}\"", LEDGER);
    let mut cluster = Cluster::serve(&config);
    let mut counts = Vec::new();
    for round in 1..=8 {
        let load = Load::closed(cluster.port, 8, "/sleep/2");
        while load.answered.load(SeqCst) < 200 {
            std::thread::yield_now();
        }
        let victim = cluster.pids("web")[0];
        signal(victim, "KILL");
        cluster.wait_for_nth("lost: was killed by SIGKILL", round);
        cluster.wait_for_nth("is ready", round + 2);
        // Of the clients that the liar had, some are lost or told strange things.
        let strange = load.finish().failed.len();
        assert!(strange <= 16, "{strange}");
        accounts(&cluster);
        assert!(cluster.is_running() && cluster.count("panicked") == 0);
        counts.push(descriptors(cluster.pid()));
    }
    let good = cluster.pids("web")[1];
    assert_eq!(cluster.count(&format!("pid {good}, generation 1) counts otherwise")), 0);
    assert!(
        counts.iter().max() < counts.iter().min().map(|least| least + 32).as_ref(),
        "{counts:?}"
    );
}
