//! The man pages and completions: complete, of this version, and free of mistakes that a formatter
//! would complain about.
#![allow(clippy::unwrap_used, reason = "tests fail loudly")]
#![cfg(feature = "daemon")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const PAGES: [&str; 3] = ["rcluster.8", "rcluster.toml.5", "rcluster-worker.7"];

/// Everything that is generated, in a folder of its own.
fn generated() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program =
        Path::new(env!("CARGO_BIN_EXE_rcluster")).with_file_name("examples").join("pages");
    assert!(program.exists(), "build it first: cargo build --examples");
    let output = Command::new(program).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}

fn read(folder: &tempfile::TempDir, name: &str) -> String {
    std::fs::read_to_string(folder.path().join(name)).unwrap()
}

/// A page's text without its requests and escapes.
fn plain(page: &str) -> String {
    page.replace("\\-", "-").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "")
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

#[test]
fn every_verb_and_option_is_in_the_page_and_in_the_completions() {
    let folder = generated();
    let page = plain(&read(&folder, "rcluster.8"));
    let completions =
        ["rcluster.bash", "_rcluster", "rcluster.fish"].map(|name| read(&folder, name));
    assert!(page.contains(&format!("rcluster {}", env!("CARGO_PKG_VERSION"))), "its version");
    for placeholder in ["@VERSION@", "@SYNOPSIS@", "@COMMANDS@"] {
        assert!(!page.contains(placeholder), "{placeholder}");
    }
    let command = rcluster::cli::command();
    let mut words = Vec::new();
    for verb in command.get_subcommands() {
        let shown = !verb.is_hide_set();
        words.push((format!(".SS {}\n", verb.get_name()), verb.get_name().to_owned(), shown));
        for option in verb.get_opts().filter(|_| shown) {
            let name = option.get_long().unwrap();
            words.push((format!("--{name}"), name.to_owned(), !option.is_hide_set()));
        }
    }
    assert!(words.len() > 15 && words.iter().any(|(_, _, shown)| !shown), "{words:?}");
    // An option may be hidden in one verb and shown in another.
    let shown: BTreeSet<&str> =
        words.iter().filter(|word| word.2).map(|word| word.0.as_str()).collect();
    for (in_page, name, is_shown) in &words {
        assert_eq!(page.contains(in_page.as_str()), shown.contains(in_page.as_str()), "{in_page}");
        let everywhere = completions.iter().all(|script| script.contains(name.as_str()));
        assert!(everywhere || !is_shown, "{name} is not in every completion");
    }
    for script in &completions {
        assert!(!script.contains("demo-worker"), "what is hidden is offered");
    }
}

/// The keys of a table in the text of `check --explain`, those without a value included.
fn keys_of_the_program() -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    // An unknown key is answered with all that are known.
    let known = |text: &str| -> Vec<String> {
        std::fs::write(&file, text).unwrap();
        let output =
            Command::new(env!("CARGO_BIN_EXE_rcluster")).arg("check").arg(&file).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let (_, known) = said.split_once("known here: ").unwrap_or_else(|| panic!("{said}"));
        let known = known.lines().next().unwrap();
        known.split(", ").map(str::to_owned).collect()
    };
    let mut keys = known("[master]\nzzzzzzzz = 1\n");
    keys.extend(known("[pool.a]\ncommand = [\"/bin/true\"]\nzzzzzzzz = 1\n"));
    keys.into_iter().collect()
}

#[test]
fn every_key_is_in_the_page_and_no_other() {
    let page = plain(&read(&generated(), "rcluster.toml.5"));
    // A key stands in bold below the paragraph that it begins.
    let mut written = BTreeSet::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line == ".TP" {
            let key = lines.next().unwrap();
            let words =
                key.trim_start_matches(".BR").trim_start_matches(".B").replace([',', '"'], "");
            written.extend(words.split_whitespace().map(str::to_owned));
        }
    }
    assert_eq!(written, keys_of_the_program());
}

#[test]
fn every_variable_of_a_worker_is_in_the_page() {
    let page = read(&generated(), "rcluster-worker.7");
    use rcluster::wire;
    for variable in [
        wire::CHANNEL_VARIABLE,
        wire::SCOREBOARD_VARIABLE,
        wire::SEAT_VARIABLE,
        wire::POOL_VARIABLE,
        wire::SLOT_VARIABLE,
        wire::GENERATION_VARIABLE,
    ] {
        assert!(page.contains(variable), "{variable}");
    }
    for message in ["READY", "CONNECTION", "ROOM", "DRAIN", "DRAINED", "PING", "RETIRE"] {
        assert!(page.contains(&format!("  {message} ")), "{message}");
    }
}

/// What a formatter says about a page on standard error or output.
fn complaints(program: &str, arguments: &[&str], page: &PathBuf) -> String {
    let output =
        Command::new(program).args(arguments).arg(page).env("LC_ALL", "C.UTF-8").output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn formatters_have_nothing_to_complain_about() {
    let folder = generated();
    let formatters: [(&str, &[&str]); 2] =
        [("groff", &["-ww", "-mandoc", "-Tutf8", "-z"]), ("mandoc", &["-Tlint", "-Wwarning"])];
    for (program, arguments) in formatters {
        // mandoc knows no --version; that it is there is what counts.
        if !has(program) {
            println!("LEFT OUT: there is no {program} here");
            continue;
        }
        for name in PAGES {
            assert_eq!(complaints(program, arguments, &folder.path().join(name)), "", "{name}");
        }
    }
}

#[test]
fn completions_are_sound_in_their_shells() {
    let folder = generated();
    for (shell, name) in
        [("bash", "rcluster.bash"), ("zsh", "_rcluster"), ("fish", "rcluster.fish")]
    {
        if !has(shell) {
            println!("LEFT OUT: there is no {shell} here");
            continue;
        }
        assert_eq!(complaints(shell, &["-n"], &folder.path().join(name)), "", "{name}");
    }
    if has("bash") {
        let script = "source \"$1\"; COMP_WORDS=(rcluster re); COMP_CWORD=1; \
                      _rcluster rcluster re rcluster; echo \"${COMPREPLY[@]}\"";
        let output = Command::new("bash")
            .args(["-c", script, "bash"])
            .arg(folder.path().join("rcluster.bash"))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "reload");
    }
}
