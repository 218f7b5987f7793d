//! Workers that outlive their master. The master is played by hand, and dies with a real process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
};
use nix::unistd::pipe2;

use super::super::{Connection, Wait};
use super::*;
use crate::sys::ancillary::receive;
use crate::sys::process::pidfd_of;
use crate::wire::LOG_KEY;
use crate::wire::message::Token;

const TOKEN: Token = *b"fedcba9876543210";

/// How a worker is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Blocking,
    #[cfg(feature = "tokio")]
    Tokio,
    #[cfg(feature = "serve")]
    Serve,
}

const KINDS: &[Kind] = &[
    Kind::Blocking,
    #[cfg(feature = "tokio")]
    Kind::Tokio,
    #[cfg(feature = "serve")]
    Kind::Serve,
];

/// A byte, its capital; idle connections are handed back.
fn answer(mut connection: Connection) {
    loop {
        match connection.wait_to_hand_back().unwrap() {
            Wait::Bytes => {}
            Wait::Closed => return,
            Wait::Draining => return drop(connection.hand_back(&[])),
        }
        let [byte] = read_exact(&connection);
        connection.write_all(&[byte.to_ascii_uppercase()]).unwrap();
    }
}

#[cfg(feature = "tokio")]
async fn answer_async(mut stream: super::super::Stream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let link = std::sync::Arc::clone(stream.link());
    loop {
        let mut byte = [0];
        let reading = stream.read(&mut byte);
        let drained = link.until_drain();
        tokio::select! {
            count = reading => if count.unwrap() == 0 { return },
            () = drained => return drop(stream.hand_back(&[]).await),
        }
        stream.write_all(&byte.map(|byte| byte.to_ascii_uppercase())).await.unwrap();
    }
}

fn start(kind: Kind, worker: Worker) -> JoinHandle<()> {
    std::thread::spawn(move || match kind {
        Kind::Blocking => worker.ready(answer).unwrap(),
        #[cfg(feature = "tokio")]
        Kind::Tokio => runtime().block_on(async {
            let mut incoming = worker.into_incoming().unwrap();
            while let Some(stream) = incoming.next().await {
                tokio::spawn(answer_async(stream));
            }
        }),
        #[cfg(feature = "serve")]
        Kind::Serve => runtime().block_on(async {
            let app = axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
            worker.serve(app).await.unwrap();
        }),
    })
}

#[cfg(feature = "tokio")]
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Asks and is answered, on a connection that stays.
fn ask(kind: Kind, mut client: &TcpStream) {
    match kind {
        #[cfg(feature = "serve")]
        Kind::Serve => {
            client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\nhello") {
                answer.push(read_exact::<1>(client)[0]);
            }
            assert!(!String::from_utf8(answer).unwrap().to_lowercase().contains("close"));
        }
        _ => {
            client.write_all(b"x").unwrap();
            assert_eq!(read_exact(client), *b"X");
        }
    }
}

/// A worker, its master, and the process that the master is.
struct Cluster {
    master: Master,
    body: Child,
    /// Where masters listen for orphans.
    folder: tempfile::TempDir,
    kind: Kind,
    worker: JoinHandle<()>,
}

/// What is left when the master has died.
struct Orphan {
    listener: TcpListener,
    folder: tempfile::TempDir,
    kind: Kind,
    worker: JoinHandle<()>,
}

/// Something that stays until it is killed.
fn body() -> Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn kill(mut body: Child) {
    body.kill().unwrap();
    body.wait().unwrap();
}

impl Master {
    fn welcome(&self, body: &Child, folder: &tempfile::TempDir, patience: Duration, answer: bool) {
        let path = path(folder);
        let message = ToWorker::Welcome {
            path: path.to_str().unwrap(),
            token: TOKEN,
            orphan_timeout: patience,
            answer,
        };
        let pidfd = pidfd_of(body.id()).unwrap();
        let end = self.end.as_fd();
        self.end.send_with(&message.encode(), pidfd.as_fd(), Some(end)).unwrap();
    }

    fn keep(&self, key: &str, what: impl AsFd) {
        self.end.send_with(&ToWorker::Keep { key }.encode(), what.as_fd(), None).unwrap();
    }
}

fn path(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("adopt")
}

impl Cluster {
    fn start(kind: Kind, patience: Duration) -> Cluster {
        let (master, worker) = cluster();
        let worker = start(kind, worker);
        master.hear_ready();
        let (body, folder) = (body(), tempfile::tempdir().unwrap());
        master.welcome(&body, &folder, patience, false);
        Cluster { master, body, folder, kind, worker }
    }

