//! What a generation runs, held fast when the generation is made.
//!
//! A crash must never depend on a deploy: a worker of an old generation that is started again is
//! the old program, even if its file has been replaced or its `current` symlink moved on. So when a
//! goal is made, its programs and working directories are opened, and symlinks on the way to them
//! and in arguments are resolved. A program is executed by its path as long as the path still names
//! the file that was opened, and by its descriptor after that; scripts through their interpreter,
//! which is held in the same way. The last part of the program's own path keeps its name, because
//! programs look at it (a virtual environment's `python` is a symlink, and must stay one).
//!
//! What is overwritten in place cannot be held fast: the file that is open has changed, too. That
//! is detected, and said.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::libc;
use nix::unistd::{Group, User};

use crate::config::Pool;
use crate::sys::ancillary::number_of;
use crate::sys::process::Identity;

/// The kernel reads this much of a script's first line (`BINPRM_BUF_SIZE`).
const SHEBANG_MAX: usize = 256;

/// Variables of the master that workers never see: they speak of the master's own sockets.
const PRIVATE: &[&str] = &[
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_FDS_FIRST_FD",
    "FDSTORE",
    "NODE_CHANNEL_FD",
];

/// Everything that a pool's workers of one generation are started from.
#[derive(Debug)]
pub(crate) struct Pinned {
    program: Result<Program, String>,
    arguments: Vec<OsString>,
    directory: Option<OwnedFd>,
    environment: Vec<(OsString, OsString)>,
    pub(crate) identity: Option<Identity>,
}

/// A file, opened; and what it was when it was opened.
#[derive(Debug)]
struct Held {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

#[derive(Debug)]
struct Program {
    held: Held,
    interpreter: Option<Interpreter>,
}

#[derive(Debug)]
struct Interpreter {
    held: Held,
    argument: Option<OsString>,
}

impl Pinned {
    /// Opens and resolves what `pool` names. A program that is not there is no error here: it makes
    /// every start fail, with a sentence.
    ///
    /// # Errors
    /// A sentence about a working directory, user or group that does not exist.
    pub(crate) fn new(pool: &Pool) -> Result<Pinned, String> {
        let directory = pool.working_directory.as_ref().map(|path| open_directory(path));
        let directory = directory.transpose()?;
        let base = pool.working_directory.as_deref().map(resolve);
        let environment = environment(pool);
        let program = pool
            .program()
            .map_err(|mistake| mistake.to_string())
            .and_then(|path| Program::open(&keep_name(&path)));
        let words = pool.command.iter().skip(1).map(OsString::from);
        let arguments = words.map(|word| resolve_argument(word, base.as_deref())).collect();
        let identity = identity(pool)?;
        Ok(Pinned { program, arguments, directory, environment, identity })
    }

    /// What of it has been overwritten in place since, for people.
    pub(crate) fn overwritten(&self) -> Option<String> {
        let program = self.program.as_ref().ok()?;
        let held = [Some(&program.held), program.interpreter.as_ref().map(|it| &it.held)];
        let changed = held.into_iter().flatten().find(|held| held.is_overwritten())?;
        Some(format!("{} was overwritten in place", changed.path.display()))
    }

    /// The command to start, and descriptors that it must inherit.
    ///
    /// # Errors
    /// A sentence: the program cannot be run.
    pub(crate) fn command(&self) -> Result<(Command, Vec<OwnedFd>), String> {
        let program = self.program.as_ref().map_err(Clone::clone)?;
        let (mut command, keep) = program.command().map_err(|error| error.to_string())?;
        command.args(&self.arguments).env_clear();
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        Ok((command, keep))
    }

    /// The working directory for one more child.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(crate) fn directory(&self) -> io::Result<Option<OwnedFd>> {
        self.directory.as_ref().map(OwnedFd::try_clone).transpose()
    }
}

impl Program {
    fn open(path: &Path) -> Result<Program, String> {
        let name = path.display();
        let held = Held::open(path)
            .map_err(|error| format!("the program {name} cannot be opened: {}", plain(&error)))?;
        let interpreter = match shebang(&held.file) {
            None => None,
            Some((path, argument)) => {
                let held = Held::open(&path).map_err(|error| {
                    let interpreter = path.display();
                    let why = plain(&error);
                    format!("the interpreter {interpreter} of {name} cannot be opened: {why}")
                })?;
                Some(Interpreter { held, argument })
            }
        };
        Ok(Program { held, interpreter })
    }

    fn command(&self) -> io::Result<(Command, Vec<OwnedFd>)> {
        use std::os::unix::process::CommandExt;
        let Some(interpreter) = &self.interpreter else {
            let mut command = Command::new(self.held.runnable());
            command.arg0(&self.held.path);
            return Ok((command, Vec::new()));
        };
        if self.held.is_in_place() && interpreter.held.is_in_place() {
            return Ok((Command::new(&self.held.path), Vec::new()));
        }
        let mut command = Command::new(interpreter.held.runnable());
        command.arg0(&interpreter.held.path);
        command.args(&interpreter.argument);
        if self.held.is_in_place() {
            command.arg(&self.held.path);
            return Ok((command, Vec::new()));
        }
        let script = OwnedFd::from(self.held.file.try_clone()?);
        command.arg(format!("/proc/self/fd/{}", number_of(&script)));
        Ok((command, vec![script]))
    }
}

