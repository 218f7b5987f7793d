//! Applications in folders of their own behind a `current` symlink, as teams deploy them: a broken
//! release is rolled back, and workers that are started again are the old release. What is overwritten
//! in place cannot be had again: what serves goes on, and that is said.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail loudly")]

mod support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::load::Load;
use support::sockets::kill_counting;
use support::{Cluster, PATIENCE, get, pool, signal};

/// A language: what runs it, the file's name, an application that answers with its release, and one
/// that is broken.
struct Language {
    program: &'static str,
    file: &'static str,
    application: &'static str,
    broken: &'static str,
    extra: &'static str,
}

const PYTHON: Language = Language {
    program: "python3",
    file: "server.py",
    application: r#"
import http.server, os, signal, socket, threading

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(b"RELEASE")))
        self.end_headers()
        self.wfile.write(b"RELEASE")

    def log_message(self, *words):
        pass

server = http.server.ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
server.daemon_threads = False
server.socket = socket.socket(fileno=3)
stop = lambda *_: threading.Thread(target=server.shutdown).start()
signal.signal(signal.SIGTERM, stop)
notice = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notice.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
notice.sendall(b"READY=1")
server.serve_forever()
server.server_close()
"#,
    broken: "import gone\n",
    extra: "kind = \"inherit\"\nready = \"notify\"",
};

const NODE: Language = Language {
    program: "node",
    file: "server.js",
    application: "require('http').createServer((_, response) => response.end('RELEASE')).listen(8080);",
    broken: "require('./gone');",
    extra: "kind = \"node\"\nmap = { 8080 = \"127.0.0.1:{port}\" }",
};

/// Whether the language is here.
fn is_here(language: &Language) -> bool {
    let ran = std::process::Command::new(language.program).arg("--version").output();
    let is_here = ran.is_ok_and(|it| it.status.success());
    if !is_here {
        println!("LEFT OUT: {} is not installed", language.program);
    }
    is_here
}

/// Puts a release into a folder of its own.
fn release(releases: &Path, name: &str, language: &Language, text: &str) -> PathBuf {
    let folder = releases.join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join(language.file), text.replace("RELEASE", name)).unwrap();
    folder
}

fn point(current: &Path, folder: &Path) {
    let new = current.with_extension("new");
    symlink(folder, &new).unwrap();
    std::fs::rename(new, current).unwrap();
}

fn serve(language: &Language, current: &Path) -> Cluster {
    let command = format!("\"{}\", \"{}\"", language.program, language.file);
    let extra = format!(
        "{}\nworking-directory = \"{}\"\nrestart-window = \"2s\"\nenvironment = {{ \
         PYTHONDONTWRITEBYTECODE = \"1\" }}",
        language.extra,
        current.display()
    );
    Cluster::serve(&pool("web", &command, "\"127.0.0.1:{port}\"", &extra))
}

/// A folder of releases with the first one in it, which is served.
fn first_release(language: &Language) -> (tempfile::TempDir, Cluster) {
    let releases = tempfile::tempdir().unwrap();
    let current = releases.path().join("current");
    point(&current, &release(releases.path(), "first", language, language.application));
    let cluster = serve(language, &current);
    (releases, cluster)
}

/// Waits until every worker is another process than those, and they are as many.
fn wait_for_others(cluster: &Cluster, count: usize, old: &[u32]) {
    let until = Instant::now() + PATIENCE;
    loop {
        let now = cluster.pids("web");
        if now.len() == count && now.iter().all(|pid| !old.contains(pid)) {
            return;
        }
        assert!(Instant::now() < until, "{now:?} after {old:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn a_broken_release_is_rolled_back(language: &Language) {
    if !is_here(language) {
        return;
    }
    let (releases, cluster) = first_release(language);
    let current = releases.path().join("current");
    let load = Load::paced(cluster.port, 100, "/");
    let broken = release(releases.path(), "broken", language, language.broken);
    point(&current, &broken);
    let why = cluster.reload().unwrap_err();
    assert!(why.contains("web/1") && why.contains("exited with status 1"), "{why}");
    // Both are lost: those that come are the old release, wherever the symlink points.
    let old = cluster.pids("web");
    let mut had = 0;
    for (lost, &pid) in old.iter().enumerate() {
        had += kill_counting(pid);
        cluster.wait_for_nth("lost", lost + 1);
        wait_for_others(&cluster, 2, &old[..=lost]);
    }
    assert_eq!(get(cluster.port, "/").unwrap(), "first");
    let second = release(releases.path(), "second", language, language.application);
    point(&current, &second);
    cluster.reload().unwrap();
    assert_eq!(get(cluster.port, "/").unwrap(), "second");
    let tally = load.finish();
    let answers: Vec<&String> = tally.by_pid.keys().collect();
    assert_eq!(answers, ["first", "second"]);
    // Two workers were killed with what they were answering.
    assert!(tally.failed.len() <= had, "they had {had}: {:?}", tally.failed);
}

fn what_is_overwritten_serves_on(language: &Language) {
    if !is_here(language) {
        return;
    }
    let (releases, cluster) = first_release(language);
    let first = releases.path().join("first");
    std::fs::write(first.join(language.file), language.broken).unwrap();
    let [lost, stays] = cluster.pids("web")[..] else { panic!("two workers") };
    signal(lost, "KILL");
    let said = format!("{} is not what it was", language.file);
    cluster.wait_for(&said);
    assert!(cluster.pids("web").contains(&stays));
    assert_eq!(get(cluster.port, "/").unwrap(), "first");
    let status = cluster.status();
    assert!(status.warnings.iter().any(|it| it.contains(&said)), "{:?}", status.warnings);
    // A whole release, and everything is well again.
    let whole = language.application.replace("RELEASE", "second");
    std::fs::write(first.join(language.file), whole).unwrap();
    cluster.reload().unwrap();
    assert_eq!(get(cluster.port, "/").unwrap(), "second");
    assert_eq!(cluster.status().warnings, Vec::<String>::new());
}

#[test]
fn a_broken_release_of_a_python_application_is_rolled_back() {
    a_broken_release_is_rolled_back(&PYTHON);
}

#[test]
fn a_python_application_that_is_overwritten_serves_on() {
    what_is_overwritten_serves_on(&PYTHON);
}

#[test]
fn a_broken_release_of_a_node_application_is_rolled_back() {
    a_broken_release_is_rolled_back(&NODE);
}

#[test]
fn a_node_application_that_is_overwritten_serves_on() {
    what_is_overwritten_serves_on(&NODE);
}
