//! The demo, the built-in page and the examples, as a user runs them.
//!
//! The demo's ports and the one of the `dispatch` example are fixed, so these tests take turns; and
//! where another program listens on one, they are left out and say so.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests measure time and fail loudly"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use support::{Cluster, PATIENCE, RCLUSTER, free_port, get, request, signal};

static PORTS: Mutex<()> = Mutex::new(());

/// The right to use these ports; `None`: somebody else has one of them.
fn take(ports: &[u16]) -> Option<MutexGuard<'static, ()>> {
    let turn = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    for port in ports {
        if let Err(error) = TcpListener::bind(("127.0.0.1", *port)) {
            println!("LEFT OUT: port {port} is not free: {error}");
            return None;
        }
    }
    Some(turn)
}

const DEMO: [u16; 4] = [33749, 8080, 33750, 33751];

/// `rcluster demo`, ready; what it leaves behind would be in its own folder.
fn demo() -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(RCLUSTER);
    // A group of its own, as a shell gives to what is typed.
    command.arg("demo").env("TMPDIR", folder.path()).process_group(0);
    let cluster = Cluster::launch(folder, 33749, "", &mut command);
    cluster.wait_for("Ctrl-C drains and ends it.");
    cluster
}

/// Where the demo says that its control socket is.
fn control(cluster: &Cluster) -> String {
    let line = cluster.wait_for(" status --control ");
    line.split_whitespace().last().unwrap().to_owned()
}

/// A conversation with the echo service.
struct Echo(BufReader<TcpStream>);

impl Echo {
    fn connect(port: u16) -> Echo {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Echo(BufReader::new(stream))
    }

    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn hear_line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    /// The prompt, which ends without a line's end.
    fn hear_prompt(&mut self) {
        let mut prompt = [0; 3];
        self.0.read_exact(&mut prompt).unwrap();
        assert_eq!(&prompt, b"<- ");
    }

    fn hear_end(&mut self) -> String {
        let mut rest = String::new();
        let _ = self.0.read_to_string(&mut rest);
        rest
    }
}

fn check_echo(port: u16) {
    let mut echo = Echo::connect(port);
    let greeting = echo.hear_line();
    assert!(greeting.starts_with("Now: ") && greeting.ends_with(" GMT\n"), "{greeting:?}");
    echo.hear_prompt();
    for text in ["hello\r\n", "goodbye\n"] {
        echo.say(text);
        assert_eq!(echo.hear_line(), format!("-> [ sleep 100ms ] {text}"));
        echo.hear_prompt();
    }
    echo.say("BYE\r\n");
    assert_eq!(echo.hear_end(), "Good Bye!\n");
}

fn check_http(port: u16) {
    let text = "POST /a?b=%20c HTTP/1.1\r\nHost: t\r\nContent-Length: 7\r\n\
                Connection: close\r\n\r\nx=\"1\"&y";
    let answer: Value = serde_json::from_str(&request(port, text).unwrap()).unwrap();
    assert_eq!(answer, json!({ "method": "POST", "url": "/a?b=%20c", "post": "x=\"1\"&y" }));
    let answer: Value = serde_json::from_str(&get(port, "/hello").unwrap()).unwrap();
    assert_eq!(answer, json!({ "method": "GET", "url": "/hello", "post": "" }));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nContent-Type: text/plain;charset=utf-8\r\n"), "{answer}");
}

fn check_multi_port(ports: [u16; 2]) {
    for port in ports {
        assert_eq!(get(port, "/").unwrap(), format!("hello world, handle port {port}"));
    }
}

#[test]
fn the_demo_answers_on_all_its_ports_like_the_seeds() {
    let Some(_turn) = take(&DEMO) else { return };
    let _cluster = demo();
    check_http(33749);
    check_echo(8080);
    check_multi_port([33750, 33751]);
}

