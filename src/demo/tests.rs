//! The services as clients see them, behind a fake master.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{echo, hello, http, multi_port};
use crate::wire::message::ToMaster;
use crate::worker::tests::{LONG, Master, cluster, read_all, read_exact};
use crate::worker::{Connection, Handle};

struct Service {
    master: Master,
    handle: Handle,
    worker: JoinHandle<crate::Result<()>>,
}

impl Service {
    fn start(serve: impl Fn(Connection) + Send + Sync + 'static) -> Service {
        let (master, worker) = cluster();
        let handle = worker.handle();
        let worker = std::thread::spawn(move || worker.ready(serve));
        assert_eq!(master.hear_ready(), 256);
        Service { master, handle, worker }
    }

    fn drain(&self) {
        self.master.drain(LONG);
        while !self.handle.draining() {
            std::thread::yield_now();
        }
    }

    fn end(self) {
        assert_eq!(self.master.hear_other(), ToMaster::Drained);
        self.worker.join().unwrap().unwrap();
    }
}

/// Reads one answer with a length; answers head and body.
fn read_answer(mut client: &TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(read_exact::<1>(client));
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    client.read_exact(&mut body).unwrap();
    (head, body)
}

fn get(mut client: &TcpStream, path: &str) -> (String, Vec<u8>) {
    write!(client, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    read_answer(client)
}

#[test]
fn http_answers_many_requests_on_one_connection() {
    let service = Service::start(http::serve);
    let mut client = service.master.dispatch();
    let (head, body) = get(&client, "/a?b=\"c\"");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain;charset=utf-8\r\n"), "{head}");
    assert!(head.contains("Connection: keep-alive\r\n"), "{head}");
    assert_eq!(body, br#"{"method":"GET","url":"/a?b=\"c\"","post":""}"#);
    assert_eq!(get(&client, "/pid").1, format!("{}\n", std::process::id()).into_bytes());
    assert_eq!(get(&client, "/bytes/300000").1, vec![b'x'; 300_000]);
    let asked = now();
    assert_eq!(get(&client, "/sleep/30").1, b"slept 30 ms\n");
    assert!(now() - asked >= Duration::from_millis(30));
    // Three at once: two POSTs and a last GET.
    client
        .write_all(
            b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na=b\
              POST /q HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nc\r\n0\r\n\r\n\
              HEAD /bytes/9 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    assert_eq!(read_answer(&client).1, br#"{"method":"POST","url":"/p","post":"a=b"}"#);
    assert_eq!(read_answer(&client).1, br#"{"method":"POST","url":"/q","post":"c"}"#);
    let rest = read_all(&client);
    assert!(rest.contains("Content-Length: 9\r\nConnection: close\r\n\r\n"), "{rest}");
    assert!(rest.ends_with("\r\n\r\n"), "no body: {rest}");
    service.master.drain(LONG);
    service.end();
}

#[test]
fn http_says_close_when_draining_and_answers_all_that_it_read() {
    let service = Service::start(http::serve);
    let mut client = service.master.dispatch();
    let idle = service.master.dispatch();
    get(&idle, "/");
    // Two requests at once, of which the first is being answered while the drain comes.
    let both = "GET /sleep/200 HTTP/1.1\r\nHost: x\r\n\r\nGET /last HTTP/1.1\r\nHost: x\r\n\r\n";
    client.write_all(both.as_bytes()).unwrap();
    service.master.until(|counts| counts.taken == 2);
    while service.master.seat.counts().requests < 2 {
        std::thread::yield_now();
    }
    service.drain();
    assert_eq!(read_all(idle), "", "nothing was asked: closed");
    assert!(read_answer(&client).0.contains("Connection: keep-alive"));
    let last = read_all(client);
    assert!(last.contains("Connection: close") && last.contains("/last"), "{last}");
    service.end();
}

/// Idle, in the middle of a request, in the middle of an answer: all go on with the next worker, and
/// none is told to close.
#[test]
fn http_goes_on_with_the_next_worker() {
    let service = Service::start(http::serve);
    let [idle, mut half, mut busy] = [(); 3].map(|()| service.master.dispatch());
    get(&idle, "/");
    get(&half, "/");
    half.write_all(b"POST /half HTTP/1.1\r\nHost: x\r\nContent-Le").unwrap();
    busy.write_all(b"GET /sleep/200 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    while service.master.seat.counts().requests < 4 {
        std::thread::yield_now();
    }
    let next = Service::start(http::serve);
    service.master.drain_to_others(LONG);
    for _ in 0..3 {
        next.master.pass_on(&service.master.hear_handback());
    }
    service.end();
    half.write_all(b"ngth: 3\r\n\r\na=b").unwrap();
    let answers = [get(&idle, "/pid"), read_answer(&half), read_answer(&busy)];
    for (head, _) in &answers {
        assert!(head.contains("Connection: keep-alive"), "{head}");
    }
    assert!(answers[1].1.ends_with(br#""url":"/half","post":"a=b"}"#));
    assert_eq!(answers[2].1, b"slept 200 ms\n");
    drop((idle, half, busy));
    next.drain();
    next.end();
}

#[test]
fn echo_goes_on_with_the_next_worker_and_greets_once() {
    let service = Service::start(echo::serve);
    let mut client = service.master.dispatch();
    read_exact::<37>(&client);
    let next = Service::start(echo::serve);
    service.master.drain_to_others(LONG);
    next.master.pass_on(&service.master.hear_handback());
    service.end();
    client.write_all(b"hi\n").unwrap();
    assert_eq!(read_exact(&client), *b"-> [ sleep 100ms ] hi\n<- ");
    next.drain();
    assert_eq!(read_all(client), "Good Bye!\n");
    next.end();
}

/// A reset would take the answer away before it is read.
#[test]
fn a_refusal_arrives_though_the_request_was_not_read() {
    let service = Service::start(http::serve);
    for _ in 0..20 {
        let mut client = service.master.dispatch();
        client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n").unwrap();
        client.write_all(&[b'x'; 50_000]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let answer = read_all(client);
        assert!(answer.starts_with("HTTP/1.1 413 Content Too Large\r\n"), "{answer}");
    }
    service.master.drain(LONG);
    service.end();
}

#[test]
fn echo_greets_answers_late_and_says_good_bye() {
    let service = Service::start(echo::serve);
    let mut client = service.master.dispatch();
    let greeting: [u8; 37] = read_exact(&client);
    let greeting = String::from_utf8(greeting.to_vec()).unwrap();
    assert!(greeting.starts_with("Now: ") && greeting.ends_with(" GMT\n<- "), "{greeting}");
    let asked = now();
    client.write_all(b"hi\n").unwrap();
    assert_eq!(read_exact(&client), *b"-> [ sleep 100ms ] hi\n<- ");
    assert!(now() - asked >= Duration::from_millis(100));
    let drained = service.master.dispatch();
    client.write_all(b"ByE now\n").unwrap();
    assert_eq!(read_all(client), "Good Bye!\n");
    read_exact::<37>(&drained);
    (&drained).write_all(b"x").unwrap();
    read_exact::<{ 19 + 1 + 3 }>(&drained);
    service.drain();
    assert_eq!(read_all(drained), "Good Bye!\n");
    service.end();
}

#[test]
fn each_port_is_told_apart() {
    let service = Service::start(multi_port::serve);
    let (other, _worker) = cluster();
    assert_ne!(other.port(), service.master.port());
    for port_of in [&service.master, &other] {
        let client = port_of.connect_through(&service.master);
        let expected = format!("hello world, handle port {}", port_of.port());
        assert_eq!(get(&client, "/").1, expected.into_bytes());
    }
    service.master.drain(LONG);
    service.end();
}

#[test]
fn hello_says_who_answered() {
    let service = Service::start(hello::serve);
    let client = service.master.dispatch();
    let (_, body) = get(&client, "/");
    let expected = format!("process {}\n", std::process::id());
    assert!(String::from_utf8(body).unwrap().ends_with(&expected));
    drop(client);
    service.master.drain(LONG);
    service.end();
}

#[expect(clippy::disallowed_methods, reason = "a delay is measured")]
fn now() -> Instant {
    Instant::now()
}
