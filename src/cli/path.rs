//! Where the control socket is.
//!
//! ```text
//!  --control PATH                     the one that was named
//!  -i NAME                            the instance's own runtime directory
//!  RCLUSTER_CONTROL                   the one that the environment names
//!  $RUNTIME_DIRECTORY/control         under systemd
//!  /run/rcluster/control              a system service, seen from outside
//!  $XDG_RUNTIME_DIR/rcluster/control  a user's own
//! ```
//!
//! The client takes the first that exists, the daemon the first that it can make. The environment
//! is an argument.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::args::Master;

/// The environment variable that names the control socket.
pub const CONTROL_VARIABLE: &str = "RCLUSTER_CONTROL";

/// Where system services have their runtime directories.
const SYSTEM_RUNTIME: &str = "/run";

/// The socket's name in the runtime directory.
const SOCKET: &str = "control";

/// What an environment variable says.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The environment of this process.
#[must_use]
pub fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Where the client looks for a master, in this order.
#[must_use]
pub fn client_paths(typed: &Master, environment: Environment<'_>) -> Vec<PathBuf> {
    if let Some(path) = &typed.control {
        return vec![path.clone()];
    }
    if let Some(name) = &typed.instance {
        let service = format!("rcluster@{name}");
        let of_user = directory(environment, "XDG_RUNTIME_DIR");
        return [Some(PathBuf::from(SYSTEM_RUNTIME)), of_user]
            .into_iter()
            .flatten()
            .map(|runtime| runtime.join(&service).join(SOCKET))
            .collect();
    }
    named(environment).map_or_else(|| usual(environment), |path| vec![path])
}

/// Where the daemon makes its control socket when none was named: the first usable place. The
/// directory is made if only it is missing.
///
/// # Errors
/// There is no usable place.
pub fn daemon_path(environment: Environment<'_>) -> Result<PathBuf, NoPlace> {
    match named(environment) {
        // Whoever makes the socket there says why it cannot.
        Some(path) => Ok(path),
        None => first_usable(usual(environment)),
    }
}

/// No place for the control socket.
#[derive(Debug)]
pub struct NoPlace {
    /// The places that were tried.
    pub tried: Vec<PathBuf>,
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tried = list(&self.tried);
        write!(
            f,
            "there is no place for the control socket (tried {tried}); name one with --control"
        )
    }
}

impl std::error::Error for NoPlace {}

/// Paths as a sentence has them.
pub(super) fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

/// The place that the environment names.
fn named(environment: Environment<'_>) -> Option<PathBuf> {
    environment(CONTROL_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The places of a service that nobody named.
fn usual(environment: Environment<'_>) -> Vec<PathBuf> {
    let system = Path::new(SYSTEM_RUNTIME).join("rcluster");
    let of_user = directory(environment, "XDG_RUNTIME_DIR").map(|runtime| runtime.join("rcluster"));
    let mut places: Vec<PathBuf> = Vec::new();
    for directory in [directory(environment, "RUNTIME_DIRECTORY"), Some(system), of_user] {
        let place = directory.map(|directory| directory.join(SOCKET));
        places.extend(place.filter(|place| !places.contains(place)));
    }
    places
}

/// The absolute directory that a variable names; the first, when it has several.
fn directory(environment: Environment<'_>, variable: &str) -> Option<PathBuf> {
    let value = environment(variable)?;
    let first = value.as_bytes().split(|byte| *byte == b':').next()?;
    let path = PathBuf::from(OsString::from_vec(first.to_vec()));
    path.is_absolute().then_some(path)
}

fn first_usable(places: Vec<PathBuf>) -> Result<PathBuf, NoPlace> {
    match places.iter().find(|place| is_usable(place)) {
        Some(place) => Ok(place.clone()),
        None => Err(NoPlace { tried: places }),
    }
}

/// Whether a socket can be made there. Makes the directory, but never its parents: a missing
/// `/run/user/1000` is a session that is not there.
fn is_usable(place: &Path) -> bool {
    let Some(directory) = place.parent() else { return false };
    if !directory.exists() && std::fs::create_dir(directory).is_err() {
        return false;
    }
    directory.is_dir() && access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_places_in_their_order() {
        assert_eq!(
            client(
                &Master::default(),
                &[("RUNTIME_DIRECTORY", "/r/a:/r/b"), ("XDG_RUNTIME_DIR", "/u")]
            ),
            ["/r/a/control", "/run/rcluster/control", "/u/rcluster/control"]
        );
        assert_eq!(client(&Master::default(), &[]), ["/run/rcluster/control"]);
    }

    #[test]
    fn no_place_is_tried_twice() {
        assert_eq!(
            client(&Master::default(), &[("RUNTIME_DIRECTORY", "/run/rcluster")]),
            ["/run/rcluster/control"]
        );
    }

    #[test]
    fn a_name_beats_the_environment_and_the_environment_beats_the_usual() {
        let set =
            [(CONTROL_VARIABLE, "/e"), ("RUNTIME_DIRECTORY", "/r"), ("XDG_RUNTIME_DIR", "/u")];
        let control = Master { control: Some("/c".into()), instance: None };
        let instance = Master { control: None, instance: Some("web".into()) };
        assert_eq!(client(&control, &set), ["/c"]);
        assert_eq!(
            client(&instance, &set),
            ["/run/rcluster@web/control", "/u/rcluster@web/control"]
        );
        assert_eq!(client(&Master::default(), &set), ["/e"]);
    }

    #[test]
    fn empty_and_relative_variables_say_nothing() {
        let set = [(CONTROL_VARIABLE, ""), ("RUNTIME_DIRECTORY", ""), ("XDG_RUNTIME_DIR", "u")];
        assert_eq!(client(&Master::default(), &set), ["/run/rcluster/control"]);
    }

    #[test]
    fn the_daemon_takes_what_was_named_unseen() {
        let set = with(&[(CONTROL_VARIABLE, "/no/such/place")]);
        assert_eq!(daemon_path(&set).unwrap(), Path::new("/no/such/place"));
    }

    #[test]
    fn the_daemon_makes_the_directory_but_not_its_parents() {
        let here = tempfile::tempdir().unwrap();
        let far = here.path().join("a/b/control");
        let near = here.path().join("c/control");
        let second = here.path().join("d/control");
        assert_eq!(first_usable(vec![far.clone(), near.clone(), second]).unwrap(), near);
        assert!(here.path().join("c").is_dir());
        assert!(!here.path().join("a").exists());
        assert!(!here.path().join("d").exists());

        let refusal = first_usable(vec![far]).unwrap_err().to_string();
        assert!(
            refusal.starts_with("there is no place for the control socket (tried /"),
            "{refusal}"
        );
    }

    fn client(typed: &Master, set: &[(&'static str, &'static str)]) -> Vec<String> {
        let paths = client_paths(typed, &with(set));
        paths.iter().map(|path| path.display().to_string()).collect()
    }

    fn with(set: &[(&'static str, &'static str)]) -> impl Fn(&str) -> Option<OsString> + use<> {
        let set = set.to_vec();
        move |name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
    }
}
