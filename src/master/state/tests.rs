//! What is written is read again, whatever happened to it on the way.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use super::kept::{Kept, decode, encode};
use super::*;
use crate::master::inherit::{Inheritance, Inherited};
use crate::sys::listen::{blocks, local, set_blocking};

/// A half that holds `state`, then torn after so many bytes of a write of `next` over it.
fn torn(state: &[u8], next: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = encode(4, state);
    let next = encode(6, next);
    bytes.resize(bytes.len().max(next.len()), 0);
    bytes[..at].copy_from_slice(&next[..at]);
    bytes
}

#[test]
fn a_half_that_was_torn_is_not_taken_for_whole() {
    let (old, new) =
        (b"the state before".as_slice(), b"the state after, which is longer".as_slice());
    let whole = encode(6, new).len();
    for at in 0..=whole {
        let bytes = torn(old, new, at);
        match decode(&bytes) {
            None => assert!(at < whole, "a whole one is not recognised"),
            Some((4, state)) => assert!(state == old, "torn after {at} bytes: {state:?}"),
            Some((6, state)) => assert!(state == new, "torn after {at} bytes: {state:?}"),
            Some(other) => panic!("{other:?}"),
        }
        // Cut off, as by a file system that was full.
        let cut = &encode(6, new)[..at];
        assert_eq!(decode(cut).is_some(), at == whole, "cut after {at} bytes");
    }
}

#[test]
fn rubbish_is_no_state() {
    for length in [0, 1, 31, 32, 33, 4096] {
        assert_eq!(decode(&vec![0; length]), None);
        assert_eq!(decode(&vec![0xff; length]), None);
    }
    let good = encode(7, b"{}");
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            assert_eq!(decode(&bytes), None, "bit {bit} of byte {at}");
        }
    }
    assert!(State::decode(b"").is_err() && State::decode(b"[]").is_err());
    let why = State::decode(br#"{"format":2,"version":"9.0.0","mind":7}"#).unwrap_err();
    assert!(why.contains("9.0.0") && why.contains("restart the service"), "{why}");
}

#[test]
fn the_newer_half_counts_until_it_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let mut kept = Kept::beside(&control).unwrap().kept;
    assert!(Kept::beside(&control).unwrap().state.is_none(), "nothing was written");
    for number in 1..=5 {
        kept.write(format!("state {number}").as_bytes()).unwrap();
        let found = Kept::beside(&control).unwrap();
        assert_eq!(found.state.unwrap(), format!("state {number}").as_bytes());
    }
    // The sixth is torn in its head, then in its middle.
    for text in ["state 6, torn", "state 6"] {
        kept.write(text.as_bytes()).unwrap();
        let start = if kept.sequence % 2 == 0 { 0 } else { super::kept::HALF };
        std::os::unix::fs::FileExt::write_all_at(&kept.file, b"X", start + 34).unwrap();
        let mut found = Kept::beside(&control).unwrap();
        assert_eq!(found.state.unwrap(), b"state 5");
        // Who goes on writes over the torn one.
        found.kept.write(b"state 5").unwrap();
        kept.sequence = found.kept.sequence;
    }
    let memfd = kept.file.try_clone().unwrap();
    let found = Kept::given_back(memfd.into());
    assert_eq!(found.state.unwrap(), b"state 5");
    found.kept.discard();
    kept.discard();
    assert!(!folder.path().join("control.state").exists());
}

#[test]
fn a_file_of_somebody_else_is_not_trusted() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    drop(Kept::beside(&control).unwrap());
    let path = folder.path().join("control.state");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o660)).unwrap();
    let error = Kept::beside(&control).map(drop).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
    assert!(Kept::beside(&control).is_err(), "a symlink");
}

#[test]
fn a_state_of_another_version_is_read_as_far_as_it_goes() {
    let text =
        br#"{"format":1,"version":"0.9.9","pid":7,"news":{"a":1},"workers":[{"pid":8,"x":[]}]}"#;
    let state = State::decode(text).unwrap();
    assert_eq!((state.pid, state.workers[0].pid, state.workers[0].token.clone()), (7, 8, None));
    let again = State::decode(&state.encode().unwrap()).unwrap();
    assert_eq!(again.version, "0.9.9");
}

#[test]
fn what_the_system_calls_a_string_need_not_be_text() {
    for bytes in [b"plain".as_slice(), b"\xff/\x00x", b""] {
        let text = Text::from(OsStr::from_bytes(bytes));
        let json = serde_json::to_string(&text).unwrap();
        let back: Text = serde_json::from_str(&json).unwrap();
        assert_eq!(OsString::from(back).as_bytes(), bytes);
    }
}

#[test]
fn only_what_was_packed_can_be_unpacked_and_once() {
    let file = tempfile::tempfile().unwrap();
    let mut packing = Packing::Carried(Vec::new());
    let number = packing.pack(&file).unwrap();
    assert_eq!(packing.numbers(), [number]);
    let is_kept = || {
        let flags = nix::fcntl::fcntl(file.as_fd(), nix::fcntl::FcntlArg::F_GETFD).unwrap();
        flags & nix::libc::FD_CLOEXEC == 0
    };
    packing.survive(true).unwrap();
    assert!(is_kept());
    packing.survive(false).unwrap();
    assert!(!is_kept());
    assert_eq!(Packing::Left.pack(&file), None);
    let mut none = Luggage::take_over(&[]).unwrap();
    assert!(none.unpack(number).is_err() && none.unpack_some(None).is_err());
    // Standard error is nobody's luggage, nor is a number that is not open, nor one twice.
    for numbers in ["[2]", "[-1]", "[1000000]"] {
        let numbers: Vec<Number> = serde_json::from_str(numbers).unwrap();
        assert!(Luggage::take_over(&numbers).is_err(), "{numbers:?}");
    }
}

#[test]
fn a_listener_that_is_found_again_blocks_as_it_did() {
    for does in [false, true] {
        let socket = OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let theirs = socket.try_clone().unwrap();
        // As systemd hands it over for the next master.
        set_blocking(theirs.as_fd(), !does).unwrap();
        let (name, local) = (Some("web".to_owned()), local(socket.as_fd()));
        let sockets = vec![Inherited { name, socket, local }];
        let inheritance = Inheritance { sockets, ..Inheritance::default() };
        let listener =
            super::Listener { name: "web".to_owned(), blocks: Some(does), ..Default::default() };
        let state = super::Listeners { open: vec![listener], ..Default::default() };
        let mut listeners = crate::master::listeners::Listeners::new(inheritance, false);
        listeners.resume(state, &mut Descriptors::Reopened).unwrap();
        assert_eq!(blocks(theirs.as_fd()).unwrap(), does);
    }
}
