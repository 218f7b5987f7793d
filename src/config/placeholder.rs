//! Placeholders in the command and the environment of workers of the kind `inherit`.
//!
//! ```text
//! {fd} {addr} {port} {listen} {addr-port} {url}    of the first listening socket
//! {fd:NAME} {addr:NAME} …                          of that entry of `listen`
//! {each:SEPARATOR:TEXT}                            TEXT for every socket, with its own {fd}, {addr} …
//! {count}                                          how many sockets there are
//! {pid} {master-pid} {slot} {index} {generation}   of the worker
//! ```
//!
//! Only these are placeholders. Everything else in braces stays as it is written, because JSON and
//! templates are common in arguments; so there is nothing to be escaped. An argument that is nothing
//! but an `{each::TEXT}` becomes one argument for every socket.

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt as _;

use super::error::{Mistake, one_of, quote};
use super::{Address, Listen};
use crate::sys::exec::OWN_PID;
use crate::sys::listen::Local;

/// What placeholders stand for in one worker.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// Its listening sockets, in the order of `listen`.
    pub sockets: &'a [Socket<'a>],
    /// The master's process id.
    pub master: u32,
    /// The worker's slot, from 1.
    pub slot: u32,
    /// The worker's generation.
    pub generation: u64,
}

/// A listening socket that a worker inherits.
#[derive(Clone, Copy, Debug)]
pub struct Socket<'a> {
    /// Its entry of `listen`.
    pub name: &'a str,
    /// The number that the worker has it under.
    pub number: u32,
    /// Where it listens.
    pub local: &'a Local,
}

/// A piece of a text.
#[derive(Debug, PartialEq)]
enum Piece<'t> {
    Literal(&'t str),
    /// Something of a socket: of the one named, else of the first, or of each in turn.
    Of(What, Option<&'t str>),
    Each(&'t str, Vec<Piece<'t>>),
    Count,
    Pid,
    MasterPid,
    Slot,
    Index,
    Generation,
}

/// What there is to know of a socket.
#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Fd,
    Addr,
    Port,
    Listen,
    AddrPort,
    Url,
}

const OF_SOCKETS: &[(&str, What)] = &[
    ("fd", What::Fd),
    ("addr", What::Addr),
    ("port", What::Port),
    ("listen", What::Listen),
    ("addr-port", What::AddrPort),
    ("url", What::Url),
];

/// A value of the environment with its placeholders replaced.
///
/// # Errors
/// A socket is asked for that there is not, or for what it has not.
pub fn expand(text: &str, values: &Values<'_>) -> Result<String, Mistake> {
    let mut out = String::new();
    write(&parse(text), values, None, &mut out)?;
    Ok(out)
}

/// An argument with its placeholders replaced: mostly one.
///
/// # Errors
/// As [`expand`].
pub fn expand_argument(text: &str, values: &Values<'_>) -> Result<Vec<String>, Mistake> {
    let pieces = parse(text);
    let [Piece::Each("", inner)] = pieces.as_slice() else {
        return expand(text, values).map(|text| vec![text]);
    };
    let each = values.sockets.iter().map(|socket| {
        let mut out = String::new();
        write(inner, values, Some(socket), &mut out).map(|()| out)
    });
    each.collect()
}

/// Whether a text speaks of sockets.
pub(super) fn names_sockets(text: &str) -> bool {
    parse(text).iter().any(|piece| matches!(piece, Piece::Of(..) | Piece::Each(..)))
}

/// Whether every socket that a text asks for is among the entries of `listen`.
pub(super) fn check(text: &str, listen: &[Listen]) -> Result<(), Mistake> {
    check_pieces(&parse(text), listen, None)
}

