//! The units: checked, hardened, changed by drop-ins, several of them side by side.

use std::path::Path;

use crate::machine::{Machine, Tree};
use crate::service::{get, install, paced, pool, reload, serve, wait_answers, web};
use crate::support::load::exchange;

fn the_units_are_in_order_and_hardened(machine: &Machine) {
    install(machine, &web(""));
    let units = "rcluster.service rcluster.socket rcluster-adopt.socket rcluster@a.service \
                 rcluster@a.socket rcluster-adopt@a.socket";
    let verified = machine.sh(&format!("systemd-analyze verify --man=no {units}")).ok().text;
    let about_us: Vec<&str> = verified.lines().filter(|line| line.contains("rcluster")).collect();
    assert_eq!(about_us, Vec::<&str>::new());
    // In tenths: 1.7 and 1.5.
    let limit = if machine.tree == Tree::Own { 17 } else { 15 };
    for unit in ["rcluster.service", "rcluster@a.service"] {
        let check = format!("systemd-analyze security --offline=true --threshold={limit} {unit}");
        let text = machine.sh(&check).ok().text;
        let score = text.lines().find(|line| line.contains("Overall exposure")).unwrap_or("");
        println!("{:?}: {}", machine.tree, score.trim_start_matches("→ "));
    }
}

fn two_instances_live_side_by_side(machine: &Machine) {
    install(machine, &web(""));
    machine.sh("systemctl stop rcluster.socket").ok();
    for (name, port) in [("shop", 8080), ("blog", 8081)] {
        machine.write(&format!("/etc/rcluster/{name}/rcluster.toml"), &web(""));
        machine.write(
            &format!("/etc/systemd/system/rcluster@{name}.socket.d/port.conf"),
            &format!("[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n"),
        );
    }
    machine.sh("systemctl daemon-reload").ok();
    machine.sh("systemctl enable --now rcluster@shop.socket rcluster@blog.socket").ok();
    // The first clients start them. A reload that comes before systemd calls them started would be
    // taken for a wish to start them.
    let request = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    machine.within(|| [8080, 8081].map(|port| exchange(port, request).unwrap()));
    machine.wait_for("systemctl is-active --quiet rcluster@shop rcluster@blog");
    let load = paced(machine, 300, "/");
    machine.sh("systemctl reload rcluster@shop").ok();
    machine.sh("rcluster reload -i blog").ok();
    for name in ["shop", "blog"] {
        let status = machine.sh(&format!("rcluster status -i {name} --json")).ok().text;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["pools"][0]["generation"], 2, "{name}: {status}");
    }
    machine.sh("systemctl stop rcluster@blog.socket").ok();
    wait_answers(&load, 50);
    assert_eq!(load.finish().failed, Vec::<String>::new());
    machine.sh("rcluster status -i blog").refused();
}

/// Puts one of the examples where its first lines say.
fn example(machine: &Machine, name: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = format!("/etc/systemd/system/rcluster.service.d/{name}");
    machine.put(root.join("systemd/examples").join(name), &place);
    machine.sh("systemctl daemon-reload").ok();
}

/// The service starts, reloads well and badly, and restarts; nobody is lost.
fn works(machine: &Machine, config: &str) {
    serve(machine, config);
    let load = paced(machine, 300, "/");
    wait_answers(&load, 50);
    reload(machine).ok();
    crate::service::configure(machine, &pool("web", "\"/bin/false\"", ""));
    reload(machine).refused();
    crate::service::configure(machine, config);
    reload(machine).ok();
    machine.sh("systemctl restart rcluster").ok();
    wait_answers(&load, 50);
    assert_eq!(load.finish().failed, Vec::<String>::new());
}

fn the_stricter_sandboxes_serve(machine: &Machine) {
    example(machine, "strict.conf");
    example(machine, "strict-native.conf");
    example(machine, "back-off.conf");
    works(machine, &web(""));
}

fn workers_run_as_other_users(machine: &Machine) {
    example(machine, "workers-as-other-users.conf");
    works(machine, &web("user = \"nobody\""));
    let pid = machine.property("MainPID");
    let status = |pid: &str| machine.sh(&format!("cat /proc/{pid}/status")).ok().text;
    assert!(status(&pid).contains("Uid:\t0\t0\t0\t0"), "the master is root");
    let worker = get(machine, "/pid").unwrap();
    let worker = status(worker.trim());
    assert!(worker.contains("Uid:\t65534\t65534\t65534\t65534"), "{worker}");
    for capabilities in ["CapEff", "CapPrm", "CapAmb"] {
        assert!(worker.contains(&format!("{capabilities}:\t0000000000000000")), "{worker}");
    }
    // Signals reach it: a worker that does not leave by itself is ended.
    machine.sh("rcluster scale web 1").ok();
    machine.sh("systemctl stop rcluster.socket").ok();
    assert_eq!(machine.processes(), 0);
}

crate::scenarios! {
    the_units_are_in_order_and_hardened,
    two_instances_live_side_by_side,
    the_stricter_sandboxes_serve,
    workers_run_as_other_users,
}
