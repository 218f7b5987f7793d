//! A reload is a transaction: one worker of the new generation is tried first, what fails goes back as
//! a whole, and what was done is remembered.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcluster::wire::control::{PastReload, ReloadsResults};
use serde_json::json;
use support::load::Load;
use support::{Cluster, PATIENCE, RCLUSTER, is_alive, pool, wait_gone, web};

/// What happens to a pool's program, which becomes the demo's worker, once it is on trial: the signal
/// that it gets.
fn program(folder: &Path, fate: Option<&str>) {
    let fate = fate.map_or_else(String::new, |signal| {
        let it = folder.join(ON_TRIAL).display().to_string();
        format!("(while [ ! -e '{it}' ]; do sleep 0.01; done; kill -{signal} $$) &\n")
    });
    let text = format!("#!/bin/sh\n{fate}exec {RCLUSTER} demo-worker http\n");
    // As a deploy does it: a new file that takes the old one's name.
    let (new, path) = (folder.join("app.new"), folder.join("app"));
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// The file that tells a program that it is on trial.
const ON_TRIAL: &str = "on-trial";

/// A reload of a program that meets its fate on trial. The sentence of the refusal.
fn reload_to_its_fate(cluster: &Cluster, signal: &str) -> String {
    program(cluster.folder.path(), Some(signal));
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| cluster.reload().unwrap_err());
        cluster.wait_for("is on trial for ");
        std::fs::write(cluster.path(ON_TRIAL), "").unwrap();
        reload.join().unwrap()
    })
}

fn app(extra: &str) -> String {
    pool("web", "\"{folder}/app\"", "\"127.0.0.1:{port}\"", extra)
}

/// A master whose pool runs `app`, which is good.
fn serve(extra: &str) -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    program(folder.path(), None);
    let port = support::free_port();
    let mut command = std::process::Command::new(RCLUSTER);
    command.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
    let cluster = Cluster::launch(folder, port, &app(extra), &mut command);
    cluster.wait_for("generation 1 serves");
    cluster
}

fn history(cluster: &Cluster) -> Vec<PastReload> {
    let answer = cluster.call("Reloads", json!({}));
    let reloads: ReloadsResults = serde_json::from_value(answer.parameters).unwrap();
    reloads.reloads
}

/// What `rcluster` says and its exit code.
fn run(cluster: &Cluster, arguments: &[&str]) -> (Option<i32>, String) {
    let output = cluster.rcluster(arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap().trim().to_owned())
}

fn assert_balanced(cluster: &Cluster) {
    for pool in cluster.status().pools {
        let sum = pool.finished + pool.in_hand + pool.held + pool.refused + pool.cut;
        assert_eq!(pool.accepted, sum, "{pool:?}");
    }
}

/// Deploys what has this fate under load. The sentence of the refusal; no request fails but those that
/// the canary itself had taken.
fn deploy(extra: &str, signal: &str) -> String {
    let cluster = serve(extra);
    let before = cluster.pids("web");
    let load = Load::paced(cluster.port, 100, "/pid");
    let refusal = reload_to_its_fate(&cluster, signal);
    assert_eq!(cluster.pids("web"), before, "no old worker has made room: {refusal}");
    let tally = load.finish();
    let line = cluster.wait_for("reload of generation 2: ");
    let cut = cluster.status().pools[0].cut;
    assert!(tally.failed.len() as u64 <= cut, "{line}: {} cut, {:?}", cut, tally.failed);
    assert_balanced(&cluster);
    let last = history(&cluster).remove(0);
    assert_eq!((last.outcome.as_str(), last.generation), ("rolled back", Some(2)));
    assert_eq!(format!("rolled back: {}", last.message), refusal);
    // A good one goes through after that.
    program(cluster.folder.path(), None);
    cluster.configure(&app(""));
    cluster.reload().unwrap();
    assert_ne!(cluster.pids("web"), before);
    refusal
}

