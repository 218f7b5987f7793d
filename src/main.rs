//! temporary
fn main() -> rcluster::Result<()> {
    let a: Vec<String> = std::env::args().collect();
    match a[1].as_str() {
        "run" => rcluster::master::run(rcluster::master::Options {
            source: rcluster::master::Source::File(a[3].clone().into()),
            control: std::env::var_os("RCLUSTER_CONTROL").map(Into::into),
            on_give_up: None,
            greeting: None,
        })
        .map_err(rcluster::Error::new),
        "demo-worker" => rcluster::Worker::from_env()?.ready(rcluster::demo::http::serve),
        "echo" => rcluster::Worker::from_env()?.ready(rcluster::demo::echo::serve),
        _ => panic!(),
    }
}
