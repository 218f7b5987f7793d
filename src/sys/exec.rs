//! A program's image, made ready before the fork, and become after it.
//!
//! The standard library executes by `execvp`, which gives what the kernel refuses (a program of
//! another machine, say) to `/bin/sh`, as if it were a script. Here it is refused.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::Command;
use std::ptr;

use nix::libc::{self, c_char};

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
    pub fn become_it(&self) -> io::Error {
        let (arguments, environment) = (self.arguments.start(), self.environment.start());
        // SAFETY: all of it ends in NUL or a null pointer and outlives the call.
        unsafe { libc::execve(self.program.as_ptr(), arguments, environment) };
        io::Error::last_os_error()
    }
}

fn word(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// Words, and where each begins, with a null pointer at the end.
struct Array {
    starts: Vec<*const c_char>,
    // What they point to; a moved CString stays where it is.
    _words: Vec<CString>,
}

// SAFETY: the pointers are into words that the array owns and nobody changes.
unsafe impl Send for Array {}
// SAFETY: as above.
unsafe impl Sync for Array {}

impl Array {
    fn new(words: impl Iterator<Item = io::Result<CString>>) -> io::Result<Array> {
        let words = words.collect::<io::Result<Vec<CString>>>()?;
        let starts = words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect();
        Ok(Array { starts, _words: words })
    }

    fn start(&self) -> *const *const c_char {
        self.starts.as_ptr()
    }
}
