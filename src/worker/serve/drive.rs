//! Runs hyper on one HTTP/1 connection and finds the moment at which it can be handed back.
//!
//! hyper does not say when it stands between two requests. It follows from this: a poll that ends
//! *pending*, in which no body was opened or closed and after which none is held, with everything
//! written, has left hyper waiting for the head of a request. (Each poll reads, then writes, then
//! flushes, and a connection whose request and answer are both over becomes idle in that flush; a
//! side that is closed ends it.) Then a graceful shutdown must end it at once, with what it has read
//! and not used in its hands.
//!
//! That rests on hyper's inside, so it is checked against [`Accounts`](super::accounts::Accounts),
//! which do not: in doubt the connection is not handed back, but closed as gracefully as ever. A
//! graceful shutdown is never asked for while a request is under way, so that its answer does not
//! announce a close.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use hyper::body::Body;
use hyper::server::conn::http1::{Builder, UpgradeableConnection};
use hyper_util::rt::TokioIo;
use tokio::time::{Sleep, sleep_until};

use super::body::Application;
use super::io::Io;
use super::tracker::Tracker;
use super::{App, BoxError, Checks};
use crate::worker::drain::Drain;
use crate::worker::link::Link;
use crate::worker::stream::Stream;

/// hyper, on one connection.
type Http1<S> = UpgradeableConnection<TokioIo<Io>, Application<S>>;

/// What the drain has made of a connection.
enum Phase {
    Serving,
    /// It leaves at its next boundary.
    HandingBack,
    /// It ends with the request that is under way, if there is one.
    Closing,
}

/// What a look at a connection found.
enum Look {
    /// It is over.
    Ended,
    /// It stands between two requests, with hyper stopped.
    AtBoundary,
    /// It is in use.
    Busy,
    /// It must not be handed back.
    InDoubt,
}

/// Serves it; answers the stream and what hyper has read and not used, if it is to be handed back.
pub(super) async fn run<S: App<B>, B>(
    stream: Stream,
    service: S,
    tracker: Arc<Tracker>,
    checks: &Checks,
) -> Option<(Stream, Vec<u8>)>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let link = Arc::clone(stream.link());
    let may_hand_back = !stream.is_kept();
    stream.attach(&tracker);
    let io = TokioIo::new(Io::new(stream, Arc::clone(&tracker)));
    let application = Application::new(service, Arc::clone(&tracker));
    // Known before the first request: its answer is the last one, and says so.
    let is_last = link.drain_told().is_some_and(|drain| !(drain.handback && may_hand_back));
    if is_last {
        tracker.note_last();
    }
    let mut builder = Builder::new();
    let http = builder.keep_alive(!is_last).serve_connection(io, application);
    let mut http = http.with_upgrades();
    let mut told = std::pin::pin!(link.until_drain());
    let (mut waker, mut is_polled) = (None, false);
    let mut phase = Phase::Serving;
    let mut deadline: Option<Pin<Box<Sleep>>> = None;
    let is_leaving = std::future::poll_fn(|context| {
        if matches!(phase, Phase::Serving) {
            let is_told = poll_drain(&link, &mut waker, told.as_mut(), context);
            let Some(drain) = is_told else {
                is_polled = true;
                return over(&mut http, context);
            };
            deadline = drain.silent_until.map(|at| Box::pin(sleep_until(at.into())));
            if drain.handback && may_hand_back {
                phase = Phase::HandingBack;
            } else {
                // Never polled, hyper would close it, and a request that is there with it.
                if !is_polled && over(&mut http, context).is_ready() {
                    return Poll::Ready(false);
                }
                close(&mut http, &mut phase, &tracker);
            }
        }
        let is_late = deadline.as_mut().is_some_and(|at| at.as_mut().poll(context).is_ready());
        if is_late {
            deadline = None;
            close(&mut http, &mut phase, &tracker);
        }
        poll_drained(&mut http, &tracker, checks, &mut phase, context)
    });
    if !is_leaving.await {
        return None;
    }
    take_apart(http, &tracker, checks)
}

