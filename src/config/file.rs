//! From files to tables to a configuration.
//!
//! All files are read before anything is judged, so that every mistake in every file is told at
//! once. A file that is not TOML is told by its syntax alone, because what follows could be misread;
//! only a key that is written twice hides nothing else.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, Error};

use super::entry::Section;
use super::error::{Mistake, Place, Problem, Problems, Report, quote, quote_path, why};
use super::source::Source;
use super::{Config, Listen, Pool, keys, master, pool};

/// Files in `conf.d`.
const MOST_FILES: usize = 256;

/// Pools of a configuration.
const MOST_POOLS: usize = 256;

/// Reads a configuration: the file, and `conf.d/*.toml` in the directory beside it.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let mut report = Report::default();
    let mut files = vec![path.to_owned()];
    files.extend(beside(path, &mut report));
    let read = files.iter().map(|file| Source::read(file, "the configuration"));
    let mut sources = Vec::new();
    for source in read {
        match source {
            Ok(source) => sources.push(source),
            Err(problem) => report.add(problem),
        }
    }
    let tables: Vec<_> =
        sources.iter().filter_map(|source| Some((source, parse(source, &mut report)?))).collect();
    let is_whole = tables.len() == files.len();
    let config = read_tables(&tables, is_whole, files.clone(), &mut report);
    if report.is_empty() { Ok(config) } else { Err(report.into_problems(&files)) }
}

/// The files of `conf.d`, by name.
fn beside(path: &Path, report: &mut Report) -> Vec<PathBuf> {
    let directory = path.parent().unwrap_or(Path::new("")).join("conf.d");
    let mut refused = |cause: std::io::Error| {
        let message = format!("{} cannot be read: {}", quote_path(&directory), why(&cause));
        let mistake = Mistake::new(message, "make it a readable directory, or remove it");
        report.add(mistake.at(Place::start_of(&directory)));
    };
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(cause) => {
            refused(cause);
            return Vec::new();
        }
    };
    let mut files = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => files.push(entry.path()),
            Err(cause) => refused(cause),
        }
    }
    files.retain(|file| {
        let is_hidden =
            file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        file.extension() == Some(OsStr::new("toml")) && !is_hidden
    });
    files.sort();
    if files.len() > MOST_FILES {
        let message = format!("{} has {} files", quote_path(&directory), files.len());
        let mistake = Mistake::new(message, format!("keep at most {MOST_FILES}"));
        report.add(mistake.at(Place::start_of(&directory)));
        files.truncate(MOST_FILES);
    }
    files
}

/// The table of a file, unless its syntax leaves in doubt what it says.
fn parse<'a>(source: &'a Source, report: &mut Report) -> Option<DeTable<'a>> {
    let (table, errors) = DeTable::parse_recoverable(source.text());
    let mut first: BTreeMap<usize, &Error> = BTreeMap::new();
    for error in &errors {
        let offset = error.span().unwrap_or_default().start;
        let kept = first.entry(source.line(offset)).or_insert(error);
        if kept.span().unwrap_or_default().start > offset {
            *kept = error;
        }
    }
    for error in first.values() {
        if !report.only_counts() {
            report.add(syntax(source, error));
        }
    }
    // Any other slip leaves values that nobody wrote; their faults would only confuse.
    let only_repeats = errors.iter().all(|error| error.message().starts_with("duplicate key"));
    only_repeats.then(|| table.into_inner())
}

/// A syntax error in our words.
fn syntax(source: &Source, error: &Error) -> Problem {
    let span = error.span().unwrap_or_default();
    let (offset, text) = (span.start, source.text().get(span).unwrap_or_default());
    let said = error.message().split(", expected").next().unwrap_or_default();
    let (message, remedy) = match said {
        "duplicate key" => {
            (format!("{} is written a second time", quote(text)), "keep one of the two")
        }
        "invalid boolean" | "string values must be quoted" => (
            match text {
                "" => "a value is missing".to_owned(),
                text => format!("{} is no value", quote(text)),
            },
            "write a number, true or false, or a text in quotes",
        ),
        "missing escaped value" => (
            "a backslash begins no escape here".to_owned(),
            "write \\\\ for a backslash, or the text in single quotes",
        ),
        "key with no value" => (
            "this is no TOML: a key without a value".to_owned(),
            "write key = value, or [master] or [pool.NAME]",
        ),
        "unclosed array" | "missing comma between array elements" => {
            (format!("this is no TOML: {said}"), "write a list as [\"one\", \"two\"]")
        }
        "unclosed table" => {
            (format!("this is no TOML: {said}"), "write [pool.NAME] on a line of its own")
        }
        said => (
            format!("this is no TOML: {}", said.replace(char::is_control, " ")),
            "write key = \"text\", key = 5, key = [\"one\", \"two\"] or [pool.NAME]",
        ),
    };
    Mistake::new(message, remedy).at(source.place(offset))
}

