//! What an administrator finds in the journal: records by their fields and kinds, explained; the
//! workers' output, whole and in order, or counted where it is not.

use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::machine::Machine;
use crate::service::{
    OURS, configure, drop_in, get, install, paced, pool, reload, serve, wait_answers, web,
};

crate::scenarios!(
    records_are_found_by_field_and_kind_and_explained,
    a_hundred_thousand_lines_arrive_whole_and_in_order,
    a_stopped_journald_holds_up_no_client_and_the_gap_is_counted,
    a_stream_or_the_masters_own_output_when_that_is_wanted,
    the_last_words_of_a_killed_masters_workers_are_read_by_the_next,
    an_instance_is_known_by_its_name,
    what_journalds_socket_does_not_take_goes_by_standard_error,
);

/// A pool `web` of two demo workers, each of which runs this shell script first.
fn after(script: &str) -> String {
    let script = format!("{script}\nexec /usr/bin/rcluster demo-worker http");
    pool("web", &format!("\"/bin/sh\", \"-c\", '''{script}'''"), "")
}

/// The MESSAGE_ID of the kind whose explanation has a subject that contains this.
fn id_of(subject: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/rcluster.catalog");
    let text = std::fs::read_to_string(path).unwrap();
    let entry = text.split("\n-- ").skip(1).find(|entry| {
        let line = entry.lines().nth(1).unwrap();
        line.starts_with("Subject: ") && line.contains(subject)
    });
    entry.unwrap_or_else(|| panic!("no kind {subject}")).lines().next().unwrap().to_owned()
}

/// The numbers of the lines `line N …` that this slot has written, as the journal has them.
fn numbers(machine: &Machine, slot: u32) -> Vec<u32> {
    let matches = format!("{OURS} RCLUSTER_POOL=web RCLUSTER_SLOT={slot}");
    let text = machine.journal(&matches);
    let lines = text.lines().filter_map(|line| line.strip_prefix("line "));
    lines.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
}

/// The values of a field in the records that match.
fn values(machine: &Machine, field: &str, matches: &str) -> Vec<String> {
    let script = format!("journalctl --sync; journalctl --no-pager -o json {matches}");
    let text = machine.sh(&script).ok().text;
    let values = text.lines().filter_map(|line| {
        let record: serde_json::Value = serde_json::from_str(line).ok()?;
        record.get(field)?.as_str().map(str::to_owned)
    });
    values.collect()
}

fn records_are_found_by_field_and_kind_and_explained(machine: &Machine) {
    install(machine, &after("printf '<4>careful\\nhello\\n  and more\\n'"));
    let catalog = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/rcluster.catalog");
    machine.put(catalog, "/usr/lib/systemd/catalog/rcluster.catalog");
    machine.sh("journalctl --update-catalog && systemctl start rcluster").ok();
    for _ in 0..3 {
        reload(machine).ok();
    }
    configure(machine, &web("worker = 3"));
    reload(machine).refused();
    let rollouts = format!("{OURS} MESSAGE_ID={}", id_of("@RCLUSTER_GENERATION@ serves"));
    assert_eq!(values(machine, "RCLUSTER_GENERATION", &rollouts), ["1", "2", "3", "4"]);
    let times = values(machine, "RCLUSTER_TOOK_USEC", &rollouts);
    assert!(times.len() == 4 && times.iter().all(|it| it.parse::<u64>().unwrap() > 1000));
    let refused = format!("{OURS} MESSAGE_ID={}", id_of("A reload was refused"));
    let causes = values(machine, "RCLUSTER_CAUSE", &refused);
    assert!(causes.len() == 1 && causes[0].contains("`workers`"), "{causes:?}");

    let slot = machine.journal(&format!("{OURS} RCLUSTER_SLOT=1"));
    assert_eq!(slot.matches("careful\nhello\n  and more\n").count(), 4, "{slot}");
    assert!(slot.contains("web/1 (pid") && !slot.contains("web/2"), "{slot}");
    let words = format!("{OURS} RCLUSTER_SLOT=1 RCLUSTER_GENERATION=4 SYSLOG_IDENTIFIER=rcluster");
    let careful = values(machine, "PRIORITY", &words);
    assert_eq!(careful.iter().filter(|level| *level == "4").count(), 1, "{careful:?}");
    let pids = values(machine, "OBJECT_PID", &words);
    let said = values(machine, "SYSLOG_PID", &words);
    assert!(pids.windows(2).all(|two| two[0] == two[1]) && said.len() == 2, "{pids:?} {said:?}");
    assert_eq!(said[0], pids[0]);

    let explained = machine.sh(&format!("journalctl -x --no-pager {OURS}")).ok().text;
    for text in ["Defined-By: rcluster", "Subject: Worker web/1 is ready", "man:rcluster(8)"] {
        assert!(explained.contains(text), "no {text} in:\n{explained}");
    }
}

