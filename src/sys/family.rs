//! Which processes belong together, read from `/proc`.
//!
//! A worker may be several processes: the one that was started leads a group, and whoever is in that
//! group, or descends from it, is the worker's, too. Only the kernel knows, and it tells by `/proc`
//! alone (proc_pid_stat(5)). A look is a moment's: by the time it is used, somebody may have come or
//! gone, so what must be certain is looked at again, or held by a pidfd.

use std::fs;

/// A process, as `/proc/PID/stat` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relative {
    /// Its process id.
    pub id: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// When it was started, in clock ticks since the machine was.
    pub begun: u64,
    /// It has ended, and nobody has reaped it.
    pub is_over: bool,
}

/// Generations between a process and the worker that it descends from, at most.
const GENERATIONS_MAX: u32 = 64;

/// The process of this number, if there is one.
#[must_use]
pub fn look(id: u32) -> Option<Relative> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The second field is the program's name in brackets, whatever that contains.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    // Field 22 of the line; three of those behind the bracket are read.
    let begun = fields.nth(16)?.parse().ok()?;
    Some(Relative { id, parent, group, begun, is_over: matches!(state, "Z" | "X") })
}

/// Whether this process is one of a worker's: the one that leads it, one of its group, or a descendant
/// of one of these.
#[must_use]
pub fn belongs(id: u32, leader: u32) -> bool {
    let mut next = id;
    for _ in 0..GENERATIONS_MAX {
        let Some(Relative { id, parent, group, .. }) = look(next) else { return false };
        if id == leader || group == leader {
            return true;
        }
        if parent <= 1 {
            return false;
        }
        next = parent;
    }
    false
}

/// Every process, ended or not.
fn everybody() -> impl Iterator<Item = Relative> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(look)
}

/// Every process that has not ended, by number.
#[must_use]
pub fn all() -> Vec<Relative> {
    let mut all: Vec<Relative> = everybody().filter(|it| !it.is_over).collect();
    all.sort_by_key(|relative| relative.id);
    all
}

/// Children of a process that have ended, and that it has not reaped.
pub fn ended_children(parent: u32) -> Vec<u32> {
    everybody().filter(|it| it.is_over && it.parent == parent).map(|it| it.id).collect()
}

/// Everybody of a worker's who has not ended, the leader first.
#[must_use]
pub fn members(leader: u32) -> Vec<Relative> {
    let all = all();
    let mut members: Vec<Relative> =
        all.iter().filter(|it| it.id == leader || it.group == leader).copied().collect();
    // Their children, and the children of these.
    let mut next = 0;
    while let Some(parent) = members.get(next).map(|member| member.id) {
        let known: Vec<u32> = members.iter().map(|member| member.id).collect();
        members.extend(all.iter().filter(|it| it.parent == parent && !known.contains(&it.id)));
        next += 1;
    }
    members.sort_by_key(|member| member.id != leader);
    members
}

/// Somebody of this group who has not ended. Who forks and ends in the middle of a look is seen by a
/// second one.
#[must_use]
pub fn anybody_of(group: u32) -> Option<Relative> {
    let look = || all().into_iter().find(|it| it.group == group);
    look().or_else(look)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_group_and_its_descendants_belong_and_nobody_else() {
        // The inner one leaves the group, and is a descendant still.
        let script = "sleep 600 & setsid sleep 600 & echo $!; wait";
        let mut leader = Command::new("/bin/sh");
        leader.args(["-c", script]).process_group(0).stdout(Stdio::piped());
        let mut leader = leader.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(leader.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let outsider: u32 = line.trim().parse().unwrap();
        let mut stranger = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let own = std::process::id();
        assert!(belongs(leader.id(), leader.id()));
        assert!(belongs(outsider, leader.id()));
        assert!(!belongs(stranger.id(), leader.id()));
        assert!(!belongs(own, leader.id()) && !belongs(1, leader.id()) && !belongs(0, 7));
        let members = members(leader.id());
        assert_eq!(members[0].id, leader.id());
        assert!(members.len() >= 3 && members.iter().any(|member| member.id == outsider));
        assert!(!members.iter().any(|member| member.id == stranger.id() || member.id == own));
        // The leader is gone: the rest of the group is there, until it is gone, too.
        leader.kill().unwrap();
        leader.wait().unwrap();
        let rest = anybody_of(leader.id()).unwrap();
        assert!(rest.id != leader.id() && rest.group == leader.id());
        for id in members.iter().map(|member| member.id).filter(|id| *id != leader.id()) {
            let _ = Command::new("kill").args(["-9", &id.to_string()]).status();
        }
        // Who has ended and is not reaped is nobody.
        while anybody_of(leader.id()).is_some() {
            std::thread::yield_now();
        }
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert_eq!(look(stranger.id()), None);
    }

    #[test]
    fn what_is_read_of_oneself_is_right() {
        let own = look(std::process::id()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(!own.is_over && own.begun > 0);
        assert!(all().contains(&own));
    }
}
