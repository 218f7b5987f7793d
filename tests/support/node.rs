//! Releases of Node and what applications are written with, where `tests/programs/install-node` has put
//! them.

use std::path::{Path, PathBuf};

/// The releases that tests run, oldest first.
pub const RELEASES: [&str; 4] = ["node-18", "node-20", "node-22", "node-newest"];

/// The program of a release; what is missing is said.
pub fn release(name: &str) -> Option<PathBuf> {
    installed(&format!("{name}/bin/node"))
}

/// The folder with the libraries, for NODE_PATH; what is missing is said.
pub fn libraries() -> Option<PathBuf> {
    installed("node_modules")
}

fn installed(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("RCLUSTER_TEST_NODE");
    let folder = folder.map_or_else(|| "/var/cache/rcluster-tests/node".into(), PathBuf::from);
    let found = Some(Path::new(&folder).join(name)).filter(|path| path.exists());
    if found.is_none() {
        println!("LEFT OUT: {name} is not installed; tests/programs/install-node does it");
    }
    found
}
