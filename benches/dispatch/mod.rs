//! The parts of `cargo bench --bench dispatch`.

pub mod clients;
pub mod cost;
pub mod field;
pub mod floor;
pub mod meter;
pub mod mind;
pub mod tail;
pub mod uring;