impl Held {
    fn open(path: &Path) -> io::Result<Held> {
        // A program may be executable without being readable; then a handle must do.
        let file = File::open(path).or_else(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                return File::options().read(true).custom_flags(libc::O_PATH).open(path);
            }
            Err(error)
        })?;
        let stamp = Stamp::of(&file.metadata()?);
        Ok(Held { path: path.to_owned(), file, stamp })
    }

    /// Whether its path still names it.
    fn is_in_place(&self) -> bool {
        self.path.metadata().is_ok_and(|metadata| Stamp::of(&metadata).is_same_file(self.stamp))
    }

    fn is_overwritten(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| Stamp::of(&metadata) != self.stamp)
    }

    /// A path that runs it, whatever its own path names by now.
    fn runnable(&self) -> PathBuf {
        if self.is_in_place() {
            return self.path.clone();
        }
        PathBuf::from(format!("/proc/self/fd/{}", number_of(&self.file)))
    }
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    fn is_same_file(self, other: Stamp) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// The interpreter of a script and its one argument (execve(2), "Interpreter scripts").
fn shebang(file: &File) -> Option<(PathBuf, Option<OsString>)> {
    let mut head = [0; SHEBANG_MAX];
    let count = file.read_at(&mut head, 0).ok()?;
    let line = head[..count].strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let line = line.trim_ascii();
    let mut parts = line.splitn(2, |byte| byte.is_ascii_whitespace());
    let path = parts.next().filter(|path| !path.is_empty())?;
    let argument = parts.next().map(<[u8]>::trim_ascii).filter(|argument| !argument.is_empty());
    let owned = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    Some((PathBuf::from(owned(path)), argument.map(owned)))
}

/// Without symlinks on the way, but under its own last name.
fn keep_name(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolve(parent).join(name),
        _ => path,
    }
}

