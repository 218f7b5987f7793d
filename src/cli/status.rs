//! `rcluster status`: what a master says about itself, once or again and again.

use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::wire::control::{DrainingParameters, Status};

use super::client::{Client, Error, results};
use super::draining::draining;
use super::output;
use super::path::environment;
use super::reloads::reloads;
use super::render::{Style, render};
use super::{Failure, args};

/// Milliseconds between two looks of `--watch`.
const PAUSE: u16 = 1000;

/// `rcluster status`.
pub(super) fn status(typed: &args::Status) -> Result<(), Failure> {
    let mut client = Client::find(&typed.master, &environment)?;
    let style = Style { is_coloured: output::is_coloured() };
    if typed.watch {
        return watch(&mut client, typed, style);
    }
    let text = look(&mut client, typed, style)?;
    Ok(output::print(&text)?)
}

/// One look at what was asked for.
fn look(client: &mut Client, typed: &args::Status, style: Style) -> Result<String, Failure> {
    let pool = typed.pool.as_deref();
    if typed.reloads {
        let seen = client.ask("Reloads", json!({}))?;
        return match typed.json {
            true => pretty(&seen),
            false => Ok(reloads(&results(seen)?, style)),
        };
    }
    if typed.drain {
        let wanted = DrainingParameters { pool: typed.pool.clone() };
        let seen = client.ask("Draining", wanted)?;
        return match typed.json {
            true => pretty(&seen),
            false => Ok(draining(&results(seen)?, pool, style)),
        };
    }
    let seen = client.ask("Status", json!({}))?;
    match typed.json {
        true => as_json(seen, pool),
        false => as_page(seen, pool, style),
    }
}

fn pretty(seen: &Value) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(seen).map_err(Error::Garbage)? + "\n")
}

/// Looks again every second, until the master or the reader leaves.
fn watch(client: &mut Client, typed: &args::Status, style: Style) -> Result<(), Failure> {
    let is_terminal = output::is_terminal();
    let mut is_first = true;
    loop {
        let page = look(client, typed, style)?;
        let (before, after) = match (is_terminal, is_first) {
            (true, true) => ("\x1b[2J\x1b[H", "\x1b[J"),
            (true, false) => ("\x1b[H", "\x1b[J"),
            (false, true) => ("", ""),
            (false, false) => ("\n", ""),
        };
        let page = if is_terminal { page.replace('\n', "\x1b[K\n") } else { page };
        output::print(&format!("{before}{page}{after}"))?;
        is_first = false;
        pause(client)?;
    }
}

/// Waits for the next look. A master says nothing unasked, so its line only wakes when it has ended.
fn pause(client: &Client) -> Result<(), Failure> {
    let mut waited_for = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
    match poll(&mut waited_for, PollTimeout::from(PAUSE)) {
        Ok(0) | Err(Errno::EINTR) => Ok(()),
        Ok(_) => Err(Failure::Gone { when: "while it was watched" }),
        Err(cause) => Err(Error::Broken(cause.into()).into()),
    }
}

fn as_page(seen: Value, pool: Option<&str>, style: Style) -> Result<String, Failure> {
    let mut status: Status = results(seen)?;
    if let Some(wanted) = pool {
        refuse_unknown(wanted, &status)?;
        status.pools.retain(|pool| pool.name == wanted);
    }
    Ok(render(&status, style))
}

/// The status as the master answered it, fields that this version does not know included.
fn as_json(mut seen: Value, pool: Option<&str>) -> Result<String, Failure> {
    let status: Status = results(seen.clone())?;
    if let Some(wanted) = pool {
        refuse_unknown(wanted, &status)?;
        if let Some(pools) = seen.get_mut("pools").and_then(Value::as_array_mut) {
            pools.retain(|pool| pool.get("name").and_then(Value::as_str) == Some(wanted));
        }
    }
    pretty(&seen)
}

fn refuse_unknown(wanted: &str, status: &Status) -> Result<(), Failure> {
    let known: Vec<String> = status.pools.iter().map(|pool| pool.name.clone()).collect();
    if known.iter().any(|name| name == wanted) {
        return Ok(());
    }
    Err(Failure::UnknownPool { name: wanted.to_owned(), known })
}
