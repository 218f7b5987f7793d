//! `[pool.NAME]`: every key of a pool.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::supervisor::{Balance, Policy, Unavailable};

use super::entry::{Entry, Fault, Read, Section};
use super::error::{Mistake, Report, quote};
use super::time::{DAY, HOUR, SHORTEST};
use super::{
    Kind, Listen, MOST_WORKERS, Pool, Preset, Workers, answer, environment, keys, manner,
    placeholder, probe, resolve,
};

/// Characters in a pool's name.
const MOST_NAME: usize = 64;

/// Listeners of one pool.
const MOST_LISTENERS: usize = 64;

/// The default of `unavailable-after`.
const UNAVAILABLE_AFTER: Duration = Duration::from_secs(5);

/// The keys whose places are kept for the checks that come later.
const CHECKED_LATER: &[&str] = &[
    "command",
    "group",
    "kind",
    "supplementary-groups",
    "unavailable",
    "user",
    "working-directory",
];

/// Reads one pool. What is wrong goes to the report; the pool is then of no use.
pub(super) fn read(name: &str, section: &Section<'_>, report: &mut Report) -> Pool {
    section.refuse_unknown(keys::POOL, report);
    let preset = section.read("preset", report, |entry| {
        entry.parsed::<Preset>(entry.text_of("a word", "\"gunicorn\"")?)
    });
    let mut pool = Pool::new(name, Vec::new());
    pool.places = pool.places.with(section, CHECKED_LATER);
    read_process(&mut pool, section, report);
    environment::read(&mut pool, section, report);
    pool.listen = section.read_or("listen", Vec::new(), report, listen);
    manner::read(&mut pool, preset, section, report);
    read_policy(&mut pool.policy, section, report);
    read_unavailable(&mut pool, section, report);
    pool.crash_ledger =
        section.read_or("crash-ledger", pool.crash_ledger, report, |entry| entry.boolean());
    probe::read(&mut pool, section, report);
    finish(&mut pool, preset, section, report);
    pool
}

/// Lets the preset add what it adds, and checks what the whole asks for.
fn finish(pool: &mut Pool, preset: Option<Preset>, section: &Section<'_>, report: &mut Report) {
    // A `listen` that was refused is told already.
    let is_known = section.entry("listen").is_none_or(|entry| {
        let written = entry.value.get_ref().as_array().map_or(usize::MAX, |array| array.len());
        written == pool.listen.len()
    });
    if !is_known || pool.command.is_empty() {
        return;
    }
    if let (Some(preset), Some(entry)) = (preset, section.entry("preset")) {
        if preset.kind() == pool.manner.kind {
            if let Err(mistake) = preset.finish(pool) {
                section.report(entry.offset(), mistake, report);
                return;
            }
        }
    }
    if pool.manner.kind == Kind::Inherit {
        check_placeholders(pool, section, report);
    }
}

/// Reports placeholders of sockets that the pool does not have.
fn check_placeholders(pool: &Pool, section: &Section<'_>, report: &mut Report) {
    let mut check = |text: &str, offset| {
        if let Err(mistake) = placeholder::check(text, &pool.listen) {
            section.report(offset, mistake, report);
        }
    };
    let command = section.entry("command");
    let command = command.and_then(|entry| entry.value.get_ref().as_array());
    for value in command.into_iter().flat_map(|array| array.iter()) {
        check(value.get_ref().as_str().unwrap_or_default(), value.span().start);
    }
    let table = section.entry("environment");
    let table = table.and_then(|entry| entry.value.get_ref().as_table());
    for (_, value) in table.into_iter().flat_map(|table| table.iter()) {
        check(value.get_ref().as_str().unwrap_or_default(), value.span().start);
    }
    if let Some(files) = section.entry("environment-file") {
        let values = pool.environment_files.iter().flat_map(|file| file.values.values());
        values.for_each(|value| check(value, files.offset()));
    }
}

/// Whether this can be a pool's name.
pub(super) fn check_name(name: &str) -> Result<(), Mistake> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if begins_well && name.chars().all(is_good) && name.len() <= MOST_NAME {
        return Ok(());
    }
    Err(Mistake::new(
        format!("{} is no name for a pool", quote(name)),
        format!(
            "write 1 to {MOST_NAME} letters, digits, `-`, `_` or `.`, the first a letter, a digit \
             or `_`"
        ),
    ))
}