fn check_pieces(
    pieces: &[Piece<'_>],
    listen: &[Listen],
    current: Option<&Listen>,
) -> Result<(), Mistake> {
    for piece in pieces {
        match piece {
            Piece::Of(what, name) => {
                let found = match (name, current) {
                    (Some(name), _) => listen.iter().find(|entry| entry.text == **name),
                    (None, Some(current)) => Some(current),
                    (None, None) => listen.first(),
                };
                let names = listen.iter().map(|entry| entry.text.as_str());
                let entry = found.ok_or_else(|| missing(*what, *name, names))?;
                let is_unix =
                    matches!(entry.address, Some(Address::Unix(_) | Address::Abstract(_)));
                if is_unix && matches!(what, What::Addr | What::Port) {
                    return Err(no_tcp(*what, &entry.text));
                }
            }
            Piece::Each(_, inner) => {
                for entry in listen {
                    check_pieces(inner, listen, Some(entry))?;
                }
            }
            Piece::Literal(_)
            | Piece::Count
            | Piece::Pid
            | Piece::MasterPid
            | Piece::Slot
            | Piece::Index
            | Piece::Generation => {}
        }
    }
    Ok(())
}

fn write(
    pieces: &[Piece<'_>],
    values: &Values<'_>,
    current: Option<&Socket<'_>>,
    out: &mut String,
) -> Result<(), Mistake> {
    for piece in pieces {
        match piece {
            Piece::Literal(text) => out.push_str(text),
            Piece::Of(what, name) => {
                let found = match (name, current) {
                    (Some(name), _) => values.sockets.iter().find(|socket| socket.name == *name),
                    (None, Some(current)) => Some(current),
                    (None, None) => values.sockets.first(),
                };
                let names = values.sockets.iter().map(|socket| socket.name);
                let socket = found.ok_or_else(|| missing(*what, *name, names))?;
                out.push_str(&said(*what, socket)?);
            }
            Piece::Each(separator, inner) => {
                for (index, socket) in values.sockets.iter().enumerate() {
                    out.push_str(if index > 0 { separator } else { "" });
                    write(inner, values, Some(socket), out)?;
                }
            }
            Piece::Count => out.push_str(&values.sockets.len().to_string()),
            Piece::Pid => out.push_str(OWN_PID),
            Piece::MasterPid => out.push_str(&values.master.to_string()),
            Piece::Slot => out.push_str(&values.slot.to_string()),
            Piece::Index => out.push_str(&values.slot.saturating_sub(1).to_string()),
            Piece::Generation => out.push_str(&values.generation.to_string()),
        }
    }
    Ok(())
}

/// What is said of a socket.
fn said(what: What, socket: &Socket<'_>) -> Result<String, Mistake> {
    let Socket { name, number, local } = *socket;
    let path: Cow<'_, str> = match (what, local) {
        (What::Fd, _) => return Ok(number.to_string()),
        (What::Addr, Local::Tcp(address)) => return Ok(address.ip().to_string()),
        (What::Port, Local::Tcp(address)) => return Ok(address.port().to_string()),
        (What::Listen, Local::Tcp(address)) => return Ok(address.to_string()),
        (What::Url, Local::Tcp(address)) => return Ok(format!("tcp://{address}")),
        (What::AddrPort, Local::Tcp(address)) => {
            return Ok(format!("{}:{}", address.ip(), address.port()));
        }
        (What::Addr | What::Port, Local::Unix(_) | Local::Abstract(_)) | (_, Local::Other) => {
            return Err(no_tcp(what, name));
        }
        (_, Local::Unix(path)) => String::from_utf8_lossy(path.as_os_str().as_bytes()),
        (_, Local::Abstract(bytes)) => format!("@{}", String::from_utf8_lossy(bytes)).into(),
    };
    let scheme = if what == What::Url { "unix://" } else { "" };
    Ok(format!("{scheme}{path}"))
}

/// The mistake of asking for a socket that there is not.
fn missing<'n>(what: What, name: Option<&str>, known: impl Iterator<Item = &'n str>) -> Mistake {
    let known: Vec<&str> = known.collect();
    let message = match name {
        Some(name) => format!("{{{}:{name}}} names no entry of `listen`", word(what)),
        None => format!("{{{}}} stands for a listening socket, and there is none", word(what)),
    };
    let message: String = message.chars().flat_map(char::escape_debug).collect();
    match known.as_slice() {
        [] => Mistake::new(message, "give `listen` an entry, for example listen = [\"8080\"]"),
        known => Mistake::new(message, format!("write {}", one_of(known))),
    }
}

/// The mistake of asking for what only TCP sockets have.
fn no_tcp(what: What, name: &str) -> Mistake {
    let message = format!("{{{}}} of {}, which is no TCP socket", word(what), quote(name));
    Mistake::new(message, "write {listen}, which holds for Unix sockets, too")
}

fn word(what: What) -> &'static str {
    OF_SOCKETS.iter().find(|(_, other)| *other == what).map_or("", |(word, _)| word)
}

