//! Commands that do not work: at boot, beside a pool that does, and as a deploy.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use support::load::Load;
use support::{Cluster, PATIENCE, pool, web};

/// A way of being broken: its name, the command, a word of the sentence that says so.
const BROKEN: [(&str, &str, &str); 6] = [
    ("missing", "\"/no/such/program\"", "does not exist"),
    ("not executable", "\"/etc/passwd\"", "is not executable"),
    ("exits 0", "\"/bin/true\"", "exited with status 0 before it was ready"),
    ("exits 1", "\"/bin/false\"", "exited with status 1 before it was ready"),
    ("segfaults", "\"/bin/sh\", \"-c\", \"kill -SEGV $$\"", "was killed by SIGSEGV before it was"),
    ("never ready", "\"/bin/sleep\", \"1000\"", "was not ready within 300ms"),
];

/// It is given up soon; but whoever ends by itself has the time for that, on any machine.
fn quick(name: &str) -> &'static str {
    match name {
        "never ready" => "start-timeout = \"300ms\"\nrestart-limit = 3",
        _ => "restart-limit = 3",
    }
}

#[test]
fn alone_at_boot_it_gives_up_and_exits_1() {
    for (name, command, sentence) in BROKEN {
        let mut cluster =
            Cluster::start(&pool("bad", command, "\"127.0.0.1:{port}\"", quick(name)));
        let status = cluster.wait_end();
        assert_eq!(status.code(), Some(1), "{name}");
        let line = cluster.wait_for("bad gave up on generation 1");
        assert!(line.contains(sentence) && line.contains("3 failed starts in a row"), "{line}");
        assert!(cluster.count("next try in") >= 2, "{name}: it backs off");
        let last = cluster.wait_for("bad gave up: ");
        assert!(last.contains(sentence), "{name}: {last}");
        assert_eq!(cluster.log().pop(), Some(last), "{name}");
    }
}

#[test]
fn beside_a_pool_that_serves_it_gives_up_and_the_service_goes_on() {
    for (name, command, sentence) in BROKEN {
        let config = web("") + &pool("bad", command, "", quick(name));
        let mut cluster = Cluster::start(&config);
        cluster.wait_for("bad gave up on generation 1");
        cluster.wait_for("generation 1 serves");
        assert!(cluster.get("/pid").is_ok(), "{name}");
        let status = cluster.status();
        let of = |pool: &str| status.pools.iter().find(|it| it.name == pool).unwrap();
        assert_eq!(of("bad").state, "gave up");
        assert!(of("bad").gave_up.as_ref().unwrap().contains(sentence), "{status:?}");
        assert_eq!(of("web").state, "serving");
        assert!(status.summary.contains("bad gave up with 0 of 2 serving"), "{}", status.summary);
        // Sticky: nothing is started again by itself. (The last one may still be leaving.)
        let tries = |cluster: &Cluster| {
            let log = cluster.log();
            log.iter().filter(|line| line.contains("bad/") && !line.ends_with(" left")).count()
        };
        let started = tries(&cluster);
        assert!(cluster.get("/sleep/700").is_ok());
        assert_eq!(tries(&cluster), started);
        // A reload tries again, and all roll or none does.
        let refusal = cluster.reload().unwrap_err();
        assert!(refusal.contains(sentence), "{name}: {refusal}");
        assert!(cluster.is_running());
        assert!(cluster.rcluster_reload_pool("web").is_ok());
    }
}

#[test]
fn as_a_deploy_it_is_rolled_back_and_nobody_notices() {
    for (name, command, sentence) in BROKEN {
        let cluster = Cluster::serve(&web(""));
        let before = cluster.pids("web");
        let load = Load::paced(cluster.port, 200, "/sleep/10");
        cluster.configure(&pool("web", command, "\"127.0.0.1:{port}\"", quick(name)));
        let refusal = cluster.reload().unwrap_err();
        // What can be known before is refused, so that nothing rolls at all.
        let is_known = ["missing", "not executable"].contains(&name);
        let start = if is_known { "pool web: " } else { "rolled back: web/1" };
        assert!(refusal.starts_with(start), "{name}: {refusal}");
        assert!(refusal.contains(sentence), "{name}: {refusal}");
        let tally = load.finish();
        assert_eq!(tally.failed, Vec::<String>::new(), "{name}");
        assert_eq!(cluster.pids("web"), before, "{name}: the old workers serve");
        let status = cluster.status();
        assert_eq!(status.state, "running");
        assert!(!status.last_reload.unwrap().ok);
        // A good one goes through after that.
        cluster.configure(&web(""));
        assert!(cluster.reload().is_ok(), "{name}");
        assert_ne!(cluster.pids("web"), before);
    }
}

