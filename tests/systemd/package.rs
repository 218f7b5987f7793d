//! The packages: built from this tree with the one command there is, installed, upgraded under load,
//! removed without a trace. And the first pages of the README, as typed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::machine::Machine;
use crate::service::{PORT, configure, get, paced, wait_answers, web};
use crate::support::RCLUSTER;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const OWN: &str = env!("CARGO_PKG_VERSION");
const OTHER: &str = "9.9.9";

/// What was built, once for all tests.
struct Built {
    deb: PathBuf,
    /// The same files, but the program is of another version.
    other_deb: PathBuf,
    rpm: PathBuf,
    /// Keeps `other_deb`.
    _folder: tempfile::TempDir,
}

/// The packages, or why they cannot be had.
fn built() -> Result<&'static Built, String> {
    static BUILT: OnceLock<Result<Built, String>> = OnceLock::new();
    BUILT.get_or_init(build).as_ref().map_err(Clone::clone)
}

fn build() -> Result<Built, String> {
    if !has("dpkg-deb") {
        return Err("there is no dpkg-deb here".into());
    }
    let target = target();
    let mut command = Command::new(Path::new(ROOT).join("packaging/build"));
    let output = without_ours(&mut command).env("CARGO_TARGET_DIR", &target).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let is_offline = ["failed to download", "could not resolve", "failed to get"];
    if !output.status.success() && is_offline.iter().any(|it| said.to_lowercase().contains(it)) {
        return Err("packaging/build cannot fetch what it needs".into());
    }
    assert!(output.status.success(), "packaging/build: {said}");
    let folder = tempfile::tempdir().unwrap();
    let deb = only(&target, &format!("rcluster_{OWN}-1_"), ".deb");
    let other_deb = folder.path().join("other.deb");
    repackage(&deb, &other_program(&target), &other_deb, folder.path());
    let rpm = only(&target, &format!("rcluster-{OWN}-1."), ".rpm");
    Ok(Built { deb, other_deb, rpm, _folder: folder })
}

/// Where cargo puts what it builds.
fn target() -> PathBuf {
    Path::new(RCLUSTER).ancestors().nth(2).unwrap().to_owned()
}

fn only(target: &Path, begin: &str, end: &str) -> PathBuf {
    let entries = std::fs::read_dir(target.join("packages")).unwrap();
    let found: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(begin) && name.ends_with(end)
        })
        .collect();
    assert_eq!(found.len(), 1, "{begin}…{end}: {found:?}");
    found[0].clone()
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// Our program as of another version, quickly built and slow.
fn other_program(target: &Path) -> PathBuf {
    let tree = target.join("other-version");
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    // Of what was there before nothing stays.
    let _ = std::fs::remove_dir_all(&tree);
    std::fs::create_dir_all(&tree).unwrap();
    let parts = ["src", "examples", "benches", "packaging", "README.md", "Cargo.lock", "LICENSE"];
    // With their times, so that only what has changed is built anew.
    run(Command::new("cp").arg("-a").args(parts).arg(&tree).current_dir(ROOT));
    let manifest = std::fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let line = |version: &str| format!("\nversion = \"{version}\"\n");
    assert!(manifest.contains(&line(OWN)));
    std::fs::write(tree.join("Cargo.toml"), manifest.replacen(&line(OWN), &line(OTHER), 1))
        .unwrap();
    run(without_ours(&mut Command::new("cargo"))
        .args(["build", "--offline", "--bin", "rcluster", "--profile", "other"])
        .args(["--config", "profile.other.inherits='dev'"])
        .env("CARGO_TARGET_DIR", target)
        .current_dir(&tree));
    target.join("other/rcluster")
}

/// What cargo has set for this test is not meant for another build.
fn without_ours(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let is_ours = name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_"));
        if is_ours || name == "CARGO_MANIFEST_DIR" || name == "CARGO_MANIFEST_PATH" {
            command.env_remove(name);
        }
    }
    command
}

/// Makes a package of another version out of one.
fn repackage(from: &Path, program: &Path, to: &Path, folder: &Path) {
    let tree = folder.join("tree");
    let dpkg_deb = |arguments: &[&std::ffi::OsStr]| {
        let output = Command::new("dpkg-deb").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    dpkg_deb(&["-R".as_ref(), from.as_ref(), tree.as_ref()]);
    let control = tree.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control).unwrap();
    let text = text.replace(&format!("Version: {OWN}"), &format!("Version: {OTHER}"));
    std::fs::write(&control, text).unwrap();
    std::fs::copy(program, tree.join("usr/bin/rcluster")).unwrap();
    // To pack a program that is not optimized would take longer than to build it.
    let flags = ["--root-owner-group", "-Znone", "-b"].map(std::ffi::OsStr::new);
    dpkg_deb(&[&flags[..], &[tree.as_ref(), to.as_ref()]].concat());
}

