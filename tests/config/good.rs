//! What must be accepted, value by value.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcluster::config::{
    Address, Config, Dialect, Kind, Limits, Log, Manner, Pool, Probe, Question, Ready, explain,
};
use rcluster::supervisor::{Accept, Balance, Policy, Unavailable};

use crate::world::{POOL, World};

/// Every key once, none with its default.
pub(crate) const EXAMPLE: &str = r#"# A web application.
[master]
idle-exit = "10min"
log       = "inherit"
generations = 4
orphan-timeout = "90s"
control-mode = "0600"
control-group = "0"

[pool.web]
command  = ["/usr/bin/node", "server.js", ""]    # argv, no shell
listen   = ["web", "127.0.0.1:8081", "[::1]:8082", "8083", "/run/app.sock", "@app"]
kind     = "native"
workers  = 6
accept   = "master"
balance  = "source-hash"
working-directory = "/"
user = "root"
group = "0"
supplementary-groups = ["0", "root"]
environment = { NODE_ENV = "production", EMPTY = "" }
clear-environment = true
start-timeout = "31s"
drain-timeout = "1h30min"
watchdog = 12
max-connections = 1_000
max-requests = 10000
restart-limit = 6
restart-window = "61s"
surge = 2
canary = "10s"
probe = { send = "PING\r\n", expect = "PONG" }
probe-timeout = "2s"
unavailable = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 5\r\n\r\nbusy\n"
unavailable-after = "1.5s"
nice = -5
rlimits = { nofile = 65536, core = "infinity", nproc = [1024, 2048], cpu = [0, "infinity"] }
umask = "0027"
oom-score-adjust = -500
no-new-privileges = false

[pool."api.v2"]
command = ["api"]
workers = 1
"#;

