//! Programs that start a Node application, and would be taken for it.
//!
//! `npm start` is a program of Node's itself: it would speak to the master in the application's place,
//! and the application, which is its child, would bind its port on its own. So what it would run is to be
//! written instead; where that can be read in `package.json`, it is said.

use std::path::Path;

use super::error::{Mistake, quote};
use super::{Kind, Pool};

/// Programs that run scripts of `package.json`, and the words that may stand before a script's name.
const RUNNERS: &[&str] = &["npm", "yarn", "pnpm", "bun"];
/// Programs that run a package's program.
const LAUNCHERS: &[&str] = &["npx", "pnpx", "bunx"];

/// Why a pool's command would never become a worker that can be spoken to.
pub(super) fn refusal(pool: &Pool) -> Option<Mistake> {
    match pool.manner.kind {
        Kind::Node | Kind::Ipc => {}
        Kind::Native | Kind::Inherit => return None,
    }
    let words: Vec<&str> = pool.command.iter().map(String::as_str).collect();
    let program = file_name(words.first()?);
    let message =
        |starter: &str| format!("`{starter}` would be taken for the application that it starts");
    if LAUNCHERS.contains(&program) {
        let package = words.iter().skip(1).find(|word| !word.starts_with('-'));
        let name = package.map_or("PROGRAM", |name| name.split('@').next().unwrap_or(name));
        let remedy = format!("write command = [\"node_modules/.bin/{name}\"]");
        return Some(Mistake::new(message(program), remedy));
    }
    let script = match program {
        "node" => {
            let at =
                words.iter().position(|word| *word == "--run" || word.starts_with("--run="))?;
            words[at].strip_prefix("--run=").or(words.get(at + 1).copied())?
        }
        _ if RUNNERS.contains(&program) => {
            let mut named = words.iter().skip(1).filter(|word| !word.starts_with('-'));
            let first = *named.next()?;
            if matches!(first, "run" | "run-script" | "rum" | "urn") {
                named.next()?
            } else {
                first
            }
        }
        _ => return None,
    };
    let starter = if program == "node" { "node --run".to_owned() } else { words.join(" ") };
    Some(Mistake::new(message(&starter), remedy(pool, script)))
}

/// What is to be written instead.
fn remedy(pool: &Pool, script: &str) -> String {
    let folder = pool.working_directory.as_deref().unwrap_or(Path::new("."));
    let unknown = || {
        "write the command that it runs (see \"scripts\" in package.json), for example \
         command = [\"node\", \"server.js\"]"
            .to_owned()
    };
    let Ok(text) = std::fs::read(folder.join("package.json")) else { return unknown() };
    let Ok(package) = serde_json::from_slice::<serde_json::Value>(&text) else { return unknown() };
    let default = if script == "start" { Some("node server.js") } else { None };
    let line = package.get("scripts").and_then(|it| it.get(script)?.as_str()).or(default);
    let Some(line) = line else { return unknown() };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:, @".contains(c);
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        // No words for a shell, and no variables before the program.
        [first, ..] if line.chars().all(is_plain) && !first.contains('=') => {
            let is_known = first.contains('/') || *first == "node";
            let folder = if is_known { "" } else { "node_modules/.bin/" };
            format!("write command = [\"{folder}{}\"]", words.join("\", \""))
        }
        _ => format!(
            "write the command that it runs, which package.json has as {}, without a shell",
            quote(line)
        ),
    }
}

fn file_name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(words: &[&str], package: Option<&str>) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        if let Some(package) = package {
            std::fs::write(folder.path().join("package.json"), package).unwrap();
        }
        let command = words.iter().map(|word| (*word).to_owned()).collect();
        let mut pool = Pool::new("web", command);
        pool.working_directory = Some(folder.path().to_owned());
        pool.become_kind(Kind::Node);
        refusal(&pool).map(|mistake| mistake.to_string())
    }

    #[test]
    fn who_would_speak_in_the_applications_place_is_refused_with_its_command() {
        let package = r#"{"scripts":{"start":"node --enable-source-maps dist/server.js",
            "prod":"NODE_ENV=production node x.js","serve":"next start -p 3000"}}"#;
        for (words, right) in [
            (
                &["npm", "start"][..],
                "command = [\"node\", \"--enable-source-maps\", \"dist/server.js\"]",
            ),
            (
                &["/usr/bin/npm", "run", "serve"],
                "[\"node_modules/.bin/next\", \"start\", \"-p\", \"3000\"]",
            ),
            (&["yarn", "prod"], "`NODE_ENV=production node x.js`, without a shell"),
            (&["node", "--run", "start"], "dist/server.js"),
            (&["pnpm", "-s", "run", "nothing"], "write the command that it runs"),
            (&["npx", "next@14", "start"], "node_modules/.bin/next"),
        ] {
            let said = refused(words, Some(package)).unwrap();
            assert!(said.contains(right), "{words:?}: {said}");
        }
        assert!(refused(&["npm", "start"], None).unwrap().contains("package.json"));
        let said = refused(&["npm", "start"], Some("{}")).unwrap();
        assert!(
            said.contains("[\"node\", \"server.js\"]"),
            "what npm does without a script: {said}"
        );
    }

    #[test]
    fn applications_are_not() {
        for words in [&["node", "server.js"][..], &["node", "app.js", "start"], &["./npm.js"]] {
            assert_eq!(refused(words, None), None, "{words:?}");
        }
    }
}
