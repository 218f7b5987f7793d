//! The master is killed, and the next one goes on with the workers: who is connected notices nothing,
//! and who comes waits.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send,
    sendmsg, socket, socketpair,
};
use support::keep_alive::Clients;
use support::load::Load;
use support::{
    Cluster, PATIENCE, descriptors, descriptors_are_back, is_alive, pool, signal, wait_gone,
};

/// The worker that the tests of hand-back use, too.
fn mixed() -> Option<PathBuf> {
    let own = std::env::current_exe().unwrap();
    let mixed = own.parent().unwrap().parent().unwrap().join("examples/mixed");
    if mixed.exists() {
        return Some(mixed);
    }
    println!("LEFT OUT: the example mixed is not built; `cargo test` without --test does it");
    None
}

fn serve(mode: &str, extra: &str) -> Option<Cluster> {
    let command = format!("\"{}\", \"{mode}\"", mixed()?.display());
    Some(Cluster::serve(&pool("web", &command, "\"127.0.0.1:{port}\"", extra)))
}

/// How often the master is killed; more by RCLUSTER_TEST_KILLS.
fn kills_wanted(usual: usize) -> usize {
    let kills = std::env::var("RCLUSTER_TEST_KILLS").ok();
    kills.map_or(usual, |text| text.parse().unwrap())
}

const RESUMED: &str = "everything is as before the master was killed";

fn kills(mode: &str) {
    let kills = kills_wanted(8);
    let Some(mut cluster) = serve(mode, "") else { return };
    let workers = cluster.pids("web");
    let clients = Clients::connect(cluster.port, 100);
    let newcomers = Load::paced(cluster.port, 50, "/pid");
    clients.wait(200);
    for kill in 1..=kills {
        cluster.kill_master();
        clients.wait(50);
        cluster.start_again();
        cluster.wait_for_nth(RESUMED, kill);
        assert_eq!(cluster.pids("web"), workers, "nobody was started");
        clients.wait(50);
    }
    let accounts = cluster.status().pools.remove(0);
    let (seen, tally) = (clients.finish(), newcomers.finish());
    println!(
        "{mode}, 100 clients, {kills} kills: {} answered, {} failed, {} closed; {} newcomers, {} \
         failed, the longest wait {:?}",
        seen.answered,
        seen.failed.len(),
        seen.closed,
        tally.answered,
        tally.failed.len(),
        tally.longest
    );
    assert_eq!(seen.failed, Vec::<String>::new());
    assert_eq!((seen.closed, seen.announced), (0, 0));
    // One that was accepted and not yet passed on dies with its master.
    assert!(tally.failed.len() <= kills, "{:?}", tally.failed);
    let sum =
        accounts.finished + accounts.in_hand + accounts.held + accounts.refused + accounts.cut;
    assert_eq!(accounts.accepted, sum, "the accounts balance: {accounts:?}");
    assert!(accounts.in_hand >= 100, "{accounts:?}");
    cluster.end_whole(workers);
}

#[test]
fn nobody_notices_a_masters_death_with_serve() {
    kills("serve");
}

#[test]
fn nobody_notices_a_masters_death_with_axum_serve() {
    kills("listener");
}

/// How many masters have begun to go on with the state and were killed before everybody was there, as
/// this master has written down in the newer half of its file. After three the state is given up.
fn attempts(cluster: &Cluster) -> Option<u64> {
    let file = std::fs::File::open(cluster.path("control.state")).ok()?;
    let half = |at: u64| {
        let mut bytes = [0; 512];
        let count = file.read_at(&mut bytes, at).ok().filter(|count| *count > 32)?;
        let sequence = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        Some((sequence, String::from_utf8_lossy(&bytes[32..count]).into_owned()))
    };
    let (_, text) = [half(0), half(256 * 1024 * 1024)].into_iter().flatten().max()?;
    let number = |key: &str| -> Option<u64> {
        let (_, after) = text.split_once(key)?;
        after.split(|it: char| !it.is_ascii_digit()).next()?.parse().ok()
    };
    let is_its_own = number("\"pid\":") == Some(u64::from(cluster.pid()));
    number("\"attempts\":").filter(|_| is_its_own)
}

