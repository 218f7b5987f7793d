//! Mistakes that follow from the list of keys.

use crate::good::EXAMPLE;
use crate::world::{POOL, World};

/// Every key of `[master]` with values of the right types.
const MASTER: &[(&str, &[&str])] = &[
    ("idle-exit", &["text", "number"]),
    ("log", &["text"]),
    ("generations", &["number"]),
    ("orphan-timeout", &["number", "text"]),
    ("control-mode", &["text"]),
    ("control-group", &["text"]),
];

/// Every key of `[pool.NAME]` with its right types.
const KEYS: &[(&str, &[&str])] = &[
    ("command", &["list"]),
    ("listen", &["list"]),
    ("kind", &["text"]),
    ("preset", &["text"]),
    ("workers", &["number", "text"]),
    ("accept", &["text"]),
    ("balance", &["text"]),
    ("working-directory", &["text"]),
    ("user", &["text"]),
    ("group", &["text"]),
    ("supplementary-groups", &["list"]),
    ("environment", &["table"]),
    ("environment-file", &["list"]),
    ("clear-environment", &["truth"]),
    ("start-timeout", &["text", "number"]),
    ("drain-timeout", &["text", "number"]),
    ("watchdog", &["text", "number"]),
    ("max-connections", &["number"]),
    ("max-requests", &["number"]),
    ("restart-limit", &["number"]),
    ("restart-window", &["text", "number"]),
    ("surge", &["number"]),
    ("canary", &["text", "number"]),
    ("probe", &["text", "table"]),
    ("probe-timeout", &["text", "number"]),
    ("unavailable", &["text"]),
    ("unavailable-after", &["text", "number"]),
    ("crash-ledger", &["truth"]),
    ("map", &["table"]),
    ("drain-preload", &["truth"]),
    ("first-byte", &["truth"]),
    ("dialect", &["text"]),
    ("stop-signal", &["text"]),
    ("blocking", &["truth"]),
    ("ready", &["text"]),
    ("settle", &["text", "number"]),
    ("nice", &["number"]),
    ("rlimits", &["table"]),
    ("umask", &["text"]),
    ("oom-score-adjust", &["number"]),
    ("no-new-privileges", &["truth"]),
];

const VALUES: &[(&str, &str)] = &[
    ("text", "\"x\""),
    ("number", "5"),
    ("fraction", "1.5"),
    ("truth", "true"),
    ("date", "1979-05-27"),
    ("list", "[]"),
    ("table", "{}"),
];

