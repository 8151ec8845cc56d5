//! `tasuki-agent` as a program: what it says without doing anything. Being here also makes
//! `cargo test --workspace` build it for the process tests.

use std::process::{Command, Output};

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tasuki-agent"))
        .args(arguments)
        .output()
        .expect("the program was built")
}

fn stdout(arguments: &[&str]) -> String {
    let output = agent(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn it_tells_its_version() {
    assert!(stdout(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_help_shows_an_example() {
    let verbs = [
        "enroll", "run", "status", "ls", "paths", "sessions", "forward", "dial", "ping", "send",
        "logout", "login",
    ];
    for verb in verbs {
        let help = stdout(&[verb, "--help"]);
        let example = format!("tasuki-agent {verb}");
        assert!(help.contains(&example), "no example with '{example}' in:\n{help}");
    }
    assert!(stdout(&["--help"]).contains("Example"));
}

#[test]
fn wrong_usage_exits_with_2() {
    for wrong in [&["no-such-verb"][..], &["dial"], &["run", "--direct", "perhaps"], &[]] {
        let output = agent(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }
}
