//! Commanding a master: reload, scale, stop, upgrade.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;

use serde_json::json;

use crate::support::{Master, answer, finish, read_call, say};

#[test]
fn a_reload_ends_with_its_outcome_alone() {
    let master = Master::new(|stream| {
        let call = read_call(stream);
        assert_eq!(call["method"], "io.rcluster.Reload");
        assert_eq!(call["more"], true);
        assert_eq!(call["parameters"], json!({"pools": ["web", "api"]}));
        for done in 0..3 {
            let step = json!({"message": "a step", "generation": 2, "done": done, "total": 3});
            say(stream, &json!({"parameters": step, "continues": true}));
        }
        say(stream, &json!({"parameters": {"message": "generation 2 serves", "generation": 2}}));
    });
    let ran = master.run("reload web api");
    assert_eq!((ran.code, ran.out.as_str()), (0, "generation 2 serves\n"), "{ran:?}");
    assert_eq!(ran.err, "");
    master.join();
}

#[test]
fn a_reload_that_is_not_waited_for_asks_for_no_progress() {
    let master = Master::new(|stream| {
        let call = read_call(stream);
        assert_eq!(call.get("more"), None);
        assert_eq!(call["parameters"], json!({"pools": [], "noWait": true}));
        say(stream, &json!({"parameters": {"message": "generation 3 is under way"}}));
    });
    let ran = master.run("reload --no-wait");
    assert_eq!((ran.code, ran.out.as_str()), (0, "generation 3 is under way\n"));
    master.join();
}

#[test]
fn a_failed_or_refused_reload_says_why() {
    for name in ["Failed", "Refused"] {
        let master = Master::new(move |stream| {
            let refusal = json!({"reason": "slot 1 was never ready; see its journal"});
            let step = json!({"parameters": {"message": "a step"}, "continues": true});
            let last = json!({"error": format!("io.rcluster.{name}"), "parameters": refusal});
            answer(stream, &[step, last]);
        });
        let ran = master.run("reload");
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
        assert_eq!(ran.err, "slot 1 was never ready; see its journal\n");
        master.join();
    }
}

#[test]
fn a_master_that_ends_during_a_reload_is_a_failure() {
    let endings: [&[u8]; 4] =
        [b"", b"{\"continues\":true}\0", b"{\"parameters\":{\"message\":\"d", b"{}"];
    for ending in endings {
        let master = Master::new(move |stream| {
            read_call(stream);
            stream.write_all(ending).unwrap();
        });
        let ran = master.run("reload");
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
        assert_eq!(ran.err, "the master ended before the reload was over\n");
        master.join();
    }
}

#[test]
fn garbage_is_a_sentence_and_no_panic() {
    for verb in ["reload", "status", "status --json", "scale web 3", "stop", "upgrade"] {
        for garbage in [&b"\xff\xfe\0"[..], b"[]\0", b"{\"parameters\":[1", b"\0", b""] {
            let master = Master::new(move |stream| {
                read_call(stream);
                stream.write_all(garbage).unwrap();
            });
            let ran = master.run(verb);
            assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{verb} {garbage:?}: {ran:?}");
            assert!(ran.err.starts_with("the master "), "{verb} {garbage:?}: {ran:?}");
            assert_eq!(ran.err.lines().count(), 1, "{verb} {garbage:?}: {ran:?}");
            master.join();
        }
    }
    let master = Master::new(|stream| answer(stream, &[json!({"parameters": {"pools": 3}})]));
    assert!(master.run("status").err.starts_with("the master answers in another way"));
    master.join();
}

#[test]
fn scale_says_what_holds_from_now_on() {
    let master = Master::new(|stream| {
        let call = read_call(stream);
        assert_eq!(call["method"], "io.rcluster.Scale");
        assert_eq!(call["parameters"], json!({"pool": "web", "workers": 3}));
        say(stream, &json!({}));
    });
    let ran = master.run("scale web 3");
    let expected = "web has 3 workers from now on, until the master ends\n";
    assert_eq!((ran.code, ran.out.as_str()), (0, expected), "{ran:?}");
    master.join();
}

#[test]
fn stop_waits_until_the_master_is_gone() {
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let master = Master::new(move |stream| {
        assert_eq!(read_call(stream)["method"], "io.rcluster.Stop");
        say(stream, &json!({}));
        ended.recv().unwrap();
    });
    let mut child = master.command("stop");
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(child.try_wait().unwrap().is_none());
    end.send(()).unwrap();
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(out, "the service has ended\n");
    master.join();
}

#[test]
fn stop_listens_until_the_end() {
    let master = Master::new(|stream| {
        answer(stream, &[json!({}), json!({})]);
    });
    let ran = master.run("stop");
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    assert_eq!(ran.err, "the master said more than it was asked\n");
    master.join();
}

#[test]
fn an_upgrade_that_is_refused_says_why() {
    let master = Master::new(|stream| {
        let refusal = json!({"reason": "not in this version"});
        answer(stream, &[json!({"error": "io.rcluster.Refused", "parameters": refusal})]);
    });
    let ran = master.run("upgrade");
    assert_eq!((ran.code, ran.err.as_str()), (1, "not in this version\n"), "{ran:?}");
    master.join();
}

#[test]
fn in_the_journal_a_failure_has_its_priority() {
    let master = Master::new(|stream| {
        let refusal = json!({"reason": "not now"});
        answer(stream, &[json!({"error": "io.rcluster.Refused", "parameters": refusal})]);
    });
    let here = tempfile::tempdir().unwrap();
    let journal = std::fs::File::create(here.path().join("journal")).unwrap();
    let metadata = journal.metadata().unwrap();
    let stream = format!("{}:{}", metadata.dev(), metadata.ino());
    let ran = finish(master.command("reload").env("JOURNAL_STREAM", stream).stderr(journal));
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    let said = std::fs::read_to_string(here.path().join("journal")).unwrap();
    assert_eq!(said, "<3>not now\n");
    master.join();
}
