//! The master is killed, and killed again: its workers serve on and are adopted by the next one. And
//! when the service is stopped, nothing is left of it, whatever state it is in.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::machine::Machine;
use crate::service::{PORT, drop_in, get, install, paced, pool, reload, serve, wait_answers, web};
use crate::support::PATIENCE;
use crate::support::keep_alive::Clients;

crate::scenarios!(
    a_killed_master_costs_at_most_whom_it_was_passing_on,
    a_master_that_is_killed_in_mid_reload_costs_at_most_whom_it_was_passing_on,
    nothing_is_left_after_a_stop,
    nothing_is_left_after_a_stop_while_no_master_runs,
    nothing_is_left_of_a_master_that_is_killed_while_it_stops,
    the_adoption_socket_may_end_alone,
    workers_of_other_users_are_adopted,
    where_it_is_wanted_workers_end_with_their_master,
);

/// New connections a second.
const RATE: u32 = 200;

fn kill_master(machine: &Machine) {
    machine.sh("systemctl kill -s KILL --kill-whom=main rcluster").ok();
}

/// Kills the master and waits until the next one is ready.
fn replace_master(machine: &Machine) {
    let before = machine.property("MainPID");
    kill_master(machine);
    machine.wait_for(&format!(
        "test $(systemctl show --value -p MainPID rcluster) != {before} \
         && systemctl is-active --quiet rcluster"
    ));
}

/// The process ids of the pool's workers.
fn workers(machine: &Machine) -> BTreeSet<u64> {
    let status = machine.sh("rcluster status --json").ok().text;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let workers = status["pools"][0]["workers"].as_array().unwrap();
    workers.iter().map(|worker| worker["pid"].as_u64().unwrap()).collect()
}

/// Waits until none of those workers is left. They leave when they have handed back what they hold.
fn others_serve(machine: &Machine, before: &BTreeSet<u64>) {
    let until = Instant::now() + PATIENCE;
    while !workers(machine).is_disjoint(before) {
        assert!(Instant::now() < until, "{:?} of {before:?}", workers(machine));
    }
}

/// Clients who stay and clients who come while `what` happens, in which the master is killed so many
/// times: nobody who stays is lost, and of those who come one at most with each master, who was just
/// passing it on.
fn nobody_is_lost(machine: &Machine, name: &str, kills: usize, what: impl FnOnce(&Clients)) {
    let kept = machine.within(|| Clients::connect(PORT, 50));
    let coming = paced(machine, RATE, "/sleep/20");
    kept.wait(100);
    wait_answers(&coming, 100);
    what(&kept);
    kept.wait(100);
    wait_answers(&coming, 100);
    let (kept, coming) = (kept.finish(), coming.finish());
    println!(
        "{:?}: {name}: of 50 kept connections {} answered, {} failed, {} closed; of new ones {} \
         answered, {} failed, longest {:?}",
        machine.tree,
        kept.answered,
        kept.failed.len(),
        kept.closed + kept.announced,
        coming.answered,
        coming.failed.len(),
        coming.longest
    );
    let journal = || machine.journal("-u rcluster -n 200");
    let lost = kept.failed.len() as u64 + kept.closed + kept.announced;
    assert_eq!(lost, 0, "{:?}\n{}", kept.failed, journal());
    assert!(coming.failed.len() <= kills, "{:?}\n{}", coming.failed, journal());
}

fn a_killed_master_costs_at_most_whom_it_was_passing_on(machine: &Machine) {
    serve(machine, &web(""));
    let before = workers(machine);
    nobody_is_lost(machine, "the master killed 8 times", 8, |kept| {
        for _ in 0..8 {
            replace_master(machine);
            kept.wait(50);
        }
    });
    assert_eq!(workers(machine), before, "the same workers serve");
    assert_eq!(machine.property("NRestarts"), "8");
    assert_eq!(machine.processes(), 3, "a master and two workers");
    // It is a master like any other.
    reload(machine).ok();
    others_serve(machine, &before);
}

fn a_master_that_is_killed_in_mid_reload_costs_at_most_whom_it_was_passing_on(machine: &Machine) {
    serve(machine, &web(""));
    nobody_is_lost(machine, "killed in mid-reload 6 times", 6, |kept| {
        for round in 0..6_u64 {
            machine.sh("rcluster reload --no-wait").ok();
            // Somewhere in the middle of it.
            std::thread::sleep(Duration::from_millis(7 * round));
            replace_master(machine);
            kept.wait(50);
        }
    });
    reload(machine).ok();
    machine
        .wait_for("test $(wc -l </sys/fs/cgroup/system.slice/rcluster.service/cgroup.procs) = 3");
}

