//! Clients who stay connected, and notice every close.
//!
//! Each does one thing after another on one connection: short requests and slow ones, bodies that are
//! read, ignored or half read, two requests at once, a request in two halves, and now and then a
//! large answer that is read slowly. Between two of them it does nothing for a moment.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

/// What clients saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub answered: u64,
    /// Asked and not, or not rightly, answered.
    pub failed: Vec<String>,
    /// Connections that ended while nothing was asked.
    pub closed: u64,
    /// Answers that told to close.
    pub announced: u64,
    /// Asked, and told in a whole 503 that the worker has died.
    pub told: u64,
}

/// What those say who were told.
const TOLD: &str = "told";

/// What those say whose answer ended in the middle.
pub const BROKEN_OFF: &str = "broken off";

/// Clients at work, until they are told to stop.
pub struct Clients {
    threads: Vec<JoinHandle<Seen>>,
    stop: Arc<AtomicBool>,
    pub answered: Arc<AtomicU64>,
}

impl Clients {
    /// So many, each with a connection of its own.
    pub fn connect(port: u16, count: u64) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let threads = (0..count).map(|seed| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::Builder::new()
                .stack_size(256 * 1024)
                .spawn(move || Client::new(port, seed).run(&stop, &answered))
                .unwrap()
        });
        Clients { threads: threads.collect(), stop, answered }
    }

    /// Waits until so many more are answered.
    pub fn wait(&self, more: u64) {
        let enough = self.answered.load(Relaxed) + more;
        let end = std::time::Instant::now() + super::PATIENCE;
        while self.answered.load(Relaxed) < enough {
            assert!(std::time::Instant::now() < end, "clients are not answered any more");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets every client finish; what all of them saw.
    pub fn finish(self) -> Seen {
        self.stop.store(true, Relaxed);
        let mut all = Seen::default();
        for thread in self.threads {
            let one = thread.join().unwrap();
            all.answered += one.answered;
            all.failed.extend(one.failed);
            all.closed += one.closed;
            all.announced += one.announced;
            all.told += one.told;
        }
        all
    }
}

struct Client {
    port: u16,
    dice: u64,
    stream: Option<TcpStream>,
    /// Bytes of the next answer.
    read: Vec<u8>,
    seen: Seen,
}

impl Client {
    fn new(port: u16, seed: u64) -> Client {
        let dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
        Client { port, dice, stream: None, read: Vec::new(), seen: Seen::default() }
    }

    fn below(&mut self, sides: u64) -> u64 {
        // xorshift64 (Marsaglia 2003)
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % sides
    }

    fn run(mut self, stop: &AtomicBool, answered: &AtomicU64) -> Seen {
        while !stop.load(Relaxed) {
            match self.act() {
                Ok(()) => {
                    answered.fetch_add(1, Relaxed);
                }
                Err(why) => {
                    match why.as_str() {
                        TOLD => self.seen.told += 1,
                        _ => self.seen.failed.push(why),
                    }
                    self.stream = None;
                    self.read.clear();
                }
            }
            let pause = self.below(60);
            std::thread::sleep(Duration::from_millis(pause));
        }
        if let Err(why) = self.look() {
            self.seen.failed.push(why);
        }
        self.seen
    }

    fn act(&mut self) -> Result<(), String> {
        self.be_connected()?;
        match self.below(64) {
            0 => {
                self.send(&get("/bytes/8388608"))?;
                self.expect(Some(8_388_608), true)
            }
            1..=8 => {
                self.send(&get("/slow/20"))?;
                self.expect(None, false)
            }
            9..=16 => self.post("/read", 5000),
            17..=24 => self.post("/ignore", 100),
            25..=32 => self.post("/half", 2000),
            33..=40 => {
                self.send(&[get("/pid"), get("/pid")].concat())?;
                self.expect(None, false)?;
                self.expect(None, false)
            }
            41..=48 => {
                let request = get("/pid");
                let half = usize::try_from(self.below(request.len() as u64)).unwrap();
                self.send(&request[..half])?;
                let pause = self.below(40);
                std::thread::sleep(Duration::from_millis(pause));
                self.send(&request[half..])?;
                self.expect(None, false)
            }
            _ => {
                self.send(&get("/pid"))?;
                self.expect(None, false)
            }
        }
    }

    fn post(&mut self, path: &str, length: usize) -> Result<(), String> {
        let head = format!("POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n");
        // What looks like a request must not be taken for one.
        let body = b"GET /trap HTTP/1.1\r\nHost: t\r\n\r\n".iter().cycle().take(length);
        self.send(&head.bytes().chain(body.copied()).collect::<Vec<u8>>())?;
        self.expect(None, false)
    }

    /// Counts whether the other side has closed meanwhile.
    fn look(&mut self) -> Result<(), String> {
        if let Some(stream) = &self.stream {
            stream.set_nonblocking(true).unwrap();
            let looked = stream.peek(&mut [0]);
            stream.set_nonblocking(false).unwrap();
            match looked {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Ok(1..) => return Err("was sent something that nobody asked for".into()),
                Ok(0) | Err(_) => {
                    self.seen.closed += 1;
                    self.stream = None;
                }
            }
        }
        Ok(())
    }

    /// Connects anew where the other side has closed meanwhile.
    fn be_connected(&mut self) -> Result<(), String> {
        self.look()?;
        if self.stream.is_some() {
            return Ok(());
        }
        let stream = TcpStream::connect(("127.0.0.1", self.port))
            .map_err(|error| format!("connect: {error}"))?;
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        self.read.clear();
        self.stream = Some(stream);
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let stream = self.stream.as_mut().unwrap();
        stream.write_all(bytes).map_err(|error| format!("send: {error}"))
    }

    /// Reads one answer.
    fn expect(&mut self, length: Option<usize>, slowly: bool) -> Result<(), String> {
        let head = loop {
            if let Some(end) = self.read.windows(4).position(|it| it == b"\r\n\r\n") {
                break self.read.drain(..end + 4).collect::<Vec<u8>>();
            }
            let is_begun = !self.read.is_empty();
            self.receive(is_begun)?;
        };
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        if head.starts_with("http/1.1 503 ") {
            return Err(self.expect_end(&head));
        }
        if !head.starts_with("http/1.1 200") {
            return Err(format!("answered {head:?}"));
        }
        let said = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let said: usize = said.and_then(|it| it.parse().ok()).ok_or("no content-length")?;
        if length.is_some_and(|length| length != said) {
            return Err(format!("{said} bytes, not {length:?}"));
        }
        while self.read.len() < said {
            if slowly && self.below(8) == 0 {
                std::thread::sleep(Duration::from_millis(3));
            }
            self.receive(true)?;
        }
        self.read.drain(..said);
        self.seen.answered += 1;
        if head.contains("\r\nconnection: close") {
            self.seen.announced += 1;
            self.stream = None;
        }
        Ok(())
    }

    /// The rest of a 503: whole, as long as it says, and then the end.
    fn expect_end(&mut self, head: &str) -> String {
        let said = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let said: Option<usize> = said.and_then(|it| it.parse().ok());
        let (Some(said), true) = (said, head.contains("\r\nconnection: close")) else {
            return format!("answered {head:?}");
        };
        loop {
            let length = self.read.len();
            match self.stream.as_mut().map(|stream| stream.read(&mut [0; 4096])) {
                Some(Ok(0)) if length == said => return TOLD.into(),
                Some(Ok(count @ 1..)) => self.read.resize(length + count, 0),
                ended => return format!("a 503 ended after {length} of {said} bytes: {ended:?}"),
            }
        }
    }

    fn receive(&mut self, is_begun: bool) -> Result<(), String> {
        let mut buffer = [0; 65_536];
        let stream = self.stream.as_mut().ok_or("it was told to close before the last answer")?;
        match stream.read(&mut buffer) {
            Ok(0) if is_begun => Err(BROKEN_OFF.into()),
            Ok(0) => Err("closed without an answer".into()),
            Ok(count) => {
                self.read.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(error) => Err(format!("receive: {error}")),
        }
    }
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n").into_bytes()
}
