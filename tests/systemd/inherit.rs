//! Workers that accept by themselves under real systemd, as another user, at an address and at a Unix
//! socket of one `.socket` unit: any program that takes listening sockets, and native ones.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::machine::Machine;
use crate::service::{drop_in, install, paced, pool, reload, wait_answers, web};
use crate::support::PATIENCE;

crate::scenarios!(
    any_program_serves_as_another_user_from_two_sockets,
    native_workers_accept_as_another_user_from_two_sockets,
);

/// New connections a second.
const RATE: u32 = 100;
/// The second socket of the unit.
const SOCKET: &str = "/run/rcluster-web.sock";

/// Clients of the Unix socket, one after the other, until they are told to stop.
struct UnixLoad {
    thread: JoinHandle<Vec<String>>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

impl UnixLoad {
    fn start(path: PathBuf) -> UnixLoad {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stops, counts) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = std::thread::spawn(move || {
            let mut failed = Vec::new();
            while !stops.load(Relaxed) {
                match exchange(&path) {
                    Ok(()) => _ = counts.fetch_add(1, Relaxed),
                    Err(why) => failed.push(why),
                }
            }
            failed
        });
        UnixLoad { thread, stop, answered }
    }

    fn wait(&self, more: u64) {
        let enough = self.answered.load(Relaxed) + more;
        let end = Instant::now() + PATIENCE;
        while self.answered.load(Relaxed) < enough {
            assert!(Instant::now() < end, "clients of the Unix socket are not answered any more");
            std::thread::yield_now();
        }
    }

    fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Relaxed);
        let failed = self.thread.join().unwrap();
        (self.answered.load(Relaxed), failed)
    }
}

