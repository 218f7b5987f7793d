//! What people see of a status, word for word.

use super::*;
use crate::wire::control::{LastReload, Rollout};

#[test]
fn a_page_reads_from_the_whole_to_the_workers() {
    assert_eq!(
        render(&well(), Style::default()),
        "\
2 pools serve
rcluster 0.1.0, pid 812, running, up 3d 4h
last reload 5min ago: generation 5 serves

web    serving  2 of 2 workers  generation 5  12,345 accepted = 12,300 finished + 45 in hand
       listens on 127.0.0.1:8080, @web
        PID  SLOT  GENERATION  STATE          UP  CONNECTIONS  IN HAND  REQUESTS
       1234     1           5  serving   3min 2s        1,234       12     5,102
        999     2           5  serving        4s            3        0         0

queue  serving  1 of 1 worker   generation 5  0 accepted = 0 finished + 0 in hand
        PID  SLOT  GENERATION  STATE          UP  CONNECTIONS  IN HAND  REQUESTS
         77     1           5  draining       0s            0        0         0
"
    );
}

#[test]
fn what_nobody_counts_is_not_shown_as_none() {
    let mut status = well();
    status.pools.truncate(1);
    let pool = &mut status.pools[0];
    pool.accept = "workers".into();
    pool.workers.truncate(1);
    pool.workers[0].said = "answers\nwell".into();
    assert_eq!(
        render(&status, Style::default()).lines().skip(4).collect::<Vec<_>>().join("\n"),
        "\
web  serving  2 of 2 workers  generation 5  its workers accept by themselves
     listens on 127.0.0.1:8080, @web
      PID  SLOT  GENERATION  STATE         UP  CONNECTIONS  IN HAND  REQUESTS
     1234     1           5  serving  3min 2s            -        -         -
     1234 says: answers well"
    );
}

#[test]
fn what_is_wrong_is_said_and_where_the_connections_went() {
    let mut status = well();
    status.summary = "web gave up".into();
    status.state = "rolling back".into();
    status.last_reload =
        Some(LastReload { ok: false, message: "slot 1 exited with status 203".into(), ago: 61.0 });
    status.rollout = Some(Rollout {
        generation: 6,
        done: 1,
        total: 2,
        going_back: Some("slot 1 was never ready".into()),
    });
    status.reload_waiting = true;
    status.warnings = vec!["no pool uses the socket \"old\"".into()];
    status.pools.truncate(1);
    let pool = &mut status.pools[0];
    (pool.state, pool.gave_up) = ("gave up".into(), Some("5 failed starts in a row".into()));
    (pool.generation, pool.good_generation) = (Some(6), Some(5));
    (pool.held, pool.refused, pool.cut, pool.redispatched) = (1, 2000, 3, 4);
    (pool.handed_back, pool.answered) = (7, 6);
    pool.workers = vec![Worker { slot: 1, state: "starting".into(), ..Worker::default() }];
    assert_eq!(
        render(&status, Style::default()),
        "\
web gave up
rcluster 0.1.0, pid 812, rolling back, up 3d 4h
going back: slot 1 was never ready; 1 of 2 slots are back
another reload waits for its turn
last reload failed 1min 1s ago: slot 1 exited with status 203
warning: no pool uses the socket \"old\"

web  gave up  2 of 2 workers  generation 6 (last good: 5)  12,345 accepted = 12,300 finished \
+ 45 in hand + 1 held + 2,000 refused + 3 cut, 4 of them dispatched again, 6 answered 503 for a dead worker, 7 times handed from worker to worker
     gave up: 5 failed starts in a row; `rcluster reload` tries it again
     listens on 127.0.0.1:8080, @web
     PID  SLOT  GENERATION  STATE     UP  CONNECTIONS  IN HAND  REQUESTS
       -     1           0  starting   -            0        0         0
"
    );
}

