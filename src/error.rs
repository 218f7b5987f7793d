//! What goes wrong, as a sentence for the person who can fix it.
//!
//! `main` prints an error that it returns through `Debug`; so `Debug` writes the sentence, too, and
//! `fn main() -> rcluster::Result<()>` is enough to say something useful.

use std::fmt;

/// A result of this library.
pub type Result<T> = std::result::Result<T, Error>;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A sentence that says what failed, and what to do where that is known.
pub struct Error {
    sentence: String,
    cause: Option<Cause>,
}

impl Error {
    /// An error that needs no further cause.
    #[must_use]
    pub fn new(sentence: impl Into<String>) -> Error {
        Error { sentence: sentence.into(), cause: None }
    }

    /// The same, because of `cause`.
    #[must_use]
    pub fn because(self, cause: impl Into<Cause>) -> Error {
        Error { cause: Some(cause.into()), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)?;
        match &self.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::new(error.to_string())
    }
}
