//! The workers that drain, and what each still has, as a page for people.
//!
//! ```text
//! 2 workers drain, with 3 connections in hand
//!
//! web/1  generation 4  pid 1234  2 in hand  cut in 25s
//!        PEER             LISTENER        HELD  STATE         REQUESTS
//!        127.0.0.1:51234  127.0.0.1:8080  1min  in a request         7
//!        unix             /run/web.sock     4s  idle                 0
//!
//! web/2  generation 4  pid 1235  1 in hand  cut in 26s
//!        does not tell: it did not answer within 1 s
//! ```
//!
//! Who has waited longest comes first.

use crate::wire::control::{DrainingResults, DrainingWorker, HeldConnection};

use super::output::one_line;
use super::render::{Ink, Style, count, duration, left, right};

/// Heading, and whether the column has numbers.
const COLUMNS: [(&str, bool); 5] =
    [("PEER", false), ("LISTENER", false), ("HELD", true), ("STATE", false), ("REQUESTS", true)];

/// The column that has what a connection is in the middle of.
const STATE: usize = 3;

/// The whole page. `pool`: only its workers were asked for.
pub(super) fn draining(seen: &DrainingResults, pool: Option<&str>, style: Style) -> String {
    let of_pool = pool.map_or_else(String::new, |pool| format!(" of {}", one_line(pool)));
    let subject = match seen.workers.len() {
        0 => return format!("no worker{of_pool} drains\n"),
        1 => format!("1 worker{of_pool} drains"),
        number => format!("{} workers{of_pool} drain", count(number as u64)),
    };
    // A sum of what is not known would be none.
    let sum = seen.workers.iter().map(|worker| worker.in_hand).sum::<Option<u64>>();
    let sum = sum.map_or_else(String::new, |sum| format!(", with {} in hand", connections(sum)));
    let mut lines = vec![style.paint(Ink::Bold, &format!("{subject}{sum}"))];
    let widths = Widths::of(&seen.workers);
    for one in &seen.workers {
        lines.push(String::new());
        worker(one, &widths, style, &mut lines);
    }
    lines.iter().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// How wide the columns are, the same for all workers.
struct Widths {
    heads: [usize; 4],
    rows: [usize; 5],
}

impl Widths {
    fn of(workers: &[DrainingWorker]) -> Widths {
        let mut widths = Widths { heads: [0; 4], rows: COLUMNS.map(|(name, _)| name.len()) };
        for worker in workers {
            widen(&mut widths.heads, &head(worker));
            for connection in &worker.connections {
                widen(&mut widths.rows, &cells(connection));
            }
        }
        widths
    }
}

fn widen<const N: usize>(widths: &mut [usize; N], cells: &[String; N]) {
    for (width, cell) in widths.iter_mut().zip(cells) {
        *width = (*width).max(cell.chars().count());
    }
}

fn worker(worker: &DrainingWorker, widths: &Widths, style: Style, lines: &mut Vec<String>) {
    let inks = [Ink::Bold, Ink::Plain, Ink::Plain, Ink::Plain];
    let mut first = String::new();
    for ((text, width), ink) in head(worker).iter().zip(widths.heads).zip(inks) {
        first += &style.paint(ink, &left(text, width));
        first += "  ";
    }
    let cut = worker.cut_in.map(|time| format!("cut in {}", duration(time)));
    lines.push(first + &style.paint(Ink::Soon, &cut.unwrap_or_default()));
    let indent = widths.heads[0] + 2;
    let mut line = |text: &str| lines.push(format!("{:indent$}{text}", ""));
    let mut row = |cells: [String; 5], ink: &dyn Fn(usize) -> Ink| {
        let cells = cells.iter().zip(widths.rows).enumerate().map(|(column, (text, width))| {
            let (_, is_number) = COLUMNS[column];
            let text = if is_number { right(text, width) } else { left(text, width) };
            style.paint(ink(column), &text)
        });
        line(&cells.collect::<Vec<_>>().join("  "));
    };
    if !worker.connections.is_empty() {
        row(COLUMNS.map(|(name, _)| name.to_owned()), &|_| Ink::Faint);
    }
    for connection in &worker.connections {
        let of_state = if connection.state == "in a request" { Ink::Soon } else { Ink::Plain };
        row(cells(connection), &|column| if column == STATE { of_state } else { Ink::Plain });
    }
    if let Some(why) = &worker.silence {
        let what = if worker.connections.is_empty() { "does not tell" } else { "not all" };
        line(&style.paint(Ink::Soon, &one_line(&format!("{what}: {why}"))));
    }
    if worker.untold > 0 && !worker.connections.is_empty() {
        line(&format!("and {} more", count(worker.untold)));
    }
}

/// What begins a worker's line.
fn head(worker: &DrainingWorker) -> [String; 4] {
    let in_hand = worker.in_hand.map(|number| format!("{} in hand", count(number)));
    [
        format!("{}/{}", one_line(&worker.pool), worker.slot),
        format!("generation {}", worker.generation),
        // Zero: there is no process.
        if worker.pid == 0 { "pid -".to_owned() } else { format!("pid {}", worker.pid) },
        in_hand.unwrap_or_else(|| "number in hand not known".to_owned()),
    ]
}

fn cells(connection: &HeldConnection) -> [String; 5] {
    let known = |text: &str| if text.is_empty() { "-".to_owned() } else { one_line(text) };
    [
        known(&connection.peer),
        known(&connection.listener),
        duration(connection.held_for),
        known(&connection.state),
        count(connection.requests),
    ]
}

fn connections(number: u64) -> String {
    match number {
        1 => "1 connection".to_owned(),
        _ => format!("{} connections", count(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(peer: &str, held_for: f64, state: &str, requests: u64) -> HeldConnection {
        let (peer, listener, state) = (peer.to_owned(), "[::]:8080".to_owned(), state.to_owned());
        HeldConnection { peer, listener, held_for, state, requests }
    }

    fn drains(slot: u32, in_hand: u64, connections: Vec<HeldConnection>) -> DrainingWorker {
        DrainingWorker {
            pool: "web".to_owned(),
            slot,
            generation: 4,
            pid: 1233 + slot,
            cut_in: Some(25.4),
            in_hand: Some(in_hand),
            connections,
            ..DrainingWorker::default()
        }
    }

    fn page(workers: Vec<DrainingWorker>, pool: Option<&str>) -> String {
        draining(&DrainingResults { workers }, pool, Style::default())
    }

    #[test]
    fn each_worker_has_a_line_and_each_connection_one_below_it() {
        let first =
            vec![held("127.0.0.1:51234", 65.0, "in a request", 1007), held("unix", 4.0, "idle", 0)];
        let silence = Some("it did not answer within 1 s".to_owned());
        let second = DrainingWorker { silence, untold: 1, ..drains(12, 1, Vec::new()) };
        let wanted = "\
2 workers drain, with 3 connections in hand

web/1   generation 4  pid 1234  2 in hand  cut in 25s
        PEER             LISTENER     HELD  STATE         REQUESTS
        127.0.0.1:51234  [::]:8080  1min 5s  in a request     1,007
        unix             [::]:8080       4s  idle                 0

web/12  generation 4  pid 1245  1 in hand  cut in 25s
        does not tell: it did not answer within 1 s
";
        let wanted = wanted.replace("LISTENER     HELD", "LISTENER      HELD");
        assert_eq!(page(vec![drains(1, 2, first), second], None), wanted);
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let one = held("", 0.0, "unknown", 1);
        let whole = DrainingWorker { untold: 1976, ..drains(1, 3000, vec![one.clone()]) };
        let text = page(vec![whole], Some("web"));
        assert!(
            text.starts_with("1 worker of web drains, with 3,000 connections in hand\n"),
            "{text}"
        );
        assert!(text.ends_with("       and 1,976 more\n"), "{text}");
        assert!(text.contains("\n       -     [::]:8080"), "{text}");

        let silence = Some("it has told no more within 1 s".to_owned());
        let part = DrainingWorker { silence, untold: 7, ..drains(1, 8, vec![one]) };
        let text = page(vec![part], None);
        assert!(text.contains("\n       not all: it has told no more within 1 s\n"), "{text}");
        assert!(text.ends_with("       and 7 more\n"), "{text}");
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let unknown = DrainingWorker { in_hand: None, cut_in: None, ..drains(1, 0, Vec::new()) };
        let text = page(vec![unknown, drains(2, 3, Vec::new())], None);
        assert!(text.starts_with("2 workers drain\n"), "{text}");
        assert!(text.contains("pid 1234  number in hand not known\n"), "{text}");
    }

    #[test]
    fn nobody_who_drains_is_a_sentence() {
        assert_eq!(page(Vec::new(), None), "no worker drains\n");
        assert_eq!(page(Vec::new(), Some("web")), "no worker of web drains\n");
    }

    #[test]
    fn what_a_master_sends_stays_on_its_line() {
        let silence = Some("a\nb\u{1b}[2J".to_owned());
        let bad = held("x\n\u{1b}[31m", f64::NAN, "new\nstate", u64::MAX);
        let bad = DrainingWorker { silence, pool: "a\nb".into(), ..drains(1, 1, vec![bad]) };
        let text = page(vec![bad], Some("\n"));
        assert_eq!(text.lines().count(), 6, "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}
