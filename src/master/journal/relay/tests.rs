//! The log thread with real pipes, and a writer that reads when the test wants it to.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::thread::JoinHandle;

use super::super::queue::Item;
use super::*;
use crate::sys::output::pipe;

/// A log thread, and what it puts into the queue.
struct Bench {
    orders: Arc<Mailbox<Order>>,
    ended: Arc<Mailbox<u64>>,
    queue: Arc<Queue>,
    relay: Option<Relay>,
    thread: Option<JoinHandle<()>>,
}

impl Bench {
    fn new() -> Bench {
        let mut bench = Bench::at_rest();
        bench.start();
        bench
    }

    /// One whose thread does not run yet.
    fn at_rest() -> Bench {
        let (orders, ended) =
            (Arc::new(Mailbox::new().unwrap()), Arc::new(Mailbox::new().unwrap()));
        let queue = Arc::new(Queue::default());
        let relay = Relay::new(Arc::clone(&orders), Arc::clone(&ended), Arc::clone(&queue));
        Bench { orders, ended, queue, relay: Some(relay.unwrap()), thread: None }
    }

    fn start(&mut self) {
        let relay = self.relay.take().unwrap();
        self.thread = Some(std::thread::spawn(move || relay.run()));
    }

    /// The pipe of a new worker.
    fn worker(&self, id: u64) -> File {
        let (read, write) = pipe().unwrap();
        let slot = u32::try_from(id).unwrap();
        let origin = Origin { pool: "web".into(), slot, generation: 1, pid: 1 };
        let (origin, lines) = (Arc::new(origin), Lines::default());
        self.orders.put(Order::Follow(Followed { id, origin, pipe: read, lines }));
        File::from(write)
    }

    fn say(&self, text: &str) {
        self.orders.put(Order::Say(Entry::new(Level::Info, text)));
    }

    fn say_after(&self, id: u64, text: &str) {
        self.orders.put(Order::SayAfter(id, Entry::new(Level::Info, text)));
    }

    /// The next record, in words.
    fn next(&self) -> Option<String> {
        self.queue.pop().map(|item| match item {
            Item::Entry(entry) => match entry.speaker {
                Some(speaker) => format!("{speaker}: {}", entry.text),
                None => entry.text,
            },
            Item::Dropped(dropped) => format!("{dropped:?}"),
        })
    }

    /// Waits until a pipe has ended.
    fn wait_ended(&self) -> Vec<u64> {
        let patience = Some(Duration::from_secs(30));
        crate::sys::socket::wait_readable(&[self.ended.as_fd()], patience).unwrap();
        self.ended.take().into_iter().collect()
    }

    /// Ends it; all that is left.
    fn end(mut self) -> Vec<String> {
        self.orders.put(Order::End);
        if self.thread.is_none() {
            self.start();
        }
        let rest = std::iter::from_fn(|| self.next()).collect();
        self.thread.take().unwrap().join().unwrap();
        rest
    }
}

#[test]
fn lines_of_workers_and_of_the_master_come_in_their_order() {
    let bench = Bench::new();
    bench.say("web/1 started");
    let mut worker = bench.worker(1);
    assert_eq!(bench.next().unwrap(), "web/1 started");
    worker.write_all(b"hello\n").unwrap();
    assert_eq!(bench.next().unwrap(), "web/1: hello", "without another line, and without the end");
    worker.write_all(b"panic\n  at x\nlast words").unwrap();
    bench.say_after(1, "web/1 lost");
    assert_eq!(bench.next().unwrap(), "web/1: panic\n  at x");
    drop(worker);
    // The end of its line was not there yet.
    let mut rest = [bench.next().unwrap(), bench.next().unwrap()];
    rest.sort();
    assert_eq!(rest, ["web/1 lost", "web/1: last words"]);
    assert_eq!(bench.wait_ended(), [1]);
    assert_eq!(bench.end(), [""; 0]);
}

#[test]
fn the_last_words_of_a_dead_worker_come_before_its_loss() {
    let bench = Bench::new();
    let mut worker = bench.worker(7);
    worker.write_all("word\n".repeat(10_000).as_bytes()).unwrap();
    worker.write_all(b"last word").unwrap();
    drop(worker);
    bench.say_after(7, "lost");
    bench.say_after(8, "somebody without a pipe is lost");
    let all = bench.end();
    assert_eq!(all.len(), 10_003);
    assert_eq!(all[10_000..], ["web/7: last word", "lost", "somebody without a pipe is lost"]);
}

#[test]
fn a_pipe_is_read_while_anybody_may_write_and_then_forgotten() {
    let bench = Bench::new();
    let worker = bench.worker(1);
    let mut grandchild = worker.try_clone().unwrap();
    drop(worker);
    bench.say_after(1, "lost");
    assert_eq!(bench.next().unwrap(), "lost");
    grandchild.write_all(b"still here\n").unwrap();
    assert_eq!(bench.next().unwrap(), "web/1: still here");
    drop(grandchild);
    assert_eq!(bench.wait_ended(), [1]);
    assert_eq!(bench.end(), [""; 0]);
}

#[test]
fn what_is_written_at_the_end_is_said() {
    // It hears of the pipes and of the end at once, and has read none of them.
    let bench = Bench::at_rest();
    let mut workers: Vec<File> = (1..=100).map(|id| bench.worker(id)).collect();
    for worker in &mut workers {
        worker.write_all(b"one\ntwo\nthree").unwrap();
    }
    let all = bench.end();
    assert_eq!(all.len(), 300);
    for id in 1..=100 {
        let name = format!("web/{id}: ");
        let own: Vec<&str> = all.iter().filter_map(|text| text.strip_prefix(&name)).collect();
        assert_eq!(own, ["one", "two", "three"]);
    }
}

#[test]
fn when_nobody_writes_workers_wait_and_then_their_lines_are_counted() {
    let bench = Bench::new();
    let mut worker = bench.worker(1);
    let lines = 50_000_u64;
    // Far more than pipe and queue hold: it ends only if the log thread goes on reading.
    for number in 0..lines {
        writeln!(worker, "line {number} {}", "x".repeat(100)).unwrap();
    }
    drop(worker);
    assert_eq!(bench.wait_ended(), [1]);
    bench.say("after");
    let all = bench.end();
    let dropped: u64 = all
        .iter()
        .filter_map(|text| text.strip_prefix(r#"{Some("web"): "#))
        .map(|count| count.trim_end_matches('}').parse::<u64>().unwrap())
        .sum();
    let stored = all.iter().filter(|text| text.starts_with("web/1: line ")).count() as u64;
    assert!(dropped > 0 && stored > 1000, "{dropped} dropped, {stored} stored");
    assert_eq!(dropped + stored, lines);
    assert_eq!(all.last().unwrap(), "after");
    // Those before the gap are the first ones, without another gap.
    for (number, text) in all.iter().take_while(|text| !text.starts_with('{')).enumerate() {
        assert!(text.starts_with(&format!("web/1: line {number} ")), "{number}: {text:.30}");
    }
}
