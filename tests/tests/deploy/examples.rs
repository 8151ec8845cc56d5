//! The example configurations hold every key there is, and the programs take them: as they are shipped, and with every
//! line in force.

use std::process::Command;
use std::time::Duration;

use tasuki_tests::lab::bins::{Bins, workspace};
use tasuki_tests::lab::process::{Done, run};

use super::text;

const LIMIT: Duration = Duration::from_secs(20);

/// The example with every line that shows a setting in force.
fn in_force(example: &str) -> String {
    let setting = |line: &str| {
        let bare = line.strip_prefix('#')?;
        bare.starts_with(|c: char| c.is_ascii_lowercase()).then(|| bare.to_owned())
    };
    example.lines().map(|line| setting(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

/// What `run` says of a configuration, on a data directory that holds nothing.
fn run_with(program: &std::path::Path, config: &str) -> Done {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(&file);
    run(command.arg("--data").arg(folder.path().join("nothing")), LIMIT)
}

/// The words between `before` and `after` in a source file.
fn words(source: &str, before: &str, after: char) -> Vec<String> {
    source
        .split(before)
        .skip(1)
        .filter_map(|rest| rest.split(after).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_relays_example_is_whole_and_sound() {
    let example = text("examples/relay.toml");
    let whole = in_force(&example);
    for config in [&example, &whole] {
        let done = run_with(&Bins::find().relay, config);
        assert!(done.stderr.contains("no-identity"), "{}\n{config}", done.stderr);
    }
    let source = std::fs::read_to_string(workspace().join("relay/src/config.rs")).unwrap();
    let mut keys = vec!["links".to_owned()];
    for reader in ["reader.take(\"", "reader.seconds(\""] {
        keys.append(&mut words(&source, reader, '"'));
    }
    assert!(keys.len() >= 17, "{keys:?}");
    let table: toml::Table = whole.parse().unwrap();
    for key in keys {
        assert!(table.contains_key(&key), "deploy/examples/relay.toml does not show {key}");
    }
}

#[test]
fn the_agents_example_is_whole_and_sound() {
    let example = text("examples/agent.toml");
    let whole = in_force(&example);
    for config in [&example, &whole] {
        let done = run_with(&Bins::find().agent, config);
        assert!(done.stderr.contains("not-enrolled"), "{}\n{config}", done.stderr);
    }
    let source = std::fs::read_to_string(workspace().join("terminal/src/config.rs")).unwrap();
    let (_, raw) = source.split_once("pub struct RawConfig {").unwrap();
    let (raw, _) = raw.split_once("\n}").unwrap();
    let keys = words(raw, "    pub ", ':');
    assert!(keys.len() >= 12, "{keys:?}");
    let table: toml::Table = whole.parse().unwrap();
    for key in keys.iter().map(|key| key.replace('_', "-")) {
        assert!(table.contains_key(&key), "deploy/examples/agent.toml does not show {key}");
    }
}
