//! Clients, many at a time, each of whom counts what became of his requests.
//!
//! Both kinds ask at their times whether or not others were answered, so that a stall shows as
//! waiting and is not left out. Every answer's body is the process id of the worker.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a client waits for the next bytes.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer, in bytes.
const ANSWER_MAX: usize = 64 * 1024;

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub answered: u64,
    /// Sent or connecting and not wholly answered: why, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// Connections that the server closed between two requests, or said it would close.
    pub closed: u64,
    /// The longest time from when a request was due to its whole answer.
    pub longest: Duration,
    /// How many workers answered.
    pub workers: usize,
}

impl Tally {
    pub fn failed(&self) -> u64 {
        self.reasons.values().sum()
    }

    fn count(&mut self, outcome: Result<u32, String>, due: Instant, seen: &Seen) -> bool {
        self.longest = self.longest.max(due.elapsed());
        match outcome {
            Ok(pid) => {
                self.answered += 1;
                seen.add(pid);
                true
            }
            Err(why) => {
                *self.reasons.entry(why).or_default() += 1;
                false
            }
        }
    }

    fn add(&mut self, other: Tally) {
        self.answered += other.answered;
        self.closed += other.closed;
        self.longest = self.longest.max(other.longest);
        for (why, count) in other.reasons {
            *self.reasons.entry(why).or_default() += count;
        }
    }
}

/// Every worker that has ever answered.
#[derive(Debug, Default)]
pub struct Seen {
    pids: Mutex<BTreeSet<u32>>,
    grown: Condvar,
}

impl Seen {
    pub fn count(&self) -> usize {
        self.pids.lock().unwrap().len()
    }

    /// Waits until so many have answered; `false`: not within this time.
    pub fn wait_for(&self, count: usize, limit: Duration) -> bool {
        let pids = self.pids.lock().unwrap();
        let waited = self.grown.wait_timeout_while(pids, limit, |pids| pids.len() < count);
        !waited.unwrap().1.timed_out()
    }

    fn add(&self, pid: u32) {
        if self.pids.lock().unwrap().insert(pid) {
            self.grown.notify_all();
        }
    }
}

/// Clients at work, until they are told to stop.
pub struct Load {
    threads: Vec<JoinHandle<Tally>>,
    stop: Arc<AtomicBool>,
    pub seen: Arc<Seen>,
}

impl Load {
    /// New connections at this rate per second, one request each.
    pub fn paced(port: u16, rate: u32) -> Load {
        let next = Arc::new(Mutex::new(Instant::now()));
        let gap = Duration::from_secs(1) / rate;
        // Enough clients to keep the pace while a whole second's requests wait.
        Load::spawn(rate, move |_, stop, seen| {
            let mut tally = Tally::default();
            while !stop.load(Relaxed) {
                let due = {
                    let mut next = next.lock().unwrap();
                    *next += gap;
                    *next
                };
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let outcome = Client::connect(port).and_then(|mut client| client.ask(true));
                tally.count(outcome.map(|answer| answer.pid), due, seen);
            }
            tally
        })
    }

    /// So many clients that keep their connections, and ask again after each gap.
    pub fn kept(port: u16, clients: u32, gap: Duration) -> Load {
        Load::spawn(clients, move |number, stop, seen| {
            let mut tally = Tally::default();
            let mut client = None;
            let mut due = Instant::now() + gap * number / clients;
            while !stop.load(Relaxed) {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                client = converse(port, client, &mut tally, due, seen);
                due = Instant::now().max(due + gap);
            }
            tally
        })
    }

    fn spawn(
        clients: u32,
        run: impl Fn(u32, &AtomicBool, &Seen) -> Tally + Send + Sync + 'static,
    ) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Seen::default());
        let run = Arc::new(run);
        let threads = (0..clients).map(|number| {
            let (run, stop, seen) = (Arc::clone(&run), Arc::clone(&stop), Arc::clone(&seen));
            std::thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn(move || run(number, &stop, &seen))
                .unwrap()
        });
        Load { threads: threads.collect(), stop, seen }
    }

    /// No request is begun any more.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Lets every client finish his request; what became of all of them.
    pub fn finish(self) -> Tally {
        self.stop();
        let mut all = Tally::default();
        for thread in self.threads {
            all.add(thread.join().unwrap());
        }
        all.workers = self.seen.count();
        all
    }
}

/// One request, on the kept connection if there still is one; the connection to go on with.
fn converse(
    port: u16,
    client: Option<Client>,
    tally: &mut Tally,
    due: Instant,
    seen: &Seen,
) -> Option<Client> {
    // As a careful client does: a connection found closed is not asked.
    let alive = client.filter(|client| {
        let closed = client.is_closed();
        tally.closed += u64::from(closed);
        !closed
    });
    let asked = alive.map_or_else(|| Client::connect(port), Ok).and_then(|mut client| {
        let answer = client.ask(false)?;
        Ok((client, answer))
    });
    match asked {
        Ok((client, answer)) => {
            tally.count(Ok(answer.pid), due, seen);
            tally.closed += u64::from(answer.last);
            (!answer.last).then_some(client)
        }
        Err(why) => {
            tally.count(Err(why), due, seen);
            None
        }
    }
}

/// The worker that answers a request on a new connection.
pub fn ask_once(port: u16) -> Result<u32, String> {
    Client::connect(port)?.ask(true).map(|answer| answer.pid)
}

struct Client {
    stream: TcpStream,
}

struct Answer {
    pid: u32,
    /// The server says that it closes the connection.
    last: bool,
}

impl Client {
    fn connect(port: u16) -> Result<Client, String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(said("connect"))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(said("set up"))?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(said("set up"))?;
        Ok(Client { stream })
    }

    /// The server has closed it, or sent what nobody asked for.
    fn is_closed(&self) -> bool {
        let look = || {
            self.stream.set_nonblocking(true)?;
            let looked = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            looked
        };
        !matches!(look(), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    fn ask(&mut self, last: bool) -> Result<Answer, String> {
        let end = if last { "Connection: close\r\n\r\n" } else { "\r\n" };
        let request = format!("GET /pid HTTP/1.1\r\nHost: localhost\r\n{end}");
        self.stream.write_all(request.as_bytes()).map_err(said("send"))?;
        let mut bytes = Vec::new();
        loop {
            if let Some(answer) = parse(&bytes)? {
                return Ok(answer);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk).map_err(said("receive"))? {
                0 if bytes.is_empty() => return Err("closed without an answer".to_owned()),
                0 => return Err("closed within the answer".to_owned()),
                count => bytes.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

/// `None`: more is to come.
fn parse(bytes: &[u8]) -> Result<Option<Answer>, String> {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        let within = bytes.len() <= ANSWER_MAX;
        return if within { Ok(None) } else { Err("endless answer".to_owned()) };
    };
    let status = head.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        return Err(format!("answered {status}"));
    }
    let header = |name: &str| {
        let named = |line: &str| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
        };
        head.lines().find_map(named)
    };
    let length = header("content-length").and_then(|length| length.parse::<usize>().ok());
    let length = length.ok_or("answered without a length")?;
    if body.len() < length {
        return Ok(None);
    }
    let pid = body.trim().parse().map_err(|_| format!("answered {body:?}"))?;
    Ok(Some(Answer { pid, last: header("connection").is_some_and(|value| value == "close") }))
}

fn said(what: &'static str) -> impl Fn(std::io::Error) -> String {
    move |error| {
        let late = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        if late { format!("{what}: nothing for {PATIENCE:?}") } else { format!("{what}: {error}") }
    }
}