#[test]
fn colours_change_nothing_but_colours() {
    let mut status = well();
    status.pools[0].state = "gave up".into();
    status.pools[0].cut = 3;
    let coloured = render(&status, Style { is_coloured: true });
    assert!(coloured.contains("\x1b[1;31mgave up\x1b[0m"), "{coloured}");
    assert!(coloured.contains("\x1b[1;31m3 cut\x1b[0m"), "{coloured}");
    let mut bare = coloured;
    for code in ["0", "1", "2", "32", "33", "1;31"] {
        bare = bare.replace(&format!("\x1b[{code}m"), "");
    }
    let without_trailing = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.trim_end().to_owned()).collect()
    };
    let plain = render(&status, Style::default());
    assert_eq!(without_trailing(&bare), without_trailing(&plain));
}

#[test]
fn what_the_master_sends_cannot_move_the_cursor() {
    let mut status = well();
    status.summary = "a\x1b[2Jb\nc".into();
    status.pools[0].name = "x\r\ny".into();
    status.pools[0].workers[0].state = "\x07odd".into();
    status.warnings = vec!["w\n\n".into()];
    let page = render(&status, Style::default());
    assert!(page.chars().all(|c| c == '\n' || !c.is_control()), "{page:?}");
    assert_eq!(page.lines().count(), render(&well(), Style::default()).lines().count() + 1);
}

#[test]
fn an_empty_status_is_a_page_too() {
    let page = render(&Status::default(), Style::default());
    assert_eq!(page, "\nrcluster , pid 0, , up 0s\n");
}

#[test]
fn counts_can_be_read() {
    let shown = [0, 999, 1000, 12_345, 1_000_000].map(count);
    assert_eq!(shown, ["0", "999", "1,000", "12,345", "1,000,000"]);
}

#[test]
fn durations_have_two_units_at_most() {
    let shown = [0.0, 0.9, 59.0, 60.0, 3599.0, 3600.0, 3660.0, 90_061.0, 86_400.0 * 400.0];
    let shown = shown.map(duration);
    let expected = ["0s", "0s", "59s", "1min", "59min 59s", "1h", "1h 1min", "1d 1h", "400d"];
    assert_eq!(shown, expected);
    assert_eq!([-1.0, f64::NAN].map(duration), ["0s", "0s"]);
    assert!(duration(f64::INFINITY).ends_with('h'));
}

fn well() -> Status {
    let worker = |slot, pid, state: &str, up, connections, in_hand, requests| Worker {
        slot,
        pid,
        generation: 5,
        state: state.into(),
        serving_for: Some(up),
        connections,
        in_hand,
        requests,
        said: String::new(),
    };
    let web = Pool {
        name: "web".into(),
        state: "serving".into(),
        listen: vec!["127.0.0.1:8080".into(), "@web".into()],
        workers_wanted: 2,
        workers_serving: 2,
        generation: Some(5),
        good_generation: Some(5),
        accepted: 12_345,
        finished: 12_300,
        in_hand: 45,
        workers: vec![
            worker(1, 1234, "serving", 182.4, 1234, 12, 5102),
            worker(2, 999, "serving", 4.0, 3, 0, 0),
        ],
        ..Pool::default()
    };
    let queue = Pool {
        name: "queue".into(),
        state: "serving".into(),
        workers_wanted: 1,
        workers_serving: 1,
        generation: Some(5),
        workers: vec![worker(1, 77, "draining", 0.0, 0, 0, 0)],
        ..Pool::default()
    };
    Status {
        version: "0.1.0".into(),
        pid: 812,
        uptime: 3.0 * 86_400.0 + 4.0 * 3_600.0 + 100.0,
        state: "running".into(),
        summary: "2 pools serve".into(),
        last_reload: Some(LastReload {
            ok: true,
            message: "generation 5 serves".into(),
            ago: 300.0,
        }),
        pools: vec![web, queue],
        ..Status::default()
    }
}
