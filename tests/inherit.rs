//! Workers that take listening sockets from systemd: any program that does runs here, many times over.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use support::load::Load;
use support::sockets::kill_counting;
use support::trial::{http, two_answer};
use support::{Cluster, PATIENCE, get, is_alive, load_time, pool, signal, wait_gone};

/// New connections a second.
const RATE: u32 = 100;
const RESUMED: &str = "everything is as before the master was killed";

/// A pool `web` of workers in these words, and whether they can be run here at all.
fn web(words: &str, extra: &str) -> Option<String> {
    let python = "/usr/bin/python3";
    if !std::path::Path::new(python).exists() {
        println!("LEFT OUT: there is no {python}");
        return None;
    }
    let worker = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/workers/inherited.py");
    let words: String = words.split_whitespace().map(|word| format!(", \"{word}\"")).collect();
    let command = format!("\"{python}\", \"{worker}\"{words}");
    let extra = format!("kind = \"inherit\"\n{extra}");
    Some(pool("web", &command, "\"127.0.0.1:{port}\"", &extra))
}

const NOTIFY: &str = "ready = \"notify\"";

fn serve(words: &str, extra: &str) -> Option<Cluster> {
    Some(Cluster::serve(&web(words, extra)?))
}

/// Waits until this holds.
fn until(what: &str, cluster: &Cluster, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}\n{}", cluster.log().join("\n"));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until every worker has served for so many seconds.
fn serve_for(cluster: &Cluster, seconds: f64) {
    until("they have served for a while", cluster, || {
        let pool = cluster.status().pools.remove(0);
        pool.workers.iter().all(|worker| worker.serving_for.is_some_and(|time| time > seconds))
    });
}

fn pid(cluster: &Cluster) -> u32 {
    cluster.get("/pid").unwrap().parse().unwrap()
}

#[test]
fn two_workers_serve_from_one_socket_and_see_what_systemd_would_give_them() {
    let Some(cluster) = serve("", NOTIFY) else { return };
    let load = Load::closed(cluster.port, 8, "/pid");
    two_answer(cluster.port, |port, _| http(port, "/pid"));
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    let serving = cluster.pids("web");
    assert_eq!(serving.len(), 2);
    assert!(tally.by_pid.keys().all(|pid| serving.contains(&pid.parse().unwrap())));
    assert_eq!(cluster.get("/fds").unwrap(), "1");
    assert_eq!(cluster.get("/names").unwrap(), format!("127.0.0.1_{}", cluster.port));
    assert_eq!(cluster.get("/blocking").unwrap(), "no");
    assert!(cluster.get("/env/NOTIFY_SOCKET").unwrap().starts_with("@rcluster/"));
    assert_eq!(cluster.get("/env/WATCHDOG_USEC").unwrap(), "30000000");
    assert_eq!(cluster.get("/env/RCLUSTER_POOL").unwrap(), "web");
    let status = cluster.status().pools.remove(0);
    assert_eq!((status.accept.as_str(), status.accepted), ("workers", 0));
    assert!(status.workers.iter().all(|worker| worker.said == "answers"), "{status:?}");
    let page = cluster.rcluster(&["status"]);
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.contains("its workers accept by themselves") && page.contains("says: answers"));
}

#[test]
fn placeholders_stand_for_the_sockets_and_the_worker() {
    let told = "{fd} {addr} {port} {count} {slot} {pid} {master-pid} {other}";
    let extra = format!("{NOTIFY}\nworkers = 1\nenvironment = {{ TOLD = \"{told}\" }}");
    let Some(config) = web("", &extra) else { return };
    let cluster = Cluster::serve(&config.replacen("workers = 2\n", "", 1));
    // What stands for a port in this file stood for this one already.
    let (port, worker, master) = (cluster.port, pid(&cluster), cluster.pid());
    let expected = format!("3 127.0.0.1 {port} 1 1 {worker} {master} {{other}}");
    assert_eq!(cluster.get("/env/TOLD").unwrap(), expected);
}

#[test]
fn a_reload_fails_nobody() {
    let Some(cluster) = serve("", NOTIFY) else { return };
    let load = Load::paced(cluster.port, RATE, "/slow/20");
    let end = Instant::now() + load_time();
    let mut reloads = 0;
    while Instant::now() < end || reloads == 0 {
        cluster.reload().unwrap();
        reloads += 1;
    }
    let tally = load.finish();
    println!("{} answered over {reloads} reloads, {} failed", tally.answered, tally.failed.len());
    assert_eq!(tally.failed, Vec::<String>::new());
    assert!(tally.answered > 0);
    let line = cluster.wait_for("reload of generation 2: ");
    assert!(line.ends_with("connections of 2 workers that accept by themselves are not counted"));
}