/// The drain, if it was told. The waker is enlisted once: every request passes here.
fn poll_drain(
    link: &Link,
    waker: &mut Option<std::task::Waker>,
    told: Pin<&mut impl Future<Output = ()>>,
    context: &mut Context<'_>,
) -> Option<Drain> {
    if !link.is_draining() {
        if waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            return None;
        }
        *waker = Some(context.waker().clone());
        if told.poll(context).is_pending() {
            return None;
        }
    }
    link.drain_told()
}

/// Polls it to its end, which is no hand-back.
fn over<S: App<B>, B>(http: &mut Http1<S>, context: &mut Context<'_>) -> Poll<bool>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    // That a client hung up or spoke no HTTP is no event.
    Pin::new(http).poll(context).map(|_| false)
}

fn close<S: App<B>, B>(http: &mut Http1<S>, phase: &mut Phase, tracker: &Tracker)
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    *phase = Phase::Closing;
    tracker.note_last();
    Pin::new(http).graceful_shutdown();
}

/// One poll while draining; `true`: it leaves.
fn poll_drained<S: App<B>, B>(
    http: &mut Http1<S>,
    tracker: &Tracker,
    checks: &Checks,
    phase: &mut Phase,
    context: &mut Context<'_>,
) -> Poll<bool>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    match phase {
        Phase::HandingBack => {
            tracker.watch(context.waker());
            match look(http, tracker, checks, context) {
                Look::Ended => return Poll::Ready(false),
                Look::AtBoundary => return Poll::Ready(true),
                Look::Busy => return Poll::Pending,
                Look::InDoubt => {
                    checks.vetoes.fetch_add(1, Relaxed);
                    close(http, phase, tracker);
                }
            }
        }
        Phase::Serving | Phase::Closing => {}
    }
    over(http, context)
}

/// Polls hyper and looks where it stands.
fn look<S: App<B>, B>(
    http: &mut Http1<S>,
    tracker: &Tracker,
    checks: &Checks,
    context: &mut Context<'_>,
) -> Look
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    loop {
        let before = tracker.in_use();
        if Pin::new(&mut *http).poll(context).is_ready() {
            return Look::Ended;
        }
        let after = tracker.in_use();
        // When that changes, it wakes.
        if !after.is_none() {
            return Look::Busy;
        }
        // Something ended in this very poll, which hyper may not have seen yet.
        if checks.events && before != after {
            continue;
        }
        if tracker.is_unflushed() {
            return Look::Busy;
        }
        if tracker.requests() == 0 {
            // hyper would wait for a first request; nothing of it was used, so it need not end. What
            // it wrote without a request is a refusal.
            return if tracker.has_written() { Look::InDoubt } else { Look::AtBoundary };
        }
        if checks.accounts && !tracker.accounts().is_between_requests() {
            return Look::InDoubt;
        }
        tracker.set_leaving(true);
        Pin::new(&mut *http).graceful_shutdown();
        return match Pin::new(http).poll(context) {
            Poll::Ready(Ok(())) => Look::AtBoundary,
            Poll::Ready(Err(_)) => Look::Ended,
            Poll::Pending => {
                checks.misjudged.fetch_add(1, Relaxed);
                tracker.set_leaving(false);
                Look::InDoubt
            }
        };
    }
}

/// Takes the stream out of hyper, if all agree about what is left.
fn take_apart<S: App<B>, B>(
    http: Http1<S>,
    tracker: &Tracker,
    checks: &Checks,
) -> Option<(Stream, Vec<u8>)>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let parts = http.into_parts()?;
    let stream = parts.io.into_inner().stream;
    let leftover = parts.read_buf.to_vec();
    let accounts = tracker.accounts();
    if checks.accounts && !(accounts.is_between_requests() && accounts.pending() == leftover) {
        checks.vetoes.fetch_add(1, Relaxed);
        return None;
    }
    drop(accounts);
    stream.detach(tracker.requests());
    Some((stream, leftover))
}
