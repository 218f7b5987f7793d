//! Deploys in a row under load, broken ones and good ones by turns: nobody who is connected and
//! nobody who connects notices, `rcluster reload` says what happened, and what serves is always the
//! last version that was good.
//!
//! Each round deploys a good version and then a broken one, in the same *way*: a file that takes the
//! old one's name, one that is overwritten in place, or a release folder that `current` points to.
//! The first test looks for a client who notices. In the second, a worker is killed amid every broken
//! deploy: it comes back as the version that was good, wherever that could be held fast.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail loudly")]

mod support;

use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use support::keep_alive::{Clients, Seen};
use support::load::{Load, Tally};
use support::{Cluster, PATIENCE, pool};

/// How files come to where they are run from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A script takes the old one's name.
    Replaced,
    /// A program of the machine's own takes the old one's name.
    Binary,
    /// The bytes of a script are exchanged.
    Overwritten,
    /// `current` points to the next release folder; the old one is removed.
    Released,
}

const WAYS: [Way; 4] = [Way::Replaced, Way::Overwritten, Way::Binary, Way::Released];

/// What is wrong with a deploy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Missing,
    OtherMachine,
    NoInterpreter,
    ExitsBeforeReady,
    ExitsWhenReady,
    NeverReady,
    BadConfiguration,
    NoUser,
}

const FAULTS: [Fault; 8] = [
    Fault::Missing,
    Fault::ExitsBeforeReady,
    Fault::BadConfiguration,
    Fault::OtherMachine,
    Fault::ExitsWhenReady,
    Fault::NeverReady,
    Fault::NoInterpreter,
    Fault::NoUser,
];

impl Fault {
    /// What a reload says of it.
    fn sentence(self) -> &'static str {
        match self {
            Fault::Missing => "does not exist",
            Fault::OtherMachine => "is built for another kind of machine",
            Fault::NoInterpreter => "the interpreter /no/such/sh of",
            Fault::ExitsBeforeReady => "exited with status 3 before it was ready",
            Fault::ExitsWhenReady => "exited with status 4 as soon as it was ready",
            Fault::NeverReady => "was not ready within 400ms",
            Fault::BadConfiguration => "unknown key `wokers`",
            Fault::NoUser => "there is no user nobody-by-this-name",
        }
    }

    /// Lines of the pool's configuration.
    fn lines(self) -> &'static str {
        match self {
            Fault::NeverReady => "start-timeout = \"400ms\"",
            Fault::BadConfiguration => "wokers = 3",
            Fault::NoUser => "user = \"nobody-by-this-name\"",
            Fault::Missing
            | Fault::OtherMachine
            | Fault::NoInterpreter
            | Fault::ExitsBeforeReady
            | Fault::ExitsWhenReady => "",
        }
    }

    /// Its file is not what the good version's was.
    fn is_in_its_file(self) -> bool {
        !matches!(self, Fault::Missing)
    }
}

/// A service that is deployed to again and again.
struct Site {
    cluster: Cluster,
    mixed: PathBuf,
    /// The newest version, and the one that serves.
    latest: u32,
    good: u32,
}

impl Site {
    /// `None`: there is no such worker.
    fn new() -> Option<Site> {
        let own = std::env::current_exe().unwrap();
        let mixed = own.parent().unwrap().parent().unwrap().join("examples/mixed");
        if !mixed.exists() {
            println!("LEFT OUT: the example mixed is not built; `cargo test` without --test does");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("app"), script(&mixed, "serve 1"));
        let port = support::free_port();
        let mut command = Command::new(support::RCLUSTER);
        command.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
        let config = config(Way::Replaced, "");
        let cluster = Cluster::launch(folder, port, &config, &mut command);
        cluster.wait_for("generation 1 serves");
        Some(Site { cluster, mixed, latest: 1, good: 1 })
    }

    /// Puts the next version where it is run from, broken or not, and its configuration.
    fn put(&mut self, way: Way, fault: Option<Fault>) {
        self.latest += 1;
        let folder = self.cluster.folder.path();
        let target = match way {
            Way::Replaced | Way::Binary | Way::Overwritten => folder.join("app"),
            Way::Released => {
                let release = folder.join(format!("release-{}", self.latest));
                std::fs::create_dir(&release).unwrap();
                release.join("app")
            }
        };
        match self.program(way, fault) {
            None => drop(std::fs::remove_file(&target)),
            Some(bytes) if way == Way::Overwritten => write(&target, bytes),
            Some(bytes) => {
                write(&folder.join("new"), bytes);
                std::fs::rename(folder.join("new"), &target).unwrap();
            }
        }
        if way == Way::Released {
            let current = folder.join("current");
            let old = std::fs::canonicalize(&current);
            symlink(target.parent().unwrap(), folder.join("next")).unwrap();
            std::fs::rename(folder.join("next"), current).unwrap();
            // What serves does not need its files.
            if let Ok(old) = old {
                std::fs::remove_dir_all(old).unwrap();
            }
        }
        self.cluster.configure(&config(way, fault.map_or("", Fault::lines)));
    }