/// Killed anywhere in a reload: it goes on, and ends. What goes from worker to worker in that moment
/// is lost to nobody; of those who come, the one in the master's own hand is.
fn kills_in_reloads(name: &str, kept: u64, newcomers: Option<u32>) {
    let Some(mut cluster) = serve("serve", "") else { return };
    let kills = kills_wanted(6);
    let clients = Clients::connect(cluster.port, kept);
    let newcomers = newcomers.map(|rate| Load::paced(cluster.port, rate, "/pid"));
    clients.wait(100);
    let mut seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .subsec_nanos()
        .into();
    println!("seed {seed}");
    for _ in 0..kills {
        cluster.signal("USR1");
        seed = u64::wrapping_mul(seed, 6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(std::time::Duration::from_micros((seed >> 33) % 120_000));
        cluster.kill_master();
        cluster.start_again();
        let end = std::time::Instant::now() + support::PATIENCE;
        while attempts(&cluster) != Some(0) {
            assert!(std::time::Instant::now() < end, "{}", cluster.log().join("\n"));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        clients.wait(50);
    }
    cluster.reload().unwrap();
    clients.wait(50);
    let accounts = cluster.status().pools.remove(0);
    let seen = clients.finish();
    let tally = newcomers.map(Load::finish);
    let failed = tally.as_ref().map_or(0, |tally| tally.failed.len());
    println!(
        "{name}, {kills} kills: of {kept} kept connections {} answered, {} failed, {} closed; of new \
         ones {} answered, {failed} failed; {accounts:?}",
        seen.answered,
        seen.failed.len(),
        seen.closed,
        tally.as_ref().map_or(0, |tally| tally.answered),
    );
    assert_eq!(seen.announced, 0);
    let lost = seen.failed.len() as u64 + seen.closed;
    assert_eq!(lost, 0, "{:?}\n{}", seen.failed, cluster.log().join("\n"));
    assert!(failed <= kills, "{:?}", tally.map(|tally| tally.failed));
    let sum =
        accounts.finished + accounts.in_hand + accounts.held + accounts.refused + accounts.cut;
    assert_eq!(accounts.accepted, sum, "the accounts balance: {accounts:?}");
    assert_eq!(accounts.cut, 0, "what was handed back is not cut: {accounts:?}");
}

#[test]
fn a_master_is_killed_in_the_middle_of_a_reload() {
    kills_in_reloads("in mid-reload", 200, None);
}

#[test]
fn a_master_is_killed_in_the_middle_of_a_reload_while_clients_come() {
    kills_in_reloads("in mid-reload, with newcomers", 50, Some(100));
}

/// One connection that stays.
struct Client(TcpStream);

impl Client {
    fn connect(port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    fn get(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n");
        self.0.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nsaid") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
    }
}

/// What workers print while no master is there is read by the next one, be it more than a pipe holds.
#[test]
fn workers_speak_on_while_no_master_listens() {
    for mode in ["fields", "stream", "inherit"] {
        let Some(mixed) = mixed() else { return };
        let command = format!("\"{}\", \"serve\"", mixed.display());
        let pool = pool("web", &command, "\"127.0.0.1:{port}\"", "");
        let mut cluster = Cluster::serve(&format!("[master]\nlog = \"{mode}\"\n{pool}"));
        let mut client = Client::connect(cluster.port);
        for round in 1..=2 {
            client.get(&format!("/say/{round}-first"));
            cluster.wait_for(&format!("said {round}-first"));
            cluster.kill_master();
            for number in 0..200 {
                client.get(&format!("/say/{round}-{number}."));
            }
            // Three times what a pipe holds.
            let pad = "x".repeat(1000);
            let mut speaker = Client::connect(cluster.port);
            let speaking = std::thread::spawn(move || {
                for number in 200..400 {
                    client.get(&format!("/say/{round}-{number}.{pad}"));
                }
                client
            });
            cluster.start_again();
            cluster.wait_for_nth(RESUMED, round);
            client = speaking.join().unwrap();
            speaker.get(&format!("/say/{round}-last"));
            cluster.wait_for(&format!("said {round}-last"));
            for number in 0..400 {
                cluster.wait_for(&format!("said {round}-{number}."));
            }
        }
        assert_eq!(cluster.count("said "), 2 * 402, "{mode}: each once");
    }
}

/// Told to stop before anybody has come back: everybody is ended all the same.
#[test]
fn a_stop_right_after_the_start_leaves_nobody_behind() {
    for stopped in [false, true] {
        let Some(mut cluster) = serve("serve", "") else { return };
        let workers = cluster.pids("web");
        cluster.kill_master();
        if stopped {
            // It cannot come back, and is killed in its time.
            signal(workers[0], "STOP");
        }
        cluster.start_again();
        cluster.wait_for("going on after the master");
        cluster.signal("TERM");
        assert!(cluster.wait_end().success(), "{}", cluster.log().join("\n"));
        for pid in workers {
            assert!(!is_alive(pid), "{pid} is left behind");
        }
    }
}

#[test]
fn workers_whom_nobody_adopts_leave() {
    let Some(mixed) = mixed() else { return };
    let command = format!("\"{}\", \"serve\"", mixed.display());
    let pool = pool("web", &command, "\"127.0.0.1:{port}\"", "");
    let config = format!("[master]\norphan-timeout = \"1s\"\nlog = \"inherit\"\n{pool}");
    let mut cluster = Cluster::serve(&config);
    let workers = cluster.pids("web");
    let mut client = Client::connect(cluster.port);
    client.get("/say/before");
    cluster.kill_master();
    client.get("/say/after");
    cluster.wait_for("no other has come for 1 s: draining");
    for pid in workers {
        assert!(wait_gone(pid, PATIENCE), "{pid} stays");
    }
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0, "closed");
    // Whoever starts the service then finds nobody, and begins with what it was.
    cluster.start_again();
    cluster.wait_for_nth("is ready", 4);
    Client::connect(cluster.port).get("/say/again");
}

/// A connection to the adoption socket.
fn knock(cluster: &Cluster) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    let address = UnixAddr::new(&cluster.path("control.adopt")).unwrap();
    connect(socket.as_raw_fd(), &address).unwrap();
    socket
}

/// HELLO with this token, and three descriptors that look right.
fn hello(socket: &OwnedFd, token: &[u8; 16]) {
    let (one, two) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let file = tempfile::tempfile().unwrap();
    let message = [[1, 9, 0, 0, 12, 16].as_slice(), token, &[18, 1, 0]].concat();
    let numbers = [one.as_raw_fd(), two.as_raw_fd(), file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&numbers)];
    let slices = [std::io::IoSlice::new(&message)];
    sendmsg::<()>(socket.as_raw_fd(), &slices, &rights, MsgFlags::empty(), None).unwrap();
}

