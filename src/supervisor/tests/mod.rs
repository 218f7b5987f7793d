//! Transcripts guard policy, the simulation guards safety and liveness.

mod many;
mod masters;
mod player;
mod seats;
mod shell;
mod simulation;
mod stage;
mod wishes;
mod worker;
mod world;
