//! The seed's demo and the built-in page, as handlers of plain connections.
//!
//! Each `serve` takes a [`Connection`](crate::Connection) and answers it to its end; the command
//! line runs them as workers, the examples show them. The HTTP of it is small and strict: enough
//! to be measured and probed, no web server.
//!
//! * [`echo`], [`http`], [`multi_port`]: the seed's three. · [`hello`]: the page of a new
//!   installation.
//! * [`server`]: requests and answers over one connection. · [`request`]: reading a request.

pub mod echo;
pub mod hello;
pub mod http;
pub mod multi_port;
pub mod request;
pub mod server;
#[cfg(test)]
mod tests;
