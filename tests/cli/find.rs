//! How a master is found, or not.

use std::os::unix::net::UnixListener;
use std::path::Path;

use serde_json::json;

use crate::support::{Master, answer, run};

#[test]
fn without_a_master_every_client_says_where_it_looked_and_what_to_do() {
    let here = tempfile::tempdir().unwrap();
    let control = here.path().join("control");
    for verb in ["reload", "status", "scale web 3", "stop", "upgrade"] {
        let expected = format!(
            "no rcluster is running here (tried {}); start it with `systemctl start rcluster` or \
             `rcluster run`\n",
            control.display()
        );
        let by_option = run(&format!("{verb} --control {}", control.display()), &[]);
        let by_environment = run(verb, &[("RCLUSTER_CONTROL", &control)]);
        for ran in [by_option, by_environment] {
            assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{verb}: {ran:?}");
            assert_eq!(ran.err, expected, "{verb}");
        }
    }
}

#[test]
fn the_runtime_directories_are_searched_in_their_order() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let set = [("RUNTIME_DIRECTORY", one.path()), ("XDG_RUNTIME_DIR", two.path())];
    let of_user = two.path().join("rcluster");
    std::fs::create_dir(&of_user).unwrap();
    if !Path::new("/run/rcluster/control").exists() {
        let ran = run("status", &set);
        let tried = format!(
            "(tried {}, /run/rcluster/control, {})",
            one.path().join("control").display(),
            of_user.join("control").display()
        );
        assert!(ran.err.contains(&tried), "{ran:?}");

        let master = Master::at(&of_user, |stream| {
            answer(stream, &[json!({"parameters": {"summary": "the user's"}})]);
        });
        assert!(run("status", &set).out.starts_with("the user's\n"));
        master.join();
    }
    let master = Master::at(one.path(), |stream| {
        answer(stream, &[json!({"parameters": {"summary": "the service's"}})]);
    });
    assert!(run("status", &set).out.starts_with("the service's\n"));
    master.join();
}

#[test]
fn a_stale_socket_is_no_master() {
    let here = tempfile::tempdir().unwrap();
    let control = here.path().join("control");
    drop(UnixListener::bind(&control).unwrap());
    let ran = run("status", &[("RCLUSTER_CONTROL", &control)]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.starts_with("no rcluster is running here (tried "), "{ran:?}");
}