/// Asserts that an explanation reads as what it explains.
pub(crate) fn explains_itself(world: &World, config: &Config) {
    let text = explain(config);
    let mut again = world.accept(&text);
    again.files.clone_from(&config.files);
    assert_eq!(again, *config, "{text}");
    assert_eq!(explain(&again), text);
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn every_key_arrives_with_its_value() {
    let world = World::new();
    let config = world.accept(EXAMPLE);
    assert_eq!(config.files, [world.main()]);
    let master = &config.master;
    assert_eq!(master.idle_exit, Some(Duration::from_secs(600)));
    assert_eq!(master.log, Log::Inherit);
    assert_eq!(master.generations, 4);
    assert_eq!(master.orphan_timeout, Duration::from_secs(90));
    assert_eq!(master.control_mode, 0o600);
    assert_eq!(master.control_group.as_deref(), Some("0"));
    let names: Vec<&str> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["web", "api.v2"]);
    let mut web = Pool::new("web", texts(&["/usr/bin/node", "server.js", ""]));
    web.listen = ["web", "127.0.0.1:8081", "[::1]:8082", "8083", "/run/app.sock", "@app"]
        .map(|text| text.parse().unwrap())
        .to_vec();
    let rlimits = [
        ("nofile", (65536, 65536)),
        ("core", (u64::MAX, u64::MAX)),
        ("nproc", (1024, 2048)),
        ("cpu", (0, u64::MAX)),
    ];
    web.manner.limits = Limits {
        nice: Some(-5),
        rlimits: rlimits.map(|(name, pair)| (name.to_owned(), pair)).into(),
        umask: Some(0o027),
        oom_score_adjust: Some(-500),
        no_new_privileges: false,
    };
    web.working_directory = Some(PathBuf::from("/"));
    web.user = Some("root".to_owned());
    web.group = Some("0".to_owned());
    web.supplementary_groups = texts(&["0", "root"]);
    web.environment = [("NODE_ENV", "production"), ("EMPTY", "")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    web.clear_environment = true;
    web.answer = Some(
        b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 5\r\n\r\nbusy\n"
            .to_vec(),
    );
    let question = Question::Text { send: "PING\r\n".to_owned(), expect: "PONG".to_owned() };
    web.probe = Some(Probe { question, timeout: Duration::from_secs(2) });
    web.policy = Policy {
        name: "web".to_owned(),
        workers: 6,
        listeners: Vec::new(),
        is_bound_here: false,
        accept: Accept::Master,
        counted: true,
        window: 32,
        balance: Balance::SourceHash,
        start_timeout: Duration::from_secs(31),
        drain_timeout: Duration::from_secs(5400),
        watchdog: Some(Duration::from_secs(12)),
        max_connections: 1000,
        max_requests: 10_000,
        restart_limit: 6,
        restart_window: Duration::from_secs(61),
        surge: 2,
        canary: Duration::from_secs(10),
        probe: true,
        unavailable: Unavailable::AnswerAfter(Duration::from_millis(1500)),
    };
    assert_eq!(config.pools[0], web);
    let addresses: Vec<Option<&Address>> =
        config.pools[0].listen.iter().map(|listen| listen.address.as_ref()).collect();
    assert_eq!(addresses[0], None);
    assert_eq!(addresses[1], Some(&Address::Tcp("127.0.0.1:8081".parse().unwrap())));
    assert_eq!(addresses[2], Some(&Address::Tcp("[::1]:8082".parse().unwrap())));
    assert_eq!(addresses[3], Some(&Address::Port(8083)));
    assert_eq!(addresses[4], Some(&Address::Unix("/run/app.sock".into())));
    assert_eq!(addresses[5], Some(&Address::Abstract("app".to_owned())));
}

#[test]
fn what_is_not_written_has_the_documented_default() {
    let world = World::new();
    let config = world.accept(POOL);
    assert_eq!(config.master.generations, 3);
    assert_eq!(config.master.control_mode, 0o660);
    let pool = &config.pools[0];
    assert_eq!(*pool, Pool::new("web", texts(&["/bin/true"])));
    let cpus = std::thread::available_parallelism().unwrap().get();
    let workers = u32::try_from(cpus.min(1024)).unwrap();
    let name = "web".to_owned();
    assert_eq!(pool.policy, Policy { name, workers, counted: true, ..Policy::default() });
    assert_eq!(pool.answer, None);
    let answered = world.accept(&format!("{POOL}unavailable = \"-ERR busy\\r\\n\"\n"));
    let after = Unavailable::AnswerAfter(Duration::from_secs(5));
    assert_eq!(answered.pools[0].policy.unavailable, after);
}

/// A pool of each kind with the keys that only it has.
const KINDS: &str = r#"
[pool.node]
command = ["node", "server.js"]
listen = ["web", "8081"]
kind = "node"
map = { 3000 = "web", 0 = "8081", "127.0.0.1:3001" = "web", "[0:0::1]:3" = "web", "./a" = "8081" }
drain-preload = true
first-byte = false
max-connections = 100
unavailable = "busy"

[pool.shared]
command = ["node", "server.js"]
kind = "node"
accept = "workers"

[pool.self]
command = ["app"]
accept = "workers"
max-connections = 100
watchdog = "5s"
max-requests = 1000
listen = ["9090"]
probe = "/"

[pool.ipc]
command = ["node", "server.js"]
kind = "ipc"
settle = "2s"

[pool.seed]
command = ["node", "server.js"]
kind = "ipc"
accept = "master"
dialect = "node-cluster"

[pool.inherit]
command = ["gunicorn"]
kind = "inherit"
accept = "workers"
stop-signal = "QUIT"
blocking = true
ready = "probe"
watchdog = "1s"
user = "0"

[pool.bare]
command = ["server"]
kind = "inherit"
settle = "3s"
"#;

#[test]
fn every_kind_has_its_own_keys_and_defaults() {
    let world = World::new();
    let config = world.accept(KINDS);
    explains_itself(&world, &config);
    let pool = |name: &str| config.pool(name).unwrap();
    let pairs = [
        ("3000", "web"),
        ("0", "8081"),
        ("127.0.0.1:3001", "web"),
        ("[::1]:3", "web"),
        ("./a", "8081"),
    ];
    let map = pairs.map(|(asked, given)| (asked.to_owned(), given.to_owned())).into();
    let node = Manner { map, drain_preload: true, first_byte: false, ..Manner::of(Kind::Node) };
    assert_eq!(pool("node").manner, node);
    let shared = &pool("shared").manner;
    assert_eq!((shared, shared.first_byte), (&Manner::of(Kind::Node), true));
    let ipc = Manner { settle: Duration::from_secs(2), ..Manner::of(Kind::Ipc) };
    assert_eq!((&pool("ipc").manner, ipc.first_byte, ipc.dialect), (&ipc, true, Dialect::Plain));
    assert_eq!(pool("seed").manner.dialect, Dialect::NodeCluster);
    let limits = Limits { no_new_privileges: true, ..Limits::default() };
    let mut inherit = Manner { blocking: true, ready: Ready::Probe, ..Manner::of(Kind::Inherit) };
    (inherit.stop_signal, inherit.limits) = (3, limits);
    assert_eq!((&pool("inherit").manner, inherit.first_byte), (&inherit, false));
    let bare = &pool("bare").manner;
    assert_eq!((bare.ready, bare.settle), (Ready::Settle, Duration::from_secs(3)));
    assert_eq!((bare.stop_signal, bare.blocking, bare.first_byte), (15, false, false));
    let policy = |name: &str| (pool(name).policy.accept, pool(name).policy.window);
    assert_eq!(policy("node"), (Accept::Master, 1));
    assert_eq!(policy("shared"), (Accept::Workers, 1));
    assert_eq!(policy("ipc"), (Accept::Master, 1));
    assert_eq!((policy("inherit").0, policy("bare").0), (Accept::Workers, Accept::Workers));
}

#[test]
fn an_explanation_has_the_keys_that_hold_and_no_other() {
    let world = World::new();
    let config = world.accept(KINDS);
    let keys = |name: &str| -> Vec<String> {
        let alone = Config::of_pools(vec![config.pool(name).unwrap().clone()]);
        let text = explain(&alone);
        let lines = text.lines().skip_while(|line| !line.starts_with("[pool")).skip(1);
        let words =
            lines.map(|line| line.trim_start_matches("# ").split([' ', ':']).next().unwrap());
        words.map(str::to_owned).collect()
    };
    let differ = |name: &str, wanted: &[&str]| {
        let known = [
            "map",
            "drain-preload",
            "first-byte",
            "dialect",
            "stop-signal",
            "blocking",
            "ready",
            "settle",
            "balance",
            "watchdog",
            "max-connections",
            "max-requests",
            "probe",
            "unavailable",
            "crash-ledger",
        ];
        let mut there = keys(name);
        for key in ["kind", "accept", "nice", "rlimits", "umask", "oom-score-adjust", "canary"] {
            assert!(there.iter().any(|it| it == key), "{name} lacks {key}");
        }
        there.retain(|key| known.contains(&key.as_str()));
        assert_eq!(there, wanted, "{name}");
    };
    let most = ["map", "drain-preload", "first-byte", "balance", "watchdog"];
    differ("node", &[&most[..], &["max-connections", "unavailable"]].concat());
    differ("shared", &["map", "drain-preload", "first-byte"]);
    differ("self", &["watchdog", "max-connections", "max-requests", "probe"]);
    let ipc = ["first-byte", "dialect", "settle", "balance", "watchdog", "max-connections"];
    differ("ipc", &[&ipc[..], &["unavailable"]].concat());
    differ("seed", &["first-byte", "dialect", "balance", "watchdog", "unavailable"]);
    differ("inherit", &["stop-signal", "blocking", "ready", "watchdog"]);
    differ("bare", &["stop-signal", "blocking", "ready", "settle", "watchdog"]);
}

#[test]
fn a_probe_is_a_path_or_two_texts() {
    let world = World::new();
    let config = world.accept(&format!("{POOL}listen = [\"80\"]\nprobe = \"/healthz?full=1\"\n"));
    let probe = config.pools[0].probe.clone().unwrap();
    assert_eq!(probe.question, Question::Http { path: "/healthz?full=1".to_owned() });
    assert_eq!(probe.timeout, Duration::from_secs(5));
    assert!(config.pools[0].policy.probe && config.pools[0].policy.canary.is_zero());
    explains_itself(&world, &config);
    for canary in ["0", "\"0s\"", "\"1h\"", "\"1ms\""] {
        let config = world.accept(&format!("{POOL}canary = {canary}\n"));
        assert!(!config.pools[0].policy.probe);
        explains_itself(&world, &config);
    }
}

#[test]
fn times_are_written_in_every_usual_way() {
    let world = World::new();
    for (written, millis) in [
        ("30", 30_000),
        ("\"30\"", 30_000),
        ("\"30s\"", 30_000),
        ("\"30 sec\"", 30_000),
        ("\"500ms\"", 500),
        ("\"1h\"", 3_600_000),
        ("\"5min 20s\"", 320_000),
        ("\"10ms\"", 10),
    ] {
        let config = world.accept(&format!("{POOL}watchdog = {written}\n"));
        let watchdog = config.pools[0].policy.watchdog;
        assert_eq!(watchdog, Some(Duration::from_millis(millis)), "{written}");
    }
    for written in ["off", "never", "infinity"] {
        let config = world.accept(&format!("{POOL}watchdog = \"{written}\"\n"));
        assert_eq!(config.pools[0].policy.watchdog, None);
    }
}

#[test]
fn an_explanation_reads_as_what_it_explains() {
    let world = World::new();
    for text in [EXAMPLE, POOL] {
        explains_itself(&world, &world.accept(text));
    }
    world.write("web.env", "SECRET=s3cr3t\nA=from file\n");
    let odd = r##"
        [pool.web]
        command = ["./x", "a\"b\\c\n\t\u0001\u007f é", "#", "[x]"]
        environment = { A = "table", B = "q\"uote", C = "line\nline" }
        environment-file = ["web.env", "-gone.env"]
        watchdog = "off"
        working-directory = "."
        unavailable = "\u0001binary\r\n"
    "##;
    let config = world.accept(odd);
    explains_itself(&world, &config);
    assert!(!explain(&config).contains("s3cr3t"), "secrets stay in their files");
}

#[test]
fn files_of_conf_d_follow_by_name() {
    let world = World::new();
    world.write("rcluster.toml", format!("[master]\ngenerations = 2\n{POOL}"));
    world.write("conf.d/20-b.toml", "[pool.b]\ncommand = [\"b\"]\n");
    world.write("conf.d/10-c.toml", "[pool.c]\ncommand = [\"c\"]\n");
    world.write("conf.d/30.toml", "[master]\ncontrol-mode = \"0600\"\n");
    world.write("conf.d/ignored.toml.bak", "rubbish");
    world.write("conf.d/.hidden.toml", "rubbish");
    let config = world.load().unwrap();
    let names: Vec<&str> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["web", "c", "b"]);
    assert_eq!(config.files.len(), 4);
    assert_eq!(config.files[1], world.path("conf.d/10-c.toml"));
    assert_eq!((config.master.generations, config.master.control_mode), (2, 0o600));
    assert_eq!(config.pool("b").unwrap().command, ["b"]);
    assert_eq!(config.pool("x"), None);
    for number in (40..80).rev() {
        world.write(&format!("conf.d/{number}.toml"), "");
    }
    let files = world.load().unwrap().files;
    assert!(files.len() == 44 && files[1..].is_sorted(), "{files:?}");
}

