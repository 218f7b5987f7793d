//! Reading values: one key's value becomes one of our types, or faults with their places.
//!
//! Serde would stop at the first mistake; so the parsed table is walked by hand. A [`Section`] is a
//! table with a title, an [`Entry`] one key with its value. Every reader names what it expects and
//! shows an example, because that is what its refusal says.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Mistake, Report, one_of, quote};
use super::source::Source;
use super::{keys, time};

/// A mistake at a byte of the file.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) offset: usize,
    pub(super) mistake: Mistake,
}

/// What reading a value yields. A list can have several faults.
pub(super) type Read<T> = Result<T, Vec<Fault>>;

/// A table of the file, with the place and the words to speak of it.
#[derive(Clone)]
pub(super) struct Section<'a> {
    pub(super) source: &'a Source,
    /// As in "unknown key … in TITLE"; empty for the top of a file.
    pub(super) title: String,
    /// Where its header is.
    pub(super) offset: usize,
    pub(super) table: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    /// Reports every key that is not among `known`.
    pub(super) fn refuse_unknown(&self, known: &[&str], report: &mut Report) {
        for (key, value) in self.table.iter() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) || report.only_counts() {
                continue;
            }
            let mistake = self.unknown(name, value.get_ref().is_table(), known);
            self.report(key.span().start, mistake, report);
        }
    }

    /// The mistake of an unknown key.
    fn unknown(&self, name: &str, is_table: bool, known: &[&str]) -> Mistake {
        let is_top = self.title.is_empty();
        let place = if is_top { "at the top".to_owned() } else { format!("in {}", self.title) };
        let mut mistake = keys::unknown(name, &place, known);
        // A table that resembles no key is a pool whose header is not quite right.
        if is_table && keys::nearest(name, known).is_none() {
            let header = if is_top { "[pool.NAME]" } else { "[pool.\"a.b\"]" };
            let pool = if is_top { "a pool" } else { "a pool with a dot in its name" };
            mistake.remedy = Some(format!("write {header} for {pool}"));
        }
        mistake
    }

    /// The entry of a key.
    pub(super) fn entry(&self, key: &'static str) -> Option<Entry<'a>> {
        let (written, value) = self.table.get_key_value(key)?;
        Some(Entry { key, label: format!("`{key}`"), key_offset: written.span().start, value })
    }

    /// What a key says, when it is there and right.
    pub(super) fn read<T>(
        &self,
        key: &'static str,
        report: &mut Report,
        read: impl FnOnce(&Entry<'a>) -> Read<T>,
    ) -> Option<T> {
        match read(&self.entry(key)?) {
            Ok(value) => Some(value),
            Err(faults) => {
                for fault in faults {
                    self.report(fault.offset, fault.mistake, report);
                }
                None
            }
        }
    }

    /// What a key says, else its default.
    pub(super) fn read_or<T>(
        &self,
        key: &'static str,
        default: T,
        report: &mut Report,
        read: impl FnOnce(&Entry<'a>) -> Read<T>,
    ) -> T {
        self.read(key, report, read).unwrap_or(default)
    }

    /// Reports a mistake at a byte of this file.
    pub(super) fn report(&self, offset: usize, mistake: Mistake, report: &mut Report) {
        if !report.only_counts() {
            report.add(mistake.at(self.source.place(offset)));
        }
    }
}

/// One key and its value.
pub(super) struct Entry<'a> {
    pub(super) key: &'static str,
    /// What sentences call it: its key, or "an entry of" it.
    pub(super) label: String,
    pub(super) key_offset: usize,
    pub(super) value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Entry<'a> {
    /// Where the value is.
    pub(super) fn offset(&self) -> usize {
        self.value.span().start
    }

    /// Refuses the value.
    pub(super) fn refuse<T>(
        &self,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Read<T> {
        Err(vec![Fault { offset: self.offset(), mistake: Mistake::new(message, remedy) }])
    }

    /// Refuses the value for being of another type.
    pub(super) fn wrong_type<T>(&self, expected: &str, example: &str) -> Read<T> {
        let article = match self.value.get_ref().type_str() {
            "integer" => "a number",
            "float" => "a number with a fraction",
            "boolean" => "true or false",
            "datetime" => "a date",
            "array" => "a list",
            "table" => "a table",
            _ => "text",
        };
        let meant = meant(self.value.get_ref(), expected).unwrap_or(example.to_owned());
        self.refuse(
            format!("{} is {article}, but {expected} is expected", self.label),
            format!("write for example {meant}"),
        )
    }

    /// An element of a list, or of a table.
    pub(super) fn inner(&self, label: String, value: &'a Spanned<DeValue<'a>>) -> Entry<'a> {
        Entry { key: self.key, label, key_offset: self.key_offset, value }
    }

    /// Text, not empty, without zero bytes.
    pub(super) fn string(&self, example: &str) -> Read<&'a str> {
        self.text_of("text", example)
    }

    /// Text of a certain form, not empty, without zero bytes.
    pub(super) fn text_of(&self, expected: &str, example: &str) -> Read<&'a str> {
        match self.value.get_ref().as_str() {
            None => self.wrong_type(expected, example),
            Some("") => self.refuse(
                format!("{} has an empty text", self.label),
                format!("write for example {example}"),
            ),
            Some(text) if text.contains('\0') => self.refuse(
                format!("{} has a zero byte, which no program can be given", self.label),
                "remove \\u0000",
            ),
            Some(text) => Ok(text),
        }
    }

    /// A list of texts, with their places.
    pub(super) fn strings(&self, example: &str) -> Read<Vec<(&'a str, usize)>> {
        let Some(array) = self.value.get_ref().as_array() else {
            return self.wrong_type("a list", example);
        };
        let mut faults = Vec::new();
        let mut texts = Vec::new();
        for value in array.iter() {
            let element = self.inner(format!("an entry of {}", self.label), value);
            match element.string(example) {
                Ok(text) => texts.push((text, element.offset())),
                Err(found) => faults.extend(found),
            }
        }
        if faults.is_empty() { Ok(texts) } else { Err(faults) }
    }

    /// True or false.
    pub(super) fn boolean(&self) -> Read<bool> {
        let expected = || self.wrong_type("true or false", "true");
        self.value.get_ref().as_bool().map_or_else(expected, Ok)
    }

    /// A whole number within bounds.
    pub(super) fn integer(&self, bounds: RangeInclusive<u64>, example: &str) -> Read<u64> {
        self.whole(bounds, example)
    }

    /// A whole number within bounds, of any type.
    fn whole<T>(&self, bounds: RangeInclusive<T>, example: &str) -> Read<T>
    where
        T: Display + PartialOrd + TryFrom<i128>,
    {
        let Some(written) = self.value.get_ref().as_integer() else {
            let (least, most) = (bounds.start(), bounds.end());
            return self.wrong_type(&format!("a number from {least} to {most}"), example);
        };
        let number = i128::from_str_radix(written.as_str(), written.radix()).ok();
        match number.and_then(|number| T::try_from(number).ok()) {
            Some(number) if bounds.contains(&number) => Ok(number),
            Some(_) | None => self.refuse(
                format!("{} cannot be {}", self.label, quote(&written.to_string())),
                format!("write a number from {} to {}", bounds.start(), bounds.end()),
            ),
        }
    }

    /// A whole number within bounds, which may be below zero.
    pub(super) fn signed(&self, bounds: RangeInclusive<i32>, example: &str) -> Read<i32> {
        self.whole(bounds, example)
    }

    /// A whole number within bounds, in 32 bits.
    pub(super) fn small(&self, bounds: RangeInclusive<u32>, example: &str) -> Read<u32> {
        let wide = u64::from(*bounds.start())..=u64::from(*bounds.end());
        let number = self.integer(wide, example)?;
        Ok(u32::try_from(number).unwrap_or(*bounds.end()))
    }

    /// A span of time within bounds: text, or a bare number of seconds.
    pub(super) fn duration(&self, bounds: RangeInclusive<Duration>) -> Read<Duration> {
        let example = "\"30s\"";
        let integer = self.value.get_ref().as_integer().map(ToString::to_string);
        let text = match &integer {
            Some(number) => number.as_str(),
            None => match self.value.get_ref().as_str() {
                Some(text) => text,
                None => return self.wrong_type("a span of time", example),
            },
        };
        let right = format!(
            "write a time from {} to {}, for example {example}, \"1m 30s\", \"500ms\" or 30 (seconds)",
            time::format(*bounds.start()),
            time::format(*bounds.end()),
        );
        match time::parse(text) {
            Some(span) if bounds.contains(&span) => Ok(span),
            Some(_) => self.refuse(format!("{} cannot be {}", self.label, quote(text)), right),
            None => {
                self.refuse(format!("{} is {}, which is no time", self.label, quote(text)), right)
            }
        }
    }

    /// What a text of it stands for.
    pub(super) fn parsed<T: FromStr<Err = Mistake>>(&self, text: &str) -> Read<T> {
        text.parse().or_else(|mistake: Mistake| {
            self.refuse(mistake.message, mistake.remedy.unwrap_or_default())
        })
    }

    /// One of a few words. `known` has them with what they mean.
    pub(super) fn word<T: Copy>(&self, known: &[(&str, T)]) -> Read<T> {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        let example = format!("\"{}\"", words.first().copied().unwrap_or_default());
        let text = self.text_of("a word", &example)?;
        match known.iter().find(|(word, _)| *word == text) {
            Some((_, meaning)) => Ok(*meaning),
            None => {
                let message = format!("{} cannot be {}", self.label, quote(text));
                let remedy = match keys::nearest(text, &words) {
                    Some(right) => format!("did you mean `{right}`?"),
                    None => format!("write {}", one_of(&words)),
                };
                self.refuse(message, remedy)
            }
        }
    }
}

/// A value as it was probably meant, if it is simple.
fn meant(was: &DeValue<'_>, expected: &str) -> Option<String> {
    let text = match was {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Datetime(date) => date.to_string(),
        DeValue::Array(_) | DeValue::Table(_) => return None,
    };
    let is_odd = |c: char| matches!(c, '"' | '\\' | '`') || c.is_control();
    if text.is_empty() || text.len() > 60 || text.contains(is_odd) {
        return None;
    }
    match expected {
        "text" => Some(format!("\"{text}\"")),
        "a list" => {
            // A command as a shell would read it, without its quotes.
            let words = text.split_whitespace();
            let words: Vec<String> = words.map(|word| format!("\"{word}\"")).collect();
            Some(format!("[{}]", words.join(", ")))
        }
        _ => None,
    }
}
