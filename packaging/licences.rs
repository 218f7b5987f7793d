//! Writes who holds the rights in what the program is made of: its own licence, and that of every
//! crate that is linked into it.
//!
//! ```text
//! cargo run --example licences -- DIRECTORY
//! ```
//!
//! `LICENSES` has every text; `copyright`, for Debian, names the place where every Debian system has
//! the Apache License.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A crate that is linked into the program.
struct Linked {
    name: String,
    version: String,
    licence: String,
    folder: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: licences DIRECTORY")?);
    let own = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE"))?;
    let linked = linked(&metadata()?)?;
    for (name, is_debian) in [("LICENSES", false), ("copyright", true)] {
        let file = directory.join(name);
        std::fs::write(&file, render(&own, &linked, is_debian)?)
            .map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
    }
    Ok(())
}

/// What cargo knows about this machine's build.
fn metadata() -> Result<Value, Box<dyn Error>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let version = Command::new("rustc").arg("-vV").output()?;
    let version = String::from_utf8(version.stdout)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or("rustc does not say for what it compiles")?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Every crate on the way from ours over normal dependencies, but for what runs at compile time only.
fn linked(metadata: &Value) -> Result<Vec<Linked>, Box<dyn Error>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let by_id = |values: Vec<Value>| -> BTreeMap<String, Value> {
        values.into_iter().map(|value| (text(&value["id"]), value)).collect()
    };
    let packages = by_id(list(&metadata["packages"]));
    let nodes = by_id(list(&metadata["resolve"]["nodes"]));
    let root = text(&metadata["resolve"]["root"]);
    let mut waiting = vec![root.clone()];
    let mut seen = BTreeSet::new();
    let mut found = BTreeMap::new();
    while let Some(id) = waiting.pop() {
        let package = packages.get(&id).ok_or("a package is missing in cargo's metadata")?;
        let kinds =
            list(&package["targets"]).iter().flat_map(|it| list(&it["kind"])).collect::<Vec<_>>();
        if !seen.insert(id.clone()) || kinds.iter().any(|kind| kind == "proc-macro") {
            continue;
        }
        for dependency in list(&nodes.get(&id).ok_or("a node is missing")?["deps"]) {
            if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                waiting.push(text(&dependency["pkg"]));
            }
        }
        if id != root {
            let manifest = PathBuf::from(text(&package["manifest_path"]));
            let folder = manifest.parent().ok_or("a manifest has no folder")?.to_owned();
            let (name, version) = (text(&package["name"]), text(&package["version"]));
            let licence = text(&package["license"]);
            found
                .insert((name.clone(), version.clone()), Linked { name, version, licence, folder });
        }
    }
    Ok(found.into_values().collect())
}

/// The texts, each once, with the crates that it is for.
fn render(own: &str, linked: &[Linked], is_debian: bool) -> Result<String, Box<dyn Error>> {
    let mut page = format!("rcluster is free software.\n\n{own}\n");
    let mut texts: BTreeMap<String, Vec<&Linked>> = BTreeMap::new();
    for it in linked {
        let text = match licence_text(it)? {
            text if is_debian && text.contains("TERMS AND CONDITIONS FOR USE") => {
                "The Apache License, Version 2.0: /usr/share/common-licenses/Apache-2.0".into()
            }
            text => text,
        };
        texts.entry(text).or_default().push(it);
    }
    writeln!(page, "The program contains these Rust crates:\n")?;
    for it in linked {
        writeln!(page, "  {} {}: {}", it.name, it.version, it.licence)?;
    }
    for (text, crates) in texts {
        let names: Vec<&str> = crates.iter().map(|it| it.name.as_str()).collect();
        writeln!(page, "\n{}\n{}:\n\n{}", "-".repeat(72), names.join(", "), text.trim_end())?;
    }
    Ok(page)
}

/// The text under which a crate is used here: of several that may be chosen, MIT.
fn licence_text(linked: &Linked) -> Result<String, Box<dyn Error>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&linked.folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && ["LICENSE", "LICENCE", "COPYING"].iter().any(|it| name.starts_with(it))
        {
            files.push(path);
        }
    }
    files.sort_by_key(|path| {
        let name = path.display().to_string().to_uppercase();
        (!name.ends_with("MIT"), name.ends_with("APACHE"), name)
    });
    match files.first() {
        Some(file) => Ok(std::fs::read_to_string(file)?),
        None => Ok(format!("(no text comes with it; its licence is {})", linked.licence)),
    }
}