#[test]
fn a_canary_that_crashes_within_its_time_takes_the_reload_back() {
    let refusal = deploy("canary = \"20s\"", "ABRT");
    let sentence = "rolled back: web/1: the canary was killed by SIGABRT after ";
    assert!(refusal.starts_with(sentence), "{refusal}");
    let refusal = deploy("canary = \"20s\"", "KILL");
    assert!(refusal.contains("web/1: the canary was killed by SIGKILL after "), "{refusal}");
}

/// Every second the canary is asked how it is.
const PROBED: &str =
    "canary = \"30s\"\ndrain-timeout = \"1s\"\nprobe = \"/\"\nprobe-timeout = \"800ms\"";

#[test]
fn a_canary_that_hangs_within_its_time_takes_the_reload_back() {
    let refusal = deploy("canary = \"20s\"\ndrain-timeout = \"1s\"", "STOP");
    assert!(refusal.contains("web/1: the canary took nothing for "), "{refusal}");
    let refusal = deploy(PROBED, "STOP");
    let sentence = "the canary is not well: its probe was not answered within 800ms";
    assert!(refusal.contains(sentence) || refusal.contains("took nothing for"), "{refusal}");
}

#[test]
fn a_probe_that_nobody_took_is_no_client_of_another_worker() {
    // Without clients, so that only the probe is in its queue: it is read back when it drains.
    let cluster = serve(PROBED);
    let refusal = reload_to_its_fate(&cluster, "STOP");
    let sentence = "web/1: the canary is not well: its probe was not answered within 800ms";
    // On a busy machine it may be found out by its silence first.
    assert!(refusal.contains(sentence) || refusal.contains("took nothing for"), "{refusal}");
    let line = cluster.wait_for("reload of generation 2: ");
    assert!(line.ends_with("0 handed back, 0 re-dispatched, 0 cut"), "{line}");
    let pool = cluster.status().pools.remove(0);
    let of_old: u64 = pool.workers.iter().map(|worker| worker.connections).sum();
    // Its first probes were answered, the last came back.
    assert_eq!((pool.finished, of_old), (pool.accepted, 0), "{pool:?}");
    assert!(pool.accepted > 0, "{pool:?}");
}

#[test]
fn a_canary_that_fails_its_probe_gets_no_client() {
    let probed = "probe = \"/healthz\"";
    let cluster = Cluster::serve(&web(probed));
    let before = cluster.pids("web");
    let load = Load::paced(cluster.port, 200, "/pid");
    for (config, sentence) in [
        // A service that speaks something else.
        (
            pool(
                "web",
                "\"{rcluster}\", \"demo-worker\", \"echo\"",
                "\"127.0.0.1:{port}\"",
                probed,
            ),
            "rolled back: web/1: its probe was answered \"Now: ",
        ),
        (
            web("probe = \"/sleep/3000\"\nprobe-timeout = \"300ms\""),
            "rolled back: web/1: its probe was not answered within 300ms",
        ),
        (
            web("probe = { send = \"GET /pid HTTP/1.0\\r\\n\\r\\n\", expect = \"PONG\" }"),
            "rolled back: web/1: its probe was answered \"HTTP/1.1 200 OK",
        ),
        // One that has no HTTP at all in its answer is closed: a wrong request.
        (
            web("probe = { send = \"\\u0001\\r\\n\\r\\n\", expect = \"HTTP/1.1 200\" }"),
            "rolled back: web/1: its probe was answered \"HTTP/1.1 4",
        ),
    ] {
        cluster.configure(&config);
        let refusal = cluster.reload().unwrap_err();
        assert!(refusal.starts_with(sentence), "{refusal}");
        assert_eq!(cluster.pids("web"), before);
        assert_balanced(&cluster);
    }
    cluster.configure(&web(probed));
    cluster.reload().unwrap();
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    assert_eq!(cluster.status().pools[0].cut, 0, "a probe is no client");
    // Only the two good generations, of two workers each, have answered anybody.
    assert!(tally.by_pid.len() <= 4, "{:?}", tally.by_pid);
}

