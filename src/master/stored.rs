//! Listening sockets of our own that systemd keeps for the next start.
//!
//! A socket that rcluster bound itself is put into systemd's descriptor store, so that it stays open
//! over a crash and a `systemctl restart`: clients wait in its queue meanwhile. Its name there says
//! where it listens; the next start finds it again by the same name, made from the address that is
//! configured. A socket file is part of that name (its device and inode): when the path now leads
//! elsewhere, nobody could reach the stored socket any more, and it is not found.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::inherit::{LISTENERS, is_at};
use super::notify::store_name;
use crate::config::Address;
use crate::sys::listen::{check_listening, local, stop_listening};

/// A socket's file, by which it is known even if another takes its name.
#[derive(Debug)]
pub(crate) struct SocketFile {
    pub(super) path: PathBuf,
    pub(super) device_and_inode: (u64, u64),
}

impl SocketFile {
    pub(crate) fn of(path: &Path) -> Option<SocketFile> {
        let found = path.symlink_metadata().ok()?;
        Some(SocketFile { path: path.to_owned(), device_and_inode: (found.dev(), found.ino()) })
    }

    /// Removes it, unless somebody has bound the path anew.
    pub(crate) fn remove(&self) {
        let now = SocketFile::of(&self.path).map(|file| file.device_and_inode);
        if now == Some(self.device_and_inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The name in the store of a socket that listens at `address` now. `None`: it is not stored,
/// because it cannot be found again.
pub(crate) fn name_of(address: &Address) -> Option<String> {
    let place = match address {
        Address::Tcp(address) if address.port() == 0 => return None,
        Address::Port(0) => return None,
        Address::Unix(path) => {
            let (device, inode) = SocketFile::of(path)?.device_and_inode;
            format!("{device}-{inode}.{}", path.display())
        }
        Address::Tcp(_) | Address::Port(_) | Address::Abstract(_) => address.to_string(),
    };
    Some(store_name(&format!("{LISTENERS}{place}")))
}

/// What systemd has given back and nobody has claimed yet.
#[derive(Debug, Default)]
pub(crate) struct Stored(pub(super) Vec<(String, OwnedFd)>);

impl Stored {
    pub(crate) fn new(found: Vec<(String, OwnedFd)>) -> Stored {
        Stored(found)
    }

    /// The socket that listens at `address`, and its name in the store.
    pub(crate) fn claim(&mut self, address: &Address) -> Option<(String, OwnedFd)> {
        let name = name_of(address)?;
        let is_it = |(stored, socket): &(String, OwnedFd)| {
            *stored == name
                && check_listening(socket).is_ok()
                && is_at(&local(std::os::fd::AsFd::as_fd(socket)), address)
        };
        let position = self.0.iter().position(is_it)?;
        Some(self.0.remove(position))
    }

    /// Closes what listens at none of these addresses; answers the names to be discarded. Who
    /// waited there is reset, and the address is free at once, whatever systemd still keeps open.
    pub(crate) fn keep_only(&mut self, addresses: &[&Address]) -> Vec<String> {
        let wanted: Vec<String> = addresses.iter().filter_map(|it| name_of(it)).collect();
        let (kept, unused) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(name, socket)| wanted.contains(name) && check_listening(socket).is_ok());
        self.0 = kept;
        unused
            .into_iter()
            .map(|(name, socket): (String, OwnedFd)| {
                stop_listening(&socket);
                name
            })
            .collect()
    }
}
