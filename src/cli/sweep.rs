//! Ends what is left of a service: nothing of it serves on once it was stopped.
//!
//! Under `KillMode=process` systemd ends the master alone, and the master its workers. Where it could
//! not (it was killed while it stopped, or before), the units run this: it ends every other process in
//! the service's control group. A stop leaves a mark before; after a crash there is none, and then
//! workers are to serve on until the next master adopts them.
//!
//! The adoption socket runs this, too, as it ends, and names its service. It may be stopped alone, while
//! its service runs or before that is told to stop; so systemd is asked whether the service is over.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Failure;
use super::args::Sweep;
use super::output::{Level, tell};
use crate::config::why;
use crate::sys::process::end;

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";
/// Looks at the group at most: processes may start others until they are ended.
const ROUNDS_MAX: u32 = 100;

/// # Errors
/// When systemd does not say whether the service is over, the group cannot be read, or one of its
/// processes cannot be ended.
pub fn sweep(typed: &Sweep) -> Result<(), Failure> {
    if typed.mark.as_ref().is_some_and(|mark| !mark.exists()) {
        return Ok(());
    }
    let group = group(typed.unit.as_deref()).map_err(Failure::Master)?;
    if let Some(unit) = &typed.unit {
        if !is_over(unit).map_err(Failure::Master)? {
            return Ok(());
        }
    }
    let mut ended = 0;
    for _ in 0..ROUNDS_MAX {
        let others = others(&group).map_err(Failure::Master)?;
        if others.is_empty() {
            break;
        }
        for id in others {
            let is_there = || self::others(&group).is_ok_and(|now| now.contains(&id));
            end(id, is_there).map_err(|error| {
                Failure::Master(format!("process {id} cannot be ended: {}", why(&error)))
            })?;
            ended += 1;
        }
    }
    if ended > 0 {
        let processes = if ended == 1 { "process" } else { "processes" };
        let text = format!("ended {ended} {processes} that the service had left behind");
        tell(Level::Warning, &text);
    }
    Ok(())
}

/// Whether a service is down, and will not start again by itself.
fn is_over(unit: &str) -> Result<bool, String> {
    let show = ["show", "--property=ActiveState", "--value", "--", unit];
    let shown = Command::new("systemctl").args(show).stdin(Stdio::null()).output();
    let shown = shown.map_err(|error| format!("systemctl cannot be run: {}", why(&error)))?;
    let (state, said) =
        (String::from_utf8_lossy(&shown.stdout), String::from_utf8_lossy(&shown.stderr));
    match state.trim() {
        "inactive" | "failed" if shown.status.success() => Ok(true),
        "" => Err(format!("systemctl does not say whether {unit} runs: {}", said.trim())),
        _ => Ok(false),
    }
}

/// The service's control group.
fn group(unit: Option<&str>) -> Result<PathBuf, String> {
    let file = "/proc/self/cgroup";
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {}", why(&error)))?;
    let own = own_group(&text).ok_or_else(|| format!("{file} names no group of version 2"))?;
    let own = Path::new(GROUPS).join(own.trim_start_matches('/'));
    match unit {
        None => Ok(own),
        Some(unit) if unit.ends_with(".service") && !unit.contains('/') => {
            Ok(own.with_file_name(unit))
        }
        Some(unit) => Err(format!("{unit} is no service, as in rcluster.service")),
    }
}

/// The line of the one hierarchy of version 2: `0::/system.slice/rcluster.service`.
fn own_group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Its processes, this one left out. A group that is gone has none.
fn others(group: &Path) -> Result<Vec<u32>, String> {
    let file = group.join("cgroup.procs");
    match std::fs::read_to_string(&file) {
        Ok(text) => {
            let all = text.lines().filter_map(|line| line.parse().ok());
            // 0: one of another namespace, which has no number here.
            Ok(all.filter(|&id| id != std::process::id() && id != 0).collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{}: {}", file.display(), why(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_among_older_ones() {
        let text = "9:name=systemd:/\n1:cpu:/\n0::/system.slice/rcluster.service\n";
        assert_eq!(own_group(text), Some("/system.slice/rcluster.service"));
        assert_eq!(own_group("1:cpu:/\n"), None);
    }

    #[test]
    fn only_services_are_swept() {
        for unit in ["../rcluster.service", "a/b.service", "system.slice", ""] {
            assert!(group(Some(unit)).is_err(), "{unit}");
        }
    }

    #[test]
    fn a_group_that_is_gone_has_no_processes() {
        assert_eq!(others(Path::new("/sys/fs/cgroup/there-is-none")), Ok(Vec::new()));
    }

    #[test]
    fn without_its_mark_nothing_is_looked_at() {
        let mark = Some(PathBuf::from("/there/is/no/mark"));
        assert!(sweep(&Sweep { unit: Some("no service".into()), mark }).is_ok());
    }
}
