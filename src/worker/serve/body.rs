//! Bodies and answers with a guard: as long as somebody holds one, the connection is in use.
//!
//! In each of them the guard is the last field, so that the body is gone when the guard closes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Buf, Bytes, Frame, Incoming, SizeHint};
use hyper::service::Service as HyperService;
use hyper::{Request, Response, Version};
use hyper_util::service::TowerToHyperService;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::tracker::{Guard, Tracker};

/// The body of a request, as [`serve`](crate::serve) hands it to the application.
#[derive(Debug)]
pub struct RequestBody {
    body: Incoming,
    // Closed when the body is gone.
    _guard: Option<Guard>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// Any body that somebody holds.
    pub(crate) struct Guarded<B> {
        #[pin]
        body: B,
        guard: Guard,
    }
}

impl<B> Guarded<B> {
    pub(crate) fn new(body: B, guard: Guard) -> Guarded<B> {
        Guarded { body, guard }
    }
}

impl<B: Body> Body for Guarded<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let polled = this.body.poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let is_odd = |data: &B::Data| data.chunk().len() < data.remaining();
            if frame.data_ref().is_some_and(is_odd) {
                this.guard.tracker().note_odd();
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An application on one connection.
pub(crate) struct Application<S> {
    service: TowerToHyperService<S>,
    tracker: Arc<Tracker>,
}

impl<S> Application<S> {
    pub(crate) fn new(service: S, tracker: Arc<Tracker>) -> Application<S> {
        Application { service: TowerToHyperService::new(service), tracker }
    }
}

type Answering<S> = <TowerToHyperService<S> as HyperService<Request<RequestBody>>>::Future;

impl<S, B> HyperService<Request<Incoming>> for Application<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone,
{
    type Response = Response<Guarded<B>>;
    type Error = S::Error;
    type Future = Answer<Answering<S>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        note_request(&self.tracker, &request);
        self.tracker.begin();
        let guard = Guard::of_answer(&self.tracker);
        let mut request = request.map(|body| {
            let _guard = (!body.is_end_stream()).then(|| Guard::new(&self.tracker));
            RequestBody { body, _guard }
        });
        self.tracker.peer().introduce(request.extensions_mut());
        Answer::new(self.service.call(request), guard)
    }
}

/// A request that its client wants to be the last.
pub(crate) fn note_request<B>(tracker: &Tracker, request: &Request<B>) {
    // Earlier versions close unless both sides say otherwise.
    if request.version() < Version::HTTP_11 {
        tracker.note_last();
    }
    tracker.note_head(request.headers());
}

pin_project! {
    /// An answer that is being made.
    #[derive(Debug)]
    pub(crate) struct Answer<F> {
        #[pin]
        answering: F,
        guard: Option<Guard>,
    }
}

impl<F> Answer<F> {
    pub(crate) fn new(answering: F, guard: Guard) -> Answer<F> {
        Answer { answering, guard: Some(guard) }
    }
}

impl<F, B, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Guarded<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Poll::Ready(made) = this.answering.poll(context) else { return Poll::Pending };
        // Polled once more after its end, it would wait for ever, as futures may.
        let Some(guard) = this.guard.take() else { return Poll::Pending };
        if let Ok(response) = &made {
            guard.tracker().note_head(response.headers());
        }
        Poll::Ready(made.map(|response| response.map(|body| Guarded::new(body, guard))))
    }
}
