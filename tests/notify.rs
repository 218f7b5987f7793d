//! What systemd hears, by a socket that stands in for it, and what it gives back.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use support::sockets::{Manager, place};
use support::{Cluster, RCLUSTER, free_port, get, pool, web};

/// A master with a manager, and these descriptors under these names.
fn start_with(
    config: &str,
    port: u16,
    change: impl Fn(&mut Command) -> &mut Command,
    inherited: Vec<(String, OwnedFd)>,
) -> (Cluster, Manager) {
    let folder = tempfile::tempdir().unwrap();
    let manager = Manager::listen(folder.path());
    // The harness clears NOTIFY_SOCKET for the master; the shell gives it ours, and its own number.
    let (names, descriptors): (Vec<String>, Vec<OwnedFd>) = inherited.into_iter().unzip();
    let listen = match names.len() {
        0 => String::new(),
        count => format!("LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES='{}'", names.join(":")),
    };
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!(
        "{listen} NOTIFY_SOCKET={} exec {RCLUSTER} run --config {}/rcluster.toml",
        manager.path.display(),
        folder.path().display(),
    ));
    let cluster = Cluster::launch(folder, port, config, change(place(&mut command, descriptors)));
    (cluster, manager)
}

fn start(config: &str) -> (Cluster, Manager) {
    start_with(config, free_port(), |command| command, Vec::new())
}

/// A pool `web` on the inherited socket of that name.
fn inherited(extra: &str) -> String {
    pool("web", "\"{rcluster}\", \"demo-worker\", \"http\"", "\"web\"", extra)
}

/// A socket for it, and another hold on it.
fn socket() -> (Vec<(String, OwnedFd)>, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (vec![("web".to_owned(), listener.try_clone().unwrap().into())], listener)
}

/// Those of the lines that are not repeated, from the first that contains this on.
fn from(manager: &Manager, needle: &str) -> Vec<String> {
    let states = manager.states();
    let first = states.iter().position(|state| state.contains(needle)).unwrap();
    states[first..].to_vec()
}

#[test]
fn a_start_and_a_good_reload_are_told_in_order() {
    let (mut cluster, manager) = start(&web(""));
    manager.wait_for("STATUS=Running 2 workers, generation 1");
    assert_eq!(cluster.reload().unwrap(), "reloaded: generation 2 serves");
    cluster.wait_for_nth(" left", 2);
    cluster.signal("TERM");
    assert_eq!(cluster.wait_end().code(), Some(0));
    let mut states = manager.states();
    // How many of two are left when the sentence is made is anybody's guess.
    // And whether both workers got ready in one turn.
    states.retain(|it| !it.starts_with("STATUS=Stopping") && it != "STATUS=Starting web 1/2");
    assert_eq!(
        states,
        [
            "STATUS=Starting web 0/2",
            "READY=1\nSTATUS=Running 2 workers, generation 1",
            "RELOADING=1\nSTATUS=Rolling restart of web 0/2, generation 2",
            "STATUS=Rolling restart of web 1/2, generation 2",
            "READY=1\nSTATUS=Running 2 workers, generation 2",
            "STOPPING=1\nSTATUS=Stopping: 2 workers left",
        ]
    );
    assert_eq!(manager.texts().last().unwrap(), "BARRIER=1", "it waits until all was read");
}

