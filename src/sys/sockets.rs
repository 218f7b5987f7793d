//! Which sockets a process has, read from `/proc`.
//!
//! A program that does not say when it has closed a connection shows it there. It takes the rights of
//! ptrace(2), PTRACE_MODE_READ, to look: the same user, or the capability CAP_SYS_PTRACE.

use std::collections::BTreeSet;
use std::fs;
use std::io;

/// The inodes of all sockets that a process has, by which `sys::socket::identity_of` names them.
///
/// # Errors
/// It may not be looked at, or is gone.
pub fn sockets_of(process: u32) -> io::Result<BTreeSet<u64>> {
    let mut sockets = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        match fs::read_link(entry?.path()) {
            Ok(link) => sockets.extend(link.to_str().and_then(inode)),
            // It was closed a moment ago.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

/// `socket:[4711]`
fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::socket::identity_of;

    #[test]
    fn a_socket_is_there_until_it_is_closed() {
        let own = std::process::id();
        let (one, other) = UnixStream::pair().unwrap();
        let (first, second) = (identity_of(one.as_fd()), identity_of(other.as_fd()));
        let sockets = sockets_of(own).unwrap();
        assert!(sockets.contains(&first) && sockets.contains(&second));
        drop(other);
        let sockets = sockets_of(own).unwrap();
        assert!(sockets.contains(&first) && !sockets.contains(&second));
        assert!(sockets_of(0).is_err());
    }

    #[test]
    fn other_descriptors_are_none() {
        assert_eq!(inode("socket:[4711]"), Some(4711));
        for other in ["pipe:[4711]", "/dev/null", "socket:[]", "socket:[4711"] {
            assert_eq!(inode(other), None, "{other}");
        }
    }
}
