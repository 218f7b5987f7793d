//! Programs of many languages, unmodified, as workers: each by its preset.
//!
//! Each is put through the same: two workers serve; a reload under new connections, with an answer
//! under way; a worker killed; the master replaced; the master killed. What is installed by
//! `tests/programs/install-languages` is run; what is missing is left out, and said.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests fail loudly"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use support::trial::{
    Ask, Clients, applications, http, kill_a_worker, reload_under_load, two_answer,
    upgrade_under_load,
};
use support::{Cluster, PATIENCE, pool};

/// Where `tests/programs/install-languages` has put things.
fn installed(name: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/programs").join(name);
    let found = folder.exists().then_some(folder);
    if found.is_none() {
        println!("LEFT OUT: {name} is not installed; tests/programs/install-languages does it");
    }
    found
}

/// A program that comes with the system.
fn system(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|it| it.join(name)).find(|it| it.exists());
    if found.is_none() {
        println!("LEFT OUT: {name} is not installed; tests/programs/install-languages does it");
    }
    found
}

/// One request of FastCGI, as a web server asks php-fpm (FastCGI Specification, version 1.0).
fn fast_cgi(port: u16, path: &str) -> Result<String, String> {
    let script = format!("{}/index.php", applications());
    let variables =
        [("SCRIPT_FILENAME", script.as_str()), ("SCRIPT_NAME", path), ("REQUEST_METHOD", "GET")];
    let mut parameters = Vec::new();
    for (name, value) in variables {
        for part in [name, value] {
            parameters.extend((u32::try_from(part.len()).unwrap() | 1 << 31).to_be_bytes());
        }
        parameters.extend(name.bytes().chain(value.bytes()));
    }
    let record = |kind: u8, content: &[u8]| {
        let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[1, kind, 0, 1, high, low, 0, 0], content].concat()
    };
    // The role of a responder, and the connection closed after it.
    let begin = record(1, &[0, 1, 0, 0, 0, 0, 0, 0]);
    let request = [begin, record(4, &parameters), record(4, &[]), record(5, &[])].concat();
    let said = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(said)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    stream.write_all(&request).map_err(said)?;
    let mut output = Vec::new();
    loop {
        let mut head = [0; 8];
        stream.read_exact(&mut head).map_err(said)?;
        let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let mut content = vec![0; length + usize::from(head[6])];
        stream.read_exact(&mut content).map_err(said)?;
        match head[1] {
            6 => output.extend(&content[..length]),
            3 => break,
            _ => {}
        }
    }
    let text = String::from_utf8_lossy(&output);
    let (_, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("answered {text:?}"))?;
    Ok(body.trim().to_owned())
}

/// Nothing has failed; but two servers close, when they are told to stop, what they have accepted and
/// not read yet. Nobody but they can help it.
fn expect_none(name: &str, failed: &[String], reloads: usize, what: &str) {
    let is_hasty = ["hypercorn", "uvicorn"].contains(&name) && failed.len() <= 2 * reloads;
    assert!(failed.is_empty() || is_hasty, "{what}: {failed:?}");
}

/// Puts a program through all of it. `can_be_slow`: how many slow requests its two workers answer
/// at once; 0: it has none.
fn put_through(name: &str, mut cluster: Cluster, ask: Ask, can_be_slow: usize) {
    let port = cluster.port;
    two_answer(port, ask);
    let (failed, reloads) = reload_under_load(name, &cluster, ask, can_be_slow);
    expect_none(name, &failed, reloads, "reloads");
    let failed = kill_a_worker(name, &cluster, ask, can_be_slow);
    // What it was answering at that moment; a program has no more than a few in its hand at this pace.
    assert!(failed.len() <= 30, "{failed:?}");
    expect_none(name, &upgrade_under_load(name, &cluster, ask), 1, "an upgrade");

    // The master is killed, and started again.
    let workers = cluster.pids("web");
    let clients = Clients::come(port, ask);
    cluster.kill_master();
    cluster.start_again();
    cluster.wait_for("everything is as before the master was killed");
    assert_eq!(cluster.pids("web"), workers, "nobody was started");
    cluster.reload().unwrap();
    let (answered, failed) = clients.finish();
    println!("{name}: the master killed: {answered} answered, {} failed", failed.len());
    expect_none(name, &failed, 1, "a killed master");
}

