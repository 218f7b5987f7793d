//! Thousands of connections that are idle, and ask now and then: two threads, not one for each.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

const THREADS: usize = 2;

/// Connections to one address of the loopback, whose ports are counted.
const PER_ADDRESS: usize = 20_000;

const REQUEST: &[u8] = b"GET /pid HTTP/1.1\r\nHost: t\r\n\r\n";

/// Connections that stay.
pub struct Idle {
    groups: Vec<Vec<TcpStream>>,
}

/// What a round of requests came to.
#[derive(Debug, Default)]
pub struct Heard {
    pub answered: usize,
    /// Not, or not wholly, answered; closed; or told something that was not asked for.
    pub failed: Vec<String>,
    /// From a request to its whole answer, the shortest first.
    pub times: Vec<Duration>,
}

impl Heard {
    pub fn longest(&self) -> Duration {
        self.times.last().copied().unwrap_or_default()
    }

    pub fn median(&self) -> Duration {
        self.times.get(self.times.len() / 2).copied().unwrap_or_default()
    }
}

impl Idle {
    /// Connects so many, one after the other.
    pub fn connect(port: u16, count: usize) -> Idle {
        let connect = |number: usize| {
            let host = Ipv4Addr::new(127, 0, 0, u8::try_from(1 + number / PER_ADDRESS).unwrap());
            TcpStream::connect((host, port)).unwrap()
        };
        let connect = |thread| (thread..count).step_by(THREADS).map(connect).collect();
        Idle { groups: (0..THREADS).map(connect).collect() }
    }

    /// Each `nth` connection asks once, at a random moment within `during`; all of them are
    /// listened to until the last answer.
    pub fn ask(&mut self, nth: usize, during: Duration) -> Heard {
        let mut all = Heard::default();
        std::thread::scope(|scope| {
            let threads = self.groups.iter_mut();
            let threads: Vec<_> =
                threads.map(|group| scope.spawn(move || ask(group, nth, during))).collect();
            for thread in threads {
                let one = thread.join().unwrap();
                all.answered += one.answered;
                all.failed.extend(one.failed);
                all.times.extend(one.times);
            }
        });
        all.times.sort_unstable();
        all
    }
}

/// A connection that was asked, and what it has answered so far.
struct Asked(Instant, Vec<u8>);

fn ask(group: &mut [TcpStream], nth: usize, during: Duration) -> Heard {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    for (number, stream) in group.iter().enumerate() {
        stream.set_nonblocking(true).unwrap();
        epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64)).unwrap();
    }
    let begin = Instant::now();
    let mut due: Vec<(Duration, usize)> =
        (0..group.len()).step_by(nth).map(|it| (during.mul_f64(random(it)), it)).collect();
    due.sort_unstable_by(|one, other| other.cmp(one));
    let mut asked: Vec<Option<Asked>> = group.iter().map(|_| None).collect();
    let mut heard = Heard::default();
    let (count, mut events) = (due.len(), [EpollEvent::empty(); 256]);
    let end = begin + during + super::PATIENCE;
    while heard.answered + heard.failed.len() < count {
        while due.last().is_some_and(|&(at, _)| at <= begin.elapsed()) {
            let (_, number) = due.pop().unwrap();
            asked[number] = Some(Asked(Instant::now(), Vec::new()));
            if let Err(error) = group[number].write_all(REQUEST) {
                heard.failed.push(format!("send: {error}"));
            }
        }
        if Instant::now() > end {
            let missing = asked.iter().flatten().count();
            heard.failed.push(format!("{missing} answers did not come"));
            break;
        }
        let next = due
            .last()
            .map_or(Duration::from_millis(100), |(at, _)| at.saturating_sub(begin.elapsed()));
        let next = EpollTimeout::try_from(next).unwrap();
        let ready = epoll.wait(&mut events, next).unwrap();
        for event in &events[..ready] {
            let number = usize::try_from(event.data()).unwrap();
            match listen(&mut group[number], asked[number].as_mut()) {
                Ok(None) => {}
                Ok(Some(time)) => {
                    asked[number] = None;
                    heard.answered += 1;
                    heard.times.push(time);
                }
                Err(why) => {
                    asked[number] = None;
                    epoll.delete(&group[number]).unwrap();
                    heard.failed.push(why);
                }
            }
        }
    }
    heard
}

/// How long the whole answer took, once it is there.
fn listen(stream: &mut TcpStream, asked: Option<&mut Asked>) -> Result<Option<Duration>, String> {
    let mut buffer = [0; 1024];
    let count = match stream.read(&mut buffer) {
        Ok(0) => return Err("closed".into()),
        Ok(count) => count,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(format!("receive: {error}")),
    };
    let Some(Asked(since, answer)) = asked else {
        return Err("was sent something that nobody asked for".into());
    };
    answer.extend_from_slice(&buffer[..count]);
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(None) };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    if !head.starts_with("http/1.1 200") || head.contains("connection: close") || length.is_none() {
        return Err(format!("answered {head:?}"));
    }
    Ok((length == Some(&body.len().to_string())).then(|| since.elapsed()))
}

/// A number from 0 to 1, the same for the same.
fn random(number: usize) -> f64 {
    // splitmix64 (Steele, Lea, Flood 2014)
    let mut word = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    f64::from(u32::try_from((word ^ word >> 31) >> 32).unwrap()) / f64::from(u32::MAX)
}
