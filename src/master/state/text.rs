//! Strings of the system, which need not be text, in a form that is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Serialize};

/// What the system calls a string: most often text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Text {
    Text(String),
    Bytes(Vec<u8>),
}

impl Default for Text {
    fn default() -> Text {
        Text::Text(String::new())
    }
}

impl<T: AsRef<OsStr> + ?Sized> From<&T> for Text {
    fn from(text: &T) -> Text {
        match text.as_ref().to_str() {
            Some(text) => Text::Text(text.to_owned()),
            None => Text::Bytes(text.as_ref().as_bytes().to_vec()),
        }
    }
}

impl From<Text> for OsString {
    fn from(text: Text) -> OsString {
        match text {
            Text::Text(text) => text.into(),
            Text::Bytes(bytes) => OsString::from_vec(bytes),
        }
    }
}
