//! Serves HTTP with hyper, and hands idle connections to the next worker.
//!
//! ```text
//! stream ─▶ sniff ─┬▶ drive (HTTP/1) ── at a boundary, draining ─▶ hand back
//!                  └▶ HTTP/2: GOAWAY at the drain
//! ```
//!
//! * `drive`: one HTTP/1 connection, and the moment at which it can be handed back.
//! * `tracker`, `body`, `io`: what is noted of it on the way. · `accounts`: the second opinion.
//! * `sniff`: which HTTP a client speaks. · `peer`: where a request comes from.

pub(super) mod accounts;
pub(super) mod body;
mod drive;
mod io;
pub(super) mod peer;
mod sniff;
pub(super) mod tracker;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use hyper::body::Body;
use hyper::server::conn::http2;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tower_service::Service;

use self::accounts::Accounts;
use self::body::{Application, RequestBody};
use self::io::Io;
use self::peer::Peer;
use self::sniff::{Sniffed, sniff};
use self::tracker::Tracker;
use super::Worker;
use super::stream::Stream;
use super::tell::tell;
use super::tokio::either;
use crate::error::Result;

/// Any error, as hyper takes it.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What can be served: a tower service of requests, as axum's `Router` is.
///
/// A name for these bounds; it is implemented for whatever has them.
pub trait App<B>:
    Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S, B> App<B> for S where
    S: Service<Request<RequestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// How a boundary is made sure of, and how often it was not.
#[derive(Clone, Debug)]
pub(super) struct Checks {
    /// A poll counts only when nothing was opened or closed in it.
    pub events: bool,
    /// The accounts must agree.
    pub accounts: bool,
    /// Connections that were closed, not handed back, because of a doubt.
    pub vetoes: Arc<AtomicU64>,
    /// Of these, the ones that hyper did not end when it was expected to.
    pub misjudged: Arc<AtomicU64>,
}

impl Default for Checks {
    fn default() -> Checks {
        let (vetoes, misjudged) = Default::default();
        Checks { events: true, accounts: true, vetoes, misjudged }
    }
}

/// Serves `app` on the connections that the master hands to this process, until drained.
///
/// The same as `Worker::from_env()?.serve(app)`; see [`Worker::serve`].
///
/// # Errors
/// Those of [`Worker::from_env`] and [`Worker::serve`].
pub async fn serve<S: App<B>, B>(app: S) -> Result<()>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    Worker::from_env()?.serve(app).await
}

impl Worker {
    /// Says READY and serves `app`, HTTP/1 and HTTP/2 (with prior knowledge), until drained.
    ///
    /// `app` is any tower service of requests; an axum `Router`, for example:
    ///
    /// ```no_run
    /// # #[cfg(feature = "axum")]
    /// # async fn run() -> rcluster::Result<()> {
    /// use axum::{Router, routing::get};
    ///
    /// let app = Router::new().route("/", get(|| async { "hello" }));
    /// rcluster::Worker::from_env()?.serve(app).await
    /// # }
    /// ```
    ///
    /// When the worker is replaced, no client notices: an HTTP/1 connection goes to another worker
    /// as soon as it stands between two requests, with what was read of the next one. An answer that
    /// is under way does not announce a close. Where the master takes no connections back (it stops,
    /// or is older), idle ones are closed and the last answer says `Connection: close`. HTTP/2 gets
    /// a GOAWAY; a connection that was upgraded stays until the drain's deadline, and learns of the
    /// drain by [`Peer::until_draining`].
    ///
    /// Not handed back are connections whose boundary is in doubt: those that ever asked for an
    /// upgrade and got none, or whose framing is unusual.
    ///
    /// Every request's extensions hold a [`Peer`]; with the feature `axum`, `ConnectInfo<SocketAddr>`
    /// and `ConnectInfo<Peer>` can be extracted, too.
    ///
    /// Inside a tokio runtime whose I/O and time are enabled. Returns when every connection is
    /// closed or handed back.
    ///
    /// # Errors
    /// Outside of a runtime, and when the system has no descriptors left.
    pub async fn serve<S: App<B>, B>(self, app: S) -> Result<()>
    where
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let checks = Checks::default();
        self.serve_with(app, checks.clone()).await?;
        let vetoes = checks.vetoes.load(Relaxed);
        if vetoes > 0 {
            tell!("{vetoes} connections were closed, not handed back: their boundary was in doubt");
        }
        Ok(())
    }

    pub(super) async fn serve_with<S: App<B>, B>(self, app: S, checks: Checks) -> Result<()>
    where
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let mut incoming = self.into_incoming()?;
        while let Some(stream) = incoming.next().await {
            stream.count_by_hand();
            stream.speak_http();
            tokio::spawn(serve_stream(stream, app.clone(), checks.clone()));
        }
        Ok(())
    }
}

/// A connection's life in this worker.
async fn serve_stream<S: App<B>, B>(mut stream: Stream, app: S, checks: Checks)
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let peer = Peer::of(&stream);
    loop {
        let leftover = match sniff(&mut stream).await {
            Sniffed::Http1 => {
                let link = Arc::clone(stream.link());
                let tracker = Tracker::new(link, peer.clone(), Accounts::default());
                let left = drive::run(stream, app.clone(), Arc::new(tracker), &checks).await;
                let Some((back, leftover)) = left else { return };
                stream = back;
                leftover
            }
            Sniffed::Http2 => return serve_http2(stream, app, peer).await,
            Sniffed::Draining => Vec::new(),
            Sniffed::Closed => return,
        };
        match stream.hand_back(&leftover).await {
            Ok(()) => return,
            // It is served to its end here.
            Err(kept) => stream = kept.connection,
        }
    }
}

/// A connection of many requests at once, which ends with a GOAWAY.
async fn serve_http2<S: App<B>, B>(stream: Stream, app: S, peer: Peer)
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let link = Arc::clone(stream.link());
    let tracker = Tracker::new(Arc::clone(&link), peer, Accounts::in_doubt());
    let tracker = Arc::new(tracker);
    stream.attach(&tracker);
    let io = TokioIo::new(Io::new(stream, Arc::clone(&tracker)));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    // WebSockets over HTTP/2 begin with it.
    builder.enable_connect_protocol();
    let http = builder.serve_connection(io, Application::new(app, tracker));
    let mut http = std::pin::pin!(http);
    let ended = either(Pin::new(&mut http), link.until_drain()).await;
    if !ended {
        http.as_mut().graceful_shutdown();
        // That a client hung up or spoke no HTTP is no event.
        let _ = http.await;
    }
}
