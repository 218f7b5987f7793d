//! Workers that misbehave. Slot 1 does, slot 2 is a good one: the master stays up, complains once,
//! keeps its accounts, and the other worker serves on.
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
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use frozen_v1::{
    CONNECTION, Channel, DRAIN, DRAINED, FINISHED, PROGRESS, READY, RETIRE, ROOM, TAKEN,
};
use support::load::Load;
use support::{Cluster, PATIENCE, cpu_time, descriptors, descriptors_are_back, pool, wait_gone};

/// No test: the worker, when the master runs this executable.
#[test]
fn as_worker() {
    let Some(channel) = Channel::from_env() else { return };
    let way = std::env::var("TEST_WORKER").unwrap();
    match way.as_str() {
        _ if std::env::var("RCLUSTER_SLOT").unwrap() != "1" => good(channel),
        "rubbish" => rubbish(channel),
        "flood" => flood(channel),
        "close" => close(channel),
        "shut" => shut(channel),
        "absurd" => absurd(channel),
        "twice" => twice(channel),
        "late ready" => late_ready(channel),
        "drained" => drained(channel),
        "retire" => retire(channel),
        "gifts" => gifts(channel),
        "returns" => returns(channel),
        "idle" => idle(channel),
        "liar" => liar(channel),
        other => panic!("{other}"),
    }
    std::process::exit(0);
}

fn good(channel: Channel) {
    channel.say_ready(16);
    channel.serve();
}

