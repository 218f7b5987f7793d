//! What the configuration names on this machine: users, groups, directories, programs.
//!
//! Asked by `rcluster check`, and by whoever starts a pool; [`super::load`] never asks, because a
//! program that is missing for a moment must not make a running configuration invalid.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};

use super::error::{Mistake, Problem, quote, quote_path, why};
use super::{Config, Places, Pool, answer, npm};

/// Where programs are looked for without any `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

impl Config {
    /// Everything that the configuration names and this machine lacks.
    pub fn check_programs(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(group) = &self.master.control_group {
            let mut check = Check::new(&self.master.places, &mut problems);
            check.tell("control-group", check_group(group));
        }
        for pool in &self.pools {
            let mut check = Check::new(&pool.places, &mut problems);
            check.tell("command", npm::refusal(pool).map_or(Ok(()), Err));
            if let Some(user) = &pool.user {
                check.tell("user", check_user(user));
            }
            if let Some(group) = &pool.group {
                check.tell("group", check_group(group));
            } else if let Some(user) = &pool.user {
                check.tell("user", check_has_group(user));
            }
            for group in &pool.supplementary_groups {
                check.tell("supplementary-groups", check_group(group));
            }
            match &pool.working_directory {
                // Without its directory, a relative program cannot be judged.
                Some(directory) if !directory.is_dir() => {
                    check.tell("working-directory", Err(no_directory(directory)));
                }
                Some(_) | None => check.tell("command", pool.program().map(drop)),
            }
        }
        problems
    }

    /// What is accepted, but could be better.
    pub fn advice(&self) -> Vec<Problem> {
        let advise = |pool: &Pool| {
            let mistake = answer::advice(pool.answer.as_deref()?)?;
            Some(mistake.at(pool.places.of("unavailable")))
        };
        self.pools.iter().filter_map(advise).collect()
    }
}

impl Pool {
    /// The file of the pool's program. With a `/` it is a path, a relative one from the working
    /// directory; without, it is looked for in `PATH`, the workers' if the pool sets one, else the
    /// master's.
    pub fn program(&self) -> Result<PathBuf, Mistake> {
        let name = self.command.first().map_or("", String::as_str);
        let directory = self.working_directory.as_deref().unwrap_or(Path::new(""));
        if name.contains('/') {
            let path = directory.join(name);
            return check_program(&path).map(|()| path);
        }
        let path = self.search_path(std::env::var("PATH").ok());
        let found = std::env::split_paths(&path)
            .map(|place| directory.join(place).join(name))
            .find(|file| check_program(file).is_ok());
        found.ok_or_else(|| {
            let message = format!("no program {} in PATH ({})", quote(name), quote(&path));
            Mistake::new(message, "install it, or write its whole path")
        })
    }

    /// Why this command cannot become a worker, though its program is there.
    pub fn refusal(&self) -> Option<Mistake> {
        npm::refusal(self)
    }

    /// The `PATH` that the pool's workers have, when the master has this one.
    fn search_path(&self, masters: Option<String>) -> String {
        let own = self.environment.get("PATH").cloned();
        let inherited = masters.filter(|_| !self.clear_environment);
        own.or(inherited).unwrap_or(DEFAULT_PATH.to_owned())
    }
}

/// The checks of one section.
struct Check<'a> {
    places: &'a Places,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Check<'a> {
    fn new(places: &'a Places, problems: &'a mut Vec<Problem>) -> Self {
        Check { places, problems }
    }

    /// Adds what is wrong with a key.
    fn tell(&mut self, key: &str, outcome: Result<(), Mistake>) {
        if let Err(mistake) = outcome {
            self.problems.push(mistake.at(self.places.of(key)));
        }
    }
}

fn check_user(name: &str) -> Result<(), Mistake> {
    if name.parse::<u32>().is_ok() {
        return Ok(());
    }
    match User::from_name(name) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Mistake::new(
            format!("there is no user {} on this machine", quote(name)),
            "create the user, or write another name or a number",
        )),
        Err(cause) => Err(Mistake::new(
            format!("the user {} cannot be looked up: {}", quote(name), cause.desc()),
            "write the user's number",
        )),
    }
}

/// A number without an account has no group of its own.
fn check_has_group(name: &str) -> Result<(), Mistake> {
    let Ok(number) = name.parse::<u32>() else { return Ok(()) };
    match User::from_uid(nix::unistd::Uid::from_raw(number)) {
        Ok(Some(_)) => Ok(()),
        Ok(None) | Err(_) => Err(Mistake::new(
            format!("the user {} is in no account database", quote(name)),
            "give a group, too",
        )),
    }
}

fn check_group(name: &str) -> Result<(), Mistake> {
    if name.parse::<u32>().is_ok() {
        return Ok(());
    }
    match Group::from_name(name) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Mistake::new(
            format!("there is no group {} on this machine", quote(name)),
            "create the group, or write another name or a number",
        )),
        Err(cause) => Err(Mistake::new(
            format!("the group {} cannot be looked up: {}", quote(name), cause.desc()),
            "write the group's number",
        )),
    }
}

fn no_directory(path: &Path) -> Mistake {
    let what = match std::fs::metadata(path) {
        Ok(_) => "is no directory".to_owned(),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => "does not exist".to_owned(),
        Err(cause) => format!("cannot be reached: {}", why(&cause)),
    };
    let message = format!("the working directory {} {what}", quote_path(path));
    Mistake::new(message, "create it, or write another one")
}

/// Whether this file can be executed by somebody.
fn check_program(path: &Path) -> Result<(), Mistake> {
    let shown = quote_path(path);
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            let message = format!("the program {shown} does not exist");
            return Err(Mistake::new(message, "install it, or mend the path"));
        }
        Err(cause) => {
            let message = format!("the program {shown} cannot be reached: {}", why(&cause));
            return Err(Mistake::new(message, "mend the path or its permissions"));
        }
    };
    if !metadata.is_file() {
        let message = format!("the program {shown} is not a regular file");
        return Err(Mistake::new(message, "write the path of a program"));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        let message = format!("the program {shown} is not executable");
        let remedy = "make it executable with chmod +x, or put its interpreter first";
        return Err(Mistake::new(message, remedy));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_where_the_workers_would() {
        let mut pool = Pool::new("a", vec!["x".to_owned()]);
        let masters = || Some("/masters".to_owned());
        assert_eq!(pool.search_path(masters()), "/masters");
        assert_eq!(pool.search_path(None), DEFAULT_PATH);
        pool.clear_environment = true;
        assert_eq!(pool.search_path(masters()), DEFAULT_PATH);
        let path = ("PATH".to_owned(), "/own".to_owned());
        pool.environment.extend([path]);
        assert_eq!(pool.search_path(masters()), "/own");
    }
}
