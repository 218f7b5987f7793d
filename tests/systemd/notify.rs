//! What systemd is told, seen from its side: what it shows, what it waits for, what it keeps, and
//! whom it starts again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::machine::Machine;
use crate::service::{OURS, configure, drop_in, get, install, paced, pool, reload, serve, web};
use crate::support::load::{Load, exchange};

/// Where rcluster listens by itself.
const OWN: u16 = 9090;

const REQUEST: &str = "GET /pid HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";

fn a_failed_reload_is_seen_in_the_status_until_the_next_good_one(machine: &Machine) {
    serve(machine, &web(""));
    configure(machine, &pool("web", "\"/bin/sh\", \"-c\", \"exit 3\"", ""));
    reload(machine).refused();
    // Of the status only what systemd itself says, without the journal's lines.
    let status = || machine.sh("systemctl status --lines=0 rcluster").text;
    let seen = status();
    assert!(seen.contains("Status: \"Reload failed: generation 2 is rolled back: "), "{seen}");
    assert!(seen.contains("exited with status 3"), "{seen}");
    // 252: `Error: 125 (…)`; 257: `Error: code: 125 (…)`.
    let has_error = |seen: &str, text: &str| {
        seen.lines().any(|line| line.trim().starts_with("Error: ") && line.ends_with(text))
    };
    assert!(has_error(&seen, "125 (Operation canceled)"), "{seen}");
    assert!(seen.contains("Active: active (running)"), "{seen}");
    configure(machine, "nonsense");
    reload(machine).refused();
    let seen = status();
    assert!(seen.contains("Status: \"Reload failed: the configuration is not valid: "), "{seen}");
    assert!(has_error(&seen, "22 (Invalid argument)"), "{seen}");
    configure(machine, &web(""));
    reload(machine).ok();
    let seen = status();
    assert!(seen.contains("Status: \"Running 2 workers, generation 3\""), "{seen}");
    assert!(!seen.contains("Error:"), "{seen}");
}

fn what_takes_longer_than_systemd_waits_is_waited_for(machine: &Machine) {
    let limits = "[Service]\nTimeoutStartSec=2\nTimeoutStopSec=2\n";
    drop_in(machine, "rcluster.service", limits);
    let script = "sleep 5; exec /usr/bin/rcluster demo-worker http";
    let slow =
        pool("web", &format!("\"/bin/sh\", \"-c\", \"{script}\""), "drain-timeout = \"20s\"");
    install(machine, &slow);
    let started = machine.sh("systemctl start rcluster").ok();
    let reloaded = reload(machine).ok();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| get(machine, "/sleep/6000"));
        machine.wait_for("rcluster status --json | grep -q '\"inHand\": *1'");
        let stopped = machine.sh("systemctl stop rcluster").ok();
        assert!(client.join().unwrap().is_ok(), "{}", machine.journal(OURS));
        println!(
            "{:?}: limits of 2 s: start {:?}, reload {:?}, stop {:?}",
            machine.tree, started.took, reloaded.took, stopped.took
        );
        for took in [started.took, reloaded.took, stopped.took] {
            assert!(took > Duration::from_secs(3), "{took:?}: it did not take longer");
        }
    });
    assert_eq!(machine.property("Result"), "success", "{}", machine.journal(OURS));
}

fn a_frozen_master_is_replaced_and_clients_only_wait(machine: &Machine) {
    drop_in(machine, "rcluster.service", "[Service]\nWatchdogSec=2\n");
    serve(machine, &web(""));
    let load = paced(machine, 20, "/pid");
    crate::service::wait_answers(&load, 20);
    let before = machine.property("MainPID");
    machine.sh("systemctl kill -s STOP --kill-whom=main rcluster").ok();
    machine.wait_for(&format!(
        "test \"$(systemctl show --value -p MainPID rcluster)\" != {before} && rcluster status"
    ));
    crate::service::wait_answers(&load, 60);
    let tally = load.finish();
    println!(
        "{:?}: a frozen master: {} answered, {} failed, longest {:?}",
        machine.tree,
        tally.answered,
        tally.failed.len(),
        tally.longest
    );
    assert_eq!(tally.failed, Vec::<String>::new());
    assert!(tally.longest > Duration::from_secs(1), "nobody waited: {:?}", tally.longest);
    assert!(machine.journal("_PID=1").contains("Watchdog timeout"));
}

