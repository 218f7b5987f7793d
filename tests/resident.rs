//! Pools that listen nowhere, for queues and timers, and what the processes of a pool may do.
#![allow(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use support::{Cluster, PATIENCE, pool, signal, wait_gone, web};

/// A pool of two workers that nobody can connect to.
fn jobs(extra: &str) -> String {
    pool("jobs", "\"{rcluster}\", \"hello\"", "", extra)
}

/// What a file of a process in `/proc` says.
fn proc(pid: u32, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

/// A pool of two that are any program: a loop of the shell.
fn loops(extra: &str) -> String {
    let command = r#""/bin/sh", "-c", "trap 'exit 0' TERM; echo slot {slot} begins; while :; do sleep 0.1; done""#;
    pool("jobs", command, "", &format!("kind = \"inherit\"\nsettle = \"50ms\"\n{extra}"))
}

#[test]
fn a_pool_without_sockets_is_supervised_reloaded_and_stopped() {
    live(&jobs);
}

#[test]
fn a_pool_of_any_program_without_sockets_is_no_other() {
    let cluster = live(&loops);
    cluster.wait_for_nth("slot 1 begins", 3);
    cluster.wait_for_nth("slot 2 begins", 2);
}

/// What happens to a pool in its life.
fn live(jobs: &dyn Fn(&str) -> String) -> Cluster {
    let mut cluster = Cluster::serve(&jobs(""));
    let first = cluster.pids("jobs");
    assert_eq!(first.len(), 2);
    assert!(proc(first[0], "environ").contains("RCLUSTER_SLOT=1\0"));
    signal(first[0], "KILL");
    cluster.wait_for("lost: was killed by SIGKILL");
    let second = loop {
        let pids = cluster.pids("jobs");
        if pids.len() == 2 {
            break pids;
        }
    };
    assert!(second[0] != first[0] && second[1] == first[1], "{first:?} {second:?}");
    cluster.configure(&jobs("environment = { NEXT = \"yes\" }"));
    cluster.reload().unwrap();
    let third = cluster.pids("jobs");
    assert!(third.len() == 2 && third.iter().all(|pid| !second.contains(pid)), "{third:?}");
    assert!(proc(third[1], "environ").contains("\0NEXT=yes\0"));
    assert!(second.iter().all(|&pid| wait_gone(pid, PATIENCE)), "{:?}", cluster.log());
    cluster.configure(&format!("{}{}", jobs("environment = { NEXT = \"yes\" }"), web("")));
    cluster.reload().unwrap();
    assert!(cluster.get("/pid").is_ok());
    let last = cluster.pids("jobs");
    assert_eq!(last.len(), 2);
    assert!(cluster.rcluster(&["stop"]).status.success());
    assert_eq!(cluster.wait_end().code(), Some(0), "{:?}", cluster.log());
    assert!(last.iter().all(|&pid| wait_gone(pid, PATIENCE)));
    cluster
}

#[test]
fn workers_may_do_what_their_pool_says() {
    let limits = "nice = 3\nrlimits = { nofile = [321, 654], core = 0 }\numask = \"0027\"\n\
                  oom-score-adjust = 700\nno-new-privileges = true\n";
    let cluster = Cluster::serve(&jobs(limits));
    for pid in cluster.pids("jobs") {
        let (limits, status) = (proc(pid, "limits"), proc(pid, "status"));
        let row =
            |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        let words = |name: &str| -> Vec<String> {
            row(name)[name.len()..].split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(words("Max open files")[1], "654");
        assert_eq!(words("Max core file size")[..2], ["0", "0"]);
        assert!(status.contains("\nUmask:\t0027\n"), "{status}");
        assert!(status.contains("\nNoNewPrivs:\t1\n"), "{status}");
        assert_eq!(proc(pid, "oom_score_adj"), "700\n");
        let stat = proc(pid, "stat");
        let nice = stat.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap();
        assert_eq!(nice, "3", "{stat}");
    }
    let master = proc(cluster.pid(), "status");
    assert!(master.contains("\nNoNewPrivs:\t0\n") && !master.contains("\nUmask:\t0027\n"));
}

#[test]
fn a_worker_of_another_user_gains_no_privileges_unless_it_is_allowed() {
    if !nix::unistd::geteuid().is_root() {
        println!("LEFT OUT: only root can start workers as another user");
        return;
    }
    let other =
        "user = \"65533\"\ngroup = \"65532\"\nsupplementary-groups = [\"65531\"]\nnice = -3\n";
    for (more, wanted) in [("", "1"), ("no-new-privileges = false\n", "0")] {
        let cluster = Cluster::serve(&jobs(&format!("{other}{more}")));
        for pid in cluster.pids("jobs") {
            let status = proc(pid, "status");
            assert!(status.contains(&format!("\nNoNewPrivs:\t{wanted}\n")), "{status}");
            assert!(status.contains("\nUid:\t65533\t65533\t65533\t65533\n"), "{status}");
            assert!(status.contains("\nGid:\t65532\t65532\t65532\t65532\n"), "{status}");
            assert!(status.contains("\nGroups:\t65531 65532 \n"), "{status}");
        }
    }
}

#[test]
fn what_the_master_may_not_give_is_refused_before_anything_rolls() {
    let cluster = Cluster::serve(&jobs(""));
    let before = cluster.pids("jobs");
    let most: u64 =
        std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap().trim().parse().unwrap();
    cluster.configure(&jobs(&format!("rlimits = {{ nofile = {} }}", most + 1)));
    let refusal = cluster.reload().unwrap_err();
    assert!(refusal.contains("the resource limit nofile cannot be above"), "{refusal}");
    assert_eq!(cluster.pids("jobs"), before);
}
