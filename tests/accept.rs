//! Workers that accept by themselves, beside each other: whoever comes is answered, whatever happens to
//! workers and masters, and each has its share.
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
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use frozen_v1::Channel;
use rcluster::wire::control::Pool;
use support::keep_alive::{Clients, Seen};
use support::load::Load;
use support::{Cluster, PATIENCE, load_time, pool, signal, wait_gone, web};

/// From one event to the next.
const EVERY: Duration = Duration::from_millis(400);
/// The longest that anybody may wait: less than a drain may take, whatever the machine.
const WAIT: Duration = Duration::from_secs(20);

/// No test: a worker of version 1, when the master runs this executable.
#[test]
fn as_worker() {
    let Some(channel) = Channel::from_env() else { return };
    channel.say_ready(16);
    channel.serve();
    std::process::exit(0);
}

/// Workers of the blocking library.
fn blocking(extra: &str) -> Cluster {
    Cluster::serve(&web(&format!("accept = \"workers\"\nrestart-limit = 1000\n{extra}")))
}

/// Workers on tokio, which the tests of hand-back use, too.
fn mixed(mode: &str, extra: &str) -> Option<Cluster> {
    let own = std::env::current_exe().unwrap();
    let mixed: PathBuf = own.parent().unwrap().parent().unwrap().join("examples/mixed");
    if !mixed.exists() {
        println!("LEFT OUT: the example mixed is not built; `cargo test` without --test does it");
        return None;
    }
    let command = format!("\"{}\", \"{mode}\"", mixed.display());
    let extra = format!("accept = \"workers\"\nrestart-limit = 1000\n{extra}");
    Some(Cluster::serve(&pool("web", &command, "\"127.0.0.1:{port}\"", &extra)))
}

fn accounts(cluster: &Cluster) -> Pool {
    let pool = cluster.status().pools.remove(0);
    balances(&pool);
    pool
}

#[track_caller]
fn balances(pool: &Pool) {
    let sum = pool.finished + pool.in_hand + pool.held + pool.refused + pool.cut;
    assert_eq!(pool.accepted, sum, "{pool:?}");
}

/// Waits until the pool is as wanted; its accounts balance meanwhile.
#[track_caller]
fn wait_until(cluster: &Cluster, wanted: impl Fn(&Pool) -> bool) -> Pool {
    cluster.wait_until(|pool| {
        balances(pool);
        wanted(pool)
    })
}

fn nobody_noticed(seen: &Seen) {
    assert_eq!(seen.failed, Vec::<String>::new());
    assert_eq!((seen.closed, seen.announced), (0, 0));
}

