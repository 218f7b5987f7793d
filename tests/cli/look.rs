//! Looking at a master: status.

use serde_json::{Value, json};

use crate::support::{Master, Ran, answer, finish, read_call, say_slowly};

#[test]
fn a_status_is_a_page_without_colours_in_a_pipe() {
    let master = Master::new(|stream| {
        let call = read_call(stream);
        assert_eq!(call["method"], "io.rcluster.Status");
        say_slowly(stream, &json!({"parameters": two_pools()}));
    });
    let ran = master.run("status");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(ran.out.starts_with("all is well\n"), "{}", ran.out);
    assert!(ran.out.contains("\nweb  serving  1 of 1 worker   generation 1  7 accepted"));
    assert!(ran.out.contains("\napi  gave up  "), "{}", ran.out);
    assert!(!ran.out.contains('\x1b'));
    master.join();
}

#[test]
fn a_status_of_one_pool_has_no_other() {
    let ran = of_status("status api");
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("\napi  ") && !ran.out.contains("\nweb "), "{}", ran.out);

    let ran = of_status("status api --json");
    let seen: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(seen["pools"].as_array().unwrap().len(), 1);
    assert_eq!(seen["pools"][0]["name"], "api");

    for typed in ["status wbe", "status wbe --json"] {
        let ran = of_status(typed);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""));
        assert_eq!(ran.err, "there is no pool `wbe`; this rcluster has: web, api\n");
    }
}

#[test]
fn json_is_what_the_master_said() {
    let ran = of_status("status --json");
    let seen: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(seen, two_pools());
    assert!(ran.out.lines().count() > 5 && ran.out.ends_with("}\n"));
}

#[test]
fn who_drains_is_a_table_and_the_pool_is_asked_for() {
    let worker = json!({"pool": "web", "slot": 2, "generation": 4, "pid": 8, "cutIn": 25.5,
                        "inHand": 1, "untold": 0, "connections": [{"peer": "unix",
                        "listener": "a.sock", "heldFor": 61.0, "state": "idle", "requests": 3}]});
    for (typed, parameters) in
        [("status --drain", json!({})), ("status web --drain", json!({"pool": "web"}))]
    {
        let answers = json!({"parameters": {"workers": [worker]}});
        let master = Master::new(move |stream| {
            let call = read_call(stream);
            assert_eq!(call["method"], "io.rcluster.Draining");
            assert_eq!(call["parameters"], parameters);
            say_slowly(stream, &answers);
        });
        let ran = master.run(typed);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        let of_pool = if typed.contains("web") { " of web" } else { "" };
        let page = format!(
            "1 worker{of_pool} drains, with 1 connection in hand\n\n\
             web/2  generation 4  pid 8  1 in hand  cut in 25s\n       \
             PEER  LISTENER     HELD  STATE  REQUESTS\n       \
             unix  a.sock    1min 1s  idle          3\n"
        );
        assert_eq!(ran.out, page);
        master.join();
    }
}

#[test]
fn who_drains_as_json_is_what_the_master_said() {
    let said = json!({"workers": [], "fromTheFuture": 1});
    let answers = json!({"parameters": said});
    let master = Master::new(move |stream| answer(stream, &[answers]));
    let ran = master.run("status --drain --json");
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), said);
    master.join();
}

#[test]
fn who_drains_can_be_watched() {
    let master = Master::new(|stream| {
        answer(stream, &[json!({"parameters": {"workers": [{"pool": "a", "slot": 1}]}})]);
        answer(stream, &[json!({"parameters": {"workers": []}})]);
    });
    let ran = master.run("status --drain --watch");
    assert_eq!(ran.code, 1);
    assert!(ran.out.starts_with("1 worker drains\n\na/1  "), "{}", ran.out);
    assert!(ran.out.ends_with("\nno worker drains\n"), "{}", ran.out);
    master.join();
}

#[test]
fn a_master_that_does_not_know_who_drains_is_older() {
    let unknown = json!({"error": "org.varlink.service.MethodNotFound"});
    let master = Master::new(move |stream| answer(stream, &[unknown]));
    let ran = master.run("status --drain");
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.starts_with("the master does not know this; it is of another version"));
    master.join();
}

#[test]
fn a_watch_looks_again_until_the_master_ends() {
    let master = Master::new(|stream| {
        answer(stream, &[json!({"parameters": {"summary": "first"}})]);
        answer(stream, &[json!({"parameters": {"summary": "second"}})]);
    });
    let ran = master.run("status --watch");
    assert_eq!(ran.code, 1);
    let pages: Vec<&str> = ran.out.split("\n\n").collect();
    assert_eq!(pages.len(), 2, "{}", ran.out);
    assert!(pages[0].starts_with("first") && pages[1].starts_with("second"), "{}", ran.out);
    assert!(ran.err.starts_with("the master "), "{ran:?}");
    master.join();
}

#[test]
fn a_reader_that_has_left_is_no_failure() {
    for verb in ["status", "status --json", "status --watch", "reload", "scale web 3"] {
        let master =
            Master::new(|stream| answer(stream, &[json!({"parameters": {"message": "done"}})]));
        let mut child = master.command(verb);
        // The reading end is closed before anything is written to it.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran = finish(child.stdout(writer));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{verb}: {ran:?}");
        master.join();
    }
}

#[test]
fn a_full_disk_is_a_failure() {
    let master = Master::new(|stream| answer(stream, &[json!({"parameters": two_pools()})]));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = finish(master.command("status").stdout(full));
    assert_eq!(ran.code, 1);
    assert!(ran.err.starts_with("the output cannot be written: "), "{ran:?}");
    master.join();
}

fn of_status(typed: &str) -> Ran {
    let master = Master::new(|stream| answer(stream, &[json!({"parameters": two_pools()})]));
    let ran = master.run(typed);
    master.join();
    ran
}

fn two_pools() -> Value {
    json!({
        "version": "0.1.0",
        "pid": 7,
        "uptime": 61.5,
        "state": "running",
        "summary": "all is well",
        "fromTheFuture": [1, 2],
        "pools": [
            {"name": "web", "state": "serving", "listen": ["8080"], "workersWanted": 1,
             "workersServing": 1, "generation": 1, "accepted": 7, "finished": 6, "inHand": 1,
             "workers": [{"slot": 1, "pid": 8, "generation": 1, "state": "serving",
                          "servingFor": 60.0, "connections": 7, "inHand": 1, "requests": 9}]},
            {"name": "api", "state": "gave up", "gaveUp": "5 failed starts", "workersWanted": 2},
        ],
    })
}
