//! What can be wrong around the text: files, directories, several files against each other.

use std::fs;

use rcluster::config::{Problem, load};

use crate::world::{POOL, World, name};

/// Refuses what is written in several files, at these places, and says so.
fn refuse(world: &mut World, files: &[(&str, &str)], expected: &[(&str, usize, usize, &str)]) {
    world.clear();
    let mut id = String::new();
    for (file, text) in files {
        world.write(file, text);
        id.push_str(&format!("{file}\n{text}"));
    }
    let problems = world.refuse_files(&id, id.as_bytes());
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), expected.len(), "{id}\n{told:#?}");
    for (problem, (file, line, column, said)) in problems.iter().zip(expected) {
        assert_eq!(name(&problem.file), *file, "{problem}");
        assert_eq!((problem.line, problem.column), (*line, *column), "{problem}");
        assert!(problem.to_string().contains(said), "{problem}\nlacks {said}");
    }
    world.clear();
}

pub(crate) fn around_the_text(world: &mut World) {
    files_against_each_other(world);
    several_files(world);
    environment_files(world);
    not_text(world);
}

/// What one file says again.
fn files_against_each_other(world: &mut World) {
    let api = "[pool.api]\ncommand = [\"x\"]\n";
    refuse(
        world,
        &[("rcluster.toml", POOL), ("conf.d/a.toml", POOL)],
        &[("a.toml", 1, 7, "pool `web` is already defined at")],
    );
    refuse(
        world,
        &[("rcluster.toml", ""), ("conf.d/b.toml", POOL), ("conf.d/a.toml", POOL)],
        &[("b.toml", 1, 7, "a.toml:1; keep one of the two")],
    );
    let master = "[master]\ngenerations = 2\n";
    refuse(
        world,
        &[("rcluster.toml", &format!("{POOL}{master}")), ("conf.d/a.toml", master)],
        &[("a.toml", 2, 1, "`generations` of the master is already set at")],
    );
    refuse(
        world,
        &[
            ("rcluster.toml", &format!("{POOL}listen = [\"80\"]\n")),
            ("conf.d/a.toml", &format!("{api}listen = [\"web\", \"0.0.0.0:80\"]\n")),
        ],
        &[("a.toml", 3, 18, "`0.0.0.0:80` is the same as `80` of pool `web` at")],
    );
}

/// What is wrong in each of several files, or with one of them.
fn several_files(world: &mut World) {
    refuse(
        world,
        &[
            ("rcluster.toml", "worker = 1\n[pool.web]\n"),
            ("conf.d/a.toml", "a = \n"),
            ("conf.d/b.toml", "[pool.b]\ncommand = []\n"),
        ],
        &[
            ("rcluster.toml", 1, 1, "unknown key `worker`"),
            ("rcluster.toml", 2, 7, "pool `web` has no command"),
            ("a.toml", 1, 5, "a value is missing"),
            ("b.toml", 2, 11, "`command` is empty"),
        ],
    );
    refuse(
        world,
        &[("rcluster.toml", ""), ("conf.d/a.toml", "[master]\n")],
        &[("rcluster.toml", 1, 1, "there is no pool")],
    );
    refuse(
        world,
        &[("rcluster.toml", POOL), ("conf.d/a.toml/x", "")],
        &[("a.toml", 1, 1, "is a directory")],
    );
    refuse(
        world,
        &[("rcluster.toml", POOL), ("conf.d", "")],
        &[("conf.d", 1, 1, "make it a readable directory")],
    );
    world.write("rcluster.toml", POOL);
    fs::create_dir(world.path("conf.d")).unwrap();
    std::os::unix::fs::symlink("nowhere", world.path("conf.d/z.toml")).unwrap();
    let problems = world.refuse_files("dangling link", b"dangling link");
    assert!(problems[0].message.contains("does not exist"));
    world.clear();
    let many: String = (0..257).map(|i| format!("[pool.p{i}]\ncommand = [\"x\"]\n")).collect();
    let problems = world.refuse_bytes(many.as_bytes());
    assert!(problems[0].to_string().contains("there are 257 pools; write at most 256"));
    assert_eq!((problems[0].line, problems[0].column), (513, 7));
    world.clear();
}

fn environment_files(world: &mut World) {
    let text = &format!("{POOL}environment-file = [\"web.env\"]\n");
    for (lines, line, column, said) in [
        ("A=1\nnonsense\n", 2, 1, "`nonsense` is no assignment; write KEY=VALUE"),
        ("export A=1\n", 1, 1, "write A=…"),
        ("A=1\n  9B=1\n", 2, 3, "`9B` is no name of a variable"),
        ("=1\n", 1, 1, "`` is no name of a variable"),
        ("A='x\nB=2\n", 1, 3, "never closed"),
        ("A=1\nB= \"x\n", 2, 4, "never closed"),
        ("LISTEN_FDS=3\n", 1, 1, "set by rcluster itself"),
        ("RCLUSTER_X=3\n", 1, 1, "set by rcluster itself"),
        ("# é\nA=é\0\n", 2, 1, "zero byte"),
    ] {
        let files = [("rcluster.toml", text.as_str()), ("web.env", lines)];
        refuse(world, &files, &[("web.env", line, column, said)]);
    }
    world.write("rcluster.toml", text);
    world.write("web.env", b"A=1\nB=caf\xe9\n");
    let problems = world.refuse_files("env latin 1", b"env latin 1");
    assert_eq!(
        (name(&problems[0].file), problems[0].line, problems[0].column),
        ("web.env".into(), 2, 6)
    );
    world.clear();
    refuse(
        world,
        &[("rcluster.toml", text), ("web.env/x", "")],
        &[("web.env", 1, 1, "is a directory")],
    );
    let both = &format!("{POOL}environment-file = [\"-missing\", \"gone\"]\n");
    refuse(
        world,
        &[("rcluster.toml", both)],
        &[("rcluster.toml", 3, 33, "does not exist; create it, or write `-` before its path")],
    );
}

fn not_text(world: &mut World) {
    let latin = b"[pool.web]\ncommand = [\"caf\xe9\"]\n";
    let problems = world.refuse_bytes(latin);
    assert_eq!((problems[0].line, problems[0].column), (2, 16));
    assert!(problems[0].to_string().contains("not UTF-8 text: byte 0xe9; save the file as UTF-8"));
    let utf16: Vec<u8> = "\u{feff}[pool.web]".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let problems = world.refuse_bytes(&utf16);
    assert_eq!((problems[0].line, problems[0].column), (1, 1));
    let large = format!("{POOL}# {}\n", "x".repeat(1 << 20));
    one(&world.refuse_bytes(large.as_bytes()), "is larger than 1 MiB");
    world.clear();
    one(&world.refuse_files("missing", b"missing"), "does not exist");
    fs::create_dir(world.main()).unwrap();
    one(&world.refuse_files("directory", b"directory"), "is a directory");
    world.clear();
    let socket = std::os::unix::net::UnixListener::bind(world.main()).unwrap();
    one(&world.refuse_files("socket", b"socket"), "is not a regular file");
    drop(socket);
    world.clear();
    for path in ["", "/", ".", "/dev/null", "/dev/zero", "a\0b"] {
        let problems = load(path.as_ref()).unwrap_err().0;
        one(&problems, "the configuration");
    }
}

/// One problem, at the very beginning.
fn one(problems: &[Problem], said: &str) {
    assert_eq!(problems.len(), 1, "{problems:?}");
    let problem = &problems[0];
    assert_eq!((problem.line, problem.column), (1, 1), "{problem}");
    assert!(problem.message.contains(said), "{problem}");
    assert!(problem.remedy.is_some());
}
