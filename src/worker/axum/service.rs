//! An application whose connections leave with the worker: what [`Io`](super::Io) needs to know of
//! requests and answers is noted here.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::serve::IncomingStream;
use tower_service::Service;

use super::Listener;
use crate::worker::serve::body::{Answer, Guarded, note_request};
use crate::worker::serve::tracker::{Guard, Tracker};

/// Makes `axum::serve` hand its idle connections to the next worker when this one is replaced.
///
/// ```no_run
/// # async fn run(app: axum::Router) -> rcluster::Result<()> {
/// let worker = rcluster::Worker::from_env()?;
/// axum::serve(worker.into_listener()?, rcluster::hand_back(app)).await?;
/// # Ok(())
/// # }
/// ```
///
/// It stands in the place of `app.into_make_service()`, and every request can tell where it comes
/// from as if it were `into_make_service_with_connect_info`: `ConnectInfo<SocketAddr>`,
/// `ConnectInfo<Peer>`. Not to be used with `with_graceful_shutdown`, which closes idle connections
/// at the very moment at which they would leave.
///
/// [`serve`](crate::serve) does the same and more: there HTTP/2 gets a GOAWAY at the drain, and an
/// answer that is still under way near the drain's deadline announces the close.
pub fn hand_back<S>(app: S) -> HandBack<S> {
    HandBack { app }
}

/// What [`hand_back`] makes: for `axum::serve`.
#[derive(Clone, Debug)]
pub struct HandBack<S> {
    app: S,
}

impl<S: Clone> Service<IncomingStream<'_, Listener>> for HandBack<S> {
    type Response = Watched<S>;
    type Error = Infallible;
    type Future = Ready<Result<Watched<S>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, incoming: IncomingStream<'_, Listener>) -> Self::Future {
        ready(Ok(Watched { app: self.app.clone(), tracker: incoming.io().track() }))
    }
}

/// The application on one connection.
#[derive(Clone, Debug)]
pub struct Watched<S> {
    app: S,
    tracker: Arc<Tracker>,
}

impl<S> Service<Request> for Watched<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.app.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        note_request(&self.tracker, &request);
        self.tracker.begin();
        let guard = Guard::of_answer(&self.tracker);
        let mut request = request.map(|body| {
            if hyper::body::Body::is_end_stream(&body) {
                return body;
            }
            Body::new(Guarded::new(body, Guard::new(&self.tracker)))
        });
        self.tracker.peer().introduce(request.extensions_mut());
        Answering { answer: Answer::new(self.app.call(request), guard) }
    }
}

pin_project_lite::pin_project! {
    /// An answer that is being made.
    #[derive(Debug)]
    pub struct Answering<F> {
        #[pin]
        answer: Answer<F>,
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Answering<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let made = self.project().answer.poll(context);
        made.map(|made| made.map(|response| response.map(Body::new)))
    }
}
