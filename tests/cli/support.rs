//! What the stories need: the command, and masters that are scripted.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use serde_json::Value;

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs `rcluster` with these arguments, and with nothing but this environment.
pub fn run(typed: &str, set: &[(&str, &Path)]) -> Ran {
    finish(command(typed).envs(set.iter().copied()))
}

pub fn command(typed: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rcluster"));
    command.args(typed.split_whitespace()).env_clear().stdin(Stdio::null());
    command
}

pub fn finish(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().expect("no signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A scripted master for one connection.
pub struct Master {
    directory: Option<tempfile::TempDir>,
    pub control: PathBuf,
    thread: JoinHandle<()>,
}

impl Master {
    pub fn new(script: impl FnOnce(&mut UnixStream) + Send + 'static) -> Master {
        let directory = tempfile::tempdir().unwrap();
        let master = Master::at(directory.path(), script);
        Master { directory: Some(directory), ..master }
    }

    pub fn at(directory: &Path, script: impl FnOnce(&mut UnixStream) + Send + 'static) -> Master {
        let control = directory.join("control");
        let listener = UnixListener::bind(&control).unwrap();
        let thread = thread::spawn(move || script(&mut listener.accept().unwrap().0));
        Master { directory: None, control, thread }
    }

    pub fn command(&self, typed: &str) -> Command {
        let mut command = command(typed);
        command.env("RCLUSTER_CONTROL", &self.control);
        command
    }

    pub fn run(&self, typed: &str) -> Ran {
        finish(&mut self.command(typed))
    }

    /// What the script asserted counts.
    pub fn join(self) {
        self.thread.join().unwrap();
        std::fs::remove_file(&self.control).unwrap();
        drop(self.directory);
    }
}

pub fn read_call(stream: &mut UnixStream) -> Value {
    let mut call = Vec::new();
    BufReader::new(stream).read_until(0, &mut call).unwrap();
    assert_eq!(call.pop(), Some(0), "a call ends with NUL");
    serde_json::from_slice(&call).unwrap()
}

pub fn say(stream: &mut UnixStream, answer: &Value) {
    stream.write_all(format!("{answer}\0").as_bytes()).unwrap();
}

/// Byte by byte, so that the reader sees every half of the answer.
pub fn say_slowly(stream: &mut UnixStream, answer: &Value) {
    for byte in format!("{answer}\0").bytes() {
        stream.write_all(&[byte]).unwrap();
        thread::yield_now();
    }
}

pub fn answer(stream: &mut UnixStream, answers: &[Value]) {
    read_call(stream);
    for answer in answers {
        say(stream, answer);
    }
}