/// Something happens again and again, while a hundred clients stay connected and others come.
fn during(what: &str, mode: &str, happens: impl Fn(&Cluster)) {
    let Some(cluster) = mixed(mode, "") else { return };
    let clients = Clients::connect(cluster.port, 100);
    let newcomers = Load::paced(cluster.port, 100, "/pid");
    clients.wait(200);
    let (end, mut count) = (Instant::now() + load_time(), 0);
    while Instant::now() < end || count < 3 {
        let next = Instant::now() + EVERY;
        happens(&cluster);
        count += 1;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    clients.wait(100);
    let pool = accounts(&cluster);
    let (seen, tally) = (clients.finish(), newcomers.finish());
    println!(
        "{mode}, 100 clients, {count} {what}: {} answered, {} failed, {} closed, {} told to close; {} \
         newcomers, {} failed, the longest wait {:?}; {} handed back, {} cut",
        seen.answered,
        seen.failed.len(),
        seen.closed,
        seen.announced,
        tally.answered,
        tally.failed.len(),
        tally.longest,
        pool.handed_back,
        pool.cut,
    );
    nobody_noticed(&seen);
    assert_eq!(tally.failed, Vec::<String>::new());
    assert!(tally.longest_stay < WAIT, "{:?}", tally.longest_stay);
    assert_eq!(pool.cut, 0, "{}", cluster.log().join("\n"));
    assert!(pool.accepted > 100, "{pool:?}");
}

#[test]
fn nobody_notices_a_reload_of_serve() {
    during("reloads", "serve", |cluster| drop(cluster.reload().unwrap()));
}

#[test]
fn nobody_notices_a_reload_of_axum_serve() {
    during("reloads", "listener", |cluster| drop(cluster.reload().unwrap()));
}

#[test]
fn nobody_notices_an_upgrade_of_the_master() {
    during("upgrades", "serve", |cluster| {
        let ran = cluster.rcluster(&["upgrade"]);
        assert!(ran.status.success(), "{ran:?}");
    });
}

/// Blocking workers do not hand back by themselves; each client comes anew.
#[test]
fn blocking_workers_lose_nobody_over_reloads() {
    let cluster = blocking("");
    let load = Load::closed(cluster.port, 16, "/pid");
    let (end, mut count) = (Instant::now() + load_time(), 0);
    while Instant::now() < end {
        cluster.reload().unwrap();
        count += 1;
        std::thread::sleep(EVERY / 4);
    }
    let tally = load.finish();
    let pool = accounts(&cluster);
    println!("{count} reloads: {} answered, {} failed", tally.answered, tally.failed.len());
    assert_eq!(tally.failed, Vec::<String>::new());
    assert_eq!(pool.cut, 0);
    assert!(tally.by_pid.len() > count, "every generation answers: {:?}", tally.by_pid);
}

/// The next master finds workers that have accepted all the while.
fn kills(mode: &str) {
    let Some(mut cluster) = mixed(mode, "") else { return };
    let workers = cluster.pids("web");
    let clients = Clients::connect(cluster.port, 100);
    let newcomers = Load::paced(cluster.port, 50, "/pid");
    clients.wait(200);
    for kill in 1..=5 {
        cluster.kill_master();
        // Nobody accepts for them.
        let enough = newcomers.answered.load(Relaxed) + 30;
        let end = Instant::now() + PATIENCE;
        while newcomers.answered.load(Relaxed) < enough {
            assert!(Instant::now() < end, "nobody accepts");
            std::thread::yield_now();
        }
        cluster.start_again();
        cluster.wait_for_nth("everything is as before the master was killed", kill);
        assert_eq!(cluster.pids("web"), workers, "nobody was started");
        clients.wait(50);
    }
    cluster.reload().unwrap();
    clients.wait(50);
    let pool = accounts(&cluster);
    let (seen, tally) = (clients.finish(), newcomers.finish());
    println!(
        "{mode}, 5 kills of the master: {} answered, {} failed, {} closed; {} newcomers, {} failed, the \
         longest wait {:?}",
        seen.answered,
        seen.failed.len(),
        seen.closed,
        tally.answered,
        tally.failed.len(),
        tally.longest
    );
    nobody_noticed(&seen);
    assert_eq!(tally.failed, Vec::<String>::new());
    assert!(tally.longest_stay < WAIT, "{:?}", tally.longest_stay);
    assert!(pool.in_hand >= 100, "{pool:?}");
    cluster.end_whole(workers);
}

#[test]
fn a_killed_master_is_not_missed_by_serve() {
    kills("serve");
}

#[test]
fn a_killed_master_is_not_missed_by_axum_serve() {
    kills("listener");
}

#[test]
fn a_killed_worker_costs_only_what_it_had_taken() {
    let cluster = blocking("");
    let load = Load::closed(cluster.port, 64, "/sleep/5");
    let end = Instant::now() + load_time();
    let mut kills = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500));
        signal(cluster.pids("web")[kills % 2], "KILL");
        kills += 1;
        cluster.wait_for_nth("lost: was killed by SIGKILL", kills);
        cluster.wait_for_nth("is ready", kills + 2);
    }
    let tally = load.finish();
    let pool = accounts(&cluster);
    println!(
        "{} answered, {kills} kills, {} failed, {} cut by the scoreboard, longest {:?}",
        tally.answered,
        tally.failed.len(),
        pool.cut,
        tally.longest
    );
    // One that it was accepting at that moment is in no counter.
    assert!(tally.failed.len() <= pool.cut as usize + kills, "{:?}; {pool:?}", tally.failed);
    assert!(pool.cut <= 64 * kills as u64);
}

