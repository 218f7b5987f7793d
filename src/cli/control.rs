//! The verbs that command a master: reload, scale, stop, upgrade.
//!
//! Each is one call. A reload and a stop are waited for without any limit: the master has its own
//! limits for every step, and whoever waits can end the waiting with Ctrl-C, which changes nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use signal_hook::flag::{register, register_conditional_shutdown};

use crate::wire::control::{ReloadParameters, ReloadResults, ScaleParameters, UpgradeResults};

use super::Failure;
use super::args::{Reload, Scale, Stop, Upgrade};
use super::client::{Client, Error, results};
use super::output::{self, Line};
use super::path::environment;

/// The width of the bar that shows progress, in characters.
const BAR: u64 = 20;

/// `rcluster reload`.
pub(super) fn reload(typed: &Reload) -> Result<(), Failure> {
    let is_exec_reload = is_started_by_systemd();
    if is_exec_reload {
        yield_to_stop().and_then(|()| outlive_reload()).map_err(Failure::Output)?;
    }
    let Reload { pools, no_wait, check, .. } = typed;
    let parameters = ReloadParameters { pools: pools.clone(), no_wait: *no_wait, check: *check };
    let mut client = Client::find(&typed.master, &environment)?;
    if !typed.no_wait {
        client.wait_forever()?;
    }
    client.call("Reload", parameters, !typed.no_wait)?;
    let line = Line::new(io::stdout(), output::is_terminal());
    let outcome = match watch_rollout(&mut client, line) {
        Ok(outcome) => outcome,
        Err(Error::Stopping(_)) if is_exec_reload => return Ok(()),
        Err(Error::Ended) => return Err(Failure::Gone { when: "before the reload was over" }),
        Err(error) => return Err(error.into()),
    };
    Ok(output::print(&sentence(&outcome.message, "the reload is over"))?)
}

/// Whether this process is a command of a unit, such as its `ExecReload=`.
fn is_started_by_systemd() -> bool {
    let meant = std::env::var("SYSTEMD_EXEC_PID").ok();
    meant.is_some_and(|pid| pid == std::process::id().to_string())
}

/// Ends well on SIGTERM. When a service is stopped during a reload, systemd ends the command that
/// waits for the reload, and would call a stop failed for a command that died of it. Its callers
/// are told by systemd that the reload was cancelled.
fn yield_to_stop() -> io::Result<()> {
    let always = Arc::new(AtomicBool::new(true));
    register_conditional_shutdown(signal_hook::consts::SIGTERM, 0, always).map(drop)
}

/// Stays on SIGUSR1. `systemctl kill -s USR1` asks for a rolling restart and reaches every process of
/// the service, this one, too, which would make the reload that it waits for a failed one.
fn outlive_reload() -> io::Result<()> {
    let seen = Arc::new(AtomicBool::new(false));
    register(signal_hook::consts::SIGUSR1, seen).map(drop)
}

/// Shows the steps of a rollout until it is over.
fn watch_rollout<W: io::Write>(
    client: &mut Client,
    mut line: Line<W>,
) -> Result<ReloadResults, Error> {
    loop {
        let answer = client.answer()?;
        let step: ReloadResults = match answer.parameters.is_null() {
            true => ReloadResults::default(),
            false => results(answer.parameters)?,
        };
        if !answer.continues {
            return Ok(step);
        }
        line.draw(&progress(&step));
    }
}

/// One step for people: `[##########..........] 4 of 8 slots, generation 5: slot 4 serves`.
fn progress(step: &ReloadResults) -> String {
    let mut text = String::new();
    if let (Some(done), Some(total @ 1..)) = (step.done, step.total) {
        let full = (BAR * u64::from(done) / u64::from(total)).min(BAR);
        let bar: String = (0..BAR).map(|at| if at < full { '#' } else { '.' }).collect();
        text = format!("[{bar}] {done} of {total} slots");
        if let Some(generation) = step.generation {
            text += &format!(", generation {generation}");
        }
        text += ": ";
    }
    text + &step.message
}

/// `rcluster scale`.
pub(super) fn scale(typed: &Scale) -> Result<(), Failure> {
    let Scale { pool, workers, master } = typed;
    let parameters = ScaleParameters { pool: pool.clone(), workers: *workers };
    Client::find(master, &environment)?.ask("Scale", parameters)?;
    let plural = if *workers == 1 { "" } else { "s" };
    let done = format!("{pool} has {workers} worker{plural} from now on, until the master ends\n");
    Ok(output::print(&done)?)
}

/// `rcluster stop`.
pub(super) fn stop(typed: &Stop) -> Result<(), Failure> {
    let mut client = Client::find(&typed.master, &environment)?;
    client.ask("Stop", json!({}))?;
    client.wait_forever()?;
    let mut line = Line::new(io::stdout(), output::is_terminal());
    line.draw("stopping: the workers finish what they have (Ctrl-C only ends the waiting)");
    // The master keeps the connection until its own end.
    client.wait_for_end()?;
    drop(line);
    Ok(output::print("the service has ended\n")?)
}

/// `rcluster upgrade`.
pub(super) fn upgrade(typed: &Upgrade) -> Result<(), Failure> {
    let mut client = Client::find(&typed.master, &environment)?;
    // The new program may take its time to show what it can.
    client.wait_forever()?;
    let UpgradeResults { message } = results(client.ask("Upgrade", json!({}))?)?;
    Ok(output::print(&sentence(&message, "the master has replaced itself"))?)
}

/// A message as a line, or what is said without one.
fn sentence(message: &str, otherwise: &str) -> String {
    let message = if message.is_empty() { otherwise } else { message };
    output::one_line(message) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use crate::cli::client::PATIENCE;

    #[test]
    fn a_step_shows_how_far_the_rollout_is() {
        let step = ReloadResults {
            message: "slot 4 serves".into(),
            generation: Some(5),
            done: Some(4),
            total: Some(8),
        };
        assert_eq!(
            progress(&step),
            "[##########..........] 4 of 8 slots, generation 5: slot 4 serves"
        );
        let strange = ReloadResults { done: Some(9), total: Some(2), ..ReloadResults::default() };
        assert_eq!(progress(&strange), "[####################] 9 of 2 slots: ");
        let bare = ReloadResults { message: "waits".into(), total: Some(0), ..Default::default() };
        assert_eq!(progress(&bare), "waits");
    }

    #[test]
    fn on_a_terminal_every_step_is_drawn_and_then_taken_away() {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let master = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let steps = "{\"parameters\":{\"message\":\"a\"},\"continues\":true}\0\
                         {\"parameters\":{\"message\":\"b\"},\"continues\":true}\0\
                         {\"parameters\":{\"message\":\"c\"}}\0";
            stream.write_all(steps.as_bytes()).unwrap();
        });
        let mut client = Client::connect(&path, PATIENCE).unwrap();
        let mut drawn = Vec::new();
        let outcome = watch_rollout(&mut client, Line::new(&mut drawn, true)).unwrap();
        master.join().unwrap();
        assert_eq!(outcome.message, "c");
        let drawn = String::from_utf8(drawn).unwrap();
        assert_eq!(drawn, "\r\x1b[2K\x1b[?7la\x1b[?7h\r\x1b[2K\x1b[?7lb\x1b[?7h\r\x1b[2K");
    }
}