/// The message that is said before the end, if any.
fn farewell(socket: &OwnedFd) -> Vec<u8> {
    let mut said = Vec::new();
    let mut buffer = [0; 256];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) | Err(nix::errno::Errno::ECONNRESET) => return said,
            Ok(count) => said.extend(&buffer[..count]),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn strangers_at_the_adoption_socket_are_sent_away() {
    const BYE: [u8; 4] = [1, 11, 0, 0];
    let Some(mut cluster) = serve("serve", "") else { return };
    let workers = cluster.pids("web");
    let pid = cluster.pid();
    let unknown = knock(&cluster);
    hello(&unknown, &[7; 16]);
    assert_eq!(farewell(&unknown), BYE, "nobody waits for it");
    cluster.wait_for("a worker that nobody knows");
    for rubbish in [b"".as_slice(), b"x", &[1, 9, 0, 0], &[1, 1, 0, 0], &[0; 1024]] {
        let socket = knock(&cluster);
        send(socket.as_raw_fd(), rubbish, MsgFlags::empty()).unwrap();
        assert_eq!(farewell(&socket), b"", "{rubbish:?}");
    }
    let before = descriptors(pid);
    let silent: Vec<OwnedFd> = (0..200).map(|_| knock(&cluster)).collect();
    assert_eq!(farewell(&silent[0]), b"", "too many");
    assert_eq!(farewell(&silent[199]), b"", "too long");
    drop(silent);
    descriptors_are_back(pid, before);
    let lines = cluster.count("sent away");
    assert!(lines <= 5, "one line each, not one a guest: {lines}");
    assert_eq!(cluster.pids("web"), workers);

    // The right token, which only root and the master's user can read, from another process.
    cluster.kill_master();
    signal(workers[0], "STOP");
    // Nobody writes it any more.
    let state = std::fs::read(cluster.path("control.state")).unwrap();
    let text = String::from_utf8_lossy(&state).into_owned();
    let mine = format!("\"pid\":{},", workers[0]);
    let after = &text[text.rfind(&mine).unwrap()..];
    let start = after.find("\"token\":\"").unwrap() + 9;
    let token: Vec<u8> = (0..16)
        .map(|index| u8::from_str_radix(&after[start + 2 * index..start + 2 * index + 2], 16))
        .collect::<Result<_, _>>()
        .unwrap();
    cluster.start_again();
    cluster.wait_for("going on after the master");
    let thief = knock(&cluster);
    hello(&thief, &token.try_into().unwrap());
    assert_eq!(farewell(&thief), b"");
    cluster.wait_for("has the token of another process");
    signal(workers[0], "CONT");
    cluster.wait_for(RESUMED);
    assert_eq!(cluster.pids("web"), workers);
}
