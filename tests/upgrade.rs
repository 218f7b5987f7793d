//! The master replaces its own image, and nobody notices.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail loudly")]

mod support;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rcluster::wire::control::Status;
use support::keep_alive::Clients;
use support::{
    Cluster, PATIENCE, RCLUSTER, descriptors, descriptors_are_back, free_port, load_time, pool,
    signal, wait_gone, web,
};

fn upgrade(cluster: &Cluster) -> Result<String, String> {
    let ran = cluster.rcluster(&["upgrade"]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match ran.status.code() {
        Some(0) => Ok(text(&ran.stdout)),
        Some(1) => Err(text(&ran.stderr)),
        other => panic!("{other:?}: {ran:?}"),
    }
}

/// A master whose program can be replaced.
fn replaceable(config: &str) -> (Cluster, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("rcluster");
    std::fs::copy(RCLUSTER, &program).unwrap();
    let mut command = Command::new(&program);
    command.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
    let cluster = Cluster::launch(folder, free_port(), config, &mut command);
    cluster.wait_for("generation 1 serves");
    (cluster, program)
}

/// Puts another file in the program's place, as a package manager does it.
fn install(program: &Path, text: &str) {
    let new = program.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&new, program).unwrap();
}

/// What must be the same before and after.
fn facts(mut status: Status) -> Status {
    (status.uptime, status.summary) = (0.0, status.summary);
    if let Some(last) = &mut status.last_reload {
        last.ago = 0.0;
    }
    for worker in status.pools.iter_mut().flat_map(|pool| &mut pool.workers) {
        worker.serving_for = worker.serving_for.map(|_| 0.0);
    }
    status
}

fn mixed() -> Option<PathBuf> {
    let own = std::env::current_exe().unwrap();
    let mixed = own.parent().unwrap().parent().unwrap().join("examples/mixed");
    if !mixed.exists() {
        println!("LEFT OUT: the example mixed is not built; `cargo test` without --test does it");
        return None;
    }
    Some(mixed)
}

