//! What systemd hears, by a socket that stands in for it.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use support::{Cluster, PATIENCE, free_port, pool, web};

/// A manager that writes down what it is told.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(folder: &Path) -> Manager {
        let socket = UnixDatagram::bind(folder.join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager(socket)
    }

    /// Reads on until a message has this line; all messages until then.
    fn hear_until(&self, line: &str) -> Vec<String> {
        let mut messages = Vec::new();
        loop {
            let mut buffer = [0; 4096];
            let count = self.0.recv(&mut buffer).unwrap_or_else(|error| {
                panic!("no {line} ({error}); heard: {messages:?}");
            });
            messages.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
            if messages.last().unwrap().lines().any(|heard| heard.starts_with(line)) {
                return messages;
            }
        }
    }
}

fn start(config: &str, watchdog: Option<&str>) -> (Cluster, Manager) {
    let folder = tempfile::tempdir().unwrap();
    let manager = Manager::listen(folder.path());
    let mut command = std::process::Command::new("sh");
    // The harness clears NOTIFY_SOCKET for the master; this gives it ours.
    let setup = format!(
        "NOTIFY_SOCKET={0}/notify exec {1} run --config {0}/rcluster.toml",
        folder.path().display(),
        support::RCLUSTER
    );
    command.arg("-c").arg(setup);
    if let Some(usec) = watchdog {
        command.env("WATCHDOG_USEC", usec);
    }
    let cluster = Cluster::launch(folder, free_port(), config, &mut command);
    (cluster, manager)
}

#[test]
fn ready_comes_once_everything_serves_and_each_reload_is_announced() {
    let (mut cluster, manager) = start(&web(""), None);
    let messages = manager.hear_until("READY=1");
    assert_eq!(messages.iter().filter(|m| m.contains("READY=1")).count(), 1);
    cluster.wait_for("generation 1 serves");
    manager.hear_until("STATUS=Running 2 workers, generation 1");

    cluster.signal("USR1");
    let messages = manager.hear_until("RELOADING=1");
    assert!(messages.last().unwrap().contains("MONOTONIC_USEC="), "{messages:?}");
    manager.hear_until("READY=1");
    manager.hear_until("STATUS=Running 2 workers, generation 2");

    // A reload that fails is over, too.
    cluster.configure(&pool("web", "\"/bin/false\"", "\"127.0.0.1:{port}\"", ""));
    assert!(cluster.reload().is_err());
    manager.hear_until("RELOADING=1");
    manager.hear_until("READY=1");

    cluster.signal("TERM");
    manager.hear_until("STOPPING=1");
    assert_eq!(cluster.wait_end().code(), Some(0));
}

#[test]
fn nothing_ready_is_never_announced_as_ready() {
    let config = pool("bad", "\"/bin/false\"", "", "restart-limit = 1");
    let (mut cluster, manager) = start(&config, None);
    assert_eq!(cluster.wait_end().code(), Some(1));
    manager.0.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4096];
    while let Ok(count) = manager.0.recv(&mut buffer) {
        let message = String::from_utf8_lossy(&buffer[..count]).into_owned();
        assert!(!message.contains("READY=1"), "{message}");
    }
}

#[test]
fn the_watchdog_hears_from_the_loop() {
    let (_cluster, manager) = start(&web(""), Some("300000"));
    for _ in 0..3 {
        manager.hear_until("WATCHDOG=1");
    }
}