/// Plays a scenario with the packages at hand, `/root/own.deb`, `/root/other.deb`, `/root/own.rpm`.
fn with_packages(machine: &Machine, scenario: fn(&Machine)) {
    match built() {
        Ok(built) => {
            machine.put(&built.deb, "/root/own.deb");
            machine.put(&built.other_deb, "/root/other.deb");
            machine.put(&built.rpm, "/root/own.rpm");
            scenario(machine);
        }
        Err(why) => println!("LEFT OUT: {why}"),
    }
}

fn installed_it_answers_before_the_service_ever_ran(machine: &Machine) {
    with_packages(machine, |machine| {
        let said = machine.sh("dpkg -i /root/own.deb").ok().text;
        assert!(!said.contains("rcluster:"), "{said}");
        machine.sh("systemctl is-enabled rcluster.socket").ok();
        assert_eq!(machine.property("ActiveState"), "inactive");
        assert_eq!(machine.property("NRestarts"), "0");
        let answer = machine.sh("curl -sS http://127.0.0.1:8080/").ok().text;
        assert!(answer.starts_with("It works. pool web, slot "), "{answer}");
        assert_eq!(machine.property("ActiveState"), "active");
        machine.sh("systemctl reload rcluster").ok();
        machine.sh("rcluster check").ok();
        let owner = machine.sh("stat -c '%U %a' /run/rcluster /var/lib/rcluster").ok().text;
        assert_eq!(owner, "rcluster 755\nrcluster 750\n");
        assert_eq!(machine.sh("systemctl --failed --quiet list-units 'rcluster*'").text, "");
    });
}

fn a_busy_port_does_not_fail_the_installation(machine: &Machine) {
    with_packages(machine, |machine| {
        let other = machine.within(|| std::net::TcpListener::bind(("127.0.0.1", PORT)).unwrap());
        let said = machine.sh("dpkg -i /root/own.deb").ok().text;
        let about: Vec<&str> = said.lines().filter(|line| line.starts_with("rcluster:")).collect();
        assert_eq!(about.len(), 1, "{said}");
        assert!(about[0].contains("127.0.0.1:8080") && about[0].contains("in use"), "{said}");
        assert_eq!(machine.sh("systemctl is-active rcluster.socket").text, "failed\n");
        drop(other);
        machine.sh("systemctl start rcluster.socket").ok();
        assert!(get(machine, "/").unwrap().starts_with("It works."));
    });
}

/// The version that the master says it is.
fn version(machine: &Machine, instance: &str) -> String {
    let status = machine.sh(&format!("rcluster status {instance} --json")).ok().text;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["version"].as_str().unwrap().to_owned()
}

fn upgrades_and_downgrades_lose_nobody(machine: &Machine) {
    with_packages(machine, |machine| {
        machine.sh("dpkg -i /root/own.deb").ok();
        configure(machine, &web(""));
        machine.write("/etc/rcluster/shop/rcluster.toml", &web(""));
        machine.sh("systemctl enable --now rcluster@shop.socket rcluster@shop.service").ok();
        let since = "systemctl show --value -p ActiveEnterTimestampMonotonic rcluster.socket";
        let listening = machine.sh(since).ok().text;
        let load = paced(machine, 600, "/sleep/20");
        wait_answers(&load, 100);
        assert_eq!(version(machine, ""), OWN);
        let pid = machine.property("MainPID");
        for (package, expected) in
            [("other", OTHER), ("own", OWN), ("other", OTHER), ("other", OTHER), ("own", OWN)]
        {
            let said = machine.sh(&format!("dpkg -i /root/{package}.deb")).ok();
            assert!(!said.text.contains("rcluster:"), "{}", said.text);
            assert_eq!(version(machine, ""), expected);
            assert_eq!(version(machine, "-i shop"), expected);
            assert_eq!(machine.property("MainPID"), pid, "it was restarted: {}", said.text);
            wait_answers(&load, 100);
        }
        let tally = load.finish();
        println!(
            "{:?}: 5 upgrades and downgrades: {} answered, {} failed, longest {:?}",
            machine.tree,
            tally.answered,
            tally.failed.len(),
            tally.longest
        );
        assert_eq!(tally.failed, Vec::<String>::new());
        assert_eq!(machine.sh(since).ok().text, listening, "the socket was touched");
        // What the administrator has configured stays, and so does what he has switched off.
        assert!(machine.sh("cat /etc/rcluster/rcluster.toml").text.contains("demo-worker"));
        machine.sh("systemctl disable --now rcluster.socket").ok();
        machine.sh("dpkg -i /root/other.deb").ok();
        assert_eq!(machine.sh("systemctl is-active rcluster.socket").text, "inactive\n");
        assert_eq!(machine.property("ActiveState"), "inactive");
    });
}

