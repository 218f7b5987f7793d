//! Listeners of every kind, pools that come and go, sizes, balance.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::json;
use support::load::Load;
use support::{Cluster, free_port, get, outcome, pool, web};

const HTTP: &str = "\"{rcluster}\", \"demo-worker\", \"http\"";

fn unix_get(path: &std::path::Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(b"GET /pid HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn tcp_4_and_6_and_unix_sockets_serve_one_pool() {
    let six = free_port();
    let listen = format!("\"127.0.0.1:{{port}}\", \"[::1]:{six}\", \"{{folder}}/app.sock\"");
    let mut cluster = Cluster::serve(&pool("web", HTTP, &listen, ""));
    assert!(cluster.get("/pid").is_ok());
    let mut stream = std::net::TcpStream::connect(("::1", six)).unwrap();
    stream.write_all(b"GET /pid HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let path = cluster.path("app.sock");
    assert!(unix_get(&path).unwrap().starts_with("HTTP/1.1 200"));
    cluster.reload().unwrap();
    assert!(unix_get(&path).unwrap().starts_with("HTTP/1.1 200"));
    cluster.signal("TERM");
    cluster.wait_end();
    assert!(!path.exists(), "our socket file goes with us");
}

#[test]
fn a_reload_adds_and_removes_pools_and_listeners() {
    let cluster = Cluster::serve(&web(""));
    let (second, third) = (free_port(), free_port());
    let listen = format!("\"127.0.0.1:{{port}}\", \"127.0.0.1:{second}\"");
    let api = pool("api", HTTP, &format!("\"127.0.0.1:{third}\""), "");
    cluster.configure(&(pool("web", HTTP, &listen, "") + &api));
    cluster.reload().unwrap();
    for port in [cluster.port, second, third] {
        assert!(get(port, "/pid").is_ok(), "{port}");
    }
    cluster.configure(&web(""));
    cluster.reload().unwrap();
    assert!(get(cluster.port, "/pid").is_ok());
    for port in [second, third] {
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "{port} is closed");
    }
    assert_eq!(cluster.status().pools.iter().filter(|pool| pool.name == "api").count(), 0);
}

#[test]
fn a_rolled_back_reload_closes_what_it_had_opened() {
    let cluster = Cluster::serve(&web(""));
    let second = free_port();
    let bad = pool("bad", "\"/bin/false\"", &format!("\"127.0.0.1:{second}\""), "");
    cluster.configure(&(web("") + &bad));
    assert!(cluster.reload().is_err());
    assert!(std::net::TcpStream::connect(("127.0.0.1", second)).is_err());
    assert_eq!(cluster.status().pools.len(), 1);
}

#[test]
fn a_busy_port_is_one_sentence() {
    let mut cluster = Cluster::serve(&web(""));
    let config = web("").replace("{port}", &cluster.port.to_string());
    let mut second = Cluster::start(&config);
    assert_eq!(second.wait_end().code(), Some(1));
    let line = second.wait_for("pool web cannot listen on 127.0.0.1:");
    assert!(line.contains("another program listens there"), "{line}");
    assert!(cluster.is_running());
}

#[test]
fn scale_and_its_signals_start_no_new_generation() {
    let cluster = Cluster::serve(&web(""));
    let before = cluster.pids("web");
    assert!(outcome(&cluster.call("Scale", json!({ "pool": "web", "workers": 4 }))).is_ok());
    cluster.wait_for_nth("is ready", 4);
    assert_eq!(cluster.pids("web")[..2], before[..]);
    cluster.signal("TTIN");
    cluster.wait_for_nth("is ready", 5);
    cluster.signal("TTOU");
    cluster.wait_for("the pool needs it no more");
    // It lasts over reloads.
    cluster.reload().unwrap();
    assert_eq!(cluster.pids("web").len(), 4);
    let refusal = outcome(&cluster.call("Scale", json!({ "pool": "wep", "workers": 4 })));
    assert_eq!(refusal.unwrap_err(), "there is no pool wep; there are: web");
    assert!(outcome(&cluster.call("Scale", json!({ "pool": "web", "workers": 0 }))).is_err());
}

#[test]
fn a_change_of_workers_alone_replaces_nobody() {
    let cluster = Cluster::serve(&web(""));
    let before = cluster.pids("web");
    cluster.configure(&web("").replace("workers = 2", "workers = 3"));
    let message = cluster.reload().unwrap();
    assert!(message.contains("web from 2 to 3"), "{message}");
    cluster.wait_for_nth("is ready", 3);
    assert_eq!(cluster.pids("web")[..2], before[..]);
    assert_eq!(cluster.status().pools[0].generation, Some(1));
    // Once more, with nothing changed, is a rolling restart.
    assert_eq!(cluster.reload().unwrap(), "reloaded: generation 2 serves");
}

#[test]
fn reloads_asked_for_at_once_are_folded_and_all_answered() {
    let cluster = Cluster::serve(&web(""));
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..10).map(|_| scope.spawn(|| cluster.reload())).collect();
        for one in all {
            assert!(one.join().unwrap().is_ok());
        }
    });
    let generation = cluster.status().pools[0].generation.unwrap();
    assert!((2..=11).contains(&generation), "{generation}");
    println!("10 reloads at once made generation {generation}");
}