#[test]
fn fatal_ends_the_worker_which_is_replaced() {
    let Some(_turn) = take(&DEMO) else { return };
    let cluster = demo();
    let mut other = Echo::connect(8080);
    other.hear_line();
    other.hear_prompt();
    let mut echo = Echo::connect(8080);
    echo.hear_line();
    echo.hear_prompt();
    echo.say("Fatal\r\n");
    assert_eq!(echo.hear_end(), "");
    let line = cluster.wait_for("lost: exited with status 127");
    assert!(line.contains("echo/"), "{line}");
    // One HTTP worker, two for echo, two for both ports, and the new one.
    cluster.wait_for_nth("is ready", 6);
    check_echo(8080);
    other.say("still here\n");
    assert_eq!(other.hear_line(), "-> [ sleep 100ms ] still here\n", "the other worker's client");
}

#[test]
fn the_demo_is_reloaded_and_looked_at_as_it_says() {
    let Some(_turn) = take(&DEMO) else { return };
    let cluster = demo();
    let hint = cluster.wait_for("kill -USR1 ");
    assert_eq!(hint.split_whitespace().last().unwrap(), cluster.pid().to_string());
    cluster.signal("USR1");
    cluster.wait_for("generation 2 serves");
    check_http(33749);
    let control = control(&cluster);
    let status = cluster.rcluster(&["status", "--control", &control]);
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.success());
    for word in ["http", "echo", "multi_port", "generation 2"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let reload = cluster.rcluster(&["reload", "--control", &control]);
    assert!(reload.status.success());
    assert!(String::from_utf8(reload.stdout).unwrap().contains("generation 3 serves"));
    check_multi_port([33750, 33751]);
}

