//! A listener for `axum::serve`.
//!
//! Two facts of axum shape it. `accept` has no way to say that nothing will come any more; and
//! `axum::serve` returns only after a graceful shutdown. So, when the master said DRAIN, `accept`
//! waits for ever, and the end comes in one of two ways:
//!
//! * With [`Worker::draining`] as the graceful shutdown's signal, idle keep-alive connections are
//!   closed, and `axum::serve` returns when the last connection is done. Prefer this:
//!   ```no_run
//!   # async fn run(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
//!   let worker = rcluster::Worker::from_env()?;
//!   let draining = worker.draining();
//!   axum::serve(worker.into_listener()?, app).with_graceful_shutdown(draining).await?;
//!   # Ok(())
//!   # }
//!   ```
//! * Without, the library ends the process with status 0 when the last connection is closed, since
//!   nobody else can. Idle keep-alive connections then hold the worker until their clients leave
//!   or the drain's deadline comes.
//!
//! Either way a connection is handed to axum only when its first bytes are there: axum closes
//! untouched connections at a graceful shutdown, and with them requests that are on the way.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, ListenerExt, TapIo};

use super::Worker;
use super::address::Address;
use super::tokio::{Incoming, Stream};
use crate::error::Result;

/// What [`Worker::into_listener`] makes: for `axum::serve`.
///
/// axum knows the client's address of its own listener types only; this wrapper of axum's is one
/// of them, and that makes `into_make_service_with_connect_info::<SocketAddr>()` work.
/// (`ConnectInfo<SocketAddr>` of a Unix client is `[::]:0`.) [`Peer`] tells more.
pub type Listener = TapIo<Channel, fn(&mut Stream)>;

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
        let nothing: fn(&mut Stream) = |_| {};
        Ok(Channel { incoming, graceful }.tap_io(nothing))
    }
}

impl axum::serve::Listener for Channel {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        if let Some(stream) = self.incoming.next().await {
            let address = stream.peer().ok().and_then(|peer| peer.tcp());
            return (stream, address.unwrap_or(NO_ADDRESS));
        }
        if !self.graceful {
            // Drained, nothing in hand, DRAINED said: there is nothing left to lose.
            std::process::exit(0);
        }
        std::future::pending().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        let text = "connections come from the master; ask one for its local address";
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }
}

/// Stands for a client that has no TCP address, or had gone before it could be asked.
const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// Where a request comes from: `ConnectInfo<Peer>`, for TCP and Unix sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The client's address; `None` when it had gone before it could be asked.
    pub address: Option<Address>,
    /// The address at which it arrived.
    pub local: Option<Address>,
    /// The name of the listener that accepted it.
    pub listener: String,
}

impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(incoming: IncomingStream<'_, Listener>) -> Peer {
        let stream = incoming.io();
        Peer {
            address: stream.peer().ok(),
            local: stream.local().ok(),
            listener: stream.listener().to_owned(),
        }
    }
}