    /// The master is killed.
    fn bereave(self) -> Orphan {
        let Cluster { master, body, folder, kind, worker } = self;
        let Master { listener, .. } = master;
        // The destructured rest is closed by now, as a killed process' descriptors are.
        kill(body);
        Orphan { listener, folder, kind, worker }
    }

    /// Everything is handed back, and nobody left behind.
    fn end(self, clients: Vec<TcpStream>) {
        self.master.drain_to_others(LONG);
        for _ in &clients {
            drop(self.master.hear_handback());
        }
        assert_eq!(self.master.hear_other(), ToMaster::Drained);
        self.master.say(&ToWorker::Bye);
        self.worker.join().unwrap();
        let mut buffer = [0; LENGTH_MAX];
        let Master { end, duplicate, .. } = self.master;
        drop(duplicate);
        while !matches!(end.receive(&mut buffer).unwrap(), Received::Closed) {
            wait_readable(&[end.as_fd()], Some(LONG)).unwrap();
            assert!(readable(end.as_fd()), "somebody holds the channel still");
        }
        kill(self.body);
    }
}

/// Where orphans come; bound beside its place and moved there, so that it is complete when it is seen.
fn open(folder: &tempfile::TempDir) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    let draft = folder.path().join("draft");
    bind(listener.as_raw_fd(), &UnixAddr::new(&draft).unwrap()).unwrap();
    listen(&listener, Backlog::new(16).unwrap()).unwrap();
    std::fs::rename(draft, path(folder)).unwrap();
    listener
}

/// Somebody has come.
struct Guest {
    socket: OwnedFd,
    end: OwnedFd,
    duplicate: OwnedFd,
    board: OwnedFd,
    kept: Vec<(String, OwnedFd)>,
}

fn hear(socket: BorrowedFd<'_>) -> (ToMaster, [Option<OwnedFd>; 3]) {
    let mut buffer = [0; LENGTH_MAX];
    loop {
        match receive(socket, &mut buffer).unwrap() {
            Received::Message { len, descriptor, second, third, .. } => {
                let message = ToMaster::decode(&buffer[..len]).unwrap();
                return (message, [descriptor, second, third]);
            }
            Received::Empty => {
                wait_readable(&[socket], Some(LONG)).unwrap();
                assert!(readable(socket), "nothing is said");
            }
            Received::Closed => panic!("it has gone"),
        }
    }
}

fn receive_guest(listener: &OwnedFd) -> Guest {
    wait_readable(&[listener.as_fd()], Some(LONG)).unwrap();
    assert!(readable(listener.as_fd()), "nobody comes");
    let socket = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap();
    let socket = crate::sys::ancillary::take_over(socket).unwrap();
    let (message, descriptors) = hear(socket.as_fd());
    let ToMaster::Hello { token, kept } = message else { panic!("{message:?}") };
    assert_eq!(token, TOKEN);
    let [duplicate, end, board] = descriptors.map(Option::unwrap);
    let kept = (0..kept).map(|_| match hear(socket.as_fd()) {
        (ToMaster::Keep { key }, [Some(what), None, None]) => (key, what),
        other => panic!("{other:?}"),
    });
    let kept = kept.collect();
    Guest { socket, end, duplicate, board, kept }
}

impl Orphan {
    /// The next master comes and adopts it, and whether it drains.
    fn adopt(self) -> (Cluster, bool) {
        let listener = open(&self.folder);
        let guest = receive_guest(&listener);
        let (cluster, _, draining) = self.welcome(guest);
        (cluster, draining)
    }

    fn welcome(self, guest: Guest) -> (Cluster, Vec<(String, OwnedFd)>, bool) {
        let Orphan { listener, folder, kind, worker } = self;
        let Guest { socket, end, duplicate, board, kept } = guest;
        let board = Scoreboard::open(board).unwrap();
        let seat = board.seat(SEAT).unwrap();
        let master = Master { end: End::new(end), duplicate, board, seat, listener };
        let body = body();
        master.welcome(&body, &folder, LONG, true);
        let (answer, _) = hear(socket.as_fd());
        let ToMaster::Ready(Ready { adoption: true, draining, .. }) = answer else {
            panic!("{answer:?}")
        };
        (Cluster { master, body, folder, kind, worker }, kept, draining)
    }
}

