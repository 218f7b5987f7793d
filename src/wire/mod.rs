//! The words between processes. Master and worker meet only here.
//!
//! * [`message`]: what travels on a channel, encoded and decoded, pure.
//! * [`channel`]: the socket pair that carries it.
//! * [`scoreboard`]: the counters that need no message; [`siblings`]: who looks at whose.
//! * [`ledger`]: what a crash would mean for each connection.
//! * [`control`]: what the command line asks of the master, over Varlink.
//!
//! The worker library is compiled into other people's programs and the master is upgraded by the
//! package manager, so the two may be of different ages: every message and the scoreboard carry
//! [`VERSION`], unknown messages and fields are skipped, and numbers once given are never reused.

pub mod channel;
#[cfg(feature = "daemon")]
pub mod control;
mod fields;
mod holding;
pub mod ledger;
pub mod message;
mod past;
mod ready;
pub mod scoreboard;
pub mod siblings;

/// The version of the channel's messages and of the scoreboard's layout.
pub const VERSION: u8 = 1;

/// What the key of a KEEP begins with that brings the read end of the worker's own output.
pub const LOG_KEY: &str = "rcluster-log.";

/// Environment variable with the number of the worker's end of the channel.
pub const CHANNEL_VARIABLE: &str = "RCLUSTER_CHANNEL";
/// Environment variable with the number of the scoreboard's descriptor.
pub const SCOREBOARD_VARIABLE: &str = "RCLUSTER_SCOREBOARD";
/// Environment variable with the number of the crash ledger's descriptor, where there is one.
pub const LEDGER_VARIABLE: &str = "RCLUSTER_LEDGER";
/// Environment variable with the worker's seat on the scoreboard.
pub const SEAT_VARIABLE: &str = "RCLUSTER_SEAT";
/// Environment variable with the pool's name.
pub const POOL_VARIABLE: &str = "RCLUSTER_POOL";
/// Environment variable with the worker's slot, 1…N.
pub const SLOT_VARIABLE: &str = "RCLUSTER_SLOT";
/// Environment variable with the worker's generation.
pub const GENERATION_VARIABLE: &str = "RCLUSTER_GENERATION";