/// All keys, each with the text that comes before a line with it.
fn all() -> impl Iterator<Item = (&'static str, &'static [&'static str], String)> {
    let master = MASTER.iter().map(|(key, types)| (*key, *types, format!("{POOL}[master]\n")));
    let pool = KEYS.iter().map(|(key, types)| (*key, *types, above(key)));
    master.chain(pool)
}

/// The shortest pool in which a key is missing, and means something.
fn above(key: &str) -> String {
    let kind = match key {
        "command" => return "[pool.web]\n".to_owned(),
        "map" | "drain-preload" | "first-byte" => "kind = \"node\"\n",
        "dialect" => "kind = \"ipc\"\n",
        "stop-signal" | "blocking" | "ready" | "settle" => "kind = \"inherit\"\n",
        _ => "",
    };
    format!("{POOL}{kind}")
}

/// Every slip of a finger in every key is answered with the right key.
pub(crate) fn typos(world: &mut World) {
    for (key, _, above) in all() {
        let above = if key == "command" { POOL } else { &above };
        let middle = key.len() / 2;
        let (start, end) = key.split_at(middle);
        let swapped: String = {
            let mut letters: Vec<char> = key.chars().collect();
            letters.swap(middle - 1, middle);
            letters.into_iter().collect()
        };
        let slips = [
            format!("{start}{}", &end[1..]),
            format!("{start}z{end}"),
            format!("{key}s"),
            key.to_uppercase(),
            key.replace('-', "_"),
            swapped,
        ];
        for slip in slips {
            let is_key = |known: &&(&str, _)| -> bool { known.0 == slip };
            if KEYS.iter().any(|k| is_key(&k)) || MASTER.iter().any(|k| is_key(&k)) {
                continue;
            }
            let right = format!("did you mean `{key}`?");
            world.refuse(&format!("{above}«{slip} = 1\n"), &["unknown key", &right]);
        }
    }
}

/// Every key refuses every type that is not its own, and shows what is right.
pub(crate) fn wrong_types(world: &mut World) {
    for (key, types, above) in all() {
        for (name, value) in VALUES {
            if types.contains(name) {
                continue;
            }
            let said = [&format!("`{key}` is "), "is expected; write for example"];
            let text = format!("{above}{key} = «{value}\n");
            world.refuse(&text, &said);
        }
    }
}

/// Every number refuses what is below and above its range.
pub(crate) fn out_of_range(world: &mut World) {
    let numbers = [
        ("workers", &["0", "1025"][..]),
        ("max-connections", &["1_000_001"]),
        ("max-requests", &["1_000_000_000_001"]),
        ("restart-limit", &["0", "1001"]),
        ("surge", &["0", "1025"]),
        ("nice", &["20", "-21"]),
        ("oom-score-adjust", &["1001", "-1001"]),
    ];
    for (key, values) in numbers {
        let far = ["-1", "9223372036854775807", "-9223372036854775808"];
        // Some are numbers below zero.
        let skipped = usize::from(values.iter().any(|value| value.starts_with('-')));
        for value in values.iter().chain(&far[skipped..]) {
            let said = [&format!("`{key}` cannot be"), "write a number from"];
            world.refuse(&format!("{POOL}{key} = «{value}\n"), &said);
        }
    }
    for value in ["0", "65", "-3"] {
        let text = format!("{POOL}[master]\ngenerations = «{value}\n");
        world.refuse(&text, &["`generations` cannot be", "from 1 to 64"]);
    }
}

/// Every time refuses what is below and above its range, and what is none.
pub(crate) fn no_such_times(world: &mut World) {
    let times = [
        "start-timeout",
        "drain-timeout",
        "watchdog",
        "restart-window",
        "probe-timeout",
        "unavailable-after",
        "settle",
    ];
    let wrong = [
        "0",
        "\"0\"",
        "\"0s\"",
        "\"9ms\"",
        "\"1ns\"",
        "\"25h\"",
        "86401",
        "\"1M\"",
        "-1",
        "\"-1s\"",
        "\"banana\"",
        "\"5 parsecs\"",
        "\"1e3\"",
        "99999999999999999999",
        "\"99999999999999999999y\"",
    ];
    for key in times {
        let answer = match key {
            "unavailable-after" => "unavailable = \"busy\"\n",
            "settle" => "kind = \"inherit\"\n",
            _ => "",
        };
        for value in wrong {
            let said = [&format!("`{key}` "), "write a time from 10ms to"];
            world.refuse(&format!("{POOL}{answer}{key} = «{value}\n"), &said);
        }
    }
}

/// A text that says something cannot be empty.
pub(crate) fn empty_texts(world: &mut World) {
    let directory = "write for example";
    for key in ["working-directory", "user", "unavailable", "kind"] {
        world.refuse(&format!("{POOL}{key} = «\"\" # {key}\n"), &["empty text", directory]);
    }
}

/// A key written twice is told at the second.
pub(crate) fn written_twice(world: &mut World) {
    for (key, types, above) in all() {
        let value = match key {
            "command" => "[\"x\"]",
            "kind" => "\"native\"",
            "accept" => "\"master\"",
            "dialect" => "\"plain\"",
            "preset" => "\"go\"",
            "stop-signal" => "\"TERM\"",
            "ready" => "\"settle\"",
            "umask" => "\"0027\"",
            "balance" => "\"round-robin\"",
            "log" => "\"inherit\"",
            "idle-exit" => "\"never\"",
            "control-mode" => "\"0600\"",
            "workers" => "2",
            // They need others.
            "unavailable-after" | "probe" | "probe-timeout" => continue,
            _ if types.contains(&"number") => "7",
            _ => VALUES.iter().find(|(name, _)| types.contains(name)).unwrap().1,
        };
        let text = format!("{above}{key} = {value}\n«{key} = {value}\n");
        world.refuse(&text, &[&format!("`{key}` is written a second time"), "keep one"]);
    }
}

/// No text of any key takes a zero byte.
pub(crate) fn zero_bytes(world: &mut World) {
    for (key, types, above) in all() {
        let value = "«\"a\\u0000b\"";
        match key {
            "workers" => {}
            _ if types.contains(&"list") => {
                world.refuse(&format!("{above}{key} = [{value}] # zero\n"), &["zero byte"]);
            }
            _ if types == ["text"] => {
                world.refuse(&format!("{above}{key} = {value}\n"), &["zero byte"]);
            }
            _ => {}
        }
    }
}

/// Every key that some kinds lack is refused there, with the reason.
pub(crate) fn of_other_kinds(world: &mut World) {
    let all = ["native", "node", "ipc", "inherit"];
    let cases: &[(&str, &[&str])] = &[
        ("map = {}", &["node"]),
        ("drain-preload = false", &["node"]),
        ("first-byte = true", &["node", "ipc"]),
        ("dialect = \"plain\"", &["ipc"]),
        ("stop-signal = \"SIGTERM\"", &["inherit"]),
        ("blocking = false", &["inherit"]),
        ("ready = \"settle\"", &["inherit"]),
        ("settle = 1", &["ipc", "inherit"]),
        ("crash-ledger = false", &["native"]),
        ("max-requests = 0", &["native"]),
        ("probe = \"/\"", &["native"]),
        ("max-connections = 5", &["native", "ipc"]),
        ("balance = \"round-robin\"", &["native", "node", "ipc"]),
        ("unavailable = \"wait\"", &["native", "node", "ipc"]),
        ("watchdog = 5", &all),
    ];
    for (line, kinds) in cases {
        let key = line.split(' ').next().unwrap();
        for kind in all {
            let text = format!("{POOL}listen = [\"80\"]\nkind = \"{kind}\"\n");
            if kinds.contains(&kind) {
                world.accept(&format!("{text}{line}\n"));
                continue;
            }
            let said = [&format!("`{key}` has no meaning"), "remove it"];
            world.refuse(&format!("{text}«{line}\n"), &said);
        }
    }
}

/// A file that ends in the middle of a line.
pub(crate) fn cut_off(world: &mut World) {
    for (index, _) in EXAMPLE.match_indices(" = ") {
        let start = EXAMPLE[..index].rfind('\n').map_or(0, |at| at + 1);
        if EXAMPLE[start..index].contains(['{', '"', '#']) {
            continue;
        }
        world.refuse(&format!("{}«", &EXAMPLE[..index + 2]), &["a value is missing"]);
        let (cut, missing) = (&EXAMPLE[..index], "a key without a value");
        world.refuse(&format!("{cut}«"), &[missing]);
    }
}