    /// The next version's program. `None`: there is none.
    fn program(&self, way: Way, fault: Option<Fault>) -> Option<Vec<u8>> {
        let text = match fault {
            Some(Fault::Missing) => return None,
            Some(Fault::OtherMachine) => {
                let mut bytes = std::fs::read(&self.mixed).unwrap();
                bytes.truncate(4096);
                // e_machine: one that there is not.
                bytes[18..20].copy_from_slice(&[0xfe, 0xfe]);
                return Some(bytes);
            }
            Some(Fault::NoInterpreter) => "#!/no/such/sh\n".into(),
            Some(Fault::ExitsBeforeReady) => "#!/bin/sh\nexit 3\n".into(),
            Some(Fault::NeverReady) => "#!/bin/sh\nexec sleep 1000\n".into(),
            Some(Fault::ExitsWhenReady) => script(&self.mixed, "gone"),
            None | Some(Fault::BadConfiguration | Fault::NoUser) => match way {
                Way::Binary => {
                    let mut bytes = std::fs::read(&self.mixed).unwrap();
                    bytes.extend(format!("VERSION={}", self.latest).bytes());
                    return Some(bytes);
                }
                Way::Replaced | Way::Overwritten | Way::Released => {
                    script(&self.mixed, &format!("serve {}", self.latest))
                }
            },
        };
        Some(text.into_bytes())
    }