#[test]
fn a_worker_lost_after_a_bad_deploy_comes_back_as_the_old_program() {
    let folder = tempfile::tempdir().unwrap();
    let deploy = |text: &str| {
        // As a deploy does it: a new file that takes the old one's name.
        let (new, path) = (folder.path().join("app.new"), folder.path().join("app"));
        std::fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(new, path).unwrap();
    };
    deploy(&format!("exec {} demo-worker http", support::RCLUSTER));
    let command = format!("\"{}\"", folder.path().join("app").display());
    let cluster = Cluster::serve(&pool("web", &command, "\"127.0.0.1:{port}\"", ""));
    deploy("exit 3");
    // Even before anybody asked for a reload.
    support::signal(cluster.pids("web")[0], "KILL");
    cluster.wait_for_nth("is ready", 3);
    assert!(cluster.reload().unwrap_err().contains("exited with status 3"));
    support::signal(cluster.pids("web")[0], "KILL");
    cluster.wait_for_nth("is ready", 4);
    assert_eq!(cluster.status().pools[0].workers_serving, 2);
    assert_eq!(cluster.status().pools[0].generation, Some(1));
}

#[test]
fn a_program_overwritten_in_place_is_said_and_its_survivors_serve_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app");
    std::fs::write(&path, format!("#!/bin/sh\nexec {} demo-worker http\n", support::RCLUSTER))
        .unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let command = format!("\"{}\"", path.display());
    let cluster =
        Cluster::serve(&pool("web", &command, "\"127.0.0.1:{port}\"", "restart-limit = 3"));
    std::fs::write(&path, "#!/bin/sh\nexit 3\n").unwrap();
    support::signal(cluster.pids("web")[0], "KILL");
    cluster.wait_for("was overwritten in place");
    cluster.wait_for("web gave up on generation 1");
    assert!(cluster.get("/pid").is_ok());
    let status = cluster.status();
    assert_eq!(status.pools[0].workers_serving, 1);
    assert!(status.warnings.iter().any(|w| w.contains("overwritten in place")), "{status:?}");
}

#[test]
fn a_new_generation_that_crashes_after_its_rollout_gives_way_to_the_good_one() {
    let config = |extra: &str| {
        web(&format!("restart-limit = 2\nrestart-window = \"60s\"\nenvironment = {{ {extra} }}"))
    };
    let cluster = Cluster::serve(&config("A = \"1\""));
    cluster.configure(&config("A = \"2\""));
    cluster.reload().unwrap();
    // Four losses of two slots within the window are too many.
    for kill in 1..=4 {
        let newest = |cluster: &Cluster| {
            let pool = cluster.status().pools.remove(0);
            let found =
                pool.workers.into_iter().find(|w| w.generation == 2 && w.state == "serving");
            found.map(|worker| worker.pid)
        };
        let victim = loop {
            match newest(&cluster) {
                Some(pid) => break pid,
                None => std::thread::yield_now(),
            }
        };
        support::signal(victim, "ABRT");
        cluster.wait_for_nth("lost: was killed by SIGABRT", kill);
    }
    cluster.wait_for("web gave up on generation 2");
    cluster.wait_for("rolled back from generation 2");
    let pool = cluster.status().pools.remove(0);
    assert_eq!((pool.generation, pool.workers_serving), (Some(1), 2));
    assert!(cluster.get("/pid").is_ok());
}

#[test]
fn a_broken_configuration_changes_nothing() {
    let cluster = Cluster::serve(&web(""));
    let before = cluster.pids("web");
    for broken in [
        "[pool.web]\ncomand = [\"x\"]",
        "[pool.web",
        "\u{0}\u{1}",
        &web("workers = 3"),
        &pool("web", "\"{rcluster}\"", "\"nobody-passed-this\"", ""),
        &web("working-directory = \"/no/such/folder\""),
        &web("user = \"no-such-user\""),
    ] {
        cluster.configure(broken);
        let refusal = cluster.reload().unwrap_err();
        assert!(!refusal.contains('\n') && refusal.len() > 20, "{refusal}");
        assert_eq!(cluster.pids("web"), before, "{broken}");
    }
    cluster.signal("USR1");
    cluster.wait_for("not reloaded: ");
    assert!(cluster.get("/pid").is_ok());
}

