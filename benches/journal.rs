//! What a line of a worker costs on its way to the journal, by each way there is: CPU time of
//! everybody who touches it, beside a service that writes to its standard output without rcluster.
//!
//! `cargo bench --bench journal` boots a machine for it (only root can) and prints the table that the
//! README shows.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measuring tool"
)]

#[path = "../tests/systemd/machine.rs"]
mod machine;
#[path = "../tests/systemd/service.rs"]
mod service;
#[path = "../tests/support/mod.rs"]
mod support;

use machine::{Machine, Tree};
use service::{drop_in, pool, serve};

const LINES: u32 = 100_000;

/// One write a line, as programs do that want to be read.
const WRITER: &str = "stdbuf -oL seq -f 'line %.0f of a worker, as long as such lines are: eighty bytes of it all.' 100000";

fn main() {
    // `cargo bench` and `cargo test --benches` say which; a test run only proves that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return println!("test result: ok. 0 passed; 0 failed; 0 ignored;");
    }
    let machine = match Machine::boot(Tree::Own) {
        Ok(machine) => machine,
        Err(why) => return println!("LEFT OUT: {why}"),
    };
    println!("| `log =` | CPU per line, µs: journald | the service | together | beside plain |");
    println!("|---|---|---|---|---|");
    let plain = row("plain stdout", None, plain(&machine));
    for log in ["inherit", "stream", "fields"] {
        row(&format!("`{log}`"), Some(plain), relayed(&machine, log));
    }
}

/// What a way costs: journald and the service, µs a line.
struct Cost {
    journald: f64,
    service: f64,
}

fn row(name: &str, plain: Option<f64>, cost: Cost) -> f64 {
    let Cost { journald, service } = cost;
    let total = journald + service;
    let ratio = total / plain.unwrap_or(total);
    println!("| {name} | {journald:.1} | {service:.1} | {total:.1} | {ratio:.2} |");
    total
}

/// CPU time of all processes that a unit has had, µs.
fn cpu_of(machine: &Machine, unit: &str) -> f64 {
    let path = machine.path(&format!("/sys/fs/cgroup/system.slice/{unit}/cpu.stat"));
    let stat = std::fs::read_to_string(path).unwrap();
    let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
    usage.parse().unwrap()
}

/// Costs of what the unit writes from now on, until all of it is in the journal.
fn measure(machine: &Machine, unit: &str, found: &str, begin: impl FnOnce()) -> Cost {
    let journald = "systemd-journald.service";
    machine.sh("journalctl --sync && journalctl --rotate && journalctl --vacuum-time=1s");
    let (journald_before, before) = (cpu_of(machine, journald), cpu_of(machine, unit));
    begin();
    machine.wait_for(&format!("journalctl {found} -n 1 -o cat | grep -q '^line {LINES} '"));
    let service = cpu_of(machine, unit) - before;
    machine.sh("journalctl --sync");
    let journald = cpu_of(machine, journald) - journald_before;
    let count = format!("journalctl {found} -o cat | grep -c '^line '");
    let stored = machine.sh(&count).text.trim().parse::<u32>().unwrap();
    assert_eq!(stored, LINES, "lines were lost");
    let lines = f64::from(LINES);
    Cost { journald: journald / lines, service: service / lines }
}

/// Waits for a file, writes, and stays.
fn script(go: &str) -> String {
    format!("(until [ -e {go} ]; do sleep 0.2; done; {WRITER}; exec sleep infinity) &")
}

/// A service of its own, without rcluster.
fn plain(machine: &Machine) -> Cost {
    let unit = "plain.service";
    let text = format!(
        "[Service]\nExecStart=/bin/sh -c \"{}\nwait\"\nLogRateLimitIntervalSec=1s\n\
         LogRateLimitBurst=10000000\n",
        script("/run/plain").replace('\n', " ").replace('%', "%%")
    );
    let text = text.replace("\nwait\"", " wait\"");
    machine.write("/etc/systemd/system/plain.service", &text);
    machine.sh("systemctl daemon-reload && systemctl start plain").ok();
    let cost = measure(machine, unit, "-u plain", || machine.write("/run/plain", ""));
    machine.sh("systemctl stop plain");
    cost
}

/// A worker of rcluster.
fn relayed(machine: &Machine, log: &str) -> Cost {
    drop_in(machine, "rcluster.service", "[Service]\nLogRateLimitBurst=10000000\n");
    let script = format!("{}\nexec /usr/bin/rcluster demo-worker http", script("/run/rcluster/go"));
    let pool = pool("web", &format!("\"/bin/sh\", \"-c\", '''{script}'''"), "");
    let pool = pool.replace("workers = 2", "workers = 1");
    serve(machine, &format!("[master]\nlog = \"{log}\"\n{pool}"));
    let go = || machine.write("/run/rcluster/go", "");
    let cost = measure(machine, "rcluster.service", "-u rcluster", go);
    machine.sh("systemctl stop rcluster.socket");
    cost
}
