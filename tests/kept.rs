//! What a killed master leaves behind, and what the next one makes of it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail loudly")]

mod support;

use std::process::Command;

use support::sockets::{Manager, place};
use support::{Cluster, RCLUSTER, free_port, is_alive, pool, signal, wait_gone, web};

/// A master over the folder of another one that is gone.
fn next(folder: tempfile::TempDir, port: u16, config: &str) -> Cluster {
    let mut command = Command::new(RCLUSTER);
    command.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
    Cluster::launch(folder, port, config, &mut command)
}

/// Kills the master; its folder.
fn kill(mut cluster: Cluster) -> (tempfile::TempDir, u16) {
    signal(cluster.pid(), "KILL");
    cluster.wait_end();
    let port = cluster.port;
    let folder = std::mem::replace(&mut cluster.folder, tempfile::tempdir().unwrap());
    (folder, port)
}

#[test]
fn a_crash_does_not_depend_on_a_deploy() {
    let cluster = Cluster::serve(&web("environment = { WHO = \"old\" }"));
    cluster.reload().unwrap();
    assert!(cluster.rcluster(&["scale", "web", "3"]).status.success());
    cluster.wait_for_nth("is ready", 5);
    let before = cluster.pids("web");
    let (folder, port) = kill(cluster);
    assert!(folder.path().join("control.state").exists());
    // What lies on disk by now is broken.
    let cluster = next(folder, port, "this is no configuration");
    cluster.wait_for("everything is as before the master was killed");
    let status = cluster.status();
    let web = &status.pools[0];
    assert_eq!((web.generation, web.workers_wanted, web.workers_serving), (Some(2), 3, 3));
    assert_eq!(web.accepted, web.finished + web.in_hand + web.held + web.refused + web.cut);
    // The third may have been about to be replaced.
    assert_eq!(cluster.pids("web")[..2], before[..2], "they are the same");
    // What is on disk counts again when somebody wants it.
    assert!(cluster.reload().unwrap_err().contains("not valid"));
    cluster.configure(&support::web(""));
    assert_eq!(cluster.reload().unwrap(), "reloaded: generation 3 serves");
}

#[test]
fn a_clean_end_leaves_nothing_behind() {
    let mut cluster = Cluster::serve(&web(""));
    cluster.reload().unwrap();
    cluster.signal("TERM");
    assert_eq!(cluster.wait_end().code(), Some(0));
    let files = std::fs::read_dir(cluster.folder.path()).unwrap();
    let names: Vec<_> = files.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["rcluster.toml"]);
}

#[test]
fn what_cannot_be_gone_on_with_is_said_and_the_configuration_counts() {
    let cluster = Cluster::serve(&web(""));
    cluster.reload().unwrap();
    // Those that drain as well: they keep the listener for the next master.
    let status = cluster.status();
    let before = status.pools[0].workers.iter().map(|worker| worker.pid).collect::<Vec<_>>();
    let (folder, port) = kill(cluster);
    for pid in before {
        signal(pid, "KILL");
        assert!(wait_gone(pid, support::PATIENCE));
    }
    // A process is gone before its last thread has closed everything.
    let end = std::time::Instant::now() + support::PATIENCE;
    let _taken = loop {
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => break listener,
            Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
        }
        std::thread::yield_now();
    };
    let cluster = next(folder, free_port(), &web(""));
    cluster
        .wait_for("what a killed master left cannot be used: pool of the state cannot listen on");
    cluster.wait_for("generation 1 serves");
    assert_eq!(cluster.get("/hello").map(drop).map_err(drop), Ok(()));
}

#[test]
fn a_replaced_program_is_not_taken_for_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("worker");
    std::fs::copy(RCLUSTER, &program).unwrap();
    let command = format!("\"{}\", \"demo-worker\", \"http\"", program.display());
    let config = pool("web", &command, "\"127.0.0.1:{port}\"", "restart-limit = 1");
    let cluster = Cluster::serve(&config);
    let workers = cluster.pids("web");
    let (state, port) = kill(cluster);
    for pid in workers {
        signal(pid, "KILL");
        assert!(wait_gone(pid, support::PATIENCE));
    }
    std::fs::remove_file(&program).unwrap();
    std::fs::copy(RCLUSTER, &program).unwrap();
    let mut cluster = next(state, port, &config);
    cluster.wait_for("cannot be started as it was");
    // Nobody serves, and nothing can be started: the service ends, and the next start is afresh.
    assert_eq!(cluster.wait_end().code(), Some(1));
    assert!(!cluster.folder.path().join("control.state").exists());
}

#[test]
fn systemd_keeps_it_in_its_store() {
    let run = |inherited: Vec<(String, std::os::fd::OwnedFd)>,
               folder: tempfile::TempDir,
               port,
               config: &str| {
        let manager = Manager::listen(folder.path());
        let (names, descriptors): (Vec<String>, Vec<_>) = inherited.into_iter().unzip();
        let listen = match names.len() {
            0 => String::new(),
            count => {
                format!("LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES='{}'", names.join(":"))
            }
        };
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!(
            "{listen} NOTIFY_SOCKET={} exec {RCLUSTER} run --config {}/rcluster.toml",
            manager.path.display(),
            folder.path().display(),
        ));
        (Cluster::launch(folder, port, config, place(&mut command, descriptors)), manager)
    };
    let (cluster, manager) = run(Vec::new(), tempfile::tempdir().unwrap(), free_port(), &web(""));
    cluster.wait_for("generation 1 serves");
    cluster.reload().unwrap();
    let pid = cluster.pid();
    signal(pid, "KILL");
    assert!(wait_gone(pid, support::PATIENCE) && !is_alive(pid));
    let memfd = manager.take_descriptor("FDSTORE=1\nFDNAME=rcluster-state");
    let name = format!("rcluster-listener.127.0.0.1_{}", cluster.port);
    let listener = manager.take_descriptor(&format!("FDSTORE=1\nFDNAME={name}"));
    let stored = vec![("rcluster-state".to_owned(), memfd), (name, listener)];
    let port = cluster.port;
    let (mut cluster, manager) = run(stored, tempfile::tempdir().unwrap(), port, "broken");
    cluster.wait_for("everything is as before the master was killed");
    assert_eq!(cluster.status().pools[0].generation, Some(2));
    manager.wait_for("READY=1");
    cluster.signal("TERM");
    assert_eq!(cluster.wait_end().code(), Some(0));
    manager.wait_for("FDSTOREREMOVE=1\nFDNAME=rcluster-state");
}
