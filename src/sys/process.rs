//! Processes by pidfd: start, watch, signal, reap.
//!
//! A pidfd cannot mean another process than the one it was opened for. Process *groups* have no
//! such handle; a group is only signalled while its leader is not reaped, so that its number cannot
//! have been given away.
//!
//! A master that comes after one that was killed finds workers that are not its children. A process is
//! known for certain by its number together with the moment of its start, which is looked up after
//! the pidfd was opened; that it has ended is told by its pidfd, how it ended is not.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

pub use super::child::{Identity, Preparation};
use super::exec::Image;
use super::place::Placed;
use super::reap::{Then, Which, ended};
use super::step;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this status.
    Status(i32),
    /// A signal killed it.
    Signal(AnySignal),
    /// It was not our child, so nobody tells.
    Unknown,
}

/// A signal by its number; real-time signals have no name, and nix's [`Signal`] has none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnySignal(pub(super) i32);

impl AnySignal {
    /// The signal of this number. One that there is none of is refused when it is sent.
    #[must_use]
    pub fn numbered(number: i32) -> AnySignal {
        AnySignal(number)
    }
}

impl fmt::Display for AnySignal {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Signal::try_from(self.0) {
            Ok(known) => to.write_str(known.as_str()),
            Err(_) => write!(to, "signal {}", self.0),
        }
    }
}

/// A started process.
#[derive(Debug)]
pub struct Process {
    id: Pid,
    pidfd: OwnedFd,
    /// In clock ticks since the machine started: `/proc/PID/stat`. 0: not known.
    begun: u64,
    is_child: bool,
}

impl Process {
    /// Starts `command` as the leader of a process group of its own, with no signal blocked. Its
    /// program is a path, and its environment what it sets, no more.
    ///
    /// # Errors
    /// Those of fork and of `execve(2)` (`NotFound`: no such program); a [`super::step::Failure`],
    /// when a step of the preparation failed.
    pub fn start(mut command: Command, mut preparation: Preparation) -> io::Result<Process> {
        let name = preparation.name.take();
        let mut image = Image::new(&command, name)?;
        let place = Placed::new(&preparation.place)?;
        let fillers = place.fill_gaps()?;
        let hold = std::mem::take(&mut preparation.hold);
        let prepare = move || {
            preparation.carry_out(&place)?;
            Err(image.become_it())
        };
        // SAFETY: the closure makes async-signal-safe system calls only; everything that it needs
        // was allocated before the fork.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn().map_err(step::told)?;
        drop((fillers, hold));
        let id = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        // A child that is not reaped keeps its number, so this opens the right process.
        match open_pidfd(id) {
            Ok(pidfd) => {
                let begun = begun(id).unwrap_or(0);
                Ok(Process { id, pidfd, begun, is_child: true })
            }
            Err(error) => {
                let _ = killpg(id, Signal::SIGKILL);
                let _ = nix::sys::wait::waitpid(id, None);
                Err(error)
            }
        }
    }