fn exchange(path: &Path) -> Result<(), String> {
    let said = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let mut stream = UnixStream::connect(path).map_err(said("connect"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(said("set up"))?;
    let request = "GET /pid HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).map_err(said("send"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(said("receive"))?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(format!("answered {answer:?}")) }
}

/// Looks all the time whether a socket has become a blocking one, for those who have it.
struct Blocking {
    thread: JoinHandle<(u64, u64)>,
    stop: Arc<AtomicBool>,
}

impl Blocking {
    /// Of the Unix socket, as a worker has it.
    fn watch(machine: &Machine, worker: u64) -> Blocking {
        const LISTENS: &str = "00010000";
        let sockets = machine.sh("cat /proc/net/unix").ok().text;
        let words = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut found = words.filter(|words| words.last() == Some(&SOCKET) && words[3] == LISTENS);
        let wanted = format!("socket:[{}]", found.next().unwrap()[6]);
        let is_it = |it: &std::fs::DirEntry| {
            std::fs::read_link(it.path()).is_ok_and(|link| link == Path::new(&wanted))
        };
        let folder = std::fs::read_dir(machine.path(&format!("/proc/{worker}/fd"))).unwrap();
        let number = folder.flatten().find(is_it).unwrap().file_name();
        let place = machine.path(&format!("/proc/{worker}/fdinfo")).join(number);
        let stop = Arc::new(AtomicBool::new(false));
        let stops = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut looks, mut blocks) = (0, 0);
            while !stops.load(Relaxed) {
                let text = std::fs::read_to_string(&place).unwrap();
                let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
                let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
                looks += 1;
                blocks += u64::from(flags & nix::libc::O_NONBLOCK == 0);
            }
            (looks, blocks)
        });
        Blocking { thread, stop }
    }

    /// How often it was looked at, and how often it did.
    fn finish(self) -> (u64, u64) {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

/// The pool's workers: their process ids, and what they say.
fn workers(machine: &Machine) -> Vec<(u64, String)> {
    let status = machine.sh("rcluster status --json").ok().text;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let workers = status["pools"][0]["workers"].as_array().unwrap();
    let serving = workers.iter().filter(|worker| worker["state"] == "serving");
    let said = |worker: &serde_json::Value| worker["said"].as_str().unwrap_or("").to_owned();
    serving.map(|worker| (worker["pid"].as_u64().unwrap(), said(worker))).collect()
}

fn pids(machine: &Machine) -> Vec<u64> {
    workers(machine).into_iter().map(|(pid, _)| pid).collect()
}

/// Installs the service with the drop-in for other users, and a socket unit of two sockets.
fn serve(machine: &Machine, config: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    machine.put(
        root.join("systemd/examples/workers-as-other-users.conf"),
        "/etc/systemd/system/rcluster.service.d/users.conf",
    );
    drop_in(machine, "rcluster.socket", &format!("[Socket]\nListenStream={SOCKET}\n"));
    install(machine, config);
    machine.sh("systemctl start rcluster.service").ok();
}

/// Reloads and a killed master, under load at both sockets; then the end.
fn nobody_is_lost(machine: &Machine, name: &str) {
    let users = |machine: &Machine| {
        pids(machine)
            .iter()
            .map(|pid| machine.sh(&format!("stat -c %U /proc/{pid}")).ok().text.trim().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(users(machine), ["nobody", "nobody"], "{}", machine.journal("-u rcluster"));
    let coming = paced(machine, RATE, "/pid");
    let local = UnixLoad::start(machine.path(SOCKET));
    wait_answers(&coming, 100);
    local.wait(100);
    for _ in 0..4 {
        let before = pids(machine);
        reload(machine).ok();
        assert!(pids(machine).iter().all(|pid| !before.contains(pid)), "all are new");
        wait_answers(&coming, 50);
        local.wait(50);
    }
    // Nobody stands between clients and workers, so nobody is missed.
    let (before, master) = (pids(machine), machine.property("MainPID"));
    let blocking = Blocking::watch(machine, before[0]);
    machine.sh("systemctl kill -s KILL --kill-whom=main rcluster").ok();
    machine.wait_for(&format!(
        "test $(systemctl show --value -p MainPID rcluster) != {master} \
         && systemctl is-active --quiet rcluster"
    ));
    assert_eq!(pids(machine), before, "taken over: {}", machine.journal("-u rcluster"));
    // Whoever accepts holds up all others where the socket blocks.
    let (looks, blocks) = blocking.finish();
    assert!(looks > 100, "{looks} looks");
    assert_eq!(blocks, 0, "of {looks} looks at a listening socket so many saw it block");
    reload(machine).ok();
    wait_answers(&coming, 50);
    local.wait(50);
    let (tally, (answered, failed)) = (coming.finish(), local.finish());
    println!(
        "{:?}: {name}, 5 reloads and a killed master: {} answered, {} failed, longest {:?}; at the Unix \
         socket {answered} answered, {} failed",
        machine.tree,
        tally.answered,
        tally.failed.len(),
        tally.longest,
        failed.len(),
    );
    assert_eq!((tally.failed, failed), (Vec::new(), Vec::new()));
    assert_eq!(users(machine), ["nobody", "nobody"]);
    machine.sh("systemctl stop rcluster.socket rcluster.service").ok();
    assert_eq!(machine.processes(), 0, "{}", machine.journal("-n 50"));
    machine
        .wait_for("! systemctl is-active rcluster.service rcluster-adopt.socket | grep -w active");
}

fn any_program_serves_as_another_user_from_two_sockets(machine: &Machine) {
    if machine.sh("perl -MSocket -e 1").code != 0 {
        println!("LEFT OUT: there is no perl in {:?}", machine.tree);
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    machine.put(root.join("tests/systemd/inherited.pl"), "/usr/local/lib/inherited.pl");
    let command = "\"/usr/bin/perl\", \"/usr/local/lib/inherited.pl\"";
    let extra = "kind = \"inherit\"\nready = \"notify\"\nuser = \"nobody\"";
    serve(machine, &pool("web", command, extra));
    // What a worker says arrives, though it is another user's.
    let nobody = machine.sh("id -u nobody").ok().text.trim().to_owned();
    let said = format!("serves as user {nobody}");
    assert!(workers(machine).iter().all(|(_, it)| *it == said), "{:?}", workers(machine));
    nobody_is_lost(machine, "inherit");
    assert!(!machine.journal("-u rcluster").contains("is ignored"), "every notice is believed");
}

fn native_workers_accept_as_another_user_from_two_sockets(machine: &Machine) {
    serve(machine, &web("accept = \"workers\"\nuser = \"nobody\""));
    nobody_is_lost(machine, "native");
    let journal = machine.journal("-u rcluster");
    assert!(!journal.contains("connections cut"), "{journal}");
    assert!(!journal.contains("NonBlocking="), "{journal}");
    // A unit of one's own may forget it.
    drop_in(machine, "rcluster.service", "[Service]\nNonBlocking=no\n");
    machine.sh("systemctl start rcluster.service").ok();
    // The log thread may still be about to write it.
    let warned = machine
        .wait_for("journalctl --sync; journalctl -u rcluster | grep 'should have NonBlocking=yes'");
    assert_eq!(warned.lines().count(), 1, "{warned}");
}
