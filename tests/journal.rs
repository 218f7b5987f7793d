//! What the master and its workers say, without journald: lines on standard error.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail loudly")]
#![allow(missing_docs, reason = "tests")]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use support::{Cluster, PATIENCE, RCLUSTER, free_port, get, pool};

/// A pool `web` of demo workers, each of which runs this shell script first.
fn after(script: &str, extra: &str) -> String {
    let script = format!("{script}\nexec {{rcluster}} demo-worker http");
    let command = format!("\"/bin/sh\", \"-c\", '''{script}'''");
    pool("web", &command, "\"127.0.0.1:{port}\"", extra)
}

/// Where the lines stand that contain these, in this order.
fn positions(log: &[String], needles: &[&str]) -> Vec<usize> {
    let position = |needle: &&str| log.iter().position(|line| line.contains(needle));
    needles.iter().map(|needle| position(needle).unwrap_or_else(|| panic!("no {needle}"))).collect()
}

#[test]
fn a_workers_lines_carry_its_name_and_come_between_its_start_and_its_readiness() {
    let script = "echo said $RCLUSTER_SLOT; printf 'panic\\n  at x\\n\\377\\n' >&2";
    let cluster = Cluster::serve(&after(script, ""));
    cluster.wait_for("web/2: \\xff");
    cluster.wait_for("web/1: \\xff");
    let log = cluster.log();
    for slot in [1, 2] {
        let name = format!("Z web/{slot}: ");
        let words: Vec<&str> = log.iter().filter_map(|it| Some(it.split_once(&name)?.1)).collect();
        assert_eq!(words, [&format!("said {slot}"), "panic", "  at x", "\\xff"]);
        let order =
            [format!("rcluster: web/{slot} (pid "), format!("web/{slot}: said"), "serves".into()];
        let order = positions(&log, &order.each_ref().map(String::as_str));
        assert!(order.is_sorted(), "{order:?} in:\n{}", log.join("\n"));
    }
}

#[test]
fn the_last_words_of_a_worker_come_before_the_record_of_its_end() {
    let config = pool(
        "web",
        "\"/bin/sh\", \"-c\", \"yes word | head -n 2000; printf 'last word'; exit 3\"",
        "\"127.0.0.1:{port}\"",
        "",
    );
    let cluster = Cluster::start(&config);
    cluster.wait_for("web/1 (pid");
    cluster.wait_for("exited with status 3");
    let log = cluster.log();
    let ended = log.iter().position(|line| line.contains("exited with status 3")).unwrap();
    let slot = log[ended].split("web/").nth(1).unwrap().split(' ').next().unwrap();
    let words = log[..ended].iter().filter(|it| it.contains(&format!("Z web/{slot}: "))).count();
    assert_eq!(words, 2001, "{}", log.join("\n"));
}

#[test]
fn where_the_output_goes_is_told_to_workers_as_it_is() {
    let script = "echo \"stream is [$JOURNAL_STREAM]\"";
    for (log, told) in [
        ("fields", "web/1: stream is []"),
        ("inherit", "stream is [1:2]"),
        ("stream", "stream is [1:2]"),
    ] {
        let config = format!("[master]\nlog = \"{log}\"\n{}", after(script, ""));
        let cluster = Cluster::start_by(&config, |command| command.env("JOURNAL_STREAM", "1:2"));
        cluster.wait_for("generation 1 serves");
        let line = cluster.wait_for("stream is [");
        assert!(line.ends_with(told) || line.ends_with(&told.replace("/1", "/2")), "{log}: {line}");
        assert_eq!(line.contains("web/"), log == "fields", "{log}: {line}");
        let warning = "workers write where the master does";
        assert_eq!(cluster.count(warning), usize::from(log == "stream"), "{log}");
    }
}

#[test]
fn a_worker_of_another_user_can_open_its_standard_error_by_name() {
    if !nix::unistd::geteuid().is_root() {
        println!("LEFT OUT: only root can run workers as other users");
        return;
    }
    let script = "\"/bin/sh\", \"-c\", \"id -nu >/dev/stderr; exit 3\"";
    let cluster = Cluster::start(&pool("web", script, "\"127.0.0.1:{port}\"", "user = \"nobody\""));
    cluster.wait_for("web/1: nobody");
}

#[test]
fn clients_are_served_while_nobody_reads_and_what_is_missing_then_is_counted() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let lines = 100_000;
    // More than the pipe to the log thread, the queue and the pipe to us can hold.
    let script = format!("seq -f '%.0f {}' {lines} >&2 &", "x".repeat(80));
    let config = after(&script, "").replace("workers = 2", "workers = 1");
    let config = config.replace("{port}", &port.to_string()).replace("{rcluster}", RCLUSTER);
    std::fs::write(folder.path().join("rcluster.toml"), config).unwrap();
    let mut master = Command::new(RCLUSTER)
        .args(["run", "--config"])
        .arg(folder.path().join("rcluster.toml"))
        .env("RCLUSTER_CONTROL", folder.path().join("control"))
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + PATIENCE;
    while get(port, "/pid").is_err() {
        assert!(Instant::now() < end, "it does not serve");
        std::thread::yield_now();
    }
    // The writer ends only if what cannot be written is dropped.
    let worker: u32 = get(port, "/pid").unwrap().trim().parse().unwrap();
    while is_writing(worker) {
        get(port, "/pid").unwrap();
        assert!(Instant::now() < end, "the worker's writer still waits");
    }
    let mut stderr = BufReader::new(master.stderr.take().unwrap());
    support::signal(master.id(), "TERM");
    let (mut stored, mut dropped, mut line) = (0, 0, String::new());
    while stderr.read_line(&mut line).unwrap() > 0 {
        stored += usize::from(line.contains("web/1: "));
        if let Some((_, rest)) = line.split_once("rcluster: ").filter(|it| it.1.contains("dropped"))
        {
            assert!(rest.contains(" records of web's workers were dropped"), "{line}");
            dropped += rest.split(' ').next().unwrap().parse::<usize>().unwrap();
        }
        line.clear();
    }
    assert!(master.wait().unwrap().success());
    assert!(dropped > 0);
    assert_eq!(stored + dropped, lines, "{stored} written, {dropped} dropped");
}

/// Whether a process with this parent runs.
fn is_writing(parent: u32) -> bool {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    children.unwrap().split(' ').any(|child| child.trim().parse().is_ok_and(support::is_alive))
}