/// All tables become one configuration.
fn read_tables(
    tables: &[(&Source, DeTable<'_>)],
    is_whole: bool,
    files: Vec<PathBuf>,
    report: &mut Report,
) -> Config {
    let mut masters = Vec::new();
    let mut sections = Vec::new();
    for (source, table) in tables {
        let top = Section { source, title: String::new(), offset: 0, table };
        top.refuse_unknown(keys::TOP, report);
        masters.extend(master_of(&top, report));
        sections.extend(pools_of(&top, report));
    }
    // A pool that was written in a wrong way is no missing pool.
    let lacks_pools = sections.is_empty() && is_whole && report.is_empty();
    let master = master::read(&masters, report);
    if lacks_pools {
        let message = "there is no pool";
        let remedy = "write at least one: [pool.web] with command = [\"/usr/bin/my-server\"]";
        let start = files.first().map_or_else(Place::nowhere, |file| Place::start_of(file));
        report.add(Mistake::new(message, remedy).at(start));
    }
    if let Some((_, surplus)) = sections.get(MOST_POOLS) {
        let message = format!("there are {} pools", sections.len());
        let mistake = Mistake::new(message, format!("write at most {MOST_POOLS}"));
        surplus.report(surplus.offset, mistake, report);
        sections.truncate(MOST_POOLS);
    }
    let pools = read_pools(&sections, report);
    Config { master, pools, files }
}

/// `[master]` of a file.
fn master_of<'a>(top: &Section<'a>, report: &mut Report) -> Option<Section<'a>> {
    let entry = top.entry("master")?;
    let Some(table) = entry.value.get_ref().as_table() else {
        let mistake = Mistake::new("`master` is no table", "write [master] on a line of its own");
        top.report(entry.key_offset, mistake, report);
        return None;
    };
    Some(Section {
        source: top.source,
        title: "`[master]`".to_owned(),
        offset: entry.key_offset,
        table,
    })
}

/// The pools of a file, in the order of writing.
fn pools_of<'a>(top: &Section<'a>, report: &mut Report) -> Vec<(&'a str, Section<'a>)> {
    let Some(entry) = top.entry("pool") else {
        return Vec::new();
    };
    let Some(table) = entry.value.get_ref().as_table() else {
        let remedy = "write [pool.NAME] with a name of yours, for example [pool.web]";
        let mistake = Mistake::new("`pool` is no table of pools", remedy);
        top.report(entry.key_offset, mistake, report);
        return Vec::new();
    };
    let mut sections = Vec::new();
    for (key, value) in table.iter() {
        let (name, offset) = (key.get_ref().as_ref(), key.span().start);
        let Some(inner) = value.get_ref().as_table() else {
            if !report.only_counts() {
                top.report(offset, not_a_pool(name), report);
            }
            continue;
        };
        if let Err(mistake) = pool::check_name(name) {
            top.report(offset, mistake, report);
        }
        let section = Section {
            source: top.source,
            title: format!("pool {}", quote(name)),
            offset,
            table: inner,
        };
        sections.push((name, section));
    }
    sections.sort_by_key(|(_, section)| section.offset);
    sections
}

/// `[pool]` has a key itself.
fn not_a_pool(name: &str) -> Mistake {
    let message = format!("{} is no pool, but a key outside of every pool", quote(name));
    let remedy = match keys::nearest(name, keys::POOL) {
        Some(key) => format!("write `{key}` below a line [pool.NAME], for example [pool.web]"),
        None => "write [pool.NAME], for example [pool.web], and its keys below".to_owned(),
    };
    Mistake::new(message, remedy)
}

/// Reads every pool, and judges them against each other.
fn read_pools(sections: &[(&str, Section<'_>)], report: &mut Report) -> Vec<Pool> {
    let mut first: BTreeMap<&str, Place> = BTreeMap::new();
    let mut pools: Vec<Pool> = Vec::new();
    for (name, section) in sections {
        let place = section.source.place(section.offset);
        match first.get(name) {
            Some(earlier) => {
                let message = format!("pool {} is already defined at {earlier}", quote(name));
                let mistake = Mistake::new(message, "keep one of the two, or rename it");
                section.report(section.offset, mistake, report);
            }
            None => {
                first.insert(name, place);
            }
        }
        pools.push(pool::read(name, section, report));
    }
    refuse_shared(sections, &pools, report);
    pools
}

/// A listen entry of a pool.
struct Taken<'a> {
    listen: &'a Listen,
    pool: &'a str,
    source: &'a Source,
    offset: usize,
}

/// Reports what two listen entries would both bind.
fn refuse_shared(sections: &[(&str, Section<'_>)], pools: &[Pool], report: &mut Report) {
    let mut taken: Vec<Taken<'_>> = Vec::new();
    for (pool, (name, section)) in pools.iter().zip(sections) {
        let entry = section.entry("listen");
        let array = entry.and_then(|entry| entry.value.get_ref().as_array());
        let values = array.into_iter().flat_map(|array| array.iter());
        for (listen, value) in pool.listen.iter().zip(values) {
            let offset = value.span().start;
            if let Some(earlier) = taken.iter().find(|taken| listen.conflicts(taken.listen)) {
                let message = format!(
                    "{} is the same as {} of pool {} at {}",
                    quote(&listen.text),
                    quote(&earlier.listen.text),
                    quote(earlier.pool),
                    earlier.source.place(earlier.offset),
                );
                let mistake = Mistake::new(message, "remove one of the two");
                section.report(offset, mistake, report);
            }
            taken.push(Taken { listen, pool: name, source: section.source, offset });
        }
    }
}
