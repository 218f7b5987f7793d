//! The service in a machine: installed, configured, spoken to.

use std::path::Path;

use crate::machine::{Machine, Ran, built};
use crate::support::load::{Load, exchange};

/// Where the packages' socket unit listens.
pub const PORT: u16 = 8080;

/// The service's journal since the machine was booted.
pub const OURS: &str = "-u rcluster.service";

/// A pool `web` of the demo's workers; `{ms}` in their configuration is not touched.
pub fn web(extra: &str) -> String {
    pool("web", "\"/usr/bin/rcluster\", \"demo-worker\", \"http\"", extra)
}

/// A pool on the socket of the same name.
pub fn pool(name: &str, command: &str, extra: &str) -> String {
    format!("[pool.{name}]\ncommand = [{command}]\nlisten = [\"{name}\"]\nworkers = 2\n{extra}\n")
}

/// The files of the service, put where the packages put them, and the socket listening.
pub fn install(machine: &Machine, config: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    machine.put(built("rcluster"), "/usr/bin/rcluster");
    for name in ["rcluster.service", "rcluster.socket", "rcluster-adopt.socket"] {
        for unit in [name.to_owned(), name.replace('.', "@.")] {
            let place = format!("/usr/lib/systemd/system/{unit}");
            machine.put(root.join("systemd").join(unit), &place);
        }
    }
    machine.put(root.join("systemd/rcluster.sysusers"), "/usr/lib/sysusers.d/rcluster.conf");
    machine.sh("systemd-sysusers rcluster.conf").ok();
    configure(machine, config);
    machine.sh("systemctl daemon-reload && systemctl start rcluster.socket").ok();
}

/// Installs it and starts it; it serves.
pub fn serve(machine: &Machine, config: &str) {
    install(machine, config);
    machine.sh("systemctl start rcluster.service").ok();
}

/// Writes another configuration; a reload will read it.
pub fn configure(machine: &Machine, config: &str) {
    machine.write("/etc/rcluster/rcluster.toml", config);
}

/// Something that a drop-in of the service says.
pub fn drop_in(machine: &Machine, unit: &str, text: &str) {
    machine.write(&format!("/etc/systemd/system/{unit}.d/test.conf"), text);
    machine.sh("systemctl daemon-reload").ok();
}

/// `systemctl reload rcluster`
pub fn reload(machine: &Machine) -> Ran {
    machine.run("systemctl", &["reload", "rcluster"])
}

/// One request to the service, from within.
pub fn get(machine: &Machine, path: &str) -> Result<String, String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    machine.within(|| exchange(PORT, &request))
}

/// Clients at work, from within: so many new connections a second.
pub fn paced(machine: &Machine, rate: u32, path: &str) -> Load {
    machine.within(|| Load::paced(PORT, rate, path))
}

/// Waits for this many answers more.
pub fn wait_answers(load: &Load, more: u64) {
    use std::sync::atomic::Ordering::SeqCst;
    let enough = load.answered.load(SeqCst) + more;
    let end = std::time::Instant::now() + crate::support::PATIENCE;
    while load.answered.load(SeqCst) < enough {
        assert!(std::time::Instant::now() < end, "clients are not answered any more");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
