//! Mistakes that were thought of, one by one. `«` stands where the problem must point.

use crate::world::{POOL, World};

/// One mistake each: the lines below the shortest pool, and parts of the sentence.
const IN_POOL: &[(&str, &[&str])] = &[
    // Keys.
    ("«worker = 3", &["unknown key `worker` in pool `web`", "did you mean `workers`?"]),
    ("«env = { A = \"b\" }", &["unknown key `env`", "did you mean `environment`?"]),
    ("«cwd = \"/\"", &["did you mean `working-directory`?"]),
    ("«drain_timeout = 5", &["did you mean `drain-timeout`?"]),
    ("«WORKERS = 3", &["did you mean `workers`?"]),
    ("«generations = 3", &["unknown key `generations`", "belongs into `[master]`"]),
    ("«banana = 3", &["unknown key `banana`", "known here: command, listen"]),
    ("«\"a\\nb\" = 3", &["unknown key `a\\nb`"]),
    ("«\"\" = 3", &["unknown key ``"]),
    ("[pool.web.«envronment]\nA = \"b\"", &["did you mean `environment`?"]),
    ("[pool.web.«v2]\ncommand = [\"x\"]", &["unknown key `v2`", "[pool.\"a.b\"]"]),
    // Names.
    ("[pool.«\"my pool\"]\ncommand = [\"x\"]", &["`my pool` is no name for a pool", "letters"]),
    ("[pool.«\"\"]\ncommand = [\"x\"]", &["`` is no name for a pool"]),
    ("[pool.«-x]\ncommand = [\"x\"]", &["`-x` is no name"]),
    ("[pool.«\".x\"]\ncommand = [\"x\"]", &["`.x` is no name"]),
    ("[pool.«\"é\"]\ncommand = [\"x\"]", &["`é` is no name"]),
    ("[pool.«\"a/b\"]\ncommand = [\"x\"]", &["`a/b` is no name"]),
    // A name of 65 characters.
    (
        "[pool.«aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffggggg]\ncommand = [\"x\"]",
        &["is no name for a pool", "1 to 64"],
    ),
    ("[pool.«api]", &["pool `api` has no command", "command = ["]),
    (
        "[pool]\n«workers = 3",
        &["outside of every pool", "write `workers` below a line [pool.NAME]"],
    ),
    ("[pool]\n«x = 3", &["outside of every pool"]),
    (
        "[«web]\ncommand = [\"x\"]",
        &["unknown key `web` at the top", "write [pool.NAME] for a pool"],
    ),
    ("[«pools.web]\ncommand = [\"x\"]", &["unknown key `pools`", "did you mean `pool`?"]),
    ("[«Master]", &["did you mean `master`?"]),
    // Command.
    ("[pool.a]\ncommand = «[]", &["`command` is empty", "/usr/bin/my-server"]),
    (
        "[pool.a]\ncommand = «\"node server.js\"",
        &["is text, but a list", "[\"node\", \"server.js\"]"],
    ),
    ("[pool.a]\ncommand = [«\"\"]", &["empty text"]),
    ("[pool.a]\ncommand = [«\"\", \"x\"]", &["empty text"]),
    (
        "[pool.a]\ncommand = [\"x\", «8080]",
        &["an entry of `command` is a number, but text", "\"8080\""],
    ),
    ("[pool.a]\ncommand = [\"x\", «true]", &["true or false", "\"true\""]),
    ("[pool.a]\ncommand = [\"x\", «[]]", &["a list, but text"]),
    ("[pool.a]\ncommand = [\"x\", «\"a\\u0000b\"]", &["zero byte"]),
    // Listen.
    ("listen = «\"8080\"", &["is text, but a list", "[\"8080\"]"]),
    ("listen = «8080", &["is a number, but a list", "[\"8080\"]"]),
    ("listen = [«8080]", &["is a number, but text", "\"8080\""]),
    ("listen = [«\"\"]", &["empty text"]),
    ("listen = [«\"65536\"]", &["there is no port `65536`", "1 to 65535"]),
    ("listen = [«\"127.0.0.1:65536\"]", &["there is no port `65536`"]),
    ("listen = [«\"127.0.0.1:http\"]", &["does not end with a port"]),
    ("listen = [«\"127.0.0.1\"]", &["`127.0.0.1` has no port", "127.0.0.1:8080"]),
    ("listen = [«\"localhost:8080\"]", &["`localhost` is a host name", "give an IP address"]),
    ("listen = [«\"example.org:80\"]", &["is a host name"]),
    ("listen = [«\"::1\"]", &["has no port", "[::1]:8080"]),
    ("listen = [«\"::1:8080\"]", &["no brackets", "write [::1]:8080"]),
    ("listen = [«\"[::1]\"]", &["does not end with a port"]),
    ("listen = [«\"[::g]:80\"]", &["`[::g]` is not an IP address"]),
    ("listen = [«\"256.1.1.1:80\"]", &["`256.1.1.1` is not an IP address"]),
    ("listen = [«\"*:80\"]", &["no IP address", "write 80 for all interfaces"]),
    ("listen = [«\":80\"]", &["no IP address"]),
    ("listen = [«\"http://127.0.0.1:80\"]", &["is a URL"]),
    ("listen = [«\"unix:/run/a\"]", &["write `/run/a` alone"]),
    ("listen = [«\"/\"]", &["names a directory"]),
    ("listen = [«\"/run/a/\"]", &["names a directory"]),
    ("listen = [«\"@\"]", &["0 bytes"]),
    ("listen = [«\" web\"]", &["no name of a socket"]),
    ("listen = [«\"grün\"]", &["no name of a socket"]),
    ("listen = [«\"a\\tb\"]", &["`a\\tb` is no name of a socket"]),
    ("listen = [\"8080\", «\"8080\"]", &["the same as `8080` of pool `web` at", "remove one"]),
    ("listen = [\"8080\", «\"0.0.0.0:8080\"]", &["`0.0.0.0:8080` is the same as `8080`"]),
    ("listen = [\"web\", «\"web\"]", &["`web` is the same as `web`"]),
    ("listen = [\"/run/a\", «\"/run//a\"]", &["the same as"]),
    ("listen = [\"@a\", «\"@a\"]", &["the same as"]),
    ("listen = [\"[::1]:80\", «\"[0:0::1]:80\"]", &["the same as"]),
    (
        "listen = [\"8080\"]\n[pool.api]\ncommand = [\"x\"]\nlisten = [«\"127.0.0.1:8080\"]",
        &["the same as `8080` of pool `web`"],
    ),
    // Words.
    ("kind = «\"rust\"", &["`kind` cannot be `rust`", "`native`, `node`, `ipc` or `inherit`"]),
    ("kind = «\"Node\"", &["did you mean `node`?"]),
    ("kind = \"inherit\"\naccept = «\"master\"", &["accept from the listening sockets themselves"]),
    ("kind = \"ipc\"\naccept = «\"workers\"", &["are handed connections", "\"inherit\""]),
    ("kind = \"node\"\naccept = «\"worker\"", &["did you mean `workers`?"]),
    (
        "accept = \"workers\"\n«crash-ledger = true",
        &["the master holds none that it could save", "write accept = \"master\""],
    ),
    (
        "accept = \"workers\"\n«balance = \"round-robin\"",
        &["the workers accept connections themselves", "write accept = \"master\""],
    ),
    ("accept = \"workers\"\n«unavailable = \"busy\"", &["accept connections themselves"]),
    (
        "kind = \"node\"\naccept = \"workers\"\n«balance = \"source-hash\"",
        &["the workers accept connections themselves", "write accept = \"master\""],
    ),
    ("kind = \"node\"\naccept = \"workers\"\n«watchdog = 5", &["accept connections themselves"]),
    ("kind = \"node\"\n«max-connections = 5", &["`max-connections`", "drain-preload = true"]),
    ("kind = \"inherit\"\n«max-connections = 5", &["accept connections themselves; remove it"]),
    (
        "kind = \"ipc\"\ndialect = \"node-cluster\"\n«max-connections = 5",
        &["when a connection ends"],
    ),
    ("kind = \"ipc\"\ndialect = \"node-cluster\"\n«settle = 5", &["show otherwise"]),
    ("kind = \"inherit\"\nready = \"notify\"\n«settle = 5", &["write ready = \"settle\""]),
    ("kind = \"ipc\"\ndialect = «\"node_cluster\"", &["did you mean `node-cluster`?"]),
    ("kind = \"inherit\"\nready = «\"yes\"", &["write `notify`, `probe` or `settle`"]),
    // Only the kind is wrong; what would hold for it is not known.
    ("kind = «\"nodee\"\nmap = {}\nfirst-byte = true", &["did you mean `node`?"]),
    // What a Node application asks for.
    (
        "kind = \"node\"\nmap = { 3000 = «\"web\" }",
        &["`listen` has no entry `web`", "give `listen`"],
    ),
    (
        "kind = \"node\"\nlisten = [\"80\", \"b\"]\nmap = { 3000 = «\"web\" }",
        &["`listen` has no entry `web`", "write `80` or `b`"],
    ),
    ("kind = \"node\"\nlisten = [«\"99999\"]\nmap = { 3000 = \"web\" }", &["there is no port"]),
    ("kind = \"node\"\nlisten = [\"a\"]\nmap = { «65536 = \"a\" }", &["there is no port `65536`"]),
    (
        "kind = \"node\"\nlisten = [\"a\"]\nmap = { «080 = \"a\" }",
        &["begins with a zero", "write 80"],
    ),
    ("kind = \"node\"\nlisten = [\"a\"]\nmap = { «\"localhost:80\" = \"a\" }", &["neither a port"]),
    ("kind = \"node\"\nlisten = [\"a\"]\nmap = { «\"\" = \"a\" }", &["neither a port"]),
    ("kind = \"node\"\nlisten = [\"a\"]\nmap = { 80 = «5 }", &["`80` of `map` is a number"]),
    ("kind = \"node\"\nmap = «[]", &["is a list, but a table", "map = { 3000"]),
    ("«ports = { 80 = \"a\" }", &["did you mean `map`?"]),
    // Signals.
    ("kind = \"inherit\"\nstop-signal = «\"SIGFOO\"", &["there is no signal `SIGFOO`", "SIGQUIT"]),
    ("kind = \"inherit\"\nstop-signal = «\"sigquit\"", &["did you mean `SIGQUIT`?"]),
    ("kind = \"inherit\"\nstop-signal = «\"kill\"", &["did you mean `SIGKILL`?"]),
    ("kind = \"inherit\"\nstop-signal = «\"KILL\"", &["no program can act upon"]),
    ("kind = \"inherit\"\nstop-signal = «\"\"", &["empty text"]),
    ("kind = \"inherit\"\nstop-signal = «15", &["is a number, but the name of a signal"]),
    ("«kill-signal = \"SIGQUIT\"", &["did you mean `stop-signal`?"]),
    // Limits.
    ("nice = «\"5\"", &["is text, but a number from -20 to 19"]),
    ("umask = «\"0888\"", &["`umask` cannot be `0888`", "octal"]),
    ("umask = «\"1777\"", &["\"0777\""]),
    ("umask = «\"+22\"", &["octal"]),
    ("umask = «0o022", &["is a number, but a text of octal digits"]),
    (
        "rlimits = { «nofiles = 5 }",
        &["unknown key `nofiles` in `rlimits`", "did you mean `nofile`?"],
    ),
    ("rlimits = { «RLIMIT_NOFILE = 5 }", &["did you mean `nofile`?"]),
    ("rlimits = { «LimitCORE = 5 }", &["did you mean `core`?"]),
    ("rlimits = { «banana = 5 }", &["known here: as, core, cpu"]),
    ("rlimits = { nofile = «\"5\" }", &["`nofile` of `rlimits` cannot be `5`", "\"infinity\""]),
    ("rlimits = { nofile = «true }", &["true or false, but a number, \"infinity\" or a list"]),
    ("rlimits = { nofile = «-1 }", &["cannot be `-1`"]),
    ("rlimits = { nofile = «[] }", &["has 0 values", "[1024, 2048]"]),
    ("rlimits = { nofile = «[1, 2, 3] }", &["has 3 values"]),
    ("rlimits = { nofile = «[2, 1] }", &["a soft limit above the hard one"]),
    ("rlimits = { nofile = «[\"infinity\", 1] }", &["above the hard one"]),
    ("rlimits = { nofile = [1, «\"x\"] }", &["the hard `nofile` of `rlimits` cannot be `x`"]),
    ("«limits = { nofile = 1 }", &["did you mean `rlimits`?"]),
    ("kind = «\"natve\"", &["did you mean `native`?"]),
    ("accept = «\"nobody\"", &["`accept` cannot be `nobody`"]),
    ("balance = «\"round_robin\"", &["did you mean `round-robin`?"]),
    ("balance = «\"fastest\"", &["write `least-connections`, `round-robin` or `source-hash`"]),
    // Accounts and directories.
    ("user = «\"a:b\"", &["`user` has no name `a:b`"]),
    ("user = «\"a b\"", &["`user` has no name `a b`"]),
    ("user = «1000", &["is a number, but text", "\"1000\""]),
    ("user = «\"4294967295\"", &["no number `4294967295`"]),
    ("user = «\"\"", &["empty text"]),
    ("group = «\"a/b\"", &["`group` has no name"]),
    ("supplementary-groups = [\"a\", «\"b\\n\"]", &["no name `b\\n`"]),
    ("supplementary-groups = «\"a\"", &["[\"a\"]"]),
    ("working-directory = «\"\"", &["empty text"]),
    // Environment.
    ("environment = { «\"A B\" = \"1\" }", &["`A B` is no name of a variable"]),
    ("environment = { «1A = \"1\" }", &["`1A` is no name"]),
    ("environment = { «\"\" = \"1\" }", &["`` is no name"]),
    ("environment = { «\"Ä\" = \"1\" }", &["`Ä` is no name"]),
    ("environment = { PORT = «8080 }", &["the variable `PORT` is a number, but text", "\"8080\""]),
    ("environment = { DEBUG = «true }", &["\"true\""]),
    ("environment = { A = «\"\\u0000\" }", &["zero byte"]),
    ("environment = { «RCLUSTER_SLOT = \"1\" }", &["`RCLUSTER_SLOT` is set by rcluster itself"]),
    ("environment = { «LISTEN_FDS = \"1\" }", &["set by rcluster itself"]),
    ("environment = { «NOTIFY_SOCKET = \"1\" }", &["set by rcluster itself"]),
    ("environment = { «WATCHDOG_USEC = \"1\" }", &["set by rcluster itself"]),
    ("environment = { «NODE_CHANNEL_FD = \"1\" }", &["set by rcluster itself"]),
    ("environment = «[\"A=1\"]", &["is a list, but a table"]),
    ("environment = «\"A=1\"", &["is text, but a table"]),
    ("[pool.web.environment]\nA = \"1\"\n«B-C = \"2\"", &["`B-C` is no name"]),
    ("environment-file = [«\"missing.env\"]", &["does not exist", "`-` before its path"]),
    ("environment-file = «\"x.env\"", &["[\"x.env\"]"]),
    // Numbers and times.
    ("workers = «\"4\"", &["cannot be the text `4`", "without quotes"]),
    ("workers = «\"many\"", &["write \"auto\" or a number from 1 to 1024"]),
    ("workers = «0x401", &["`workers` cannot be `0x401`"]),
    ("surge = «99999999999999999999999999999999999999999999", &["`surge` cannot be"]),
    ("start-timeout = «\"30 sec onds\"", &["is no time"]),
    ("start-timeout = «\"30S\"", &["`30S`, which is no time", "\"1m 30s\""]),
    ("drain-timeout = «\"infinity\"", &["which is no time"]),
    ("watchdog = «\"none\"", &["which is no time", "\"off\" turns it off"]),
    ("watchdog = «0", &["cannot be `0`", "\"off\" turns it off"]),
    ("watchdog = «false", &["a span of time is expected", "\"off\" turns it off"]),
    // Canary and probe.
    ("canary = «\"-1s\"", &["`canary` is `-1s`, which is no time", "from 0s to 1h"]),
    ("canary = «\"61m\"", &["`canary` cannot be `61m`", "from 0s to 1h"]),
    (
        "listen = [\"80\"]\nprobe = «\"healthz\"",
        &["`probe` cannot be `healthz`", "begins with `/`"],
    ),
    ("listen = [\"80\"]\nprobe = «\"/a b\"", &["`probe` cannot be `/a b`", "without blanks"]),
    ("listen = [\"80\"]\nprobe = «\"/a\\r\\nX: y\"", &["`probe` cannot be", "without blanks"]),
    ("listen = [\"80\"]\nprobe = «\"\"", &["`probe` has an empty text", "\"/healthz\""]),
    ("listen = [\"80\"]\nprobe = «5", &["`probe` is a number, but a path or a table", "/healthz"]),
    ("listen = [\"80\"]\nprobe = «{ send = \"x\" }", &["`probe` has no `expect`", "PONG"]),
    (
        "listen = [\"80\"]\nprobe = { send = \"x\", expect = «5 }",
        &["`expect` of `probe` is a number"],
    ),
    ("listen = [\"80\"]\nprobe = { send = \"x\", expect = «\"\" }", &["empty text"]),
    (
        "listen = [\"80\"]\nprobe = { send = \"x\", expect = \"y\", «exepct = \"z\" }",
        &["unknown key `exepct` in `probe`", "did you mean `expect`?"],
    ),
    ("«probe = \"/\"", &["`probe` asks over a connection", "give `listen` an entry"]),
    ("listen = []\n«probe = \"/\"", &["this pool listens nowhere"]),
    ("listen = [«\"99999\"]\nprobe = \"/\"", &["there is no port"]),
    ("«probe-timeout = 5", &["`probe-timeout` has no meaning without `probe`", "remove it"]),
    ("listen = [\"80\"]\nprobe = «5\nprobe-timeout = 5", &["`probe` is a number"]),
    ("«healthcheck = \"/\"", &["did you mean `probe`?"]),
    // Unavailable.
    ("«unavailable-after = \"5s\"", &["no meaning while clients wait", "remove it"]),
    ("unavailable = \"wait\"\n«unavailable-after = 5", &["no meaning while clients wait"]),
    ("unavailable = «\"\"", &["empty text"]),
    ("unavailable = «\"Wait\"", &["write \"wait\""]),
    ("unavailable = «\" wait\"", &["write \"wait\""]),
    ("unavailable = «\"HTTP/1.1 503 No\"", &["no blank line", "HTTP/1.1 503"]),
    ("unavailable = «\"HTTP/1.1 503 No\\nContent-Length: 0\\n\\n\"", &["\\n alone"]),
    ("unavailable = «\"\"\"HTTP/1.1 503 No\nContent-Length: 0\n\n\"\"\"", &["\\n alone"]),
    (
        "unavailable = «\"HTTP/1.1 503 No\\r\\nContent-Length: 5\\r\\n\\r\\nbusy\"",
        &["says Content-Length: 5, but its body has 4 bytes", "write Content-Length: 4"],
    ),
    (
        "unavailable = «\"HTTP/1.1 503 No\\r\\nContent-Length: 4\\r\\n\\r\\nbüsy\"",
        &["write Content-Length: 5"],
    ),
    ("unavailable = «\"HTTP/1.1 503 No\\r\\n\\r\\nbusy\"", &["no Content-Length", "Length: 4"]),
    (
        "unavailable = «\"HTTP/1.1 503 No\\r\\nContent-Length: +4\\r\\n\\r\\nbusy\"",
        &["`+4` as its Content-Length"],
    ),
    (
        "unavailable = «\"HTTP/1.1 503 No\\r\\nContent-Length: 4\\r\\nContent-Length: 4\\r\\n\\r\\nbusy\"",
        &["two Content-Length"],
    ),
    (
        "unavailable = «\"HTTP/1.1 503 No\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n\"",
        &["Transfer-Encoding"],
    ),
    ("unavailable = «\"HTTP/2 503\\r\\n\\r\\n\"", &["does not begin with HTTP/1.1"]),
    ("unavailable = «\"http/1.1 503\\r\\n\\r\\n\"", &["does not begin with HTTP/1.1"]),
    ("unavailable = «\"HTTP/1.1 50\\r\\nContent-Length: 0\\r\\n\\r\\n\"", &["no status"]),
    ("unavailable = «\"HTTP/1.1 100 Go\\r\\nContent-Length: 0\\r\\n\\r\\n\"", &["no status"]),
    ("unavailable = «\"HTTP/1.1 +50 Go\\r\\nContent-Length: 0\\r\\n\\r\\n\"", &["no status"]),
    ("unavailable = «\"HTTP/1.1 204 No\\r\\nContent-Length: 4\\r\\n\\r\\nbusy\"", &["status 204"]),
    (
        "unavailable = «\"HTTP/1.1 503 No\\r\\nContent-Length 0\\r\\n\\r\\n\"",
        &["`Content-Length 0` where a header should be"],
    ),
    (
        "unavailable = «\"HTTP/1.1 503 No\\r\\n X: 1\\r\\nContent-Length: 0\\r\\n\\r\\n\"",
        &["where a header should be"],
    ),
    (
        "unavailable = «\"HTTP/1.1 503 No\\r\\nX: 1\\nY: 2\\r\\nContent-Length: 0\\r\\n\\r\\n\"",
        &["where a header should be"],
    ),
    // Master.
    ("[master]\n«generatons = 3", &["unknown key `generatons` in `[master]`", "`generations`"]),
    ("[master]\n«workers = 3", &["belongs into a pool"]),
    ("[master]\ncontrol-mode = «\"0888\"", &["`control-mode` cannot be `0888`", "octal"]),
    ("[master]\ncontrol-mode = «\"1777\"", &["\"0777\""]),
    ("[master]\ncontrol-mode = «\"+660\"", &["octal"]),
    ("[master]\ncontrol-mode = «\"rw-rw----\"", &["octal"]),
    ("[master]\ncontrol-mode = «0o660", &["is a number, but a text of octal digits"]),
    ("[master]\ncontrol-mode = «\"77777777777777777777\"", &["octal"]),
    ("[master]\ncontrol-group = «\"\"", &["empty text"]),
    ("[master]\nidle-exit = «\"banana\"", &["which is no time", "\"never\""]),
    ("[master]\nidle-exit = «\"2days\"", &["`idle-exit` cannot be `2days`", "from 10ms to 1day"]),
    (
        "[master]\norphan-timeout = «\"2days\"",
        &["`orphan-timeout` cannot be `2days`", "from 10ms to 1day"],
    ),
    ("[master]\nidle-exit = «0", &["`idle-exit` cannot be `0`", "from 10ms to 1day"]),
    (
        "[master]\nlog = «\"syslog\"",
        &["`log` cannot be `syslog`", "write `fields`, `stream` or `inherit`"],
    ),
];

pub(crate) fn by_hand(world: &mut World) {
    for (lines, said) in IN_POOL {
        world.refuse(&format!("{POOL}{lines}\n"), said);
    }
    let long = format!("{POOL}unavailable = «\"{}\"\n", "x".repeat(8193));
    world.refuse(&long, &["`unavailable` has 8193 bytes", "at most 8192"]);
    let long = format!("{POOL}listen = [\"80\"]\nprobe = «\"/{}\"\n", "x".repeat(4096));
    world.refuse(&long, &["`probe` has 4097 bytes", "at most 4096"]);
    let long = format!("{POOL}listen = [«\"/{}\"]\n", "x".repeat(107));
    world.refuse(&long, &["has 108 bytes", "at most 107"]);
    let long = format!("{POOL}listen = [«\"{}\"]\n", "x".repeat(256));
    world.refuse(&long, &["a listen entry of 256 bytes", "1 to 255"]);
    let many: Vec<String> = (0..65).map(|port| format!("\"{}\"", 9000 + port)).collect();
    let many = format!("{POOL}listen = «[{}]\n", many.join(", "));
    world.refuse(&many, &["`listen` has 65 entries", "at most 64"]);
}
