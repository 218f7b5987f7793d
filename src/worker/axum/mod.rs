//! A listener for `axum::serve`.
//!
//! [`hand_back`] around the application hands idle connections to the next worker:
//!
//! ```no_run
//! # async fn run(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
//! let worker = rcluster::Worker::from_env()?;
//! axum::serve(worker.into_listener()?, rcluster::hand_back(app)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Two facts of axum shape the rest. `accept` has no way to say that nothing will come any more; and
//! `axum::serve` returns only after a graceful shutdown. So, when the master said DRAIN, `accept`
//! waits for ever, and the end comes in one of two ways:
//!
//! * With [`Worker::draining`] as the graceful shutdown's signal, idle keep-alive connections are
//!   closed, and `axum::serve` returns when the last connection is done:
//!   ```no_run
//!   # async fn run(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
//!   let worker = rcluster::Worker::from_env()?;
//!   let draining = worker.draining();
//!   axum::serve(worker.into_listener()?, app).with_graceful_shutdown(draining).await?;
//!   # Ok(())
//!   # }
//!   ```
//! * Without, the library ends the process with status 0 when the last connection is closed, since
//!   nobody else can. Idle keep-alive connections, unless they are handed back, then hold the
//!   worker until their clients leave or the drain's deadline comes.
//!
//! Either way a connection is handed to axum only when its first bytes are there: axum closes
//! untouched connections at a graceful shutdown, and with them requests that are on the way.

mod io;
mod service;

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, ListenerExt, TapIo};

pub use self::io::Io;
pub use self::service::{HandBack, Watched, hand_back};
use super::Worker;
use super::serve::peer::{Peer, tcp_or_none};
use super::tokio::Incoming;
use crate::error::Result;

/// What [`Worker::into_listener`] makes: for `axum::serve`.
///
/// axum knows the client's address of its own listener types only; this wrapper of axum's is one
/// of them, and that makes `into_make_service_with_connect_info::<SocketAddr>()` work.
/// (`ConnectInfo<SocketAddr>` of a Unix client is `[::]:0`.) [`Peer`] tells more.
pub type Listener = TapIo<Channel, fn(&mut Io)>;

/// The inside of a [`Listener`].
#[derive(Debug)]
pub struct Channel {
    incoming: Incoming,
    graceful: bool,
}

impl Worker {
    /// Says READY and listens on the channel. Inside a tokio runtime whose I/O and time are
    /// enabled.
    ///
    /// If [`Worker::draining`] was not asked for before, **the process ends with status 0 when the
    /// worker is drained**: `axum::serve` could not return.
    ///
    /// # Errors
    /// Outside of a runtime, and when the system has no descriptors left.
    pub fn into_listener(self) -> Result<Listener> {
        let graceful = self.graceful.load(Relaxed);
        let incoming = self.when_readable().into_incoming()?;
        let nothing: fn(&mut Io) = |_| {};
        Ok(Channel { incoming, graceful }.tap_io(nothing))
    }
}

impl axum::serve::Listener for Channel {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io, SocketAddr) {
        if let Some(stream) = self.incoming.next().await {
            let address = tcp_or_none(stream.peer().ok().as_ref());
            return (Io::new(stream), address);
        }
        if !self.graceful {
            // Drained, nothing in hand, DRAINED said: there is nothing left to lose.
            std::process::exit(0);
        }
        std::future::pending().await
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        let text = "connections come from the master; ask one for its local address";
        Err(Error::new(ErrorKind::Unsupported, text))
    }
}

impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(incoming: IncomingStream<'_, Listener>) -> Peer {
        Peer::of(incoming.io())
    }
}
