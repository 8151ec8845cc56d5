//! `docs/configuration.md` says what the programs take: it is made of their own tables of settings and flags.
//!
//! `TASUKI_TIDY=write cargo test -p tasuki-tests --test configuration` writes it anew.
#![allow(clippy::unwrap_used, reason = "tests act")]

use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory};
use tasuki_relay::config::reference;
use tasuki_terminal::config::RawConfig;
use tasuki_terminal::reference as agent;

const HEAD: &str = "# Configuration

Made of the programs' own tables; a test keeps it true. Flags win over the file of `--config` (TOML), which wins over what `init`, `join` or `enroll`
left in the data directory. An unknown key is an error, and all errors are reported together. What the limits are for:
[operations](operations.md#limits). Limits that cannot be set: [security](security.md#limits).
";

fn plain(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

/// The flags of a command and of the commands below it.
fn flags(out: &mut String, name: &str, command: &Command) {
    let mut own: Vec<_> = command
        .get_arguments()
        .filter(|a| !["help", "version"].contains(&a.get_id().as_str()))
        .collect();
    own.retain(|argument| !argument.is_global_set() || !name.contains(' '));
    if !own.is_empty() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(out, "\n### {name}\n\n{}\n", plain(&about)).unwrap();
        out.push_str("| | |\n|---|---|\n");
        for argument in own {
            let values = argument.get_value_names().unwrap_or_default();
            let takes = argument.get_action().takes_values();
            let value = if takes { values.join(" ") } else { String::new() };
            let shown = match (argument.get_long(), argument.is_positional()) {
                (_, true) => value,
                (Some(long), _) => format!("--{long} {value}").trim().to_owned(),
                (None, _) => continue,
            };
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            writeln!(out, "| `{}` | {} |", plain(&shown), plain(&help)).unwrap();
        }
    }
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        flags(out, &format!("{name} {}", below.get_name()), below);
    }
}

fn document() -> String {
    let mut out = HEAD.to_owned();
    out.push_str(
        "\n## A relay's file\n\n| key | flag | default | SIGHUP | |\n|---|---|---|---|---|\n",
    );
    for reference::Setting { key, flag, default, reloads, what } in reference::settings() {
        let flag = if flag.is_empty() { String::new() } else { format!("`{flag}`") };
        let reloads = if reloads { "at once" } else { "restart" };
        writeln!(out, "| `{key}` | {flag} | {default} | {reloads} | {what} |").unwrap();
    }
    out.push_str("\n## An agent's file\n\n| key | flag | default | |\n|---|---|---|---|\n");
    for agent::Setting { key, flag, default, what } in agent::SETTINGS {
        let flag = if flag.is_empty() { String::new() } else { format!("`{flag}`") };
        writeln!(out, "| `{key}` | {flag} | {default} | {what} |").unwrap();
    }
    out.push_str("\n## Flags\n");
    flags(&mut out, "tasuki-relay", &tasuki_relay::cli::command());
    flags(&mut out, "tasuki-agent", &tasuki_terminal::cli::Cli::command());
    out
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the one switch of this test")]
fn the_reference_is_up_to_date() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/configuration.md");
    let document = document();
    if std::env::var("TASUKI_TIDY").is_ok_and(|value| value == "write") {
        std::fs::write(&path, &document).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = document.lines().zip(written.lines()).find(|(made, found)| made != found);
    assert!(
        document == written,
        "docs/configuration.md is not what the programs take; the first difference: {differs:?}\n\
         write it: TASUKI_TIDY=write cargo test -p tasuki-tests --test configuration"
    );
}

#[test]
fn the_reference_names_every_setting_of_an_agent() {
    let error = RawConfig::parse("no-such-key = 1").unwrap_err().to_string();
    let (_, known) = error.split_once("expected one of ").expect("the parser lists the keys");
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    let named = agent::SETTINGS.map(|setting| setting.key);
    assert_eq!(known, named);
}

#[test]
fn every_flag_of_the_tables_is_one_of_the_programs() {
    fn has(command: &Command, flag: &str) -> bool {
        command.get_arguments().any(|one| one.get_long() == flag.strip_prefix("--"))
            || command.get_subcommands().any(|below| has(below, flag))
    }
    let relay = tasuki_relay::cli::command();
    for setting in reference::settings() {
        assert!(setting.flag.is_empty() || has(&relay, setting.flag), "{}", setting.flag);
    }
    let command = tasuki_terminal::cli::Cli::command();
    for setting in agent::SETTINGS {
        assert!(setting.flag.is_empty() || has(&command, setting.flag), "{}", setting.flag);
    }
}
