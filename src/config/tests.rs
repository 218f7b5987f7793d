//! Promises of the configuration as a value. What files do is in `tests/config.rs`.

use super::*;
use crate::supervisor::Accept;

fn pool(name: &str) -> Pool {
    Pool::new(name, vec!["x".to_owned()])
}

#[test]
fn a_command_line_becomes_a_pool_named_after_its_program() {
    let listen = vec!["8080".parse().unwrap()];
    let command = vec!["/srv/my app".to_owned(), "--flag".to_owned()];
    let pool = Pool::from_command(listen, Workers::Count(3), None, None, command).unwrap();
    assert_eq!(pool.name, "my-app");
    assert_eq!(pool.policy.name, "my-app");
    assert_eq!(pool.policy.workers, 3);
    assert_eq!(pool.listen[0].address, Some(Address::Port(8080)));
    let command = || vec!["app".to_owned()];
    let of = |kind| Pool::from_command(Vec::new(), Workers::Auto, Some(kind), None, command());
    let pool = of(Kind::Inherit).unwrap();
    assert_eq!(pool.policy.accept, Accept::Workers);
    let pool = of(Kind::Node).unwrap();
    assert_eq!((pool.policy.window, pool.manner.first_byte), (1, true));
}

#[test]
fn a_command_line_without_sense_is_refused_in_a_sentence() {
    let refused = |listen: &[&str], command: &[&str]| {
        let listen = listen.iter().map(|text| text.parse().unwrap()).collect();
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let pool = Pool::from_command(listen, Workers::Auto, None, None, command);
        pool.unwrap_err().to_string()
    };
    assert!(refused(&[], &[]).contains("there is no command"));
    assert!(refused(&[], &[""]).contains("there is no command"));
    assert!(refused(&[], &["a\0"]).contains("zero byte"));
    assert!(refused(&["80", "0.0.0.0:80"], &["a"]).contains("same address"));
}

#[test]
fn words_of_the_command_line_are_those_of_the_file() {
    assert_eq!("auto".parse(), Ok(Workers::Auto));
    assert_eq!("1024".parse(), Ok(Workers::Count(1024)));
    for text in ["0", "1025", "-1", "many", ""] {
        assert!(Workers::from_str(text).is_err(), "{text}");
    }
    assert_eq!("native".parse(), Ok(Kind::Native));
    for kind in [Kind::Native, Kind::Node, Kind::Ipc, Kind::Inherit] {
        assert_eq!(kind.word().parse(), Ok(kind));
    }
    let refused = |word: &str| Kind::from_str(word).unwrap_err().to_string();
    assert_eq!(refused("inherits"), "there is no kind `inherits`; did you mean `inherit`?");
    assert!(refused("rust").ends_with("write `native`, `node`, `ipc` or `inherit`"));
}

#[test]
fn a_change_of_workers_alone_is_seen() {
    let one = Config { pools: vec![pool("a"), pool("b")], ..Config::of_pools(vec![pool("a")]) };
    let mut two = one.clone();
    assert!(!one.differs_only_in_workers(&two));
    two.pools[1].policy.workers += 1;
    two.pools.reverse();
    two.files = vec![PathBuf::from("x")];
    assert!(one.differs_only_in_workers(&two));
    let mut three = two.clone();
    three.pools[0].command.push("y".to_owned());
    assert!(!one.differs_only_in_workers(&three));
    let mut three = two.clone();
    three.master.generations += 1;
    assert!(!one.differs_only_in_workers(&three));
    let mut three = two.clone();
    three.pools.push(pool("c"));
    assert!(!one.differs_only_in_workers(&three));
    assert!(!three.differs_only_in_workers(&one));
}
