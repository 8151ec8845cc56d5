//! What operators have of a relay: explanations, the check, settings without a restart, the self-test of addresses.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::mesh::VERB;
use tasuki_tests::lab::process::{Process, Signal, run};
use tasuki_tests::lab::programs::free_address;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, TerminalSpec, eventually};

fn narrow(text: &str) {
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

/// A call that fails is explained at both ends' relays, also after the relay forgot it, and so is one that nobody got
/// to hear of; the same call is explained before it is made.
#[test]
fn a_failed_call_is_explained() {
    let mesh = MeshSpec::line(&["r1", "r2", "r3"])
        .terminal(TerminalSpec::new("a").at(&["r1"]))
        .terminal(TerminalSpec::new("b").at(&["r3"]))
        .terminal(TerminalSpec::new("c").at(&["r2"]).stays_off())
        .start();
    let (r1, r3) = (mesh.relay("r1"), mesh.relay("r3"));
    let before = r1.verb(&["explain", "a", "b", "ssh", "--json"]).ok().json();
    assert_eq!((&before["allowed"], &before["decided_by"]), (&true.into(), &"target-agent".into()));
    assert_eq!(before["route"], serde_json::json!(["r1", "r2", "r3"]));
    assert_eq!(before["hops"].as_array().unwrap().len(), 2);
    assert!(before["rtt_us"].is_u64() && before["last_call"].is_null(), "{before}");
    assert_eq!(before["direct"]["possible"], "likely", "{before}");
    assert_eq!(before["callee"]["attachments"][0]["relay"], "r3");
    let off = r1.verb(&["explain", "a", "c", "--json"]).ok().json();
    assert_eq!((&off["allowed"], &off["code"]), (&false.into(), &"target-logged-out".into()));
    assert!(off["advice"].as_str().unwrap().starts_with("start its agent"), "{off}");

    for target in ["b/ssh", "nobody/ssh"] {
        assert_eq!(mesh.terminal("a").verb(&["dial", target]).code, 1, "{target}");
    }
    let ended = eventually("both calls are in the list", SOON, || {
        let rows = r1.sessions()?;
        let ended = |callee: &str| {
            let row = rows.iter().find(|row| row["callee"] == callee)?;
            (row["state"] == "ended").then(|| row["id"].as_str().unwrap().to_owned())
        };
        ended("b").zip(ended("nobody")).ok_or_else(|| format!("{rows:?}"))
    });
    let refused = r1.verb(&["explain", "--session", &ended.0]).ok().text();
    assert!(refused.contains("why       b does not "), "{refused}");
    assert!(refused.contains("do        on b: run the agent with --"), "{refused}");
    narrow(&refused);
    assert!(r3.verb(&["explain", "--session", &ended.0]).ok().text().contains("a -> b/ssh"));
    let unknown = r3.verb(&["explain", "--session", &ended.1]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("began at relay r1"), "{}", unknown.stderr);
    let again = r1.verb(&["explain", "a", "b", "ssh", "--json"]).ok().json();
    assert_eq!(again["last_call"]["id"], ended.0.as_str());

    // Only the ledger knows them after a restart. An act is answered once what was to be kept before it is kept.
    r1.verb(&["undrain"]).ok();
    eventually("the ledger has both", SOON, || {
        r1.kill();
        r1.start();
        assert!(r1.sessions()?.is_empty());
        for id in [&ended.0, &ended.1] {
            let answer = r1.api.json(&format!("/api/v1/explain?session={id}"))?;
            if answer["session"]["id"] != id.as_str() {
                return Err(answer.to_string());
            }
        }
        Ok(())
    });
    for verb in
        [&["status"][..], &["relays"], &["terminals"], &["sessions"], &["explain", "a", "b"]]
    {
        narrow(&r3.verb(verb).ok().text());
    }
}

/// Relays reach each other on loopback and say so, by the neighbour that tried; `check` finds them fit.
#[test]
fn relays_try_each_others_addresses() {
    let mesh = MeshSpec::line(&["r1", "r2", "r3"]).start();
    for relay in mesh.running_relays() {
        let row = eventually("its address was tried", SOON, || {
            let status = relay.api.json("/api/v1/status")?;
            let row = status["reachable_from_outside"][0].clone();
            if row["reachable"] == "yes" { Ok(row) } else { Err(row.to_string()) }
        });
        assert_eq!(row["address"], relay.listen().to_string());
        assert!(row["by"].as_str().unwrap().starts_with('r') && row["by"] != relay.name(), "{row}");
        assert_eq!(relay.api.metric("tasuki_address_reachable"), Some(1.0));
        let findings = relay.verb(&["check", "--json"]).json();
        let of = |check: &str| {
            let mut all = findings.as_array().unwrap().iter();
            all.find(|one| one["check"] == check)
                .unwrap_or_else(|| panic!("no {check}: {findings}"))
        };
        for check in ["udp-port", "status-port", "from-outside", "certificate", "permissions"] {
            assert_eq!(of(check)["level"], "ok", "{findings}");
        }
        assert!(of("udp-port")["what"].as_str().unwrap().contains("held by the running relay"));
    }
    let relay = mesh.relay("r2");
    relay.kill();
    let admin = relay.data().join("admin.token");
    std::fs::set_permissions(&admin, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let report = relay.verb(&["check"]);
    assert_eq!(report.code, 1, "{}", report.text());
    assert!(report.text().contains("bad      permissions"), "{}", report.text());
    narrow(&report.text());
    let elsewhere = relay.data().join("missing");
    let nothing =
        run(Command::new(&Bins::find().relay).arg("--data").arg(&elsewhere).arg("check"), VERB);
    assert_eq!(nothing.code, 1, "{}", nothing.text());
    assert!(!elsewhere.exists(), "a check makes no directory");
}

/// What systemd was told, without the parts that differ each time.
fn told(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("a notification in time");
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let lines = text.lines().map(|line| line.split('=').next().unwrap_or_default());
    lines.collect::<Vec<_>>().join(" ")
}

/// SIGHUP takes new settings, says by name what has to wait for a restart, and keeps the old ones where a file is bad.
#[test]
fn settings_are_read_again_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (data, file, log) = (path("data"), path("relay.toml"), path("log"));
    let relay = || {
        let mut command = Command::new(&Bins::find().relay);
        command.arg("--data").arg(&data);
        command
    };
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let [listen, status] = [free_address(), free_address()].map(|address| address.to_string());
    let init = ["init", "--name", "r1", "--listen", &listen, "--status", &status];
    run(relay().args(init), VERB).ok();
    let systemd = UnixDatagram::bind(path("notify")).unwrap();
    systemd.set_read_timeout(Some(SOON)).unwrap();
    write("log = \"info\"\nterminals = 10\n");
    let mut command = relay();
    command.args(["run", "--log-format", "json", "--config"]).arg(&file);
    command.env("NOTIFY_SOCKET", path("notify"));
    let mut process = Process::spawn("r1", &mut command, &log);
    assert_eq!(told(&systemd), "READY");

    let mut reload = |text: &str| {
        write(text);
        process.signal(Signal::Hangup);
        assert_eq!(told(&systemd), "RELOADING MONOTONIC_USEC");
        assert_eq!(told(&systemd), "READY");
        last_line(&log)
    };
    let line = reload("log = \"debug\"\nterminals = 20\nlinks = [\"r2\"]\nidle_s = 60\n");
    assert_eq!(line["message"], "settings read again");
    assert_eq!(line["settings"], "log, links, terminals");
    let text = std::fs::read_to_string(&log).unwrap();
    let waiting = text.lines().find(|line| line.contains("after a restart only")).unwrap();
    assert!(waiting.contains("\"settings\":\"idle_s\""), "{waiting}");

    let line = reload("log = \"debgu\"\nterminals = \"many\"\ncolour = 1\n");
    assert_eq!(line["level"], "WARN");
    let errors = line["errors"].as_str().unwrap();
    for wrong in ["terminals", "colour", "'debgu' is no level"] {
        assert!(errors.contains(wrong), "{wrong} is not in: {errors}");
    }
    let line = reload("log = \"debug\"\nterminals = 20\nlinks = [\"r2\"]\n");
    assert_eq!(line["message"], "settings read again: nothing changed that counts at once");
    process.signal(Signal::Terminate);
    assert!(process.wait(SOON + Duration::from_secs(5)).success());
}

/// The last line of a JSON log that is about settings.
fn last_line(log: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(log).unwrap();
    // The relay goes on: what stands behind the last line's end is not whole yet.
    let (whole, _) = text.rsplit_once('\n').expect("a line");
    let lines =
        whole.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line"));
    let mut lines =
        lines.filter(|line: &serde_json::Value| line["target"] == "tasuki_relay::reload");
    lines.next_back().expect("a line about settings")
}
