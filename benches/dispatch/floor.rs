//! The floor: the same hand-over, and other ways to share an address, in plain system calls.
//!
//! Each is this very executable, run once more with [`ROLE`] set. Sockets come as standard input.
//! Whoever serves does it in one thread, one request at a time.

use std::collections::BTreeMap;
use std::io::{IoSlice, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrIn, accept4,
    bind, getsockname, listen, recv, send, sendmsg, setsockopt, socket, socketpair, sockopt,
};
use nix::unistd::{Pid, close};
use rcluster::Connection;
use rcluster::wire::channel::{End, Received};
use rcluster::worker::Connections;

use super::uring;

/// Which part this process plays.
pub const ROLE: &str = "RCLUSTER_BENCH_ROLE";
const BACKLOG: i32 = 4096;
/// The listener's or channel's token; connections have their descriptor's number.
const SOURCE: u64 = u64::MAX;

/// Plays the part that this process was started for. Whether it was.
pub fn play() -> bool {
    if std::env::var_os("RCLUSTER_CHANNEL").is_some() {
        serve_rcluster();
        return true;
    }
    let Ok(role) = std::env::var(ROLE) else { return false };
    let (role, argument) = role.split_once(' ').unwrap_or((&role, ""));
    let mut numbers = argument.split(' ').map_while(|word| word.parse::<u16>().ok());
    let (port, workers) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(2));
    match role {
        "pass" => pass(port, workers, argument.split(' ').nth(2).unwrap_or("")),
        "taker" => serve(&Source::Channel(End::new(stdin()))),
        "single" => serve(&Source::Listener(listener(port, false).into())),
        "reuseport" => {
            let children = (1..workers).map(|_| child(&format!("reuseport {port} 1"), None));
            let children: Vec<_> = children.collect();
            serve(&Source::Listener(listener(port, true).into()));
            drop(children);
        }
        "shared" => {
            let own = listener(port, false);
            for _ in 1..workers {
                child("acceptor", Some(own.try_clone().unwrap()));
            }
            serve(&Source::Listener(own.into()));
        }
        "acceptor" => serve(&Source::Listener(stdin().into())),
        "proxy" => proxy(argument),
        _ => panic!("no such role: {role}"),
    }
    true
}

/// The command that plays a part.
pub fn role(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, role);
    command
}

fn child(part: &str, input: Option<OwnedFd>) -> Child {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(std::env::current_exe().unwrap()).env(ROLE, part);
    command.stdin(input.map_or_else(Stdio::null, Stdio::from)).spawn().unwrap()
}

fn stdin() -> OwnedFd {
    std::io::stdin().as_fd().try_clone_to_owned().unwrap()
}

pub fn listener(port: u16, shared: bool) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    setsockopt(&socket, sockopt::ReusePort, &shared).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
    listen(&socket, Backlog::new(BACKLOG).unwrap()).unwrap();
    socket
}

pub fn port_of(listener: &OwnedFd) -> u16 {
    getsockname::<SockaddrIn>(listener.as_raw_fd()).unwrap().port()
}

/// Ways to make a hand-over cheaper that were tried, by the word that [`pass`] knows them by.
pub const TRIED: [(&str, &str); 9] = [
    ("greedy", "accept until nobody is there"),
    ("spin", "poll for 20 µs before sleeping"),
    ("sticky", "eight connections in a row to one worker"),
    ("blocking", "accept without epoll"),
    ("threads", "a second thread that accepts"),
    ("pairs", "two descriptors a message, where two wait"),
    ("cpu", "by `SO_INCOMING_CPU`, workers pinned"),
    ("uring", "io_uring, multishot accept"),
    ("uring-all", "io_uring, sendmsg and close linked, too"),
];

/// Has a worker run only on those CPUs whose connections it gets.
fn pin(worker: &Child, number: usize, workers: usize) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut own = CpuSet::new();
    (0..cpus).filter(|cpu| cpu % workers == number).for_each(|cpu| own.set(cpu).unwrap());
    // Where there are fewer CPUs than workers, some are for none.
    if number < cpus {
        sched_setaffinity(Pid::from_raw(worker.id().try_into().unwrap()), &own).unwrap();
    }
}

/// The master at the floor: epoll_wait, accept4, sendmsg, close for each connection, to one worker
/// after the other. Or in one of the ways of [`TRIED`].
fn pass(port: u16, workers: u16, way: &str) {
    let listener = listener(port, false);
    let count = usize::from(workers);
    let start = |number| {
        let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, flags).unwrap();
        let worker = child("taker", Some(theirs));
        if way == "cpu" {
            pin(&worker, number, count);
        }
        ours
    };
    let workers: Vec<OwnedFd> = (0..count).map(start).collect();
    match way {
        "uring" => return uring::pass_on(&listener, &workers),
        "uring-all" => return uring::pass_all(&listener, &workers),
        _ => {}
    }
    if way == "blocking" {
        nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))
            .unwrap();
    }
    std::thread::scope(|scope| {
        if way == "threads" {
            scope.spawn(|| pass_on(&listener, &workers, way));
        }
        pass_on(&listener, &workers, way);
    });
}

