//! Who is measured, and how each is started: the floor, rcluster, and its peers.

use std::process::Command;

use nix::sys::signal::Signal;

use super::floor::{KEPT, LIMIT, TRIED, role};
use super::uring;
use crate::peers::roster::{PEERS, Peer};
use crate::peers::server::{Reload, Setup, Site};

type SetUp = fn(&Site<'_>) -> Result<Setup, String>;

const fn peer(name: &'static str, set_up: fn(&Site<'_>) -> Result<Setup, String>) -> Peer {
    Peer { name, keeps_connections: true, set_up }
}

pub const FLOOR: &str = "plain system calls, pass one";
pub const ONE: &str = "one process";
pub const SHARED: &str = "shared accept";
pub const REUSEPORT: &str = "SO_REUSEPORT";
pub const MASTER: &str = "rcluster, accept = \"master\"";
pub const WORKERS: &str = "rcluster, accept = \"workers\"";
pub const NODE: &str = "Node cluster";

/// Everybody whose cost is measured.
pub fn all() -> Vec<Peer> {
    let own = [
        floor_itself(),
        peer(ONE, |site| floor(site, "single", 1)),
        peer(SHARED, |site| floor(site, "shared", 2)),
        peer(REUSEPORT, |site| floor(site, "reuseport", 2)),
        peer(MASTER, |site| rcluster(site, "accept = \"master\"", 2, 1000)),
        peer(WORKERS, |site| rcluster(site, "accept = \"workers\"", 2, 1000)),
        peer("HAProxy, mode tcp", haproxy),
    ];
    let others = PEERS.iter().filter(|peer| peer.name != "rcluster" && peer.name != "uvicorn");
    own.into_iter().chain(others.copied()).collect()
}

/// Those of them who keep connections. Rcluster's workers wait for the next request of each, as the floor's do.
pub fn keeping() -> Vec<Peer> {
    let kept = [
        peer(MASTER, |site| rcluster_kept(site, "accept = \"master\"")),
        peer(WORKERS, |site| rcluster_kept(site, "accept = \"workers\"")),
    ];
    let own = |peer: Peer| kept.into_iter().find(|it| it.name == peer.name).unwrap_or(peer);
    all().into_iter().filter(|peer| peer.keeps_connections).map(own).collect()
}

pub fn floor_itself() -> Peer {
    peer(FLOOR, |site| floor(site, "pass", 2))
}

/// The floor, in the ways that were tried.
pub fn variants() -> Vec<Peer> {
    fn way<const N: usize>(site: &Site<'_>) -> Result<Setup, String> {
        if TRIED[N].0.starts_with("uring") {
            uring::prove().map_err(|error| format!("not to be had: {error}"))?;
        }
        let start = role(&format!("pass {} 2 {}", site.port, TRIED[N].0));
        Ok(Setup { version: String::new(), start, reload: Reload::Signal(Signal::SIGUSR1) })
    }
    let ways: [SetUp; TRIED.len()] =
        [way::<0>, way::<1>, way::<2>, way::<3>, way::<4>, way::<5>, way::<6>, way::<7>, way::<8>];
    ways.into_iter().zip(TRIED).map(|(set_up, (_, name))| peer(name, set_up)).collect()
}

/// A part of [`super::floor`].
pub fn floor(site: &Site<'_>, part: &str, workers: u16) -> Result<Setup, String> {
    let start = role(&format!("{part} {} {workers}", site.port));
    Ok(Setup { version: String::new(), start, reload: Reload::Signal(Signal::SIGUSR1) })
}

/// A master whose pool has these lines, too; its workers take `limit` connections at once.
pub fn rcluster(site: &Site<'_>, lines: &str, workers: u32, limit: u32) -> Result<Setup, String> {
    pool(site, lines, workers, &format!("{LIMIT} = \"{limit}\""))
}

/// The same, and its workers keep connections.
fn rcluster_kept(site: &Site<'_>, lines: &str) -> Result<Setup, String> {
    pool(site, lines, 2, &format!("{LIMIT} = \"1000\", {KEPT} = \"1\""))
}

fn pool(site: &Site<'_>, lines: &str, workers: u32, variables: &str) -> Result<Setup, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let config = site.write(
        "rcluster.toml",
        &format!(
            "[pool.web]\ncommand = [\"{}\"]\nlisten = [\"127.0.0.1:{{port}}\"]\n\
             workers = {workers}\nenvironment = {{ {variables} }}\n{lines}\n",
            own.display()
        ),
    )?;
    started(site, &config)
}

/// A master with this configuration.
pub fn started(site: &Site<'_>, config: &std::path::Path) -> Result<Setup, String> {
    let program = env!("CARGO_BIN_EXE_rcluster");
    let check = Command::new(program).arg("check").arg(config).output();
    let check = check.map_err(|error| error.to_string())?;
    if !check.status.success() {
        let said = String::from_utf8_lossy(&check.stderr);
        return Err(format!("refused: {}", said.lines().next().unwrap_or_default()));
    }
    let mut start = Command::new(program);
    start.arg("run").arg("--config").arg(config);
    start.arg("--control").arg(site.folder.join("control"));
    Ok(Setup { version: String::new(), start, reload: Reload::Signal(Signal::SIGUSR1) })
}

fn haproxy(site: &Site<'_>) -> Result<Setup, String> {
    let program = site.find("haproxy", "haproxy/usr/sbin/haproxy")?;
    let behind = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    let behind = behind.map_err(|error| error.to_string())?.port();
    let config = format!(
        "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 5s\n  \
         timeout client 60s\n  timeout server 60s\nfrontend web\n  bind {}\n  default_backend own\n\
         backend own\n  server own 127.0.0.1:{behind}\n",
        site.address()
    );
    let config = site.write("haproxy.cfg", &config)?;
    let start = role(&format!("proxy {behind} {} {}", program.display(), config.display()));
    Ok(Setup { version: String::new(), start, reload: Reload::Signal(Signal::SIGUSR1) })
}