fn parse(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let start = rest.find('{').unwrap_or(rest.len());
        let (before, from) = rest.split_at(start);
        let found = each(from).or_else(|| simple(from));
        let (piece, after) = match found {
            Some((piece, after)) => {
                push_literal(&mut pieces, text, before);
                (Some(piece), after)
            }
            None => {
                // The brace itself, where there is one, is text.
                let end = rest.len().min(start + 1);
                push_literal(&mut pieces, text, &rest[..end]);
                (None, &rest[end..])
            }
        };
        pieces.extend(piece);
        rest = after;
    }
    pieces
}

/// Adds text; what follows upon text becomes one with it.
fn push_literal<'t>(pieces: &mut Vec<Piece<'t>>, whole: &'t str, text: &'t str) {
    if text.is_empty() {
        return;
    }
    // Both are parts of the same text, one behind the other.
    let begin = text.as_ptr() as usize - whole.as_ptr() as usize;
    if let Some(Piece::Literal(before)) = pieces.last_mut() {
        *before = &whole[begin - before.len()..begin + text.len()];
        return;
    }
    pieces.push(Piece::Literal(text));
}

/// A placeholder at the beginning of `text`, and what follows.
fn simple(text: &str) -> Option<(Piece<'_>, &str)> {
    let rest = text.strip_prefix('{')?;
    let (inner, after) = rest.split_at(rest.find(['{', '}'])?);
    let after = after.strip_prefix('}')?;
    let (name, of) = match inner.split_once(':') {
        Some((name, of)) => (name, Some(of)),
        None => (inner, None),
    };
    if let Some((_, what)) = OF_SOCKETS.iter().find(|(word, _)| *word == name) {
        return Some((Piece::Of(*what, of), after));
    }
    let piece = match (name, of) {
        ("count", None) => Piece::Count,
        ("pid", None) => Piece::Pid,
        ("master-pid", None) => Piece::MasterPid,
        ("slot", None) => Piece::Slot,
        ("index", None) => Piece::Index,
        ("generation", None) => Piece::Generation,
        _ => return None,
    };
    Some((piece, after))
}