/// After a stop: no process, and nobody who starts it again.
fn nothing_is_left(machine: &Machine) {
    assert_eq!(machine.processes(), 0, "{}", machine.journal("-n 50"));
    let state = "systemctl is-active rcluster.service rcluster-adopt.socket";
    machine.wait_for(&format!("! {state} | grep -v 'inactive\\|failed'"));
    assert_eq!(machine.processes(), 0, "it was started again");
    machine.sh("test ! -e /run/rcluster.adopt").ok();
}

fn wait_until_swept(machine: &Machine) {
    machine.wait_for(
        "systemctl show -p ActiveState rcluster-adopt.socket | grep inactive \
         && ! grep . /sys/fs/cgroup/system.slice/rcluster.service/cgroup.procs",
    );
}

fn nothing_is_left_after_a_stop(machine: &Machine) {
    serve(machine, &web(""));
    machine.sh("systemctl stop rcluster.socket rcluster.service").ok();
    nothing_is_left(machine);
    // With workers that are adopted, and at once after the kill, when they may not be yet.
    machine.sh("systemctl start rcluster").ok();
    replace_master(machine);
    machine.sh("systemctl stop rcluster.socket rcluster.service").ok();
    nothing_is_left(machine);
    for _ in 0..4 {
        machine.sh("systemctl start rcluster").ok();
        kill_master(machine);
        machine.sh("systemctl stop rcluster.socket rcluster.service").ok();
        // Where no master runs, it is the end of the adoption socket that ends the workers.
        wait_until_swept(machine);
        nothing_is_left(machine);
    }
}

fn nothing_is_left_after_a_stop_while_no_master_runs(machine: &Machine) {
    drop_in(machine, "rcluster.service", "[Service]\nRestartSec=300\n");
    serve(machine, &web(""));
    kill_master(machine);
    machine.wait_for("systemctl show -p SubState rcluster | grep auto-restart");
    assert_eq!(machine.processes(), 2, "the workers wait");
    machine.sh("systemctl stop rcluster.socket rcluster.service").ok();
    wait_until_swept(machine);
    nothing_is_left(machine);
}

fn nothing_is_left_of_a_master_that_is_killed_while_it_stops(machine: &Machine) {
    serve(machine, &web("drain-timeout = \"60s\""));
    // One request is under way for as long as it takes.
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| get(machine, "/sleep/60000"));
        machine.wait_for("rcluster status --json | grep -q '\"inHand\": *1'");
        machine.sh("systemctl stop --no-block rcluster.socket rcluster.service").ok();
        machine.wait_for("journalctl -u rcluster | grep stopping");
        kill_master(machine);
        machine.wait_for("systemctl show -p SubState rcluster | grep 'failed\\|dead'");
        nothing_is_left(machine);
        assert!(slow.join().unwrap().is_err());
    });
    let journal = machine.journal("-u rcluster");
    assert!(journal.contains("ended 1 process that the service had left behind"), "{journal}");
}

fn the_adoption_socket_may_end_alone(machine: &Machine) {
    serve(machine, &web(""));
    let (master, before) = (machine.property("MainPID"), workers(machine));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| get(machine, "/sleep/1000"));
        machine.wait_for("rcluster status --json | grep -q '\"inHand\": *1'");
        machine.sh("systemctl stop rcluster-adopt.socket").ok();
        assert_eq!(slow.join().unwrap(), Ok("slept 1000 ms".to_owned()));
    });
    assert_eq!((machine.property("MainPID"), workers(machine)), (master, before));
    // The next start brings it back.
    machine.sh("systemctl restart rcluster").ok();
    let before = workers(machine);
    replace_master(machine);
    assert_eq!(workers(machine), before);
}

fn workers_of_other_users_are_adopted(machine: &Machine) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    machine.put(
        root.join("systemd/examples/workers-as-other-users.conf"),
        "/etc/systemd/system/rcluster.service.d/users.conf",
    );
    serve(machine, &web("user = \"nobody\""));
    let before = workers(machine);
    nobody_is_lost(machine, "workers of another user, the master killed 3 times", 3, |kept| {
        for _ in 0..3 {
            replace_master(machine);
            kept.wait(50);
        }
    });
    assert_eq!(workers(machine), before);
    machine.sh("systemctl stop rcluster.socket rcluster.service").ok();
    nothing_is_left(machine);
}

fn where_it_is_wanted_workers_end_with_their_master(machine: &Machine) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    machine.put(
        root.join("systemd/examples/workers-end-with-their-master.conf"),
        "/etc/systemd/system/rcluster.service.d/workers-end-with-their-master.conf",
    );
    install(machine, &pool("web", "\"/usr/bin/rcluster\", \"demo-worker\", \"http\"", ""));
    machine.sh("systemctl daemon-reload && systemctl start rcluster").ok();
    let before = workers(machine);
    replace_master(machine);
    assert!(get(machine, "/pid").is_ok());
    others_serve(machine, &before);
    assert_eq!(machine.processes(), 3);
}