#[test]
fn nobody_notices_twenty_upgrades_between_reloads() {
    let Some(mixed) = mixed() else { return };
    let command = format!("\"{}\", \"serve\"", mixed.display());
    let cluster = Cluster::serve(&pool("web", &command, "\"127.0.0.1:{port}\"", ""));
    let connected = Clients::connect(cluster.port, 100);
    connected.wait(200);
    let (end, mut upgrades, mut reloads) = (Instant::now() + load_time(), 0, 0);
    while upgrades < 20 || Instant::now() < end {
        let next = Instant::now() + Duration::from_millis(400);
        cluster.signal("USR1");
        reloads += 1;
        while Instant::now() < next && upgrades < 20 {
            upgrade(&cluster).unwrap();
            upgrades += 1;
            std::thread::sleep(Duration::from_millis(60));
        }
        cluster.wait_for(&format!("generation {} serves", reloads + 1));
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    connected.wait(100);
    let web = cluster.status().pools.remove(0);
    let seen = connected.finish();
    println!(
        "{upgrades} upgrades, {reloads} reloads: {} answered, {} failed, {} closed, {} told to close; \
         {} handed back",
        seen.answered,
        seen.failed.len(),
        seen.closed,
        seen.announced,
        web.handed_back
    );
    assert_eq!(seen.failed, Vec::<String>::new());
    assert_eq!((seen.closed, seen.announced), (0, 0));
    assert_eq!(web.cut, 0);
    assert_eq!(web.accepted, web.finished + web.in_hand + web.held + web.refused + web.cut);
}

#[test]
fn a_reload_that_races_with_an_upgrade_is_honoured() {
    let cluster = Cluster::serve(&web(""));
    for round in 1..=20_u64 {
        cluster.signal("USR2");
        // Into the rehearsal, the gap, or the next image: another place each time.
        std::thread::sleep(Duration::from_micros(round * 1500));
        cluster.signal("USR1");
        cluster.wait_for(&format!("generation {} serves", round + 1));
        cluster.wait_for_nth("serves (was ", usize::try_from(round).unwrap());
    }
    assert_eq!(cluster.status().pools[0].generation, Some(21));
}

#[test]
fn everything_is_as_before() {
    let bad = pool("bad", "\"/bin/false\"", "", "restart-limit = 1");
    let cluster = Cluster::serve(&format!("{}\n{bad}", web("")));
    cluster.wait_for("bad gave up");
    for _ in 0..10 {
        cluster.get("/pid").unwrap();
    }
    assert!(cluster.rcluster(&["scale", "web", "3"]).status.success());
    cluster.wait_for_nth("is ready", 3);
    cluster.configure("broken");
    assert!(cluster.reload().is_err());
    // The finished connections have been counted.
    let settled = || {
        let status = facts(cluster.status());
        (status.pools.iter().all(|pool| pool.in_hand == 0)).then_some(status)
    };
    let before = std::iter::from_fn(|| Some(settled())).flatten().next().unwrap();
    let open = descriptors(cluster.pid());
    for round in 1..=20 {
        let said = upgrade(&cluster).unwrap();
        let pid = cluster.pid();
        let wanted = format!("rcluster 0.1.0 serves (was 0.1.0), same process {pid}, ");
        assert!(said.starts_with(&wanted), "{said}");
        assert_eq!(facts(cluster.status()), before, "after {round} upgrades");
    }
    descriptors_are_back(cluster.pid(), open);
    // Neither the last image nor a rehearsal has left anybody.
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", cluster.pid()));
    assert_eq!(children.unwrap().split_whitespace().count(), 3);
    // A worker is still a child: it is missed, and replaced.
    let victim = cluster.pids("web")[0];
    signal(victim, "KILL");
    cluster.wait_for("lost: was killed by SIGKILL");
    cluster.wait_for_nth("is ready", 4);
    // And a worker of the next image sees nothing of how that came about.
    let newcomer = cluster.pids("web")[0];
    assert_ne!(newcomer, victim);
    let environment = std::fs::read(format!("/proc/{newcomer}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("RCLUSTER_STATE"), "{environment}");
}

#[test]
fn a_program_that_cannot_go_on_changes_nothing() {
    let (cluster, program) = replaceable(&web(""));
    let before = facts(cluster.status());
    let open = descriptors(cluster.pid());
    let own = RCLUSTER;
    for (text, why) in [
        ("#!/bin/sh\necho 'it is broken' >&2\nexit 3\n", "exited with status 3: it is broken"),
        ("#!/bin/sh\necho fine\n", "does not know how to go on for another image"),
        ("#!/bin/sh\nkill -9 $$\n", "was killed by SIGKILL"),
        ("no program at all", "cannot be tried: exec format error"),
        ("#!/nowhere\n", "cannot be tried"),
        // It passes, and is gone.
        (&format!("#!/bin/sh\nrm \"$0\"\nexec {own} \"$@\"\n"), "cannot be executed"),
    ] {
        install(&program, text);
        let said = upgrade(&cluster).unwrap_err();
        assert!(said.starts_with("not upgraded: ") && said.contains(why), "{said}");
        assert!(said.ends_with("; rcluster 0.1.0 serves on"), "{said}");
        assert_eq!(facts(cluster.status()), before, "{why}");
    }
    // By now it is missing.
    let said = upgrade(&cluster).unwrap_err();
    assert!(said.contains("cannot be tried: "), "{said}");
    cluster.signal("USR2");
    cluster.wait_for_nth("not upgraded: ", 8);
    descriptors_are_back(cluster.pid(), open);
    // It serves, reloads, and has kept its log; and a good program goes on.
    cluster.reload().unwrap();
    std::fs::copy(RCLUSTER, program.with_extension("new")).unwrap();
    std::fs::rename(program.with_extension("new"), &program).unwrap();
    upgrade(&cluster).unwrap();
    assert_eq!(cluster.status().pools[0].generation, Some(2));
}

#[test]
fn a_program_that_hangs_holds_nothing_up() {
    let (cluster, program) = replaceable(&web(""));
    install(&program, "#!/bin/sh\nexec sleep 600\n");
    let asked = std::thread::scope(|scope| {
        let both = [scope.spawn(|| upgrade(&cluster)), scope.spawn(|| upgrade(&cluster))];
        // Meanwhile it serves.
        cluster.get("/pid").unwrap();
        cluster.reload().unwrap();
        both.map(|asked| asked.join().unwrap().unwrap_err())
    });
    for said in asked {
        assert!(said.contains("did not answer within 10 s"), "{said}");
    }
    cluster.wait_for("not upgraded: ");
    assert_eq!(cluster.count("not upgraded: "), 1, "two who ask at once ask for the same");
}

#[test]
fn who_waits_for_a_reload_gets_the_answer_from_the_next_image() {
    let slow = "\"/bin/sh\", \"-c\", \"sleep 1; exec {rcluster} demo-worker http\"";
    let cluster = Cluster::serve(&pool("web", slow, "\"127.0.0.1:{port}\"", ""));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cluster.rcluster(&["reload"]));
        cluster.wait_for("rollout of generation 2 begun");
        upgrade(&cluster).unwrap();
        let waiting_next = scope.spawn(|| cluster.rcluster(&["reload"]));
        cluster.wait_for_nth("generation 2) is ready", 1);
        upgrade(&cluster).unwrap();
        for (waiting, generation) in [(waiting, 2), (waiting_next, 3)] {
            let ran = waiting.join().unwrap();
            let said = String::from_utf8_lossy(&ran.stdout).into_owned();
            assert!(ran.status.success(), "{ran:?}");
            assert!(said.contains(&format!("generation {generation} serves")), "{said}");
        }
    });
    assert_eq!(cluster.status().pools[0].cut, 0);
}

