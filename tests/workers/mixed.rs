//! An axum application of short and slow answers, large ones, and bodies that are read, ignored or
//! half read: what the tests of hand-back reload. `mixed serve` by `rcluster::serve`, `mixed listener`
//! by `axum::serve`.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Path;
use axum::routing::{get, post};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let app = Router::new()
        .route("/pid", get(|| async { std::process::id().to_string() }))
        .route("/slow/{ms}", get(slow))
        .route("/bytes/{count}", get(|Path(count): Path<usize>| async move { vec![b'x'; count] }))
        .route("/read", post(|body: Bytes| async move { body.len().to_string() }))
        .route("/ignore", post(|| async { "ignored" }))
        .route("/half", post(half))
        .route("/trap", get(trap));
    match std::env::args().nth(1).as_deref() {
        Some("listener") => {
            let listener = rcluster::Worker::from_env()?.into_listener()?;
            axum::serve(listener, rcluster::hand_back(app)).await?;
        }
        _ => rcluster::serve(app).await?,
    }
    Ok(())
}

async fn slow(Path(ms): Path<u64>) -> String {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    format!("slept {ms} ms")
}

/// Reads the first part of the body and drops the rest.
async fn half(mut body: Body) -> String {
    let first = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
    let first = first.and_then(Result::ok).and_then(|frame| frame.into_data().ok());
    format!("{} bytes are enough", first.map_or(0, |bytes| bytes.len()))
}

/// The inside of a body was taken for a request.
async fn trap() -> &'static str {
    std::process::abort()
}