/// Whatever happens to them, no connection is forgotten and none counted twice.
#[test]
fn the_accounts_balance_at_every_moment() {
    let Some(cluster) = mixed("serve", "") else { return };
    let connected = Clients::connect(cluster.port, 50);
    let coming = Load::paced(cluster.port, 100, "/slow/5");
    let (end, mut looks, mut turn) = (Instant::now() + load_time(), 0, 0);
    while Instant::now() < end {
        cluster.signal("USR1");
        // A hundred looks; as many as there is time for, on a slow machine.
        let next = Instant::now() + EVERY;
        for _ in 0..100 {
            accounts(&cluster);
            looks += 1;
            if Instant::now() > next {
                break;
            }
        }
        turn += 1;
        let workers = accounts(&cluster).workers;
        if let Some(victim) = workers.get(turn % workers.len().max(1)).filter(|it| it.pid != 0) {
            signal(victim.pid, "KILL");
        }
    }
    let (seen, tally) = (connected.finish(), coming.finish());
    let pool = accounts(&cluster);
    println!(
        "{looks} looks, {turn} kills: {} answered; {} accepted, {} cut, {} handed back",
        seen.answered + tally.answered,
        pool.accepted,
        pool.cut,
        pool.handed_back,
    );
    assert!(pool.accepted > 0 && looks > 0, "{pool:?}");
}

/// A client whose answer takes a while.
fn slow_client(port: u16, ms: u32) -> TcpStream {
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET /sleep/{ms} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).unwrap();
    client
}