/// A pool's name after a program.
pub(super) fn name_after(program: &str) -> String {
    let file = program.rsplit('/').find(|part| !part.is_empty());
    let name: String = file
        .unwrap_or_default()
        .chars()
        .map(|c| match c {
            '-' | '_' | '.' => c,
            c if c.is_ascii_alphanumeric() => c,
            _ => '-',
        })
        .skip_while(|c| matches!(c, '-' | '.'))
        .take(MOST_NAME)
        .collect();
    if name.is_empty() { "pool".to_owned() } else { name }
}

/// What is run, as whom, where.
fn read_process(pool: &mut Pool, section: &Section<'_>, report: &mut Report) {
    match section.read("command", report, command) {
        Some(command) => pool.command = command,
        None if section.entry("command").is_none() => {
            let message = format!("{} has no command", section.title);
            let remedy = "write for example command = [\"/usr/bin/my-server\", \"--flag\"]";
            section.report(section.offset, Mistake::new(message, remedy), report);
        }
        None => {}
    }
    let directory = section.read("working-directory", report, |entry| {
        let written = entry.string("\"/srv/web\"")?;
        Ok(resolve(written, section.source.path()))
    });
    pool.working_directory = directory;
    let name =
        |entry: &Entry<'_>| account(entry.string("\"www-data\"")?, entry.key, entry.offset());
    pool.user = section.read("user", report, name);
    pool.group = section.read("group", report, name);
    pool.supplementary_groups =
        section.read_or("supplementary-groups", Vec::new(), report, |entry| {
            let names = entry.strings("[\"www-data\"]")?;
            let read = names.into_iter().map(|(name, offset)| account(name, entry.key, offset));
            read.collect()
        });
}

/// A user or a group, by name or number. Whether it exists is checked later.
fn account(name: &str, key: &str, offset: usize) -> Read<String> {
    let refused = |message: String, remedy: &str| {
        let mistake = Mistake::new(message, remedy);
        Err(vec![Fault { offset, mistake }])
    };
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        // The largest number means "no change" to the kernel.
        if !matches!(name.parse(), Ok(0..=4_294_967_294_u32)) {
            let message = format!("`{key}` has no number {}", quote(name));
            return refused(message, "write a number from 0 to 4294967294, or a name");
        }
    } else if name.contains([':', '/']) || name.chars().any(|c| c.is_control() || c == ' ') {
        let message = format!("`{key}` has no name {}", quote(name));
        return refused(message, "write one name without blanks, `:` and `/`");
    }
    Ok(name.to_owned())
}

fn command(entry: &Entry<'_>) -> Read<Vec<String>> {
    let example = "[\"/usr/bin/my-server\", \"--flag\"]";
    let Some(array) = entry.value.get_ref().as_array() else {
        return entry.wrong_type("a list", example);
    };
    let mut command = Vec::new();
    let mut faults = Vec::new();
    for (index, value) in array.iter().enumerate() {
        // An argument may be empty; the program may not.
        if index > 0 && value.get_ref().as_str() == Some("") {
            command.push(String::new());
            continue;
        }
        let argument = entry.inner(format!("an entry of {}", entry.label), value);
        match argument.string("\"/usr/bin/my-server\"") {
            Ok(text) => command.push(text.to_owned()),
            Err(found) => faults.extend(found),
        }
    }
    if array.is_empty() {
        return entry.refuse("`command` is empty", format!("write for example {example}"));
    }
    if faults.is_empty() { Ok(command) } else { Err(faults) }
}

fn listen(entry: &Entry<'_>) -> Read<Vec<Listen>> {
    let texts = entry.strings("[\"127.0.0.1:8080\"]")?;
    if texts.len() > MOST_LISTENERS {
        return entry.refuse(
            format!("`listen` has {} entries", texts.len()),
            format!("write at most {MOST_LISTENERS}"),
        );
    }
    let mut listen = Vec::new();
    let mut faults = Vec::new();
    for (text, offset) in texts {
        match text.parse() {
            Ok(entry) => listen.push(entry),
            Err(mistake) => faults.push(Fault { offset, mistake }),
        }
    }
    if faults.is_empty() { Ok(listen) } else { Err(faults) }
}