#[test]
fn clients_wait_in_the_kernels_queue_until_somebody_can_take_them() {
    let cluster = Cluster::serve(&web("restart-limit = 100"));
    for pid in cluster.pids("web") {
        support::signal(pid, "KILL");
    }
    assert!(cluster.get("/pid").is_ok());
}

/// A client in the middle of a request: a worker is busy with it for as long as it likes.
struct Busy(TcpStream);

impl Busy {
    /// It is the so many-th that is in hand.
    fn occupy(cluster: &Cluster, in_hand: u64) -> Busy {
        let mut client = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
        client.write_all(b"GET /pid HTTP/1.1\r\nHost: t\r\n").unwrap();
        cluster.wait_until(|pool| pool.in_hand == in_hand);
        Busy(client)
    }

    fn finish(mut self) {
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        self.0.write_all(b"Connection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "who was in hand is answered: {answer:?}");
    }
}

#[test]
fn clients_nobody_can_take_get_the_configured_answer_whole() {
    let body = "busy, try again\n";
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\\r\\nContent-Type: text/plain\\r\\nContent-Length: {}\
         \\r\\nConnection: close\\r\\n\\r\\n{}",
        body.len(),
        body.replace('\n', "\\n")
    );
    let cluster = Cluster::serve(&web(&format!(
        "max-connections = 1\nunavailable = \"{answer}\"\nunavailable-after = \"100ms\""
    )));
    // Two workers, each with one request in hand, leave nobody for the third client.
    let busy = [Busy::occupy(&cluster, 1), Busy::occupy(&cluster, 2)];
    for _ in 0..20 {
        // A large request that nobody reads would make a plain close send a reset.
        let text = format!(
            "POST /x HTTP/1.1\r\nHost: t\r\nContent-Length: 60000\r\n\r\n{}",
            "x".repeat(60_000)
        );
        let refusal = support::request(cluster.port, &text).unwrap_err().to_string();
        assert!(
            refusal.contains("503 Service Unavailable") && refusal.contains("busy"),
            "{refusal}"
        );
    }
    busy.into_iter().for_each(Busy::finish);
    cluster.wait_until(|pool| pool.in_hand == 0);
    assert!(cluster.get("/pid").is_ok(), "and then there is room again");
    assert_eq!(cluster.status().pools[0].refused, 20);
}

#[test]
fn a_new_release_is_rolled_out_even_if_only_workers_changed_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let release = |name: &str| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("app");
        std::fs::write(&path, format!("#!/bin/sh\nexec {} demo-worker http\n", support::RCLUSTER))
            .unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        folder
    };
    let current = folder.path().join("current");
    std::os::unix::fs::symlink(release("1"), &current).unwrap();
    let command = format!("\"{}/app\"", current.display());
    let config = pool("web", &command, "\"127.0.0.1:{port}\"", "");
    let cluster = Cluster::serve(&config);
    std::fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink(release("2"), &current).unwrap();
    cluster.configure(&config.replace("workers = 2", "workers = 3"));
    assert_eq!(cluster.reload().unwrap(), "reloaded: generation 2 serves");
    assert_eq!(cluster.pids("web").len(), 3);
}

#[test]
fn a_rolled_back_reload_leaves_the_old_answer_in_force() {
    let answer = "HTTP/1.1 503 Busy\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n";
    let busy = format!("unavailable = \"{answer}\"\nunavailable-after = \"50ms\"");
    let cluster = Cluster::serve(&web(&format!("max-connections = 1\n{busy}")));
    cluster.configure(&pool("web", "\"/bin/false\"", "\"127.0.0.1:{port}\"", ""));
    assert!(cluster.reload().is_err());
    let busy = [Busy::occupy(&cluster, 1), Busy::occupy(&cluster, 2)];
    assert!(cluster.get("/pid").unwrap_err().to_string().contains("503 Busy"));
    busy.into_iter().for_each(Busy::finish);
}
