//! What a process may do: its priority, its resource limits, the mode of its files, and how gladly
//! the kernel kills it.
//!
//! All of it is set between fork and exec, before the user changes: only a privileged process may
//! raise limits. [`Limits::forbidden`] asks the same beforehand.

use std::io;

use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::Resource::{self, *};
use nix::sys::resource::{getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

use super::step::Step;

/// Without limit.
pub const UNLIMITED: u64 = libc::RLIM_INFINITY;

/// The limits that Linux has, by the names of `ulimit` and systemd, in small letters and without
/// their prefix.
pub const RESOURCES: &[(&str, Resource)] = &[
    ("as", RLIMIT_AS),
    ("core", RLIMIT_CORE),
    ("cpu", RLIMIT_CPU),
    ("data", RLIMIT_DATA),
    ("fsize", RLIMIT_FSIZE),
    ("locks", RLIMIT_LOCKS),
    ("memlock", RLIMIT_MEMLOCK),
    ("msgqueue", RLIMIT_MSGQUEUE),
    ("nice", RLIMIT_NICE),
    ("nofile", RLIMIT_NOFILE),
    ("nproc", RLIMIT_NPROC),
    ("rss", RLIMIT_RSS),
    ("rtprio", RLIMIT_RTPRIO),
    ("rttime", RLIMIT_RTTIME),
    ("sigpending", RLIMIT_SIGPENDING),
    ("stack", RLIMIT_STACK),
];

/// Of capabilities(7): priorities above the own.
const CAP_SYS_NICE: u32 = 23;
/// Of capabilities(7): resources above the limits.
const CAP_SYS_RESOURCE: u32 = 24;

/// What a process may do. What is `None` or missing stays as the parent has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The nice value, -20 to 19.
    pub nice: Option<i32>,
    /// Soft and hard limits, each with its place in [`RESOURCES`].
    pub rlimits: Vec<(usize, (u64, u64))>,
    /// The file mode creation mask.
    pub umask: Option<u32>,
    /// -1000 to 1000.
    pub oom_score_adjust: Option<i32>,
    /// No program that it runs gains privileges.
    pub no_new_privileges: bool,
}

impl Limits {
    /// In the child, before the user changes. Async-signal-safe.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) fn set(&self) -> io::Result<()> {
        if let Some(score) = self.oom_score_adjust {
            write_score(score).map_err(|error| Step::OomScore.failed(&error))?;
        }
        if let Some(nice) = self.nice {
            // SAFETY: plain numbers; 0 is this process.
            if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } < 0 {
                return Err(Step::Nice.failed(&io::Error::last_os_error()));
            }
        }
        for &(place, (soft, hard)) in &self.rlimits {
            if let Some(&(_, resource)) = RESOURCES.get(place) {
                setrlimit(resource, soft, hard)
                    .map_err(|error| Step::Resource(place).failed(&error.into()))?;
            }
        }
        if let Some(mask) = self.umask {
            umask(Mode::from_bits_truncate(mask));
        }
        Ok(())
    }

    /// In the child, after the user has changed. Async-signal-safe.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) fn close(&self) -> io::Result<()> {
        if self.no_new_privileges {
            prctl::set_no_new_privs()
                .map_err(|error| Step::NoNewPrivileges.failed(&error.into()))?;
        }
        Ok(())
    }

    /// What of it this process may not give to a child: a sentence for people. What cannot be known
    /// beforehand is left to the attempt.
    #[must_use]
    pub fn forbidden(&self) -> Option<String> {
        let nice = self.nice.filter(|&nice| !may_be_nice(nice));
        if let Some(nice) = nice {
            return Some(format!(
                "nice = {nice} needs a privileged master: run it as root, or give it CAP_SYS_NICE"
            ));
        }
        for &(place, (_, hard)) in &self.rlimits {
            let Some(&(name, resource)) = RESOURCES.get(place) else { continue };
            let Ok((_, own)) = getrlimit(resource) else { continue };
            if hard > own && !has_capability(CAP_SYS_RESOURCE) {
                let own = if own == UNLIMITED { "infinity".to_owned() } else { own.to_string() };
                return Some(format!(
                    "the resource limit {name} cannot be above the master's own, {own}: raise \
                     that, or give the master CAP_SYS_RESOURCE"
                ));
            }
            let most = if resource == RLIMIT_NOFILE { most_descriptors() } else { None };
            if let Some(most) = most.filter(|&most| hard > most) {
                return Some(format!(
                    "the resource limit nofile cannot be above {most}: raise the kernel's \
                     fs.nr_open"
                ));
            }
        }
        let score = self.oom_score_adjust.filter(|&score| !may_have_score(score));
        score.map(|score| {
            format!(
                "oom-score-adjust = {score} needs a privileged master: run it as root, or give it \
                 CAP_SYS_RESOURCE"
            )
        })
    }
}

