//! The keys there are, and what somebody who wrote another one probably meant.

use super::error::{Mistake, quote};

/// Keys at the top of a file.
pub(super) const TOP: &[&str] = &["master", "pool"];

/// Keys of `[master]`.
pub(super) const MASTER: &[&str] =
    &["idle-exit", "log", "generations", "orphan-timeout", "control-mode", "control-group"];

/// Keys of `[pool.NAME]`.
pub(super) const POOL: &[&str] = &[
    "command",
    "listen",
    "kind",
    "preset",
    "workers",
    "accept",
    "balance",
    "working-directory",
    "user",
    "group",
    "supplementary-groups",
    "environment",
    "environment-file",
    "clear-environment",
    "start-timeout",
    "drain-timeout",
    "watchdog",
    "max-connections",
    "max-requests",
    "restart-limit",
    "restart-window",
    "surge",
    "canary",
    "probe",
    "probe-timeout",
    "unavailable",
    "unavailable-after",
    "crash-ledger",
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

/// What other programs call it.
const SYNONYMS: &[(&str, &str)] = &[
    ("address", "listen"),
    ("args", "command"),
    ("bind", "listen"),
    ("chdir", "working-directory"),
    ("cmd", "command"),
    ("cwd", "working-directory"),
    ("env", "environment"),
    ("env-file", "environment-file"),
    ("exec", "command"),
    ("health-check", "probe"),
    ("healthcheck", "probe"),
    ("exec-start", "command"),
    ("execstart", "command"),
    ("instances", "workers"),
    ("kill-signal", "stop-signal"),
    ("killsignal", "stop-signal"),
    ("limits", "rlimits"),
    ("port", "listen"),
    ("processes", "workers"),
    ("program", "command"),
    ("ports", "map"),
    ("script", "command"),
    ("sockets", "listen"),
    ("stop-timeout", "drain-timeout"),
    ("type", "kind"),
];

/// The mistake of an unknown key among `known` ones. `place` says where it stands: "in pool `web`".
pub(super) fn unknown(key: &str, place: &str, known: &[&str]) -> Mistake {
    let message = format!("unknown key {} {place}", quote(key));
    let remedy = match (nearest(key, known), nearest(key, MASTER), nearest(key, POOL)) {
        (Some(right), _, _) => format!("did you mean `{right}`?"),
        (None, Some(right), _) => format!("`{right}` belongs into `[master]`"),
        (None, None, Some(right)) => format!("`{right}` belongs into a pool, `[pool.NAME]`"),
        (None, None, None) => format!("known here: {}", known.join(", ")),
    };
    Mistake::new(message, remedy)
}

/// The mistake of an unknown word `name` in a closed list; `bare` is what it is compared by.
pub(super) fn unknown_among(name: &str, bare: &str, place: &str, known: &[&str]) -> Mistake {
    let message = format!("unknown key {} {place}", quote(name));
    let remedy = match nearest(bare, known) {
        Some(right) => format!("did you mean `{right}`?"),
        None => format!("known here: {}", known.join(", ")),
    };
    Mistake::new(message, remedy)
}

/// The known word that was probably meant.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    // Nobody mistypes a key of such a length; the bound keeps rubbish cheap.
    if word.len() > 60 {
        return None;
    }
    let word = word.to_lowercase().replace(['_', ' '], "-");
    let synonym = SYNONYMS.iter().find(|(theirs, _)| *theirs == word);
    if let Some((_, ours)) = synonym {
        return known.iter().find(|known| *known == ours).copied();
    }
    let most = |known: &str| (known.len().max(word.len()) / 3).max(1);
    known
        .iter()
        .map(|known| (distance(&word, known), *known))
        .filter(|(distance, known)| *distance <= most(known))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// How many letters are missing, surplus, wrong or swapped.
fn distance(one: &str, two: &str) -> usize {
    let one: Vec<char> = one.chars().collect();
    let two: Vec<char> = two.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=two.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in two.iter().enumerate() {
            let replaced = last[j] + usize::from(a != b);
            let mut least = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == two[j - 1] && one[i - 1] == *b {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_slips() {
        assert_eq!(distance("", ""), 0);
        assert_eq!(distance("worker", "workers"), 1);
        assert_eq!(distance("wrokers", "workers"), 1);
        assert_eq!(distance("surge", "purge"), 1);
        assert_eq!(distance("abc", ""), 3);
    }

    #[test]
    fn the_nearest_key_is_found() {
        assert_eq!(nearest("worker", POOL), Some("workers"));
        assert_eq!(nearest("drain_timeout", POOL), Some("drain-timeout"));
        assert_eq!(nearest("Listen", POOL), Some("listen"));
        assert_eq!(nearest("env", POOL), Some("environment"));
        assert_eq!(nearest("pools", TOP), Some("pool"));
        assert_eq!(nearest("banana", POOL), None);
        assert_eq!(nearest(&"x".repeat(10_000), POOL), None);
    }
}
