//! Dockerfile and compose file. No engine builds them in CI: what can go wrong most easily is looked for in their text,
//! and `docker compose config` parses them where it is installed.

use std::process::Command;
use std::time::Duration;

use tasuki_tests::lab::process::run;

use super::{shipped, text};

/// Instructions of the Dockerfile reference.
const INSTRUCTIONS: [&str; 13] = [
    "FROM",
    "RUN",
    "CMD",
    "EXPOSE",
    "COPY",
    "ENTRYPOINT",
    "VOLUME",
    "USER",
    "WORKDIR",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ARG",
    "ENV",
];

/// The instructions with their continued lines.
fn instructions(file: &str) -> Vec<String> {
    let joined = file.replace("\\\n", " ");
    let lines = joined.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

#[test]
fn the_dockerfile_has_what_an_image_of_ours_needs() {
    let file = text("Dockerfile");
    assert!(file.contains("UNTESTED"), "its head says so");
    let lines = instructions(&file);
    for line in &lines {
        let word = line.split_whitespace().next().unwrap();
        assert!(INSTRUCTIONS.contains(&word), "{line}");
    }
    let stages: Vec<&str> =
        lines.iter().filter_map(|l| l.strip_prefix("FROM ")?.split(" AS ").nth(1)).collect();
    assert_eq!(stages, ["build", "base", "relay", "agent"]);
    for (at, line) in lines.iter().enumerate() {
        if let Some(from) = line.strip_prefix("COPY --from=") {
            assert!(stages.contains(&from.split(' ').next().unwrap()), "{line}");
        }
        // A list of words is JSON; anything else would be given to a shell.
        if let Some((_, list)) = line.split_once(" [").filter(|_| !line.starts_with("RUN")) {
            let words: Result<Vec<String>, _> = serde_json::from_str(&format!("[{list}"));
            assert!(words.is_ok(), "{line}");
        }
        if line.starts_with("ENTRYPOINT") {
            let before = lines[..at].join("\n");
            assert!(before.contains("USER tasuki"), "not as root: {line}");
            assert!(before.rsplit("FROM").next().unwrap().contains("HEALTHCHECK"), "{line}");
        }
    }
    assert!(lines.iter().any(|line| line == "EXPOSE 4433/udp"));
}

#[test]
fn compose_maps_udp() {
    let file = text("compose.yaml");
    assert!(file.contains("UNTESTED"), "its head says so");
    let ports: Vec<&str> = file.lines().filter(|l| l.trim().starts_with("ports:")).collect();
    assert!(ports.len() == 3 && ports.iter().all(|line| line.contains("/udp")), "{ports:?}");
    let parser = Command::new("docker").args(["compose", "version"]).output();
    if !parser.is_ok_and(|done| done.status.success()) {
        println!(
            "docker compose is not installed: {} is not parsed",
            shipped("compose.yaml").display()
        );
        return;
    }
    let mut command = Command::new("docker");
    command.args(["compose", "--file"]).arg(shipped("compose.yaml"));
    let whole =
        run(command.args(["config", "--format", "json"]), Duration::from_secs(60)).ok().json();
    for number in 1..=3 {
        let port = &whole["services"][format!("relay{number}")]["ports"][0];
        assert_eq!((&port["protocol"], &port["target"]), (&"udp".into(), &(4432 + number).into()));
    }
}
