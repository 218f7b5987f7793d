//! Clients of a measured service: one thread that keeps many connections, paced or busy.
//!
//! Paced is an open loop: a client comes at his time whether or not others were answered, and his
//! waiting counts from that time, so that a stall shows in every client who would have come meanwhile.
//! Busy is a closed loop: so many at once, each followed by the next; its times say nothing. Where
//! connections are kept, the next request goes over one that has been answered.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, connect, recv, send, socket,
};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Nothing of what is measured takes so long, unless it was lost.
const PATIENCE: Duration = Duration::from_secs(20);
const TIMER: u64 = u64::MAX;

/// When clients come.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// So many per second, in even steps.
    Even(f64),
    /// So many per second on average, at random (Poisson), with this seed.
    Random(f64, u64),
    /// So many at once.
    Busy(usize),
}

/// A request: its number of tenths of a millisecond that the worker is to take, 0: none.
pub type Work = fn(usize) -> u32;

/// What clients are to do.
#[derive(Clone, Copy)]
pub struct Plan {
    pub port: u16,
    pub pace: Pace,
    pub count: usize,
    pub work: Work,
    /// So many connections that are kept, over which the requests go; 0: one for each request.
    pub kept: usize,
}

impl Plan {
    /// One request on each new connection, with no work.
    pub fn fresh(port: u16, pace: Pace, count: usize) -> Plan {
        Plan { port, pace, count, work: |_| 0, kept: 0 }
    }
}

/// What became of them: how long each waited, in the order in which they were due.
#[derive(Debug, Default)]
pub struct Outcome {
    pub waited: Vec<Option<Duration>>,
    /// Why some were not answered, each once.
    pub failures: Vec<String>,
}

impl Outcome {
    /// The longest wait of this part of those whom `is_meant` holds for.
    pub fn quantile(&self, part: f64, is_meant: impl Fn(usize) -> bool) -> Duration {
        let meant = self.waited.iter().enumerate().filter(|(index, _)| is_meant(*index));
        let mut waited: Vec<Duration> = meant.map(|(_, it)| it.unwrap_or(PATIENCE)).collect();
        waited.sort_unstable();
        let place = (waited.len() as f64 * part) as usize;
        waited.get(place.min(waited.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    /// How many were not answered, and why; `None`: all were.
    pub fn loss(&self) -> Option<String> {
        let lost = self.waited.iter().filter(|it| it.is_none()).count();
        let (all, why) = (self.waited.len(), &self.failures);
        (lost > 0).then(|| format!("{lost} of {all} were not answered: {why:?}"))
    }

    pub fn assert_whole(&self, who: &str) {
        let loss = self.loss();
        assert!(loss.is_none(), "{who}: {}", loss.unwrap_or_default());
    }
}

struct Connection {
    socket: OwnedFd,
    /// The request that is under way, and those that wait for it.
    current: Option<usize>,
    queue: VecDeque<usize>,
    is_sent: bool,
    answer: Vec<u8>,
}

struct Clients {
    plan: Plan,
    epoll: Epoll,
    timer: TimerFd,
    connections: Vec<Option<Connection>>,
    /// Places for new connections; or, of a closed loop over kept ones, those over which nothing goes.
    free: Vec<usize>,
    due: Vec<Instant>,
    next: usize,
    done: usize,
    outcome: Outcome,
}

/// Lets them come; answers when the last is served, or nothing moved for long.
pub fn run(plan: Plan) -> Outcome {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let timer =
        TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC);
    let timer = timer.unwrap();
    epoll.add(timer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, TIMER)).unwrap();
    let outcome = Outcome { waited: vec![None; plan.count], failures: Vec::new() };
    let (connections, free) = (Vec::new(), Vec::new());
    let mut clients = Clients {
        plan,
        epoll,
        timer,
        connections,
        free,
        due: Vec::new(),
        next: 0,
        done: 0,
        outcome,
    };
    for index in 0..plan.kept {
        clients.connect(index);
        clients.free.push(index);
    }
    clients.due = schedule(plan);
    clients.serve();
    clients.outcome
}

/// When each is due.
fn schedule(plan: Plan) -> Vec<Instant> {
    let begin = Instant::now() + Duration::from_millis(2);
    let mut seed = match plan.pace {
        Pace::Random(_, seed) => seed,
        Pace::Even(_) | Pace::Busy(_) => 0,
    };
    let mut at = 0.0;
    let times = (0..plan.count).map(|_| {
        at += match plan.pace {
            Pace::Even(rate) => 1.0 / rate,
            Pace::Random(rate, _) => -(1.0 - fraction(&mut seed)).ln() / rate,
            Pace::Busy(_) => 0.0,
        };
        begin + Duration::from_secs_f64(at)
    });
    times.collect()
}

/// From 0 up to 1 (splitmix64).
pub fn fraction(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as f64 / (u64::MAX as f64 + 1.0)
}

impl Clients {
    fn serve(&mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            self.begin_due();
            // Somebody may have been served while he came.
            if self.done >= self.plan.count {
                return;
            }
            let patience = EpollTimeout::try_from(PATIENCE).unwrap();
            let count = self.epoll.wait(&mut events, patience).unwrap();
            if count == 0 {
                return self.outcome.failures.push("nothing moved for long".to_owned());
            }
            for event in &events[..count] {
                match event.data() {
                    TIMER => drop(self.timer.wait()),
                    index => self.advance(usize::try_from(index).unwrap()),
                }
            }
        }
    }

