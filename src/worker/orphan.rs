//! A worker without a master, on the way to the next one.
//!
//! The adoption socket is systemd's, and always there; or the next master makes it. Then it appears
//! in its folder, complete, which the kernel tells (inotify): nothing is polled, unless the kernel
//! has no watches left.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::taker::now;
use super::tell::tell;
use crate::sys::ancillary::{Received, receive};
use crate::wire::message::{LENGTH_MAX, ToWorker};

/// How soon the adoption socket is tried again where no event tells.
const RETRY: Duration = Duration::from_millis(100);

/// What there is while there is no master.
#[derive(Debug)]
pub(super) struct Orphan {
    /// When nobody is waited for any longer; `None`: it has passed.
    pub until: Option<Instant>,
    /// Tells that something happens where the socket is to be.
    news: Option<Inotify>,
    /// HELLO was sent here.
    socket: Option<Arc<OwnedFd>>,
    retry_at: Option<Instant>,
    /// What went wrong was said.
    complained: bool,
}

impl Orphan {
    pub fn new(until: Instant) -> Orphan {
        let news = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        let (socket, retry_at, complained) = (None, Some(now()), false);
        Orphan { until: Some(until), news, socket, retry_at, complained }
    }

    /// What tells that there is something to do.
    pub fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let news = self.news.iter().map(AsFd::as_fd);
        self.socket.iter().map(|socket| socket.as_fd()).chain(news)
    }

    /// When there is something to do by the clock.
    pub fn deadline(&self) -> Option<Instant> {
        [self.until, self.retry_at].into_iter().flatten().min()
    }

    /// Looks at what came on the connection. A master that is dead, too, is forgotten.
    pub fn is_refused(&mut self) -> bool {
        let mut buffer = [0; LENGTH_MAX];
        while let Some(socket) = &self.socket {
            match receive(socket.as_fd(), &mut buffer) {
                Ok(Received::Message { len, .. }) => {
                    if ToWorker::decode(&buffer[..len]) == Ok(ToWorker::Bye) {
                        return true;
                    }
                }
                Ok(Received::Empty) => return false,
                Ok(Received::Closed) | Err(_) => {
                    self.socket = None;
                    self.retry_at = Some(now() + RETRY);
                }
            }
        }
        false
    }

    /// Whether to try the socket now. Before that its folder is watched: what happens from here on
    /// is told.
    pub fn is_due(&mut self, path: &Path) -> bool {
        let is_news = self.news.as_ref().is_some_and(|news| news.read_events().is_ok());
        let is_time = self.retry_at.is_some_and(|at| at <= now());
        if self.socket.is_some() || !(is_news || is_time) {
            return false;
        }
        let kinds = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let folder = path.parent().unwrap_or(path);
        let watched = self.news.as_ref().map(|news| news.add_watch(folder, kinds));
        let is_watched = matches!(watched, Some(Ok(_)));
        self.retry_at = if is_watched { None } else { Some(now() + RETRY) };
        true
    }

    /// How the introduction went.
    pub fn note(&mut self, introduced: io::Result<Arc<OwnedFd>>) {
        let error = match introduced {
            Ok(socket) => {
                (self.socket, self.retry_at) = (Some(socket), None);
                return;
            }
            Err(error) => error,
        };
        let kind = error.kind();
        if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            // The next master makes it: that is told.
            return;
        }
        self.retry_at = Some(now() + RETRY);
        let is_crowded = kind == io::ErrorKind::WouldBlock;
        if !is_crowded && !std::mem::replace(&mut self.complained, true) {
            tell!("the next master cannot be reached: {error}; it is tried again");
        }
    }
}