fn answer_of(mut client: TcpStream) -> String {
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

/// Clients who stay are spread evenly. One who comes while a worker has yet to learn of the one before
/// may go to anybody: so each waits for that, and of those who come at once only all are accepted.
#[test]
fn each_worker_has_its_share() {
    let config = web("accept = \"workers\"").replace("workers = 2", "workers = 4");
    let cluster = Cluster::serve(&config);
    let in_hand = |pool: &Pool| pool.workers.iter().map(|it| it.in_hand).collect::<Vec<_>>();
    let connect = || TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    let at_once: Vec<_> = (0..80).map(|_| connect()).collect();
    let pool = wait_until(&cluster, |pool| pool.in_hand == 80);
    println!("80 clients at once: {:?}", in_hand(&pool));
    drop(at_once);
    wait_until(&cluster, |pool| pool.in_hand == 0);
    let (mut clients, mut counts) = (Vec::new(), Vec::new());
    // Whoever has not run for a while catches up: the others leave to it who comes next.
    while clients.len() < 80 || clients.len() < 160 && !is_even(&counts) {
        clients.push(connect());
        let count = clients.len() as u64;
        counts = in_hand(&wait_until(&cluster, |pool| pool.in_hand == count));
    }
    println!("{} clients one after the other: {counts:?}", clients.len());
    assert!(is_even(&counts), "{counts:?}");
}

/// Two more than a sibling and an eighth, and a worker stays away; until it has looked, one more may come.
fn is_even(counts: &[u64]) -> bool {
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    *most <= least + least / 8 + 3
}

/// A newcomer among workers that have their hands full gets what comes.
#[test]
fn who_has_more_in_hand_stays_away() {
    let cluster = blocking("");
    let (mut clients, mut more) = (Vec::new(), Vec::new());
    // One after the other: of those who come at once, all may have come before somebody listens.
    for count in 1..=40 {
        clients.push(slow_client(cluster.port, 600_000));
        wait_until(&cluster, |pool| pool.in_hand == count);
    }
    let before = accounts(&cluster);
    let lost = before.workers.iter().max_by_key(|it| it.in_hand).unwrap();
    let kept = before.workers.iter().find(|it| it.pid != lost.pid).unwrap();
    signal(lost.pid, "KILL");
    cluster.wait_for_nth("is ready", 3);
    let left = before.in_hand - lost.in_hand;
    let mut next = || {
        more.push(slow_client(cluster.port, 600_000));
        let count = left + more.len() as u64;
        let pool = wait_until(&cluster, |pool| pool.in_hand == count);
        let of_kept = pool.workers.iter().find(|it| it.pid == kept.pid).unwrap().in_hand;
        (of_kept - kept.in_hand, pool.in_hand - of_kept)
    };
    // Nobody is left to one that has yet to run for the first time.
    let mut begin = (0, 0);
    while begin.1 == 0 {
        begin = next();
        assert!(begin.0 < 40, "the newcomer gets nobody");
    }
    let end = (0..10).map(|_| next()).last().unwrap();
    // One that it was woken for before it saw the newcomer, and one for each time that this did not run.
    println!(
        "{} before, {} of 10 went to the one that had {}",
        begin.0,
        end.0 - begin.0,
        kept.in_hand
    );
    assert!(end.0 - begin.0 <= 5, "{begin:?} {end:?}");
    drop((clients, more));
}

/// A worker that has few in hand and stands still keeps nobody waiting for long.
#[test]
fn a_stopped_worker_keeps_nobody_from_the_others() {
    let cluster = blocking("");
    let clients: Vec<_> = (0..20).map(|_| slow_client(cluster.port, 600_000)).collect();
    wait_until(&cluster, |pool| pool.in_hand == 20);
    let pids = cluster.pids("web");
    signal(pids[0], "KILL");
    cluster.wait_for_nth("is ready", 3);
    let newcomer = cluster.pids("web").into_iter().find(|pid| !pids.contains(pid)).unwrap();
    signal(newcomer, "STOP");
    let begin = Instant::now();
    for _ in 0..50 {
        cluster.get("/pid").unwrap();
    }
    let took = begin.elapsed();
    println!("50 requests beside a stopped worker: {took:?}");
    signal(newcomer, "CONT");
    // Each may have had to wait for a look; that is not for ever.
    assert!(took < Duration::from_secs(30), "{took:?}");
    drop(clients);
}

/// A worker that does not take what the master sends it is stalled, though it accepts by itself.
#[test]
fn a_stopped_worker_is_replaced() {
    let cluster = blocking("watchdog = \"3s\"");
    let pids = cluster.pids("web");
    signal(pids[0], "STOP");
    cluster.wait_for("stalled");
    assert!(wait_gone(pids[0], PATIENCE));
    cluster.wait_for_nth("is ready", 3);
    cluster.get("/pid").unwrap();
}

/// One who was woken and cannot come is not waited for.
#[test]
fn who_was_woken_in_vain_costs_a_moment() {
    let cluster = blocking("");
    let pids = cluster.pids("web");
    for pid in &pids {
        signal(*pid, "STOP");
    }
    let client = slow_client(cluster.port, 1);
    // It was woken first, and is killed before it accepts; or the other way round.
    signal(pids[0], "KILL");
    signal(pids[1], "CONT");
    let begin = Instant::now();
    assert!(answer_of(client).starts_with("HTTP/1.1 200"));
    println!("answered after {:?}", begin.elapsed());
}

/// Nobody has more in hand than it may, and whoever waits is accepted when there is room.
#[test]
fn max_connections_holds_for_each() {
    let cluster = blocking("max-connections = 3");
    let clients: Vec<_> = (0..30).map(|_| slow_client(cluster.port, 200)).collect();
    let end = Instant::now() + PATIENCE;
    loop {
        let pool = accounts(&cluster);
        assert!(pool.workers.iter().all(|it| it.in_hand <= 3), "{pool:?}");
        if pool.finished == 30 {
            break;
        }
        assert!(Instant::now() < end, "{pool:?}");
    }
    for client in clients {
        assert!(answer_of(client).starts_with("HTTP/1.1 200"));
    }
}

/// Who has connected before the service ends is answered; then nothing is left.
#[test]
fn a_stop_answers_who_has_connected() {
    let mut cluster = blocking("max-connections = 8");
    let workers = cluster.pids("web");
    let clients: Vec<_> = (0..40).map(|_| slow_client(cluster.port, 300)).collect();
    // Each has its hands full, or had, and the rest waits in the kernel's queue.
    wait_until(&cluster, |pool| pool.accepted >= 16);
    cluster.signal("TERM");
    assert!(cluster.wait_end().success(), "{}", cluster.log().join("\n"));
    for client in clients {
        assert!(answer_of(client).starts_with("HTTP/1.1 200"));
    }
    assert!(workers.into_iter().all(|pid| wait_gone(pid, PATIENCE)));
    assert!(TcpStream::connect(("127.0.0.1", cluster.port)).is_err(), "nobody listens any more");
}

/// Requests count, and a worker that has had enough is replaced without a loss.
#[test]
fn a_worker_is_recycled_after_so_many_requests() {
    let cluster = blocking("max-requests = 200");
    let load = Load::closed(cluster.port, 8, "/pid");
    cluster.wait_for_nth("left", 4);
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    assert_eq!(accounts(&cluster).cut, 0);
}

/// A canary is asked before any client can come to it.
#[test]
fn a_canary_answers_a_probe_before_it_accepts() {
    let config = "canary = \"300ms\"\nprobe = \"/pid\"";
    let cluster = blocking(config);
    let load = Load::closed(cluster.port, 8, "/pid");
    for _ in 0..3 {
        cluster.reload().unwrap();
    }
    let broken = "canary = \"300ms\"\nprobe = \"/sleep/60000\"\nprobe-timeout = \"200ms\"";
    cluster.configure(&web(&format!("accept = \"workers\"\n{broken}")));
    let why = cluster.reload().unwrap_err();
    assert!(why.contains("probe"), "{why}");
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    balances(&accounts(&cluster));
}

/// From one way to the other and back, by a reload, and nobody notices.
#[test]
fn a_reload_changes_who_accepts() {
    let Some(cluster) = mixed("serve", "") else { return };
    let clients = Clients::connect(cluster.port, 50);
    let newcomers = Load::paced(cluster.port, 100, "/pid");
    let text = std::fs::read_to_string(cluster.path("rcluster.toml")).unwrap();
    let other = text.replace("accept = \"workers\"", "accept = \"master\"");
    assert_ne!(text, other);
    for round in 0..4 {
        clients.wait(50);
        cluster.configure(if round % 2 == 0 { &other } else { &text });
        cluster.reload().unwrap();
        let wanted = if round % 2 == 0 { "master" } else { "workers" };
        assert_eq!(accounts(&cluster).accept, wanted);
    }
    clients.wait(50);
    let (seen, tally) = (clients.finish(), newcomers.finish());
    nobody_noticed(&seen);
    assert_eq!(tally.failed, Vec::<String>::new());
    assert_eq!(accounts(&cluster).cut, 0);
}

/// Several listeners, TCP and Unix, each under its name.
#[test]
fn every_listener_is_served() {
    let listen = "\"127.0.0.1:{port}\", \"{folder}/sock\", \"@rcluster-accept-{port}\"";
    let command = "\"{rcluster}\", \"demo-worker\", \"http\"";
    let cluster = Cluster::serve(&pool("web", command, listen, "accept = \"workers\""));
    for _ in 0..20 {
        cluster.get("/pid").unwrap();
        let mut client = UnixStream::connect(cluster.path("sock")).unwrap();
        client.write_all(b"GET /pid HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let pool = accounts(&cluster);
    assert_eq!(pool.accepted, 40);
    cluster.reload().unwrap();
    cluster.get("/pid").unwrap();
}

/// A library that does not know how is found out, before a reload does harm and after.
#[test]
fn an_older_worker_is_told_what_it_lacks() {
    let cluster = blocking("");
    let command = frozen_v1::command();
    cluster.configure(&pool("web", &command, "\"127.0.0.1:{port}\"", "accept = \"workers\""));
    let why = cluster.reload().unwrap_err();
    assert!(why.contains("does not know how to accept by itself"), "{why}");
    assert!(why.contains("accept = \"master\""), "{why}");
    let checked = cluster.rcluster(&["reload", "--check"]);
    assert_eq!(checked.status.code(), Some(1));
    let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    assert!(said.contains("does not know how to accept by itself"), "{said}");
    cluster.get("/pid").unwrap();
}
