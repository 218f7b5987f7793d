//! Descriptors that a process is started with, and what it sends to the service manager.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::PATIENCE;

/// Gives a command these descriptors at 3 and up.
pub fn place(command: &mut Command, descriptors: Vec<OwnedFd>) -> &mut Command {
    let descriptors: Vec<OwnedFd> = descriptors.into_iter().map(high).collect();
    #[expect(unsafe_code, reason = "only a parent can place descriptors")]
    // SAFETY: dup2 is async-signal-safe; the descriptors are moved into the closure.
    unsafe {
        command.pre_exec(move || {
            for (index, descriptor) in descriptors.iter().enumerate() {
                let target = 3 + i32::try_from(index).map_err(std::io::Error::other)?;
                if libc::dup2(descriptor.as_raw_fd(), target) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        })
    }
}

/// For how many seconds the kernel waits for a first byte at this listening socket.
pub fn deferral(socket: &impl AsRawFd) -> i32 {
    let (mut seconds, mut length) = (-1, 4);
    #[expect(unsafe_code, reason = "TCP_DEFER_ACCEPT has no safe form")]
    // SAFETY: the kernel writes one int.
    let result = unsafe {
        let value: *mut i32 = &raw mut seconds;
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
        libc::getsockopt(socket.as_raw_fd(), level, name, value.cast(), &raw mut length)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    seconds
}

/// The same at a number that the placing does not overwrite.
fn high(descriptor: OwnedFd) -> OwnedFd {
    #[expect(unsafe_code, reason = "F_DUPFD has no safe form in the standard library")]
    // SAFETY: a new descriptor, owned by nobody else.
    unsafe {
        let number = libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 50);
        assert!(number >= 50, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(number)
    }
}

/// Something that the manager was told.
#[derive(Debug)]
pub struct Told {
    pub text: String,
    pub descriptor: Option<OwnedFd>,
}

/// Stands in for systemd: reads at once, and keeps what it is told.
pub struct Manager {
    pub path: PathBuf,
    told: Arc<(Mutex<Vec<Told>>, Condvar)>,
}

impl Manager {
    pub fn listen(folder: &Path) -> Manager {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let told: Arc<(Mutex<Vec<Told>>, Condvar)> = Arc::default();
        let shared = Arc::clone(&told);
        std::thread::spawn(move || {
            loop {
                let message = read(&socket);
                // Whoever waits at a barrier waits for its descriptor to be closed.
                if message.text == "BARRIER=1" {
                    drop(message.descriptor);
                    push(&shared, Told { text: message.text, descriptor: None });
                } else {
                    push(&shared, message);
                }
            }
        });
        Manager { path, told }
    }

    /// Every message so far.
    pub fn texts(&self) -> Vec<String> {
        let told = self.told.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().map(|told| told.text.clone()).collect()
    }

    /// What is about the state of the service, without what is only repeated now and then.
    pub fn states(&self) -> Vec<String> {
        let mut states = self.texts();
        let others = ["WATCHDOG=1", "EXTEND_", "FDSTORE", "BARRIER"];
        states.retain(|text| !others.iter().any(|other| text.starts_with(other)));
        for state in &mut states {
            if let Some((_, rest)) = state.split_once("MONOTONIC_USEC=") {
                let rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
                *state = format!("RELOADING=1\n{rest}");
            }
        }
        states
    }

    /// Waits for the `nth` message that contains this; how many messages there were then.
    pub fn wait_for_nth(&self, needle: &str, nth: usize) -> usize {
        let end = Instant::now() + PATIENCE;
        let mut told = self.told.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut found = told.iter().enumerate().filter(|(_, told)| told.text.contains(needle));
            if let Some((index, _)) = found.nth(nth - 1) {
                return index + 1;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no `{needle}` ({nth}) in {told:#?}");
            let waited = self.told.1.wait_timeout(told, left);
            told = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn wait_for(&self, needle: &str) -> usize {
        self.wait_for_nth(needle, 1)
    }

    /// The descriptor that came with the first message that contains this.
    pub fn take_descriptor(&self, needle: &str) -> OwnedFd {
        let index = self.wait_for(needle) - 1;
        let mut told = self.told.0.lock().unwrap_or_else(PoisonError::into_inner);
        told[index].descriptor.take().unwrap()
    }
}

fn push(told: &(Mutex<Vec<Told>>, Condvar), message: Told) {
    told.0.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    told.1.notify_all();
}

fn read(socket: &UnixDatagram) -> Told {
    let mut buffer = [0; 4096];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let mut descriptor = None;
    for message in received.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            for number in numbers {
                #[expect(unsafe_code, reason = "descriptors arrive as numbers")]
                // SAFETY: new, and ours alone.
                let owned = unsafe { OwnedFd::from_raw_fd(number) };
                descriptor.get_or_insert(owned);
            }
        }
    }
    let count = received.bytes;
    Told { text: String::from_utf8_lossy(&buffer[..count]).into_owned(), descriptor }
}

/// Kills a process in the middle of whatever it does. How many clients' connections it had, which is what
/// that may cost; it is stopped before they are counted, so that it takes none meanwhile.
pub fn kill_counting(pid: u32) -> usize {
    super::signal(pid, "STOP");
    let end = Instant::now() + PATIENCE;
    let is_stopped = |path: &Path| {
        let text = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        text.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    };
    let tasks = || std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    while !tasks().all(|task| is_stopped(&task.path())) {
        assert!(Instant::now() < end, "process {pid} does not stop");
        std::thread::yield_now();
    }
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    let had: Vec<String> = links.map(|link| link.display().to_string()).collect();
    let tables = ["tcp", "tcp6"].map(|table| {
        std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default()
    });
    let is_clients = |line: &&str| {
        const LISTENS: &str = "0A";
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_its = |inode: &&str| had.contains(&format!("socket:[{inode}]"));
        words.get(3) != Some(&LISTENS) && words.get(9).is_some_and(is_its)
    };
    let count = tables.iter().flat_map(|table| table.lines()).filter(is_clients).count();
    super::signal(pid, "KILL");
    count
}
