//! How each kind of worker is started and spoken to.
//!
//! `native` workers use the worker library: a channel, a scoreboard, connections by descriptor.
//! Other kinds (`node`, `ipc`, `inherit`) will stand beside it; what they share is
//! [`crate::sys::process`].

pub(crate) mod native;