    /// A good deploy, which must go through.
    fn deploy(&mut self, way: Way) {
        self.put(way, None);
        let said = reload(&self.cluster);
        assert_eq!(said.status.code(), Some(0), "{way:?}: {}", text(&said));
        assert!(text(&said).starts_with("reloaded: generation "), "{way:?}: {}", text(&said));
        self.good = self.latest;
        // Until it has proven itself, the good one is an older one.
        let end = Instant::now() + PATIENCE;
        loop {
            let pool = self.cluster.status().pools.remove(0);
            if pool.good_generation == pool.generation {
                return self.serves(2);
            }
            assert!(Instant::now() < end, "{pool:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A broken deploy, which must be refused; `amid` happens meanwhile.
    fn break_down(&mut self, way: Way, fault: Fault, amid: impl FnOnce(&Cluster)) {
        self.put(way, Some(fault));
        let cluster = &self.cluster;
        let said = std::thread::scope(|scope| {
            let reload = scope.spawn(|| reload(cluster));
            amid(cluster);
            reload.join().unwrap()
        });
        let told = text(&said);
        assert_eq!(said.status.code(), Some(1), "{way:?}, {fault:?}: {told}");
        assert!(told.contains(fault.sentence()), "{way:?}, {fault:?}: {told}");
        assert_eq!(told.trim_end().lines().count(), 1, "{way:?}, {fault:?}: {told}");
    }

    /// Waits until so many workers serve; all of them are the last good version.
    fn serves(&self, workers: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            let pids = self.cluster.pids("web");
            // One that was killed may be listed, but has no version any more.
            let versions: Vec<String> = pids.iter().copied().filter_map(version_of).collect();
            let good = self.good.to_string();
            assert!(versions.iter().all(|it| *it == good), "{versions:?} serve, not {good}");
            if versions.len() >= workers && versions.len() == pids.len() {
                return;
            }
            assert!(Instant::now() < end, "{:?}", self.cluster.status());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What is run from was overwritten: `status` and `check` say so.
    fn is_said_to_be_overwritten(&self) {
        let warnings = self.cluster.status().warnings;
        assert!(warnings.iter().any(|it| it.contains("overwritten in place")), "{warnings:?}");
        self.cluster.configure(&config(Way::Replaced, ""));
        let file = self.cluster.path("rcluster.toml");
        let said = self.cluster.rcluster(&["check", file.to_str().unwrap()]);
        assert!(text(&said).contains("web: ") && text(&said).contains("overwritten in place"));
    }
}

/// `rcluster reload`; 124, if it does not come back.
fn reload(cluster: &Cluster) -> Output {
    Command::new("timeout")
        .args([&PATIENCE.as_secs().to_string(), support::RCLUSTER, "reload"])
        .env("RCLUSTER_CONTROL", cluster.path("control"))
        .output()
        .unwrap()
}

/// What a worker was started as: its last argument, or what its program says of itself. `None`: it
/// is gone.
fn version_of(pid: u32) -> Option<String> {
    let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&str> = words.split_terminator('\0').collect();
    if let [_, "serve", version] = words[..] {
        return Some(version.to_owned());
    }
    let program = std::fs::File::open(format!("/proc/{pid}/exe")).ok()?;
    let length = program.metadata().unwrap().len();
    let mut end = [0; 32];
    program.read_exact_at(&mut end, length - 32).unwrap();
    let end = String::from_utf8_lossy(&end).into_owned();
    Some(end.rsplit_once("VERSION=").map_or(end.clone(), |(_, version)| version.to_owned()))
}

/// A pool in which a version has proven itself soon.
fn config(way: Way, lines: &str) -> String {
    let program = if way == Way::Released { "current/app" } else { "app" };
    let command = format!("\"{{folder}}/{program}\"");
    pool("web", &command, "\"127.0.0.1:{port}\"", &format!("restart-window = \"100ms\"\n{lines}"))
}

fn script(mixed: &Path, words: &str) -> String {
    format!("#!/bin/sh\nexec {} {words}\n", mixed.display())
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn text(said: &Output) -> String {
    String::from_utf8_lossy(&[&said.stdout[..], &said.stderr[..]].concat()).into_owned()
}

/// Good and broken ones, half of `RCLUSTER_TEST_DEPLOYS` (16) rounds.
fn rounds(first: usize) -> impl Iterator<Item = (Way, Fault)> {
    let count = std::env::var("RCLUSTER_TEST_DEPLOYS").ok().and_then(|text| text.parse().ok());
    let count: usize = count.unwrap_or(16);
    (first..first + count.div_ceil(2)).map(|round| {
        let turn = round / FAULTS.len();
        (WAYS[(round + turn) % WAYS.len()], FAULTS[round % FAULTS.len()])
    })
}

/// Clients who stay and clients who come.
struct Traffic(Clients, Load);

impl Traffic {
    fn start(port: u16) -> Traffic {
        Traffic(Clients::connect(port, 30), Load::paced(port, 60, "/who"))
    }

    fn finish(self) -> (Seen, Tally) {
        (self.0.finish(), self.1.finish())
    }
}

#[test]
fn nobody_notices_deploys_good_or_broken() {
    let Some(mut site) = Site::new() else { return };
    let traffic = Traffic::start(site.cluster.port);
    let mut good = vec![1];
    for (way, fault) in rounds(0) {
        site.deploy(way);
        good.push(site.good);
        site.break_down(way, fault, |_| ());
        let is_over = way == Way::Overwritten && fault.is_in_its_file();
        if is_over {
            site.is_said_to_be_overwritten();
        }
        // Nobody could follow the one whose successor was ready for a moment.
        site.serves(if is_over && fault == Fault::ExitsWhenReady { 1 } else { 2 });
    }
    let pool = site.cluster.status().pools.remove(0);
    let (seen, tally) = traffic.finish();
    println!(
        "{} deploys: {} + {} answered, longest {:?}, {} handed back, {} cut",
        site.latest - 1,
        seen.answered,
        tally.answered,
        tally.longest,
        pool.handed_back,
        pool.cut
    );
    assert_eq!((seen.failed, tally.failed), (vec![], vec![]));
    assert_eq!((seen.closed, seen.announced, pool.cut), (0, 0, 0));
    let versions = tally.by_pid.keys().map(|who| who.split_once(' ').unwrap().1);
    let strange: Vec<&str> = versions.filter(|it| !good.contains(&it.parse().unwrap())).collect();
    assert_eq!(strange, Vec::<&str>::new(), "a broken version has answered");
}

#[test]
fn a_worker_killed_amid_a_broken_deploy_comes_back_as_it_was() {
    let Some(mut site) = Site::new() else { return };
    let traffic = Traffic::start(site.cluster.port);
    // From another round on, so that a short run of both sees more.
    for (way, fault) in rounds(3) {
        site.deploy(way);
        let is_over = way == Way::Overwritten && fault.is_in_its_file();
        if is_over && fault == Fault::ExitsWhenReady {
            // One was told to leave for a successor that is gone; without the other nobody is left.
            site.break_down(way, fault, |_| ());
        } else {
            let victim = site.cluster.pids("web")[0];
            site.break_down(way, fault, |_| support::signal(victim, "KILL"));
            assert!(support::wait_gone(victim, PATIENCE));
        }
        if is_over {
            site.is_said_to_be_overwritten();
            site.serves(1);
        } else {
            site.serves(2);
        }
    }
    let pool = site.cluster.status().pools.remove(0);
    let (seen, tally) = traffic.finish();
    let noticed = (seen.failed.len() + tally.failed.len()) as u64 + seen.closed;
    println!(
        "{} deploys, a worker killed in each broken one: {} answered, {noticed} noticed, {} cut",
        site.latest - 1,
        seen.answered + tally.answered,
        pool.cut
    );
    assert!(noticed <= pool.cut, "more than the killed had in hand: {:?}", seen.failed);
    assert_eq!(seen.announced, 0);
}
