//! The systemd units: systemd reads them without a complaint, and what they forbid the daemons never do. No unit is
//! started here: that would take a machine that runs systemd.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::process::{Piped, Process, Signal, run};
use tasuki_tests::lab::programs::free_address;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{eventually, have};

use super::{shipped, text};

const UNITS: [&str; 2] = ["tasuki-relay", "tasuki-agent"];
const LIMIT: Duration = Duration::from_secs(60);
/// What `systemd-analyze security` may say at most, of 10. A daemon with sockets does not get below 1.
const EXPOSURE: f64 = 1.5;

/// A value of a unit, the last one where it stands several times.
fn value<'a>(unit: &'a str, key: &str) -> Option<&'a str> {
    let lines = unit.lines().rev();
    lines.filter_map(|line| line.split_once('=')).find(|(name, _)| *name == key).map(|(_, v)| v)
}

#[test]
fn systemd_reads_them_without_a_complaint() {
    if !have("systemd-analyze", "the check of the units") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in UNITS {
        let unit = text(&format!("{name}.service"));
        let program = format!("/usr/bin/{name}");
        assert!(unit.contains(&program), "{name} starts {program}");
        // It looks whether the program is there.
        let here = folder.path().join(format!("{name}.service"));
        let bins = Bins::find();
        let built = if name == "tasuki-relay" { &bins.relay } else { &bins.agent };
        std::fs::write(&here, unit.replace(&program, built.to_str().unwrap())).unwrap();
        let verify =
            run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&here), LIMIT)
                .ok();
        assert_eq!(verify.stderr, "", "{name}");
    }
}

#[test]
fn little_is_exposed() {
    if !have("systemd-analyze", "the exposure of the units") {
        return;
    }
    for name in UNITS {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=true", "--no-pager"]);
        let report = run(command.arg(shipped(&format!("{name}.service"))), LIMIT).ok().text();
        let last = report.lines().last().unwrap_or_default().to_owned();
        println!("{last}");
        let level = last.split_whitespace().find_map(|word| word.parse::<f64>().ok());
        assert!(level.is_some_and(|level| level <= EXPOSURE), "{report}");
    }
}

#[test]
fn stopping_takes_less_than_systemd_waits() {
    let seconds = |name: &str| -> u64 {
        value(&text(&format!("{name}.service")), "TimeoutStopSec").unwrap().parse().unwrap()
    };
    // The default of `stop_s` is 5, that of the agent's farewell 2.
    assert!(seconds("tasuki-relay") >= 60 && seconds("tasuki-agent") >= 10);
}

/// The system calls of a filter of systemd's, groups opened: a group, or a call.
fn calls_of(filter: &str, out: &mut BTreeSet<String>) {
    if !filter.starts_with('@') {
        out.insert(filter.to_owned());
        return;
    }
    let shown = run(Command::new("systemd-analyze").args(["syscall-filter", filter]), LIMIT).ok();
    for line in shown.text().lines().skip(1).map(str::trim) {
        if !line.is_empty() && !line.starts_with('#') {
            calls_of(line, out);
        }
    }
}

/// What a unit lets through.
fn allowed(unit: &str) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for (_, rule) in
        unit.lines().filter_map(|l| l.split_once('=')).filter(|(k, _)| *k == "SystemCallFilter")
    {
        let mut named = BTreeSet::new();
        for group in rule.trim_start_matches('~').split_whitespace() {
            calls_of(group, &mut named);
        }
        match rule.starts_with('~') {
            true => allowed.retain(|call| !named.contains(call)),
            false => allowed.append(&mut named),
        }
    }
    allowed
}