#[test]
fn a_failed_reload_is_over_too_and_its_reason_stays_until_the_next_good_one() {
    let (cluster, manager) = start(&web(""));
    manager.wait_for("READY=1");
    cluster.configure(&pool("web", "\"/bin/false\"", "\"127.0.0.1:{port}\"", ""));
    assert!(cluster.reload().is_err());
    let why = "web/1: exited with status 1 before it was ready";
    manager.wait_for("ERRNO=125");
    assert_eq!(
        from(&manager, "RELOADING=1"),
        [
            "RELOADING=1\nSTATUS=Rolling restart of web 0/2, generation 2".to_owned(),
            format!(
                "READY=1\nERRNO=125\nSTATUS=Reload failed: generation 2 is rolled back: {why}; \
                 Running 2 workers, generation 1"
            ),
        ]
    );
    assert!(cluster.status().summary.starts_with("Reload failed: generation 2"));
    // Whatever else happens, the sentence stays.
    cluster.rcluster(&["scale", "web", "1"]);
    manager.wait_for("Running 1 worker, generation 1");
    cluster.configure(&web(""));
    assert!(cluster.reload().is_ok());
    manager.wait_for("READY=1\nERRNO=0\nSTATUS=Running 1 worker, generation 3");
    assert_eq!(cluster.status().summary, "Running 1 worker, generation 3");
}

#[test]
fn a_refused_reload_is_no_reload_but_an_error_until_the_next_good_one() {
    let (cluster, manager) = start(&web(""));
    manager.wait_for("READY=1");
    cluster.configure("this is no configuration");
    assert!(cluster.reload().is_err());
    manager.wait_for("ERRNO=22\nSTATUS=Reload failed: the configuration is not valid: ");
    cluster.signal("USR1");
    cluster.wait_for_nth("not reloaded", 2);
    assert!(!manager.texts().iter().any(|text| text.contains("RELOADING")), "nothing began");
    cluster.configure(&web(""));
    assert!(cluster.reload().is_ok());
    manager.wait_for("READY=1\nERRNO=0\nSTATUS=Running 2 workers, generation 2");
}

#[test]
fn nothing_ready_is_never_announced_as_ready() {
    let config = pool("bad", "\"/bin/false\"", "", "restart-limit = 1");
    let (mut cluster, manager) = start(&config);
    assert_eq!(cluster.wait_end().code(), Some(1));
    let states = manager.states();
    assert!(!states.iter().any(|state| state.contains("READY=1")), "{states:?}");
    let last = states.last().unwrap();
    assert!(last.starts_with("STATUS=Failed: bad gave up"), "{states:?}");
}

#[test]
fn what_cannot_even_start_is_told_as_well() {
    let (mut cluster, manager) = start("[pool.web]\ncommand = 7\n");
    assert_eq!(cluster.wait_end().code(), Some(1));
    manager.wait_for("STATUS=Failed: ");
    assert_eq!(manager.texts().last().unwrap(), "BARRIER=1");
}

#[test]
fn the_watchdog_hears_from_the_loop_from_the_very_start_and_whatever_happens() {
    let (cluster, manager) = start_with(
        &web("drain-timeout = \"20s\""),
        free_port(),
        |command| command.env("WATCHDOG_USEC", "300000"),
        Vec::new(),
    );
    let first = manager.wait_for("WATCHDOG=1");
    assert!(!manager.texts()[..first].iter().any(|text| text.contains("READY")), "too late");
    // While a new generation takes its time.
    manager.wait_for("READY=1");
    let slow = pool("web", "\"/bin/sleep\", \"100\"", "\"127.0.0.1:{port}\"", "");
    cluster.configure(&slow);
    cluster.signal("USR1");
    let heard = ticks(&manager, manager.wait_for("RELOADING=1"));
    manager.wait_for_nth("WATCHDOG=1", heard + 10);
    // And while the service drains.
    let _client = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    cluster.signal("TERM");
    let heard = ticks(&manager, manager.wait_for("STOPPING=1"));
    manager.wait_for_nth("WATCHDOG=1", heard + 5);
}

/// How often the watchdog was among the first so many messages.
fn ticks(manager: &Manager, messages: usize) -> usize {
    let texts = manager.texts();
    texts[..messages].iter().filter(|text| *text == "WATCHDOG=1").count()
}

