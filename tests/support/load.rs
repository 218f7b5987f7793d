//! Clients, many at a time, each of whom counts what became of his request.
//!
//! The pace is an open loop: a request is due at its time whether or not the one before it was
//! answered, so that a stall shows as waiting and is not left out.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub answered: u64,
    /// Sent and not, or not wholly, answered; or not even connected. With the reasons.
    pub failed: Vec<String>,
    /// The longest time from when a request was due to its whole answer; of those answered.
    pub longest: Duration,
    /// The longest time from when a client came to his whole answer; of those answered. Where a machine
    /// is too slow for the pace, they come late.
    pub longest_stay: Duration,
    /// Process ids that answered, with how often.
    pub by_pid: std::collections::BTreeMap<String, u64>,
}

/// Clients at work, until they are told to stop.
pub struct Load {
    threads: Vec<JoinHandle<Tally>>,
    stop: Arc<AtomicBool>,
    pub answered: Arc<AtomicU64>,
}

impl Load {
    /// New connections at this rate per second, one request each. `{ms}` in the path becomes a
    /// number from 250 to 750, another for each request of a client.
    pub fn paced(port: u16, rate: u32, path: &str) -> Load {
        // Enough threads that slow answers do not hold up the pace.
        let threads = rate;
        let next = Arc::new(Mutex::new(Instant::now()));
        let gap = Duration::from_secs(1) / rate;
        Load::spawn(threads, port, path, move || {
            let mut next = next.lock().unwrap();
            let due = *next;
            *next += gap;
            due
        })
    }

    /// So many clients, each with one request at a time, each on a new connection.
    pub fn closed(port: u16, clients: u32, path: &str) -> Load {
        Load::spawn(clients, port, path, Instant::now)
    }

    fn spawn(
        threads: u32,
        port: u16,
        path: &str,
        due: impl Fn() -> Instant + Send + Sync + 'static,
    ) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let due = Arc::new(due);
        let threads = (0..threads).map(|number| {
            let (stop, due, path) = (Arc::clone(&stop), Arc::clone(&due), path.to_owned());
            let answered = Arc::clone(&answered);
            std::thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn(move || run(port, &path, number, &stop, &*due, &answered))
                .unwrap()
        });
        Load { threads: threads.collect(), stop, answered }
    }

    /// Lets every client finish his request; what became of all of them.
    pub fn finish(self) -> Tally {
        self.stop.store(true, Relaxed);
        let mut all = Tally::default();
        for thread in self.threads {
            let one = thread.join().unwrap();
            all.answered += one.answered;
            all.failed.extend(one.failed);
            all.longest = all.longest.max(one.longest);
            all.longest_stay = all.longest_stay.max(one.longest_stay);
            for (pid, count) in one.by_pid {
                *all.by_pid.entry(pid).or_default() += count;
            }
        }
        all
    }
}

fn run(
    port: u16,
    path: &str,
    mut number: u32,
    stop: &AtomicBool,
    due: &dyn Fn() -> Instant,
    answered: &AtomicU64,
) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Relaxed) {
        let due = due();
        let wait = due.saturating_duration_since(Instant::now());
        std::thread::sleep(wait);
        number = number.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        let path = path.replace("{ms}", &(250 + (number >> 16) % 501).to_string());
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        let came = Instant::now();
        match exchange(port, &request) {
            Ok(body) => {
                tally.answered += 1;
                tally.longest_stay = tally.longest_stay.max(came.elapsed());
                answered.fetch_add(1, Relaxed);
                tally.longest = tally.longest.max(due.elapsed());
                *tally.by_pid.entry(body).or_default() += 1;
            }
            Err(why) => tally.failed.push(why),
        }
    }
    tally
}

/// One request on a new connection: the body, or what went wrong.
pub fn exchange(port: u16, request: &str) -> Result<String, String> {
    let said = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(said("connect"))?;
    stream.set_read_timeout(Some(super::PATIENCE)).map_err(said("set up"))?;
    stream.write_all(request.as_bytes()).map_err(said("send"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(said("receive"))?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if is_cut_short(head, body) => Err(format!("broken off: {answer:?}")),
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.trim().to_owned()),
        _ if answer.is_empty() => Err("closed without an answer".to_owned()),
        _ => Err(format!("answered {answer:?}")),
    }
}

/// Whether the body is not as long as the head has said.
fn is_cut_short(head: &str, body: &str) -> bool {
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.is_some_and(|length| body.len() < length.trim().parse().unwrap())
}
