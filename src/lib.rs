//! rcluster.

#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod demo;
mod error;
#[cfg(feature = "daemon")]
mod kinds;
#[cfg(feature = "daemon")]
pub mod master;
#[cfg(feature = "daemon")]
pub mod supervisor;
mod sys;
pub mod wire;
pub mod worker;

pub use error::{Error, Result};
#[cfg(feature = "daemon")]
pub use master::Master;
pub use worker::{Connection, Worker};
