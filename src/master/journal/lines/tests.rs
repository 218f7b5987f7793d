//! Lines, levels, stack traces, long lines, binary data; and that it does not matter how they are
//! cut by the pipe.

use super::*;

#[expect(clippy::disallowed_methods, reason = "a test has no loop")]
fn start() -> Instant {
    Instant::now()
}

/// What comes of it when it is read in pieces of this size.
fn pieces(bytes: &[u8], size: usize) -> Vec<Piece> {
    let (mut lines, mut pieces) = (Lines::default(), Vec::new());
    for part in bytes.chunks(size) {
        lines.feed(part, start(), &mut |piece| pieces.push(piece));
    }
    lines.finish(&mut |piece| pieces.push(piece));
    pieces
}

/// The same, in short: `6 text`, with `+` for each line that was joined.
fn short(bytes: &[u8]) -> Vec<String> {
    let pieces = pieces(bytes, bytes.len().max(1));
    let short = |piece: &Piece| {
        let line_break = match piece.line_break {
            Some(line_break) => format!(" ({})", line_break.as_str()),
            None => String::new(),
        };
        format!("{} {}{line_break}", piece.level as u8, piece.text.replace('\n', "+"))
    };
    pieces.iter().map(short).collect()
}

#[test]
fn a_line_is_a_record_and_its_prefix_the_level() {
    let table: &[(&str, &[&str])] = &[
        ("one\ntwo\n", &["6 one", "6 two"]),
        ("<3>bad\n<7>detail\nplain\n", &["3 bad", "7 detail", "6 plain"]),
        ("<8>no level\n<>x\n<3\n", &["6 <8>no level", "6 <>x", "6 <3"]),
        ("\n\n\n", &[]),
        ("one\n\n\ntwo\n", &["6 one", "6 two"]),
        ("<4>\nx\n", &["6 x"]),
        ("dos\r\nend\r\n", &["6 dos", "6 end"]),
        ("no end", &["6 no end (eof)"]),
        ("one\nno end", &["6 one", "6 no end (eof)"]),
        ("", &[]),
    ];
    for (text, expected) in table {
        assert_eq!(short(text.as_bytes()), *expected, "{text:?}");
    }
}

#[test]
fn a_stack_trace_is_one_record() {
    let table: &[(&str, &[&str])] = &[
        ("panic\n  at a\n\tat b\nnext\n", &["6 panic+  at a+\tat b", "6 next"]),
        ("<2>panic\n  at a\n<2>next\n  at b\n", &["2 panic+  at a", "2 next+  at b"]),
        ("panic\n  at a\n<3>  own\n", &["6 panic+  at a", "3   own"]),
        ("Error: x\n\nCaused by:\n    y\n", &["6 Error: x++Caused by:+    y"]),
        ("  begins so\n  goes on\n", &["6   begins so+  goes on"]),
        ("<3>panic\n  at", &["3 panic+  at (eof)"]),
    ];
    for (text, expected) in table {
        assert_eq!(short(text.as_bytes()), *expected, "{text:?}");
    }
}

#[test]
fn a_record_of_many_lines_is_bounded_and_keeps_its_level() {
    let long = format!("<3>panic\n{}", "  at x\n".repeat(LINES_MAX + 9));
    let all = pieces(long.as_bytes(), long.len());
    let lines: Vec<usize> = all.iter().map(|piece| piece.text.split('\n').count()).collect();
    assert_eq!(lines, [LINES_MAX, 10]);
    assert!(all.iter().all(|piece| piece.level == Level::Error));
    let wide = format!("panic\n {}\n {}\n", "x".repeat(LINE_MAX / 2), "y".repeat(LINE_MAX / 2));
    assert!(pieces(wide.as_bytes(), wide.len()).iter().all(|piece| piece.text.len() <= LINE_MAX));
    let blank = format!("panic\n{}  at x\n", "\n".repeat(LINES_MAX));
    let all = pieces(blank.as_bytes(), blank.len());
    assert_eq!(
        all.iter().map(|piece| piece.text.as_str()).collect::<Vec<_>>(),
        ["panic", "  at x"]
    );
}

#[test]
fn a_long_line_is_split_between_characters_and_says_so() {
    let table = [
        ("", 'x', LINE_MAX, vec![LINE_MAX]),
        ("", 'x', LINE_MAX + 1, vec![LINE_MAX, 1]),
        ("", 'x', 2 * LINE_MAX + 5, vec![LINE_MAX, LINE_MAX, 5]),
        ("", 'é', LINE_MAX, vec![LINE_MAX, LINE_MAX]),
        ("a", 'é', LINE_MAX, vec![LINE_MAX - 1, LINE_MAX, 2]),
        ("ab", '€', LINE_MAX / 3 + 1, vec![LINE_MAX - 1, 6]),
        ("a", '😀', LINE_MAX / 4 + 1, vec![LINE_MAX - 3, 8]),
    ];
    for (before, letter, count, expected) in table {
        let line = format!("{before}{}", letter.to_string().repeat(count));
        let text = format!("<4>first\n{line}\nnext\n");
        let all = pieces(text.as_bytes(), text.len());
        let [first, rest @ .., next] = &all[..] else { panic!("{all:?}") };
        assert_eq!((first.text.as_str(), next.text.as_str()), ("first", "next"));
        let breaks: Vec<bool> = rest.iter().map(|piece| piece.line_break.is_some()).collect();
        let last = rest.len() - 1;
        assert!(breaks[..last].iter().all(|split| *split) && !breaks[last], "{breaks:?}");
        let lengths: Vec<usize> = rest.iter().map(|piece| piece.text.len()).collect();
        assert_eq!(lengths, expected, "{letter} {count}");
        let joined: String = rest.iter().map(|piece| piece.text.as_str()).collect();
        assert_eq!(joined, line);
        assert!(rest.iter().all(|piece| piece.level == Level::Info));
    }
}

