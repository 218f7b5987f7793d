//! The last reloads as a table for people.
//!
//! ```text
//! WHEN (UTC)           GENERATION  OUTCOME         TOOK  HANDED BACK  RE-DISPATCHED  CUT  ASKED BY
//! 2026-11-22 18:30:05           7  done           1.2 s          312              0    0  SIGUSR1
//! 2026-11-22 18:29:11           6  rolled back   812 ms            0              0    0  uid 0, pid 4711 (rcluster)
//!                                  web/1: the canary exited with status 3 after 0.4 s
//! ```
//!
//! A `+` behind a number: workers that the reload retired are not all gone, and it may grow. A `?`: some
//! of them accepted by themselves, and what they had in hand at their end is not known.

use std::time::{Duration, SystemTime};

use crate::wire::control::{PastReload, ReloadsResults};

use super::output::one_line;
use super::render::{Ink, Style, count, left, right};

/// Heading, and whether the column has numbers.
const COLUMNS: [(&str, bool); 8] = [
    ("WHEN (UTC)", false),
    ("GENERATION", true),
    ("OUTCOME", false),
    ("TOOK", true),
    ("HANDED BACK", true),
    ("RE-DISPATCHED", true),
    ("CUT", true),
    ("ASKED BY", false),
];

/// The column that has the outcome.
const OUTCOME: usize = 2;
/// The column that has what was cut.
const CUT: usize = 6;

/// The whole table.
pub(super) fn reloads(seen: &ReloadsResults, style: Style) -> String {
    if seen.reloads.is_empty() {
        return "nobody has asked for a reload yet\n".to_owned();
    }
    let rows: Vec<[String; 8]> = seen.reloads.iter().map(cells).collect();
    let mut widths = COLUMNS.map(|(name, _)| name.len());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row).take(COLUMNS.len() - 1) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; 8], ink: &dyn Fn(usize) -> Ink| {
        let cells = row.iter().enumerate().map(|(column, text)| {
            let (_, is_number) = COLUMNS[column];
            let text =
                if is_number { right(text, widths[column]) } else { left(text, widths[column]) };
            style.paint(ink(column), &text)
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&COLUMNS.map(|(name, _)| name.to_owned()), &|_| Ink::Faint);
    let indent = widths[..OUTCOME].iter().map(|width| width + 2).sum::<usize>();
    for (row, reload) in rows.iter().zip(&seen.reloads) {
        let outcome = ink_of(&reload.outcome);
        text += &line(row, &|column| match column {
            OUTCOME => outcome,
            CUT if reload.cut > 0 => Ink::Bad,
            _ => Ink::Plain,
        });
        if !reload.message.is_empty() {
            text +=
                &format!("{:indent$}{}\n", "", style.paint(outcome, &one_line(&reload.message)));
        }
    }
    text
}

fn cells(reload: &PastReload) -> [String; 8] {
    let more = if reload.leaving > 0 { "+" } else { "" };
    let number = |number: u64| match reload.generation {
        Some(_) => format!("{}{more}", count(number)),
        None => "-".to_owned(),
    };
    [
        when(reload.at),
        reload.generation.map_or("-".to_owned(), |generation| generation.to_string()),
        one_line(&reload.outcome),
        reload.took.map_or("-".to_owned(), took),
        number(reload.handed_back),
        number(reload.redispatched),
        match reload.unseen {
            0 => number(reload.cut),
            // What was in hand there is not known.
            _ => format!("{}?", number(reload.cut)),
        },
        one_line(&reload.asked_by.join(", ")),
    ]
}

/// Outcomes; a newer master may have more.
fn ink_of(outcome: &str) -> Ink {
    match outcome {
        "done" | "resized" => Ink::Good,
        "under way" => Ink::Soon,
        "rolled back" | "refused" | "stopped" => Ink::Bad,
        _ => Ink::Plain,
    }
}

/// `2026-11-22 18:30:05`
fn when(at: f64) -> String {
    let since = Duration::try_from_secs_f64(at).ok();
    let time = since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
    // What is beyond the year 9999 has no such form.
    let Some(time) = time.filter(|_| at < 253_402_300_800.0) else { return "?".to_owned() };
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.replace('T', " ").trim_end_matches('Z').to_owned()
}

/// Two digits are enough.
fn took(seconds: f64) -> String {
    match seconds {
        0.0..1.0 => format!("{:.0} ms", seconds * 1000.0),
        1.0..60.0 => format!("{seconds:.1} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_reload_and_one_for_each_reason() {
        let good = PastReload {
            at: 1_795_372_205.25,
            asked_by: vec!["SIGUSR1".into(), "uid 0, pid 4711 (rcluster)".into()],
            generation: Some(7),
            outcome: "done".into(),
            took: Some(1.23),
            handed_back: 1312,
            cut: 2,
            leaving: 1,
            ..PastReload::default()
        };
        let bad = PastReload {
            at: 1_795_372_000.0,
            asked_by: vec!["x\n\u{1b}[31m".into()],
            outcome: "refused".into(),
            message: "the configuration\nis not valid".into(),
            took: Some(0.002),
            ..PastReload::default()
        };
        let text = reloads(&ReloadsResults { reloads: vec![good, bad] }, Style::default());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].starts_with("WHEN (UTC)           GENERATION  OUTCOME"), "{text}");
        let words =
            "2026-11-22 18:30:05 7 done 1.2 s 1,312+ 0+ 2+ SIGUSR1, uid 0, pid 4711 (rcluster)";
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>().join(" "), words);
        assert!(lines[2].contains(" - ") && lines[2].contains("refused"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert_eq!(lines[3].find("the configuration"), lines[1].find("done"), "{text}");
    }

    #[test]
    fn strange_numbers_are_no_panic() {
        for at in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            assert_eq!(when(at), "?");
        }
        assert_eq!(took(0.0004), "0 ms");
        assert_eq!(took(600.0), "10 min");
        assert_eq!(reloads(&ReloadsResults::default(), Style::default()).lines().count(), 1);
    }
}