#[test]
fn environment_files_win_over_the_table() {
    let world = World::new();
    world.write("one.env", "A=one\nB=\"one\"\n");
    world.write("two.env", "# c\nB='two'\n");
    let config = world.accept(&format!(
        "{POOL}environment = {{ A = \"table\", C = \"table\" }}\n\
         environment-file = [\"one.env\", \"-two.env\", \"-gone.env\"]\n"
    ));
    let expected: BTreeMap<String, String> = [("A", "one"), ("B", "two"), ("C", "table")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    assert_eq!(config.pools[0].environment, expected);
    let files = &config.pools[0].environment_files;
    let seen: Vec<(&Path, bool)> = files.iter().map(|f| (f.path.as_path(), f.optional)).collect();
    let (one, two, gone) = (world.path("one.env"), world.path("two.env"), world.path("gone.env"));
    assert_eq!(seen, [(one.as_path(), false), (&two, true), (&gone, true)]);
}

#[test]
fn the_machine_is_asked_only_when_it_is_checked() {
    let world = World::new();
    world.write("here/not-executable", "");
    world.write("here/sub/x", "");
    let text = "[master]\ncontrol-group = \"no-such-group\"\n\
                [pool.a]\nuser = \"no-such-user\"\ngroup = \"no-such-group\"\n\
                supplementary-groups = [\"0\", \"no-such-group\"]\ncommand = [\"no-such-program\"]\n\
                [pool.b]\nworking-directory = \"nowhere\"\ncommand = [\"x\"]\n\
                [pool.c]\nworking-directory = \"here\"\ncommand = [\"./missing\"]\n\
                [pool.d]\nworking-directory = \"here\"\ncommand = [\"./not-executable\"]\n\
                [pool.e]\nworking-directory = \"here\"\ncommand = [\"./sub\"]\n\
                [pool.f]\ncommand = [\"sh\"]\nuser = \"0\"\n\
                [pool.g]\nclear-environment = true\nenvironment = { PATH = \"/nowhere\" }\n\
                command = [\"sh\"]\n\
                [pool.h]\nworking-directory = \"rcluster.toml\"\ncommand = [\"/bin/sh\"]\n";
    let problems = world.accept(text).check_programs();
    crate::world::judge(&problems, text);
    let told: Vec<(usize, usize, &str)> = problems
        .iter()
        .map(|problem| (problem.line, problem.column, problem.message.as_str()))
        .collect();
    let expected = [
        (2, 17, "there is no group `no-such-group` on"),
        (4, 8, "there is no user `no-such-user` on"),
        (5, 9, "there is no group"),
        (6, 24, "there is no group"),
        (7, 11, "no program `no-such-program` in PATH"),
        (9, 21, "nowhere` does not exist"),
        (13, 11, "missing` does not exist"),
        (16, 11, "is not executable"),
        (19, 11, "is not a regular file"),
        (26, 11, "no program `sh` in PATH (`/nowhere`)"),
        (28, 21, "is no directory"),
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for ((line, column, message), (l, c, said)) in told.iter().zip(expected) {
        assert_eq!((*line, *column), (l, c), "{message}");
        assert!(message.contains(said), "{message}");
    }
    let program = world.accept(&format!("{POOL}\n[pool.f]\ncommand = [\"sh\"]\n"));
    assert!(fs::metadata(program.pools[1].program().unwrap()).unwrap().is_file());
    assert_eq!(program.check_programs(), []);
}

#[test]
fn an_answer_that_leaves_the_connection_open_is_advised_against() {
    let world = World::new();
    assert_eq!(world.accept(EXAMPLE).advice(), []);
    let open = r#"unavailable = "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n""#;
    let advice = world.accept(&format!("{POOL}{open}\n")).advice();
    assert_eq!((advice.len(), advice[0].line, advice[0].column), (1, 3, 15));
    assert!(advice[0].to_string().ends_with("add the header `Connection: close`"));
}
