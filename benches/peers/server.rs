//! A server under measurement: started, reloaded, stopped with all that it started.
//!
//! Whatever a server leaves behind becomes a child of this process and is ended by its id; if this
//! process dies, the server is told to.

use std::fs::{File, read_to_string};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::load::ask_once;
use super::roster::Peer;

/// How long a server may take to its first answer.
const START_MAX: Duration = Duration::from_secs(30);
/// How long it may take to end when told to.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Between two looks at what cannot be waited for.
const LOOK: Duration = Duration::from_millis(20);

/// Where a server finds its things.
pub struct Site<'a> {
    /// Its own folder, gone afterwards.
    pub folder: &'a Path,
    pub port: u16,
    /// Where the peers were installed.
    pub peers: &'a Path,
}

impl Site<'_> {
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Writes a file into the folder; `{folder}` and `{port}` stand for what they say.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf, String> {
        let path = self.folder.join(name);
        let text = text
            .replace("{folder}", &self.folder.display().to_string())
            .replace("{port}", &self.port.to_string());
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// A program: at this place among the installed peers, or in the PATH.
    pub fn find(&self, name: &str, place: &str) -> Result<PathBuf, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let installed = (!place.is_empty()).then(|| self.peers.join(place));
        let mut places = installed
            .into_iter()
            .chain(std::env::split_paths(&path).map(|folder| folder.join(name)));
        places.find(|path| path.is_file()).ok_or_else(|| "not installed".to_owned())
    }
}

/// What it takes to run a server.
pub struct Setup {
    pub version: String,
    pub start: Command,
    pub reload: Reload,
}

pub enum Reload {
    /// To the process that was started.
    Signal(Signal),
    Command(Command),
}

/// A running server. Dropping it stops it.
pub struct Server {
    child: Child,
    reload: Reload,
    pub version: String,
    pub port: u16,
    /// Kept for as long as the server runs.
    _folder: tempfile::TempDir,
}

/// Whoever loses his parent below this process becomes a child of it.
pub fn adopt_orphans() {
    prctl::set_child_subreaper(true).unwrap();
}

impl Server {
    /// Starts it and waits for its first answer.
    pub fn start(peer: &Peer, peers: &Path) -> Result<Server, String> {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let site = Site { folder: folder.path(), port, peers };
        let setup = (peer.set_up)(&site)?;
        let log = folder.path().join("log");
        let output = File::create(&log).unwrap();
        let child = dying_with_us(&setup.start)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .map_err(|error| format!("it does not start: {error}"))?;
        let Setup { version, reload, .. } = setup;
        let mut server = Server { child, reload, version, port, _folder: folder };
        server.wait_for_answer().map_err(|why| {
            let log = read_to_string(log).unwrap_or_default();
            format!("{why}; last words: {}", log.lines().last().unwrap_or("none"))
        })?;
        Ok(server)
    }

    fn wait_for_answer(&mut self) -> Result<(), String> {
        let end = Instant::now() + START_MAX;
        loop {
            let Err(why) = ask_once(self.port) else { return Ok(()) };
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("it ended: {status}"));
            }
            if Instant::now() > end {
                return Err(format!("it does not answer: {why}"));
            }
            std::thread::sleep(LOOK);
        }
    }

    pub fn reload(&mut self) -> Result<(), String> {
        match &mut self.reload {
            Reload::Signal(signal) => {
                kill(pid_of(&self.child), *signal).map_err(|error| format!("it ended: {error}"))
            }
            Reload::Command(command) => {
                let output = command.stdin(Stdio::null()).output();
                let output = output.map_err(|error| format!("its reload: {error}"))?;
                let said = String::from_utf8_lossy(&output.stderr);
                let refused = || Err(format!("its reload: {}", said.trim()));
                if output.status.success() { Ok(()) } else { refused() }
            }
        }
    }

    /// How many processes it consists of, if it is the only one.
    pub fn processes(&self) -> usize {
        descendants(Pid::this()).len()
    }

    /// The process that was started, and all below it.
    #[allow(dead_code, reason = "not every bench asks")]
    pub fn family(&self) -> (u32, Vec<u32>) {
        let below = descendants(pid_of(&self.child));
        let below = below.into_iter().filter_map(|pid| u32::try_from(pid.as_raw()).ok());
        (self.child.id(), below.collect())
    }

    pub fn stop(self) {}
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(pid_of(&self.child), Signal::SIGTERM);
        let end = Instant::now() + STOP_MAX;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Servers run one at a time, or end together: whoever is left is of this one, or of none.
        while !descendants(Pid::this()).is_empty() {
            for pid in descendants(Pid::this()) {
                let _ = kill(pid, Signal::SIGKILL);
            }
            while reap() {}
            std::thread::sleep(LOOK);
        }
    }
}

/// The same command, which is told to end when this process does.
fn dying_with_us(start: &Command) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(start.get_program()).args(start.get_args());
    for (name, value) in start.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Waits for one that has ended; `false`: there is none.
fn reap() -> bool {
    let ended = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG));
    !matches!(ended, Err(Errno::ECHILD)) && ended.is_ok_and(|status| status.pid().is_some())
}

/// All that was started by a process and by those, zombies included.
fn descendants(of: Pid) -> Vec<Pid> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name before it may contain anything.
        let parent =
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parents.extend(parent.map(|parent: i32| (pid, parent)));
    }
    let mut found = vec![of.as_raw()];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.drain(1..).map(Pid::from_raw).collect()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap())
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
