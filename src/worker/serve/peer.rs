//! Where a request comes from, for those who answer it.

#[cfg(feature = "axum")]
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use hyper::http::Extensions;

use crate::worker::address::Address;
use crate::worker::stream::Stream;
use crate::worker::{Handle, handle_of};

/// Where a request comes from, for TCP and Unix sockets alike.
///
/// [`serve`](crate::serve) and [`hand_back`](crate::worker::hand_back) put it into the extensions of
/// every request; with axum it is `ConnectInfo<Peer>`, too.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The client's address; `None` when it had gone before it could be asked.
    pub address: Option<Address>,
    /// The address at which it arrived.
    pub local: Option<Address>,
    /// The name of the listener that accepted it.
    pub listener: Arc<str>,
    handle: Handle,
}

impl Peer {
    pub(crate) fn of(stream: &Stream) -> Peer {
        Peer {
            address: stream.peer().ok(),
            local: stream.local().ok(),
            listener: stream.listener_shared(),
            handle: handle_of(stream.link()),
        }
    }

    /// Whether the worker was told to finish what it has in hand.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.handle.draining()
    }

    /// Waits until the worker is told to finish what it has in hand. For a connection that was
    /// upgraded (a WebSocket, say) and for an answer without an end of its own: time to say
    /// good-bye. What is still there at the drain's deadline is cut.
    pub async fn until_draining(&self) {
        self.handle.until_draining().await;
    }

    /// Tells a request of it.
    pub(crate) fn introduce(&self, extensions: &mut Extensions) {
        #[cfg(feature = "axum")]
        {
            use axum::extract::ConnectInfo;
            extensions.insert(ConnectInfo(tcp_or_none(self.address.as_ref())));
            extensions.insert(ConnectInfo(self.clone()));
        }
        extensions.insert(self.clone());
    }
}

/// A client's TCP address; of any other client, or one that had gone before it could be asked,
/// `[::]:0`.
#[cfg(feature = "axum")]
pub(crate) fn tcp_or_none(address: Option<&Address>) -> SocketAddr {
    const NONE: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
    address.and_then(Address::tcp).unwrap_or(NONE)
}