#[test]
fn no_line_of_a_worker_is_lost_or_broken() {
    const LINES: usize = 3000;
    // Every tenth line comes in two halves.
    let script = format!(
        "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); case $i in *0) printf 'talk %s' $i; sleep 0.005; \
         echo ' end';; *) echo talk $i end;; esac; done; sleep 600"
    );
    let talker = pool(
        "talker",
        &format!("\"/bin/sh\", \"-c\", \"{script}\""),
        "",
        "start-timeout = \"60s\"",
    );
    let cluster =
        Cluster::start(&format!("{}\n{}", web(""), talker.replace("workers = 2", "workers = 1")));
    cluster.wait_for("talk 10 end");
    let mut upgrades = 0;
    let last = format!("talk {LINES} end");
    let end = Instant::now() + PATIENCE;
    while cluster.count(&last) == 0 {
        assert!(Instant::now() < end, "the talker is silent");
        upgrade(&cluster).unwrap();
        upgrades += 1;
    }
    let said = cluster.log().into_iter().filter_map(|line| {
        let (_, text) = line.split_once("talk ")?;
        Some(text.to_owned())
    });
    let said: Vec<String> = said.collect();
    println!("{} lines over {upgrades} upgrades", said.len());
    assert_eq!(said, (1..=LINES).map(|number| format!("{number} end")).collect::<Vec<_>>());
    assert!(upgrades > 2);
}

#[test]
fn what_waits_for_its_time_waits_on() {
    // A failed start is tried again after a while, that grows; a drain has its limit.
    let bad = pool("bad", "\"/bin/sh\", \"-c\", \"exit 3\"", "", "restart-limit = 4");
    let cluster = Cluster::start(&format!(
        "{}\n{}",
        web("drain-timeout = \"3s\""),
        bad.replace("workers = 2", "workers = 1")
    ));
    cluster.wait_for("next try in");
    upgrade(&cluster).unwrap();
    cluster.wait_for("bad gave up on generation 1: 4 failed starts in a row");
    cluster.wait_for("generation 1 serves");
    let mut client = std::net::TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    client.write_all(b"GET /sleep/30000 HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    while cluster.status().pools[0].in_hand == 0 {
        std::thread::yield_now();
    }
    cluster.rcluster_reload_pool("web").unwrap();
    upgrade(&cluster).unwrap();
    cluster.wait_for("has not drained in time");
    cluster.wait_for("connections cut: 1");
    drop(client);
    let web = cluster.status().pools.remove(0);
    assert_eq!(web.accepted, web.finished + web.in_hand + web.held + web.refused + web.cut);
}

#[test]
fn a_stop_after_an_upgrade_ends_everything() {
    let mut cluster = Cluster::serve(&web(""));
    upgrade(&cluster).unwrap();
    let workers = cluster.pids("web");
    // One that comes during a rehearsal or in the gap is honoured, too.
    cluster.signal("USR2");
    cluster.signal("TERM");
    assert_eq!(cluster.wait_end().code(), Some(0));
    assert!(workers.into_iter().all(|pid| wait_gone(pid, PATIENCE)));
    let files = std::fs::read_dir(cluster.folder.path()).unwrap();
    let names: Vec<_> = files.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["rcluster.toml"]);
}

#[test]
fn a_master_that_is_killed_after_an_upgrade_leaves_what_the_next_one_needs() {
    let mut cluster = Cluster::serve(&web(""));
    cluster.reload().unwrap();
    upgrade(&cluster).unwrap();
    cluster.reload().unwrap();
    cluster.signal("KILL");
    cluster.wait_end();
    let folder = std::mem::replace(&mut cluster.folder, tempfile::tempdir().unwrap());
    let mut command = Command::new(RCLUSTER);
    command.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
    let next = Cluster::launch(folder, cluster.port, "broken", &mut command);
    // Whether it had written down that the reload was over, or the next one completes it.
    next.wait_for("going on after the master");
    let end = Instant::now() + PATIENCE;
    while next.status().rollout.is_some() {
        assert!(Instant::now() < end, "{}", next.log().join("\n"));
        std::thread::yield_now();
    }
    assert_eq!(next.status().pools[0].generation, Some(3));
}

#[test]
fn variables_that_were_meant_for_another_process_mean_nothing() {
    let cluster = Cluster::start_by(&web(""), |command| {
        command.env("RCLUSTER_STATE", "1:5").env("RCLUSTER_REHEARSAL", "1:5")
    });
    cluster.wait_for("generation 1 serves");
    upgrade(&cluster).unwrap();
    let cluster = Cluster::start_by(&web(""), |command| {
        command.env("RCLUSTER_STATE", "nonsense").env("RCLUSTER_REHEARSAL", ":")
    });
    cluster.wait_for("generation 1 serves");
}