#[test]
fn a_worker_that_is_killed_costs_only_its_own() {
    let Some(cluster) = serve("", NOTIFY) else { return };
    let load = Load::paced(cluster.port, RATE, "/slow/200");
    // By then there are always some in hand.
    until("somebody is answered", &cluster, || load.answered.load(SeqCst) > 0);
    let victim = cluster.pids("web")[0];
    let had = kill_counting(victim);
    let line = cluster.wait_for("web/1 (pid");
    assert!(!line.is_empty());
    let line = cluster.wait_for("lost: was killed by SIGKILL");
    assert!(line.ends_with("; what it was answering is not known"), "{line}");
    until("the slot is filled", &cluster, || cluster.pids("web").len() == 2);
    let tally = load.finish();
    println!("{} answered, {} failed of {had}", tally.answered, tally.failed.len());
    assert!(had > 0 && tally.failed.len() <= had, "it had {had}: {:?}", tally.failed);
}

#[test]
fn a_slow_answer_is_finished_before_the_end() {
    let Some(mut cluster) = serve("", NOTIFY) else { return };
    let port = cluster.port;
    let clients: Vec<_> =
        (0..4).map(|_| std::thread::spawn(move || get(port, "/slow/1000"))).collect();
    cluster.wait_for_nth(": slow 1000", 4);
    cluster.signal("TERM");
    for client in clients {
        client.join().unwrap().unwrap();
    }
    assert!(cluster.wait_end().success());
    assert_eq!(cluster.count("has not stopped in time"), 0);
    assert!(get(port, "/").is_err());
}

