//! A status as a page for people.
//!
//! ```text
//! 2 pools serve                                          ← the master's own sentence
//! rcluster 0.1.0, pid 812, running, up 3d 4h
//!
//! web  serving  4 of 4 workers  generation 5  12,345 accepted = 12,300 finished + 45 in hand
//!      listens on 127.0.0.1:8080
//!       PID  SLOT  GENERATION  STATE         UP  CONNECTIONS  IN HAND  REQUESTS
//!      1234     1           5  serving  3min 2s       1,234       12     5,102
//! ```
//!
//! What is wrong comes before what is well, and is loud. Whatever text the master sends stays on its
//! line. This file knows neither the terminal nor the clock.

use crate::wire::control::{Pool, Status, Worker};

use super::output::one_line;

/// How a page looks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Style {
    /// Whether colours say more.
    pub(super) is_coloured: bool,
}

/// How a text is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Plain,
    Bold,
    Faint,
    Good,
    Soon,
    Bad,
}

impl Style {
    pub(super) fn paint(self, ink: Ink, text: &str) -> String {
        let code = match ink {
            Ink::Plain => return text.to_owned(),
            Ink::Bold => "1",
            Ink::Faint => "2",
            Ink::Good => "32",
            Ink::Soon => "33",
            Ink::Bad => "1;31",
        };
        match self.is_coloured && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// The whole page.
pub(super) fn render(status: &Status, style: Style) -> String {
    let mut lines = Vec::new();
    master(status, style, &mut lines);
    let widths = Widths::of(&status.pools);
    for one in &status.pools {
        lines.push(String::new());
        pool(one, &widths, style, &mut lines);
    }
    lines.iter().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// How wide the columns are, the same for all pools.
struct Widths {
    heads: [usize; 4],
    workers: [usize; 8],
}

impl Widths {
    fn of(pools: &[Pool]) -> Widths {
        let mut widths = Widths { heads: [0; 4], workers: COLUMNS.map(|(name, _)| name.len()) };
        for pool in pools {
            widen(&mut widths.heads, &head(pool));
            for worker in &pool.workers {
                widen(&mut widths.workers, &cells(worker, pool));
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

/// The service as a whole.
fn master(status: &Status, style: Style, lines: &mut Vec<String>) {
    lines.push(style.paint(Ink::Bold, &one_line(&status.summary)));
    let Status { version, pid, state, .. } = status;
    let up = duration(status.uptime);
    let about = format!("rcluster {version}, pid {pid}, {state}, up {up}");
    lines.push(style.paint(Ink::Faint, &one_line(&about)));
    if let Some(rollout) = &status.rollout {
        let (done, total) = (rollout.done, rollout.total);
        let (ink, text) = match &rollout.going_back {
            Some(why) => (Ink::Bad, format!("going back: {why}; {done} of {total} slots are back")),
            None if status.state == "resuming" => {
                (Ink::Soon, format!("{done} of {total} slots are back after the master was killed"))
            }
            None => {
                let generation = rollout.generation;
                (
                    Ink::Soon,
                    format!("reload: {done} of {total} slots serve generation {generation}"),
                )
            }
        };
        lines.push(style.paint(ink, &one_line(&text)));
    }
    if status.reload_waiting {
        lines.push(style.paint(Ink::Soon, "another reload waits for its turn"));
    }
    if let Some(last) = &status.last_reload {
        let (ink, outcome) = if last.ok { (Ink::Plain, "") } else { (Ink::Bad, " failed") };
        let text = format!("last reload{outcome} {} ago: {}", duration(last.ago), last.message);
        lines.push(style.paint(ink, &one_line(&text)));
    }
    for warning in &status.warnings {
        lines.push(style.paint(Ink::Bad, &one_line(&format!("warning: {warning}"))));
    }
}

/// One pool and its workers.
fn pool(pool: &Pool, widths: &Widths, style: Style, lines: &mut Vec<String>) {
    let inks = [Ink::Bold, ink_of(&pool.state), Ink::Plain, Ink::Plain];
    let mut first = String::new();
    for ((text, width), ink) in head(pool).iter().zip(widths.heads).zip(inks) {
        if width > 0 {
            first += &style.paint(ink, &left(text, width));
            first += "  ";
        }
    }
    lines.push(first + &accounts(pool, style));
    let indent = widths.heads[0] + 2;
    let mut detail = |ink, text: &str| {
        lines.push(format!("{:indent$}{}", "", style.paint(ink, &one_line(text))));
    };
    if let Some(why) = &pool.gave_up {
        detail(Ink::Bad, &format!("gave up: {why}; `rcluster reload` tries it again"));
    }
    if !pool.listen.is_empty() {
        detail(Ink::Faint, &format!("listens on {}", pool.listen.join(", ")));
    }
    table(pool, widths.workers, indent, style, lines);
}

/// What begins a pool's line: name, state, workers, generation.
fn head(pool: &Pool) -> [String; 4] {
    let plural = if pool.workers_wanted == 1 { "" } else { "s" };
    let generation = pool.generation.map_or_else(String::new, |generation| {
        let good = pool.good_generation.filter(|good| *good != generation);
        let good = good.map_or_else(String::new, |good| format!(" (last good: {good})"));
        format!("generation {generation}{good}")
    });
    [
        one_line(&pool.name),
        one_line(&pool.state),
        format!("{} of {} worker{plural}", pool.workers_serving, pool.workers_wanted),
        generation,
    ]
}

/// Where the connections have gone: what was accepted is the sum of the rest.
fn accounts(pool: &Pool, style: Style) -> String {
    if !counts(pool) {
        return "its workers accept by themselves".to_owned();
    }
    let mut text = format!(
        "{} accepted = {} finished + {} in hand",
        count(pool.accepted),
        count(pool.finished),
        count(pool.in_hand)
    );
    for (number, what, ink) in [
        (pool.held.saturating_sub(pool.silent), "held", Ink::Soon),
        (pool.silent, "silent", Ink::Plain),
        (pool.refused, "refused", Ink::Bad),
        (pool.cut, "cut", Ink::Bad),
    ] {
        if number > 0 {
            text += &format!(" + {}", style.paint(ink, &format!("{} {what}", count(number))));
        }
    }
    if pool.redispatched > 0 {
        text += &format!(", {} of them dispatched again", count(pool.redispatched));
    }
    if pool.answered > 0 {
        text += &format!(", {} answered 503 for a dead worker", count(pool.answered));
    }
    if pool.handed_back > 0 {
        text += &format!(", {} times handed from worker to worker", count(pool.handed_back));
    }
    text
}

/// The columns of the workers: heading, and whether they are numbers.
const COLUMNS: [(&str, bool); 8] = [
    ("PID", true),
    ("SLOT", true),
    ("GENERATION", true),
    ("STATE", false),
    ("UP", true),
    ("CONNECTIONS", true),
    ("IN HAND", true),
    ("REQUESTS", true),
];

/// The column that has a worker's state.
const STATE: usize = 3;

fn table(pool: &Pool, widths: [usize; 8], indent: usize, style: Style, lines: &mut Vec<String>) {
    let mut line = |cells: [String; 8], ink: &dyn Fn(usize) -> Ink| {
        let cells = cells.iter().zip(widths).enumerate().map(|(column, (text, width))| {
            let (_, is_number) = COLUMNS[column];
            let text = if is_number { right(text, width) } else { left(text, width) };
            style.paint(ink(column), &text)
        });
        let cells: Vec<String> = cells.collect();
        lines.push(format!("{:indent$}{}", "", cells.join("  ")));
    };
    let workers = &pool.workers;
    if !workers.is_empty() {
        line(COLUMNS.map(|(name, _)| name.to_owned()), &|_| Ink::Faint);
    }
    for worker in workers {
        let of_state = ink_of(&worker.state);
        line(cells(worker, pool), &|column| if column == STATE { of_state } else { Ink::Plain });
    }
    for worker in workers.iter().filter(|worker| !worker.said.is_empty()) {
        let said = one_line(&format!("{} says: {}", worker.pid, worker.said));
        lines.push(format!("{:indent$}{}", "", style.paint(Ink::Faint, &said)));
    }
}

/// Whether anything is known of its connections.
fn counts(pool: &Pool) -> bool {
    pool.accept != "workers" || pool.counted
}

fn cells(worker: &Worker, pool: &Pool) -> [String; 8] {
    let number = |number| if counts(pool) { count(number) } else { "-".to_owned() };
    [
        // Zero: there is no process yet.
        if worker.pid == 0 { "-".to_owned() } else { worker.pid.to_string() },
        worker.slot.to_string(),
        worker.generation.to_string(),
        one_line(&worker.state),
        worker.serving_for.map_or("-".to_owned(), duration),
        number(worker.connections),
        number(worker.in_hand),
        number(worker.requests),
    ]
}

/// States of pools and workers alike; a newer master may have more.
fn ink_of(state: &str) -> Ink {
    match state {
        "serving" => Ink::Good,
        "starting" | "draining" | "ending" => Ink::Soon,
        "degraded" | "stalled" | "gave up" => Ink::Bad,
        _ => Ink::Plain,
    }
}

pub(super) fn left(text: &str, width: usize) -> String {
    format!("{text:<width$}")
}

pub(super) fn right(text: &str, width: usize) -> String {
    format!("{text:>width$}")
}

/// A number that can be read and still be added up: `12,345`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds in their two largest units: `3d 4h`, `2min 5s`, `0s`.
pub(super) fn duration(seconds: f64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    // Casting saturates: a negative number or none at all is zero.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let whole = seconds as u64;
    let first = UNITS.iter().position(|(unit, _)| whole >= *unit).unwrap_or(UNITS.len() - 1);
    let mut rest = whole;
    let mut parts = Vec::new();
    for (unit, name) in UNITS.iter().skip(first).take(2) {
        if rest / unit > 0 || parts.is_empty() {
            parts.push(format!("{}{name}", rest / unit));
        }
        rest %= unit;
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests;
