//! The smallest worker: answers every HTTP request with a greeting.
//!
//! ```text
//! cargo build --example app
//! rcluster run --listen 127.0.0.1:8080 -- target/debug/examples/app
//! curl http://127.0.0.1:8080/
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};

use rcluster::Connection;

fn main() -> rcluster::Result<()> {
    rcluster::Worker::from_env()?.ready(|connection| {
        // Connection: Read + Write + AsFd, peer, listener name; TCP or Unix
        answer(connection)
    })
}

/// One request, one answer. `http.rs` shows a connection of many.
fn answer(mut connection: Connection) -> io::Result<()> {
    // The request ends at the first empty line; a head longer than this is none of ours.
    for line in BufReader::new((&connection).take(8192)).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let body = format!("hello from process {}\n", std::process::id());
    write!(
        connection,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}