fn a_hundred_thousand_lines_arrive_whole_and_in_order(machine: &Machine) {
    // 12 000 lines in a second are less than the unit's limit, and than journald can take.
    let script = "(from=1; while [ $from -lt 50000 ]; do \
                  seq -f 'line %.0f of many that a worker writes while it serves' $from $((from + 599)); \
                  from=$((from + 600)); sleep 0.1; done; echo all is said) &";
    serve(machine, &after(&script.replace("50000", "50400")));
    let load = paced(machine, 100, "/sleep/5");
    machine.wait_for(&format!("test $(journalctl {OURS} -o cat | grep -c '^all is said') = 2"));
    let tally = load.finish();
    assert_eq!(tally.failed, Vec::<String>::new());
    for slot in [1, 2] {
        let numbers = numbers(machine, slot);
        let expected: Vec<u32> = (1..=50_400).collect();
        assert_eq!(numbers.len(), expected.len(), "slot {slot}");
        assert_eq!(numbers, expected, "slot {slot}");
    }
}

fn a_stopped_journald_holds_up_no_client_and_the_gap_is_counted(machine: &Machine) {
    let lines = 100_000;
    let script = format!(
        "[ $RCLUSTER_SLOT$RCLUSTER_GENERATION = 11 ] && (until [ -e /run/rcluster/go ]; do sleep 0.1; done; \
         seq -f 'line %.0f and so on, until nobody reads it any more' {lines}; \
         touch /run/rcluster/done) &"
    );
    serve(machine, &after(&script));
    let load = paced(machine, 200, "/sleep/5");
    wait_answers(&load, 50);
    machine.sh("kill -STOP $(pidof systemd-journald)").ok();
    machine.write("/run/rcluster/go", "");
    machine.wait_for("test -e /run/rcluster/done");
    wait_answers(&load, 200);
    // Beside the lines, the master's own records still find their place.
    assert!(get(machine, "/pid").is_ok());
    machine.sh("kill -USR1 $(systemctl show --value -p MainPID rcluster)").ok();
    machine.wait_for("rcluster status | grep -q 'generation 2'");
    machine.sh("kill -CONT $(pidof systemd-journald)").ok();
    let dropped_id = id_of("records were dropped");
    let dropped = format!("{OURS} RCLUSTER_POOL=web MESSAGE_ID={dropped_id}");
    machine.wait_for(&format!("journalctl {dropped} | grep -q 'records of web'"));
    let answered = load.answered.load(SeqCst);
    let tally = load.finish();
    println!("{:?}: {answered} answered, longest {:?}", machine.tree, tally.longest);
    assert_eq!(tally.failed, Vec::<String>::new());
    assert!(tally.longest < Duration::from_secs(5), "{:?}", tally.longest);
    let stored = numbers(machine, 1);
    assert!(stored.is_sorted(), "out of order");
    let counts = values(machine, "RCLUSTER_DROPPED", &dropped);
    let missing: usize = counts.iter().map(|count| count.parse::<usize>().unwrap()).sum();
    println!("{:?}: {} stored, {counts:?} dropped", machine.tree, stored.len());
    assert_eq!(stored.len() + missing, lines);
    let stalled = format!("{OURS} MESSAGE_ID={}", id_of("The journal took nothing"));
    assert!(!values(machine, "RCLUSTER_TOOK_USEC", &stalled).is_empty());
    assert_eq!(values(machine, "RCLUSTER_DROPPED", OURS), counts, "the master's own were dropped");
}

