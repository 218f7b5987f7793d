//! A real cluster under test: the real binary, real workers, real sockets.
//!
//! Nothing here sleeps in the hope that something has happened by then: tests wait for lines of the
//! master's log, for answers, and for processes to end. A wait that takes too long fails with the
//! log so far.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::missing_panics_doc)]
#![allow(missing_docs, reason = "tests")]

pub mod idle;
pub mod keep_alive;
pub mod load;
pub mod node;
pub mod sockets;
pub mod trial;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rcluster::wire::control::{Answer, Call, Pool, Status, encode};
use serde_json::{Value, json};

/// How long anything may take that should be quick.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test, which is its own demo worker, too.
pub const RCLUSTER: &str = env!("CARGO_BIN_EXE_rcluster");

/// How long the tests under load run: 3 s, or `RCLUSTER_TEST_SECONDS`.
pub fn load_time() -> Duration {
    let seconds = std::env::var("RCLUSTER_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

/// A running master. Dropping it kills it and whoever it left behind.
pub struct Cluster {
    child: Child,
    pub folder: tempfile::TempDir,
    pub port: u16,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Log {
    /// A test that failed while it looked at the log does not make the log worse.
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The configuration of a pool `web` of demo workers, to be extended line by line.
pub fn web(extra: &str) -> String {
    pool("web", "\"{rcluster}\", \"demo-worker\", \"http\"", "\"127.0.0.1:{port}\"", extra)
}

pub fn pool(name: &str, command: &str, listen: &str, extra: &str) -> String {
    format!("[pool.{name}]\ncommand = [{command}]\nlisten = [{listen}]\nworkers = 2\n{extra}\n")
}

impl Cluster {
    /// Starts a master with this configuration and waits until it serves.
    pub fn serve(config: &str) -> Cluster {
        let cluster = Cluster::start(config);
        cluster.wait_for("generation 1 serves");
        cluster
    }

    /// Starts a master. `{rcluster}`, `{port}` and `{folder}` stand for what they say.
    pub fn start(config: &str) -> Cluster {
        Cluster::start_by(config, |command| command)
    }

    /// Starts a master whose command is changed first.
    pub fn start_by(config: &str, change: impl Fn(&mut Command) -> &mut Command) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut command = Command::new(RCLUSTER);
        command.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
        Cluster::launch(folder, port, config, change(&mut command))
    }

    /// Runs `command` as the master, with the configuration written.
    pub fn launch(
        folder: tempfile::TempDir,
        port: u16,
        config: &str,
        command: &mut Command,
    ) -> Cluster {
        let log = Arc::new(Log::default());
        write_config(folder.path(), port, config);
        let child = launch(command, folder.path(), &log);
        Cluster { child, folder, port, log }
    }

    /// Kills the master alone, and waits until it is gone.
    pub fn kill_master(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts a master again, where one was killed.
    pub fn start_again(&mut self) {
        self.start_again_by(|command| command);
    }

    /// The same, with its command changed first.
    pub fn start_again_by(&mut self, change: impl Fn(&mut Command) -> &mut Command) {
        let mut command = Command::new(RCLUSTER);
        command.arg("run").arg("--config").arg(self.path("rcluster.toml"));
        self.child = launch(change(&mut command), self.folder.path(), &self.log);
    }

    /// Writes another configuration; a reload will read it.
    pub fn configure(&self, config: &str) {
        write_config(self.folder.path(), self.port, config);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().clone()
    }

    /// How many lines contain this.
    pub fn count(&self, needle: &str) -> usize {
        self.log().iter().filter(|line| line.contains(needle)).count()
    }

    /// Waits for a line that contains this, from the start on.
    pub fn wait_for(&self, needle: &str) -> String {
        self.wait_for_nth(needle, 1)
    }

    /// Waits for the `nth` line that contains this.
    pub fn wait_for_nth(&self, needle: &str, nth: usize) -> String {
        let end = Instant::now() + PATIENCE;
        let mut lines = self.log.lock();
        loop {
            if let Some(line) = lines.iter().filter(|line| line.contains(needle)).nth(nth - 1) {
                return line.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no `{needle}` ({nth}) in:\n{}", lines.join("\n"));
            let waited = self.log.grown.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends a signal to the master.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits until the master has ended.
    pub fn wait_end(&mut self) -> ExitStatus {
        self.wait_end_within(PATIENCE)
    }

    pub fn wait_end_within(&mut self, limit: Duration) -> ExitStatus {
        wait_end(&mut self.child, limit)
            .unwrap_or_else(|| panic!("the master goes on:\n{}", self.log().join("\n")))
    }

    /// Ends the master, which must leave neither these workers behind nor a file.
    pub fn end_whole(&mut self, workers: impl IntoIterator<Item = u32>) {
        self.signal("TERM");
        assert!(self.wait_end().success());
        for pid in workers {
            assert!(!is_alive(pid), "{pid} is left behind");
        }
        for left in ["control", "control.adopt", "control.state"] {
            assert!(!self.path(left).exists(), "{left} is left behind");
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Calls the control socket and returns the last answer.
    pub fn call(&self, method: &str, parameters: Value) -> Answer {
        let mut stream = self.connect_control();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let method = format!("io.rcluster.{method}");
        let call = Call { method, parameters, more: false, oneway: false };
        stream.write_all(&encode(&call)).unwrap();
        let mut answer = Vec::new();
        BufReader::new(stream).read_until(0, &mut answer).unwrap();
        assert_eq!(answer.pop(), Some(0), "no whole answer:\n{}", self.log().join("\n"));
        serde_json::from_slice(&answer).unwrap()
    }

    pub fn connect_control(&self) -> UnixStream {
        UnixStream::connect(self.path("control")).unwrap()
    }

    pub fn status(&self) -> Status {
        serde_json::from_value(self.call("Status", json!({})).parameters).unwrap()
    }

    /// Reloads everything and waits: the outcome, or why not.
    pub fn reload(&self) -> Result<String, String> {
        outcome(&self.call("Reload", json!({})))
    }

    pub fn rcluster_reload_pool(&self, pool: &str) -> Result<String, String> {
        outcome(&self.call("Reload", json!({ "pools": [pool] })))
    }

    /// Runs the command line against this master.
    pub fn rcluster(&self, arguments: &[&str]) -> Output {
        Command::new(RCLUSTER)
            .args(arguments)
            .env("RCLUSTER_CONTROL", self.path("control"))
            .output()
            .unwrap()
    }

    /// The process ids of the serving workers of a pool, by slot.
    pub fn pids(&self, pool: &str) -> Vec<u32> {
        let status = self.status();
        let pool = status.pools.iter().find(|other| other.name == pool).unwrap();
        pool.workers.iter().filter(|w| w.state == "serving").map(|w| w.pid).collect()
    }

    /// One request on a new connection: status line and body.
    pub fn get(&self, path: &str) -> std::io::Result<String> {
        get(self.port, path)
    }

    /// Waits until the first pool is as wanted.
    #[track_caller]
    pub fn wait_until(&self, wanted: impl Fn(&Pool) -> bool) -> Pool {
        let end = Instant::now() + PATIENCE;
        loop {
            let pool = self.status().pools.remove(0);
            if wanted(&pool) {
                return pool;
            }
            assert!(Instant::now() < end, "{pool:?}\n{}", self.log().join("\n"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Two SIGTERMs end everything at once, workers included.
            signal(self.pid(), "TERM");
            if wait_end(&mut self.child, Duration::from_millis(100)).is_none() {
                signal(self.pid(), "TERM");
            }
            if wait_end(&mut self.child, Duration::from_secs(5)).is_none() {
                let _ = self.child.kill();
            }
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the master's log ---\n{}", self.log().join("\n"));
        }
    }
}

pub fn outcome(answer: &Answer) -> Result<String, String> {
    let text = |key| answer.parameters.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    match answer.error {
        None => Ok(text("message")),
        Some(_) => Err(text("reason")),
    }
}

pub fn signal(pid: u32, name: &str) {
    // A process that has ended in between is no failure here.
    let _ =
        Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status();
}

/// Whether a process with this id exists and has not ended.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Waits for the end of a process that is not our child, by its pidfd.
pub fn wait_gone(pid: u32, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while is_alive(pid) {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

pub fn get(port: u16, path: &str) -> std::io::Result<String> {
    request(port, &format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"))
}

pub fn request(port: u16, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.trim_end().to_owned()),
        _ => Err(std::io::Error::other(format!("answered {answer:?}"))),
    }
}

fn launch(command: &mut Command, folder: &Path, log: &Arc<Log>) -> Child {
    command
        .env("RCLUSTER_CONTROL", folder.join("control"))
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(command);
    follow(child.stderr.take().unwrap(), log);
    follow(child.stdout.take().unwrap(), log);
    child
}

fn write_config(folder: &Path, port: u16, config: &str) {
    let text = config
        .replace("{rcluster}", RCLUSTER)
        .replace("{port}", &port.to_string())
        .replace("{folder}", &folder.display().to_string());
    std::fs::write(folder.join("rcluster.toml"), text).unwrap();
}

fn wait_end(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        // The standard library has no wait with a limit.
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn follow(source: impl Read + Send + 'static, log: &Arc<Log>) {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            log.lock().push(line);
            log.grown.notify_all();
        }
        log.grown.notify_all();
    });
}

/// How many descriptors a process has open, once nothing comes and goes any more: the clients of
/// a moment ago are closed when it gets to them.
pub fn descriptors(pid: u32) -> usize {
    let count = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let end = Instant::now() + PATIENCE;
    let (mut last, mut since) = (count(), Instant::now());
    while since.elapsed() < Duration::from_millis(100) {
        assert!(Instant::now() < end, "the descriptors of {pid} never settle");
        std::thread::sleep(Duration::from_millis(2));
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

/// Waits until a process has no more descriptors open than so many, which it had before: it may not
/// have got to what is to be closed.
#[track_caller]
pub fn descriptors_are_back(pid: u32, before: usize) {
    let end = Instant::now() + PATIENCE;
    while descriptors(pid) > before {
        assert!(Instant::now() < end, "{} descriptors are open, not {before}", descriptors(pid));
    }
}

/// The memory of a process that is resident and its own, KiB.
pub fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How long a process has computed.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1;
    let ticks = fields.split(' ').skip(11).take(2).map(|it| it.parse::<u64>().unwrap());
    // A tick is a hundredth of a second on every Linux.
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// A program that was just written may be open in a child that a test beside this one is forking at
/// the moment; then the kernel refuses it.
fn spawn(command: &mut Command) -> Child {
    let end = Instant::now() + PATIENCE;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                assert!(Instant::now() < end, "{error}");
                std::thread::sleep(Duration::from_millis(5));
            }
            spawned => return spawned.unwrap(),
        }
    }
}
