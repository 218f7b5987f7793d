//! Workers that misbehave on Node's channel. Slot 1 does, slot 2 is a good one: the master stays up,
//! complains once, keeps its accounts, and the other worker serves on.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail loudly")]

mod support;

use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use support::load::Load;
use support::node::release;
use support::{
    Cluster, PATIENCE, RCLUSTER, cpu_time, descriptors, descriptors_are_back, free_port, load_time,
};

/// The good one, and what the bad one needs: lines on its channel, and the cluster protocol by hand.
const BOTH: &str = "
const fs = require('fs'), http = require('http');
if (process.env.RCLUSTER_SLOT !== '1') {
  http.createServer((q, r) => r.end(String(process.pid))).listen({port});
} else {
  const say = it => { const b = Buffer.from(typeof it === 'string' ? it : JSON.stringify(it) + '\\n'); let o = 0;
    while (o < b.length) { try { o += fs.writeSync(3, b, o); } catch (e) { if (e.code !== 'EAGAIN') throw e; } } };
  const word = (act, more) => say({ cmd: 'NODE_CLUSTER', act, seq: 1, ...more });
  const ask = port => word('queryServer', { address: null, port, addressType: 4, index: 0, data: null });
  const ready = () => { ask({port}); word('listening', { address: null, port: {port}, addressType: 4 }); };
  BAD
}";

/// Starts a master whose first worker does this.
fn start(bad: &str, extra: &str) -> Option<Cluster> {
    let node = release("node-20")?;
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let source = BOTH.replace("BAD", bad).replace("{port}", &port.to_string());
    std::fs::write(folder.path().join("app.js"), source).unwrap();
    let config = format!(
        "[pool.web]\ncommand = [\"{}\", \"{{folder}}/app.js\"]\nlisten = [\"127.0.0.1:{{port}}\"]\n\
         workers = 2\nkind = \"node\"\nfirst-byte = false\nrestart-limit = 1000\ndrain-timeout = \"2s\"\n\
         {extra}\n",
        node.display()
    );
    let mut master = Command::new(RCLUSTER);
    master.arg("run").arg("--config").arg(folder.path().join("rcluster.toml"));
    Some(Cluster::launch(folder, port, &config, &mut master))
}

/// Clients come for a while; the master lives, and the accounts balance at the end. What failed.
fn serves_on(cluster: &mut Cluster) -> Vec<String> {
    let clients = Load::closed(cluster.port, 8, "/");
    let begin = Instant::now();
    std::thread::sleep(load_time());
    // The bad one takes what it can of a small machine.
    while clients.answered.load(Relaxed) <= 100 && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    let seen = clients.finish();
    assert!(cluster.is_running());
    assert!(seen.answered > 100, "{} were answered; {:?}", seen.answered, seen.failed);
    let end = Instant::now() + PATIENCE;
    loop {
        let pool = &cluster.status().pools[0];
        let others = pool.finished + pool.in_hand + pool.held + pool.refused + pool.cut;
        if pool.accepted == others && pool.held == 0 {
            return seen.failed;
        }
        assert!(Instant::now() < end, "{pool:?}");
    }
}

