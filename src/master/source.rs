//! Where the configuration comes from.

use std::path::PathBuf;

use crate::config::{Config, Problems};

/// Where the configuration comes from, now and at every reload.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A file, and `conf.d` beside it.
    File(PathBuf),
    /// A command line or a program; it never changes.
    Fixed(Box<Config>),
}

impl Source {
    /// Reads it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(&self) -> Result<Config, Problems> {
        match self {
            Source::File(path) => crate::config::load(path),
            Source::Fixed(config) => Ok((**config).clone()),
        }
    }
}
