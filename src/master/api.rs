//! A Rust program that is its own master: the seed's ten lines.

use std::path::PathBuf;

use super::{OnGiveUp, Options, Source, run};
use crate::config::{Address, Config, Listen, Pool};

/// Registers pools and runs them.
///
/// ```no_run
/// fn main() -> rcluster::Result<()> {
///     rcluster::Master::new()
///         .register("127.0.0.1:8080", "app")
///         .on_give_up(|pool, why| eprintln!("{pool}: {why}"))
///         .dispatch()
/// }
/// ```
#[derive(Default)]
pub struct Master {
    pools: Vec<Pool>,
    mistake: Option<String>,
    on_give_up: Option<OnGiveUp>,
    control: Option<PathBuf>,
}

impl Master {
    /// A master without pools.
    #[must_use]
    pub fn new() -> Master {
        Master::default()
    }

    /// Adds a pool: `program` gets the connections of `listen`, which is an address
    /// (`127.0.0.1:8080`, `[::]:8080`, `8080`, `/run/app.sock`, `@abstract`) or the name of an
    /// inherited socket. A program without a slash is looked for beside this executable, then in
    /// PATH. As many workers as CPUs; [`Master::register_pool`] takes every setting.
    #[must_use]
    pub fn register(mut self, listen: &str, program: &str) -> Master {
        let address = listen.parse::<Address>().ok();
        let entry = Listen { text: listen.to_owned(), address };
        let mut pool = Pool::new(program_name(program), vec![locate(program)]);
        pool.listen = vec![entry];
        if self.pools.iter().any(|other| other.name == pool.name) {
            // The same program on another address is another pool.
            pool.name = format!("{}-{}", pool.name, self.pools.len() + 1);
            pool.policy.name.clone_from(&pool.name);
        }
        self.pools.push(pool);
        self
    }

    /// Adds a pool with all its settings.
    #[must_use]
    pub fn register_pool(mut self, pool: Pool) -> Master {
        if self.pools.iter().any(|other| other.name == pool.name) {
            self.mistake = Some(format!("two pools are named {}", pool.name));
        }
        self.pools.push(pool);
        self
    }

    /// Called with a pool's name and a sentence when it fails too often to be started again.
    #[must_use]
    pub fn on_give_up(mut self, callback: impl FnMut(&str, &str) + 'static) -> Master {
        self.on_give_up = Some(Box::new(callback));
        self
    }

    /// Where `rcluster status` and `rcluster reload` find this master. Default: nowhere.
    #[must_use]
    pub fn control(mut self, path: impl Into<PathBuf>) -> Master {
        self.control = Some(path.into());
        self
    }

    /// Starts the workers and serves until SIGTERM or SIGINT; SIGUSR1 reloads. Call it from the
    /// main thread, before any other thread runs.
    ///
    /// # Errors
    /// It could not start, or no pool can be served any more.
    pub fn dispatch(self) -> crate::Result<()> {
        let mistake = match self.pools.is_empty() {
            true => Some("no pool is registered".to_owned()),
            false => self.mistake,
        };
        if let Some(mistake) = mistake {
            return Err(crate::Error::new(mistake));
        }
        let config = Config::of_pools(self.pools);
        run(Options {
            source: Source::Fixed(Box::new(config)),
            control: self.control,
            on_give_up: self.on_give_up,
            greeting: None,
        })
        .map_err(|error| crate::Error::new(error.to_string()))
    }
}

fn program_name(program: &str) -> String {
    let name = program.rsplit('/').next().unwrap_or(program);
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// Beside this executable, or as given.
fn locate(program: &str) -> String {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(program)));
    match beside {
        Some(path) if !program.contains('/') && path.is_file() => path.display().to_string(),
        _ => program.to_owned(),
    }
}
