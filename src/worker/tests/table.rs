//! A full descriptor table. The limit is the process', so each story runs in a process of its own.

use std::process::Command;
use std::sync::Arc;

use nix::sys::resource::{Resource, setrlimit};

use super::super::intake::Intake;
use super::super::link::Link;
use super::super::taker::{Taken, Taker};
use super::super::watch::Watch;
use super::*;

const CHILD: &str = "RCLUSTER_TEST_CHILD";

/// Runs the test of this name again in a process of its own; `true`: this is that process.
fn alone(name: &str) -> bool {
    if std::env::var(CHILD).is_ok() {
        return true;
    }
    let name = format!("worker::tests::table::{name}");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--test-threads=1", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
    false
}

/// Opens descriptors until no more are given.
fn fill() -> Vec<OwnedFd> {
    let mut all = vec![pair().unwrap().0];
    while let Ok(another) = all[0].try_clone() {
        all.push(another);
    }
    all
}

fn taker(master: &Master, channel: OwnedFd, descriptor_limit: u64) -> Taker {
    let link = Link::new(End::new(channel), master.seat.clone()).unwrap();
    Taker::new(Arc::new(link), descriptor_limit, 0)
}

/// Nothing is received, hence nothing lost, until there is a descriptor to receive it.
#[test]
fn a_full_table_leaves_clients_in_the_channel() {
    if !alone("a_full_table_leaves_clients_in_the_channel") {
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
    let (master, channel) = Master::new(0);
    let link = Arc::new(Link::new(End::new(channel), master.seat.clone()).unwrap());
    let intake = Intake::new(&link, 64, 0, Watch::several(&link).unwrap());
    let look = || {
        let mut state = intake.lock();
        state.take();
        (state.queue.len(), state.is_full)
    };
    let mut clients = vec![master.dispatch(), master.dispatch()];
    let mut filler = fill();
    assert_eq!(look(), (0, true));
    assert_eq!(master.seat.counts(), Counts::default());
    filler.pop();
    assert_eq!(look(), (0, true), "it may come with leftover");
    filler.pop();
    assert_eq!(look(), (1, true), "there was room, and now there is none");
    let first = intake.lock().queue.pop_front();
    std::thread::scope(|scope| {
        // Another thread waits for it, and a finished connection wakes it.
        let waiting = scope.spawn(|| {
            let mut state = intake.lock();
            while state.queue.is_empty() {
                (state, _) = intake.wait(state, None);
                state.take();
            }
        });
        drop(first);
        waiting.join().unwrap();
    });
    drop(filler);
    clients.clear();
}

#[test]
fn a_swallowed_connection_gives_its_credit_back() {
    if !alone("a_swallowed_connection_gives_its_credit_back") {
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
    let (master, channel) = Master::new(0);
    // As if the limit were far: it looks once, before the first.
    let mut taker = taker(&master, channel, 1 << 20);
    let _clients = [master.dispatch(), master.dispatch()];
    let Taken::Connection(_first) = taker.take().unwrap() else { panic!("there was room") };
    let filler = fill();
    assert!(matches!(taker.take().unwrap(), Taken::Other), "swallowed");
    let counts = master.seat.counts();
    assert_eq!((counts.taken, counts.finished, counts.progress), (2, 1, 2));
    assert!(matches!(taker.take().unwrap(), Taken::Full), "and it has become careful");
    drop(filler);
}

/// Nobody else can be there: who is alone answers by itself.
#[test]
fn without_a_further_thread_one_answers_after_the_other() {
    if !alone("without_a_further_thread_one_answers_after_the_other") {
        return;
    }
    let (master, worker) = cluster();
    let worker = std::thread::spawn(move || worker.ready(capitals));
    master.hear_ready();
    let mapped = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = mapped.split(' ').next().unwrap().parse().unwrap();
    // Enough for what is small: a thread's stack is 2 MiB.
    let limit = pages * 4096 + (1 << 20);
    setrlimit(Resource::RLIMIT_AS, limit, limit).unwrap();
    for _ in 0..3 {
        let mut client = master.dispatch();
        client.write_all(b"x").unwrap();
        assert_eq!(read_exact(&client), *b"X");
    }
    master.drain(LONG);
    assert_eq!(master.hear_other(), ToMaster::Drained);
    worker.join().unwrap().unwrap();
}
