//! A throw-away machine: systemd as its first process, files that nobody else sees, a network of
//! its own with nothing but a loopback.
//!
//! It runs out of this system's own files (its systemd, with whatever was built here at its usual
//! path) or out of those of another release. All changes are kept in memory and vanish with it.
//! Every command is bounded in time: what hangs fails the test.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, RCLUSTER};

/// Where the files of a machine come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// This system's own: systemd 252 on Debian 12.
    Own,
    /// Debian 13's, as `tests/run` has fetched it: systemd 257.
    Trixie,
}

/// Seconds after which a command has hung.
const HUNG: u32 = 90;

/// A program as it was built for the tests: `rcluster`, `examples/mixed`. With RCLUSTER_TEST_PROFILE
/// it is another profile's, `release` for example, which `tests/run` has built.
pub fn built(name: &str) -> PathBuf {
    let own = Path::new(RCLUSTER).parent().unwrap();
    match std::env::var("RCLUSTER_TEST_PROFILE") {
        Ok(profile) => own.with_file_name(profile).join(name),
        Err(_) => own.join(name),
    }
}

/// A running machine. Dropping it ends it.
pub struct Machine {
    pub tree: Tree,
    unshare: Child,
    /// The first process, as this system numbers it.
    init: u32,
    folder: tempfile::TempDir,
    control_group: PathBuf,
}

/// What a command in a machine did.
#[derive(Debug)]
pub struct Ran {
    /// Its exit status; 124: it hung; 128 and more: it was killed by a signal.
    pub code: i32,
    /// What it printed, standard error last.
    pub text: String,
    pub took: Duration,
}

impl Ran {
    /// Fails unless it went well.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert_eq!(self.code, 0, "{}", self.text);
        self
    }

    /// Fails unless it failed, in time.
    #[track_caller]
    pub fn refused(self) -> Ran {
        assert_eq!(self.code, 1, "{}", self.text);
        self
    }
}

impl Tree {
    /// The folder, or why it cannot be had.
    pub fn folder(self) -> Result<PathBuf, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root can boot a machine".into());
        }
        let folder = match self {
            Tree::Own => PathBuf::from("/"),
            Tree::Trixie => {
                let folder = std::env::var_os("RCLUSTER_TEST_TRIXIE")
                    .unwrap_or_else(|| "/var/cache/rcluster-tests/trixie".into());
                PathBuf::from(folder)
            }
        };
        if folder.join("lib/systemd/systemd").exists()
            && folder.join("usr/bin/dbus-daemon").exists()
        {
            Ok(folder)
        } else {
            Err(format!("there is no bootable tree at {}; tests/run fetches it", folder.display()))
        }
    }
}

