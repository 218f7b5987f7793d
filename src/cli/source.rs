//! Where a daemon's configuration comes from: a file, or the command line.
//!
//! A file is read again at every reload, so the daemon keeps the [`Source`], not only what it said.

use std::path::Path;

use crate::config::{Config, Kind, Pool, Preset, Workers};
use crate::master::Source;

use super::Failure;
use super::args::Run;

/// The configuration that is read when no other is named.
pub const DEFAULT_FILE: &str = "/etc/rcluster/rcluster.toml";

/// What the arguments of `rcluster run` mean.
///
/// # Errors
/// The command or an option cannot be used.
pub fn of(typed: &Run) -> Result<Source, Failure> {
    if typed.command.is_empty() {
        return Ok(Source::File(file_or_default(typed.config.as_deref()).to_owned()));
    }
    let kind = typed.kind.as_deref().map(str::parse::<Kind>).transpose()?;
    let preset = typed.preset.as_deref().map(str::parse::<Preset>).transpose()?;
    let workers = typed.workers.unwrap_or(Workers::Auto);
    let pool =
        Pool::from_command(typed.listen.clone(), workers, kind, preset, typed.command.clone())?;
    Ok(Source::Fixed(Box::new(Config::of_pools(vec![pool]))))
}

/// The file that was named, else the default.
pub(super) fn file_or_default(named: Option<&Path>) -> &Path {
    named.unwrap_or(Path::new(DEFAULT_FILE))
}

#[cfg(test)]
mod tests {
    use super::super::args::{Arguments, Verb};
    use super::*;
    use clap::Parser as _;

    #[test]
    fn without_anything_it_is_the_default_file() {
        assert_eq!(source("rcluster run").unwrap(), Source::File(DEFAULT_FILE.into()));
        assert_eq!(source("rcluster run --config a").unwrap(), Source::File("a".into()));
    }

    #[test]
    fn a_command_is_one_pool_named_after_it() {
        let typed = "rcluster run --listen 8080 --listen @a --workers 3 -- bin/app --port 1";
        let Source::Fixed(config) = source(typed).unwrap() else { panic!("a file") };
        let pool = &config.pools[0];
        assert_eq!(pool.name, "app");
        assert_eq!(pool.command, ["bin/app", "--port", "1"]);
        assert_eq!(pool.listen.len(), 2);
        assert_eq!(pool.policy.workers, 3);
        assert_eq!(config.pools.len(), 1);
    }

    #[test]
    fn a_preset_fills_in_the_rest() {
        let typed = "rcluster run --listen 8080 --preset uvicorn -- uvicorn app:app";
        let Source::Fixed(config) = source(typed).unwrap() else { panic!("a file") };
        assert_eq!(config.pools[0].command, ["uvicorn", "app:app", "--fd", "{fd}"]);
        assert_eq!(config.pools[0].manner.kind, Kind::Inherit);
    }

    #[test]
    fn what_there_is_not_is_refused_in_a_sentence() {
        for (typed, said) in [
            ("--kind weird -- a", "there is no kind `weird`"),
            ("--preset gunicron -- a", "did you mean `gunicorn`?"),
            ("--preset uvicorn -- a", "takes one listening socket"),
            ("--preset node --kind ipc -- a", "of the kind `node`"),
            ("--kind inherit -- a {fd}", "give `listen` an entry"),
        ] {
            let refusal = source(&format!("rcluster run {typed}")).unwrap_err().to_string();
            assert!(refusal.contains(said) && !refusal.contains('\n'), "{refusal}");
        }
    }

    fn source(typed: &str) -> Result<Source, Failure> {
        let arguments = Arguments::try_parse_from(typed.split(' ')).unwrap();
        let Verb::Run(run) = arguments.verb else { panic!("another verb") };
        of(&run)
    }
}