/// Three masters die one after the other. Who is connected notices nothing, and what a dead master
/// had sent is answered.
#[test]
fn a_client_notices_no_masters_death() {
    for &kind in KINDS {
        let mut cluster = Cluster::start(kind, LONG);
        let mut clients = vec![cluster.master.dispatch()];
        ask(kind, &clients[0]);
        for round in 1..=3 {
            clients.push(cluster.master.dispatch());
            let orphan = cluster.bereave();
            for client in &clients {
                ask(kind, client);
            }
            let draining;
            (cluster, draining) = orphan.adopt();
            assert!(!draining);
            clients.push(cluster.master.dispatch());
            for client in &clients {
                ask(kind, client);
            }
            let counts = cluster.master.until(|counts| counts.taken == 1 + 2 * round);
            assert_eq!((counts.finished, counts.progress), (0, counts.taken), "{kind:?}");
        }
        cluster.end(clients);
    }
}

/// The socket may be there all the time, as systemd's is.
#[test]
fn a_socket_that_somebody_else_holds_is_found_at_once() {
    let cluster = Cluster::start(Kind::Blocking, LONG);
    let listener = open(&cluster.folder);
    let client = cluster.master.dispatch();
    let orphan = cluster.bereave();
    ask(orphan.kind, &client);
    let (cluster, _, draining) = orphan.welcome(receive_guest(&listener));
    assert!(!draining);
    cluster.end(vec![client]);
}

/// What it hands back while no master is there waits for the next one, and so does the worker.
#[test]
fn a_master_dies_in_the_middle_of_a_drain() {
    for &kind in KINDS {
        let cluster = Cluster::start(kind, LONG);
        let clients = [cluster.master.dispatch(), cluster.master.dispatch()];
        for client in &clients {
            ask(kind, client);
        }
        cluster.master.drain_to_others(LONG);
        let orphan = cluster.bereave();
        let (cluster, draining) = orphan.adopt();
        assert!(draining, "{kind:?}");
        // The last may have been said before or after it was adopted.
        let (mut returned, mut is_drained) = (Vec::new(), false);
        while !is_drained {
            match hear(cluster.master.end.as_fd()) {
                (ToMaster::Handback { .. }, [Some(client), None, None]) => {
                    returned.push(TcpStream::from(client).peer_addr().unwrap());
                }
                (ToMaster::Drained, _) => is_drained = true,
                (other, _) => panic!("{other:?}"),
            }
        }
        returned.sort();
        let mut addresses = clients.each_ref().map(|it| it.local_addr().unwrap());
        addresses.sort();
        assert_eq!(returned, addresses, "{kind:?}");
        assert_eq!(cluster.master.seat.handed_back(), (2, 0), "{kind:?}");
        assert!(!cluster.worker.is_finished(), "{kind:?}: its words may be unheard");
        cluster.master.say(&ToWorker::Bye);
        cluster.worker.join().unwrap();
        kill(cluster.body);
    }
}

/// DRAINED was said to a master who died before it was heard.
#[test]
fn a_drained_worker_waits_until_it_is_heard() {
    for &kind in KINDS {
        let cluster = Cluster::start(kind, LONG);
        cluster.master.drain_to_others(LONG);
        assert_eq!(cluster.master.hear_other(), ToMaster::Drained);
        let (cluster, draining) = cluster.bereave().adopt();
        assert!(draining, "{kind:?}");
        assert_eq!(cluster.master.hear_other(), ToMaster::Drained, "said again");
        assert!(!cluster.worker.is_finished(), "{kind:?}");
        cluster.master.say(&ToWorker::Bye);
        cluster.worker.join().unwrap();
        kill(cluster.body);
    }
}

#[test]
fn who_is_refused_drains_and_leaves() {
    for &kind in KINDS {
        let cluster = Cluster::start(kind, LONG);
        let (mut idle, silent) = (cluster.master.dispatch(), cluster.master.dispatch());
        ask(kind, &idle);
        let orphan = cluster.bereave();
        let listener = open(&orphan.folder);
        let guest = receive_guest(&listener);
        crate::sys::ancillary::send(guest.socket.as_fd(), &ToWorker::Bye.encode()).unwrap();
        drop(guest);
        assert_eq!(idle.read(&mut [0]).unwrap(), 0, "{kind:?}: idle, closed");
        drop(silent);
        orphan.worker.join().unwrap();
    }
}

#[test]
fn a_worker_whom_nobody_adopts_in_time_drains_and_leaves() {
    for &kind in KINDS {
        let cluster = Cluster::start(kind, Duration::from_millis(50));
        let (mut idle, queued) = (cluster.master.dispatch(), cluster.master.dispatch());
        ask(kind, &idle);
        let orphan = cluster.bereave();
        ask(kind, &queued);
        assert_eq!(idle.read(&mut [0]).unwrap(), 0, "{kind:?}: idle, closed");
        orphan.worker.join().unwrap();
    }
}