#[test]
fn who_waits_in_the_queue_is_served_before_the_end() {
    let Some(mut cluster) = serve("", NOTIFY) else { return };
    let workers = cluster.pids("web");
    workers.iter().for_each(|&pid| signal(pid, "STOP"));
    // Who is connected waits in the kernel's queue.
    let connect = |_| TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    let clients: Vec<TcpStream> = (0..20).map(connect).collect();
    cluster.signal("TERM");
    cluster.wait_for("SIGTERM: draining");
    workers.iter().for_each(|&pid| signal(pid, "CONT"));
    for mut client in clients {
        client.write_all(b"GET /pid HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    assert!(cluster.wait_end().success());
}

#[test]
fn one_that_never_gets_ready_is_rolled_back() {
    let Some(cluster) = serve("", NOTIFY) else { return };
    let before = cluster.pids("web");
    let extra = format!("{NOTIFY}\nstart-timeout = \"700ms\"");
    cluster.configure(&web("never", &extra).unwrap());
    let why = cluster.reload().unwrap_err();
    assert!(why.contains("web/1: was not ready within 700ms"), "{why}");
    assert_eq!(cluster.pids("web"), before);
    // More time is more time: it is asked for before the limit is over.
    let extra = format!("{NOTIFY}\nstart-timeout = \"4s\"");
    cluster.configure(&web("never extend", &extra).unwrap());
    cluster.reload().unwrap();
}

#[test]
fn how_a_worker_gets_ready_can_be_seen_or_waited_for() {
    for (words, ready) in [
        ("quiet", "ready = \"probe\""),
        ("quiet accept", "ready = \"probe\"\nblocking = true\nstop-signal = \"SIGTERM\""),
        ("quiet unready", "ready = \"settle\"\nsettle = \"200ms\""),
        ("", "ready = \"settle\"\nsettle = \"50m\"\nstart-timeout = \"1h\""),
    ] {
        let Some(mut cluster) = serve(words, ready) else { return };
        if !words.contains("unready") {
            pid(&cluster);
        }
        cluster.signal("TERM");
        assert!(cluster.wait_end().success(), "{words}");
    }
    let Some(cluster) = web("quiet unready", "ready = \"probe\"\nstart-timeout = \"500ms\"") else {
        return;
    };
    let cluster = Cluster::start(&cluster);
    cluster.wait_for("was not ready within 500ms");
}

#[test]
fn a_blocking_socket_is_one_for_all() {
    let Some(cluster) = serve("accept", &format!("{NOTIFY}\nblocking = true")) else { return };
    assert_eq!(cluster.get("/blocking").unwrap(), "yes");
    cluster.reload().unwrap();
    // Who stands in accept may take one more in the moment in which it ends.
    cluster.wait_for_nth(" left", 2);
    assert_eq!(cluster.get("/blocking").unwrap(), "yes");
}

#[test]
fn an_einhorn_worker_acknowledges() {
    let extra = format!("{NOTIFY}\nenvironment = {{ EINHORN_FD_COUNT = \"1\" }}");
    let Some(mut cluster) = serve("einhorn", &extra) else { return };
    assert_eq!(cluster.get("/env/EINHORN_MASTER_PID").unwrap(), cluster.pid().to_string());
    // A stranger, and rubbish.
    let path = cluster.path("control.einhorn");
    let mut stranger = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stranger.write_all(b"{\"command\":\"worker:ack\",\"pid\":1}\n").unwrap();
    cluster.wait_for("somebody who is no worker has come to EINHORN_SOCK_PATH");
    cluster.reload().unwrap();
    assert!(cluster.rcluster(&["reload", "--check"]).status.success());
    assert!(cluster.rcluster(&["upgrade"]).status.success());
    cluster.reload().unwrap();
    cluster.signal("TERM");
    assert!(cluster.wait_end().success());
    assert!(!path.exists(), "the socket is left behind");
}

#[test]
fn a_stranger_is_not_believed_and_a_flood_is_survived() {
    let Some(cluster) = serve("", NOTIFY) else { return };
    let name = cluster.get("/env/NOTIFY_SOCKET").unwrap();
    let victim = cluster.pids("web");
    let socket = UnixDatagram::unbound().unwrap();
    let address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
    // It waits while the queue is full, as sd_notify does.
    for _ in 0..2000 {
        socket.send_to_addr(b"STOPPING=1\nWATCHDOG=trigger\nMAINPID=1\n", &address).unwrap();
    }
    let line = cluster.wait_for("is spoken for by process");
    assert!(line.contains("which is gone or none of its own; it is ignored"), "{line}");
    assert_eq!(cluster.count("is spoken for by process"), 1, "said once");
    assert_eq!(cluster.pids("web"), victim);
    // Of its own processes each is believed, and rubbish is said once.
    for rubbish in ["rubbish", "MAINPID=x", "%ff", "MAINPID=1"] {
        for _ in 0..20 {
            cluster.get(&format!("/notify/{rubbish}")).unwrap();
        }
    }
    assert!(cluster.count("it is ignored") <= 3, "{}", cluster.log().join("\n"));
    cluster.get("/spawn/STATUS=a%20child").unwrap();
    let said = || cluster.status().pools[0].workers.iter().any(|worker| worker.said == "a child");
    until("the child is heard", &cluster, said);
    assert_eq!(cluster.pids("web"), victim);
}

#[test]
fn one_that_stops_by_itself_is_replaced_and_no_loss() {
    let Some(cluster) = serve("", NOTIFY) else { return };
    let before = cluster.pids("web");
    serve_for(&cluster, 1.1);
    signal(before[0], "TERM");
    cluster.wait_for("drains: it says that it stops");
    until("the slot is filled", &cluster, || {
        cluster.pids("web").len() == 2 && !cluster.pids("web").contains(&before[0])
    });
    assert!(wait_gone(before[0], PATIENCE));
    assert_eq!(cluster.count("lost:"), 0);
}

#[test]
fn one_that_does_not_ping_any_more_is_replaced_and_one_that_never_did_lives() {
    let extra = format!("{NOTIFY}\nwatchdog = \"1s\"");
    let Some(cluster) = serve("ping", &extra) else { return };
    serve_for(&cluster, 2.5);
    assert_eq!(cluster.count("stalled"), 0);
    cluster.get("/hang").unwrap();
    cluster.wait_for("stalled: it has not said WATCHDOG=1 for 1.0 s");
    until("the slot is filled", &cluster, || cluster.pids("web").len() == 2);
    // It may be gone before it can answer.
    let _ = cluster.get("/notify/WATCHDOG=trigger");
    cluster.wait_for("says that it does not work any more (WATCHDOG=trigger)");
    let Some(cluster) = serve("", &extra) else { return };
    let before = cluster.pids("web");
    serve_for(&cluster, 2.5);
    assert_eq!(cluster.pids("web"), before);
}

#[test]
fn what_is_left_of_a_family_finishes() {
    let extra = format!("{NOTIFY}\nstop-signal = \"SIGQUIT\"");
    let Some(cluster) = serve("family", &extra) else { return };
    let port = cluster.port;
    let clients: Vec<_> =
        (0..4).map(|_| std::thread::spawn(move || get(port, "/slow/1500"))).collect();
    cluster.wait_for_nth(": slow 1500", 4);
    cluster.reload().unwrap();
    for client in clients {
        client.join().unwrap().unwrap();
    }
    cluster.wait_for_nth(" left", 2);
    // Nobody is waited for beyond the limit.
    let extra = format!("{extra}\ndrain-timeout = \"1s\"");
    cluster.configure(&web("family", &extra).unwrap());
    cluster.reload().unwrap();
    let child = pid(&cluster);
    let slow = std::thread::spawn(move || get(port, "/slow/20000"));
    cluster.wait_for(": slow 20000");
    cluster.reload().unwrap();
    cluster.wait_for("has not stopped in time; it is ended");
    assert!(wait_gone(child, PATIENCE));
    assert!(slow.join().unwrap().is_err());
}

#[test]
fn one_that_does_not_stop_is_ended() {
    let extra = format!("{NOTIFY}\ndrain-timeout = \"500ms\"");
    let Some(cluster) = serve("stubborn", &extra) else { return };
    let before = cluster.pids("web");
    cluster.reload().unwrap();
    cluster.wait_for_nth("has not stopped in time; it is ended", 2);
    for pid in before {
        assert!(wait_gone(pid, PATIENCE));
    }
}

#[test]
fn a_check_takes_no_client() {
    // The checked one waits for clients for a second before it counts as ready.
    let Some(cluster) = serve("quiet", "ready = \"settle\"\nsettle = \"1s\"") else { return };
    let load = Load::paced(cluster.port, RATE, "/pid");
    let before: Vec<String> = cluster.pids("web").iter().map(ToString::to_string).collect();
    for _ in 0..3 {
        let checked = cluster.rcluster(&["reload", "--check"]);
        let text = String::from_utf8(checked.stdout).unwrap();
        assert!(checked.status.success() && text.contains("web: ready in"), "{text}");
    }
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    assert!(tally.by_pid.keys().all(|pid| before.contains(pid)), "{:?}", tally.by_pid);
}

#[test]
fn an_upgrade_of_the_master_goes_unnoticed() {
    let Some(cluster) = serve("ping", &format!("{NOTIFY}\nwatchdog = \"2s\"")) else { return };
    let workers = cluster.pids("web");
    let load = Load::paced(cluster.port, RATE, "/slow/10");
    for _ in 0..3 {
        let upgraded = cluster.rcluster(&["upgrade"]);
        assert!(upgraded.status.success(), "{upgraded:?}");
    }
    cluster.get("/notify/STATUS=after").unwrap();
    let said = || cluster.status().pools[0].workers.iter().any(|worker| worker.said == "after");
    until("it is heard after the upgrade", &cluster, said);
    let tally = load.finish();
    println!("{} answered over 3 upgrades, {} failed", tally.answered, tally.failed.len());
    assert_eq!(tally.failed, Vec::<String>::new());
    assert_eq!(cluster.pids("web"), workers);
    cluster.reload().unwrap();
    // One that pinged before is still looked after.
    cluster.rcluster(&["upgrade"]);
    cluster.get("/hang").unwrap();
    cluster.wait_for("stalled: it has not said WATCHDOG=1");
}

#[test]
fn a_killed_master_costs_nobody_anything() {
    const KILLS: usize = 4;
    let Some(mut cluster) = serve("", NOTIFY) else { return };
    let workers = cluster.pids("web");
    let load = Load::paced(cluster.port, RATE, "/slow/10");
    for kill in 1..=KILLS {
        cluster.kill_master();
        get(cluster.port, "/pid").unwrap();
        cluster.start_again();
        cluster.wait_for_nth(RESUMED, kill);
        assert_eq!(cluster.pids("web"), workers, "nobody was started");
    }
    cluster.get("/notify/STATUS=after").unwrap();
    let said = || cluster.status().pools[0].workers.iter().any(|worker| worker.said == "after");
    until("it is heard by the next master", &cluster, said);
    let tally = load.finish();
    println!("{} answered over {KILLS} kills, {} failed", tally.answered, tally.failed.len());
    assert_eq!(tally.failed, Vec::<String>::new());
    cluster.reload().unwrap();
    for pid in workers {
        assert!(wait_gone(pid, PATIENCE), "{pid} is left behind");
    }
    let last = cluster.pids("web");
    cluster.signal("TERM");
    assert!(cluster.wait_end().success());
    assert!(last.into_iter().all(|pid| !is_alive(pid)));
}

#[test]
fn a_pool_without_a_port_is_supervised_as_any_other() {
    let Some(config) = web("resident", NOTIFY) else { return };
    let cluster = Cluster::serve(&config.replace("listen = [\"127.0.0.1:{port}\"]", "listen = []"));
    let before = cluster.pids("web");
    assert_eq!(before.len(), 2);
    let environment = std::fs::read(format!("/proc/{}/environ", before[0])).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(!environment.contains("LISTEN_") && environment.contains("NOTIFY_SOCKET=@rcluster/"));
    cluster.reload().unwrap();
    assert!(before.into_iter().all(|pid| wait_gone(pid, PATIENCE)));
    signal(cluster.pids("web")[0], "KILL");
    cluster.wait_for("lost: was killed by SIGKILL");
    until("the slot is filled", &cluster, || cluster.pids("web").len() == 2);
}