/// Hands these connections over.
pub fn send_to(worker: &OwnedFd, numbers: &[i32]) {
    let (control, message) = ([ControlMessage::ScmRights(numbers)], [IoSlice::new(b"connection")]);
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(worker.as_raw_fd(), &message, &control, flags, None).unwrap();
}

/// The number of the CPU where a connection's packets come in.
#[expect(unsafe_code, reason = "SO_INCOMING_CPU has no safe form")]
fn cpu_of(client: i32) -> usize {
    let (mut cpu, mut length): (i32, libc::socklen_t) = (0, 4);
    let (level, option, place) = (libc::SOL_SOCKET, libc::SO_INCOMING_CPU, &raw mut cpu);
    // SAFETY: the place has the length that is said.
    let result = unsafe { libc::getsockopt(client, level, option, place.cast(), &raw mut length) };
    assert_eq!(result, 0, "{}", Errno::last());
    usize::try_from(cpu).unwrap_or(0)
}

fn pass_on(listener: &OwnedFd, workers: &[OwnedFd], way: &str) {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let flags = if way == "threads" { EpollFlags::EPOLLEXCLUSIVE } else { EpollFlags::empty() };
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN | flags, SOURCE)).unwrap();
    let mut events = [EpollEvent::empty(); 8];
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let accept = || accept4(listener.as_raw_fd(), flags).ok();
    let turns = if way == "sticky" { 8 } else { 1 };
    let mut in_turn = workers.iter().cycle().flat_map(|it| std::iter::repeat_n(it, turns));
    loop {
        if way == "spin" {
            let end = std::time::Instant::now() + Duration::from_micros(20);
            while epoll.wait(&mut events, EpollTimeout::ZERO) == Ok(0)
                && std::time::Instant::now() < end
            {}
        }
        // Whoever is looked at by strace is interrupted.
        if way != "blocking" && epoll.wait(&mut events, EpollTimeout::NONE).is_err() {
            continue;
        }
        while let Some(client) = accept() {
            let second = if way == "pairs" { accept() } else { None };
            let worker = match way {
                "cpu" => &workers[cpu_of(client) % workers.len()],
                _ => in_turn.next().unwrap(),
            };
            match second {
                Some(second) => {
                    send_to(worker, &[client, second]);
                    close(second).unwrap();
                }
                None => send_to(worker, &[client]),
            }
            close(client).unwrap();
            if way != "greedy" {
                break;
            }
        }
    }
}

enum Source {
    Listener(TcpListener),
    Channel(End),
}

impl Source {
    /// The next connection, if there is one; `Err`: there is no master any more.
    fn take(&self, second: &mut Option<OwnedFd>) -> Result<Option<OwnedFd>, ()> {
        if let Some(second) = second.take() {
            return Ok(Some(second));
        }
        match self {
            Source::Listener(listener) => Ok(listener.accept().ok().map(|(it, _)| it.into())),
            Source::Channel(channel) => match channel.receive(&mut [0; 64]).unwrap() {
                Received::Message { descriptor, second: other, .. } => {
                    *second = other;
                    Ok(descriptor)
                }
                Received::Empty => Ok(None),
                Received::Closed => Err(()),
            },
        }
    }
}

/// Serves whoever comes, one request at a time. A connection that has not asked yet is waited for.
fn serve(source: &Source) {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let only = EpollFlags::EPOLLIN;
    match source {
        Source::Listener(socket) => {
            epoll.add(socket, EpollEvent::new(only | EpollFlags::EPOLLEXCLUSIVE, SOURCE)).unwrap();
        }
        Source::Channel(socket) => epoll.add(socket, EpollEvent::new(only, SOURCE)).unwrap(),
    }
    let body = format!("{}\n", std::process::id());
    let mut waiting: BTreeMap<u64, OwnedFd> = BTreeMap::new();
    let mut events = [EpollEvent::empty(); 1];
    let mut second = None;
    loop {
        let token = match second {
            Some(_) => SOURCE,
            None => {
                let Ok(_) = epoll.wait(&mut events, EpollTimeout::NONE) else { continue };
                events[0].data()
            }
        };
        let known = waiting.remove(&token);
        let is_watched = known.is_some();
        let connection = match known {
            Some(connection) => connection,
            None => match source.take(&mut second) {
                Ok(Some(connection)) => connection,
                Ok(None) => continue,
                Err(()) => return,
            },
        };
        // Closing it ends the watching.
        if serve_once(&connection, &body) {
            let number = u64::try_from(connection.as_raw_fd()).unwrap();
            if !is_watched {
                epoll.add(&connection, EpollEvent::new(only, number)).unwrap();
            }
            waiting.insert(number, connection);
        }
    }
}

