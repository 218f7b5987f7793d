//! Writes the man pages and the completions, which come from the command line's one definition.
//!
//! ```text
//! cargo run --example pages -- DIRECTORY
//! ```
//!
//! What a definition cannot say is written by hand in `packaging/man`; `@VERSION@`, `@SYNOPSIS@` and
//! `@COMMANDS@` stand there for what it can. Ships in no package: only what it writes does.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The pages as written by hand, and their names in a package.
const PAGES: [(&str, &str); 3] = [
    ("rcluster.8", include_str!("man/rcluster.8")),
    ("rcluster.toml.5", include_str!("man/rcluster.toml.5")),
    ("rcluster-worker.7", include_str!("man/rcluster-worker.7")),
];

/// The completions, and their names in a package.
const COMPLETIONS: [(&str, Shell); 3] =
    [("rcluster.bash", Shell::Bash), ("_rcluster", Shell::Zsh), ("rcluster.fish", Shell::Fish)];

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: pages DIRECTORY";
    let directory = PathBuf::from(std::env::args_os().nth(1).ok_or(usage)?);
    std::fs::create_dir_all(&directory)
        .map_err(|error| format!("{} cannot be made: {error}", directory.display()))?;
    let command = rcluster::cli::command();
    for (name, written) in PAGES {
        write(&directory.join(name), page(written, &command)?.as_bytes())?;
    }
    for (name, shell) in COMPLETIONS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut visible(&command), "rcluster", &mut script);
        write(&directory.join(name), &script)?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    std::fs::write(path, bytes)
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

/// Without what is hidden: completions would offer it.
fn visible(command: &Command) -> Command {
    let mut shown = Command::new(forever(command.get_name()));
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(forever(version));
    }
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    shown.args(arguments).subcommands(verbs.map(visible))
}

/// A definition is made of texts that last; this program does not last long enough for that to matter.
fn forever(text: &str) -> &'static str {
    Box::leak(text.into())
}

/// A page with what the definition says put in.
fn page(written: &str, command: &Command) -> Result<String, Box<dyn Error>> {
    let mut page = String::new();
    for line in written.lines() {
        match line {
            "@SYNOPSIS@" => synopsis(command, &mut page)?,
            "@COMMANDS@" => commands(command, &mut page)?,
            line => {
                let version = command.get_version().ok_or("the program has no version")?;
                writeln!(page, "{}", line.replace("@VERSION@", version))?;
            }
        }
    }
    Ok(page)
}

/// A line for each verb.
fn synopsis(command: &Command, page: &mut String) -> std::fmt::Result {
    for (index, mut verb) in verbs(command).into_iter().enumerate() {
        if index > 0 {
            writeln!(page, ".br")?;
        }
        writeln!(page, "{}", usage(&mut verb))?;
    }
    Ok(())
}

/// A section for each verb: what it does, its options, its examples.
fn commands(command: &Command, page: &mut String) -> Result<(), Box<dyn Error>> {
    for mut verb in verbs(command) {
        writeln!(page, ".SS {}", verb.get_name())?;
        writeln!(page, "{}", usage(&mut verb))?;
        let about = verb.get_about().ok_or("a verb says nothing about itself")?;
        writeln!(page, ".PP\n{}.", escape(&about.to_string()))?;
        let mut options = Vec::new();
        let has_options = verb.get_arguments().any(|argument| !argument.is_hide_set());
        if has_options {
            Man::new(verb.clone()).render_options_section(&mut options)?;
        }
        // Its heading is the whole page's; this one is part of a verb.
        let options = String::from_utf8(options)?;
        let body = options.lines().skip_while(|line| !line.starts_with(".TP"));
        // Where a page has no preamble, this is how an apostrophe is written.
        body.for_each(|line| page.extend([&line.replace("\\*(Aq", "\\(aq"), "\n"]));
        let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
        example(&help, page)?;
    }
    Ok(())
}

/// Indented lines stand as they are; other lines are text, whose paragraphs end at an empty one.
fn example(help: &str, page: &mut String) -> std::fmt::Result {
    let mut last: Option<&str> = None;
    for line in help.lines() {
        let is_literal = line.starts_with("  ");
        let was_literal = last.is_some_and(|last| last.starts_with("  "));
        match (was_literal, is_literal) {
            (false, true) => page.push_str(".PP\n.nf\n"),
            (true, false) => page.push_str(".fi\n"),
            (_, _) => {}
        }
        if !line.is_empty() && !is_literal && last.is_none_or(str::is_empty) {
            page.push_str(".PP\n");
        }
        if !line.is_empty() {
            writeln!(page, "{}", escape(line))?;
        }
        last = Some(line);
    }
    page.push_str(if last.is_some_and(|last| last.starts_with("  ")) { ".fi\n" } else { "" });
    Ok(())
}

/// The verbs that help shows, without the `--help` that each of them has.
fn verbs(command: &Command) -> Vec<Command> {
    let shown = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    shown.map(|verb| verb.clone().disable_help_flag(true)).collect()
}

/// How a verb is typed; the words that stand for others in italics.
fn usage(verb: &mut Command) -> String {
    let name = format!("rcluster {}", verb.get_name());
    let usage = verb.clone().bin_name(&name).render_usage().to_string();
    let typed = usage.trim_start_matches("Usage: ");
    let rest = escape(typed.strip_prefix(&name).unwrap_or(typed));
    let rest = rest.replace('<', "\\fI").replace('>', "\\fR");
    format!("\\fB{}\\fR{rest}", escape(&name))
}

/// As text of a page: no line begins a request, and a hyphen can be copied.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('`', "\\(ga");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