/// A pool of two such workers.
fn inherited(command: &str, preset: &str) -> String {
    let extra = format!(
        "preset = \"{preset}\"\nworking-directory = \"{}\"\ndrain-timeout = \"10s\"\n\
         environment = {{ PYTHONDONTWRITEBYTECODE = \"1\" }}",
        applications()
    );
    pool("web", command, "\"127.0.0.1:{port}\"", &extra)
}

#[test]
fn gunicorn() {
    let Some(python) = installed("venv/bin/gunicorn") else { return };
    let command = format!("\"{}\", \"--threads\", \"4\", \"wsgi:app\"", python.display());
    put_through("gunicorn", Cluster::serve(&inherited(&command, "gunicorn")), http, 4);
}

#[test]
fn uvicorn() {
    let Some(program) = installed("venv/bin/uvicorn") else { return };
    let command = format!("\"{}\", \"--log-level\", \"warning\", \"asgi:app\"", program.display());
    put_through("uvicorn", Cluster::serve(&inherited(&command, "uvicorn")), http, 4);
}

#[test]
fn hypercorn() {
    let Some(program) = installed("venv/bin/hypercorn") else { return };
    let command = format!("\"{}\", \"asgi:app\"", program.display());
    put_through("hypercorn", Cluster::serve(&inherited(&command, "hypercorn")), http, 4);
}

#[test]
fn puma() {
    let Some(program) = system("puma") else { return };
    let command = format!("\"{}\", \"--quiet\", \"config.ru\"", program.display());
    put_through("puma", Cluster::serve(&inherited(&command, "puma")), http, 4);
}

/// A cluster whose program reads a configuration of its own, in which the port stands as PORT.
fn with_file(file: &str, text: &str, command: impl Fn(&Path) -> String, preset: &str) -> Cluster {
    let (folder, port) = (tempfile::tempdir().unwrap(), support::free_port());
    let path = folder.path().join(file);
    std::fs::write(&path, text.replace("PORT", &port.to_string())).unwrap();
    let config = inherited(&command(&path), preset);
    let mut master = std::process::Command::new(support::RCLUSTER);
    master.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
    let cluster = Cluster::launch(folder, port, &config, &mut master);
    cluster.wait_for("generation 1 serves");
    cluster
}

#[test]
fn nginx() {
    let Some(program) = installed("nginx/usr/sbin/nginx") else { return };
    let config = "worker_processes 1; error_log stderr; pid nginx.pid;\n\
                  events {}\n\
                  http { access_log off; client_body_temp_path body; proxy_temp_path proxy;\n\
                  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
                  server { listen 127.0.0.1:PORT; location / { return 200 $pid; } } }\n";
    let command = |file: &Path| {
        let folder = file.parent().unwrap().display();
        let (program, file) = (program.display(), file.display());
        format!("\"{program}\", \"-p\", \"{folder}\", \"-c\", \"{file}\"")
    };
    put_through("nginx", with_file("nginx.conf", config, command, "nginx"), http, 0);
}

#[test]
fn php_fpm() {
    let Some(program) = installed("php/usr/sbin/php-fpm8.2") else { return };
    let config = "[global]\nerror_log = /dev/stderr\nlog_level = warning\n\
                  process_control_timeout = 10s\n\
                  [www]\nlisten = 127.0.0.1:PORT\npm = static\npm.max_children = 2\n";
    let command = |file: &Path| {
        format!("\"{}\", \"-n\", \"-R\", \"-y\", \"{}\"", program.display(), file.display())
    };
    put_through("php-fpm", with_file("php-fpm.conf", config, command, "php-fpm"), fast_cgi, 2);
}

#[test]
fn go() {
    let Some(program) = installed("go/server") else { return };
    put_through(
        "go",
        Cluster::serve(&inherited(&format!("\"{}\"", program.display()), "go")),
        http,
        4,
    );
}

#[test]
fn perl_server_starter() {
    let Some(perl) = system("perl") else { return };
    let mut asked = std::process::Command::new(&perl);
    let asked = asked.args(["-MServer::Starter", "-e", "1"]).output();
    if !asked.is_ok_and(|it| it.status.success()) {
        return println!("LEFT OUT: Perl's Server::Starter is not installed");
    }
    let command = format!("\"{}\", \"server.pl\"", perl.display());
    put_through("perl", Cluster::serve(&inherited(&command, "server-starter")), http, 2);
}
