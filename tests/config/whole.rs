//! Whole files: with one mistake, with several, and such as are no TOML. `«` stands where a problem
//! must point.

use crate::world::{POOL, World};

/// Whole files with one mistake each.
const WHOLE: &[(&str, &[&str])] = &[
    ("«", &["there is no pool", "[pool.web]"]),
    ("«# only a comment\n", &["there is no pool"]),
    ("«[master]\n", &["there is no pool"]),
    ("«[pool]\n", &["there is no pool"]),
    ("«pool = 3\n", &["`pool` is no table of pools"]),
    ("[[«pool]]\ncommand = [\"x\"]\n", &["`pool` is no table of pools"]),
    ("«master = true\n[pool.web]\ncommand = [\"x\"]\n", &["`master` is no table"]),
    ("[pool]\n«web = [\"x\"]\n", &["outside of every pool"]),
    ("«workers = 3\n[pool.web]\ncommand = [\"x\"]\n", &["belongs into a pool"]),
    ("\u{feff}«worker = 3\n[pool.web]\ncommand = [\"x\"]\n", &["unknown key `worker`"]),
    ("[pool.web]\r\ncommand = [\"x\"]\r\n«worker = 3\r\n", &["unknown key `worker`"]),
    ("[pool.web]\ncommand = [\"é\", «3]\n", &["is a number, but text"]),
    ("pool = { web = { command = [\"x\"], «worker = 3 } }\n", &["unknown key `worker`"]),
    ("pool.web.command = [\"x\"]\npool.web.«worker = 3\n", &["unknown key `worker`"]),
];

pub(crate) fn one_each(world: &mut World) {
    for (text, said) in WHOLE {
        world.refuse(text, said);
    }
}

/// All the mistakes of a file are told at once, in the order of reading.
pub(crate) fn several_at_once(world: &mut World) {
    world.refuse(
        "[master]\ncontrol-mode = «\"9\"\n«wrokers = 2\n\n[pool.web]\ncommand = [\"x\", «3, «4]\n\
         listen = [«\"localhost:80\", \"80\", «\"99999\"]\nworkers = «0\nuser = «true\n\
         environment = { «A-B = «1, LC = \"x\" }\numask = «3\nkind = «\"nod\"\n\n[pool.««\"a b\"]\n",
        &["`control-mode`"],
    );
    world.refuse(
        "[pool.web]\ncommand = [\"x\"]\n«command = [\"y\"]\n«worker = 3\n",
        &["`command` is written a second time", "keep one of the two"],
    );
    // One mistake makes no second one of what depends on it.
    world.refuse(
        &format!("{POOL}unavailable = «5\nunavailable-after = «0\n"),
        &["`unavailable` is a number"],
    );
    world.refuse(
        &format!("{POOL}unavailable = «5\nunavailable-after = 5\n"),
        &["`unavailable` is a number"],
    );
    let mut many = POOL.to_owned();
    for index in 0..150 {
        many.push_str(&format!("q{index} = 1\n"));
    }
    let problems = world.refuse_bytes(many.as_bytes());
    assert_eq!(problems.len(), 101);
    assert!(problems[100].message.contains("50 more mistakes are not shown"));
}

/// What is no TOML.
pub(crate) fn syntax(world: &mut World) {
    let cases: &[(&str, &[&str])] = &[
        ("user = «www-data", &["is no value", "quotes"]),
        ("clear-environment = «True", &["`True` is no value", "true or false"]),
        ("user =«", &["a value is missing"]),
        ("user = «\n", &["a value is missing"]),
        ("user «\"x\"", &["a key without a value"]),
        ("garbage here", &[]),
        ("«= 3", &["no TOML"]),
        ("[pool.api«", &["unclosed table"]),
        ("user = \"www-data«", &["no TOML"]),
        ("user = 'www-data«", &["no TOML"]),
        ("listen = [\"80\"«", &["list as [\"one\", \"two\"]"]),
        ("listen = [\"80\" «\"81\"]", &["list as [\"one\", \"two\"]"]),
        ("workers = «012", &["no TOML"]),
        ("working-directory = \"C:\\«qdir\"", &["a backslash begins no escape", "single quotes"]),
        ("environment = { A = \"b\"«", &["no TOML"]),
        ("«é = 1", &["no TOML"]),
        ("workers = 3 surge = 2", &[]),
        ("[pool.«web]\nworkers = 3", &["`web` is written a second time"]),
        ("workers = 2\n«workers = 3", &["`workers` is written a second time"]),
        ("workers: 3", &[]),
        ("{\"pool\": {}}", &[]),
        ("<pool name=\"web\"/>", &[]),
        ("pool:\n  web:\n    command: x", &[]),
        ("]", &[]),
        ("[pool.api]]", &[]),
        ("\u{1}", &[]),
        ("user = \"a\u{1}\"", &[]),
    ];
    for (lines, said) in cases {
        let text = format!("{POOL}{lines}");
        if lines.contains('«') {
            world.refuse(&text, said);
        } else {
            let problems = world.refuse_bytes(text.as_bytes());
            assert_eq!(problems[0].line, 3, "{text}");
        }
    }
}
