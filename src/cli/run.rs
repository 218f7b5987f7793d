//! The verbs that run something: the daemon, the demo and the built-in workers.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use crate::config::{Config, Listen, Pool, Problems};
use crate::master::{self, Options, Source};
use crate::{Worker, demo};

use super::args::Run;
use super::output::{self, Level};
use super::path::{daemon_path, environment};
use super::{Failure, source};

/// `rcluster run`.
pub(super) fn run(typed: &Run) -> Result<(), Failure> {
    let source = source::of(typed)?;
    let control = typed.control.clone().or_else(control_or_warn);
    serve(Options { source, control, on_give_up: None, greeting: None })
}

/// The daemon's own place; without one it serves all the same, and hears signals only.
fn control_or_warn() -> Option<PathBuf> {
    match daemon_path(&environment) {
        Ok(path) => Some(path),
        Err(no_place) => {
            let text =
                format!("{no_place}; until then `rcluster status` and `reload` cannot reach it");
            output::tell(Level::Warning, &text);
            None
        }
    }
}

fn serve(options: Options) -> Result<(), Failure> {
    master::run(options).map_err(|error| match error {
        master::Error::Configuration(problems) => tell_all(&problems),
        master::Error::Failed(sentence) => Failure::Master(sentence),
        master::Error::Broken(_) => Failure::Told,
    })
}

/// Every mistake, a line each.
fn tell_all(problems: &Problems) -> Failure {
    for problem in &problems.0 {
        output::tell(Level::Bad, &problem.to_string());
    }
    Failure::Told
}

/// `rcluster demo`: the seed's, on its ports.
pub(super) fn demo() -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("rcluster-demo-{}", std::process::id()));
    let control = folder.join("control");
    // Ours alone: the name can be guessed, so what is there already is not taken.
    // The next image of the same process finds its own.
    if !master::is_continuation() {
        std::fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|error| {
            let folder = folder.display();
            Failure::Master(format!("the demo's folder {folder} cannot be made: {error}"))
        })?;
    }
    let pools = vec![
        demo_pool("http", 1, &[33749])?,
        demo_pool("echo", 2, &[8080])?,
        demo_pool("multi_port", 2, &[33750, 33751])?,
    ];
    let source = Source::Fixed(Box::new(Config::of_pools(pools)));
    let hint = hint(&control.display().to_string());
    let greeting = Box::new(move || {
        // Whoever does not listen can still use it.
        let _ = output::print(&hint);
    });
    let options =
        Options { source, control: Some(control), on_give_up: None, greeting: Some(greeting) };
    let ending = serve(options);
    // Gone already where the master never came as far as to make it.
    let _ = std::fs::remove_dir(folder);
    ending
}

fn demo_pool(name: &str, workers: u32, ports: &[u16]) -> Result<Pool, Failure> {
    let own = std::env::current_exe().map_err(|error| {
        Failure::Master(format!("the path of this program is not known: {error}"))
    })?;
    let command = vec![own.display().to_string(), "demo-worker".to_owned(), name.to_owned()];
    let mut pool = Pool::new(name, command);
    pool.policy.workers = workers;
    let listen = ports.iter().map(|port| format!("127.0.0.1:{port}").parse::<Listen>());
    pool.listen = listen.collect::<Result<_, _>>()?;
    Ok(pool)
}

fn hint(control: &str) -> String {
    let pid = std::process::id();
    let own = std::env::current_exe().map_or("rcluster".into(), |path| path.display().to_string());
    format!(
        "\nThe demo serves:\n  \
         curl http://127.0.0.1:33749/hello      what you asked for, as JSON\n  \
         nc 127.0.0.1 8080                      an echo; bye ends it\n  \
         curl http://127.0.0.1:33750/           one pool on two ports\n  \
         curl http://127.0.0.1:33751/\n\
         Replace every worker while you use it:\n  \
         kill -USR1 {pid}\n  \
         {own} reload --control {control}\n\
         Look at it:\n  \
         {own} status --control {control}\n\
         Ctrl-C drains and ends it.\n\n"
    )
}

/// `rcluster demo-worker NAME`, which the demo's pools run.
pub(super) fn demo_worker(name: &str) -> Result<(), Failure> {
    match name {
        "http" => work(demo::http::serve),
        "echo" => work(demo::echo::serve),
        "multi_port" => work(demo::multi_port::serve),
        _ => Err(Failure::Master(format!(
            "there is no demo worker {name}; there are: http, echo, multi_port"
        ))),
    }
}

/// `rcluster hello`.
pub(super) fn hello() -> Result<(), Failure> {
    work(demo::hello::serve)
}

fn work(serve: fn(crate::Connection)) -> Result<(), Failure> {
    let served = Worker::from_env().and_then(|worker| worker.ready(serve));
    served.map_err(|error| Failure::Master(error.to_string()))
}
