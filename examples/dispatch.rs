//! A master of your own: ten lines that run `app.rs`, one worker per CPU.
//!
//! ```text
//! cargo build --example app
//! cargo run --example dispatch
//! curl http://127.0.0.1:8080/
//! ```

fn main() -> rcluster::Result<()> {
    // A program without a slash is looked for beside this one.
    rcluster::Master::new()
        .register("127.0.0.1:8080", "app")
        .on_give_up(|pool, why| eprintln!("{pool}: {why}"))
        .dispatch()
}
