//! A generation stays what it was, whatever becomes of its files.

use super::*;
use crate::config::Kind;
use std::os::unix::fs::symlink;

fn script(path: &Path, text: &str) {
    // Written beside and renamed: a new file each time, as a deploy does it. And by another process:
    // a descriptor that is open for writing while a test beside this one forks would make the
    // program busy (ETXTBSY).
    let new = path.with_extension("new");
    shell("printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"", &[text, new.to_str().unwrap()]);
    std::fs::rename(new, path).unwrap();
}

fn shell(script: &str, arguments: &[&str]) {
    let status = Command::new("sh").arg("-c").arg(script).arg("sh").args(arguments).status();
    assert!(status.unwrap().success(), "{script}");
}

fn run(pinned: &Pinned) -> String {
    use std::os::unix::process::CommandExt;
    let Invocation { mut command, name, keep: prepared, hold: _hold } =
        pinned.invocation().unwrap();
    command.arg0(name);
    #[expect(unsafe_code, reason = "tests stand in for sys/process.rs")]
    // SAFETY: clears close-on-exec of descriptors that live until the child has run.
    unsafe {
        let numbers: Vec<i32> = prepared.iter().map(number_of).collect();
        command.pre_exec(move || {
            for &number in &numbers {
                libc::fcntl(number, libc::F_SETFD, 0);
            }
            Ok(())
        });
    }
    let directory = pinned.directory().unwrap();
    if let Some(directory) = &directory {
        command.current_dir(format!("/proc/self/fd/{}", number_of(directory)));
    }
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

fn pool(command: &[&str]) -> Pool {
    Pool::new("test", command.iter().map(|&word| word.to_owned()).collect())
}

#[test]
fn a_replaced_script_still_runs_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app");
    script(&path, "#!/bin/sh\necho old \"$1\"\n");
    let pinned = Pinned::new(&pool(&[path.to_str().unwrap(), "x"])).unwrap();
    assert_eq!(run(&pinned), "old x\n");
    script(&path, "#!/bin/sh\necho new\n");
    assert_eq!(run(&pinned), "old x\n");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(run(&pinned), "old x\n");
    assert_eq!(pinned.overwritten(), None);
}

#[test]
fn a_release_symlink_holds_where_it_pointed() {
    let folder = tempfile::tempdir().unwrap();
    for release in ["1", "2"] {
        let folder = folder.path().join(release);
        std::fs::create_dir(&folder).unwrap();
        script(&folder.join("app"), "#!/bin/sh\necho $(basename $(pwd -P)) $1\n");
    }
    let current = folder.path().join("current");
    symlink(folder.path().join("1"), &current).unwrap();
    let argument = current.join("app");
    let mut pool = pool(&["./app", argument.to_str().unwrap()]);
    pool.working_directory = Some(current.clone());
    let pinned = Pinned::new(&pool).unwrap();
    std::fs::remove_file(&current).unwrap();
    symlink(folder.path().join("2"), &current).unwrap();
    let real = folder.path().canonicalize().unwrap().join("1/app");
    assert_eq!(run(&pinned), format!("1 {}\n", real.display()));
}

#[test]
fn a_replaced_binary_still_runs_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tool");
    shell("cp /bin/echo \"$1\"", &[path.to_str().unwrap()]);
    let pinned = Pinned::new(&pool(&[path.to_str().unwrap(), "still here"])).unwrap();
    script(&path, "#!/bin/sh\necho new\n");
    assert_eq!(run(&pinned), "still here\n");
}

#[test]
fn overwriting_in_place_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app");
    script(&path, "#!/bin/sh\necho old\n");
    let pinned = Pinned::new(&pool(&[path.to_str().unwrap()])).unwrap();
    std::fs::write(&path, "#!/bin/sh\necho newer\n").unwrap();
    assert!(pinned.overwritten().unwrap().ends_with("/app was overwritten in place"));
}

#[test]
fn a_source_that_an_argument_names_is_noticed_too() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("server.js", "1");
    write("data.db", "1");
    let mut pool = pool(&["node", "--x", "server.js", "data.db", "gone.js"]);
    pool.working_directory = Some(folder.clone());
    let pinned = Pinned::new(&pool).unwrap();
    assert_eq!(pinned.overwritten(), None);
    write("data.db", "more");
    assert_eq!(pinned.overwritten(), None, "data may change");
    let other = Pinned::new(&pool).unwrap();
    write("server.js", "another");
    let said = format!("{}/server.js is not what it was", folder.display());
    assert_eq!(pinned.overwritten().as_deref(), Some(said.as_str()));
    assert!(!Pinned::new(&pool).unwrap().is_same(&other), "a reload is due");
}

#[test]
fn a_command_that_cannot_become_a_worker_is_refused_before_anything_rolls() {
    let mut pool = pool(&["npm", "start"]);
    pool.manner.kind = Kind::Node;
    let refusal = "`npm start` would be taken for the application that it starts";
    assert!(Pinned::new(&pool).unwrap_err().starts_with(refusal));
}

#[test]
fn what_cannot_run_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app");
    let why = |words: &[&str]| Pinned::new(&pool(words)).unwrap().invocation().err().unwrap();
    let name = path.to_str().unwrap();
    assert!(why(&[name]).contains("does not exist; install it, or mend the path"));
    std::fs::write(&path, "x").unwrap();
    assert!(why(&[name]).contains("is not executable; make it executable with chmod +x"));
    script(&path, "#!/no/such/shell\n");
    let refusal =
        format!("the interpreter /no/such/shell of {name} cannot be opened: no such file");
    assert!(why(&[name]).starts_with(&refusal), "{}", why(&[name]));
    assert!(why(&["no-such-program-anywhere"]).contains("in PATH"));
}

#[test]
fn the_masters_own_variables_never_leak() {
    let mut pool = pool(&["true"]);
    pool.environment.insert("NODE_ENV".into(), "production".into());
    pool.clear_environment = true;
    let only = vec![("NODE_ENV".into(), "production".into())];
    assert_eq!(environment(&pool), only);
}
