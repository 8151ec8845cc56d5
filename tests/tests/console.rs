//! The console in a browser (issue: the console): an operator's day against a real mesh, how smooth it is under load,
//! and its parts that need no browser. The scripts are in `tests/console`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tasuki_tests::lab::bins::workspace;
use tasuki_tests::lab::process::{Piped, run};
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, left_out};

/// For a whole script.
const LIMIT: Duration = Duration::from_secs(300);
/// An attribute that would be markup if the page were careless.
const MARKUP: &str = "note=<img src=x onerror=\"document.title='broken in'\">";
/// Each line of a script is shorter.
const LINE: usize = 16 * 1024;

fn scripts() -> PathBuf {
    workspace().join("tests/console")
}

fn node(script: &str) -> Command {
    let mut command = Command::new("node");
    command.current_dir(scripts()).arg(script);
    command
}

/// Whether the browser's tests can run. In CI they have to.
fn has_browser(what: &str) -> bool {
    let chromium = std::env::var_os("CHROMIUM").unwrap_or_else(|| "/usr/bin/chromium".into());
    let missing = if !runs("node") {
        "node is not installed (Debian: nodejs)"
    } else if !Path::new(&chromium).is_file() {
        "chromium is not installed (Debian: chromium)"
    } else if !scripts().join("node_modules/playwright-core").is_dir() {
        "playwright-core is not installed (npm ci --prefix tests/console)"
    } else {
        return true;
    };
    is_missing(what, missing)
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success())
}

fn is_missing(what: &str, missing: &str) -> bool {
    assert!(std::env::var_os("CI").is_none(), "{what}: {missing}");
    left_out(&format!("{what}: {missing}"));
    false
}

/// A script that asks for what a browser cannot do.
struct Script(Piped);

impl Script {
    /// Its next line; `None` at its end.
    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        while line.len() < LINE {
            match self.0.read_exact(1, LIMIT) {
                Ok(byte) if byte == b"\n" => break,
                Ok(byte) => line.extend(byte),
                Err(_) if line.is_empty() => return None,
                Err(_) => break,
            }
        }
        Some(String::from_utf8_lossy(&line).into_owned())
    }
}

/// What the script asked for, on a real mesh.
struct Hands {
    mesh: Mesh,
    session: Option<Piped>,
}

impl Hands {
    fn act(&mut self, word: &str) {
        let mesh = &self.mesh;
        match word {
            "start-late" => mesh.terminal("late-1").start(),
            "stop-late" => {
                mesh.terminal("late-1").verb(&["logout"]).ok();
                mesh.terminal("late-1").kill();
            }
            "open-session" => self.session = Some(mesh.terminal("desk-1").dial("cam-1/echo")),
            "close-session" => self.session = None,
            "kill-relay" => mesh.relay("r1").kill(),
            "start-relay" => {
                mesh.relay("r1").start();
            }
            other => panic!("the script asks for {other}"),
        }
    }
}

/// Search, live changes, log-in, actions, refusals, keys, the phone, and a relay that is killed and comes back; no
/// request leaves the origin, nothing breaks the policy, and what terminals say of themselves stays text.
#[test]
fn an_operator_at_work() {
    if !has_browser("the console in a browser") {
        return;
    }
    let echo = TcpService::echo(None);
    let mesh = MeshSpec::line(&["r1", "r2", "r3"])
        .each_relay(RelaySpec::quick_silence)
        .terminal(
            TerminalSpec::new("cam-1")
                .at(&["r1"])
                .quick_silence()
                .token_flags(&["--type", "camera", "--attr", MARKUP])
                .offers("echo", &format!("tcp://{}", echo.address())),
        )
        .terminal(TerminalSpec::new("desk-1").at(&["r1"]).quick_silence())
        .terminal(TerminalSpec::new("late-1").at(&["r2"]).quick_silence().stays_off())
        .start();
    let relay = mesh.relay("r1");
    let url = format!("http://{}/", relay.api.address);
    let token = relay.data().join("admin.token");
    let log = mesh.path("browser.log");
    let mut command = node("run.mjs");
    command.arg(url).arg(token);
    let mut script = Script(Piped::spawn("the browser", &mut command, &log));
    let mut hands = Hands { mesh, session: None };
    while let Some(line) = script.line() {
        println!("{line}");
        if let Some(word) = line.strip_prefix("ask: ") {
            hands.act(word);
            script.0.write(b"done\n").unwrap();
        }
    }
    let status = script.0.process().wait(LIMIT);
    assert!(status.success(), "{}", script.0.stderr());
}

/// 20 relays, 5,000 terminals, 500 changes a second: the page keeps up and does not grow.
#[test]
fn many_changes_are_smooth() {
    if has_browser("frame times of the console") {
        println!("{}", run(node("smooth.mjs").arg("10"), LIMIT).ok().text());
    }
}

/// Where reads need the token too, the page asks for it and keeps it for its tab.
#[test]
fn a_relay_that_shows_nothing_without_the_token() {
    if has_browser("log-in for reads") {
        println!("{}", run(&mut node("guarded.mjs"), LIMIT).ok().text());
    }
}

/// The event stream in any pieces, the long list under any changes, the map's layout.
#[test]
fn parts_without_a_browser() {
    if !runs("node") {
        is_missing("parts of the console", "node is not installed (Debian: nodejs)");
        return;
    }
    let mut command = Command::new("node");
    command.current_dir(scripts()).args(["--test", "units.mjs"]);
    println!("{}", run(&mut command, LIMIT).ok().text());
}
