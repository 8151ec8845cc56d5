//! Two processes with one identity.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tasuki_tests::lab::process::Process;
use tasuki_tests::lab::programs::free_address;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually};

/// A parked agent is back within this after its clone is gone: its relay notices after a few seconds of silence, and two
/// looks find nobody.
const BACK: Duration = Duration::from_secs(75);
/// So long two relays with one identity are watched.
const WATCHED: Duration = Duration::from_secs(8);

/// Copies a data directory, without the sockets in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(to, private).unwrap();
}

/// Runs a program on a copied data directory.
fn clone_of(command: &mut Command, data: &Path) -> (Process, std::path::PathBuf) {
    let log = data.with_extension("log");
    (Process::spawn("clone", command, &log), log)
}

fn state(mesh: &Mesh, terminal: &str) -> Result<String, String> {
    let done = mesh.terminal(terminal).verb(&["status", "--json"]);
    if done.code != 0 {
        return Err(done.stderr);
    }
    let status = done.json();
    Ok(format!("{} {}", status["state"], status["why"]))
}

#[test]
fn a_parked_agent_comes_back_once_its_clone_is_gone_and_not_before() {
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").quick_silence())
        .terminal(TerminalSpec::new("a").relayed().quick_silence())
        .terminal(TerminalSpec::new("b").relayed().quick_silence())
        .start();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("clone");
    copy(mesh.terminal("a").data(), &data);
    let mut clone = Command::new(mesh.terminal("a").command().get_program());
    clone.arg("--data").arg(&data).args(["run", "--log", "info", "--direct", "never"]);
    let (mut process, log) = clone_of(&mut clone, &data);
    eventually("the original is parked", SOON, || {
        let state = state(&mesh, "a")?;
        let told = state.contains("parked") && state.contains("comes back by itself");
        if told { Ok(()) } else { Err(format!("{state} {:?}", std::fs::read_to_string(&log))) }
    });
    let parked = Instant::now();
    let warned = mesh.relay("r1").log_text();
    assert!(warned.contains("another agent logged in with the same identity"), "{warned}");
    // The newest process wins: the original looks, and stays parked.
    while parked.elapsed() < Duration::from_secs(20) {
        assert!(state(&mesh, "a").unwrap().contains("parked"));
        std::thread::sleep(Duration::from_millis(500));
    }
    mesh.terminal("b").verb(&["ping", "a", "-c", "1"]).ok();
    process.kill();
    let gone = Instant::now();
    eventually("the original is back", BACK, || {
        let state = state(&mesh, "a")?;
        if state.contains("logged-in") { Ok(()) } else { Err(state) }
    });
    println!("back after {:?}", gone.elapsed());
    mesh.wait_state("a", "logged-in", SOON);
    mesh.terminal("b").verb(&["ping", "a", "-c", "1"]).ok();
}

#[test]
fn of_two_relays_with_one_identity_one_gives_way_and_all_name_it() {
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").quick_silence())
        .relay(RelaySpec::new("r2").quick_silence())
        .start();
    mesh.wait_tables_equal(SOON);
    let (r1, r2) = (mesh.relay("r1"), mesh.relay("r2"));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("clone");
    copy(r2.data(), &data);
    let ups = |log: &str| log.matches("link up").count();
    let before = ups(&r2.log_text());
    let (listen, status) = (free_address(), free_address());
    let mut command = Command::new(&tasuki_tests::lab::bins::Bins::find().relay);
    command.arg("--data").arg(&data).args(["run", "--log", "info"]);
    command.args(["--listen", &listen.to_string(), "--advertise", &listen.to_string()]);
    command.args(["--status", &status.to_string()]);
    let (process, log) = clone_of(&mut command, &data);
    let named = "another process with this relay's identity";
    eventually("all logs name it", SOON, || {
        let texts = [r1.log_text(), r2.log_text(), std::fs::read_to_string(&log).unwrap()];
        let wanted = ["two processes run with the identity of one relay", named, named];
        let has = |(text, wanted): (&String, &&str)| {
            text.lines().any(|line| line.contains("WARN") && line.contains(*wanted))
        };
        match texts.iter().zip(&wanted).position(|pair| !has(pair)) {
            None => Ok(()),
            Some(missing) => Err(format!("{missing}: {}", texts[missing])),
        }
    });
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        std::thread::sleep(Duration::from_millis(200));
    }
    let relinked = ups(&r2.log_text()) - before;
    println!("links of the original: {relinked}");
    assert!(relinked <= 4, "{}", r2.log_text());
    for (relay, level) in [(r1, "warning"), (r2, "bad")] {
        let report = relay.verb(&["check", "--json"]).json();
        let found = report.as_array().unwrap().iter().any(|finding| {
            finding["check"] == "identity"
                && finding["level"] == level
                && finding["what"].as_str().is_some_and(|what| what.contains("run as r2"))
        });
        assert!(found, "{}: {report}", relay.name());
        let text = relay.verb(&["status"]).ok().text();
        assert!(text.contains("run as"), "{text}");
    }
    // The clone is gone: the original takes its place again.
    drop(process);
    eventually("the original is linked again", Duration::from_secs(60), || {
        let links = r2.api.json("/api/v1/status")?["links"].clone();
        let has = links.as_array().is_some_and(|links| links.len() == 1);
        let seen = r1.api.json("/api/v1/status")?["links"].clone();
        let there = seen[0]["address"].as_str().is_some();
        if has && there { Ok(()) } else { Err(format!("{links} {seen}")) }
    });
}
