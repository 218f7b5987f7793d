//! Servers beside which rcluster is measured: who they are, how each is run, and clients of theirs.

pub mod load;
pub mod roster;
pub mod server;
