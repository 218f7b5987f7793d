//! One place where failures become answers: handlers return an error, clients get JSON.
//!
//! ```text
//! cargo build --example json_errors --features axum
//! rcluster run --listen 127.0.0.1:8080 -- target/debug/examples/json_errors
//! curl -i http://127.0.0.1:8080/error
//! ```

use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

#[tokio::main]
async fn main() -> rcluster::Result<()> {
    let app = Router::new()
        .route("/", get(|| async { "hello world\n" }))
        .route("/error", get(fail))
        .fallback(|uri: Uri| async move { Failure::NotFound(uri.path().to_owned()) });
    let worker = rcluster::Worker::from_env()?;
    axum::serve(worker.into_listener()?, rcluster::hand_back(app)).await?;
    Ok(())
}

async fn fail() -> Result<String, Failure> {
    let number: i32 = "four".parse().map_err(|error| Failure::Internal(Box::new(error)))?;
    Ok(number.to_string())
}

/// What a handler may fail with.
enum Failure {
    NotFound(String),
    Internal(Box<dyn std::error::Error>),
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Failure::NotFound(path) => (StatusCode::NOT_FOUND, format!("nothing at {path}")),
            Failure::Internal(cause) => (StatusCode::INTERNAL_SERVER_ERROR, cause.to_string()),
        };
        (status, Json(json!({ "error": text }))).into_response()
    }
}
