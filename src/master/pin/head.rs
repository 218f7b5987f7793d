//! What the first bytes of a program say: for which machine it is, or who interprets it.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The kernel reads this much of a script's first line (`BINPRM_BUF_SIZE`).
const SHEBANG_MAX: usize = 256;

/// Whether a program is built for a machine of another kind than this process. Not where something
/// (binfmt_misc) may run such programs all the same.
pub(super) fn is_foreign(file: &File) -> bool {
    // How the bytes of a number are ordered, and the kind of machine (elf(5)).
    let kind = |file: &File| {
        let mut head = [0; 20];
        file.read_exact_at(&mut head, 0).ok()?;
        head.starts_with(b"\x7fELF").then_some((head[5], [head[18], head[19]]))
    };
    let own = File::open("/proc/self/exe").ok().and_then(|file| kind(&file));
    let (Some(theirs), Some(own)) = (kind(file), own) else { return false };
    // 64-bit machines of these two kinds run programs of their 32-bit ancestors: i386, ARM.
    let ancestor: Option<[u8; 2]> = match u16::from_le_bytes(own.1) {
        62 => Some([3, 0]),
        183 => Some([40, 0]),
        _ => None,
    };
    let is_kin = theirs.0 == own.0 && (theirs.1 == own.1 || Some(theirs.1) == ancestor);
    let helpers = std::fs::read_dir("/proc/sys/fs/binfmt_misc");
    let is_helped = helpers.is_ok_and(|entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names.into_iter().any(|name| name != "status" && name != "register")
    });
    !is_kin && !is_helped
}

/// The interpreter of a script and its one argument (execve(2), "Interpreter scripts").
pub(super) fn shebang(file: &File) -> Option<(PathBuf, Option<OsString>)> {
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
