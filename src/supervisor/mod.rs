//! What should happen next.

mod policy;

pub use policy::{
    Balance, ConnectionId, Edition, Generation, ListenerId, Policy, PoolId, Seat, Slot,
    Unavailable, WishId, WorkerId,
};