/// Answers one request, if it is there. Whether the connection goes on.
fn serve_once(connection: &OwnedFd, body: &str) -> bool {
    let mut request = [0; 1024];
    let number = connection.as_raw_fd();
    match recv(number, &mut request, MsgFlags::MSG_DONTWAIT) {
        Ok(0) => false,
        Ok(count) => {
            let (answer, is_last) = answer(&request[..count], body);
            let sent = send(number, answer.as_bytes(), MsgFlags::MSG_NOSIGNAL);
            sent.is_ok() && !is_last
        }
        Err(error) => error == Errno::EAGAIN,
    }
}

/// An answer, after as many tenths of a millisecond as the path says; and whether it is the last.
fn answer(request: &[u8], body: &str) -> (String, bool) {
    let text = std::str::from_utf8(request).unwrap_or_default();
    let path = text.strip_prefix("GET /sleep/");
    if let Some(tenths) = path.and_then(|rest| rest.split(' ').next()?.parse().ok()) {
        std::thread::sleep(Duration::from_micros(100) * tenths);
    }
    let is_last = text.contains("Connection: close");
    let end = if is_last { "Connection: close\r\n" } else { "" };
    let length = body.len();
    (format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{end}\r\n{body}"), is_last)
}

/// A worker of rcluster's that does the same. How many it takes at once: [`LIMIT`].
fn serve_rcluster() {
    let body = format!("{}\n", std::process::id());
    let limit = std::env::var(LIMIT).ok().and_then(|text| text.parse().ok());
    let worker = rcluster::Worker::from_env().unwrap().limit(limit.unwrap_or(1000));
    let connections = worker.connections().unwrap();
    if std::env::var_os(KEPT).is_some() {
        return keep(connections, body);
    }
    for mut connection in connections {
        let mut request = [0; 1024];
        if let Ok(count @ 1..) = connection.read(&mut request) {
            // A client who does not wait is his own loss.
            let _ = connection.write_all(answer(&request[..count], &body).0.as_bytes());
        }
    }
}

/// The same where connections are kept: one thread waits in one epoll set for whoever asks, as [`serve`]
/// does, and answers one request at a time. It is woken for requests alone; the calling thread takes the
/// connections, so that a new one, not a request, costs a thread more than at the floor.
fn keep(connections: Connections, body: String) {
    let kept = Arc::new((Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap(), Kept::default()));
    let shared = Arc::clone(&kept);
    std::thread::spawn(move || answer_kept(&shared.0, &shared.1, &body));
    for connection in connections {
        let number = u64::try_from(connection.as_fd().as_raw_fd()).unwrap();
        let connection = Arc::new(connection);
        kept.1.lock().unwrap().insert(number, Arc::clone(&connection));
        kept.0.add(&*connection, EpollEvent::new(EpollFlags::EPOLLIN, number)).unwrap();
    }
}

/// Connections by their descriptors' numbers.
type Kept = Mutex<BTreeMap<u64, Arc<Connection>>>;

fn answer_kept(epoll: &Epoll, kept: &Kept, body: &str) {
    let mut events = [EpollEvent::empty(); 1];
    loop {
        let Ok(_) = epoll.wait(&mut events, EpollTimeout::NONE) else { continue };
        let number = events[0].data();
        let Some(connection) = kept.lock().unwrap().get(&number).cloned() else { continue };
        let mut request = [0; 1024];
        let goes_on = match (&*connection).read(&mut request) {
            Ok(count @ 1..) => {
                let (answer, is_last) = answer(&request[..count], body);
                (&*connection).write_all(answer.as_bytes()).is_ok() && !is_last
            }
            _ => false,
        };
        if !goes_on {
            // Closing it ends the watching.
            kept.lock().unwrap().remove(&number);
        }
    }
}

/// Whether a worker of rcluster's keeps connections.
pub const KEPT: &str = "DISPATCH_BENCH_KEPT";
/// How many connections a worker of rcluster's has in hand at most.
pub const LIMIT: &str = "DISPATCH_BENCH_LIMIT";

/// HAProxy before one process that serves.
fn proxy(argument: &str) {
    use std::os::unix::process::CommandExt;
    let words: Vec<&str> = argument.split(' ').collect();
    child(&format!("single {}", words[0]), None);
    panic!("{}", Command::new(words[1]).args(["-db", "-f", words[2]]).exec());
}
