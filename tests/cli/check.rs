//! `rcluster check`.

use crate::support::run;

#[test]
fn a_good_configuration_is_ok() {
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("a.toml");
    std::fs::write(&file, "[pool.web]\ncommand = [\"/bin/sh\"]\nlisten = [\"8080\"]\n").unwrap();
    let verdict = format!("{}: ok, 1 pool\n", file.display());

    let ran = run(&format!("check {}", file.display()), &[]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, verdict.as_str(), ""));

    let ran = run(&format!("check --explain {}", file.display()), &[]);
    assert_eq!((ran.code, ran.err.as_str()), (0, verdict.as_str()), "{ran:?}");
    assert!(ran.out.contains("[pool.web]") && ran.out.contains("drain-timeout"), "{}", ran.out);
    std::fs::write(&file, &ran.out).unwrap();
    assert_eq!(run(&format!("check {}", file.display()), &[]).code, 0);
}

#[test]
fn every_mistake_is_told_at_once_and_counted() {
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("a.toml");
    std::fs::write(&file, "[pool.web]\ncomand = [\"/bin/sh\"]\nworkers = 0\n").unwrap();
    let ran = run(&format!("check {}", file.display()), &[]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    let lines: Vec<&str> = ran.err.lines().collect();
    let (last, problems) = lines.split_last().unwrap();
    let name = file.display();
    assert!(problems.len() >= 2, "{ran:?}");
    assert!(problems.iter().all(|line| line.starts_with(&format!("{name}:"))), "{ran:?}");
    assert_eq!(*last, format!("{name}: {} problems", problems.len()));
}

#[test]
fn a_missing_program_and_a_missing_file_are_mistakes() {
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("a.toml");
    let missing = run(&format!("check {}", file.display()), &[]);
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
    assert!(missing.err.ends_with(": 1 problem\n"), "{missing:?}");

    std::fs::write(&file, "[pool.web]\ncommand = [\"/no/such/program\"]\n").unwrap();
    let ran = run(&format!("check {}", file.display()), &[]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("/no/such/program"), "{ran:?}");
}