/// `{each:SEPARATOR:TEXT}` at the beginning of `text`, and what follows.
fn each(text: &str) -> Option<(Piece<'_>, &str)> {
    let (separator, body) = text.strip_prefix("{each:")?.split_once(':')?;
    let mut rest = body;
    loop {
        let next = rest.find(['{', '}'])?;
        let from = &rest[next..];
        if let Some(after) = from.strip_prefix('}') {
            let inner = &body[..body.len() - from.len()];
            return Some((Piece::Each(separator, parse(inner)), after));
        }
        rest = simple(from).map_or(&from[1..], |(_, after)| after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> Local {
        Local::Tcp(text.parse().unwrap())
    }

    /// Expands with a web socket at 3, one of version 6 at 4 and a Unix socket at 5.
    fn with_three<T>(expand: impl Fn(&Values<'_>) -> T) -> T {
        let (web, six, unix) =
            (tcp("127.0.0.1:80"), tcp("[::1]:443"), Local::Unix("/run/a b".into()));
        let sockets = [
            Socket { name: "web", number: 3, local: &web },
            Socket { name: "[::1]:443", number: 4, local: &six },
            Socket { name: "/run/a b", number: 5, local: &unix },
        ];
        expand(&Values { sockets: &sockets, master: 77, slot: 2, generation: 9 })
    }

    fn expanded(text: &str) -> String {
        with_three(|values| expand(text, values).unwrap())
    }

    fn refused(text: &str) -> String {
        with_three(|values| expand(text, values).unwrap_err().to_string())
    }

    #[test]
    fn every_placeholder_is_replaced() {
        for (text, wanted) in [
            ("--fd={fd}", "--fd=3"),
            ("{fd:web},{fd:[::1]:443},{fd:/run/a b}", "3,4,5"),
            (
                "{addr} {port} {listen} {addr-port} {url}",
                "127.0.0.1 80 127.0.0.1:80 127.0.0.1:80 tcp://127.0.0.1:80",
            ),
            ("{addr:[::1]:443} {port:[::1]:443} {listen:[::1]:443}", "::1 443 [::1]:443"),
            ("{addr-port:[::1]:443} {url:[::1]:443}", "::1:443 tcp://[::1]:443"),
            (
                "{listen:/run/a b} {addr-port:/run/a b} {url:/run/a b}",
                "/run/a b /run/a b unix:///run/a b",
            ),
            ("{master-pid}/{slot}/{index}/{generation}/{count}", "77/2/1/9/3"),
            ("é{fd}é", "é3é"),
        ] {
            assert_eq!(expanded(text), wanted, "{text}");
        }
        assert_eq!(expanded("p{pid}p"), format!("p{OWN_PID}p"));
        let name = Local::Abstract(b"x".to_vec());
        let sockets = [Socket { name: "@x", number: 3, local: &name }];
        let values = Values { sockets: &sockets, master: 1, slot: 1, generation: 1 };
        assert_eq!(expand("{listen} {url}", &values).unwrap(), "@x unix://@x");
    }

    #[test]
    fn lists_have_every_socket() {
        for (text, wanted) in [
            ("{each::{fd};}", "3;4;5;"),
            ("{each:,:{listen}={fd}}", "127.0.0.1:80=3,[::1]:443=4,/run/a b=5"),
            ("a{each: :{fd}}b{each:; :x{slot}{y}}", "a3 4 5bx2{y; x2{y; x2{y}"),
            ("{each::}", ""),
        ] {
            assert_eq!(expanded(text), wanted, "{text}");
        }
        let arguments = |text: &str| with_three(|values| expand_argument(text, values).unwrap());
        assert_eq!(arguments("{each::-bfd://{fd}}"), ["-bfd://3", "-bfd://4", "-bfd://5"]);
        assert_eq!(arguments("{each:,:{fd}}"), ["3,4,5"]);
        assert_eq!(arguments("x{each::{fd}}"), ["x345"]);
        assert_eq!(arguments(""), [""]);
        let none = Values { sockets: &[], master: 1, slot: 1, generation: 1 };
        assert_eq!(expand_argument("{each::{fd}}", &none).unwrap(), [""; 0]);
        assert_eq!(expand("{each::{fd};}", &none).unwrap(), "");
    }

    #[test]
    fn everything_else_stays_as_it_is_written() {
        for text in [
            "",
            "{",
            "}",
            "{}",
            "{{",
            "}}",
            "{fd",
            "fd}",
            "{FD}",
            "{ fd }",
            "{{.Port}}",
            "${PORT}",
            "{\"port\": 80, \"fd\": {}}",
            "{slot:web}",
            "{pid:}",
            "{each}",
            "{each:fd}",
            "{each:,:x",
            "{each:,:{fd",
            "é{é}é",
            "{fds}",
            "{master_pid}",
        ] {
            assert_eq!(expanded(text), text);
            assert!(!names_sockets(text), "{text}");
        }
        assert_eq!(expanded("{{slot}}"), "{2}");
        assert!(names_sockets("x{port}") && names_sockets("{each::x}"));
    }

    #[test]
    fn what_a_socket_has_not_is_a_mistake() {
        assert_eq!(
            refused("{fd:api}"),
            "{fd:api} names no entry of `listen`; write `web`, `[::1]:443` or `/run/a b`"
        );
        assert!(refused("{port:/run/a b}").starts_with("{port} of `/run/a b`, which is no TCP"));
        assert!(refused("{each::{addr}}").contains("write {listen}"));
        let none = Values { sockets: &[], master: 1, slot: 1, generation: 1 };
        let told = expand("{fd}", &none).unwrap_err().to_string();
        assert!(told.contains("there is none; give `listen` an entry"), "{told}");
        let odd = refused("{fd:a\nb}");
        assert!(!odd.contains('\n'), "{odd}");
    }

    #[test]
    fn the_configuration_is_checked_by_the_same_rules() {
        let listen: Vec<Listen> =
            ["web", "/run/a"].iter().map(|text| text.parse().unwrap()).collect();
        for good in ["{fd} {fd:web} {port:web} {each::{listen}}", "{fd:", "{url:/run/a}"] {
            assert_eq!(check(good, &listen), Ok(()), "{good}");
        }
        for bad in ["{fd:api}", "{fd:}", "{port:/run/a}", "{each::{port}}", "{each::{fd:api}}"] {
            assert!(check(bad, &listen).is_err(), "{bad}");
        }
        assert!(check("{fd}", &[]).is_err());
        assert_eq!(check("{each::{fd}}{slot}", &[]), Ok(()));
    }
}