#[test]
fn limits_are_extended_while_something_bounded_is_under_way_and_only_then() {
    let (cluster, manager) = start_with(
        &web("drain-timeout = \"30s\""),
        free_port(),
        |command| command.env("WATCHDOG_USEC", "300000"),
        Vec::new(),
    );
    let extended = |range: &[String]| range.iter().filter(|it| it.starts_with("EXTEND_")).count();
    let ready = manager.wait_for("READY=1");
    assert!(extended(&manager.texts()[..ready]) > 0, "a start takes its time");
    // Longer than it is from one to the next: the watchdog is the clock.
    let heard = ticks(&manager, ready);
    let calm = manager.wait_for_nth("WATCHDOG=1", heard + 25);
    assert_eq!(extended(&manager.texts()[ready..calm]), 0, "nothing is under way");
    // At once, and then again and again.
    let slow = pool("web", "\"/bin/sleep\", \"100\"", "\"127.0.0.1:{port}\"", "");
    cluster.configure(&slow);
    cluster.signal("USR1");
    manager.wait_for("RELOADING=1");
    let before = extended(&manager.texts()[..calm]);
    manager.wait_for_nth("EXTEND_TIMEOUT_USEC=10000000", before + 3);
    let _client = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
    cluster.signal("TERM");
    let stopping = manager.wait_for("STOPPING=1");
    let before = extended(&manager.texts()[..stopping]);
    manager.wait_for_nth("EXTEND_TIMEOUT_USEC=10000000", before + 2);
}

#[test]
fn a_socket_of_our_own_is_kept_and_served_again_by_the_next_start() {
    let port = free_port();
    let config = pool(
        "web",
        "\"{rcluster}\", \"demo-worker\", \"http\"",
        "\"127.0.0.1:{port}\", \"@rcluster-test-{port}\"",
        "",
    );
    let (mut cluster, manager) = start_with(&config, port, |command| command, Vec::new());
    let name = format!("rcluster-listener.127.0.0.1_{port}");
    let nameless = format!("rcluster-listener.@rcluster-test-{port}");
    let stored = manager.take_descriptor(&format!("FDSTORE=1\nFDNAME={name}"));
    let other = manager.take_descriptor(&format!("FDSTORE=1\nFDNAME={nameless}"));
    manager.wait_for("READY=1");
    cluster.signal("TERM");
    assert_eq!(cluster.wait_end().code(), Some(0));
    let of_listeners = |manager: &Manager, what: &str| {
        let is_it = |it: &&String| it.starts_with(what) && it.contains("rcluster-listener.");
        manager.texts().iter().filter(is_it).count()
    };
    assert_eq!(of_listeners(&manager, "FDSTOREREMOVE"), 0);
    // Nobody serves, and a client waits.
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"GET /pid HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let kept = vec![(nameless, other), (name, stored)];
    let (cluster, manager) = start_with(&config, port, |command| command, kept);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    manager.wait_for("READY=1");
    assert_eq!(of_listeners(&manager, "FDSTORE"), 0, "it is kept already");
    assert_eq!(cluster.status().warnings, Vec::<String>::new());
}