    /// Begins whoever is due, and has the timer say when the next is.
    fn begin_due(&mut self) {
        let now = Instant::now();
        while self.next < self.plan.count {
            let due = match self.plan.pace {
                Pace::Even(_) | Pace::Random(..) => self.due[self.next],
                Pace::Busy(at_once) if self.next - self.done < at_once => now,
                Pace::Busy(_) => return,
            };
            if due > now {
                let wait = TimeSpec::from_duration(due - now);
                let flags = TimerSetTimeFlags::empty();
                return self.timer.set(Expiration::OneShot(wait), flags).unwrap();
            }
            let request = self.next;
            self.due[request] = due;
            self.next += 1;
            self.begin(request);
        }
    }

    fn begin(&mut self, request: usize) {
        let index = match (self.plan.kept, self.plan.pace) {
            (0, _) => self.free.pop().unwrap_or(self.connections.len()),
            (kept, Pace::Busy(_)) => self.free.pop().unwrap_or(request % kept),
            (kept, _) => request % kept,
        };
        if self.plan.kept == 0 {
            self.connect(index);
        }
        if let Some(connection) = &mut self.connections[index] {
            connection.queue.push_back(request);
        }
        self.advance(index);
    }

    fn connect(&mut self, index: usize) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        match connect(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, self.plan.port)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => self.outcome.failures.push(format!("connect: {error}")),
        }
        let wanted = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(&socket, EpollEvent::new(wanted, index as u64)).unwrap();
        let queue = VecDeque::new();
        let connection =
            Connection { socket, current: None, queue, is_sent: false, answer: Vec::new() };
        if index == self.connections.len() {
            self.connections.push(None);
        }
        self.connections[index] = Some(connection);
    }

    /// Goes on with a connection as far as it goes.
    fn advance(&mut self, index: usize) {
        let is_kept = self.plan.kept > 0;
        let work = self.plan.work;
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        loop {
            if connection.current.is_none() {
                connection.current = connection.queue.pop_front();
                connection.is_sent = false;
                connection.answer.clear();
            }
            let Some(request) = connection.current else { return };
            match connection.converse(work(request), is_kept) {
                Ok(false) => return,
                Ok(true) => {
                    self.outcome.waited[request] = Some(self.due[request].elapsed());
                }
                Err(why) if self.outcome.failures.contains(&why) => {}
                Err(why) => self.outcome.failures.push(why),
            }
            self.done += 1;
            connection.current = None;
            if !is_kept {
                self.connections[index] = None;
                return self.free.push(index);
            }
            if matches!(self.plan.pace, Pace::Busy(_)) && connection.queue.is_empty() {
                return self.free.push(index);
            }
        }
    }
}

impl Connection {
    /// Whether the request is wholly answered.
    fn converse(&mut self, work: u32, is_kept: bool) -> Result<bool, String> {
        let number = self.socket.as_raw_fd();
        if !self.is_sent {
            let path = if work == 0 { "pid".to_owned() } else { format!("sleep/{work}") };
            let end = if is_kept { "" } else { "Connection: close\r\n" };
            let request = format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\n{end}\r\n");
            match send(number, request.as_bytes(), MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => self.is_sent = true,
                Err(Errno::EAGAIN | Errno::ENOTCONN) => return Ok(false),
                Err(error) => return Err(format!("send: {error}")),
            }
        }
        loop {
            let mut bytes = [0; 4096];
            match recv(number, &mut bytes, MsgFlags::empty()) {
                Ok(0) if !is_kept && is_whole(&self.answer) => return Ok(true),
                Ok(0) => return Err("closed without a whole answer".to_owned()),
                Ok(count) => self.answer.extend_from_slice(&bytes[..count]),
                Err(Errno::EAGAIN) => return Ok(is_kept && is_whole(&self.answer)),
                Err(error) => return Err(format!("receive: {error}")),
            }
        }
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let text = std::str::from_utf8(answer).unwrap_or_default();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    head.starts_with("HTTP/1.1 200") && length.is_some_and(|length| body.len() >= length)
}
