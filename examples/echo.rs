//! The seed's echo service, for `nc` and telnet: `bye` ends the connection, `fatal` the worker
//! (and the master starts another).
//!
//! ```text
//! cargo build --example echo
//! rcluster run --listen 127.0.0.1:8080 -- target/debug/examples/echo
//! nc 127.0.0.1 8080
//! ```

fn main() -> rcluster::Result<()> {
    rcluster::Worker::from_env()?.ready(rcluster::demo::echo::serve)
}