fn a_stream_or_the_masters_own_output_when_that_is_wanted(machine: &Machine) {
    let script = "[ \"$JOURNAL_STREAM\" = $(stat -Lc %d:%i /proc/$$/fd/1) ] && echo to the journal";
    for (log, found) in [
        ("stream", "-t rcluster-web-1"),
        ("inherit", "_SYSTEMD_UNIT=rcluster.service _TRANSPORT=stdout"),
    ] {
        let config = format!("[master]\nlog = \"{log}\"\n{}", after(script));
        serve(machine, &config);
        machine.wait_for(&format!("journalctl -o cat {found} | grep -x 'to the journal'"));
        let own = machine.journal(&format!("{OURS} SYSLOG_IDENTIFIER=rcluster"));
        assert!(own.contains("generation 1 serves"), "{own}");
        assert!(!own.contains("workers write where the master does"), "{own}");
        machine.sh("systemctl stop rcluster.service").ok();
    }
}

fn the_last_words_of_a_killed_masters_workers_are_read_by_the_next(machine: &Machine) {
    let script = "[ $RCLUSTER_SLOT$RCLUSTER_GENERATION = 11 ] && (until [ -e /run/rcluster/go ]; do sleep 0.1; done; \
                  echo my last words; printf 'without an end'; touch /run/rcluster/done) &";
    // Its workers are killed with the master.
    drop_in(machine, "rcluster.service", "[Service]\nKillMode=mixed\n");
    serve(machine, &after(script));
    let old = values(machine, "OBJECT_PID", &format!("{OURS} RCLUSTER_SLOT=1"))[0].clone();
    // Two pipes, and the state.
    machine.wait_for("test $(systemctl show --value -p NFileDescriptorStore rcluster) = 3");
    // It reads nothing any more, and then it is killed, and its workers with it.
    let master = machine.property("MainPID");
    machine.sh(&format!("kill -STOP {master}")).ok();
    // Each of its threads stops when it comes to it.
    machine.wait_for(&format!("! grep -L '^State:.T' /proc/{master}/task/*/status | grep ."));
    machine.write("/run/rcluster/go", "");
    machine.wait_for("test -e /run/rcluster/done");
    machine.sh(&format!("kill -KILL {master}")).ok();
    machine.wait_for("test $(systemctl show --value -p NRestarts rcluster) = 1");
    machine.wait_for(&format!("journalctl {OURS} -o cat | grep -qx 'without an end'"));
    let words = values(machine, "MESSAGE", &format!("{OURS} SYSLOG_PID={old}"));
    assert_eq!(words, ["my last words", "without an end"]);
    // What is read to its end is stored no more.
    machine.wait_for("systemctl is-active rcluster");
    machine.wait_for("test $(systemctl show --value -p NFileDescriptorStore rcluster) = 3");
    machine.sh("systemctl restart rcluster").ok();
    machine.wait_for("test $(systemctl show --value -p NFileDescriptorStore rcluster) = 3");
}

fn an_instance_is_known_by_its_name(machine: &Machine) {
    install(machine, &web(""));
    machine.sh("systemctl stop rcluster.socket").ok();
    let config = after("echo here").replace("\"web\"", "\"127.0.0.1:8081\"");
    machine.write("/etc/rcluster/shop/rcluster.toml", &config);
    let listen = "[Socket]\nListenStream=127.0.0.1:8082\n";
    machine.write("/etc/systemd/system/rcluster@shop.socket.d/test.conf", listen);
    machine.sh("systemctl daemon-reload && systemctl start rcluster@shop.service").ok();
    let found = machine.journal("-u rcluster@shop.service SYSLOG_IDENTIFIER=rcluster-shop");
    assert!(found.contains("generation 1 serves") && found.contains("here"), "{found}");
}

fn what_journalds_socket_does_not_take_goes_by_standard_error(machine: &Machine) {
    serve(machine, &after("echo '<4>careful'"));
    machine.sh("mv /run/systemd/journal/socket /run/systemd/journal/away").ok();
    reload(machine).ok();
    machine.sh("mv /run/systemd/journal/away /run/systemd/journal/socket").ok();
    reload(machine).ok();
    // The words and the level are there, the fields are not.
    let plain = "_TRANSPORT=stdout PRIORITY";
    assert_eq!(
        machine.journal(&format!("{OURS} {plain}=5")).matches("generation 2 serves").count(),
        1
    );
    let careful = machine.journal(&format!("{OURS} {plain}=4"));
    assert_eq!(careful.matches("web/1: careful").count(), 1, "{careful}");
    assert_eq!(careful.matches("records go without fields").count(), 1, "{careful}");
    let rollouts = format!("{OURS} MESSAGE_ID={}", id_of("@RCLUSTER_GENERATION@ serves"));
    assert_eq!(values(machine, "RCLUSTER_GENERATION", &rollouts), ["1", "3"]);
}
