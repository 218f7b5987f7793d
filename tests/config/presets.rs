//! What each preset comes to, and placeholders in files.

use std::time::Duration;

use rcluster::config::{Config, Kind, Preset, Ready, explain};
use rcluster::supervisor::Accept;

use crate::good::explains_itself;
use crate::world::World;

const NAMES: &[&str] = &[
    "gunicorn",
    "uvicorn",
    "hypercorn",
    "puma",
    "nginx",
    "php-fpm",
    "go",
    "server-starter",
    "einhorn",
    "node",
];

fn of(preset: &str, lines: &str) -> String {
    let listen = if preset == "uvicorn" { "[\"web\"]" } else { "[\"web\", \"127.0.0.1:8081\"]" };
    format!(
        "[pool.a]\ncommand = [\"server\", \"x\"]\nlisten = {listen}\npreset = \"{preset}\"\n{lines}"
    )
}

/// What an explanation says of a key.
fn said(config: &Config, key: &str) -> String {
    let text = explain(config);
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
    line.unwrap_or_default().to_owned()
}

#[test]
fn every_preset_is_explained_in_full() {
    let world = World::new();
    let environment = |name: &str| said(&world.accept(&of(name, "")), "environment");
    for name in NAMES {
        assert!(name.parse::<Preset>().is_ok());
        let config = world.accept(&of(name, ""));
        explains_itself(&world, &config);
        let manner = &config.pools[0].manner;
        let (accept, command) = (config.pools[0].policy.accept, said(&config, "command"));
        if *name == "node" {
            assert_eq!((manner.kind, accept), (Kind::Node, Accept::Master));
            assert!(manner.first_byte && manner.drain_preload);
            continue;
        }
        assert_eq!((manner.kind, accept), (Kind::Inherit, Accept::Workers), "{name}");
        let (ready, signal, blocking, added) = match *name {
            "gunicorn" => ("notify", "SIGTERM", false, ""),
            "uvicorn" => ("probe", "SIGTERM", false, r#", "--fd", "{fd}""#),
            "hypercorn" => ("probe", "SIGTERM", false, r#", "{each::--bind=fd://{fd}}""#),
            "puma" => ("settle", "SIGTERM", false, r#", "{each::--bind={url}}""#),
            "nginx" => ("probe", "SIGQUIT", false, ""),
            "php-fpm" => ("probe", "SIGQUIT", true, r#", "--nodaemonize""#),
            "go" => ("probe", "SIGTERM", false, ""),
            "server-starter" => ("settle", "SIGTERM", false, ""),
            "einhorn" => ("notify", "SIGUSR2", false, ""),
            other => panic!("{other}"),
        };
        assert_eq!(said(&config, "ready"), format!("\"{ready}\""), "{name}");
        assert_eq!(said(&config, "stop-signal"), format!("\"{signal}\""), "{name}");
        assert_eq!(manner.blocking, blocking, "{name}");
        assert_eq!(command, format!("[\"server\", \"x\"{added}]"), "{name}");
    }
    assert_eq!(environment("gunicorn"), "{}");
    assert_eq!(environment("nginx"), r#"{ NGINX = "{each::{fd};}" }"#);
    assert_eq!(environment("php-fpm"), r#"{ FPM_SOCKETS = "{each:,:{addr-port}={fd}}" }"#);
    let ports = r#"SERVER_STARTER_PORT = "{each:;:{listen}={fd}}""#;
    let generation = r#"SERVER_STARTER_GENERATION = "{generation}""#;
    assert_eq!(environment("server-starter"), format!("{{ {generation}, {ports} }}"));
    let einhorn = [
        r#"EINHORN_CHILD_INDEX = "{index}""#,
        r#"EINHORN_FDS = "{each: :{fd}}""#,
        r#"EINHORN_FD_0 = "{fd:web}""#,
        r#"EINHORN_FD_1 = "{fd:127.0.0.1:8081}""#,
        r#"EINHORN_FD_COUNT = "{count}""#,
        r#"EINHORN_MASTER_PID = "{master-pid}""#,
    ];
    assert_eq!(environment("einhorn"), format!("{{ {} }}", einhorn.join(", ")));
}

#[test]
fn what_is_written_wins_over_a_preset() {
    let world = World::new();
    let lines = "stop-signal = \"SIGINT\"\nready = \"settle\"\nsettle = 7\nblocking = false\n\
                 environment = { FPM_SOCKETS = \"mine\" }\nkind = \"inherit\"\n";
    let config = world.accept(&of("php-fpm", lines));
    let pool = &config.pools[0];
    assert_eq!((pool.manner.stop_signal, pool.manner.ready), (2, Ready::Settle));
    assert_eq!((pool.manner.settle, pool.manner.blocking), (Duration::from_secs(7), false));
    assert_eq!(pool.environment["FPM_SOCKETS"], "mine");
    let command = "[pool.a]\nlisten = [\"a\", \"b\"]\npreset = \"uvicorn\"\n\
                   command = [\"uvicorn\", \"--fd={fd:b}\"]\n";
    assert_eq!(world.accept(command).pools[0].command, ["uvicorn", "--fd={fd:b}"]);
}

/// Presets and placeholders that cannot be.
pub(crate) fn refused(world: &mut World) {
    for (text, said) in [
        (of("nginks", ""), "did you mean `nginx`?"),
        (of("apache", ""), "write `gunicorn`, `uvicorn`"),
        // What such a preset would mean is not known.
        (of("apache", "ready = \"probe\"\n"), "there is no preset `apache`"),
    ] {
        world.refuse(&text.replacen("preset = ", "preset = «", 1), &[said]);
    }
    let inherit = "[pool.a]\ncommand = [\"x\", «\"{fd:api}\"]\nlisten = [\"web\"]\n";
    for (text, said) in [
        (of("nginx", "kind = «\"node\"\n"), "the preset `nginx` is for workers of the kind"),
        (of("node", "«blocking = true\n"), "for the kind `inherit`"),
        (of("gunicorn", "«settle = 5\n"), "write ready = \"settle\""),
        (
            "[pool.a]\ncommand = [\"x\"]\npreset = «\"uvicorn\"\n".to_owned(),
            "uvicorn takes one listening socket, and `listen` has 0",
        ),
        (
            "[pool.a]\ncommand = [\"x\"]\nlisten = [\"80\", \"81\"]\npreset = «\"uvicorn\"\n"
                .to_owned(),
            "`listen` has 2; write one entry",
        ),
        (
            format!("{inherit}kind = \"inherit\"\n"),
            "{fd:api} names no entry of `listen`; write `web`",
        ),
        (format!("{inherit}preset = \"go\"\n"), "names no entry of `listen`"),
        (
            "[pool.a]\ncommand = [\"x\"]\nkind = \"inherit\"\nenvironment = { A = «\"{port}\" }\n"
                .to_owned(),
            "there is none; give `listen` an entry",
        ),
        (
            "[pool.a]\ncommand = [\"x\", «\"{port}\"]\nkind = \"inherit\"\nlisten = [\"/run/a\"]\n"
                .to_owned(),
            "{port} of `/run/a`, which is no TCP socket; write {listen}",
        ),
    ] {
        world.refuse(&text, &[said]);
    }
    // Other kinds have no placeholders.
    world.accept("[pool.a]\ncommand = [\"x\", \"{fd:api}\"]\n");
    // A refused `listen` makes no second mistake.
    world.refuse(
        "[pool.a]\ncommand = [\"x\", \"{fd}\"]\nkind = \"inherit\"\nlisten = [«\"99999\"]\n",
        &["there is no port"],
    );
    world.write("a.env", "A={fd:b}\n");
    world.refuse(
        "[pool.a]\ncommand = [\"x\"]\nkind = \"inherit\"\nenvironment-file = «[\"a.env\"]\n",
        &["{fd:b} names no entry"],
    );
}