/// Async-signal-safe.
fn write_score(score: i32) -> io::Result<()> {
    let (mut text, mut begin) = ([b'0'; 5], 5);
    let mut rest = score.unsigned_abs().min(1000);
    while rest > 0 || begin == 5 {
        begin -= 1;
        // A digit.
        text[begin] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    if score < 0 {
        begin -= 1;
        text[begin] = b'-';
    }
    // The standard library would allocate; a path that is a C string is passed on as it is.
    let file = nix::fcntl::open(
        c"/proc/self/oom_score_adj",
        nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    nix::unistd::write(&file, &text[begin..])?;
    Ok(())
}

/// Whether this process has a capability. Where that cannot be known, the attempt will tell.
fn has_capability(number: u32) -> bool {
    effective_capabilities().is_none_or(|mask| mask & (1 << number) != 0)
}

/// The effective capabilities of this process: capabilities(7), proc_pid_status(5).
#[must_use]
pub fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// setpriority(2): lower values than the own one need a right, or room in `RLIMIT_NICE`.
fn may_be_nice(nice: i32) -> bool {
    nix::errno::Errno::clear();
    // SAFETY: plain numbers; 0 is this process.
    let own = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let ceiling = getrlimit(RLIMIT_NICE).map_or(0, |(soft, _)| soft);
    let has_room = u64::try_from(20 - nice).is_ok_and(|wanted| wanted <= ceiling);
    nice >= own || has_room || has_capability(CAP_SYS_NICE)
}

/// proc_pid_oom_score_adj(5): a lower one than the own needs a right.
fn may_have_score(score: i32) -> bool {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
    let own = own.and_then(|text| text.trim().parse().ok());
    own.is_none_or(|own: i32| score >= own) || has_capability(CAP_SYS_RESOURCE)
}

/// The most descriptors of any process.
fn most_descriptors() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/fs/nr_open").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::sys::process::{Ending, Identity, Preparation, Process};
    use crate::sys::socket::wait_readable;
    use crate::sys::step::Failure;

    /// Set in a process without privileges.
    const CHILD: &str = "RCLUSTER_TEST_LIMITS";

    /// What such a process ends with whose assertions held: a status that no test harness answers.
    const PASSED: i32 = 42;

    fn place(name: &str) -> usize {
        RESOURCES.iter().position(|(known, _)| *known == name).unwrap()
    }

    fn start(script: &str, limits: Limits, identity: Option<Identity>) -> io::Result<Process> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("PATH", "/usr/bin:/bin");
        Process::start(command, Preparation { limits, identity, ..Preparation::default() })
    }

    fn ending(process: &Process) -> Ending {
        wait_readable(&[process.as_fd()], Some(Duration::from_secs(20))).unwrap();
        process.reap().unwrap().unwrap()
    }

    fn refused(limits: Limits, identity: Option<Identity>) -> String {
        let error = start("exit 0", limits, identity).unwrap_err();
        let failure = error.get_ref().and_then(|inner| inner.downcast_ref::<Failure>());
        failure.unwrap_or_else(|| panic!("{error:?}")).to_string()
    }

    /// What can be given to any process, and a script that ends with 0 where it has it.
    fn everything() -> (Limits, &'static str) {
        let limits = Limits {
            nice: Some(19),
            rlimits: vec![(place("nofile"), (123, 456)), (place("core"), (0, UNLIMITED - 1))],
            umask: Some(0o027),
            oom_score_adjust: Some(1000),
            no_new_privileges: true,
        };
        let script = "test \"$(umask)\" = 0027 && test \"$(ulimit -Sn) $(ulimit -Hn)\" = '123 456' && \
                      test \"$(ulimit -Sc)\" = 0 && test \"$(cat /proc/self/oom_score_adj)\" = 1000 && \
                      grep -qx 'NoNewPrivs:.1' /proc/self/status && test \"$(nice)\" = 19";
        (limits, script)
    }

    #[test]
    fn a_program_may_do_what_it_is_allowed_and_no_more() {
        let (mut limits, script) = everything();
        // The hard limit of this process may be lower.
        let (_, own) = getrlimit(RLIMIT_CORE).unwrap();
        limits.rlimits[1].1.1 = own;
        assert_eq!(limits.forbidden(), None);
        assert_eq!(ending(&start(script, limits, None).unwrap()), Ending::Status(0));
        let none = ending(&start(script, Limits::default(), None).unwrap());
        assert_ne!(none, Ending::Status(0), "it has all that without being given it");
        for (score, text) in [(0, "0"), (7, "7"), (-1, "-1"), (-999, "-999"), (1000, "1000")] {
            let limits = Limits { oom_score_adjust: Some(score), ..Limits::default() };
            if limits.forbidden().is_none() {
                let script = format!("test \"$(cat /proc/self/oom_score_adj)\" = {text}");
                assert_eq!(ending(&start(&script, limits, None).unwrap()), Ending::Status(0));
            }
        }
    }

    #[test]
    fn another_user_has_the_limits_that_only_root_may_give() {
        let mut limits = Limits {
            nice: Some(-7),
            rlimits: vec![(place("nofile"), (77, 77))],
            no_new_privileges: true,
            ..Limits::default()
        };
        if let Some(why) = limits.forbidden() {
            println!("LEFT OUT: {why}");
            return;
        }
        // Groups print with a blank behind each.
        let mut script = "test \"$(id -u) $(id -g) $(nice)\" = '65533 65532 -7' && \
                          grep -qx 'Groups:.65531 ' /proc/self/status && \
                          grep -qx 'NoNewPrivs:.1' /proc/self/status && \
                          test \"$(ulimit -Sn) $(ulimit -Hn)\" = '77 77'"
            .to_owned();
        let mut more = limits.clone();
        more.oom_score_adjust = Some(-500);
        more.rlimits.push((place("nice"), (33, 33)));
        match more.forbidden() {
            None => {
                limits = more;
                script += " && test \"$(cat /proc/self/oom_score_adj)\" = -500 && \
                           grep -Eqx 'Max nice priority +33 +33 +' /proc/self/limits";
            }
            Some(why) => println!("LEFT OUT in part: {why}"),
        }
        let identity = Some(Identity { user: 65533, group: 65532, groups: vec![65531] });
        assert_eq!(ending(&start(&script, limits, identity).unwrap()), Ending::Status(0));
    }

    #[test]
    fn what_the_kernel_does_not_allow_is_named() {
        let most = most_descriptors().unwrap() + 1;
        let rlimits = vec![(place("nofile"), (1024, most))];
        let limits = Limits { rlimits, ..Limits::default() };
        let why = limits.forbidden().unwrap();
        assert!(why.contains("resource limit nofile cannot be above"), "{why}");
        let told = refused(limits, None);
        let wanted = "cannot set the resource limit nofile: Operation not permitted (os error 1)";
        assert_eq!(told, wanted);
    }

    #[test]
    fn without_privileges_nothing_is_raised() {
        if std::env::var_os(CHILD).is_some() {
            let nothing = Limits::default;
            let forbidden = |limits: Limits| limits.forbidden().unwrap_or_default();
            let nice = || Limits { nice: Some(-5), ..nothing() };
            assert!(forbidden(nice()).starts_with("nice = -5 needs a privileged master"));
            assert!(refused(nice(), None).starts_with("cannot set nice: "));
            let score = || Limits { oom_score_adjust: Some(-1000), ..nothing() };
            assert!(forbidden(score()).starts_with("oom-score-adjust = -1000 needs"));
            assert!(refused(score(), None).starts_with("cannot set oom-score-adjust: "));
            setrlimit(RLIMIT_MSGQUEUE, 1000, 1000).unwrap();
            let queue =
                |hard| Limits { rlimits: vec![(place("msgqueue"), (1000, hard))], ..nothing() };
            assert!(forbidden(queue(1001)).contains("cannot be above the master's own, 1000"));
            assert!(
                refused(queue(1001), None).starts_with("cannot set the resource limit msgqueue")
            );
            assert_eq!(queue(1000).forbidden(), None);
            let identity = Identity { user: 65530, group: 65530, groups: vec![65530] };
            let told = refused(nothing(), Some(identity));
            assert!(told.starts_with("cannot set the supplementary groups: "), "{told}");
            let (mut limits, script) = everything();
            limits.rlimits.truncate(1);
            assert_eq!(ending(&start(script, limits, None).unwrap()), Ending::Status(0));
            std::process::exit(PASSED);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
        command.arg("--").arg(std::env::current_exe().unwrap());
        let name = "sys::resource::tests::without_privileges_nothing_is_raised";
        command.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
        match command.status().map(|status| status.code()) {
            Ok(Some(PASSED)) => {}
            // setpriv's own: it may not, or cannot run this program as that user.
            Ok(Some(1 | 126 | 127)) | Err(_) => {
                println!("LEFT OUT: only root, with setpriv, can give up privileges");
            }
            Ok(other) => panic!("{other:?}"),
        }
    }
}