    /// A process that runs and is not our child, by its number and its [`Process::begun`].
    ///
    /// # Errors
    /// `NotFound` when that process is gone.
    pub fn find(id: u32, began: u64) -> io::Result<Process> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let id = Pid::from_raw(i32::try_from(id).ok().filter(|&id| id > 0).ok_or_else(gone)?);
        let pidfd = open_pidfd(id).map_err(|_| gone())?;
        // Only now: the number may have been given away before the pidfd was opened, not since.
        if began == 0 || begun(id) != Some(began) || has_ended(&pidfd)? {
            return Err(gone());
        }
        Ok(Process { id, pidfd, begun: began, is_child: false })
    }

    /// One that an earlier image of this process knew, by the pidfd that it had.
    #[must_use]
    pub fn resumed(id: u32, began: u64, pidfd: OwnedFd, is_child: bool) -> Process {
        // No process has a number that large.
        let id = Pid::from_raw(i32::try_from(id).unwrap_or(i32::MAX));
        Process { id, pidfd, begun: began, is_child }
    }

    /// When it was started, in clock ticks since the machine was. 0: that is not known.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Whether its end is ours to learn.
    #[must_use]
    pub fn is_child(&self) -> bool {
        self.is_child
    }

    /// Its process id, for people.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id.as_raw().unsigned_abs()
    }

    /// Sends a signal to the process' whole group. Only before [`Process::reap`].
    ///
    /// # Errors
    /// Those of `killpg(3)`.
    pub fn signal_group(&self, which: Signal) -> io::Result<()> {
        Ok(killpg(self.id, which)?)
    }

    /// The same process once more.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Process> {
        let Process { id, begun, is_child, .. } = *self;
        Ok(Process { id, pidfd: self.pidfd.try_clone()?, begun, is_child })
    }

    /// Sends a signal to this process alone.
    ///
    /// # Errors
    /// Those of `pidfd_send_signal(2)`: `ESRCH` when it has ended.
    pub fn signal(&self, which: AnySignal) -> io::Result<()> {
        send_signal(&self.pidfd, which.0)
    }

    /// Whether it has ended, reaped or not.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub fn has_ended(&self) -> io::Result<bool> {
        has_ended(&self.pidfd)
    }

    /// A duplicate of the descriptor that it has under this number.
    ///
    /// # Errors
    /// Those of `pidfd_getfd(2)`: `EPERM` where ptrace(2) would not be allowed, `ENOSYS` before
    /// Linux 5.6.
    pub fn fetch(&self, number: i32) -> io::Result<OwnedFd> {
        // SAFETY: a live descriptor and plain numbers.
        let result =
            unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.pidfd.as_raw_fd(), number, 0) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let number = i32::try_from(result).map_err(io::Error::other)?;
        // SAFETY: new, close-on-exec, and ours alone.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }

    /// How it ended, if it did; kills what is left of its group and releases its number.
    ///
    /// # Errors
    /// Those of `waitid(2)`.
    pub fn reap(&self) -> io::Result<Option<Ending>> {
        if !self.is_child {
            return self.bury_stranger();
        }
        let this = Which::Process(self.pidfd.as_fd());
        if ended(this, Then::Leave)?.is_none() {
            return Ok(None);
        }
        self.kill_rest()?;
        Ok(ended(this, Then::Release)?.map(|(_, ending)| ending))
    }

    /// Whether a process that is not our child has ended; kills what is left of its group.
    fn bury_stranger(&self) -> io::Result<Option<Ending>> {
        if !has_ended(&self.pidfd)? {
            return Ok(None);
        }
        // A number is not given away while a group bears it. Where it has been, the group was empty.
        if begun(self.id).is_none_or(|now| now == self.begun) {
            self.kill_rest()?;
        }
        Ok(Some(Ending::Unknown))
    }

    /// Kills what is left of its group.
    fn kill_rest(&self) -> io::Result<()> {
        match killpg(self.id, Signal::SIGKILL) {
            // EPERM: only processes of other users are left in the group.
            Ok(()) | Err(nix::errno::Errno::ESRCH | nix::errno::Errno::EPERM) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether the process has ended, reaped or not.
fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut polled, PollTimeout::ZERO) {
            Ok(count) => return Ok(count > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// When a process was started.
fn begun(id: Pid) -> Option<u64> {
    super::family::look(id.as_raw().unsigned_abs()).map(|it| it.begun)
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A handle of the process that has this number now: readable when it has ended.
///
/// # Errors
/// Those of `pidfd_open(2)`: there is none.
pub fn pidfd_of(id: u32) -> io::Result<OwnedFd> {
    open_pidfd(Pid::from_raw(i32::try_from(id).map_err(io::Error::other)?))
}

/// nix has no `pidfd_open`; the standard library's is unstable. Close-on-exec by default.
fn open_pidfd(id: Pid) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, id.as_raw(), 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: new, and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Ends a process that is not ours: SIGKILL, and waits until it is gone. `is_meant` is asked once the
/// number can mean no other process any more.
///
/// # Errors
/// Those of `pidfd_open(2)` and `pidfd_send_signal(2)`; one that is gone already is no error.
pub fn end(id: u32, is_meant: impl FnOnce() -> bool) -> io::Result<()> {
    let id = Pid::from_raw(i32::try_from(id).map_err(io::Error::other)?);
    let pidfd = match open_pidfd(id) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        Err(error) => return Err(error),
    };
    if !is_meant() {
        return Ok(());
    }
    match send_signal(&pidfd, libc::SIGKILL) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        Err(error) => return Err(error),
    }
    super::socket::wait_readable(&[pidfd.as_fd()], None)
}

fn send_signal(pidfd: &OwnedFd, which: i32) -> io::Result<()> {
    // SAFETY: a live descriptor, plain numbers, and no siginfo.
    let sent = unsafe {
        let none = std::ptr::null::<libc::siginfo_t>();
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), which, none, 0)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes orphans of our workers ours, so that none is lost to view (without systemd, whose cgroup
/// does the same).
///
/// # Errors
/// Those of `prctl(2)`.
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::reap::reap_strangers;
    use crate::sys::socket::wait_readable;

    /// Set in a process of its own, for what concerns all of a process.
    const CHILD: &str = "RCLUSTER_TEST_PROCESS";

    /// What such a process ends with whose assertions held: a status that no test harness answers.
    const PASSED: i32 = 42;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// Adds the arguments that run the test of this name again.
    fn again(command: &mut Command, name: &str) {
        let name = format!("sys::process::tests::{name}");
        command.args(["--exact", &name, "--nocapture"]).env(CHILD, "1");
    }

    fn ending(command: Command, preparation: Preparation) -> Ending {
        let process = Process::start(command, preparation).unwrap();
        wait_readable(&[process.as_fd()], Some(Duration::from_secs(20))).unwrap();
        let ending = process.reap().unwrap().unwrap();
        let error = process.reap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECHILD), "a zombie is left");
        ending
    }

    #[test]
    fn however_a_process_ends_it_is_reaped_and_told() {
        for (script, wanted) in
            [("kill -9 $$", "SIGKILL"), ("kill -34 $$", "signal 34"), ("kill -64 $$", "signal 64")]
        {
            match ending(shell(script), Preparation::default()) {
                Ending::Signal(signal) => assert_eq!(signal.to_string(), wanted),
                other @ (Ending::Status(_) | Ending::Unknown) => panic!("{script}: {other:?}"),
            }
        }
        assert_eq!(ending(shell("exit 3"), Preparation::default()), Ending::Status(3));
    }

    #[test]
    fn a_process_that_is_no_child_is_known_by_number_and_start() {
        let mut child = shell("sleep 600").spawn().unwrap();
        let id = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let when = begun(id).unwrap();
        let found = Process::find(child.id(), when).unwrap();
        assert_eq!(found.reap().unwrap(), None);
        let error = Process::find(child.id(), when + 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "another one of that number");
        child.kill().unwrap();
        wait_readable(&[found.as_fd()], Some(Duration::from_secs(20))).unwrap();
        assert_eq!(found.reap().unwrap(), Some(Ending::Unknown));
        assert!(Process::find(child.id(), when).is_err(), "it has ended");
        child.wait().unwrap();
        assert!(Process::find(child.id(), when).is_err(), "it is gone");
    }

    #[test]
    fn what_the_kernel_does_not_run_no_shell_runs_either() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        // By another process: a file that is open for writing while a test beside this one forks
        // cannot be run.
        let make = "printf 'exit 0' > \"$1\" && chmod 755 \"$1\"";
        let made = shell(make).arg("sh").arg(&program).status().unwrap();
        assert!(made.success());
        let error = Process::start(Command::new(&program), Preparation::default()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOEXEC), "{error}");
    }

    #[test]
    fn a_program_gets_its_name_its_arguments_and_no_other_environment() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "test \"$0$1$A\" = xy1 -a -z \"$CARGO_MANIFEST_DIR\"", "x", "y"]);
        command.env("A", "1").env("B", "2").env_remove("B");
        assert_eq!(ending(command, Preparation::default()), Ending::Status(0));
        let mut command = shell("tr '\\0' ' ' < /proc/$$/cmdline | grep -q '^called -c'");
        command.env("PATH", "/usr/bin:/bin");
        let preparation = Preparation { name: Some("called".into()), ..Preparation::default() };
        assert_eq!(ending(command, preparation), Ending::Status(0));
    }

    #[test]
    fn strangers_are_reaped_whatever_killed_them() {
        if std::env::var_os(CHILD).is_none() {
            let mut command = Command::new(std::env::current_exe().unwrap());
            again(&mut command, "strangers_are_reaped_whatever_killed_them");
            assert_eq!(ending(command, Preparation::default()), Ending::Status(PASSED));
            return;
        }
        reap_strangers(|_| false).unwrap();
        for script in ["kill -34 $$", "exit 3", "kill -9 $$"] {
            let mut stranger = shell(script).spawn().unwrap();
            let pidfd = open_pidfd(Pid::from_raw(i32::try_from(stranger.id()).unwrap())).unwrap();
            wait_readable(&[pidfd.as_fd()], Some(Duration::from_secs(20))).unwrap();
            let this = Which::Process(pidfd.as_fd());
            let mut other = shell("exit 0").spawn().unwrap();
            while super::super::family::look(other.id()).is_some_and(|it| !it.is_over) {
                std::thread::yield_now();
            }
            reap_strangers(|id| id == stranger.id()).unwrap();
            assert!(ended(this, Then::Leave).unwrap().is_some(), "it is known, and left");
            let error = other.wait().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ECHILD), "one behind it is left");
            reap_strangers(|_| false).unwrap();
            let error = stranger.wait().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ECHILD), "{script}: a zombie is left");
        }
        std::process::exit(PASSED);
    }

    #[test]
    fn another_user_gets_no_ambient_capability() {
        if std::env::var_os(CHILD).is_some() {
            let own = std::fs::read_to_string("/proc/self/status").unwrap();
            assert!(own.contains("CapAmb:\t00000000000000c0"), "{own}");
            let identity = Some(Identity { user: 65533, group: 65533, groups: Vec::new() });
            let look = shell("exec grep -Eqx 'CapAmb:.0+' /proc/self/status");
            let preparation = Preparation { identity, ..Preparation::default() };
            assert_eq!(ending(look, preparation), Ending::Status(0));
            std::process::exit(PASSED);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.args(["--inh-caps=+setuid,+setgid", "--ambient-caps=+setuid,+setgid", "--"]);
        command.arg(std::env::current_exe().unwrap());
        again(&mut command, "another_user_gets_no_ambient_capability");
        match command.status().map(|status| status.code()) {
            Ok(Some(PASSED)) => {}
            // setpriv's own: it may not, or cannot run this program as that user.
            Ok(Some(1 | 126 | 127)) | Err(_) => {
                println!("LEFT OUT: only root, with setpriv, can give ambient capabilities");
            }
            Ok(other) => panic!("{other:?}"),
        }
    }
}
