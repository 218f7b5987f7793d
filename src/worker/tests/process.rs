//! A worker as it is really started: in a process of its own, told by its environment.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::sys::ancillary::number_of;
use crate::sys::process::{Ending, Preparation, Process};
use crate::wire::{CHANNEL_VARIABLE, SCOREBOARD_VARIABLE, SEAT_VARIABLE, SLOT_VARIABLE};

const CHILD: &str = "RCLUSTER_TEST_WORKER";

/// What a child ends with whose assertions held: a status that no test harness answers.
const PASSED: i32 = 42;

/// Runs the test of this name again as a worker.
fn start(name: &str, adjust: impl FnOnce(&mut Command)) -> (Master, Process) {
    let (master, channel) = Master::new(0);
    let board = master.board.as_fd().try_clone_to_owned().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("worker::tests::process::{name}"), "--nocapture"])
        .env(CHILD, "1")
        .env(CHANNEL_VARIABLE, number_of(&channel).to_string())
        .env(SCOREBOARD_VARIABLE, number_of(&board).to_string())
        .env(SEAT_VARIABLE, SEAT.to_string())
        .env(SLOT_VARIABLE, "4");
    adjust(&mut command);
    let preparation = Preparation { keep: vec![channel, board], ..Preparation::default() };
    (master, Process::start(command, preparation).unwrap())
}

fn is_child() -> bool {
    std::env::var(CHILD).is_ok()
}

fn status(process: &Process) -> Ending {
    wait_readable(&[process.as_fd()], Some(LONG)).unwrap();
    if let Some(ending) = process.reap().unwrap() {
        return ending;
    }
    process.signal_group(nix::sys::signal::Signal::SIGKILL).unwrap();
    panic!("it does not end");
}

#[test]
fn a_program_takes_its_channel_once() {
    if is_child() {
        let worker = Worker::from_env().unwrap();
        assert_eq!(worker.slot(), 4);
        let second = Worker::from_env().unwrap_err().to_string();
        assert!(second.contains("taken before"), "{second}");
        worker.ready(capitals).unwrap();
        return;
    }
    let (master, process) = start("a_program_takes_its_channel_once", |_| ());
    master.hear_ready();
    let mut client = master.dispatch();
    client.write_all(b"x").unwrap();
    assert_eq!(read_exact(&client), *b"X");
    master.drain(LONG);
    assert_eq!(master.hear_other(), ToMaster::Drained);
    assert_eq!(status(&process), Ending::Status(0));
}

#[test]
fn what_the_environment_lacks_is_said_in_a_sentence() {
    if is_child() {
        let said = Worker::from_env().unwrap_err().to_string();
        let wanted = std::env::var("WANTED").unwrap();
        assert!(said.contains(&wanted), "{said}");
        std::process::exit(PASSED);
    }
    let name = "what_the_environment_lacks_is_said_in_a_sentence";
    let cases: [(&str, Option<&str>, &str); 5] = [
        (CHANNEL_VARIABLE, None, "start it with `rcluster run -- COMMAND`"),
        (SEAT_VARIABLE, None, "RCLUSTER_SEAT is not set"),
        (SEAT_VARIABLE, Some("4096"), "no seat 4096"),
        (SLOT_VARIABLE, Some("four"), "RCLUSTER_SLOT=four is no number"),
        (CHANNEL_VARIABLE, Some("900"), "RCLUSTER_CHANNEL=900 is not open"),
    ];
    for (variable, value, wanted) in cases {
        let (_master, process) = start(name, |command| {
            match value {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
            command.env("WANTED", wanted);
        });
        assert_eq!(status(&process), Ending::Status(PASSED), "{variable} {value:?}");
    }
}

#[test]
fn a_master_that_counts_differently_is_refused() {
    if is_child() {
        let said = Worker::from_env().unwrap_err().to_string();
        assert!(said.contains("counts differently") && said.contains("stride"), "{said}");
        std::process::exit(PASSED);
    }
    let strange = crate::sys::shared::SharedMemory::create(c"strange", 8192).unwrap();
    let magic = u64::from_le_bytes(*b"RCLUSTER");
    strange.word(0).store(magic, std::sync::atomic::Ordering::SeqCst);
    strange.word(8).store(2 | 512 << 32, std::sync::atomic::Ordering::SeqCst);
    let (master, channel) = Master::new(0);
    let board = strange.as_fd().try_clone_to_owned().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = "worker::tests::process::a_master_that_counts_differently_is_refused";
    command
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .env(CHANNEL_VARIABLE, number_of(&channel).to_string())
        .env(SCOREBOARD_VARIABLE, number_of(&board).to_string())
        .env(SEAT_VARIABLE, "0");
    let preparation = Preparation { keep: vec![channel, board], ..Preparation::default() };
    let process = Process::start(command, preparation).unwrap();
    assert_eq!(status(&process), Ending::Status(PASSED));
    drop(master);
}

/// Whoever read the log has died. Every thread panics more than once, and says so to nobody.
#[test]
fn a_worker_whose_stderr_is_gone_serves_on() {
    if is_child() {
        let worker = Worker::from_env().unwrap().threads(2);
        worker.ready(|connection| panic!("at {:?}", read_exact::<1>(connection))).unwrap();
        return;
    }
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let (master, process) = start("a_worker_whose_stderr_is_gone_serves_on", |command| {
        command.stderr(Stdio::from(writer));
    });
    assert_eq!(master.hear_ready(), 2);
    for _ in 0..6 {
        let mut client = master.dispatch();
        client.write_all(b"x").unwrap();
        assert_eq!(read_all(client), "", "closed, since its handler panicked");
    }
    master.until(|counts| counts.finished == 6);
    master.drain(LONG);
    assert_eq!(master.hear_other(), ToMaster::Drained);
    assert_eq!(status(&process), Ending::Status(0));
}

/// `axum::serve(worker.into_listener()?, app).await` as it stands in the manual.
#[cfg(feature = "axum")]
#[test]
fn an_unmodified_axum_program_ends_by_itself() {
    if is_child() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let served = runtime.block_on(async {
            let hello = axum::routing::get(|| async { "hello" });
            let app = axum::Router::new().route("/", hello);
            axum::serve(Worker::from_env().unwrap().into_listener().unwrap(), app).await
        });
        panic!("axum returned: {served:?}");
    }
    let (master, process) = start("an_unmodified_axum_program_ends_by_itself", |_| ());
    master.hear_ready();
    let mut client = master.dispatch();
    let mut silent = master.dispatch();
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    client.write_all(request).unwrap();
    assert!(read_all(client).ends_with("hello"));
    master.drain(LONG);
    silent.write_all(request).unwrap();
    assert!(read_all(silent).ends_with("hello"));
    assert_eq!(master.hear_other(), ToMaster::Drained);
    assert_eq!(status(&process), Ending::Status(0));
}
