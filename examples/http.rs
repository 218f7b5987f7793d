//! HTTP without a framework: keep-alive, pipelining, and a drain that loses no request.
//!
//! What it answers is the seed's demo (`{"method":…,"url":…,"post":…}`), and `/pid`, `/sleep/MS`
//! and `/bytes/N`. `src/demo/server.rs` is worth reading: it waits between two requests with
//! `Connection::wait_to_hand_back`, and hands the connection to the next worker when it drains.
//!
//! ```text
//! cargo build --example http
//! rcluster run --listen 127.0.0.1:33749 -- target/debug/examples/http
//! curl -d 'a=b' http://127.0.0.1:33749/path
//! ```

fn main() -> rcluster::Result<()> {
    rcluster::Worker::from_env()?.ready(rcluster::demo::http::serve)
}