/// Bytes that are no message, of all lengths, before READY and after.
fn rubbish(channel: Channel) {
    let say_rubbish = || {
        let mut seed = 7_u64;
        for length in [1, 2, 3, 4, 5, 8, 64, 1023, 1024, 1025, 4000] {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut bytes: Vec<u8> = seed.to_le_bytes().into_iter().cycle().take(length).collect();
            bytes[0] = 0;
            channel.say(&bytes);
        }
        // A version, a type, and fields that run past the end.
        channel.say(&[1, READY, 0, 0, 1, 255, 1]);
        channel.say(&[1, READY, 0, 0, 1, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    };
    say_rubbish();
    channel.say_ready(16);
    say_rubbish();
    channel.serve();
}

/// ROOM and unknown messages, as fast as the queue takes them.
fn flood(channel: Channel) {
    channel.say_ready(16);
    std::thread::spawn(move || {
        loop {
            channel.say_kind(ROOM);
            channel.say_kind(99);
        }
    });
    channel.serve();
}

fn live_on() {
    loop {
        std::thread::park();
    }
}

/// Closes its end and lives on: what it is sent waits in the queue.
fn close(channel: Channel) {
    channel.say_ready(16);
    nix::unistd::close(channel.number).unwrap();
    live_on();
}

/// Shuts the channel down in both directions and lives on: nothing can be sent to it.
fn shut(channel: Channel) {
    channel.say_ready(16);
    nix::sys::socket::shutdown(channel.number, nix::sys::socket::Shutdown::Both).unwrap();
    live_on();
}

/// Serves, and writes nonsense to all its counters.
fn absurd(channel: Channel) {
    channel.say_ready(16);
    std::thread::spawn(move || {
        for round in 0_u64.. {
            for offset in [TAKEN, FINISHED, PROGRESS] {
                let value =
                    [u64::MAX, 0, u64::MAX / 2, round, u64::MAX - round][round as usize % 5];
                channel.word(offset).store(value, SeqCst);
            }
            // The master stays blocked in no lock of ours: let others run.
            std::thread::yield_now();
        }
    });
    channel.serve();
}

fn twice(channel: Channel) {
    channel.say_ready(16);
    channel.say_ready(0);
    channel.say_ready(u32::MAX);
    channel.serve();
}

/// READY once more after DRAIN, then stays for a while.
fn late_ready(channel: Channel) {
    channel.say_ready(16);
    while let Some(message) = channel.hear() {
        match (message.kind, message.client) {
            (CONNECTION, Some(client)) => {
                channel.count(TAKEN);
                frozen_v1::answer(client);
                channel.count(FINISHED);
            }
            (DRAIN, _) => {
                for _ in 0..10 {
                    channel.say_ready(16);
                }
                channel.say_kind(DRAINED);
                return;
            }
            _ => {}
        }
    }
}

/// DRAINED before READY, after it, and with every connection.
fn drained(channel: Channel) {
    channel.say_kind(DRAINED);
    channel.say_ready(16);
    std::thread::spawn(move || {
        for _ in 0..1000 {
            channel.say_kind(DRAINED);
        }
    });
    channel.serve();
}

fn retire(channel: Channel) {
    channel.say_ready(16);
    std::thread::spawn(move || {
        loop {
            channel.say_kind(RETIRE);
        }
    });
    channel.serve();
}

/// Every message comes with descriptors: one, as many as are read, and more.
fn gifts(channel: Channel) {
    channel.say_ready(16);
    let (gift, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&gift);
    for _ in 0..200 {
        for count in [1, 2, 4, 5, 50] {
            channel.say_with(&[1, ROOM, 0, 0], &vec![number; count]);
            channel.say_with(&[0, 0, 0, 0], &vec![number; count]);
        }
    }
    channel.serve();
}

/// Hands back what it never had, and what is no connection at all, before a drain and after.
fn returns(channel: Channel) {
    const HANDBACK: u8 = 8;
    channel.say_ready(16);
    let (client, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let [client, null] = [client.as_raw_fd(), null.as_raw_fd()];
    // The listener's name, and five bytes of leftover.
    let name = std::env::var("TEST_LISTENER").unwrap();
    let plain = [&[1, HANDBACK, 0, 0, 4, name.len() as u8], name.as_bytes()].concat();
    let leftover = [&plain[..], &[9, 4, 5, 0, 0, 0]].concat();
    let too_much = [&plain[..], &[9, 4, 255, 255, 255, 255]].concat();
    let stranger = [1, HANDBACK, 0, 0, 4, 2, b'n', b'o'];
    for _ in 0..100 {
        channel.say(&plain);
        channel.say_with(&plain, &[null]);
        channel.say_with(&plain, &[client, null]);
        channel.say_with(&leftover, &[client]);
        channel.say_with(&leftover, &[client, null]);
        channel.say_with(&too_much, &[client, null]);
        channel.say_with(&stranger, &[client]);
        channel.say_with(&plain, &[client]);
    }
    channel.serve();
}

/// READY, and then takes nothing.
fn idle(channel: Channel) {
    channel.say_ready(16);
    live_on();
}

/// Takes nothing and says that it took and finished everything.
fn liar(channel: Channel) {
    for offset in [TAKEN, FINISHED, PROGRESS] {
        channel.word(offset).store(u64::MAX, SeqCst);
    }
    channel.say_ready(0);
    live_on();
}

fn serve(way: &str, extra: &str) -> Cluster {
    let environment = format!("TEST_WORKER = \"{way}\", TEST_LISTENER = \"127.0.0.1:{{port}}\"");
    let extra = format!("environment = {{ {environment} }}\n{extra}");
    Cluster::serve(&pool("web", &frozen_v1::command(), "\"127.0.0.1:{port}\"", &extra))
}

/// Clients are answered, all of them; commands are, too; and the books are in order.
fn stays_well(cluster: &mut Cluster, clients: u32) {
    let load = Load::closed(cluster.port, clients, "/pid");
    while load.answered.load(SeqCst) < 300 {
        std::thread::yield_now();
    }
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    books_are_in_order(cluster);
}

fn books_are_in_order(cluster: &mut Cluster) {
    assert!(cluster.is_running(), "{:?}", cluster.log());
    let pool = cluster.status().pools.remove(0);
    let sum = pool.finished + pool.in_hand + pool.held + pool.refused + pool.cut;
    assert_eq!(pool.accepted, sum, "{pool:?}");
    let all = [pool.finished, pool.in_hand, pool.held, pool.refused, pool.cut, pool.redispatched];
    assert!(all.into_iter().all(|count| count < 1_000_000), "{pool:?}");
    assert!(pool.workers.iter().all(|worker| worker.in_hand <= pool.accepted), "{pool:?}");
    assert_eq!(cluster.count("panicked"), 0);
}

/// No worker was complained about twice.
fn complaints_are_single(cluster: &Cluster) {
    let log = cluster.log();
    let mut about: Vec<&str> = log
        .iter()
        .filter(|line| line.ends_with("it is ignored"))
        .filter_map(|line| line.split("(pid ").nth(1)?.split(',').next())
        .collect();
    let all = about.len();
    about.sort_unstable();
    about.dedup();
    assert_eq!(about.len(), all, "{log:#?}");
}

#[test]
fn rubbish_is_complained_about_once() {
    let mut cluster = serve("rubbish", "");
    stays_well(&mut cluster, 4);
    cluster.wait_for("it is ignored");
    assert_eq!(cluster.count("it is ignored"), 1, "{:?}", cluster.log());
    cluster.reload().unwrap();
    stays_well(&mut cluster, 4);
    cluster.wait_for_nth("it is ignored", 2);
    assert_eq!(cluster.count("it is ignored"), 2, "the next one is another worker");
    complaints_are_single(&cluster);
    assert_eq!(cluster.count("lost"), 0);
}

#[test]
fn a_flood_of_messages_starves_nobody() {
    let mut cluster = serve("flood", "");
    stays_well(&mut cluster, 4);
    cluster.reload().unwrap();
    stays_well(&mut cluster, 4);
    complaints_are_single(&cluster);
    cluster.signal("TERM");
    assert_eq!(cluster.wait_end().code(), Some(0));
}

#[test]
fn who_closes_the_channel_and_lives_on_is_replaced_and_costs_no_client() {
    let mut cluster = serve("close", "watchdog = \"2s\"\nrestart-limit = 1000");
    let (begin, before) = (Instant::now(), cpu_time(cluster.pid()));
    stays_well(&mut cluster, 4);
    cluster.wait_for("stalled: it took nothing");
    stays_well(&mut cluster, 4);
    let (used, took) = (cpu_time(cluster.pid()) - before, begin.elapsed());
    println!("{used:?} of {took:?} were computed");
    assert!(used < took / 4, "the loop spins: {used:?} of {took:?}");
}

#[test]
fn who_shuts_the_channel_down_and_lives_on_costs_no_client() {
    let mut cluster = serve("shut", "restart-limit = 1000");
    stays_well(&mut cluster, 4);
    let (begin, before) = (Instant::now(), cpu_time(cluster.pid()));
    // The clock is a request to the good worker.
    assert!(cluster.get("/sleep/1500").is_ok());
    let (used, took) = (cpu_time(cluster.pid()) - before, begin.elapsed());
    println!("{used:?} of {took:?} were computed");
    assert!(used < took / 4, "the loop spins: {used:?} of {took:?}");
    // It is started again and again: each time that is said, and then that it is gone.
    let (said, lost) = ("has shut down its channel; it is killed", "lost: was killed by SIGKILL");
    cluster.wait_for(said);
    cluster.wait_for_nth(lost, cluster.count(said));
    let lost = cluster.count(lost);
    assert!(lost <= cluster.count(said), "{:?}", cluster.log());
}

#[test]
fn absurd_counters_are_bounded() {
    let mut cluster = serve("absurd", "");
    for _ in 0..3 {
        stays_well(&mut cluster, 8);
        cluster.reload().unwrap();
    }
    let victim = cluster.pids("web")[0];
    support::signal(victim, "KILL");
    cluster.wait_for("lost: was killed by SIGKILL");
    books_are_in_order(&mut cluster);
}

#[test]
fn a_second_ready_changes_nothing() {
    let mut cluster = serve("twice", "");
    stays_well(&mut cluster, 4);
    assert_eq!(cluster.count("is ready"), 2);
}

#[test]
fn ready_after_drain_changes_nothing() {
    let mut cluster = serve("late ready", "");
    let old = cluster.pids("web");
    cluster.reload().unwrap();
    assert!(old.into_iter().all(|pid| wait_gone(pid, PATIENCE)));
    stays_well(&mut cluster, 4);
    cluster.wait_for_nth("is ready", 4);
    assert_eq!(cluster.count("is ready"), 4);
}

#[test]
fn drained_without_a_drain_changes_nothing() {
    let mut cluster = serve("drained", "");
    stays_well(&mut cluster, 4);
    assert_eq!(cluster.count("is ready"), 2);
    assert_eq!(cluster.count("lost"), 0);
}

#[test]
fn who_retires_in_a_loop_is_replaced_each_time_and_costs_no_client() {
    let mut cluster = serve("retire", "");
    cluster.wait_for_nth("drains: its successor serves", 3);
    stays_well(&mut cluster, 4);
    cluster.signal("TERM");
    assert_eq!(cluster.wait_end().code(), Some(0));
}

#[test]
fn descriptors_that_come_along_are_closed() {
    let mut cluster = serve("gifts", "");
    stays_well(&mut cluster, 4);
    // The first reloads leave what the last good generation is started from.
    let mut before = 0;
    for round in 1..=4 {
        cluster.reload().unwrap();
        cluster.wait_for_nth(" left", 2 * round);
        stays_well(&mut cluster, 4);
        match round {
            ..=2 => before = descriptors(cluster.pid()),
            _ => descriptors_are_back(cluster.pid(), before),
        }
    }
    complaints_are_single(&cluster);
}

#[test]
fn who_hands_back_what_he_never_had_is_not_believed() {
    let mut cluster = serve("returns", "");
    let mut before = 0;
    for round in 1..=4 {
        stays_well(&mut cluster, 4);
        cluster.reload().unwrap();
        cluster.wait_for_nth(" left", 2 * round);
        match round {
            ..=2 => before = descriptors(cluster.pid()),
            _ => descriptors_are_back(cluster.pid(), before),
        }
    }
    stays_well(&mut cluster, 4);
}

#[test]
fn who_takes_nothing_is_replaced_and_its_clients_go_to_others() {
    let mut cluster = serve("idle", "watchdog = \"2s\"\nrestart-limit = 1000");
    stays_well(&mut cluster, 4);
    cluster.wait_for("stalled: it took nothing");
    stays_well(&mut cluster, 4);
}

#[test]
fn who_lies_about_what_it_took_does_not_take_the_service_with_it() {
    let mut cluster = serve("liar", "");
    // The good worker is busy, so the liar always seems to be the less loaded.
    let port = cluster.port;
    let busy = std::thread::spawn(move || {
        // Every second client reaches the good one at first.
        let both: Vec<_> =
            (0..2).map(|_| std::thread::spawn(move || knock(port, "/sleep/8000"))).collect();
        both.into_iter().filter_map(|one| one.join().ok()).count()
    });
    while cluster.status().pools[0].accepted < 2 {}
    // What the liar was given is lost, for it says that it was answered. The rest is not.
    let clients: Vec<_> = (0..400).map(|_| knock(port, "/pid")).collect();
    let answered = clients.into_iter().rev().take(1).all(|mut stream| {
        let mut answer = String::new();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
    });
    books_are_in_order(&mut cluster);
    drop(busy);
    assert!(answered, "the other worker serves on");
}

/// A client who has asked and not been answered.
fn knock(port: u16, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
    stream
}
