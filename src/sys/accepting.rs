//! Whether a process waits for clients on a listening socket, read from `/proc`.
//!
//! Nobody tells when a program that was given a listening socket begins to use it. But whoever waits for
//! clients has either put the socket into an epoll set, which `/proc/PID/fdinfo` lists with the inode of
//! each file (proc_pid_fdinfo(5), kernel 4.16), or stands in `accept(2)`, which `/proc/PID/task/TID/syscall`
//! shows with the number of the descriptor. Both need the rights of ptrace(2), PTRACE_MODE_ATTACH for the
//! second: the same user, or root. What cannot be seen: a program that waits by select(2), poll(2) or
//! io_uring(7).

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::libc;

/// Descriptors of one process that are looked at.
const DESCRIPTORS_MAX: usize = 4096;
/// Threads of one process that are looked at.
const THREADS_MAX: usize = 512;

/// The inode of a socket, by which it is known in `/proc`. 0: it cannot be had.
#[must_use]
pub fn inode_of(socket: &impl AsFd) -> u64 {
    nix::sys::stat::fstat(socket).map_or(0, |stat| stat.st_ino)
}

/// Whether this process waits for clients on one of these sockets.
#[must_use]
pub fn waits_for_clients(id: u32, sockets: &BTreeSet<u64>) -> bool {
    stands_in_accept(id, sockets) || polls(id, sockets)
}

/// The number under which a process has one of these sockets, and which.
#[must_use]
pub fn descriptors(id: u32, sockets: &BTreeSet<u64>) -> Vec<(i32, u64)> {
    let numbers = numbers_in(format!("/proc/{id}/fd").into());
    let sockets = numbers.filter_map(|number| {
        let inode = socket_of(id, number)?;
        sockets.contains(&inode).then_some((number, inode))
    });
    sockets.collect()
}

/// The socket that a process has under this number.
fn socket_of(id: u32, number: i32) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{id}/fd/{number}")).ok()?;
    let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
    inode.parse().ok()
}

fn numbers_in(folder: PathBuf) -> impl Iterator<Item = i32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(DESCRIPTORS_MAX);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// One of its epoll sets has one of these sockets, for reading.
fn polls(id: u32, sockets: &BTreeSet<u64>) -> bool {
    numbers_in(format!("/proc/{id}/fd").into()).any(|number| {
        let link = fs::read_link(format!("/proc/{id}/fd/{number}"));
        link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventpoll]")
            && fs::read_to_string(format!("/proc/{id}/fdinfo/{number}"))
                .is_ok_and(|text| text.lines().any(|line| names(line, sockets)))
    })
}

/// `tfd:        6 events:       19 data:  6  pos:0 ino:1d4b3 sdev:8`
fn names(line: &str, sockets: &BTreeSet<u64>) -> bool {
    if !line.starts_with("tfd:") {
        return false;
    }
    let after = |key: &str| {
        let (_, rest) = line.split_once(key)?;
        u64::from_str_radix(rest.split_ascii_whitespace().next()?, 16).ok()
    };
    let reads = after(" events:").is_some_and(|it| it & libc::EPOLLIN as u64 != 0);
    reads && after(" ino:").is_some_and(|inode| sockets.contains(&inode))
}

/// One of its threads stands in `accept(2)` for one of these sockets.
fn stands_in_accept(id: u32, sockets: &BTreeSet<u64>) -> bool {
    numbers_in(format!("/proc/{id}/task").into()).take(THREADS_MAX).any(|thread| {
        let call = fs::read_to_string(format!("/proc/{id}/task/{thread}/syscall"));
        let number = call.ok().and_then(|call| accept_of(&call));
        number.and_then(|number| socket_of(id, number)).is_some_and(|it| sockets.contains(&it))
    })
}

/// `43 0x3 0x7ffd… …`: the system call and its arguments; `running`, where there is none.
fn accept_of(call: &str) -> Option<i32> {
    let mut words = call.split_ascii_whitespace();
    let which: i64 = words.next()?.parse().ok()?;
    let number = words.next()?.strip_prefix("0x")?;
    let is_accept = [libc::SYS_accept, libc::SYS_accept4].contains(&which);
    i32::from_str_radix(number, 16).ok().filter(|_| is_accept)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::sys::poller::Poller;

    #[test]
    fn who_waits_is_seen_and_who_only_has_the_socket_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = BTreeSet::from([inode_of(&listener)]);
        let own = std::process::id();
        assert!(!waits_for_clients(own, &sockets));
        let poller = Poller::new().unwrap();
        poller.add(&other, 1).unwrap();
        assert!(!waits_for_clients(own, &sockets), "it waits for another's clients");
        poller.add(&listener, 1).unwrap();
        assert!(waits_for_clients(own, &sockets));
        poller.remove(&listener).unwrap();
        poller.add_writable(&listener, 1).unwrap();
        assert!(!waits_for_clients(own, &sockets), "it waits for something else");
        drop(poller);
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || listener.accept().map(drop));
        if fs::read_to_string("/proc/self/syscall").is_err() {
            println!("LEFT OUT: system calls of processes cannot be seen here");
        } else {
            while !waits_for_clients(own, &sockets) {
                std::thread::yield_now();
            }
        }
        TcpStream::connect(address).unwrap();
        thread.join().unwrap().unwrap();
        assert!(!waits_for_clients(own, &sockets));
        assert!(!waits_for_clients(0, &sockets));
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let sockets = BTreeSet::from([0x1d4b3]);
        let line = "tfd:        6 events:       19 data:                6  pos:0 ino:1d4b3 sdev:8";
        assert!(names(line, &sockets));
        assert!(names("tfd: 6 events: 2001 data: 6 pos:0 ino:1d4b3 sdev:8", &sockets));
        for other in ["", "tfd:", "pos:0 ino:1d4b3", "tfd: 6 events: 4 data: 6 pos:0 ino:1d4b3"] {
            assert!(!names(other, &sockets), "{other}");
        }
        let accept = format!("{} 0x3 0x0 0x0 0x0 0x0 0x0 0x7ffd 0x7f2a", libc::SYS_accept4);
        assert_eq!(accept_of(&accept), Some(3));
        for other in ["running", "", "-1 0x7ff 0x1", "0 0x3 0x0"] {
            assert_eq!(accept_of(other), None, "{other}");
        }
    }
}
