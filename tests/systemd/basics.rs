//! Starting through the socket, reloading well and badly, restarting, stopping: what an
//! administrator does every day, while clients come all the time.

use std::time::Duration;

use crate::machine::{Machine, built};
use crate::service::{
    OURS, PORT, configure, drop_in, get, install, paced, pool, reload, serve, wait_answers, web,
};
use crate::support::keep_alive::Clients;

/// New connections a second.
const RATE: u32 = 600;

/// A handler that takes some time, so that there is always something in hand.
const PAGE: &str = "/sleep/20";

#[track_caller]
fn all_answered(machine: &Machine, what: &str, load: crate::support::load::Load) {
    let tally = load.finish();
    println!(
        "{:?}: {what}: {} answered, {} failed, longest {:?}",
        machine.tree,
        tally.answered,
        tally.failed.len(),
        tally.longest
    );
    assert_eq!(tally.failed, Vec::<String>::new());
}

/// What fails in a second's time: a worker of it never gets ready.
fn broken() -> String {
    pool("web", "\"/bin/sh\", \"-c\", \"echo the database is missing; exit 3\"", "")
}

fn the_first_client_starts_the_service(machine: &Machine) {
    install(machine, &web(""));
    assert_eq!(machine.property("ActiveState"), "inactive");
    assert!(get(machine, "/pid").is_ok());
    assert_eq!(machine.property("ActiveState"), "active");
    assert_eq!(machine.property("StatusText"), "Running 2 workers, generation 1");
    // Asking for its state never starts a stopped service; stopping the socket stops both.
    machine.sh("systemctl stop rcluster.socket").ok();
    assert_eq!(machine.property("ActiveState"), "inactive");
    machine.sh("rcluster status").refused();
    assert_eq!(machine.property("ActiveState"), "inactive");
}

fn a_reload_returns_when_all_workers_are_new_and_costs_nothing(machine: &Machine) {
    serve(machine, &web(""));
    let load = paced(machine, RATE, PAGE);
    wait_answers(&load, 100);
    for generation in 2..=5 {
        let ran = reload(machine).ok();
        let status = machine.run("rcluster", &["status", "--json"]).ok();
        let status: serde_json::Value = serde_json::from_str(&status.text).unwrap();
        assert_eq!(status["pools"][0]["generation"], generation, "{status}");
        assert_eq!(status["pools"][0]["workersServing"], 2, "{status}");
        assert!(status["rollout"].is_null(), "{status}");
        println!("{:?}: a reload took {:?}", machine.tree, ran.took);
        wait_answers(&load, 100);
    }
    all_answered(machine, "4 reloads", load);
}

fn nobody_who_is_connected_notices_a_reload(machine: &Machine) {
    let mixed = built("examples/mixed");
    if !mixed.exists() {
        println!("LEFT OUT: the example mixed is not built; `cargo test` without --test does it");
        return;
    }
    machine.put(mixed, "/usr/local/bin/mixed");
    serve(machine, &pool("web", "\"/usr/local/bin/mixed\", \"serve\"", ""));
    let clients = machine.within(|| Clients::connect(PORT, 50));
    clients.wait(100);
    for _ in 0..5 {
        reload(machine).ok();
        clients.wait(50);
    }
    let seen = clients.finish();
    println!(
        "{:?}: 5 reloads, 50 kept connections: {} answered, {} failed, {} closed",
        machine.tree,
        seen.answered,
        seen.failed.len(),
        seen.closed + seen.announced
    );
    assert_eq!(seen.failed, Vec::<String>::new());
    assert_eq!(seen.closed + seen.announced, 0);
}

fn a_broken_deploy_leaves_the_old_version_serving_and_says_why(machine: &Machine) {
    serve(machine, &web(""));
    let load = paced(machine, RATE, PAGE);
    wait_answers(&load, 100);
    configure(machine, &broken());
    let ran = reload(machine).refused();
    assert!(ran.text.contains("Job for rcluster.service failed"), "{}", ran.text);
    assert_eq!(machine.property("ActiveState"), "active");
    let why = "exited with status 3";
    let status = machine.sh("systemctl status rcluster").text;
    assert!(status.contains(why), "{status}");
    assert!(machine.journal(OURS).contains(why));
    let told = machine.run("rcluster", &["reload"]).refused().text;
    assert!(told.contains(why), "{told}");
    // What is no configuration at all, is refused before anything begins.
    configure(machine, &web("worker = 3"));
    let told = machine.run("rcluster", &["reload"]).refused().text;
    assert!(told.contains("rcluster.toml:5:1") && told.contains("`workers`"), "{told}");
    reload(machine).refused();
    configure(machine, &web(""));
    reload(machine).ok();
    let status = machine.sh("systemctl status rcluster").text;
    assert!(!status.contains(why), "{status}");
    wait_answers(&load, 100);
    all_answered(machine, "four failed reloads and a good one", load);
}

fn overlapping_reloads_all_return(machine: &Machine) {
    serve(machine, &web(""));
    let load = paced(machine, RATE, PAGE);
    wait_answers(&load, 100);
    std::thread::scope(|scope| {
        let reloads: Vec<_> = (0..5)
            .map(|number| {
                scope.spawn(move || match number % 2 {
                    0 => reload(machine),
                    _ => machine.run("rcluster", &["reload"]),
                })
            })
            .collect();
        for reload in reloads {
            reload.join().unwrap().ok();
        }
    });
    all_answered(machine, "5 reloads at once", load);
}