#[test]
fn ctrl_c_ends_the_demo_and_leaves_no_file() {
    let Some(_turn) = take(&DEMO) else { return };
    let mut cluster = demo();
    let control = PathBuf::from(control(&cluster));
    assert!(control.exists() && control.starts_with(cluster.folder.path()));
    let mut echo = Echo::connect(8080);
    echo.hear_line();
    echo.hear_prompt();
    echo.say("hello\n");
    echo.hear_line();
    echo.hear_prompt();
    // The terminal sends it to the whole group.
    let group = format!("-{}", cluster.pid());
    assert!(Command::new("kill").args(["-s", "INT", "--", &group]).status().unwrap().success());
    assert_eq!(echo.hear_end(), "Good Bye!\n", "who has nothing under way is seen off");
    assert_eq!(cluster.wait_end().code(), Some(0));
    let left: Vec<_> = std::fs::read_dir(cluster.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "rcluster.toml")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Runs `rcluster run` with this command behind so many addresses: the ports.
fn run<const N: usize>(arguments: &[&str], command: &[&str]) -> (Cluster, [u16; N]) {
    let ports = [(); N].map(|()| free_port());
    let mut run = Command::new(RCLUSTER);
    run.arg("run").args(arguments);
    for port in ports {
        run.arg("--listen").arg(format!("127.0.0.1:{port}"));
    }
    run.arg("--").args(command);
    let cluster = Cluster::launch(tempfile::tempdir().unwrap(), ports[0], "", &mut run);
    cluster.wait_for("generation 1 serves");
    (cluster, ports)
}

#[test]
fn hello_says_that_it_works_and_who_answered() {
    let (mut cluster, [port]) = run(&["--workers", "2"], &[RCLUSTER, "hello"]);
    let answer = get(port, "/").unwrap();
    assert!(answer.starts_with("It works. pool rcluster, slot "), "{answer}");
    let pid: u32 = answer.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(cluster.pids("rcluster").contains(&pid), "{answer}");
    assert!(answer.contains("generation 1"), "{answer}");
    cluster.reload().unwrap();
    assert!(get(port, "/").unwrap().contains("generation 2"));
    let page = "GET / HTTP/1.1\r\nHost: t\r\nAccept: text/html\r\nConnection: close\r\n\r\n";
    assert!(request(port, page).unwrap().contains("<h1>It works.</h1>"));
    cluster.signal("INT");
    assert_eq!(cluster.wait_end().code(), Some(0));
}

/// An example's program, which `cargo test` builds beside this one; `None`: it did not.
fn example(name: &str) -> Option<String> {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().parent().unwrap().join("examples").join(name);
    if !path.is_file() {
        println!("LEFT OUT: the example {name} is not built; `cargo test` without --test does it");
        return None;
    }
    Some(path.display().to_string())
}

#[test]
fn the_examples_work_as_workers() {
    if let Some(app) = example("app") {
        let (_cluster, [port]) = run(&["--workers", "1"], &[&app]);
        assert!(get(port, "/").unwrap().starts_with("hello from process "));
    }
    if let Some(http) = example("http") {
        let (_cluster, [port]) = run(&["--workers", "1"], &[&http]);
        check_http(port);
    }
    if let Some(echo) = example("echo") {
        let (_cluster, [port]) = run(&["--workers", "1"], &[&echo]);
        check_echo(port);
    }
    if let Some(multi_port) = example("multi_port") {
        let (_cluster, ports) = run(&["--workers", "1"], &[&multi_port]);
        check_multi_port(ports);
    }
}

#[test]
fn the_axum_examples_work_as_workers() {
    if let Some(files) = example("static_files") {
        let (cluster, [port]) = run(&["--workers", "1"], &[&files]);
        for path in ["/", "/index.html"] {
            assert!(get(port, path).unwrap().contains("Hello static files"), "{path}");
        }
        let pid = cluster.pids("static_files")[0];
        assert_eq!(get(port, "/x?y").unwrap(), format!("/x?y, pid {pid}"));
        cluster.reload().unwrap();
        assert!(get(port, "/").is_ok());
    }
    if let Some(errors) = example("json_errors") {
        let (_cluster, [port]) = run(&["--workers", "1"], &[&errors]);
        assert_eq!(get(port, "/").unwrap(), "hello world");
        let refusal = get(port, "/error").unwrap_err().to_string();
        assert!(refusal.contains("500") && refusal.contains("invalid digit"), "{refusal}");
        let refusal = get(port, "/nowhere").unwrap_err().to_string();
        assert!(refusal.contains("404") && refusal.contains("nothing at /nowhere"), "{refusal}");
    }
}

/// `dispatch` beside a program called `app`, in a folder of its own.
fn dispatch(program: &str, app: &str) -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("dispatch");
    // A link would be followed: it is the real path beside which the worker is looked for.
    std::fs::copy(program, &own).unwrap();
    std::fs::copy(app, folder.path().join("app")).unwrap();
    Cluster::launch(folder, 8080, "", &mut Command::new(own))
}

#[test]
fn a_master_of_ten_lines_serves_and_ends_like_the_other() {
    let (Some(program), Some(app)) = (example("dispatch"), example("app")) else { return };
    let Some(_turn) = take(&[8080]) else { return };
    let mut cluster = dispatch(&program, &app);
    cluster.wait_for("generation 1 serves");
    assert!(get(8080, "/").unwrap().starts_with("hello from process "));
    cluster.signal("USR1");
    cluster.wait_for("generation 2 serves");
    assert!(get(8080, "/").is_ok());
    signal(cluster.pid(), "TERM");
    assert_eq!(cluster.wait_end().code(), Some(0));
}

#[test]
fn a_master_of_ten_lines_hears_that_its_app_is_broken() {
    let Some(program) = example("dispatch") else { return };
    let Some(_turn) = take(&[8080]) else { return };
    let mut cluster = dispatch(&program, "/bin/false");
    // What the callback prints is not a line of the log.
    let line = cluster.wait_for("app: 5 failed starts in a row");
    assert!(line.starts_with("app: ") && line.contains("exited with status 1"), "{line}");
    assert_ne!(cluster.wait_end().code(), Some(0));
}