fn absolute(path: &Path, base: Option<&Path>) -> PathBuf {
    match base {
        Some(base) => base.join(path),
        None => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// Without symlinks, as far as it exists.
fn resolve(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// An argument that names something through a symlink names what the symlink points to now.
fn resolve_argument(word: OsString, base: Option<&Path>) -> OsString {
    let path = Path::new(&word);
    if !word.as_bytes().contains(&b'/') || word.as_bytes().starts_with(b"-") {
        return word;
    }
    let plain = absolute(path, base);
    match plain.canonicalize() {
        Ok(real) if real != plain.components().collect::<PathBuf>() => real.into_os_string(),
        _ => word,
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, String> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    File::options().read(true).custom_flags(flags).open(path).map(OwnedFd::from).map_err(|error| {
        format!("working-directory {} cannot be opened: {}", path.display(), plain(&error))
    })
}

/// The workers' environment, without what belongs to one worker.
fn environment(pool: &Pool) -> Vec<(OsString, OsString)> {
    let mut environment: std::collections::BTreeMap<OsString, OsString> =
        if pool.clear_environment { Default::default() } else { std::env::vars_os().collect() };
    environment.retain(|key, _| {
        !PRIVATE.iter().any(|name| key == name) && !key.as_bytes().starts_with(b"RCLUSTER_")
    });
    for (key, value) in &pool.environment {
        environment.insert(key.into(), value.into());
    }
    environment.into_iter().collect()
}

fn identity(pool: &Pool) -> Result<Option<Identity>, String> {
    if pool.user.is_none() && pool.group.is_none() && pool.supplementary_groups.is_empty() {
        return Ok(None);
    }
    let (user, own_group, name) = match &pool.user {
        None => (nix::unistd::getuid(), nix::unistd::getgid(), None),
        Some(text) => match find_user(text)? {
            Some(user) => (user.uid, user.gid, std::ffi::CString::new(user.name).ok()),
            None => {
                let number = text.parse().map_err(|_| format!("there is no user {text}"))?;
                (nix::unistd::Uid::from_raw(number), nix::unistd::getgid(), None)
            }
        },
    };
    let group = match &pool.group {
        None => own_group,
        Some(text) => find_group(text)?,
    };
    // The list is made here: after fork nothing may read files.
    let mut groups: Vec<u32> = match name {
        None => vec![group.as_raw()],
        Some(name) => nix::unistd::getgrouplist(&name, group)
            .map_err(|error| format!("the groups of user {name:?} cannot be read: {error}"))?
            .into_iter()
            .map(nix::unistd::Gid::as_raw)
            .collect(),
    };
    for text in &pool.supplementary_groups {
        groups.push(find_group(text)?.as_raw());
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Some(Identity { user: user.as_raw(), group: group.as_raw(), groups }))
}

fn find_user(text: &str) -> Result<Option<User>, String> {
    let found = match text.parse() {
        Ok(number) => User::from_uid(nix::unistd::Uid::from_raw(number)),
        Err(_) => User::from_name(text),
    };
    match found {
        Ok(None) if text.parse::<u32>().is_err() => Err(format!("there is no user {text}")),
        Ok(user) => Ok(user),
        Err(error) => Err(format!("user {text} cannot be looked up: {error}")),
    }
}

pub(crate) fn find_group(text: &str) -> Result<nix::unistd::Gid, String> {
    if let Ok(number) = text.parse() {
        return Ok(nix::unistd::Gid::from_raw(number));
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(format!("there is no group {text}")),
        Err(error) => Err(format!("group {text} cannot be looked up: {error}")),
    }
}

/// An error without its number, which helps nobody.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn script(path: &Path, text: &str) {
        // Written beside and renamed: a new file each time, as a deploy does it.
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn run(pinned: &Pinned) -> String {
        use std::os::unix::process::CommandExt;
        let (mut command, keep) = pinned.command().unwrap();
        let prepared: Vec<OwnedFd> = keep;
        #[expect(unsafe_code, reason = "tests stand in for sys/process.rs")]
        // SAFETY: clears close-on-exec of descriptors that live until the child has run.
        unsafe {
            let numbers: Vec<i32> = prepared.iter().map(number_of).collect();
            command.pre_exec(move || {
                for &number in &numbers {
                    libc::fcntl(number, libc::F_SETFD, 0);
                }
                Ok(())
            });
        }
        // Open until the child has run, which finds it by its number.
        let directory = pinned.directory().unwrap();
        if let Some(directory) = &directory {
            command.current_dir(format!("/proc/self/fd/{}", number_of(directory)));
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    fn pool(command: &[&str]) -> Pool {
        Pool::new("test", command.iter().map(|&word| word.to_owned()).collect())
    }

    #[test]
    fn a_replaced_script_still_runs_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app");
        script(&path, "#!/bin/sh\necho old \"$1\"\n");
        let pinned = Pinned::new(&pool(&[path.to_str().unwrap(), "x"])).unwrap();
        assert_eq!(run(&pinned), "old x\n");
        script(&path, "#!/bin/sh\necho new\n");
        assert_eq!(run(&pinned), "old x\n");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(run(&pinned), "old x\n");
        assert_eq!(pinned.overwritten(), None);
    }

    #[test]
    fn a_release_symlink_holds_where_it_pointed() {
        let folder = tempfile::tempdir().unwrap();
        for release in ["1", "2"] {
            let folder = folder.path().join(release);
            std::fs::create_dir(&folder).unwrap();
            script(&folder.join("app"), "#!/bin/sh\necho $(basename $(pwd -P)) $1\n");
        }
        let current = folder.path().join("current");
        symlink(folder.path().join("1"), &current).unwrap();
        let argument = current.join("app");
        let mut pool = pool(&["./app", argument.to_str().unwrap()]);
        pool.working_directory = Some(current.clone());
        let pinned = Pinned::new(&pool).unwrap();
        std::fs::remove_file(&current).unwrap();
        symlink(folder.path().join("2"), &current).unwrap();
        let real = folder.path().canonicalize().unwrap().join("1/app");
        assert_eq!(run(&pinned), format!("1 {}\n", real.display()));
    }

    #[test]
    fn a_replaced_binary_still_runs_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tool");
        std::fs::copy("/bin/echo", &path).unwrap();
        let pinned = Pinned::new(&pool(&[path.to_str().unwrap(), "still here"])).unwrap();
        script(&path, "#!/bin/sh\necho new\n");
        assert_eq!(run(&pinned), "still here\n");
    }

    #[test]
    fn overwriting_in_place_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app");
        script(&path, "#!/bin/sh\necho old\n");
        let pinned = Pinned::new(&pool(&[path.to_str().unwrap()])).unwrap();
        std::fs::write(&path, "#!/bin/sh\necho newer\n").unwrap();
        assert!(pinned.overwritten().unwrap().ends_with("/app was overwritten in place"));
    }

    #[test]
    fn what_cannot_run_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app");
        let why = |words: &[&str]| Pinned::new(&pool(words)).unwrap().command().err().unwrap();
        let name = path.to_str().unwrap();
        assert!(why(&[name]).contains("does not exist; install it, or mend the path"));
        std::fs::write(&path, "x").unwrap();
        assert!(why(&[name]).contains("is not executable; make it executable with chmod +x"));
        script(&path, "#!/no/such/shell\n");
        let refusal =
            format!("the interpreter /no/such/shell of {name} cannot be opened: no such file");
        assert!(why(&[name]).starts_with(&refusal), "{}", why(&[name]));
        assert!(why(&["no-such-program-anywhere"]).contains("in PATH"));
    }

    #[test]
    fn the_masters_own_variables_never_leak() {
        let mut pool = pool(&["true"]);
        pool.environment.insert("NODE_ENV".into(), "production".into());
        pool.clear_environment = true;
        let only = vec![("NODE_ENV".into(), "production".into())];
        assert_eq!(environment(&pool), only);
    }
}
