//! `nice`, `rlimits`, `umask`, `oom-score-adjust`, `no-new-privileges`: what the processes of a pool
//! may do.
//!
//! Resource limits have the names that `ulimit` and systemd give them, in small letters and without
//! their prefix, and the kernel's units.

use std::collections::BTreeMap;

use super::entry::{Entry, Fault, Read, Section};
use super::error::{Mistake, Report, quote};
use super::{Limits, Pool, keys};
use crate::sys::resource::{self, RESOURCES, UNLIMITED};

/// How a resource limit is written.
const EXAMPLE: &str = "rlimits = { nofile = 65536, core = \"infinity\", nproc = [1024, 2048] }";

impl Limits {
    /// What is set for a process.
    pub(crate) fn to_set(&self) -> resource::Limits {
        let Limits { nice, rlimits, umask, oom_score_adjust, no_new_privileges } = self;
        let places = rlimits.iter().filter_map(|(name, pair)| {
            let place = RESOURCES.iter().position(|(known, _)| known == name)?;
            Some((place, *pair))
        });
        resource::Limits {
            nice: *nice,
            rlimits: places.collect(),
            umask: *umask,
            oom_score_adjust: *oom_score_adjust,
            no_new_privileges: *no_new_privileges,
        }
    }
}

/// Reads the five keys. After `user`.
pub(super) fn read(pool: &mut Pool, section: &Section<'_>, report: &mut Report) {
    let limits = &mut pool.manner.limits;
    limits.no_new_privileges = pool.user.is_some();
    limits.nice = section.read("nice", report, |entry| entry.signed(-20..=19, "nice = 5"));
    limits.rlimits = section.read_or("rlimits", BTreeMap::new(), report, rlimits);
    limits.umask = section.read("umask", report, umask);
    limits.oom_score_adjust = section.read("oom-score-adjust", report, |entry| {
        entry.signed(-1000..=1000, "oom-score-adjust = 500")
    });
    let default = limits.no_new_privileges;
    limits.no_new_privileges =
        section.read_or("no-new-privileges", default, report, |entry| entry.boolean());
}

fn umask(entry: &Entry<'_>) -> Read<u32> {
    let text = entry.text_of("a text of octal digits", "\"0027\"")?;
    let is_octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        Ok(mask @ 0..=0o777) if is_octal => Ok(mask),
        Ok(_) | Err(_) => entry.refuse(
            format!("`umask` cannot be {}", quote(text)),
            "write an octal mask from \"0000\" to \"0777\"",
        ),
    }
}

fn rlimits(entry: &Entry<'_>) -> Read<BTreeMap<String, (u64, u64)>> {
    let Some(table) = entry.value.get_ref().as_table() else {
        return entry.wrong_type("a table", EXAMPLE);
    };
    let (mut limits, mut faults) = (BTreeMap::new(), Vec::new());
    for (key, value) in table.iter() {
        let name = key.get_ref().as_ref();
        if !RESOURCES.iter().any(|(known, _)| *known == name) {
            faults.push(Fault { offset: key.span().start, mistake: unknown(name) });
            continue;
        }
        let inner = entry.inner(format!("`{name}` of `rlimits`"), value);
        match soft_and_hard(&inner) {
            Ok(pair) => drop(limits.insert(name.to_owned(), pair)),
            Err(found) => faults.extend(found),
        }
    }
    if faults.is_empty() { Ok(limits) } else { Err(faults) }
}

/// The mistake of a limit that there is not.
fn unknown(name: &str) -> Mistake {
    let known: Vec<&str> = RESOURCES.iter().map(|(known, _)| *known).collect();
    // As systemd (`LimitNOFILE=`) and the kernel (`RLIMIT_NOFILE`) write it.
    let small = name.to_lowercase();
    let bare = ["rlimit_", "rlimit-", "limit"].iter().find_map(|start| small.strip_prefix(start));
    keys::unknown_among(name, bare.unwrap_or(&small), "in `rlimits`", &known)
}

/// `65536`, `"infinity"` or `[1024, 2048]`.
fn soft_and_hard(entry: &Entry<'_>) -> Read<(u64, u64)> {
    let Some(array) = entry.value.get_ref().as_array() else {
        let both = one(entry)?;
        return Ok((both, both));
    };
    let mut values = array.iter();
    let (Some(soft), Some(hard), None) = (values.next(), values.next(), values.next()) else {
        return entry.refuse(
            format!("{} has {} values", entry.label, array.len()),
            "write two, the soft limit and the hard one: [1024, 2048]",
        );
    };
    let soft = one(&entry.inner(format!("the soft {}", entry.label), soft))?;
    let hard = one(&entry.inner(format!("the hard {}", entry.label), hard))?;
    if soft > hard {
        let message = format!("{} has a soft limit above the hard one", entry.label);
        return entry.refuse(message, "write the smaller one first: [1024, 2048]");
    }
    Ok((soft, hard))
}

fn one(entry: &Entry<'_>) -> Read<u64> {
    match entry.value.get_ref().as_str() {
        Some("infinity" | "unlimited") => Ok(UNLIMITED),
        Some(text) => entry.refuse(
            format!("{} cannot be {}", entry.label, quote(text)),
            "write a number in the kernel's unit (bytes, seconds, …), or \"infinity\"",
        ),
        None => {
            let example = entry.key.to_owned() + " = { nofile = 65536 }";
            let Some(_) = entry.value.get_ref().as_integer() else {
                return entry.wrong_type("a number, \"infinity\" or a list of two", &example);
            };
            entry.integer(0..=UNLIMITED - 1, &example)
        }
    }
}
