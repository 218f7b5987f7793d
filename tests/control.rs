//! The control socket against strangers and clumsy clients. Whatever they do, requests are answered
//! meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use rcluster::wire::control::{Answer, CALL_MAX, DESCRIPTION, ReloadResults};
use serde_json::{Value, json};
use support::load::Load;
use support::{Cluster, PATIENCE, cpu_time, memory, outcome, pool, web};

const STATUS: &[u8] = b"{\"method\":\"io.rcluster.Status\"}\0";

/// A client of the control socket that writes what it likes.
struct Client(BufReader<UnixStream>);

impl Client {
    fn of(cluster: &Cluster) -> Client {
        let stream = cluster.connect_control();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn call(&mut self, call: &Value) {
        self.send(format!("{call}\0").as_bytes());
    }

    /// The next answer; `None`: it was hung up.
    fn hear(&mut self) -> Option<Answer> {
        let mut bytes = Vec::new();
        match self.0.read_until(0, &mut bytes) {
            Ok(0) => None,
            Ok(_) => {
                assert_eq!(bytes.pop(), Some(0), "a whole answer");
                Some(serde_json::from_slice(&bytes).unwrap())
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }

    fn ask(&mut self, call: &Value) -> Answer {
        self.call(call);
        self.hear().unwrap()
    }
}

/// A cluster, and clients who go on asking for pages while something happens to its control socket.
fn while_it_serves(happens: impl FnOnce(&Cluster)) {
    let mut cluster = Cluster::serve(&web(""));
    let load = Load::closed(cluster.port, 4, "/pid");
    happens(&cluster);
    let enough = load.answered.load(SeqCst) + 50;
    while load.answered.load(SeqCst) < enough {
        std::thread::yield_now();
    }
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    assert!(cluster.is_running());
    assert_eq!(cluster.status().state, "running");
    assert_eq!(cluster.count("panicked"), 0);
}

fn is_status(answer: Option<Answer>) -> bool {
    answer.is_some_and(|answer| answer.error.is_none() && answer.parameters["pools"].is_array())
}

#[test]
fn half_a_call_holds_up_nobody() {
    while_it_serves(|cluster| {
        let mut halves: Vec<Client> = (0..50).map(|_| Client::of(cluster)).collect();
        halves.iter_mut().for_each(|half| half.send(&STATUS[..20]));
        let mut other = Client::of(cluster);
        other.send(STATUS);
        assert!(is_status(other.hear()));
        assert!(cluster.reload().is_ok());
        for half in &mut halves {
            half.send(&STATUS[20..]);
            assert!(is_status(half.hear()));
        }
    });
}

#[test]
fn a_call_may_come_byte_by_byte_and_several_in_one_piece() {
    while_it_serves(|cluster| {
        let mut client = Client::of(cluster);
        STATUS.iter().for_each(|byte| client.send(&[*byte]));
        assert!(is_status(client.hear()));
        client.send(&[STATUS, STATUS, STATUS, &STATUS[..5]].concat());
        assert!((0..3).all(|_| is_status(client.hear())));
        client.send(&STATUS[5..]);
        assert!(is_status(client.hear()));
    });
}

#[test]
fn two_hundred_clients_at_once_are_answered_or_hung_up_on() {
    while_it_serves(|cluster| {
        let mut clients: Vec<Client> = (0..200).map(|_| Client::of(cluster)).collect();
        let answered = clients.iter_mut().filter_map(|client| {
            // Who was hung up on may learn of it when writing.
            client.0.get_mut().write_all(STATUS).ok()?;
            client.hear()
        });
        let answered = answered.count();
        assert!((64..=200).contains(&answered), "{answered} of 200 were answered");
        drop(clients);
        // Their places are free again, for as many.
        for _ in 0..200 {
            assert!(is_status(Some(cluster.call("Status", json!({})))));
        }
    });
}

#[test]
fn a_call_over_the_bound_is_cut_off() {
    while_it_serves(|cluster| {
        let mut client = Client::of(cluster);
        let mut stream = client.0.get_ref().try_clone().unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let chunk = [b'x'; 4096];
        let mut sent = 0;
        // The end shows as a failed write, once the socket's own buffer is no help any more.
        while sent < 100 * CALL_MAX {
            match stream.write(&chunk) {
                Ok(count) => sent += count,
                Err(error) => {
                    assert_ne!(error.kind(), ErrorKind::WouldBlock, "cut off, not left alone");
                    break;
                }
            }
        }
        assert!(sent < 20 * CALL_MAX, "{sent} bytes were taken");
        assert!(client.hear().is_none());
        // One of just the bound's size is read.
        let mut client = Client::of(cluster);
        let filling = "x".repeat(CALL_MAX - 200);
        let answer = client.ask(&json!({ "method": "io.rcluster.Status", "filling": filling }));
        assert!(is_status(Some(answer)));
    });
}

#[test]
fn rubbish_is_refused_in_a_sentence() {
    while_it_serves(|cluster| {
        let mut client = Client::of(cluster);
        let rubbish: [&[u8]; 12] = [
            b"\0",
            b"hello\0",
            b"GET / HTTP/1.1\r\n\r\n\0",
            b"\xff\xfe\x80\0",
            b"{\0",
            b"[]\0",
            b"null\0",
            b"17\0",
            b"\"io.rcluster.Status\"\0",
            b"[\"io.rcluster.Status\",{},false,false]\0",
            b"{\"method\":7}\0",
            b"{\"method\":\"io.rcluster.Status\",\"parameters\":[]}\0",
        ];
        for bytes in rubbish {
            client.send(bytes);
            let answer = client.hear().unwrap();
            let refusal = outcome(&answer).unwrap_err();
            let bytes = String::from_utf8_lossy(bytes);
            assert!(refusal.starts_with("that is no call: "), "{bytes:?}: {answer:?}");
        }
        client.send(&[0; 300]);
        assert!((0..300).all(|_| outcome(&client.hear().unwrap()).is_err()), "NULs only");
        client.send(STATUS);
        assert!(is_status(client.hear()), "and then something sensible");
    });
}

#[test]
fn wrong_parameters_are_refused_and_change_nothing() {
    while_it_serves(|cluster| {
        let mut client = Client::of(cluster);
        for (method, parameters, word) in [
            ("Reload", json!({ "pools": "web" }), "a sequence"),
            ("Reload", json!({ "pools": [1] }), "a string"),
            ("Reload", json!({ "noWait": "yes" }), "a boolean"),
            ("Reload", json!({ "nowait": true }), "unknown field `nowait`"),
            ("Reload", json!({ "pools": ["wep"] }), "there is no pool wep; there are: web"),
            ("Scale", json!({}), "missing field `pool`"),
            ("Scale", json!({ "pool": "web", "workers": -1 }), "-1"),
            ("Scale", json!({ "pool": "web", "workers": 1e9 }), "expected u32"),
            ("Scale", json!({ "pool": "web", "workers": 0 }), "1 to 1024 workers"),
            ("Scale", json!({ "pool": "web", "workers": 4_000_000_000_u32 }), "1 to 1024"),
        ] {
            let method = format!("io.rcluster.{method}");
            let answer = client.ask(&json!({ "method": method, "parameters": parameters }));
            assert_eq!(answer.error.as_deref(), Some("io.rcluster.Refused"), "{parameters}");
            let reason = outcome(&answer).unwrap_err();
            assert!(reason.contains(word), "{parameters}: {reason}");
        }
        assert_eq!(cluster.count(" started"), 2);
    });
}

#[test]
fn unknown_methods_and_interfaces_get_varlinks_own_errors() {
    while_it_serves(|cluster| {
        let mut client = Client::of(cluster);
        for method in ["io.rcluster.Dance", "io.rclusterStatus", "org.example.Status", "Status", ""]
        {
            let answer = client.ask(&json!({ "method": method }));
            assert_eq!(answer.error.as_deref(), Some("org.varlink.service.MethodNotFound"));
            assert_eq!(answer.parameters["method"], method);
        }
        let describe = "org.varlink.service.GetInterfaceDescription";
        let parameters = json!({ "interface": "org.example" });
        let answer = client.ask(&json!({ "method": describe, "parameters": parameters }));
        assert_eq!(answer.error.as_deref(), Some("org.varlink.service.InterfaceNotFound"));
        assert_eq!(answer.parameters["interface"], "org.example");
    });
}

#[test]
fn a_oneway_call_is_obeyed_and_never_answered() {
    while_it_serves(|cluster| {
        let mut client = Client::of(cluster);
        client.call(&json!({ "method": "io.rcluster.Status", "oneway": true }));
        client.call(&json!({ "method": "io.rcluster.Dance", "oneway": true }));
        client.call(&json!({ "method": "io.rcluster.Reload", "oneway": true }));
        cluster.wait_for("generation 2 serves");
        client.send(STATUS);
        let answer = client.hear();
        assert!(is_status(answer), "the first answer is to the last call");
    });
    let mut cluster = Cluster::serve(&web(""));
    let mut client = Client::of(&cluster);
    client.call(&json!({ "method": "io.rcluster.Stop", "oneway": true }));
    assert_eq!(client.hear(), None);
    assert_eq!(cluster.wait_end().code(), Some(0));
}

#[test]
fn a_stop_is_answered_when_it_has_begun() {
    let mut cluster = Cluster::serve(&web(""));
    let answer = cluster.call("Stop", json!({}));
    assert_eq!(answer, Answer::default());
    assert_eq!(cluster.wait_end().code(), Some(0));
}

#[test]
fn who_never_reads_costs_the_master_neither_memory_nor_time() {
    while_it_serves(|cluster| {
        let (before, computed) = (memory(cluster.pid()), cpu_time(cluster.pid()));
        let mut greedy: Vec<UnixStream> = (0..10).map(|_| cluster.connect_control()).collect();
        let mut refused = 0;
        for stream in &mut greedy {
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            // Dropped, or left alone until it reads: its own calls then wait in its own socket.
            refused += usize::from((0..10_000).any(|_| stream.write_all(STATUS).is_err()));
        }
        assert_eq!(refused, greedy.len(), "nobody has all his calls read");
        assert!(is_status(Some(cluster.call("Status", json!({})))));
        let grown = memory(cluster.pid()).saturating_sub(before);
        assert!(grown < 10 * 1024, "{grown} KiB for ten clients");
        println!("ten who never read: {grown} KiB, {:?}", cpu_time(cluster.pid()) - computed);
        // One who does read in the end gets all that he asked for.
        let mut late = greedy.pop().unwrap();
        late.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut bytes = Vec::new();
        let _ = late.read_to_end(&mut bytes);
        assert!(bytes.iter().filter(|&&byte| byte == 0).count() > 10);
        drop(greedy);
        assert!(is_status(Some(cluster.call("Status", json!({})))));
    });
}

#[test]
fn a_reload_goes_on_without_the_one_who_wanted_it() {
    while_it_serves(|cluster| {
        for more in [false, true] {
            let mut client = Client::of(cluster);
            client.call(&json!({ "method": "io.rcluster.Reload", "more": more }));
            let nth = if more { 2 } else { 1 };
            cluster.wait_for(&format!("rollout of generation {} begun", nth + 1));
            drop(client);
            cluster.wait_for(&format!("generation {} serves", nth + 1));
        }
        assert!(cluster.reload().unwrap().contains("generation 4"));
    });
}

#[test]
fn progress_comes_in_order_and_the_outcome_last() {
    while_it_serves(|cluster| {
        let mut client = Client::of(cluster);
        client.call(&json!({ "method": "io.rcluster.Reload", "more": true }));
        let mut progress: Vec<ReloadResults> = Vec::new();
        let last = loop {
            let answer = client.hear().unwrap();
            assert_eq!(answer.error, None);
            let results = serde_json::from_value(answer.parameters).unwrap();
            if !answer.continues {
                break results;
            }
            progress.push(results);
        };
        let messages: Vec<&str> = progress.iter().map(|it| it.message.as_str()).collect();
        assert_eq!(messages.len(), 3, "{messages:?}");
        assert!(messages[0].starts_with("rollout of generation 2 begun"), "{messages:?}");
        assert!(messages[1].starts_with("web/1") && messages[1].ends_with("is ready"));
        assert!(messages[2].starts_with("web/2") && messages[2].ends_with("is ready"));
        let numbers = progress.iter().map(|it| (it.generation, it.done, it.total));
        for (done, numbers) in (0..).zip(numbers) {
            assert_eq!(numbers, (Some(2), Some(done), Some(2)), "{progress:?}");
        }
        // Under load, some were in a queue that was read back.
        assert!(last.message.starts_with("reloaded: generation 2 serves"), "{}", last.message);
        // Without `more` there is one answer, and it is the last.
        let answer = client.ask(&json!({ "method": "io.rcluster.Reload" }));
        assert!(!answer.continues && outcome(&answer).unwrap().contains("generation 3"));
    });
}

#[test]
fn a_rollback_is_told_and_fails() {
    while_it_serves(|cluster| {
        cluster.configure(&pool("web", "\"/bin/false\"", "\"127.0.0.1:{port}\"", ""));
        let mut client = Client::of(cluster);
        client.call(&json!({ "method": "io.rcluster.Reload", "more": true }));
        let mut messages = Vec::new();
        let last = loop {
            let answer = client.hear().unwrap();
            if !answer.continues {
                break answer;
            }
            messages.push(answer.parameters["message"].as_str().unwrap().to_owned());
        };
        assert_eq!(last.error.as_deref(), Some("io.rcluster.Failed"));
        assert!(
            outcome(&last).unwrap_err().starts_with("rolled back: web/1: exited with status 1")
        );
        assert!(messages.iter().any(|it| it.contains("is rolled back")), "{messages:?}");
        cluster.configure(&web(""));
    });
}

#[test]
fn who_does_not_want_to_wait_is_answered_at_once() {
    while_it_serves(|cluster| {
        let slow = "\"/bin/sh\", \"-c\", \"while [ ! -e {folder}/go ]; do sleep 0.01; done; \
                    exec {rcluster} demo-worker http\"";
        cluster.configure(&pool("web", slow, "\"127.0.0.1:{port}\"", ""));
        let parameters = json!({ "noWait": true });
        let answer = outcome(&cluster.call("Reload", parameters)).unwrap();
        assert_eq!(answer, "the reload has begun");
        assert_eq!(cluster.status().state, "reloading", "the workers wait for a file");
        std::fs::write(cluster.path("go"), "").unwrap();
        cluster.wait_for("generation 2 serves");
    });
}

#[test]
fn the_interface_describes_itself() {
    while_it_serves(|cluster| {
        let mut client = Client::of(cluster);
        let info = client.ask(&json!({ "method": "org.varlink.service.GetInfo" }));
        for key in ["vendor", "product", "version", "url"] {
            assert!(info.parameters[key].is_string(), "{info:?}");
        }
        assert_eq!(info.parameters["interfaces"], json!(["org.varlink.service", "io.rcluster"]));
        let parameters = json!({ "interface": "io.rcluster" });
        let describe = "org.varlink.service.GetInterfaceDescription";
        let answer = client.ask(&json!({ "method": describe, "parameters": parameters }));
        let text = answer.parameters["description"].as_str().unwrap();
        assert_eq!(text, DESCRIPTION);
        check_description(text);
        // What is described is what comes.
        let status = cluster.call("Status", json!({})).parameters;
        let returns = text.split_once("method Status() -> (").unwrap().1.split_once("\n)").unwrap();
        check_fields(&status, returns.0);
        check_fields(&status["pools"][0], body_of(text, "Pool"));
        check_fields(&status["pools"][0]["workers"][0], body_of(text, "Worker"));
        let mut slow = TcpStream::connect(("127.0.0.1", cluster.port)).unwrap();
        slow.write_all(b"GET /sleep/600000 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        // The worker that has it also has others, which go; and it, too, until its request is read.
        let end = Instant::now() + PATIENCE;
        let draining = loop {
            cluster.reload().unwrap();
            let draining = cluster.call("Draining", json!({})).parameters;
            let workers = draining["workers"].as_array().unwrap();
            if workers.iter().any(|it| it["connections"][0].is_object()) {
                break draining;
            }
            assert!(Instant::now() < end, "{draining}");
        };
        let workers = draining["workers"].as_array().unwrap();
        let worker = workers.iter().find(|it| it["connections"][0].is_object()).unwrap();
        check_fields(worker, body_of(text, "DrainingWorker"));
        check_fields(&worker["connections"][0], body_of(text, "HeldConnection"));
    });
}

fn body_of<'a>(text: &'a str, name: &str) -> &'a str {
    let start = format!("type {name} (");
    let rest = text.split_once(start.as_str()).unwrap_or_else(|| panic!("type {name}")).1;
    rest.split_once(')').unwrap().0
}

/// Every type and every method that the source of the messages knows is described, and everything
/// that is named is defined.
fn check_description(text: &str) {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| [line, "\n"])
        .collect();
    assert!(code.trim_start().starts_with("interface io.rcluster\n"));
    assert_eq!(code.matches('(').count(), code.matches(')').count(), "brackets are closed");
    for method in ["Status", "Reload", "Reloads", "Draining", "Scale", "Stop", "Upgrade"] {
        assert_eq!(code.matches(&format!("method {method}(")).count(), 1, "method {method}");
    }
    for error in ["Refused", "Failed"] {
        assert!(code.contains(&format!("error {error} (reason: string)")), "error {error}");
    }
    let types = ["Worker", "Pool", "Rollout", "LastReload", "PastReload"];
    for name in types.into_iter().chain(["DrainingWorker", "HeldConnection"]) {
        for field in body_of(&code, name).split(',') {
            let kind = field.split_once(':').unwrap_or_else(|| panic!("{field}")).1.trim();
            let kind = kind.trim_start_matches('?').trim_start_matches("[]");
            let is_plain = ["int", "string", "bool", "float"].contains(&kind);
            assert!(is_plain || code.contains(&format!("type {kind} (")), "{name}: {field}");
        }
    }
    let source = include_str!("../src/wire/control.rs");
    let types = source.lines().filter_map(|line| line.strip_prefix("pub struct "));
    for name in types.map(|rest| rest.trim_end_matches(" {")) {
        // Messages themselves, and what stands in a method's own brackets.
        let is_frame = ["Call", "Answer", "Status", "Refusal"].contains(&name);
        let method = name.strip_suffix("Parameters").or(name.strip_suffix("Results"));
        let is_described = match method {
            Some(method) => code.contains(&format!("method {method}(")),
            None => is_frame || code.contains(&format!("type {name} (")),
        };
        assert!(is_described, "{name} is not described");
    }
}

/// An object has the fields that are described and no others; only `?` may be missing.
fn check_fields(value: &Value, described: &str) {
    let object = value.as_object().unwrap();
    let fields: Vec<(&str, &str)> = described
        .split(",\n")
        .map(|field| field.trim().trim_end_matches(','))
        .map(|field| field.split_once(':').unwrap_or_else(|| panic!("{field:?}")))
        .map(|(name, kind)| (name.trim(), kind.trim()))
        .collect();
    for (name, kind) in &fields {
        assert!(kind.starts_with('?') || object.contains_key(*name), "{name}: {object:?}");
    }
    for name in object.keys() {
        assert!(fields.iter().any(|(known, _)| known == name), "{name} is not described");
    }
}

#[test]
fn another_user_may_look_and_not_command() {
    if !nix::unistd::Uid::effective().is_root() {
        println!("LEFT OUT: only root can become another user");
        return;
    }
    let config = web("") + "[master]\ncontrol-mode = \"0666\"\n";
    let cluster = Cluster::serve(&config);
    let folder = cluster.folder.path();
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    let path = cluster.path("control");
    let stream = as_user(65534, move || UnixStream::connect(path)).unwrap();
    let mut client = Client(BufReader::new(stream));
    client.send(STATUS);
    assert!(is_status(client.hear()));
    for method in ["Reload", "Scale", "Stop", "Upgrade"] {
        let answer = client.ask(&json!({ "method": format!("io.rcluster.{method}") }));
        assert_eq!(answer.error.as_deref(), Some("io.rcluster.Refused"));
        let reason = outcome(&answer).unwrap_err();
        assert!(reason.contains("only root and the user that the service runs as"), "{reason}");
    }
    assert_eq!(cluster.status().pools[0].generation, Some(1));
    assert!(cluster.get("/pid").is_ok());
    // With the usual mode he does not even come in.
    let cluster = Cluster::serve(&web(""));
    let folder = cluster.folder.path();
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    let path = cluster.path("control");
    let refused = as_user(65534, move || UnixStream::connect(path)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
}

/// Does something as another user: the credentials of a thread are its own, as far as the kernel
/// is concerned.
fn as_user<T: Send + 'static>(user: u32, what: impl FnOnce() -> T + Send + 'static) -> T {
    use nix::libc;
    let thread = std::thread::spawn(move || {
        #[expect(unsafe_code, reason = "libc's own setresuid changes the whole process")]
        // SAFETY: plain numbers, and the thread ends with what it was told to do.
        let results = unsafe {
            [
                libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
                libc::syscall(libc::SYS_setresgid, user, user, user),
                libc::syscall(libc::SYS_setresuid, user, user, user),
            ]
        };
        assert_eq!(results, [0; 3]);
        what()
    });
    thread.join().unwrap()
}

#[test]
fn the_socket_has_the_configured_mode_and_goes_with_the_master() {
    for (setting, mode) in [("", 0o660), ("[master]\ncontrol-mode = \"0600\"\n", 0o600)] {
        let mut cluster = Cluster::serve(&(web("") + setting));
        let path = cluster.path("control");
        let found = std::fs::symlink_metadata(&path).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o7777, mode);
        cluster.signal("TERM");
        assert_eq!(cluster.wait_end().code(), Some(0));
        assert!(!path.exists(), "the socket is removed");
    }
}

#[test]
fn a_stale_socket_is_replaced_and_one_in_use_is_refused() {
    let mut cluster = Cluster::serve(&web(""));
    let config = cluster.path("rcluster.toml");
    let (config, control) = (config.to_str().unwrap(), cluster.path("control"));
    let refused =
        cluster.rcluster(&["run", "--config", config, "--control", control.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("is in use: another rcluster is running; stop it, or give"), "{text}");
    assert!(cluster.get("/pid").is_ok() && cluster.status().state == "running");
    // Its master is killed: nobody listens on what is left.
    cluster.signal("KILL");
    cluster.wait_end();
    assert!(control.exists());
    let next = Cluster::start_by(&web(""), |command| command.arg("--control").arg(&control));
    // It goes on with what the killed one left.
    next.wait_for_nth("has come back", 2);
    let mut client = Client(BufReader::new(UnixStream::connect(&control).unwrap()));
    client.send(STATUS);
    assert_eq!(client.hear().unwrap().parameters["pid"], next.pid());
}

#[test]
fn a_file_in_its_place_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    let mut cluster = Cluster::start_by(&web(""), |command| command.arg("--control").arg(&path));
    assert_eq!(cluster.wait_end().code(), Some(1));
    cluster.wait_for("control socket ");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}
