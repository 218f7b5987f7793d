//! What processes have used, read from `/proc`: nanoseconds of CPU, memory, system calls.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// CPU time that a process and its threads have had, in µs. Threads that have ended are not in it.
pub fn cpu(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_thread = |path: std::path::PathBuf| -> f64 {
        let stat = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        stat.split(' ').next().and_then(|time| time.parse::<f64>().ok()).unwrap_or(0.0) / 1000.0
    };
    threads.map(|thread| of_thread(thread.path())).sum()
}

pub fn cpu_of_all(pids: &[u32]) -> f64 {
    pids.iter().map(|&pid| cpu(pid)).sum()
}

/// A line of `/proc/PID/status`, its number: `VmRSS` and the like are kB.
pub fn status(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// System calls of one process while `work` runs, by name. `None`: strace is not there or may not.
pub fn system_calls(pid: u32, work: impl FnOnce()) -> Option<Vec<(String, u64)>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-o"]).arg(file.path()).args(["-p", &pid.to_string()]);
    let mut strace = command.stderr(Stdio::null()).spawn().ok()?;
    let end = Instant::now() + Duration::from_secs(5);
    while status(pid, "TracerPid") == 0 {
        if Instant::now() > end || !matches!(strace.try_wait(), Ok(None)) {
            let _ = strace.kill();
            let _ = strace.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    work();
    kill(Pid::from_raw(strace.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    strace.wait().unwrap();
    let text = std::fs::read_to_string(file.path()).unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // percent, seconds, µs a call, calls, sometimes errors, name
        let calls = words.get(3)?.parse().ok()?;
        let name = words.last().filter(|name| words.len() >= 5 && **name != "total")?;
        Some(((*name).to_owned(), calls))
    };
    Some(text.lines().filter_map(line).collect())
}

/// Least, median and most of some figures.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Spread {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (Some(&least), Some(&most)) = (figures.first(), figures.last()) else {
            return Spread { least: f64::NAN, median: f64::NAN, most: f64::NAN };
        };
        Spread { least, median: figures[figures.len() / 2], most }
    }
}

/// `1.04 (0.98–1.21)`
impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2}–{:.2})", self.median, self.least, self.most)
    }
}

/// What figures were measured on.
pub fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model);
    let virtual_machine = if info.contains(" hypervisor") { ", a virtual machine" } else { "" };
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    format!("{cpus} CPUs ({model}{virtual_machine}), Linux {}, load {load} before", kernel.trim())
}
