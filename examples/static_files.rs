//! Files of a directory with axum; anything else tells its URL and who answered.
//!
//! ```text
//! cargo build --example static_files --features axum
//! rcluster run --listen 127.0.0.1:19841 -- target/debug/examples/static_files /srv/www
//! curl http://127.0.0.1:19841/index.html
//! ```
//!
//! Without a directory, a built-in page stands at `/` and `/index.html`.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::{Html, IntoResponse, Response};

const PAGE: &str = "<!doctype html>\n<title>Hello</title>\n<p>Hello static files\n";

#[tokio::main]
async fn main() -> rcluster::Result<()> {
    let directory = match std::env::args_os().nth(1) {
        // Resolved once, so that a request can be held against it.
        Some(path) => Some(Path::new(&path).canonicalize()?),
        None => None,
    };
    let app = Router::new().fallback(answer).with_state(Arc::new(directory));
    rcluster::serve(app).await
}

async fn answer(State(directory): State<Arc<Option<PathBuf>>>, uri: Uri) -> Response {
    let path = if uri.path() == "/" { "/index.html" } else { uri.path() };
    match directory.as_deref() {
        Some(directory) => {
            if let Some(file) = find(directory, path).await {
                return file;
            }
        }
        None if path == "/index.html" => return Html(PAGE).into_response(),
        None => {}
    }
    format!("{uri}, pid {}", std::process::id()).into_response()
}

/// The file of this path, if there is one inside of the directory.
async fn find(directory: &Path, path: &str) -> Option<Response> {
    let relative = Path::new(path.strip_prefix('/')?);
    // Neither `..` nor a second root; and symlinks are followed only as far as they stay inside.
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let file = tokio::fs::canonicalize(directory.join(relative)).await.ok()?;
    if !file.starts_with(directory) || !tokio::fs::metadata(&file).await.ok()?.is_file() {
        return None;
    }
    let kind = match file.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html;charset=utf-8",
        Some("css") => "text/css;charset=utf-8",
        Some("js") => "text/javascript;charset=utf-8",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("txt" | "md") => "text/plain;charset=utf-8",
        _ => "application/octet-stream",
    };
    let bytes = tokio::fs::read(file).await.ok()?;
    Some(([(header::CONTENT_TYPE, kind)], bytes).into_response())
}
