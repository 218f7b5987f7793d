//! What can be typed.

use crate::support::run;

const VERBS: [&str; 9] =
    ["run", "demo", "check", "reload", "status", "scale", "stop", "upgrade", "hello"];

#[test]
fn wrong_usage_is_exit_code_2() {
    for typed in [
        "",
        "reloda",
        "--nonsense",
        "run --listen 8080",
        "run --listen localhost:80 -- app",
        "run --workers 0 -- app",
        "run --workers many -- app",
        "run --config f -- app",
        "run --config f --listen 8080 -- app",
        "run app",
        "demo 1",
        "demo-worker",
        "check a b",
        "check --json",
        "reload --wait",
        "reload -i a --control b",
        "reload -i ../a",
        "status a b",
        "status --watch --json",
        "scale",
        "scale web",
        "scale web 0",
        "scale web 1025",
        "scale web -1",
        "scale web auto",
        "stop now",
        "upgrade now",
        "hello you",
    ] {
        let ran = run(typed, &[]);
        assert_eq!(ran.code, 2, "{typed}: {ran:?}");
        assert_eq!(ran.out, "", "{typed}");
        assert!(ran.err.contains("--help"), "{typed}: {ran:?}");
    }
    assert!(run("reloda", &[]).err.contains("'reload'"));
}

#[test]
fn help_names_every_verb_and_every_verb_has_help() {
    let help = run("--help", &[]);
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    for verb in VERBS {
        assert!(help.out.contains(&format!("\n  {verb} ")), "{verb}: {}", help.out);
        let of_verb = run(&format!("{verb} --help"), &[]);
        assert_eq!(of_verb.code, 0);
        assert!(of_verb.out.contains("Example"), "{verb}: {}", of_verb.out);
        assert!(of_verb.out.contains(&format!("\n  rcluster {verb}")) || verb == "hello");
        assert!(of_verb.out.lines().all(|line| line.chars().count() <= 100), "{}", of_verb.out);
    }
    assert!(!help.out.contains("demo-worker"));
    assert_eq!(run("--version", &[]).out, format!("rcluster {}\n", env!("CARGO_PKG_VERSION")));
}
