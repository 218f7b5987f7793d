//! A program's image, made ready before the fork, and become after it.
//!
//! The standard library executes by `execvp`, which gives what the kernel refuses (a program of
//! another machine, say) to `/bin/sh`, as if it were a script. Here it is refused.
//!
//! Some programs want to be told their own process id (`LISTEN_PID`), which is known only after the
//! fork. [`OWN_PID`] stands for it until then.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::Command;
use std::ptr;

use nix::libc::{self, c_char};

/// In arguments and in values of the environment: the process id of the program itself. Longer than
/// any process id.
pub const OWN_PID: &str = "\u{1}own-process-id\u{1}";

/// What `execve(2)` needs, complete: nothing is allocated after the fork.
pub struct Image {
    program: CString,
    arguments: Array,
    environment: Array,
}

impl Image {
    /// The program of `command`, which is a path; its arguments after `name` (argv[0]; `None`: the
    /// path); and the environment that it sets, no other.
    ///
    /// # Errors
    /// `InvalidInput`, when a word has a NUL byte in it.
    pub fn new(command: &Command, name: Option<OsString>) -> io::Result<Image> {
        let program = command.get_program();
        let name = name.unwrap_or_else(|| program.to_owned());
        let arguments = std::iter::once(name.as_os_str()).chain(command.get_args());
        let environment = command.get_envs().filter_map(|(key, value)| {
            let mut word = key.to_owned();
            word.push("=");
            word.push(value?);
            Some(word)
        });
        Ok(Image {
            program: word(program)?,
            arguments: Array::new(arguments.map(word))?,
            environment: Array::new(environment.map(|it| Ok(CString::new(it.into_vec())?)))?,
        })
    }

    /// Becomes the program. Async-signal-safe. Returns only when that fails, and says why.
    pub fn become_it(&mut self) -> io::Error {
        let pid = Digits::of(std::process::id());
        self.arguments.fill_in(pid.as_bytes());
        self.environment.fill_in(pid.as_bytes());
        let (arguments, environment) = (self.arguments.start(), self.environment.start());
        // SAFETY: all of it ends in NUL or a null pointer and outlives the call.
        unsafe { libc::execve(self.program.as_ptr(), arguments, environment) };
        io::Error::last_os_error()
    }
}

fn word(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// A number as text, without allocation.
struct Digits {
    bytes: [u8; 10],
    begin: usize,
}

impl Digits {
    fn of(mut number: u32) -> Digits {
        let (mut bytes, mut begin) = ([b'0'; 10], 10);
        while begin > 0 && (number > 0 || begin == 10) {
            begin -= 1;
            // A digit.
            bytes[begin] = b'0' + (number % 10) as u8;
            number /= 10;
        }
        Digits { bytes, begin }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.begin..]
    }
}

/// Words, and where each begins, with a null pointer at the end.
struct Array {
    starts: Vec<*const c_char>,
    /// What they point to, each with its NUL; the bytes of a moved vector stay where they are.
    words: Vec<Vec<u8>>,
    /// Word and offset of every [`OWN_PID`], the last of each word first.
    pids: Vec<(usize, usize)>,
}

// SAFETY: the pointers are into words that the array owns; it alone changes them, and never their
// place.
unsafe impl Send for Array {}
// SAFETY: as above.
unsafe impl Sync for Array {}

impl Array {
    fn new(words: impl Iterator<Item = io::Result<CString>>) -> io::Result<Array> {
        let words = words.map(|word| word.map(CString::into_bytes_with_nul));
        let words = words.collect::<io::Result<Vec<Vec<u8>>>>()?;
        let starts = words.iter().map(|word| word.as_ptr().cast());
        let starts = starts.chain([ptr::null()]).collect();
        let pids = words.iter().enumerate().flat_map(|(word, bytes)| {
            let places = bytes.windows(OWN_PID.len()).enumerate().rev();
            let found = places.filter(|(_, part)| *part == OWN_PID.as_bytes());
            found.map(move |(offset, _)| (word, offset))
        });
        let pids = pids.collect();
        Ok(Array { starts, words, pids })
    }

    /// Puts the process id where it belongs. Words become shorter, and stay where they are.
    fn fill_in(&mut self, pid: &[u8]) {
        for &(word, offset) in &self.pids {
            let Some(word) = self.words.get_mut(word) else { continue };
            let (from, to) = (offset + OWN_PID.len(), offset + pid.len());
            word[offset..to].copy_from_slice(pid);
            word.copy_within(from.., to);
        }
        self.pids.clear();
    }

    fn start(&self) -> *const *const c_char {
        self.starts.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn filled(text: &str, pid: u32) -> String {
        let mut array = Array::new([Ok(CString::new(text).unwrap())].into_iter()).unwrap();
        let begin = array.words[0].as_ptr();
        array.fill_in(Digits::of(pid).as_bytes());
        assert_eq!(array.words[0].as_ptr(), begin);
        CStr::from_bytes_until_nul(&array.words[0]).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn the_process_id_is_filled_in_wherever_it_stands() {
        let text = |template: &str| template.replace("{pid}", OWN_PID);
        assert_eq!(filled(&text("LISTEN_PID={pid}"), 4711), "LISTEN_PID=4711");
        assert_eq!(filled(&text("{pid},{pid};x={pid}."), 4_194_304), "4194304,4194304;x=4194304.");
        assert_eq!(filled(&text("{pid}{pid}"), 0), "00");
        assert_eq!(filled("nothing", 7), "nothing");
        assert_eq!(filled(&text("{pid}"), u32::MAX), "4294967295");
    }
}