impl Machine {
    /// Boots a machine and waits until it is up.
    ///
    /// # Errors
    /// Why this system cannot run one.
    pub fn boot(tree: Tree) -> Result<Machine, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let lower = tree.folder()?;
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let control_group =
            control_groups()?.join(format!("rcluster-test.{}.{number}", std::process::id()));
        std::fs::create_dir(&control_group)
            .map_err(|error| format!("{}: {error}", control_group.display()))?;
        let console = File::create(folder.path().join("console")).unwrap();
        let files = folder.path().join("files");
        std::fs::create_dir(&files).unwrap();
        let unshare = Command::new("sh")
            .arg("-c")
            .arg(
                // It ends with this thread, also where the test is killed.
                "echo $$ >\"$1/cgroup.procs\" && shift && exec setsid setpriv --pdeathsig KILL \
                 unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup \"$@\"",
            )
            .arg("sh")
            .arg(&control_group)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd/boot"))
            .args([&files, &lower])
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console)
            .spawn()
            .unwrap();
        let mut machine = Machine { tree, unshare, init: 0, folder, control_group };
        machine.wait_until_up()?;
        Ok(machine)
    }

    fn wait_until_up(&mut self) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        let children = format!("/proc/{0}/task/{0}/children", self.unshare.id());
        loop {
            let init = std::fs::read_to_string(&children).unwrap_or_default();
            let init = init.trim();
            let name = std::fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
            let bus = format!("/proc/{init}/root/run/systemd/private");
            if name.trim() == "systemd" && Path::new(&bus).exists() {
                self.init = init.parse().unwrap();
                break;
            }
            let ended = self.unshare.try_wait().unwrap();
            if ended.is_some() || Instant::now() > end {
                let console = std::fs::read_to_string(self.folder.path().join("console"));
                return Err(format!("a machine cannot be booted here: {}", console.unwrap()));
            }
            // Neither unshare nor systemd tells a stranger when it is up.
            std::thread::sleep(Duration::from_millis(20));
        }
        self.sh("systemctl is-system-running --wait");
        Ok(())
    }

    /// Runs a line of shell in the machine.
    pub fn sh(&self, script: &str) -> Ran {
        self.run("sh", &["-c", script])
    }

    /// Runs a program in the machine.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        let begin = Instant::now();
        let output = self.command(program, arguments).output().unwrap();
        let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal));
        let text = [output.stdout, output.stderr].concat();
        Ran {
            code: code.unwrap(),
            text: String::from_utf8_lossy(&text).into_owned(),
            took: begin.elapsed(),
        }
    }

    /// A command that will run in the machine.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg(HUNG.to_string())
            .args(["nsenter", "--target", &self.init.to_string()])
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"])
            .args([
                "env",
                "-i",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ])
            .args(["HOME=/root", "LANG=C.UTF-8", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"])
            .args(["SYSTEMD_URLIFY=0", "DEBIAN_FRONTEND=noninteractive", program])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Does something in the machine's network, with this system's files.
    pub fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let network = File::open(format!("/proc/{}/ns/net", self.init)).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                // Of this thread alone, and of those that it starts.
                nix::sched::setns(network.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                what()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A path in the machine as this system sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Writes a file in the machine, and the folders on the way to it.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Copies a file of this system into the machine; its mode comes along.
    pub fn put(&self, from: impl AsRef<Path>, to: &str) {
        let path = self.path(to);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // A program that runs cannot be overwritten; it can be replaced.
        let fresh = path.with_extension("new");
        std::fs::copy(from.as_ref(), &fresh).unwrap();
        std::fs::rename(fresh, path).unwrap();
    }

    /// What the journal has about the service, oldest first, one message a line.
    pub fn journal(&self, matches: &str) -> String {
        self.sh(&format!("journalctl --sync; journalctl --no-pager --output=cat {matches}"))
            .ok()
            .text
    }

    /// Waits until a command succeeds; what it printed then.
    #[track_caller]
    pub fn wait_for(&self, script: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let ran = self.sh(script);
            if ran.code == 0 {
                return ran.text;
            }
            if Instant::now() > end {
                let journal =
                    self.sh("systemctl status rcluster; journalctl --no-pager -n 60").text;
                panic!("`{script}` does not come true: {}\n{journal}", ran.text);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How many processes the service has.
    pub fn processes(&self) -> usize {
        let group = self.path("/sys/fs/cgroup/system.slice/rcluster.service/cgroup.procs");
        std::fs::read_to_string(group).map_or(0, |processes| processes.lines().count())
    }

    /// A property of the service as systemd knows it.
    pub fn property(&self, name: &str) -> String {
        let show = self.run("systemctl", &["show", "--value", "-p", name, "rcluster.service"]);
        show.ok().text.trim().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let pid = if self.init == 0 { self.unshare.id() } else { self.init };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = self.unshare.wait();
        let end = Instant::now() + PATIENCE;
        // Emptied by the kernel some time after the last process is gone.
        while !remove_groups(&self.control_group) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where control groups of the unified hierarchy are made.
fn control_groups() -> Result<PathBuf, String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(place))
    });
    found.ok_or_else(|| "there is no unified control group hierarchy here".to_owned())
}

/// Removes a group and those in it; whether all are gone.
fn remove_groups(group: &Path) -> bool {
    if let Ok(entries) = std::fs::read_dir(group) {
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            remove_groups(&entry.path());
        }
    }
    match std::fs::remove_dir(group) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}
