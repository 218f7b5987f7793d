//! The servers, and how each of them is started and reloaded by its own documentation.
//!
//! All of them: two workers, the same answer, no log of requests, and idle connections kept for
//! longer than a run.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::server::{Reload, Setup, Site};

/// A server to measure.
#[derive(Clone, Copy)]
pub struct Peer {
    pub name: &'static str,
    /// Has keep-alive at all.
    pub keeps_connections: bool,
    pub set_up: fn(&Site<'_>) -> Result<Setup, String>,
}

const fn peer(name: &'static str, set_up: fn(&Site<'_>) -> Result<Setup, String>) -> Peer {
    Peer { name, keeps_connections: true, set_up }
}

pub const PEERS: &[Peer] = &[
    peer("rcluster", rcluster),
    peer("nginx", nginx),
    peer("Node cluster", node),
    peer("PM2", pm2),
    Peer { keeps_connections: false, ..peer("gunicorn sync", gunicorn_sync) },
    peer("gunicorn gthread", gunicorn_gthread),
    peer("uvicorn", uvicorn),
    peer("puma", puma),
];

fn rcluster(site: &Site<'_>) -> Result<Setup, String> {
    let program = env!("CARGO_BIN_EXE_rcluster");
    let config = include_str!("apps/rcluster.toml").replace("{rcluster}", program);
    let config = site.write("rcluster.toml", &config)?;
    let mut start = Command::new(program);
    start.arg("run").arg("--config").arg(config);
    start.arg("--control").arg(site.folder.join("control"));
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(Setup { version, start, reload: Reload::Signal(Signal::SIGUSR1) })
}

fn nginx(site: &Site<'_>) -> Result<Setup, String> {
    let program = site.find("nginx", "nginx/usr/sbin/nginx")?;
    let config = site.write("nginx.conf", include_str!("apps/nginx.conf"))?;
    let version = version(Command::new(&program).arg("-v"))?;
    let nginx = || {
        let mut command = Command::new(&program);
        command.arg("-p").arg(site.folder).arg("-c").arg(&config);
        command.arg("-e").arg(site.folder.join("error.log"));
        command
    };
    let mut reload = nginx();
    reload.args(["-s", "reload"]);
    Ok(Setup { version, start: nginx(), reload: Reload::Command(reload) })
}

fn node(site: &Site<'_>) -> Result<Setup, String> {
    let program = site.find("node", "")?;
    site.write("node.js", include_str!("apps/node.js"))?;
    let version = version(Command::new(&program).arg("--version"))?;
    let mut start = Command::new(program);
    start.arg(site.write("cluster.js", include_str!("apps/cluster.js"))?);
    start.env("PORT", site.port.to_string());
    Ok(Setup { version, start, reload: Reload::Signal(Signal::SIGUSR2) })
}

fn pm2(site: &Site<'_>) -> Result<Setup, String> {
    let program = site.find("pm2", "node_modules/.bin/pm2")?;
    let app = site.write("node.js", include_str!("apps/node.js"))?;
    let pm2 = |program: &Path| {
        let mut command = Command::new(program);
        command.env("PM2_HOME", site.folder).env("PORT", site.port.to_string());
        command
    };
    // In the foreground: the same master as that of `pm2 start`.
    let mut start = pm2(&program.with_file_name("pm2-runtime"));
    start.arg("start").arg(app).args(["--name", "web", "--instances", "2"]);
    let mut reload = pm2(&program);
    reload.args(["reload", "web"]);
    // To ask it for its version would start another master.
    let package = program.canonicalize().map(|path| path.with_file_name("../package.json"));
    let version = package.and_then(std::fs::read).ok().and_then(|text| {
        let package: serde_json::Value = serde_json::from_slice(&text).ok()?;
        package["version"].as_str().map(str::to_owned)
    });
    let version = version.unwrap_or_default();
    Ok(Setup { version, start, reload: Reload::Command(reload) })
}

fn gunicorn_sync(site: &Site<'_>) -> Result<Setup, String> {
    gunicorn(site, &["--worker-class", "sync"])
}

fn gunicorn_gthread(site: &Site<'_>) -> Result<Setup, String> {
    gunicorn(site, &["--worker-class", "gthread", "--threads", "4", "--keep-alive", "75"])
}

fn gunicorn(site: &Site<'_>, options: &[&str]) -> Result<Setup, String> {
    let program = site.find("gunicorn", "venv/bin/gunicorn")?;
    site.write("app.py", include_str!("apps/app.py"))?;
    let version = version(Command::new(&program).arg("--version"))?;
    let mut start = Command::new(program);
    start.arg("--chdir").arg(site.folder).args(["--workers", "2"]).args(options);
    start.args(["--bind", &site.address(), "app:wsgi"]);
    Ok(Setup { version, start, reload: Reload::Signal(Signal::SIGHUP) })
}

fn uvicorn(site: &Site<'_>) -> Result<Setup, String> {
    let program = site.find("uvicorn", "venv/bin/uvicorn")?;
    site.write("app.py", include_str!("apps/app.py"))?;
    let version = version(Command::new(&program).arg("--version"))?;
    let mut start = Command::new(program);
    start.arg("--app-dir").arg(site.folder).args(["--workers", "2"]);
    start.args(["--host", "127.0.0.1", "--port", &site.port.to_string()]);
    start.args(["--timeout-keep-alive", "75", "--no-access-log", "app:asgi"]);
    Ok(Setup { version, start, reload: Reload::Signal(Signal::SIGHUP) })
}

fn puma(site: &Site<'_>) -> Result<Setup, String> {
    let program = site.find("puma", "")?;
    let version = version(Command::new(&program).arg("--version"))?;
    let mut start = Command::new(program);
    site.write("config.ru", include_str!("apps/config.ru"))?;
    start.arg("--config").arg(site.write("puma.rb", include_str!("apps/puma.rb"))?);
    Ok(Setup { version, start, reload: Reload::Signal(Signal::SIGUSR1) })
}

/// The first word with a dot and digits in what the command says.
fn version(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("it does not tell its version: {error}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let words = text.split(|c: char| !c.is_ascii_digit() && c != '.');
    let mut versions = words.filter(|word| word.contains('.') && word.len() > 2);
    versions.next().map(str::to_owned).ok_or_else(|| "it does not tell its version".to_owned())
}
