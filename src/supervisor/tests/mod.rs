
mod player;
