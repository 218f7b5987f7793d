//! The whole effective configuration as TOML, defaults resolved: what [`super::load`] would read to
//! the same [`Config`]. Values from environment files are left in their files; they are often secret.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use crate::supervisor::{Accept, Balance, Unavailable};

use super::manner::{holds, signal_name};
use super::{Config, EnvironmentFile, Limits, Log, MasterSettings, Pool, Probe, Question, time};
use crate::sys::resource::UNLIMITED;

/// Renders a configuration as TOML.
pub fn explain(config: &Config) -> String {
    let mut out = Out(String::new());
    for file in &config.files {
        out.comment(&format!("from {}", file.display()));
    }
    master(&config.master, &mut out);
    for pool in &config.pools {
        out.0.push('\n');
        self::pool(pool, &mut out);
    }
    out.0
}

fn master(settings: &MasterSettings, out: &mut Out) {
    out.header("master");
    let idle_exit = settings.idle_exit.map_or("never".to_owned(), time::format);
    out.text("idle-exit", &idle_exit);
    out.text(
        "log",
        match settings.log {
            Log::Fields => "fields",
            Log::Stream => "stream",
            Log::Inherit => "inherit",
        },
    );
    out.plain("generations", settings.generations);
    out.text("orphan-timeout", &time::format(settings.orphan_timeout));
    out.text("control-mode", &format!("{:04o}", settings.control_mode));
    match &settings.control_group {
        Some(group) => out.text("control-group", group),
        None => out.comment("control-group: the master's own"),
    }
}

fn pool(pool: &Pool, out: &mut Out) {
    out.header(&format!("pool.{}", key(&pool.name)));
    out.texts("command", &pool.command);
    let listen: Vec<&str> = pool.listen.iter().map(|entry| entry.text.as_str()).collect();
    out.texts("listen", &listen);
    out.text("kind", pool.manner.kind.word());
    out.text(
        "accept",
        match pool.policy.accept {
            Accept::Master => "master",
            Accept::Workers => "workers",
        },
    );
    manner(pool, out);
    process(pool, out);
    policy(pool, out);
    limits(&pool.manner.limits, out);
    if holds("probe", pool) {
        probe(pool, out);
    }
    if holds("unavailable", pool) {
        unavailable(pool, out);
    }
    if holds("crash-ledger", pool) {
        out.plain("crash-ledger", pool.crash_ledger);
    }
}

fn unavailable(pool: &Pool, out: &mut Out) {
    match (&pool.answer, pool.policy.unavailable) {
        (Some(bytes), Unavailable::AnswerAfter(after)) => {
            out.text("unavailable", &String::from_utf8_lossy(bytes));
            out.span("unavailable-after", after);
        }
        (Some(_) | None, Unavailable::Wait) | (None, Unavailable::AnswerAfter(_)) => {
            out.text("unavailable", "wait");
        }
    }
}

/// What the pool's kind has of its own.
fn manner(pool: &Pool, out: &mut Out) {
    let manner = &pool.manner;
    if holds("map", pool) {
        let pairs = manner.map.iter().map(|(asked, given)| (key(asked), quoted(given)));
        out.table("map", pairs);
        out.plain("drain-preload", manner.drain_preload);
    }
    if holds("first-byte", pool) {
        out.plain("first-byte", manner.first_byte);
    }
    if holds("dialect", pool) {
        out.text("dialect", manner.dialect.word());
    }
    if holds("ready", pool) {
        out.text("stop-signal", signal_name(manner.stop_signal));
        out.plain("blocking", manner.blocking);
        out.text("ready", manner.ready.word());
    }
    if holds("settle", pool) {
        out.span("settle", manner.settle);
    }
}

fn limits(limits: &Limits, out: &mut Out) {
    match limits.nice {
        Some(nice) => out.plain("nice", nice),
        None => out.comment("nice: the master's own"),
    }
    let one = |value: u64| match value {
        UNLIMITED => quoted("infinity"),
        value => value.to_string(),
    };
    let pairs = limits
        .rlimits
        .iter()
        .map(|(name, (soft, hard))| (key(name), format!("[{}, {}]", one(*soft), one(*hard))));
    out.table("rlimits", pairs);
    match limits.umask {
        Some(mask) => out.text("umask", &format!("{mask:04o}")),
        None => out.comment("umask: the master's own"),
    }
    match limits.oom_score_adjust {
        Some(score) => out.plain("oom-score-adjust", score),
        None => out.comment("oom-score-adjust: the master's own"),
    }
    out.plain("no-new-privileges", limits.no_new_privileges);
}