/// Every file of the machine that a package may have, less what is of the moment, of the package
/// manager, and the folders of links that systemd makes and never removes.
fn files(machine: &Machine) -> BTreeSet<String> {
    let find = "find /usr /etc /opt /srv /var -xdev \\( -path /var/lib/dpkg -o -path /var/log -o \
                -path /var/cache -o -path /var/lib/systemd/catalog \\) -prune -o \
                -not \\( -type d -name '*.wants' \\) -print";
    machine.sh(find).ok().text.lines().map(str::to_owned).collect()
}

/// Processes of the service's user, or that run the program.
fn leftovers(machine: &Machine) -> String {
    let script = "for p in /proc/[0-9]*; do \
                  [ \"$(stat -c %U $p 2>/dev/null)\" != rcluster ] || echo $p; done; \
                  systemctl list-units --plain --no-legend 'rcluster*'; \
                  systemctl list-unit-files --no-legend 'rcluster*'";
    machine.sh(script).text
}

fn removed_it_drains_and_purged_it_leaves_nothing(machine: &Machine) {
    with_packages(machine, |machine| {
        let before = files(machine);
        machine.sh("dpkg -i /root/own.deb").ok();
        configure(machine, &web("drain-timeout = \"20s\""));
        machine.write("/etc/rcluster/shop/rcluster.toml", &web(""));
        machine.sh("systemctl enable --now rcluster.service rcluster@shop.socket").ok();
        machine.sh("systemctl start rcluster@shop.service").ok();
        let during = &files(machine) - &before;
        for path in ["/usr/bin/rcluster", "/usr/share/man/man5/rcluster.toml.5.gz"] {
            assert!(during.contains(path), "{during:?}");
        }
        // A request that is under way is answered before the program goes.
        std::thread::scope(|scope| {
            let slow = scope.spawn(|| get(machine, "/sleep/2000"));
            machine.wait_for("rcluster status --json | grep -q '\"inHand\": *1'");
            machine.sh("dpkg -r rcluster").ok();
            assert_eq!(slow.join().unwrap(), Ok("slept 2000 ms".to_owned()));
        });
        let left = leftovers(machine);
        let journal = || machine.journal("-o short-monotonic -u 'rcluster*'");
        assert_eq!(left, "", "{}", journal());
        assert!(get(machine, "/").unwrap_err().contains("refused"), "nobody listens");
        assert!(machine.path("/etc/rcluster/rcluster.toml").exists(), "it was not purged yet");
        // Removed and installed again it is as it was.
        machine.sh("dpkg -i /root/own.deb").ok();
        assert!(get(machine, "/pid").is_ok());
        machine.sh("dpkg -P rcluster").ok();
        assert_eq!(leftovers(machine), "");
        let known = machine.sh("systemctl list-units --all --plain --no-legend 'rcluster*'").text;
        assert_eq!(known, "", "systemd still knows of it");
        let left: Vec<String> = files(machine).difference(&before).cloned().collect();
        // The accounts' old versions, where the machine had none.
        let left: Vec<&String> = left.iter().filter(|path| !path.ends_with('-')).collect();
        assert_eq!(left, Vec::<&String>::new());
    });
}

fn the_rpm_is_installed_upgraded_and_erased(machine: &Machine) {
    if machine.sh("rpm --version").code != 0 {
        println!("LEFT OUT: there is no rpm on {:?}", machine.tree);
        return;
    }
    with_packages(machine, |machine| {
        let before = files(machine);
        let rpm = "rpm --dbpath /root/rpm";
        machine.sh(&format!("{rpm} --initdb && {rpm} -i --nodeps /root/own.rpm")).ok();
        machine.sh("systemctl enable --now rcluster.socket").ok();
        assert!(get(machine, "/").unwrap().starts_with("It works."));
        let verified = machine.sh(&format!("{rpm} -V --nodeps rcluster")).ok().text;
        assert_eq!(verified, "", "what is there differs from what was packaged");
        configure(machine, &web(""));
        machine.sh("systemctl reload rcluster").ok();
        let load = paced(machine, 300, "/sleep/20");
        wait_answers(&load, 50);
        let pid = machine.property("MainPID");
        machine.sh(&format!("{rpm} -U --force --nodeps /root/own.rpm")).ok();
        assert_eq!(machine.property("MainPID"), pid, "it was restarted");
        let is_new =
            format!("test $(stat -Lc %i /proc/{pid}/exe) = $(stat -c %i /usr/bin/rcluster)");
        machine.sh(&is_new).ok();
        wait_answers(&load, 50);
        assert_eq!(load.finish().failed, Vec::<String>::new());
        assert!(machine.sh("cat /etc/rcluster/rcluster.toml").text.contains("demo-worker"));
        machine.sh(&format!("{rpm} -e rcluster")).ok();
        assert_eq!(leftovers(machine), "");
        let left = &files(machine) - &before;
        // What was changed by hand, and what the workers have stored, is the administrator's; the
        // other folders are those of every system that has rpm by itself.
        let kept = [
            "/etc/rcluster",
            "/var/lib/rcluster",
            "/usr/share/fish",
            "/usr/share/licenses",
            "/usr/share/zsh/site-functions",
        ];
        let is_kept = |path: &&String| kept.iter().any(|kept| path.starts_with(kept));
        let left: Vec<&String> =
            left.iter().filter(|path| !is_kept(path) && !path.ends_with('-')).collect();
        assert_eq!(left, Vec::<&String>::new());
    });
}

