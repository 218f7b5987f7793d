//! The control socket among strangers: other users, other programs, and those who send rubbish.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::machine::{Machine, Tree};
use crate::service::{get, paced, serve, wait_answers, web};

const CONTROL: &str = "/run/rcluster/control";

/// A line of shell as somebody who has nothing to do with the service.
fn as_stranger(line: &str) -> String {
    format!("setpriv --reuid=65534 --regid=65534 --clear-groups -- sh -c '{line}'")
}

fn varlinkctl_describes_looks_and_commands(machine: &Machine) {
    if machine.tree == Tree::Own {
        println!("LEFT OUT: systemd 252 has no varlinkctl");
        return;
    }
    serve(machine, &web(""));
    let described = machine.run("varlinkctl", &["introspect", CONTROL, "io.rcluster"]).ok().text;
    for line in ["interface io.rcluster", "method Reload(", "method Status(", "error Refused"] {
        assert!(described.contains(line), "`{line}` is not in {described}");
    }
    let info = machine.run("varlinkctl", &["info", CONTROL]).ok().text;
    assert!(info.contains("rcluster") && info.contains("io.rcluster"), "{info}");
    let call = |method: &str, parameters: &str, more: &[&str]| {
        let arguments = [&["call"], more, &[CONTROL, method, parameters]].concat();
        machine.run("varlinkctl", &arguments)
    };
    let status = call("io.rcluster.Status", "{}", &["--json=short"]).ok().text;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["pools"][0]["workersServing"], 2, "{status}");
    let reloaded = call("io.rcluster.Reload", "{}", &["--more", "--json=short"]).ok().text;
    let last = reloaded.lines().last().unwrap().trim_start_matches('\u{1e}');
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["generation"], 2, "{reloaded}");
    call("io.rcluster.Scale", "{\"pool\":\"web\",\"workers\":3}", &[]).ok();
    let refused = call("io.rcluster.Scale", "{\"pool\":\"nobody\",\"workers\":3}", &[]);
    assert_ne!(refused.code, 0);
    assert!(refused.text.contains("there is no pool nobody"), "{}", refused.text);
}

fn strangers_may_look_if_they_are_let_in_and_never_command(machine: &Machine) {
    serve(machine, &web(""));
    let refused = machine.sh(&as_stranger("rcluster status")).refused().text;
    assert!(refused.contains("permission denied"), "{refused}");
    let open = format!("[master]\ncontrol-mode = \"0666\"\n{}", web(""));
    crate::service::configure(machine, &open);
    machine.sh("systemctl restart rcluster").ok();
    let seen = machine.sh(&as_stranger("rcluster status")).ok().text;
    assert!(seen.contains("web"), "{seen}");
    for command in ["reload", "stop", "scale web 1"] {
        let refused = machine.sh(&as_stranger(&format!("rcluster {command}"))).refused().text;
        assert!(refused.contains("may only look") || refused.contains("may command"), "{refused}");
    }
    // The service's own user is no stranger.
    let uid = "--reuid=rcluster --regid=rcluster --clear-groups";
    machine.sh(&format!("setpriv {uid} -- rcluster reload")).ok();
    machine.sh("rcluster scale web 3").ok();
    machine.wait_for("rcluster status --json | grep -q '\"workersServing\": *3'");
}

fn rubbish_neither_hangs_nor_ends_the_service(machine: &Machine) {
    serve(machine, &web(""));
    let load = paced(machine, 300, "/");
    wait_answers(&load, 50);
    let connect = || UnixStream::connect(machine.path(CONTROL)).unwrap();
    // Those who say half a sentence, or nothing, and stay.
    let mut patient: Vec<UnixStream> = (0..50).map(|_| connect()).collect();
    for stranger in &mut patient {
        stranger.write_all(b"{\"method\":\"io.rcluster.Relo").unwrap();
    }
    // Those who never end; refused at some point, however they hear of it.
    let mut endless = connect();
    while endless.write_all(&[b'x'; 65_536]).is_ok() {}
    // Those who say what is nothing.
    for nonsense in ["\0", "null\0", "{}\0", "[1]\0", "{\"method\":1}\0", "\u{7f}\u{7f}\0"] {
        let mut stranger = connect();
        stranger.write_all(nonsense.as_bytes()).unwrap();
        stranger.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stranger.read_to_string(&mut answer).unwrap();
    }
    // Those who ask much and never listen.
    let mut deaf: Vec<UnixStream> = (0..10).map(|_| connect()).collect();
    for stranger in &mut deaf {
        stranger.set_nonblocking(true).unwrap();
        let question = b"{\"method\":\"io.rcluster.Status\"}\0";
        while stranger.write_all(question).is_ok() {}
    }
    machine.run("rcluster", &["reload"]).ok();
    machine.run("systemctl", &["reload", "rcluster"]).ok();
    wait_answers(&load, 50);
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    assert_eq!(machine.property("NRestarts"), "0");
    drop((patient, deaf));
    assert!(get(machine, "/").is_ok());
}

crate::scenarios! {
    varlinkctl_describes_looks_and_commands,
    strangers_may_look_if_they_are_let_in_and_never_command,
    rubbish_neither_hangs_nor_ends_the_service,
}