#[test]
fn one_client_keeps_its_worker_with_source_hash() {
    let cluster = Cluster::serve(&web("balance = \"source-hash\"").replace("= 2", "= 4"));
    let load = Load::closed(cluster.port, 4, "/pid");
    while load.answered.load(std::sync::atomic::Ordering::Relaxed) < 200 {
        std::thread::yield_now();
    }
    let tally = load.finish();
    assert!(tally.failed.is_empty());
    assert_eq!(tally.by_pid.len(), 1, "{:?}", tally.by_pid);
}

#[test]
fn round_robin_and_least_connections_are_fair() {
    for balance in ["round-robin", "least-connections"] {
        let cluster = Cluster::serve(&web(&format!("balance = \"{balance}\"")));
        for _ in 0..20 {
            assert!(cluster.get("/pid").is_ok());
            // A worker's last connection may count as in hand for a moment longer.
            cluster.wait_until(|pool| pool.in_hand == 0);
        }
        let pool = cluster.wait_until(|pool| pool.in_hand == 0);
        let counts: Vec<u64> = pool.workers.iter().map(|w| w.connections).collect();
        println!("{balance}: {counts:?}");
        assert_eq!(counts, [10, 10], "{balance}");
    }
}

#[test]
fn workers_run_as_another_user() {
    if !nix::unistd::geteuid().is_root() {
        println!("LEFT OUT: only root can start workers as another user");
        return;
    }
    let cluster = Cluster::serve(&web("user = \"nobody\"\ngroup = \"nogroup\""));
    let pid = cluster.pids("web")[0];
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for (key, id) in [("Uid:", "65534"), ("Gid:", "65534"), ("Groups:", "65534")] {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        assert!(line.split_whitespace().skip(1).all(|word| word == id), "{line}");
    }
    assert!(cluster.get("/pid").is_ok());
}

/// The master itself is started with signals blocked, as a careless parent would do it.
fn block_signals(command: &mut Command) -> &mut Command {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
    use std::os::unix::process::CommandExt;
    let block = || {
        let mut set = SigSet::empty();
        set.add(Signal::SIGUSR1);
        set.add(Signal::SIGPIPE);
        Ok(sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?)
    };
    #[expect(unsafe_code, reason = "a signal mask can only be set between fork and exec")]
    // SAFETY: sigprocmask is async-signal-safe.
    unsafe {
        command.pre_exec(block)
    }
}

#[test]
fn workers_see_what_they_should_and_nothing_else() {
    let config = web("environment = { GREETING = \"hi\" }");
    let cluster = Cluster::start_by(&config, |command: &mut Command| {
        command.env("LISTEN_FDNAMES", "x").env("WATCHDOG_USEC", "60000000").env("OF_MASTER", "1");
        block_signals(command)
    });
    cluster.wait_for("generation 1 serves");
    let pid = cluster.pids("web")[1];
    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let has = |text: &str| environment.split('\0').any(|line| line.starts_with(text));
    for expected in [
        "GREETING=hi",
        "OF_MASTER=1",
        "RCLUSTER_POOL=web",
        "RCLUSTER_SLOT=2",
        "RCLUSTER_GENERATION=1",
        "RCLUSTER_CHANNEL=",
    ] {
        assert!(has(expected), "{expected} in {environment:?}");
    }
    for private in ["LISTEN_", "WATCHDOG_", "NOTIFY_SOCKET", "RCLUSTER_CONTROL"] {
        assert!(!has(private), "{private} in {environment:?}");
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0, "no signal is blocked");
    // SIGHUP, SIGINT and SIGUSR1 mean something to the master only.
    let ignored = (1 << (1 - 1)) | (1 << (2 - 1)) | (1 << (10 - 1));
    assert_eq!(mask("SigIgn:") & ignored, ignored);
    // Three standard descriptors, its end of the channel, the scoreboard, and what the worker
    // itself opens: nothing of the master's. The pidfd by which it learns of his death was given to it,
    // and its threads wait at a set of their own.
    let targets = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
        target.to_string_lossy().into_owned()
    });
    let targets: Vec<String> = targets.collect();
    let count = |kind: &str| targets.iter().filter(|target| target.contains(kind)).count();
    assert_eq!((count("pidfd"), count("eventpoll")), (1, 1), "{targets:?}");
    let stdin = std::fs::read_link(format!("/proc/{pid}/fd/0")).unwrap();
    assert_eq!(stdin, std::path::Path::new("/dev/null"));
    cluster.signal("USR1");
    cluster.wait_for("generation 2 serves");
}

#[test]
fn a_socket_file_that_another_has_taken_is_not_removed() {
    let mut cluster = Cluster::serve(&pool("web", HTTP, "\"{folder}/app.sock\"", ""));
    let path = cluster.path("app.sock");
    std::fs::remove_file(&path).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    cluster.signal("TERM");
    cluster.wait_end();
    assert!(path.exists());
}

#[test]
fn the_same_port_in_other_words_is_said_to_be_our_own() {
    let cluster = Cluster::serve(&web(""));
    cluster.configure(&pool("web", HTTP, "\"{port}\"", ""));
    let refusal = cluster.reload().unwrap_err();
    assert!(refusal.contains("this service listens there itself, as 127.0.0.1:"), "{refusal}");
    assert!(cluster.get("/pid").is_ok());
}