#[test]
fn what_no_pool_listens_on_any_more_is_forgotten_and_closed_at_once() {
    let (cluster, manager) = start(&web(""));
    let name = format!("rcluster-listener.127.0.0.1_{}", cluster.port);
    // The store has its duplicate for as long as it pleases.
    let _stored = manager.take_descriptor(&format!("FDSTORE=1\nFDNAME={name}"));
    manager.wait_for("READY=1");
    let other = free_port();
    cluster.configure(&web("").replace("{port}", &other.to_string()));
    assert!(cluster.reload().is_ok());
    manager.wait_for(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    manager.wait_for(&format!("FDSTORE=1\nFDNAME=rcluster-listener.127.0.0.1_{other}"));
    let refused = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(get(other, "/pid").is_ok());
}

#[test]
fn what_was_kept_for_another_configuration_makes_room_for_this_one() {
    let port = free_port();
    // It listened on one address; now every address is wanted.
    let old = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let duplicate = old.try_clone().unwrap();
    let name = format!("rcluster-listener.127.0.0.1_{port}");
    let config = web("").replace("127.0.0.1:", "");
    let kept = vec![(name.clone(), OwnedFd::from(old))];
    let (cluster, manager) = start_with(&config, port, |command| command, kept);
    manager.wait_for(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    manager.wait_for(&format!("FDSTORE=1\nFDNAME=rcluster-listener.{port}"));
    manager.wait_for("READY=1");
    assert!(get(port, "/pid").is_ok());
    assert_eq!(cluster.status().warnings, Vec::<String>::new());
    drop(duplicate);
}

/// One request over a Unix socket.
fn get_unix(path: &std::path::Path) -> std::io::Result<String> {
    let mut client = UnixStream::connect(path)?;
    client.write_all(b"GET /pid HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_socket_file_is_kept_with_its_socket_and_replaced_when_it_leads_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app:sock");
    let config = web("").replace("127.0.0.1:{port}", &path.display().to_string());
    let (mut cluster, manager) = start(&config);
    let stored = manager.take_descriptor("FDSTORE=1\nFDNAME=rcluster-listener.");
    let stored_as = "FDSTORE=1\nFDNAME=rcluster-listener.";
    let name = manager.texts()[manager.wait_for(stored_as) - 1].clone();
    let name = name.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap().to_owned();
    assert!(name.ends_with("app_sock"), "{name}");
    manager.wait_for("READY=1");
    cluster.signal("TERM");
    assert_eq!(cluster.wait_end().code(), Some(0));
    assert!(path.exists(), "what is kept must be found");
    let again = stored.try_clone().unwrap();
    let (mut cluster, manager) =
        start_with(&config, 1, |command| command, vec![(name.clone(), stored)]);
    manager.wait_for("READY=1");
    assert!(get_unix(&path).unwrap().starts_with("HTTP/1.1 200"));
    assert!(!manager.texts().iter().any(|text| text.contains(stored_as)));
    cluster.signal("TERM");
    assert_eq!(cluster.wait_end().code(), Some(0));
    // The folder was emptied meanwhile, as a RuntimeDirectory= is: nobody can reach the old one.
    std::fs::remove_file(&path).unwrap();
    let (_cluster, manager) =
        start_with(&config, 1, |command| command, vec![(name.clone(), again)]);
    manager.wait_for("READY=1");
    manager.wait_for(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    manager.wait_for(stored_as);
    assert!(get_unix(&path).unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn stored_log_pipes_are_neither_sockets_nor_a_warning() {
    let (read, _write) = nix::unistd::pipe().unwrap();
    let kept = vec![("rcluster-log.web.1".to_owned(), read)];
    let (cluster, manager) = start_with(&web(""), free_port(), |command| command, kept);
    manager.wait_for("READY=1");
    assert_eq!(cluster.status().warnings, Vec::<String>::new());
}

#[test]
fn nobody_comes_and_the_service_ends_and_the_next_client_waits_for_the_next_start() {
    let (sockets, listener) = socket();
    let port = listener.local_addr().unwrap().port();
    let config = format!("[master]\nidle-exit = \"500ms\"\n{}", inherited(""));
    let (mut cluster, manager) = start_with(&config, port, |command| command, sockets);
    // A connection that says nothing is one. It is there before the service could be left alone.
    let silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert!(get(port, "/pid").is_ok());
    manager.wait_for("READY=1");
    cluster.wait_for("is ready");
    // Three times as long as nobody may use it.
    let end = cluster.status().uptime + 1.5;
    while cluster.status().uptime < end {}
    assert_eq!(cluster.status().state, "running", "somebody is connected");
    drop(silent);
    assert_eq!(cluster.wait_end().code(), Some(0));
    cluster.wait_for("nobody has connected for");
    manager.wait_for("STOPPING=1");
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"GET /pid HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let again = vec![("web".to_owned(), OwnedFd::from(listener))];
    let (mut cluster, _manager) = start_with(&config, port, |command| command, again);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(client);
    assert_eq!(cluster.wait_end().code(), Some(0));
}

#[test]
fn who_could_not_be_started_again_stays_and_it_is_said_why() {
    let config = format!("[master]\nidle-exit = \"100ms\"\n{}", web(""));
    let (mut cluster, manager) = start_with(
        &config,
        free_port(),
        |command| command.env("WATCHDOG_USEC", "300000"),
        Vec::new(),
    );
    let line = cluster.wait_for("idle-exit of 100ms never comes: pool web listens on an address");
    assert!(line.contains("idle-exit = \"never\""), "{line}");
    assert_eq!(cluster.status().warnings.len(), 1);
    let ready = manager.wait_for("READY=1");
    let heard = ticks(&manager, ready);
    manager.wait_for_nth("WATCHDOG=1", heard + 10);
    assert!(cluster.is_running());
    assert_eq!(cluster.count("never comes"), 1);
}

/// Set in the process that is to break down.
const BREAKS: &str = "RCLUSTER_TEST_BREAKS";

/// A master in this very program, whose user's callback panics on the thread that dispatches.
fn be_a_master_that_breaks(folder: &str) {
    let path = |name: &str| format!("{folder}/{name}");
    let mut slow = rcluster::config::Pool::new("slow", vec!["/bin/sh".into(), path("slow")]);
    slow.policy.workers = 1;
    let worker = [RCLUSTER, "demo-worker", "http"].map(str::to_owned);
    let mut fickle = rcluster::config::Pool::new("fickle", worker.to_vec());
    fickle.policy.workers = 1;
    fickle.policy.restart_limit = 1;
    let result = rcluster::Master::new()
        .register_pool(slow)
        .register_pool(fickle)
        .control(path("control"))
        .on_give_up(|pool, _| panic!("the callback cannot bear that {pool} gave up"))
        .dispatch();
    eprintln!("dispatch: {}", result.unwrap_err());
    std::process::exit(1);
}

#[test]
fn a_broken_promise_is_said_ends_the_reload_and_has_the_process_replaced() {
    if let Ok(folder) = std::env::var(BREAKS) {
        return be_a_master_that_breaks(&folder);
    }
    let folder = tempfile::tempdir().unwrap();
    let manager = Manager::listen(folder.path());
    // The first time it serves, the second time it takes for ever.
    let script = format!(
        "if mkdir {0}/began 2>/dev/null; then exec {RCLUSTER} demo-worker http; fi; exec sleep 100",
        folder.path().display()
    );
    std::fs::write(folder.path().join("slow"), script).unwrap();
    let mut command = Command::new("sh");
    let name = "a_broken_promise_is_said_ends_the_reload_and_has_the_process_replaced";
    command.arg("-c").arg(format!(
        "NOTIFY_SOCKET={} exec {} --exact {name} --nocapture",
        manager.path.display(),
        std::env::current_exe().unwrap().display()
    ));
    command.env(BREAKS, folder.path());
    let mut cluster = Cluster::launch(folder, free_port(), "", &mut command);
    manager.wait_for("READY=1");
    let workers = [cluster.pids("slow"), cluster.pids("fickle")].concat();
    // Of this pool alone; it takes for ever.
    assert!(cluster.rcluster(&["reload", "slow", "--no-wait"]).status.success());
    manager.wait_for("RELOADING=1");
    support::signal(cluster.pids("fickle")[0], "KILL");
    assert_eq!(cluster.wait_end().code(), Some(1));
    manager.wait_for("WATCHDOG=trigger");
    let states = from(&manager, "RELOADING=1");
    let [.., ready, trigger] = &states[..] else { panic!("{states:?}") };
    assert_eq!((ready.as_str(), trigger.as_str()), ("READY=1", "WATCHDOG=trigger"), "{states:?}");
    let line =
        cluster.wait_for("mistake of its own and ends: the callback cannot bear that fickle");
    assert!(line.contains("notify.rs:"), "{line}");
    // Those that are left wait for the next master.
    for worker in workers {
        support::signal(worker, "KILL");
        assert!(support::wait_gone(worker, support::PATIENCE), "{worker} is left");
    }
}
