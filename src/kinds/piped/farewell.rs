//! How a worker of Node's cluster module is told to finish, so that nobody is lost by it.
//!
//! Node closes idle connections when it is told to finish, and from version 26 on it takes one for idle from
//! which it has not read anything yet: a client that was handed over in the moment before would be
//! reset, with its request unread. So the worker is first handed something that is no connection, under
//! a key that no server has. It declines that. Its runtime reads one such message per turn, and
//! looks at all of its sockets in each; so by then it has read from the last client that it was handed. Then
//! it is told.

use std::os::unix::net::UnixStream;

use super::Link;

impl Link {
    /// Hands it the last thing, which is none.
    pub(super) fn hand_over_last(&mut self) {
        let number = self.handed + 1;
        let Ok((none, _)) = UnixStream::pair() else { return self.disconnect() };
        let Some(message) = self.cluster_mut().map(|cluster| cluster.last_parcel(number)) else {
            return;
        };
        self.handed = number;
        let posted = self.pipe.post_handle("net.Native", &message, None, none.into());
        self.note_posted(&posted);
        if posted.is_ok() {
            self.unacknowledged.push_back(Some(number));
        }
    }

    /// Whether this is the number of that thing.
    pub(super) fn is_last(&self, number: u64) -> bool {
        self.cluster().is_some_and(|cluster| cluster.last == Some(number))
    }

    /// Tells it to finish.
    pub(super) fn disconnect(&mut self) {
        let message = self.cluster_mut().map(|cluster| {
            cluster.last = None;
            cluster.disconnect()
        });
        message.into_iter().for_each(|message| self.post(&message));
    }
}
