//! What is announced, but not in this version yet.
//!
//! These refusals stand together, so that the version that brings a thing deletes its line here. A
//! word is refused wherever it is written: in a file or on the command line.

use super::error::{Mistake, one_of, quote};

/// Keys that a later version brings.
const KEYS: &[&str] = &[
    "map",
    "drain-preload",
    "first-byte",
    "dialect",
    "stop-signal",
    "blocking",
    "ready",
    "settle",
    "nice",
    "rlimits",
    "umask",
    "oom-score-adjust",
    "no-new-privileges",
];

/// Words that a later version brings: key, words, what there is now.
const WORDS: &[(&str, &[&str], &str)] =
    &[("kind", &["node", "ipc", "inherit"], "native"), ("accept", &["workers"], "master")];

/// The refusal of a key that comes later.
pub(super) fn key(key: &str) -> Option<Mistake> {
    let key = KEYS.iter().find(|later| **later == key)?;
    Some(Mistake::new(
        format!("`{key}` is not in this version yet"),
        "remove the line; this version works without it",
    ))
}

/// The refusal of a word that comes later.
pub(super) fn word(key: &str, word: &str) -> Option<Mistake> {
    let (_, _, now) = WORDS.iter().find(|(of, words, _)| *of == key && words.contains(&word))?;
    Some(Mistake::new(
        format!("`{key} = \"{word}\"` is not in this version yet"),
        format!("this version has {}", one_of(&[now])),
    ))
}

/// The refusal of every preset.
pub(super) fn preset(name: &str) -> Mistake {
    Mistake::new(
        format!("the preset {} is not in this version yet", quote(name)),
        "remove the line and write the keys themselves",
    )
}
