//! One worker behind two ports: it tells at which one the client arrived.
//!
//! ```text
//! cargo build --example multi_port
//! rcluster run --listen 127.0.0.1:33750 --listen 127.0.0.1:33751 -- target/debug/examples/multi_port
//! curl http://127.0.0.1:33750/ http://127.0.0.1:33751/
//! ```

fn main() -> rcluster::Result<()> {
    rcluster::Worker::from_env()?.ready(rcluster::demo::multi_port::serve)
}