fn sigusr1_to_every_process_is_a_rolling_restart_and_kills_nobody(machine: &Machine) {
    serve(machine, &web(""));
    let load = paced(machine, RATE, PAGE);
    wait_answers(&load, 100);
    machine.sh("systemctl kill -s USR1 --kill-whom=main rcluster").ok();
    machine.wait_for("journalctl -u rcluster | grep 'generation 2 serves'");
    // All of them, workers that are just starting too.
    for generation in 3..=6 {
        machine.sh("systemctl kill -s USR1 rcluster").ok();
        machine.sh("systemctl kill -s USR1 rcluster").ok();
        machine
            .wait_for(&format!("journalctl -u rcluster | grep 'generation {generation} serves'"));
    }
    let journal = machine.journal(OURS);
    assert!(!journal.contains("lost:") && !journal.contains("killed by"), "{journal}");
    assert_eq!(machine.property("NRestarts"), "0");
    all_answered(machine, "SIGUSR1 to everybody", load);
}

fn restarts_lose_nobody(machine: &Machine) {
    serve(machine, &web(""));
    let load = paced(machine, RATE, PAGE);
    wait_answers(&load, 100);
    for _ in 0..6 {
        machine.sh("systemctl restart rcluster").ok();
        wait_answers(&load, 50);
    }
    machine.sh("systemctl daemon-reload").ok();
    machine.sh("systemctl daemon-reexec").ok();
    wait_answers(&load, 100);
    machine.sh("systemctl restart systemd-journald").ok();
    wait_answers(&load, 100);
    reload(machine).ok();
    machine.sh("journalctl --sync").ok();
    assert!(machine.journal(OURS).contains("generation 2 serves"), "it is heard afterwards, too");
    all_answered(machine, "6 restarts, daemon-reexec, restart of journald", load);
}

fn stops_and_reloads_that_meet_both_return(machine: &Machine) {
    serve(machine, &web("drain-timeout = \"20s\""));
    // One request is under way for as long as it takes.
    let slow = std::thread::scope(|scope| {
        let slow = scope.spawn(|| get(machine, "/sleep/3000"));
        machine.wait_for("rcluster status --json | grep -q '\"inHand\": *1'");
        // Reload during stop.
        let stop = scope.spawn(|| machine.sh("systemctl stop rcluster"));
        machine.wait_for("journalctl -u rcluster | grep stopping");
        let direct = machine.run("rcluster", &["reload"]);
        assert_eq!(direct.code, 1, "{}", direct.text);
        assert!(direct.text.contains("stop"), "{}", direct.text);
        let late = reload(machine);
        assert_ne!(late.code, 124, "it hangs: {}", late.text);
        // On 257 the reload takes the place of the stop's job, whose caller is told so.
        let stop = stop.join().unwrap();
        assert!(stop.code == 0 || stop.text.contains("canceled"), "{}", stop.text);
        slow.join().unwrap()
    });
    assert!(slow.is_ok(), "{slow:?}");
    machine.wait_for("! systemctl is-active --quiet rcluster");
    // Stop during reload: a new generation that takes its time to get ready.
    machine.sh("systemctl start rcluster").ok();
    configure(machine, &pool("web", "\"/bin/sleep\", \"1000\"", "start-timeout = \"60s\""));
    std::thread::scope(|scope| {
        let reloading = scope.spawn(|| reload(machine));
        machine.wait_for("systemctl status rcluster | grep 'Rolling restart'");
        let stop = machine.sh("systemctl stop rcluster").ok();
        assert!(stop.took < Duration::from_secs(60));
        let reloading = reloading.join().unwrap();
        assert_eq!(reloading.code, 1, "{}", reloading.text);
    });
    assert_eq!(machine.property("Result"), "success", "{}", machine.journal(OURS));
    assert_eq!(machine.property("ActiveState"), "inactive");
    assert_eq!(machine.processes(), 0, "somebody is left");
}

fn a_lost_service_comes_back_by_itself(machine: &Machine) {
    drop_in(machine, "rcluster.service", "[Service]\nWatchdogSec=2\n");
    serve(machine, &web(""));
    for _ in 0..3 {
        machine.sh("systemctl kill -s KILL --kill-whom=main rcluster").ok();
        assert!(get(machine, "/pid").is_ok(), "the next client waits and is answered");
    }
    assert_eq!(machine.processes(), 3, "a master and two workers");
}

crate::scenarios! {
    the_first_client_starts_the_service,
    a_reload_returns_when_all_workers_are_new_and_costs_nothing,
    nobody_who_is_connected_notices_a_reload,
    a_broken_deploy_leaves_the_old_version_serving_and_says_why,
    overlapping_reloads_all_return,
    sigusr1_to_every_process_is_a_rolling_restart_and_kills_nobody,
    restarts_lose_nobody,
    stops_and_reloads_that_meet_both_return,
    a_lost_service_comes_back_by_itself,
}