/// What decisions depend on, less `unavailable`.
fn read_policy(policy: &mut Policy, section: &Section<'_>, report: &mut Report) {
    let mut span = |key, default, bounds: RangeInclusive<Duration>| {
        section.read_or(key, default, report, |entry| entry.duration(bounds))
    };
    policy.start_timeout = span("start-timeout", policy.start_timeout, SHORTEST..=HOUR);
    policy.drain_timeout = span("drain-timeout", policy.drain_timeout, SHORTEST..=DAY);
    policy.restart_window = span("restart-window", policy.restart_window, SHORTEST..=DAY);
    policy.watchdog = section.read_or("watchdog", policy.watchdog, report, watchdog);
    policy.workers = section.read_or("workers", policy.workers, report, workers);
    policy.balance = section.read_or("balance", policy.balance, report, |entry| {
        entry.word(&[
            ("least-connections", Balance::LeastConnections),
            ("round-robin", Balance::RoundRobin),
            ("source-hash", Balance::SourceHash),
        ])
    });
    if policy.balance == Balance::SourceHash {
        // Who must get to one worker is not to go to another because that one has not answered yet.
        policy.window = Policy::default().window;
    }
    let mut small = |key, default, bounds: RangeInclusive<u32>, example| {
        section.read_or(key, default, report, |entry| entry.small(bounds, example))
    };
    let connections = policy.max_connections;
    policy.max_connections = small("max-connections", connections, 0..=1_000_000, "1000");
    policy.restart_limit = small("restart-limit", policy.restart_limit, 1..=1000, "5");
    policy.surge = small("surge", policy.surge, 1..=MOST_WORKERS, "1");
    let requests = policy.max_requests;
    policy.max_requests = section.read_or("max-requests", requests, report, |entry| {
        entry.integer(0..=1_000_000_000_000, "10000")
    });
}

fn watchdog(entry: &Entry<'_>) -> Read<Option<Duration>> {
    match entry.value.get_ref().as_str() {
        Some("off" | "never" | "infinity") => Ok(None),
        Some(_) | None => match entry.duration(SHORTEST..=HOUR) {
            Ok(span) => Ok(Some(span)),
            Err(mut faults) => {
                for fault in &mut faults {
                    let remedy = fault.mistake.remedy.take();
                    fault.mistake.remedy =
                        remedy.map(|right| format!("{right}; \"off\" turns it off"));
                }
                Err(faults)
            }
        },
    }
}

fn workers(entry: &Entry<'_>) -> Read<u32> {
    match entry.value.get_ref().as_str() {
        Some("auto") => Ok(Workers::Auto.count()),
        Some(text) => entry.refuse(
            format!("`workers` cannot be the text {}", quote(text)),
            format!("write \"auto\" or a number from 1 to {MOST_WORKERS}, without quotes"),
        ),
        None => entry.small(1..=MOST_WORKERS, "workers = 4 or workers = \"auto\""),
    }
}

/// What happens to clients whom nobody can take.
fn read_unavailable(pool: &mut Pool, section: &Section<'_>, report: &mut Report) {
    let written = section.read("unavailable", report, answer::read);
    let after = section.read("unavailable-after", report, |entry| entry.duration(SHORTEST..=HOUR));
    match written {
        Some(Some(bytes)) => {
            pool.answer = Some(bytes);
            let after = after.unwrap_or(UNAVAILABLE_AFTER);
            pool.policy.unavailable = Unavailable::AnswerAfter(after);
        }
        // A refused `unavailable` is told already.
        None if section.entry("unavailable").is_some() => {}
        None | Some(None) => {
            if let (Some(entry), Some(_)) = (section.entry("unavailable-after"), after) {
                let mistake = Mistake::new(
                    "`unavailable-after` has no meaning while clients wait",
                    "remove it, or set `unavailable` to the bytes to answer",
                );
                section.report(entry.key_offset, mistake, report);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_after_programs_are_good_names() {
        for (program, name) in [
            ("/usr/bin/my-server", "my-server"),
            ("node", "node"),
            ("./a b", "a-b"),
            ("/", "pool"),
            ("...", "pool"),
            ("/x/é", "pool"),
            ("-x-é.y", "x--.y"),
        ] {
            assert_eq!(name_after(program), name);
            assert!(check_name(name).is_ok());
        }
        assert_eq!(name_after(&"x".repeat(100)).len(), MOST_NAME);
    }
}