fn what_rcluster_bound_itself_stays_open_over_restarts_and_crashes(machine: &Machine) {
    // Without pipes for the workers' output, the store has nothing but sockets.
    let silent = format!("[master]\nlog = \"inherit\"\n{}", web(""));
    let config = silent.replace(
        "\"web\"]",
        "\"web\", \"127.0.0.1:9090\", \"/var/lib/rcluster/app.sock\", \"/run/rcluster/app.sock\"]",
    );
    serve(machine, &config);
    // The socket alone, and nothing that rcluster bound, is systemd's by itself.
    let load = machine.within(|| Load::paced(OWN, 300, "/pid"));
    crate::service::wait_answers(&load, 50);
    let inode = |path: &str| machine.sh(&format!("stat -c %i {path}")).ok().text;
    let (kept, lost) = ("/var/lib/rcluster/app.sock", "/run/rcluster/app.sock");
    let before = [inode(kept), inode(lost)];
    for _ in 0..6 {
        machine.sh("systemctl restart rcluster").ok();
        crate::service::wait_answers(&load, 50);
        for path in [kept, lost] {
            assert!(get_unix(machine, path).starts_with("HTTP/1.1 200"), "{path}");
        }
    }
    let tally = load.finish();
    println!(
        "{:?}: a port of its own, 6 restarts: {} answered, {} failed, longest {:?}",
        machine.tree,
        tally.answered,
        tally.failed.len(),
        tally.longest
    );
    assert_eq!(tally.failed, Vec::<String>::new());
    assert_eq!(inode(kept), before[0], "the socket file is the same");
    assert_ne!(inode(lost), before[1], "the folder was emptied, so it was bound anew");
    // A killed master: whoever comes meanwhile waits.
    machine.sh("systemctl kill -s KILL --kill-whom=main rcluster").ok();
    assert!(machine.within(|| exchange(OWN, REQUEST)).is_ok());
    // As many descriptors as sockets, none of those that are gone; and the state.
    let stored = machine.property("NFileDescriptorStore");
    assert_eq!(stored, "4", "{}", machine.journal(OURS));
    configure(machine, &silent);
    reload(machine).ok();
    machine.wait_for("test \"$(systemctl show --value -p NFileDescriptorStore rcluster)\" = 1");
    assert!(machine.within(|| exchange(OWN, REQUEST)).is_err(), "no pool listens there");
    assert!(machine.sh(&format!("test -e {kept}")).code != 0, "its file is gone, too");
}

fn get_unix(machine: &Machine, path: &str) -> String {
    let mut client = UnixStream::connect(machine.path(path)).unwrap();
    client.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    client.write_all(REQUEST.as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

/// Clients who come around the moment at which an unused service ends.
fn nobody_is_lost_around_the_end_of_an_unused_service(machine: &Machine) {
    const IDLE: Duration = Duration::from_millis(20);
    let config = format!("[master]\nidle-exit = \"20ms\"\n{}", web("").replace("= 2", "= 1"));
    // 1 500 by RCLUSTER_TEST_CLIENTS; each starts the service anew.
    let clients = std::env::var("RCLUSTER_TEST_CLIENTS").ok().and_then(|text| text.parse().ok());
    let clients: u32 = clients.unwrap_or(300);
    // Nobody looks at it from outside before the next client does.
    install(machine, &config);
    let (failed, longest) = machine.within(|| {
        let (mut failed, mut longest) = (Vec::new(), Duration::ZERO);
        for number in 0..clients {
            let begun = Instant::now();
            if let Err(why) = exchange(8080, REQUEST) {
                failed.push(why);
            }
            longest = longest.max(begun.elapsed());
            // From a little before the end of the idle time to a little after the end of the
            // process, step by step.
            std::thread::sleep(IDLE * 3 / 4 + Duration::from_micros(u64::from(number % 300) * 100));
        }
        (failed, longest)
    });
    machine.wait_for("systemctl show --value -p ActiveState rcluster | grep -qx inactive");
    let ends = machine.journal(OURS).matches("nobody has connected for").count();
    println!(
        "{:?}: {} of {clients} answered, {ends} starts, longest {longest:?}",
        machine.tree,
        clients as usize - failed.len()
    );
    assert_eq!(failed, Vec::<String>::new());
    assert!(ends > clients as usize / 4, "it hardly ever ended: {ends}");
    assert_eq!(machine.property("Result"), "success");
    assert_eq!(machine.property("NRestarts"), "0");
}

fn failing_starts_never_close_the_port(machine: &Machine) {
    drop_in(machine, "rcluster.service", "[Service]\nRestartSec=100ms\n");
    install(machine, "nonsense");
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..5).map(|_| scope.spawn(|| get(machine, "/pid"))).collect();
        machine.wait_for("test \"$(systemctl show --value -p NRestarts rcluster)\" -ge 10");
        machine.sh("systemctl is-active --quiet rcluster.socket").ok();
        // Between two starts; the next one begins with an empty line.
        machine.wait_for("systemctl status --lines=0 rcluster | grep 'Status: \"Failed: '");
        configure(machine, &web(""));
        for client in clients {
            let answer = client.join().unwrap();
            assert!(answer.is_ok(), "{answer:?}");
        }
    });
    assert_eq!(machine.property("ActiveState"), "active");
}

crate::scenarios! {
    a_failed_reload_is_seen_in_the_status_until_the_next_good_one,
    what_takes_longer_than_systemd_waits_is_waited_for,
    a_frozen_master_is_replaced_and_clients_only_wait,
    what_rcluster_bound_itself_stays_open_over_restarts_and_crashes,
    nobody_is_lost_around_the_end_of_an_unused_service,
    failing_starts_never_close_the_port,
}
