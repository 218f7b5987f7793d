//! `[master]`: each key once, in whichever file.

use std::time::Duration;

use super::entry::{Entry, Read, Section};
use super::error::{Mistake, Report, quote};
use super::{Log, MasterSettings, keys, time};

/// How many generations may be let drain at once, at most.
const MOST_GENERATIONS: u32 = 64;

/// Where workers' output may go.
const LOGS: [(&str, Log); 3] =
    [("fields", Log::Fields), ("stream", Log::Stream), ("inherit", Log::Inherit)];

/// Reads what all the files say in `[master]`.
pub(super) fn read(sections: &[Section<'_>], report: &mut Report) -> MasterSettings {
    let mut settings = MasterSettings::default();
    for section in sections {
        section.refuse_unknown(keys::MASTER, report);
        refuse_second(section, sections, report);
    }
    // The sections without a key leave its value alone, and those that repeat one are refused.
    for section in sections {
        let read = &mut *report;
        settings.idle_exit = section.read_or("idle-exit", settings.idle_exit, read, idle_exit);
        settings.log = section.read_or("log", settings.log, read, |entry| entry.word(&LOGS));
        settings.generations =
            section.read_or("generations", settings.generations, read, |entry| {
                entry.small(1..=MOST_GENERATIONS, "3")
            });
        settings.orphan_timeout =
            section.read_or("orphan-timeout", settings.orphan_timeout, read, |entry| {
                entry.duration(time::SHORTEST..=time::DAY)
            });
        settings.control_mode =
            section.read_or("control-mode", settings.control_mode, read, control_mode);
        let group = section.read("control-group", read, |entry| entry.string("\"www-data\""));
        settings.control_group = group.map(str::to_owned).or(settings.control_group);
        settings.places = settings.places.with(section, &["control-group"]);
    }
    settings
}

/// Reports the keys that an earlier file has, too.
fn refuse_second(section: &Section<'_>, sections: &[Section<'_>], report: &mut Report) {
    let is_same = |other: &&Section<'_>| -> bool { other.source.path() == section.source.path() };
    let earlier = sections.iter().take_while(|other| !is_same(other));
    for other in earlier {
        for key in keys::MASTER {
            if let (Some(entry), Some(first)) = (section.entry(key), other.entry(key)) {
                let place = other.source.place(first.key_offset);
                let message = format!("`{key}` of the master is already set at {place}");
                let mistake = Mistake::new(message, "keep it in one of the two files");
                section.report(entry.key_offset, mistake, report);
            }
        }
    }
}

fn idle_exit(entry: &Entry<'_>) -> Read<Option<Duration>> {
    match entry.value.get_ref().as_str() {
        Some("never") => Ok(None),
        Some(text) if time::parse(text).is_none() => entry.refuse(
            format!("`idle-exit` is {}, which is no time", quote(text)),
            "write \"never\", or a time such as \"10min\"",
        ),
        Some(_) | None => entry.duration(time::SHORTEST..=time::DAY).map(Some),
    }
}

fn control_mode(entry: &Entry<'_>) -> Read<u32> {
    let example = "\"0660\"";
    let text = entry.text_of("a text of octal digits", example)?;
    let is_octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        Ok(mode @ 0..=0o777) if is_octal => Ok(mode),
        Ok(_) | Err(_) => entry.refuse(
            format!("`control-mode` cannot be {}", quote(text)),
            format!("write octal digits from \"0000\" to \"0777\", for example {example}"),
        ),
    }
}