#[test]
fn the_pieces_of_a_long_line_keep_its_level_and_their_own_look() {
    let text = format!("<3>{}<6>\t  <5>x\n", "x".repeat(LINE_MAX - 3));
    let all = pieces(text.as_bytes(), text.len());
    let ends: Vec<(u8, &str)> = all
        .iter()
        .map(|it| (it.level as u8, &it.text[it.text.len().saturating_sub(9)..]))
        .collect();
    assert_eq!(ends, [(3, "xxxxxxxxx"), (3, "<6>\t  <5>x".split_at(1).1)]);
}

#[test]
fn what_is_no_text_stays_readable() {
    let table: &[(&[u8], &str)] = &[
        (b"a\0b", "a\\x00b"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"caf\xe9!", "caf\\xe9!"),
        (b"cut \xe2\x82", "cut \\xe2\\x82"),
        ("ganz é 😀".as_bytes(), "ganz é 😀"),
        (b"\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        (b"a\rb", "a\rb"),
    ];
    for (bytes, expected) in table {
        let mut line = bytes.to_vec();
        line.push(b'\n');
        let all = pieces(&line, line.len());
        assert_eq!(all.iter().map(|piece| &piece.text).collect::<Vec<_>>(), [expected]);
    }
}

#[test]
fn it_does_not_matter_where_the_pipe_cuts() {
    let mut text = b"one\n<3>two\r\n  three\n\n\tfour\nCaused by: x\n\xff\0\n\n<5>".to_vec();
    text.extend("é".repeat(LINE_MAX / 2 + 3).bytes());
    text.extend(b"\n at\nend <2>\n<1>no end");
    let whole = pieces(&text, text.len());
    assert_eq!(whole.len(), 7, "{whole:?}");
    for size in (1..64).chain([LINE_MAX - 1, LINE_MAX, LINE_MAX + 1]) {
        assert_eq!(pieces(&text, size), whole, "in pieces of {size}");
    }
    for at in 0..text.len().min(80) {
        let (mut lines, mut all) = (Lines::default(), Vec::new());
        lines.feed(&text[..at], start(), &mut |piece| all.push(piece));
        lines.feed(&text[at..], start(), &mut |piece| all.push(piece));
        lines.finish(&mut |piece| all.push(piece));
        assert_eq!(all, whole, "cut at {at}");
    }
}

#[test]
fn a_last_line_waits_for_its_continuation_but_not_for_long() {
    let (mut lines, mut all) = (Lines::default(), Vec::new());
    let begun = start();
    assert_eq!(lines.deadline(), None);
    lines.feed(b"one\ntw", begun, &mut |piece| all.push(piece.text));
    assert_eq!(lines.deadline(), Some(begun + QUIET));
    let later = begun + QUIET / 2;
    lines.feed(b"o\n", later, &mut |piece| all.push(piece.text));
    assert_eq!(all, ["one"]);
    assert_eq!(lines.deadline(), Some(later + QUIET));
    lines.feed(b"  more\n", later, &mut |piece| all.push(piece.text));
    lines.settle(&mut |piece| all.push(piece.text));
    assert_eq!(all, ["one", "two\n  more"]);
    assert_eq!(lines.deadline(), None);
    lines.feed(b"  late\nbegun", later, &mut |piece| all.push(piece.text));
    lines.settle(&mut |piece| all.push(piece.text));
    assert_eq!(all[2..], ["  late"]);
    lines.feed(b" and ended\n", later, &mut |piece| all.push(piece.text));
    lines.finish(&mut |piece| all.push(piece.text));
    assert_eq!(all[3..], ["begun and ended"]);
}

#[test]
fn pauses_that_follow_each_other_hold_a_last_line_up_once() {
    let (mut lines, mut all) = (Lines::default(), Vec::new());
    let begun = start();
    lines.feed(b"one\n", begun, &mut |piece| all.push(piece.text));
    let carried = |lines: &Lines| -> Lines {
        serde_json::from_str(&serde_json::to_string(lines).unwrap()).unwrap()
    };
    lines = carried(&lines);
    lines.resume(begun);
    assert_eq!(lines.deadline(), Some(begun + QUIET));
    lines = carried(&lines);
    lines.resume(begun);
    assert_eq!(lines.deadline(), Some(begun), "at once");
    // Who speaks is waited for again.
    lines.feed(b" more\n", begun, &mut |piece| all.push(piece.text));
    lines.resume(begun);
    assert_eq!(lines.deadline(), Some(begun + QUIET));
}