/// Both are ready, or the second alone.
fn wait_until_one_serves(cluster: &Cluster) {
    cluster.wait_for("web/2 (pid");
    let end = Instant::now() + PATIENCE;
    while cluster.pids("web").is_empty() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn rubbish_is_mentioned_once_and_ignored() {
    let bad = "
        say('no json\\n\\n{{{\\n[1,2\\n\"x\\n');
        say({ cmd: 'NODE_CLUSTER' }); say({ cmd: 'NODE_CLUSTER', act: 7, seq: [] }); say({ cmd: 'NODE_X', a: {} });
        say({ cmd: 'NODE_CLUSTER', act: 'queryServer' }); word('queryServer', { port: 99999 });
        word('queryServer', { port: -5, address: 'x\\0y' }); word('close', { key: 'nope' }); word('close', { key: 9 });
        word('listening', {}); word('new word', { a: 1 });
        ready();
        say('more rubbish\\n');
        setInterval(() => say('and more\\n'), 10);
        process.stdin.resume();";
    // It answers no hand-over, and is killed for that.
    let Some(mut cluster) = start(bad, "watchdog = \"3s\"") else { return };
    wait_until_one_serves(&cluster);
    cluster.wait_for("web/1 (pid");
    let failed = serves_on(&mut cluster);
    assert_eq!(failed, Vec::<String>::new());
    let complaint = cluster.wait_for("sent a line that is no JSON");
    let who = complaint.split(" sent ").next().unwrap().split("rcluster: ").nth(1).unwrap();
    assert_eq!(cluster.count(&format!("{who} sent")), 1, "{:?}", cluster.log());
}

#[test]
fn a_flood_stops_nobody_else() {
    let bad = "
        ready();
        const many = JSON.stringify({ flood: 'x'.repeat(50) }) + '\\n';
        const all = Buffer.from(many.repeat(1000));
        const flood = () => { try { for (;;) fs.writeSync(3, all); } catch (e) { setImmediate(flood); } };
        flood();";
    let Some(mut cluster) = start(bad, "watchdog = \"3s\"") else { return };
    wait_until_one_serves(&cluster);
    assert_eq!(serves_on(&mut cluster), Vec::<String>::new());
    cluster.wait_for("sends messages to its parent process");
}

#[test]
fn a_line_without_an_end_is_cut_off() {
    let bad = "
        ready();
        const part = Buffer.alloc(65536, 120);
        const flood = () => { try { for (;;) fs.writeSync(3, part); } catch (e) { setTimeout(flood, 1); } };
        flood();";
    let Some(mut cluster) = start(bad, "watchdog = \"5s\"") else { return };
    wait_until_one_serves(&cluster);
    assert_eq!(serves_on(&mut cluster), Vec::<String>::new());
    // Node says something in between, and ends it.
    cluster.wait_for("sent a line");
    let memory = support::memory(cluster.pid());
    assert!(memory < 200 << 10, "the master has {memory} KiB");
}

/// A worker that asks and asks, and reads none of the answers.
#[test]
fn who_reads_nothing_is_killed_when_too_much_waits_for_it() {
    let bad = "
        ready();
        const all = Buffer.from((JSON.stringify({ cmd: 'NODE_CLUSTER', act: 'queryServer', port: 1, seq: 1 }) + '\\n').repeat(500));
        let at = 0;
        for (;;) { try { at = (at + fs.writeSync(3, all, at)) % all.length; } catch (e) { } }";
    let Some(mut cluster) = start(bad, "") else { return };
    wait_until_one_serves(&cluster);
    cluster.wait_for("does not read what it is told; it is killed");
    assert_eq!(serves_on(&mut cluster), Vec::<String>::new());
    assert!(cluster.count("asked for port 1,") <= 1);
}

#[test]
fn who_closes_its_channel_and_stays_is_killed() {
    let bad = "ready(); setTimeout(() => { fs.closeSync(3); setInterval(() => 0, 1000); }, 100);";
    let Some(mut cluster) = start(bad, "") else { return };
    wait_until_one_serves(&cluster);
    cluster.wait_for("has shut down its channel; it is killed");
    assert_eq!(serves_on(&mut cluster), Vec::<String>::new());
}

/// It acknowledges and accepts what it was never handed, declines everything, and says that all ended.
#[test]
fn who_lies_about_connections_gets_none_and_harms_nobody() {
    let bad = "
        ready();
        // Numbers that it is never handed: who claims to have taken what it was handed is believed.
        for (const accepted of [true, false]) for (let ack = 1e6; ack < 1e6 + 5; ack++) say({ cmd: 'NODE_CLUSTER', ack, accepted, seq: 1 });
        say({ cmd: 'NODE_HANDLE_ACK' }); say({ cmd: 'NODE_HANDLE_NACK' });
        say({ cmd: 'NODE_RCLUSTER', ended: 1e15 }); say({ cmd: 'NODE_RCLUSTER', ended: -1 });
        process.on('internalMessage', (m, handle) => {
          if (m.act !== 'newconn') return;
          handle.close();
          say({ cmd: 'NODE_CLUSTER', ack: m.seq, accepted: false, seq: 1 });
          say({ cmd: 'NODE_CLUSTER', ack: m.seq, accepted: true, seq: 1 });
        });
        process.on('message', () => 0);";
    let Some(mut cluster) = start(bad, "") else { return };
    wait_until_one_serves(&cluster);
    assert_eq!(serves_on(&mut cluster), Vec::<String>::new());
    cluster.wait_for("answered for a connection that it was not handed; it is ignored");
}

/// It claims to be online, ready and leaving over and over, sends descriptors, and claims to be another.
#[test]
fn who_says_everything_twice_is_taken_at_its_first_word() {
    let bad = "
        for (let i = 0; i < 3; i++) { word('online', { worker: 2, id: 2 }); ready(); }
        const net = require('net');
        for (let i = 0; i < 20; i++) process.send({ gift: i }, net.createServer().listen({ port: 0, exclusive: true }));
        setTimeout(() => { for (let i = 0; i < 3; i++) { word('exitedAfterDisconnect'); word('close', { key: 'rcluster:1' }); } }, 500);
        setInterval(() => 0, 1000);";
    let Some(mut cluster) = start(bad, "watchdog = \"3s\"") else { return };
    wait_until_one_serves(&cluster);
    let before = descriptors(cluster.pid());
    assert_eq!(serves_on(&mut cluster), Vec::<String>::new());
    // No more than a worker of its own has, beside a new one.
    descriptors_are_back(cluster.pid(), before + 10);
}

/// A line, byte by byte, thousands of times, costs the master little.
#[test]
fn crumbs_cost_little() {
    let bad = "
        ready();
        const line = Buffer.from(JSON.stringify({ crumbs: 1 }) + '\\n');
        let at = 0;
        setInterval(() => { for (let i = 0; i < 100; i++) { say(line.toString('latin1', at, at + 1)); at = (at + 1) % line.length; } }, 10);";
    let Some(mut cluster) = start(bad, "watchdog = \"60s\"\nbalance = \"least-connections\"")
    else {
        return;
    };
    wait_until_one_serves(&cluster);
    let (begun, before) = (Instant::now(), cpu_time(cluster.pid()));
    std::thread::sleep(Duration::from_secs(1));
    let spent = cpu_time(cluster.pid()) - before;
    assert!(spent < begun.elapsed() / 2, "{spent:?} in {:?}", begun.elapsed());
    assert!(cluster.is_running());
}