/// The blocks of shell in the README's first steps, as they are to be typed.
fn first_steps() -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let begin = readme.find("\n## Install, and a first service").unwrap();
    let end = readme.find("\n### What the packages do").unwrap();
    let blocks = readme[begin..end].split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

fn the_readmes_first_steps_work_as_typed(machine: &Machine) {
    let built = match built() {
        Ok(built) => built,
        Err(why) => return println!("LEFT OUT: {why}"),
    };
    let home = "/root/rcluster";
    let name = built.deb.file_name().unwrap().to_str().unwrap();
    machine.put(&built.deb, &format!("{home}/target/packages/{name}"));
    let app = Path::new(RCLUSTER).with_file_name("examples").join("app");
    machine.put(app, &format!("{home}/target/release/examples/app"));
    let steps = first_steps();
    assert!(steps.len() >= 6, "{steps:?}");
    let mut answers = Vec::new();
    for step in &steps {
        // What is built, was built outside: there are no crates in a machine without a network.
        let is_built =
            |line: &&str| line.starts_with("packaging/build") || line.starts_with("cargo build");
        let typed: Vec<&str> = step.lines().filter(|line| !is_built(line)).collect();
        let typed = typed.join("\n").replace("curl ", "curl -sS ");
        let said = machine.sh(&format!("cd {home} && set -ex\n{typed}")).ok().text;
        assert!(!said.contains("No entries"), "{step}: {said}");
        let answered =
            said.lines().filter(|line| line.contains("It works") || line.contains("hello"));
        answers.extend(answered.map(str::to_owned));
    }
    let page = answers.iter().filter(|line| line.starts_with("It works. pool web")).count();
    let app = answers.iter().filter(|line| line.contains("hello")).count();
    assert_eq!((page, app), (1, 4), "{answers:?}");
}

#[test]
fn lintian_has_nothing_to_say() {
    match built() {
        Err(why) => println!("LEFT OUT: {why}"),
        Ok(_) if !has("lintian") => println!("LEFT OUT: there is no lintian here"),
        Ok(built) => {
            let lintian = Command::new("lintian")
                .args(["--fail-on", "error,warning", "--allow-root"])
                .arg(&built.deb)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&lintian.stdout);
            assert!(lintian.status.success(), "{said}");
        }
    }
}

#[test]
fn the_rpms_scripts_never_restart_a_socket() {
    match built() {
        Err(why) => println!("LEFT OUT: {why}"),
        Ok(_) if !has("rpm") => println!("LEFT OUT: there is no rpm here"),
        Ok(built) => {
            let query = |arguments: &[&str]| {
                let output = Command::new("rpm")
                    .arg("-qp")
                    .args(arguments)
                    .arg(&built.rpm)
                    .output()
                    .unwrap();
                assert!(output.status.success());
                String::from_utf8(output.stdout).unwrap()
            };
            let scripts = query(&["--scripts"]);
            for word in ["postinstall", "preuninstall", "postuninstall", "systemd-sysusers"] {
                assert!(scripts.contains(word), "{scripts}");
            }
            for line in scripts.lines().filter(|line| !line.trim_start().starts_with('#')) {
                let touches = line.contains("restart") && line.contains(".socket");
                assert!(!touches, "{line}");
            }
            assert_eq!(query(&["-c"]), "/etc/rcluster/rcluster.toml\n");
            assert!(query(&["--requires"]).contains("systemd >= 252"));
        }
    }
}

crate::scenarios! {
    installed_it_answers_before_the_service_ever_ran,
    a_busy_port_does_not_fail_the_installation,
    upgrades_and_downgrades_lose_nobody,
    removed_it_drains_and_purged_it_leaves_nothing,
    the_rpm_is_installed_upgraded_and_erased,
    the_readmes_first_steps_work_as_typed,
}