/// It drains because nobody came, and then somebody comes.
#[test]
fn who_comes_late_still_gets_it() {
    let cluster = Cluster::start(Kind::Blocking, Duration::from_millis(50));
    let (mut idle, silent) = (cluster.master.dispatch(), cluster.master.dispatch());
    ask(Kind::Blocking, &idle);
    let orphan = cluster.bereave();
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "it drains");
    let (cluster, draining) = orphan.adopt();
    assert!(draining);
    drop(silent);
    assert_eq!(cluster.master.hear_other(), ToMaster::Drained);
    cluster.master.say(&ToWorker::Bye);
    cluster.worker.join().unwrap();
    kill(cluster.body);
}

#[test]
fn a_next_master_that_dies_at_once_is_followed_by_another() {
    let cluster = Cluster::start(Kind::Blocking, LONG);
    let client = cluster.master.dispatch();
    let orphan = cluster.bereave();
    let listener = open(&orphan.folder);
    for _ in 0..3 {
        // It takes no notice, and is gone.
        drop(receive_guest(&listener));
        ask(Kind::Blocking, &client);
    }
    drop(listener);
    let (cluster, draining) = orphan.adopt();
    assert!(!draining);
    cluster.end(vec![client]);
}

/// Listeners and the like: given back in full, given to everybody anew, closed when they are not
/// needed and when the worker leaves.
#[test]
fn what_is_kept_comes_back() {
    let cluster = Cluster::start(Kind::Blocking, LONG);
    let pipes = [(); 3].map(|()| pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap());
    let [(first, one), (second, two), (third, three)] = pipes;
    for (key, what) in [("one", one), ("two", two), ("three", three)] {
        cluster.master.keep(key, what);
    }
    cluster.master.say(&ToWorker::Forget { key: "two" });
    cluster.master.say(&ToWorker::Forget { key: "nobody knows it" });
    let ended = |reader: OwnedFd| read_all(std::fs::File::from(reader));
    assert_eq!(ended(second), "", "closed");
    let orphan = cluster.bereave();
    let listener = open(&orphan.folder);
    let guest = receive_guest(&listener);
    let keys: Vec<&str> = guest.kept.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["one", "three"]);
    for (key, what) in &guest.kept {
        nix::unistd::write(what, key.as_bytes()).unwrap();
    }
    let (cluster, kept, _) = orphan.welcome(guest);
    drop((kept, listener));
    let orphan = cluster.bereave();
    let listener = open(&orphan.folder);
    let (cluster, kept, _) = orphan.welcome(receive_guest(&listener));
    assert_eq!(kept.len(), 2, "for the one after the next, too");
    drop(kept);
    cluster.end(Vec::new());
    assert_eq!((ended(first), ended(third)), ("one".into(), "three".into()));
}

/// As many as one can think of: more than the connection's queue takes at once.
#[test]
fn however_much_is_kept_it_comes_back() {
    let cluster = Cluster::start(Kind::Blocking, LONG);
    let file = tempfile::tempfile().unwrap();
    for number in 0..400 {
        cluster.master.keep(&number.to_string(), &file);
        if number % 50 == 49 {
            ask(Kind::Blocking, &cluster.master.dispatch());
        }
    }
    let orphan = cluster.bereave();
    let listener = open(&orphan.folder);
    let (cluster, kept, _) = orphan.welcome(receive_guest(&listener));
    assert_eq!(kept.len(), 400);
    cluster.end(Vec::new());
}

/// The read end of its own output, which a worker that nobody adopts reads empty: it must not wait
/// for room that nobody makes.
#[test]
fn what_nobody_reads_is_thrown_away_at_last() {
    let cluster = Cluster::start(Kind::Blocking, Duration::from_millis(50));
    let (reader, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    cluster.master.keep(&format!("{LOG_KEY}web.1"), reader);
    let silent = cluster.master.dispatch();
    let orphan = cluster.bereave();
    let mut writer = std::fs::File::from(writer);
    for _ in 0..64 {
        // Sixteen times what a pipe holds.
        writer.write_all(&[b'x'; 16 * 1024]).unwrap();
    }
    drop(silent);
    orphan.worker.join().unwrap();
    wait_readable(&[writer.as_fd()], Some(LONG)).unwrap();
    assert!(readable(writer.as_fd()), "nobody holds the other end any more");
}

/// A worker without WELCOME sees the channel's end, as ever.
#[test]
fn a_worker_that_was_not_welcomed_drains_when_the_master_dies() {
    for &kind in KINDS {
        let (master, worker) = cluster();
        let worker = start(kind, worker);
        master.hear_ready();
        let mut idle = master.dispatch();
        ask(kind, &idle);
        master.die();
        assert_eq!(idle.read(&mut [0]).unwrap(), 0);
        worker.join().unwrap();
    }
}
