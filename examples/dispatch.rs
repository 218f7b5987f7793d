//! A master of your own: ten lines that run `app.rs`, one worker per CPU.
//!
//! ```text
//! cargo build --example app
//! cargo run --example dispatch
//! curl http://127.0.0.1:8080/
//! ```

fn main() -> rcluster::Result<()> {
    // The program beside this one.
    let app = std::env::current_exe()?.with_file_name("app");
    rcluster::Master::new()
        .register("127.0.0.1:8080", &app.to_string_lossy())
        .on_give_up(|pool, why| eprintln!("{pool}: {why}"))
        .dispatch()
}
