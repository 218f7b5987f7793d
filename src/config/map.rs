//! `map`: what a Node application listens on, and the entry of `listen` that it gets for it.
//!
//! An application that says `listen(3000)` asks the master for that port. Where the pool listens
//! elsewhere, this table translates: `map = { 3000 = "web", "127.0.0.1:3001" = "8081" }`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Pool;
use super::entry::{Entry, Fault, Read, Section};
use super::error::{Mistake, Report, one_of, quote};

/// How it is written.
const EXAMPLE: &str = "map = { 3000 = \"web\" }";

/// Reads the table. After `listen`.
pub(super) fn read(pool: &mut Pool, section: &Section<'_>, report: &mut Report) {
    // A `listen` that was refused has no entries to compare with, and is told already.
    let is_known = section.entry("listen").is_none() || !pool.listen.is_empty();
    let entries: Vec<&str> = pool.listen.iter().map(|entry| entry.text.as_str()).collect();
    let map = section.read("map", report, |entry| table(entry, is_known.then_some(&entries)));
    pool.manner.map = map.unwrap_or_default();
}

fn table(entry: &Entry<'_>, entries: Option<&Vec<&str>>) -> Read<BTreeMap<String, String>> {
    let Some(table) = entry.value.get_ref().as_table() else {
        return entry.wrong_type("a table", EXAMPLE);
    };
    let (mut map, mut faults) = (BTreeMap::new(), Vec::new());
    for (key, value) in table.iter() {
        let asked = key.get_ref().as_ref();
        let asked = check_asked(asked).unwrap_or_else(|mistake| {
            faults.push(Fault { offset: key.span().start, mistake });
            String::new()
        });
        let inner = entry.inner(format!("{} of `map`", quote(key.get_ref())), value);
        match inner.string("\"web\"").and_then(|given| check_given(&inner, given, entries)) {
            Ok(given) => drop(map.insert(asked, given)),
            Err(found) => faults.extend(found),
        }
    }
    if faults.is_empty() { Ok(map) } else { Err(faults) }
}

/// What an application asks for: a port, an address or a path, in one spelling.
fn check_asked(text: &str) -> Result<String, Mistake> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        return match text.parse::<u16>() {
            Ok(port) if port.to_string() == text => Ok(text.to_owned()),
            Ok(port) => Err(Mistake::new(
                format!("the port {} in `map` begins with a zero", quote(text)),
                format!("write {port}"),
            )),
            Err(_) => Err(Mistake::new(
                format!("there is no port {}", quote(text)),
                "write a port from 0 to 65535, as the application asks for it",
            )),
        };
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address.to_string());
    }
    if text.contains('/') && !text.contains("://") && !text.contains(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(Mistake::new(
        format!("{} in `map` is neither a port nor an address nor a path", quote(text)),
        "write what the application asks for: 3000, \"127.0.0.1:3000\" or \"/run/app.sock\"",
    ))
}

/// An entry of `listen`.
fn check_given(entry: &Entry<'_>, given: &str, entries: Option<&Vec<&str>>) -> Read<String> {
    match entries {
        Some(entries) if !entries.contains(&given) => {
            let remedy = match entries.as_slice() {
                [] => "give `listen` an entry, for example listen = [\"8080\"]".to_owned(),
                entries => format!("write {}", one_of(entries)),
            };
            entry.refuse(format!("`listen` has no entry {}", quote(given)), remedy)
        }
        Some(_) | None => Ok(given.to_owned()),
    }
}