fn process(pool: &Pool, out: &mut Out) {
    match &pool.working_directory {
        Some(directory) => out.text("working-directory", &directory.to_string_lossy()),
        None => out.comment("working-directory: the master's own"),
    }
    match &pool.user {
        Some(user) => out.text("user", user),
        None => out.comment("user: the master's own"),
    }
    match &pool.group {
        Some(group) => out.text("group", group),
        None => out.comment("group: the user's"),
    }
    out.texts("supplementary-groups", &pool.supplementary_groups);
    out.plain("clear-environment", pool.clear_environment);
    let in_files: BTreeSet<&String> =
        pool.environment_files.iter().flat_map(|file| file.values.keys()).collect();
    let written = pool.environment.iter().filter(|(name, _)| !in_files.contains(name));
    out.table("environment", written.map(|(name, value)| (key(name), quoted(value))));
    let written = |file: &EnvironmentFile| {
        let sign = if file.optional { "-" } else { "" };
        format!("{sign}{}", file.path.display())
    };
    let files: Vec<String> = pool.environment_files.iter().map(written).collect();
    out.texts("environment-file", &files);
    for file in &pool.environment_files {
        let names: Vec<&str> = file.values.keys().map(String::as_str).collect();
        out.comment(&format!("{} sets {}", file.path.display(), names.join(", ")));
    }
}

fn policy(pool: &Pool, out: &mut Out) {
    let policy = &pool.policy;
    out.plain("workers", policy.workers);
    if holds("balance", pool) {
        let balance = match policy.balance {
            Balance::LeastConnections => "least-connections",
            Balance::RoundRobin => "round-robin",
            Balance::SourceHash => "source-hash",
        };
        out.text("balance", balance);
    }
    out.span("start-timeout", policy.start_timeout);
    out.span("drain-timeout", policy.drain_timeout);
    match policy.watchdog {
        _ if !holds("watchdog", pool) => {}
        Some(span) => out.span("watchdog", span),
        None => out.text("watchdog", "off"),
    }
    if holds("max-connections", pool) {
        out.plain("max-connections", policy.max_connections);
    }
    if holds("max-requests", pool) {
        out.plain("max-requests", policy.max_requests);
    }
    out.plain("restart-limit", policy.restart_limit);
    out.span("restart-window", policy.restart_window);
    out.plain("surge", policy.surge);
    out.span("canary", policy.canary);
}

fn probe(pool: &Pool, out: &mut Out) {
    match &pool.probe {
        None => out.comment("probe: none, to be ready is enough"),
        Some(Probe { question, timeout }) => {
            match question {
                Question::Http { path } => out.text("probe", path),
                Question::Text { send, expect } => {
                    let (send, expect) = (quoted(send), quoted(expect));
                    out.plain("probe", format!("{{ send = {send}, expect = {expect} }}"));
                }
            }
            out.span("probe-timeout", *timeout);
        }
    }
}

/// TOML in the making.
struct Out(String);

impl Out {
    fn header(&mut self, name: &str) {
        self.line(format_args!("[{name}]"));
    }

    fn comment(&mut self, text: &str) {
        let text = text.replace(char::is_control, " ");
        self.line(format_args!("# {text}"));
    }

    fn plain(&mut self, key: &str, value: impl std::fmt::Display) {
        self.line(format_args!("{key} = {value}"));
    }

    fn text(&mut self, key: &str, text: &str) {
        self.plain(key, quoted(text));
    }

    fn texts(&mut self, key: &str, texts: &[impl AsRef<str>]) {
        let texts: Vec<String> = texts.iter().map(|text| quoted(text.as_ref())).collect();
        self.plain(key, format!("[{}]", texts.join(", ")));
    }

    /// A table on one line.
    fn table(&mut self, key: &str, pairs: impl Iterator<Item = (String, String)>) {
        let pairs: Vec<String> = pairs.map(|(key, value)| format!("{key} = {value}")).collect();
        match pairs.join(", ") {
            pairs if pairs.is_empty() => self.plain(key, "{}"),
            pairs => self.plain(key, format!("{{ {pairs} }}")),
        }
    }

    fn span(&mut self, key: &str, span: Duration) {
        self.text(key, &time::format(span));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

/// A key as TOML has it, in quotes where it needs them.
fn key(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.is_empty() && name.chars().all(is_bare) { name.to_owned() } else { quoted(name) }
}

/// A text as TOML has it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
