//! A client against masters that answer, refuse, dawdle and vanish.

use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};

use serde_json::json;

use super::*;

/// Long enough for a machine that is busy, where the wait is not what is tested.
const LONG: Duration = Duration::from_secs(60);
/// Where it is.
const SHORT: Duration = Duration::from_millis(30);

#[test]
fn a_call_goes_out_and_its_answer_comes_back() {
    let master = Fake::new(|stream| {
        let call = read_call(stream);
        let expected = "{\"method\":\"io.rcluster.Scale\",\"parameters\":{\"pool\":\"a\"}}\0";
        assert_eq!(String::from_utf8(call).unwrap(), expected);
        stream.write_all(b"{\"parameters\":{\"a\":1}}\0").unwrap();
    });
    let mut client = master.connect(LONG);
    assert_eq!(client.ask("Scale", json!({"pool": "a"})).unwrap(), json!({"a": 1}));
    master.join();
}

#[test]
fn an_answer_in_pieces_is_one_and_two_in_one_piece_are_two() {
    let master = Fake::new(|stream| {
        read_call(stream);
        for byte in b"{\"continues\":true}" {
            stream.write_all(&[*byte]).unwrap();
        }
        stream.write_all(b"\0{\"parameters\":{}}\0{}\0").unwrap();
    });
    let mut client = master.connect(LONG);
    client.call("Reload", json!({}), true).unwrap();
    assert!(client.answer().unwrap().continues);
    assert_eq!(client.answer().unwrap().parameters, json!({}));
    assert_eq!(client.answer().unwrap(), Answer::default());
    assert!(matches!(client.answer(), Err(Error::Ended)));
    master.join();
}

#[test]
fn refusals_keep_their_reason() {
    let refused = "{\"error\":\"io.rcluster.Refused\",\"parameters\":{\"reason\":\"not\\nnow\"}}\0";
    let failed = "{\"error\":\"io.rcluster.Failed\",\"parameters\":{\"reason\":\"undone\"}}\0";
    let unknown = "{\"error\":\"org.varlink.service.MethodNotFound\"}\0";
    let bare = "{\"error\":\"io.rcluster.Refused\"}\0";
    let other = "{\"error\":\"x.y.Z\",\"parameters\":{\"a\":[1]}}\0";
    assert_eq!(answered(refused).to_string(), "not now");
    assert!(matches!(answered(failed), Error::Failed(reason) if reason == "undone"));
    assert!(matches!(answered(unknown), Error::Unknown));
    assert_eq!(answered(bare).to_string(), "the master answered io.rcluster.Refused");
    assert_eq!(answered(other).to_string(), "the master answered x.y.Z {\"a\":[1]}");
}

#[test]
fn whatever_comes_is_a_sentence() {
    for rubbish in ["\0", "{}{}\0", "[]\0", "\"\0", "{\"continues\":3}\0", "\u{fffd}\0"] {
        assert!(matches!(answered(rubbish), Error::Garbage(_)), "{rubbish:?}");
    }
    for end in ["", "{", "{\"parameters\":{}}"] {
        assert!(matches!(answered(end), Error::Ended), "{end:?}");
    }
}

#[test]
fn an_endless_answer_is_cut_off() {
    let master = Fake::new(|stream| {
        read_call(stream);
        let chunk = vec![b' '; 1 << 20];
        // The client leaves in the middle.
        while stream.write_all(&chunk).is_ok() {}
    });
    let mut client = master.connect(LONG);
    assert!(matches!(client.ask("Status", json!({})), Err(Error::TooLong)));
    drop(client);
    master.join();
}

#[test]
fn a_silent_master_is_not_waited_for_forever() {
    let here = tempfile::tempdir().unwrap();
    let path = here.path().join("control");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut client = Client::connect(&path, SHORT).unwrap();
    let error = client.ask("Status", json!({})).unwrap_err();
    assert!(matches!(error, Error::Silent(SHORT)), "{error:?}");
    assert!(error.to_string().starts_with("the master is silent for 30ms;"), "{error}");
}

#[test]
fn a_full_backlog_is_not_waited_for_forever() {
    let here = tempfile::tempdir().unwrap();
    let path = here.path().join("control");
    let listener =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _first = Client::connect(&path, SHORT).unwrap();
    assert!(matches!(Client::connect(&path, SHORT), Err(Error::Silent(_))));
}

#[test]
fn a_master_that_hangs_up_unread_is_still_heard() {
    let master = Fake::new(|stream| {
        let reason =
            "{\"error\":\"io.rcluster.Refused\",\"parameters\":{\"reason\":\"not you\"}}\0";
        stream.write_all(reason.as_bytes()).unwrap();
    });
    let mut client = master.connect(LONG);
    master.join();
    let error = client.ask("Status", json!({})).unwrap_err();
    assert_eq!(error.to_string(), "not you");
}

#[test]
fn nobody_there_is_a_sentence() {
    let here = tempfile::tempdir().unwrap();
    let stale = here.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    for path in [stale, here.path().join("none"), here.path().join("none/control")] {
        let error = Client::connect(&path, LONG).unwrap_err().to_string();
        let expected = format!("no rcluster is running here (tried {});", path.display());
        assert!(error.starts_with(&expected), "{error}");
    }
    let long = here.path().join("a".repeat(200));
    let error = Client::connect(&long, LONG).unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[test]
fn an_instance_is_named_in_the_remedy() {
    let tried = vec![PathBuf::from("/run/rcluster@web/control")];
    let error = Error::Nobody { tried, instance: Some("web".into()) };
    assert_eq!(
        error.to_string(),
        "no rcluster@web is running here (tried /run/rcluster@web/control); start it with \
         `systemctl start rcluster@web`"
    );
}

/// The error that this answer becomes.
fn answered(answer: &'static str) -> Error {
    let master = Fake::new(move |stream| {
        read_call(stream);
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let mut client = master.connect(LONG);
    client.call("Status", json!({}), false).unwrap();
    let error = client.answer().unwrap_err();
    master.join();
    error
}

/// A master that serves one connection.
struct Fake {
    directory: tempfile::TempDir,
    thread: JoinHandle<()>,
}

impl Fake {
    fn new(serve: impl FnOnce(&mut UnixStream) + Send + 'static) -> Fake {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("control")).unwrap();
        let thread = thread::spawn(move || serve(&mut listener.accept().unwrap().0));
        Fake { directory, thread }
    }

    fn connect(&self, patience: Duration) -> Client {
        Client::connect(&self.directory.path().join("control"), patience).unwrap()
    }

    fn join(self) {
        self.thread.join().unwrap();
    }
}

fn read_call(stream: &mut UnixStream) -> Vec<u8> {
    let mut call = Vec::new();
    BufReader::new(stream).read_until(0, &mut call).unwrap();
    call
}
