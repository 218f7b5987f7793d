//! rcluster.

#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod demo;
mod error;
#[cfg(feature = "daemon")]
pub mod supervisor;
mod sys;
pub mod wire;
pub mod worker;

pub use error::{Error, Result};
pub use worker::{Connection, Worker};
