//! A file that is loaded before a Node application, so that it drains quickly and its connections are counted.
//!
//! It is part of this program, so that whatever version of rcluster runs has the one that it understands,
//! installed or not. Node loads files only, and by their real path: so it is written beside the control
//! socket, where workers of other users can read it, and written anew whenever it is not what it should be.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

/// The file.
const TEXT: &str = include_str!("drain.js");
/// Behind the path of the control socket.
const SUFFIX: &str = ".drain.js";

/// Where it stands for a master with this control socket; it is there afterwards.
///
/// # Errors
/// Those of writing it.
pub(crate) fn written(control: &Path) -> io::Result<PathBuf> {
    // A path without a folder would be the name of a package.
    let control = &std::path::absolute(control)?;
    let path = beside(control, SUFFIX);
    if is_own(&path)? && fs::read(&path).is_ok_and(|text| text == TEXT.as_bytes()) {
        return Ok(path);
    }
    // Somebody may be loading it at this moment.
    let draft = beside(control, ".drain.js~");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // New, so that nobody else has it open, and no symbolic link is followed.
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&draft)?;
    file.write_all(TEXT.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    fs::rename(&draft, &path)?;
    Ok(path)
}

/// Whether nobody else can have written this file: workers of every user load it.
fn is_own(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => {
            let is_ours = found.uid() == geteuid().as_raw();
            Ok(found.is_file() && is_ours && found.mode() & 0o022 == 0)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn beside(control: &Path, suffix: &str) -> PathBuf {
    let mut path = control.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Has a worker load it, besides what its NODE_OPTIONS say.
///
/// # Errors
/// `InvalidInput`: its path cannot be written there.
pub(super) fn load(command: &mut Command, file: &Path) -> io::Result<()> {
    let Some(path) = file.to_str().filter(|path| !path.contains(['"', '\\'])) else {
        let text = "the control socket's path has characters that NODE_OPTIONS cannot have";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    let name = OsStr::new("NODE_OPTIONS");
    let own = command.get_envs().find(|(key, _)| *key == name).and_then(|(_, value)| value);
    let mut options = OsString::from(format!("\"--require={path}\""));
    if let Some(own) = own {
        options.push(" ");
        options.push(own);
    }
    command.env(name, options);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_once_and_again_when_it_is_not_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("control");
        let path = written(&control).unwrap();
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let first = inode(&path);
        assert_eq!((written(&control).unwrap(), inode(&path)), (path.clone(), first));
        fs::write(&path, "other").unwrap();
        assert_eq!(written(&control).unwrap(), path);
        assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
        // One that others may write is not believed, nor a link, whatever stands there.
        let second = inode(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_ne!((written(&control).unwrap(), inode(&path)), (path.clone(), second));
        let other = folder.path().join("other");
        fs::rename(&path, &other).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(!fs::symlink_metadata(written(&control).unwrap()).unwrap().is_symlink());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn the_options_that_a_pool_sets_are_kept() {
        let mut command = Command::new("node");
        command.env("NODE_OPTIONS", "--max-old-space-size=64");
        load(&mut command, Path::new("/run/a b/control.drain.js")).unwrap();
        let all: Vec<_> = command.get_envs().collect();
        let options = "\"--require=/run/a b/control.drain.js\" --max-old-space-size=64";
        assert_eq!(all, [(OsStr::new("NODE_OPTIONS"), Some(OsStr::new(options)))]);
        assert!(load(&mut command, Path::new("/run/a\"b")).is_err());
    }
}
