//! The seed's service on several ports: it tells at which one the client arrived.

use super::server::{self, Response};
use crate::worker::Connection;

/// Answers one connection to its end.
pub fn serve(connection: Connection) {
    let text = match connection.port() {
        Some(port) => format!("hello world, handle port {port}"),
        None => format!("hello world, handle socket {}", connection.listener()),
    };
    server::serve(connection, |_| Response::text(text.clone()));
}
