//! Users and groups: whom a pool's workers become.
//!
//! Everything is looked up when a generation is made: between fork and exec nothing may read files.

use nix::unistd::{Gid, Group, Uid, User};

use crate::config::Pool;
use crate::sys::process::Identity;
use crate::sys::resource::effective_capabilities;

/// Whom the pool's workers become. `None`: nobody else.
///
/// # Errors
/// A sentence about a user or group that does not exist.
pub(crate) fn identity(pool: &Pool) -> Result<Option<Identity>, String> {
    if pool.user.is_none() && pool.group.is_none() && pool.supplementary_groups.is_empty() {
        return Ok(None);
    }
    let (user, own_group, name) = match &pool.user {
        None => (nix::unistd::getuid(), nix::unistd::getgid(), None),
        Some(text) => match find_user(text)? {
            Some(user) => (user.uid, user.gid, std::ffi::CString::new(user.name).ok()),
            None => {
                let number = text.parse().map_err(|_| format!("there is no user {text}"))?;
                if pool.group.is_none() {
                    return Err(format!(
                        "user {text} is in no account database: give a group, too"
                    ));
                }
                (Uid::from_raw(number), nix::unistd::getgid(), None)
            }
        },
    };
    let group = match &pool.group {
        None => own_group,
        Some(text) => find_group(text)?,
    };
    let mut groups: Vec<u32> = match name {
        None => vec![group.as_raw()],
        Some(name) => nix::unistd::getgrouplist(&name, group)
            .map_err(|error| format!("the groups of user {name:?} cannot be read: {error}"))?
            .into_iter()
            .map(Gid::as_raw)
            .collect(),
    };
    for text in &pool.supplementary_groups {
        groups.push(find_group(text)?.as_raw());
    }
    groups.sort_unstable();
    groups.dedup();
    let wanted = Identity { user: user.as_raw(), group: group.as_raw(), groups };
    if wanted == own() {
        return Ok(None);
    }
    if !may_change_identity() {
        let who = pool.user.as_deref().or(pool.group.as_deref()).unwrap_or("of another group");
        return Err(format!(
            "workers as {who} need a privileged master: run it as root, or give it CAP_SETUID and \
             CAP_SETGID"
        ));
    }
    Ok(Some(wanted))
}

/// Who this process is.
fn own() -> Identity {
    let (user, group) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let mut groups: Vec<u32> =
        nix::unistd::getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect();
    groups.push(group);
    groups.sort_unstable();
    groups.dedup();
    Identity { user, group, groups }
}

/// Whether this process has CAP_SETGID (6) and CAP_SETUID (7): capabilities(7).
pub(crate) fn may_change_identity() -> bool {
    let mask = effective_capabilities();
    // Where that cannot be known, the attempt will tell.
    mask.is_none_or(|mask| mask & 0xc0 == 0xc0)
}

fn find_user(text: &str) -> Result<Option<User>, String> {
    let found = match text.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(text),
    };
    match found {
        Ok(None) if text.parse::<u32>().is_err() => Err(format!("there is no user {text}")),
        Ok(user) => Ok(user),
        Err(error) => Err(format!("user {text} cannot be looked up: {error}")),
    }
}

/// A group by name or number.
///
/// # Errors
/// A sentence, when there is none of that name.
pub(crate) fn find_group(text: &str) -> Result<Gid, String> {
    if let Ok(number) = text.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(format!("there is no group {text}")),
        Err(error) => Err(format!("group {text} cannot be looked up: {error}")),
    }
}
