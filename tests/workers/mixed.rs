//! An axum application of short and slow answers, large ones, and bodies that are read, ignored or
//! half read: what the tests of hand-back reload. `mixed serve` by `rcluster::serve`, `mixed listener`
//! by `axum::serve`; `mixed gone` says READY and exits with status 4, having taken nothing.
//!
//! A word more is its version, which `/who` answers beside its process id. Without one it is what
//! stands after the last `VERSION=` at the end of the program's own file.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Path;
use axum::routing::{get, post};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let mut words = std::env::args().skip(1);
    let mode = words.next().unwrap_or_default();
    if mode == "gone" {
        return gone();
    }
    let version = words.next().map_or_else(own_version, Ok)?;
    tokio::runtime::Runtime::new()?.block_on(serve(&mode, version))
}

/// On one thread, so that nothing is received between the two.
fn gone() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let _incoming = rcluster::Worker::from_env()?.into_incoming()?;
        std::process::exit(4)
    })
}

fn own_version() -> std::io::Result<String> {
    let program = std::fs::File::open("/proc/self/exe")?;
    let mut end = [0; 32];
    let start = program.metadata()?.len().saturating_sub(32);
    let count = program.read_at(&mut end, start)?;
    let end = String::from_utf8_lossy(&end[..count]).into_owned();
    Ok(end.rsplit_once("VERSION=").map_or(String::new(), |(_, version)| version.to_owned()))
}

async fn serve(mode: &str, version: String) -> Outcome {
    let who = format!("{} {version}", std::process::id());
    let app = Router::new()
        .route("/pid", get(|| async { std::process::id().to_string() }))
        .route("/who", get(async || who))
        .route("/slow/{ms}", get(slow))
        .route("/bytes/{count}", get(|Path(count): Path<usize>| async move { vec![b'x'; count] }))
        .route("/read", post(|body: Bytes| async move { body.len().to_string() }))
        .route("/ignore", post(|| async { "ignored" }))
        .route("/half", post(half))
        .route("/say/{text}", get(say))
        .route("/trap", get(trap));
    match mode {
        "listener" => {
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

/// Panics when nobody can read it.
async fn say(Path(text): Path<String>) -> &'static str {
    eprintln!("said {text}");
    "said"
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