#[test]
fn a_good_canary_serves_beside_the_old_workers_until_its_time_is_over() {
    let good =
        "canary = \"5s\"\nprobe = { send = \"GET /pid HTTP/1.0\\r\\n\\r\\n\", expect = \"200\" }";
    let cluster = Cluster::serve(&web(good));
    let before = cluster.pids("web");
    let load = Load::paced(cluster.port, 200, "/pid");
    cluster.signal("USR1");
    cluster.wait_for("is on trial for 5.0 s");
    let pids = cluster.pids("web");
    assert_eq!(pids.len(), 3, "{pids:?}");
    assert!(before.iter().all(|pid| pids.contains(pid)), "{before:?} {pids:?}");
    assert_eq!(cluster.status().state, "reloading");
    cluster.wait_for("generation 2 serves");
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    let canary = pids.iter().find(|pid| !before.contains(pid)).unwrap();
    assert!(tally.by_pid.contains_key(&canary.to_string()), "it had its share");
    let last = history(&cluster).remove(0);
    assert!(last.took.unwrap() >= 5.0, "{last:?}");
    assert_eq!(last.asked_by, ["SIGUSR1"]);
    assert_balanced(&cluster);
    // Somebody who crashes after the trial does not take it back.
    assert_eq!(cluster.status().pools[0].generation, Some(2));
}

