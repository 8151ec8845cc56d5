//! Alert rules and dashboard: promtool takes the rules and runs their tests, and a running relay has each metric that
//! they name.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use tasuki_tests::lab::process::run;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, TerminalSpec, eventually, have};

use super::{shipped, text};

const LIMIT: Duration = Duration::from_secs(60);
const RULES: &str = "prometheus/rules.yml";
const DASHBOARD: &str = "prometheus/grafana-dashboard.json";

#[test]
fn promtool_takes_the_rules_and_their_tests_hold() {
    if !have("promtool", "the alert rules") {
        return;
    }
    let promtool = |what: &str, file: &str| {
        let mut command = Command::new("promtool");
        command.current_dir(shipped("prometheus")).args([what, "rules", file]);
        run(&mut command, LIMIT).ok();
    };
    promtool("check", "rules.yml");
    promtool("test", "rules.test.yml");
}

/// The metrics that a text names.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("tasuki_")).map(str::to_owned).collect()
}

#[test]
fn every_metric_that_they_name_exists() {
    let mesh = MeshSpec::line(&["r1", "r2"]).terminal(TerminalSpec::new("t1")).start();
    let relay = mesh.relay("r1");
    let named: BTreeSet<String> =
        [RULES, DASHBOARD].into_iter().flat_map(|file| metrics(&text(file))).collect();
    assert!(named.len() > 15, "{named:?}");
    // The link's round-trip time is there once it was measured.
    eventually("all metrics", SOON, || {
        let shown = relay.api.get("/metrics").map_err(|error| error.to_string())?;
        let shown = metrics(&String::from_utf8_lossy(&shown.body));
        let missing: Vec<_> = named.difference(&shown).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("not in /metrics: {missing:?}")) }
    });
}

#[test]
fn every_alert_says_what_to_do_and_has_a_test() {
    let (rules, tests) = (text(RULES), text("prometheus/rules.test.yml"));
    let alerts: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 10);
    assert_eq!(rules.matches("what_to_do: ").count(), alerts.len());
    for alert in alerts {
        assert!(tests.contains(&format!("        alertname: {alert}\n")), "{alert} has no test");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: serde_json::Value = serde_json::from_str(&text(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && targets.iter().all(|t| t["expr"].is_string()), "{panel}");
    }
}