/// Holds what a daemon did against its unit. The log is strace's: `PID call(arguments) = result`.
fn check_calls(name: &str, log: &Path) {
    let unit = text(&format!("{name}.service"));
    let allowed = allowed(&unit);
    let families = value(&unit, "RestrictAddressFamilies").unwrap();
    let trace = std::fs::read_to_string(log).unwrap();
    let mut seen = BTreeSet::new();
    for line in trace.lines() {
        let Some((head, rest)) = line.split_once('(') else { continue };
        let Some(call) = head.split_whitespace().last() else { continue };
        if head.contains("<...") || !call.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        assert!(allowed.contains(call), "{name}: the unit forbids {line}");
        if call == "socket" {
            let family = rest.split(',').next().unwrap_or_default();
            assert!(
                families.split(' ').any(|one| one == family),
                "{name}: the unit forbids {line}"
            );
        }
        let maps = ["mmap", "mprotect", "pkey_mprotect"].contains(&call);
        assert!(
            !(maps && rest.contains("PROT_WRITE|PROT_EXEC")),
            "{name}: MemoryDenyWriteExecute forbids {line}"
        );
        if call.starts_with("open") && rest.contains("\"/proc/") {
            // ProcSubset=pid leaves processes' own folders; the C library's allocator does without the last one.
            let own = [
                "/proc/self/",
                "/proc/thread-self/",
                "/proc/net/",
                "/proc/sys/vm/overcommit_memory",
            ];
            let failed = rest.contains("= -1");
            assert!(
                failed || own.iter().any(|folder| rest.contains(folder)),
                "{name}: ProcSubset hides {line}"
            );
        }
        seen.insert(call.to_owned());
    }
    assert!(
        seen.contains("recvmmsg") || seen.contains("recvmsg"),
        "{name}: no packet seen: {seen:?}"
    );
    println!("{name}: {} system calls of {} that are allowed", seen.len(), allowed.len());
}

#[test]
fn what_they_forbid_the_daemons_never_do() {
    if !have("strace", "what the units forbid") || !have("systemd-analyze", "what the units forbid")
    {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let verb = |program: &Path, data: &str, arguments: &[&str]| {
        run(Command::new(program).arg("--data").arg(path(data)).args(arguments), LIMIT).ok().text()
    };
    let traced = |program: &Path, data: &str, arguments: &[&str]| {
        let mut command = Command::new("strace");
        command
            .args(["--follow-forks", "--quiet=all", "--output"])
            .arg(path(&format!("{data}.trace")));
        command.arg(program).arg("--data").arg(path(data)).arg("run").args(arguments);
        Process::spawn(data, &mut command, &path(&format!("{data}.log")))
    };
    let bins = Bins::find();
    let (listen, status) = (free_address().to_string(), free_address().to_string());
    verb(&bins.relay, "r1", &["init", "--name", "r1", "--listen", &listen, "--status", &status]);
    let mut relay = traced(&bins.relay, "r1", &[]);
    eventually("the relay answers", SOON, || {
        let mut command = Command::new(&bins.relay);
        let done = run(command.arg("--data").arg(path("r1")).arg("status"), LIMIT);
        if done.code == 0 { Ok(()) } else { Err(format!("{}{}", done.stderr, relay.output())) }
    });
    let mut agents = Vec::new();
    let service = format!("web=tcp://{status}");
    for name in ["a", "b"] {
        let token = verb(&bins.relay, "r1", &["token", "terminal", name]);
        verb(&bins.agent, name, &["enroll", &token]);
        agents.push(traced(
            &bins.agent,
            name,
            &["--expose", &service, "--allow", "web=*", "--allow", "inbox=*"],
        ));
    }
    // A session, a stream to a service, and a file: the agents do what they are for.
    eventually("a reaches b", SOON, || {
        let mut command = Command::new(&bins.agent);
        let done = run(command.arg("--data").arg(path("a")).args(["ping", "b", "-c", "1"]), LIMIT);
        if done.code == 0 { Ok(()) } else { Err(done.stderr) }
    });
    std::fs::write(path("file"), vec![7; 100_000]).unwrap();
    verb(&bins.agent, "a", &["send", path("file").to_str().unwrap(), "b:"]);
    let request = format!("GET /healthz HTTP/1.0\r\nHost: {status}\r\n\r\n");
    let mut dial = Command::new(&bins.agent);
    dial.arg("--data").arg(path("a")).args(["dial", "b/web"]);
    // Its stdin stays open: the web server hangs up on a client that closes its side.
    let mut dial = Piped::spawn("dial", &mut dial, &path("dial.log"));
    dial.write(request.as_bytes()).unwrap();
    let answer = dial.read_exact("HTTP/1.0 200".len(), SOON).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.0 200");
    drop(dial);
    for agent in &mut agents {
        agent.signal(Signal::Terminate);
        agent.wait(SOON);
    }
    relay.signal(Signal::Terminate);
    relay.wait(SOON);
    check_calls("tasuki-relay", &path("r1.trace"));
    check_calls("tasuki-agent", &path("a.trace"));
    check_calls("tasuki-agent", &path("b.trace"));
}