#[test]
fn a_check_says_what_a_reload_would_come_to_and_changes_nothing() {
    let cluster = Cluster::serve(&web("probe = \"/healthz\""));
    let before = cluster.pids("web");
    let load = Load::paced(cluster.port, 300, "/pid");
    let (code, text) = run(&cluster, &["reload", "--check"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("web: ready in ") && text.contains(", probe answered 200 in "));
    assert!(text.ends_with("; nothing was changed") && text.lines().count() == 1, "{text}");
    let line = cluster.wait_for("web is checked: a worker without clients was started (pid ");
    let pid = line.rsplit_once("(pid ").unwrap().1.trim_end_matches(')').parse().unwrap();
    assert!(!is_alive(pid), "it is gone when the answer comes");
    let quick = "start-timeout = \"300ms\"";
    for (config, sentence) in [
        (pool("web", "\"/no/such\"", "", ""), "web: the program `/no/such` does not exist"),
        (pool("web", "\"/bin/false\"", "", ""), "web: exited with status 1 before it was ready;"),
        (pool("web", "\"/bin/sleep\", \"99\"", "", quick), "web: was not ready within 300ms;"),
        (web("user = \"no-such-user\""), "web: there is no user no-such-user;"),
        (web("comand = 1"), "unknown key `comand`"),
        (
            web("probe = { send = \"x\\r\\n\\r\\n\", expect = \"PONG\" }"),
            "but its probe was answered",
        ),
        (
            web("") + &pool("a", "\"/bin/false\"", "", "") + &pool("b", "\"/no/such\"", "", ""),
            "a: exited with status 1 before it was ready; b: the program `/no/such`",
        ),
    ] {
        cluster.configure(&config);
        let (code, text) = run(&cluster, &["reload", "--check"]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(sentence) && text.lines().count() == 1, "{text}");
    }
    let (code, text) = run(&cluster, &["reload", "--check", "nobody"]);
    assert!(code == Some(1) && text.contains("there is no pool nobody; there are: "), "{text}");
    // Another address is tried, and let go.
    let other = support::free_port();
    let elsewhere = format!("\"127.0.0.1:{{port}}\", \"127.0.0.1:{other}\"");
    let command = "\"{rcluster}\", \"demo-worker\", \"http\"";
    cluster.configure(&pool("web", command, &elsewhere, ""));
    assert_eq!(run(&cluster, &["reload", "--check", "web"]).0, Some(0));
    assert!(TcpStream::connect(("127.0.0.1", other)).is_err(), "nobody listens there");
    let taken = std::net::TcpListener::bind(("127.0.0.1", other)).unwrap();
    let (code, text) = run(&cluster, &["reload", "--check", "web"]);
    assert!(code == Some(1) && text.contains("another program listens there"), "{text}");
    drop(taken);
    assert_eq!(load.finish().failed, Vec::<String>::new());
    assert_eq!(cluster.pids("web"), before);
    let status = cluster.status();
    assert_eq!(status.pools[0].generation, Some(1), "{status:?}");
    assert_eq!(status.last_reload, None, "a check is no reload");
    assert_eq!(history(&cluster), []);
    assert_balanced(&cluster);
}

#[test]
fn a_check_does_not_wait_for_a_rollout_and_nobody_waits_for_it() {
    let slow = "canary = \"20s\"";
    let mut cluster = Cluster::serve(&web(slow));
    cluster.signal("USR1");
    cluster.wait_for("is on trial for 20.0 s");
    let (code, text) = run(&cluster, &["reload", "--check"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(cluster.status().state, "reloading");
    // A caller who leaves takes his worker along, and another may come at once.
    cluster.configure(&pool("web", "\"/bin/sleep\", \"999\"", "", "start-timeout = \"1h\""));
    let mut stream = cluster.connect_control();
    let call = "{\"method\":\"io.rcluster.Reload\",\"parameters\":{\"check\":true}}\0";
    stream.write_all(call.as_bytes()).unwrap();
    let line = cluster.wait_for_nth("web is checked: a worker", 2);
    let pid = line.rsplit_once("(pid ").unwrap().1.trim_end_matches(')').parse().unwrap();
    let (code, text) = run(&cluster, &["reload", "--check"]);
    assert!(code == Some(1) && text.contains("is under way; try again when it is over"), "{text}");
    drop(stream);
    assert!(wait_gone(pid, PATIENCE));
    // And a stop does not leave one behind.
    let mut stream = cluster.connect_control();
    stream.write_all(call.as_bytes()).unwrap();
    let line = cluster.wait_for_nth("web is checked: a worker", 3);
    let pid = line.rsplit_once("(pid ").unwrap().1.trim_end_matches(')').parse().unwrap();
    cluster.signal("TERM");
    assert!(cluster.wait_end().success());
    assert!(wait_gone(pid, PATIENCE), "{pid} is left behind");
}

#[test]
fn a_program_that_cannot_run_is_one_good_sentence() {
    let cluster = Cluster::serve(&web(""));
    let before = cluster.pids("web");
    let file = |name: &str, bytes: &[u8], mode: u32| {
        let path = cluster.path(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    };
    // The head of a program for another machine (s390), as the kernel looks at it.
    let mut alien = b"\x7fELF\x02\x02\x01\0\0\0\0\0\0\0\0\0\0\x02\0\x16\0\0\0\x01".to_vec();
    alien.resize(512, 0);
    file("alien", &alien, 0o755);
    file("plain", b"just text\n", 0o644);
    file("lost", b"#!/no/such/interpreter\n", 0o755);
    for (name, sentence) in [
        ("missing", "/missing` does not exist"),
        ("plain", "/plain` is not executable"),
        ("alien", "/alien is built for another kind of machine"),
        ("lost", "the interpreter /no/such/interpreter of "),
    ] {
        let command = format!("\"{{folder}}/{name}\"");
        cluster.configure(&pool("web", &command, "\"127.0.0.1:{port}\"", ""));
        let (code, text) = run(&cluster, &["reload"]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(sentence) && text.lines().count() == 1, "{name}: {text}");
        assert_eq!(cluster.pids("web"), before);
    }
}

#[test]
fn reloads_are_remembered_with_who_asked_and_what_came_of_it() {
    let cluster = Cluster::serve(&web(""));
    assert_eq!(run(&cluster, &["status", "--reloads"]).1, "nobody has asked for a reload yet");
    assert_eq!(run(&cluster, &["reload"]).0, Some(0));
    cluster.signal("USR1");
    cluster.wait_for("generation 3 serves");
    cluster.configure(&web("comand = 1"));
    assert_eq!(run(&cluster, &["reload"]).0, Some(1));
    cluster.configure(&pool("web", "\"/bin/false\"", "\"127.0.0.1:{port}\"", ""));
    assert_eq!(run(&cluster, &["reload"]).0, Some(1));
    cluster.configure(&web("").replace("workers = 2", "workers = 3"));
    assert_eq!(run(&cluster, &["reload"]).0, Some(0), "a new release is rolled out again");
    cluster.configure(&web("").replace("workers = 2", "workers = 1"));
    assert_eq!(run(&cluster, &["reload"]).0, Some(0));
    let reloads = history(&cluster);
    let outcomes: Vec<(&str, Option<u64>)> =
        reloads.iter().map(|it| (it.outcome.as_str(), it.generation)).collect();
    let expected = [
        ("resized", None),
        ("done", Some(5)),
        ("rolled back", Some(4)),
        ("refused", None),
        ("done", Some(3)),
        ("done", Some(2)),
    ];
    assert_eq!(outcomes, expected);
    assert!(reloads.iter().all(|it| it.took.is_some() && it.at > 1.7e9), "{reloads:?}");
    let client = &reloads[5].asked_by[0];
    let uid = nix::unistd::getuid();
    assert!(client.starts_with(&format!("uid {uid}, pid ")) && client.ends_with(" (rcluster)"));
    assert_eq!(reloads[4].asked_by, ["SIGUSR1"]);
    assert!(reloads[3].message.contains("unknown key `comand`"), "{:?}", reloads[3]);
    assert_eq!(reloads[2].message, "web/1: exited with status 1 before it was ready");
    assert_eq!(reloads[2].pools, ["web"]);
    let (code, page) = run(&cluster, &["status", "--reloads"]);
    assert_eq!((code, page.lines().count()), (Some(0), 10), "{page}");
    let (_, as_json) = run(&cluster, &["status", "--reloads", "--json"]);
    let again: ReloadsResults = serde_json::from_str(&as_json).unwrap();
    assert_eq!(again.reloads, reloads);
}

#[test]
fn reloads_that_are_folded_are_one_with_all_their_callers() {
    let cluster = Cluster::serve(&web("canary = \"1s\""));
    cluster.signal("USR1");
    cluster.wait_for("is on trial for 1.0 s");
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let control = cluster.path("control");
            let mut command = std::process::Command::new(RCLUSTER);
            command.arg("reload").env("RCLUSTER_CONTROL", control);
            command.stdout(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut caller in callers {
        assert!(caller.wait().unwrap().success());
    }
    let reloads = history(&cluster);
    let callers: Vec<usize> = reloads.iter().map(|it| it.asked_by.len()).collect();
    // They came during the trial of the first; on a very slow machine, one may have come after it.
    assert_eq!(callers.iter().sum::<usize>(), 4, "{reloads:?}");
    assert!(reloads.len() < 4 && reloads.last().unwrap().asked_by == ["SIGUSR1"], "{reloads:?}");
}

#[test]
fn what_a_reload_has_cost_is_told_when_the_last_old_worker_is_gone() {
    let cluster = Cluster::serve(&web("drain-timeout = \"5s\""));
    let mut idle: Vec<TcpStream> = (0..6)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            ask(&mut stream, "/pid");
            stream
        })
        .collect();
    cluster.reload().unwrap();
    let line = cluster.wait_for("reload of generation 2: ");
    assert!(line.ends_with("6 handed back, 0 re-dispatched, 0 cut"), "{line}");
    for stream in &mut idle {
        ask(stream, "/pid");
    }
    // Those who ask for more time than there is are cut, and that is told, too.
    for stream in idle.iter_mut().take(2) {
        stream.write_all(b"GET /sleep/60000 HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    }
    while cluster.status().pools[0].workers.iter().map(|it| it.requests).sum::<u64>() < 8 {}
    cluster.reload().unwrap();
    let line = cluster.wait_for("reload of generation 3: ");
    assert!(line.ends_with("4 handed back, 0 re-dispatched, 2 cut"), "{line}");
    let reloads = history(&cluster);
    let costs: Vec<(u64, u64)> = reloads.iter().map(|it| (it.handed_back, it.cut)).collect();
    assert_eq!(costs, [(4, 2), (6, 0)]);
    assert!(reloads.iter().all(|it| it.leaving == 0), "{reloads:?}");
    assert_balanced(&cluster);
}

/// One request on a connection that stays.
fn ask(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !answer.ends_with(b"\n") || !String::from_utf8_lossy(&answer).contains("\r\n\r\n") {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..count]);
    }
}
