//! Transfers, inboxes and full disks; what peers say on a screen; messages that say what to do.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tasuki_proto::control::{CallRefused, ToRelay, ToTerminal};
use tasuki_proto::{Refusal, RefusalCode};
use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::forwarder::Impairment;
use tasuki_tests::lab::mesh::Disk;
use tasuki_tests::lab::process::{Process, Signal, run, run_with_input};
use tasuki_tests::lab::programs::{TcpService, hash_file, random_file};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually, left_out, raw};

const MB: usize = 1_000_000;
const LONG: Duration = Duration::from_secs(60);

/// a and b at one relay behind a line of so many Mbit/s, b with an open inbox.
fn pair(mbit_s: u64) -> Mesh {
    let line = Impairment { rate: Some(mbit_s * 1_000_000), ..Impairment::NONE };
    MeshSpec::new()
        .relay(RelaySpec::new("r1").behind(line))
        .terminal(TerminalSpec::new("a").relayed())
        .terminal(TerminalSpec::new("b").relayed().flags(&["--allow", "inbox=*"]))
        .start()
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Bytes of all sessions that run over r1.
fn carried(mesh: &Mesh) -> Result<u64, String> {
    let sessions = mesh.relay("r1").running_sessions()?;
    Ok(sessions.iter().filter_map(|session| session["bytes_to_callee"].as_u64()).sum())
}

/// Starts `send` and does `action` when a third of the file has gone.
fn send_and(mesh: &Mesh, file: &Path, size: usize, action: impl FnOnce()) -> (Option<i32>, String) {
    let before = carried(mesh).unwrap();
    let mut command = mesh.terminal("a").command();
    command.arg("send").arg(file).arg("b:");
    let name = file.file_name().unwrap().to_str().unwrap();
    let mut send = Process::spawn("send", &mut command, &mesh.path(&format!("{name}.log")));
    eventually("a third has gone", LONG, || {
        let gone = carried(mesh)?.saturating_sub(before);
        assert!(send.status().is_none(), "send ended: {}", send.output());
        if gone > size as u64 / 3 { Ok(()) } else { Err(format!("{gone} bytes")) }
    });
    action();
    let status = send.wait(LONG);
    (status.code(), send.output())
}

/// Whatever happens to a file while it is sent: what arrives is one state of it, whole, or the sender is told.
#[test]
fn a_file_that_changes_while_it_is_sent_arrives_as_one_state_of_it() {
    const SIZE: usize = 12 * MB;
    let mesh = pair(80);
    let received = |name: &str| std::fs::read(mesh.terminal("b").data().join("inbox").join(name));
    let path = |name: &str| mesh.path(name);

    std::fs::write(path("overwritten"), vec![0; SIZE]).unwrap();
    let (code, said) = send_and(&mesh, &path("overwritten"), SIZE, || {
        let file = OpenOptions::new().write(true).open(path("overwritten")).unwrap();
        file.write_all_at(&vec![1; SIZE], 0).unwrap();
    });
    assert_eq!(code, Some(0), "{said}");
    assert!(received("overwritten").unwrap() == vec![1; SIZE], "not the new state");

    random_file(&path("longer"), SIZE, 3);
    let (code, said) = send_and(&mesh, &path("longer"), SIZE, || {
        let file = OpenOptions::new().append(true).open(path("longer")).unwrap();
        file.write_all_at(b"the end", 0).unwrap();
    });
    assert_eq!(code, Some(0), "{said}");
    let whole = std::fs::read(path("longer")).unwrap();
    assert_eq!(whole.len(), SIZE + 7);
    assert!(received("longer").unwrap() == whole, "cut, or a mixture");

    random_file(&path("shorter"), SIZE, 4);
    let (code, said) = send_and(&mesh, &path("shorter"), SIZE, || {
        let file = OpenOptions::new().write(true).open(path("shorter")).unwrap();
        file.set_len(SIZE as u64 / 6).unwrap();
    });
    assert_eq!(code, Some(0), "{said}");
    assert!(received("shorter").unwrap() == std::fs::read(path("shorter")).unwrap());
}

#[test]
fn a_file_that_never_keeps_still_is_not_called_verified() {
    const SIZE: usize = 6 * MB;
    let mesh = pair(80);
    let path = mesh.path("restless");
    std::fs::write(&path, vec![0; SIZE]).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            for round in 1_u64.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                // The whole file holds one number at each moment between two rounds.
                let block = round.to_be_bytes().repeat(SIZE / 8);
                file.write_all_at(&block, 0).unwrap();
            }
        });
        let done = mesh.terminal("a").verb_within(&["send", path.to_str().unwrap(), "b:"], LONG);
        over.store(true, Ordering::Relaxed);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("error: file-changed: "), "{}", done.stderr);
    });
    assert!(!mesh.terminal("b").data().join("inbox/restless").exists());
}

/// What does not fit is refused before a byte is sent; what was interrupted makes room; the agent can still write.
#[test]
fn a_file_that_does_not_fit_is_refused_at_once() {
    if !Disk::is_possible("a small disk") {
        return;
    }
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .terminal(TerminalSpec::new("a").relayed())
        .terminal(TerminalSpec::new("b").relayed().disk(24 << 20).flags(&["--allow", "inbox=*"]))
        .start();
    random_file(&mesh.path("big"), 60 * MB, 5);
    random_file(&mesh.path("small"), MB, 6);
    random_file(&mesh.path("fits"), 15 * MB, 7);
    let send = |name: &str| {
        let file = mesh.path(name);
        mesh.terminal("a").verb_within(&["send", file.to_str().unwrap(), "b:"], LONG)
    };
    let refused = send("big");
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("inbox-full: it needs 60.0 MB, and "), "{}", refused.stderr);
    let partial = mesh.terminal("b").data().join("inbox/.partial");
    assert_eq!(std::fs::read_dir(&partial).unwrap().count(), 0, "nothing is left of it");
    send("small").ok();

    // The rest of an interrupted transfer, as an agent that was killed leaves it.
    let rest = partial.join("a.00112233445566778899aabbccddeeff.part");
    std::fs::write(&rest, vec![7; 10 * MB]).unwrap();
    let status = mesh.terminal("b").verb(&["status", "--json"]).ok().json();
    assert_eq!(status["inbox"]["unfinished"], 1, "{status}");
    let shown = mesh.terminal("b").verb(&["status"]).ok().text();
    assert!(shown.contains("1 unfinished, 10.0 MB"), "{shown}");
    send("fits").ok();
    assert!(!rest.exists(), "it made room");
    let landed = mesh.terminal("b").data().join("inbox/fits");
    assert_eq!(hash_file(&landed), hash_file(&mesh.path("fits")));
    // And a disk that others fill meanwhile.
    mesh.terminal("b").disk().fill();
    let refused = send("big");
    assert!(refused.stderr.contains("inbox-full"), "{}", refused.stderr);
}

/// A disk that others fill while a file arrives: the sender is told, and what arrived gives its room back.
#[test]
fn a_disk_that_fills_up_while_a_file_arrives_gets_its_room_back() {
    if !Disk::is_possible("a small disk") {
        return;
    }
    const SIZE: usize = 12 * MB;
    let line = Impairment { rate: Some(80_000_000), ..Impairment::NONE };
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").behind(line))
        .terminal(TerminalSpec::new("a").relayed())
        .terminal(TerminalSpec::new("b").relayed().disk(24 << 20).flags(&["--allow", "inbox=*"]))
        .start();
    random_file(&mesh.path("file"), SIZE, 8);
    let (code, said) =
        send_and(&mesh, &mesh.path("file"), SIZE, || mesh.terminal("b").disk().fill());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: inbox-full: "), "{said}");
    let partial = mesh.terminal("b").data().join("inbox/.partial");
    eventually("what arrived is gone", SOON, || {
        let left = std::fs::read_dir(&partial).unwrap().count();
        if left == 0 { Ok(()) } else { Err(format!("{left} files")) }
    });
    let log = mesh.terminal("b").log_text();
    assert!(log.contains("the disk is full: make room on it") && log.contains("inbox"), "{log}");
}

/// A relay with a full disk starts, forwards and says what it cannot do, wherever it is asked; when there is room again
/// it goes on by itself.
#[test]
fn a_relay_with_a_full_disk_starts_and_tells() {
    if !Disk::is_possible("a full disk") {
        return;
    }
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").disk(6 << 20))
        .terminal(TerminalSpec::new("a").relayed())
        .terminal(TerminalSpec::new("b").relayed())
        .expect_error("the store cannot write")
        .expect_error("could not be kept")
        .expect_error("the registrar's store failed")
        .expect_error("could not be brought up to date")
        .expect_error("heartbeat failed")
        .start();
    let relay = mesh.relay("r1");
    let tells = |what: &str| {
        eventually(what, SOON, || {
            let [health, ready] = ["/healthz", "/readyz"].map(|path| relay.api.get(path));
            let (health, ready) =
                (health.map_err(|e| e.to_string())?, ready.map_err(|e| e.to_string())?);
            let said = String::from_utf8_lossy(&ready.body).into_owned();
            let says = |body: &[u8]| {
                let text = String::from_utf8_lossy(body).into_owned();
                text.contains("relay.db") && text.contains("make room")
            };
            let is_told = health.status == 200 && says(&health.body);
            if is_told && ready.status == 503 && says(&ready.body) {
                Ok(())
            } else {
                Err(format!("{} {}: {said}", health.status, ready.status))
            }
        });
    };
    relay.disk().fill();
    let refused = relay.verb(&["token", "terminal", "x"]);
    assert_eq!(refused.code, 1);
    let said = &refused.stderr;
    assert!(said.contains("store-failed: ") && said.contains("relay.db"), "{said}");
    assert!(said.contains("make room"), "{said}");
    tells("health of a running relay");
    assert_eq!(relay.api.metric("tasuki_store_failing"), Some(1.0));

    for how in ["killed", "ended"] {
        if how == "ended" {
            relay.signal(Signal::Terminate);
            eventually("its end", SOON, || {
                if relay.is_running() { Err("it runs".to_owned()) } else { Ok(()) }
            });
        }
        relay.kill();
        // What it gave back when it ended is taken again.
        relay.disk().fill();
        relay.start();
        tells("health of a relay that started");
        mesh.wait_state("a", "logged-in", LONG);
        mesh.wait_state("b", "logged-in", LONG);
        mesh.terminal("a").verb(&["ping", "b", "-c", "1"]).ok();
        let status = relay.api.json("/api/v1/status").unwrap();
        assert!(status["not_ready"].as_str().is_some_and(|why| why.contains("full")), "{status}");
    }

    relay.disk().free();
    eventually("it goes on by itself", LONG, || {
        let ready = relay.api.get("/readyz").map_err(|error| error.to_string())?;
        let token = relay.verb(&["token", "terminal", "x"]);
        if ready.status == 200 && token.code == 0 { Ok(()) } else { Err(token.stderr) }
    });
    relay.kill();
    relay.start();
    mesh.wait_state("a", "logged-in", LONG);
}

/// What switches something off is never a typo.
#[test]
fn a_misspelt_setting_is_refused_with_the_words_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    let (agent, relay) = (&Bins::find().agent, &Bins::find().relay);
    let data = folder.path().join("data");
    let agent_refuses = |flags: &[&str], words: &[&str]| {
        let mut command = Command::new(agent);
        command.arg("--data").arg(&data).arg("run").args(flags);
        let done = run(&mut command, SOON);
        assert_eq!(done.code, 2, "{flags:?}: {done:?}");
        for word in words {
            assert!(done.stderr.contains(word), "{flags:?}: {}", done.stderr);
        }
    };
    for level in ["warning", "verbose", "inf0", "", "info,tasuki_agnet=debug"] {
        agent_refuses(&["--log", level], &["error, warn, info, debug"]);
    }
    agent_refuses(&["--direct", "of"], &["auto or never"]);
    agent_refuses(&["--port-mapping", "nevr"], &["auto or never"]);
    agent_refuses(
        &["--expose", "ssh=tcp://127.0.0.1:22", "--allow", "shs=*"],
        &["allow shs", "ssh, inbox, ping"],
    );
    agent_refuses(&["--allow", "inbox="], &["allow inbox"]);
    agent_refuses(&["--relays", ""], &["relays"]);
    for text in ["log = \"warning\"\n", "lgo = \"info\"\n", "[allow]\nssh = \"*\"\n"] {
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        agent_refuses(&["--config", file.to_str().unwrap()], &[]);
    }
    let relay_refuses = |flags: &[&str], word: &str| {
        let mut command = Command::new(relay);
        command.arg("--data").arg(&data).arg("run").args(flags);
        let done = run(&mut command, SOON);
        assert_ne!(done.code, 0, "{flags:?}");
        assert!(done.stderr.contains(word), "{flags:?}: {}", done.stderr);
    };
    relay_refuses(&["--log", "warning"], "error, warn, info, debug");
    relay_refuses(&["--log-format", "jsn"], "text or json");
    relay_refuses(&["--links", ""], "auto");
    relay_refuses(&["--links", "r2,"], "auto");
}

/// Several files: what cannot be sent is named, and does not keep the others back.
#[test]
fn files_that_cannot_be_sent_do_not_keep_others_back() {
    let mesh = pair(1_000);
    std::fs::create_dir(mesh.path("folder")).unwrap();
    let odd = mesh.path("odd\u{1b}[2J\u{202e}name");
    for file in [&mesh.path("one"), &mesh.path("two"), &odd] {
        std::fs::write(file, "text").unwrap();
    }
    let [one, folder, two, none] = ["one", "folder", "two", "none"].map(|name| mesh.path(name));
    let words = [&one, &folder, &odd, &none, &two].map(|path| path.to_str().unwrap());
    let done = mesh.terminal("a").verb(&[&["send"], &words[..], &["b:"]].concat());
    assert_eq!(done.code, 1);
    let text = done.text();
    assert!(
        text.contains("one: 4 bytes, verified") && text.contains("two: 4 bytes, verified"),
        "{text}"
    );
    let stderr = &done.stderr;
    assert!(stderr.contains("folder: not a plain file"), "{stderr}");
    assert!(stderr.contains("none: No such file"), "{stderr}");
    assert!(stderr.contains("not-all-sent: 3 of 5 files"), "{stderr}");
    let printed = format!("{text}{stderr}");
    assert!(!printed.contains(['\u{1b}', '\u{202e}']), "{printed:?}");
    assert!(printed.contains("odd\\u{1b}[2J\\u{202e}name"), "{printed}");

    // A folder that is not below the inbox is named as it was written.
    let done = mesh.terminal("a").verb(&["send", words[0], "b:/abs"]);
    assert!(done.stderr.contains("bad-file-name: '/abs/'"), "{}", done.stderr);
    // A sparse file stays sparse.
    let sparse = mesh.path("sparse");
    File::create(&sparse).unwrap().set_len(40_000_000).unwrap();
    OpenOptions::new().write(true).open(&sparse).unwrap().write_all_at(b"x", 20_000_000).unwrap();
    mesh.terminal("a").verb_within(&["send", sparse.to_str().unwrap(), "b:"], LONG).ok();
    let landed = mesh.terminal("b").data().join("inbox/sparse");
    assert_eq!(hash_file(&landed), hash_file(&sparse));
    let taken = landed.metadata().unwrap().blocks() * 512;
    assert!(taken < 1_000_000, "{taken} bytes on the disk");
}

/// What a peer says reaches the caller's screen as text: no title, no cursor, no change of direction.
#[test]
fn a_refusal_with_escape_sequences_is_shown_escaped() {
    const EVIL: &str =
        "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}drowssap\u{200b}\r\nroot@host:~# ";
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .terminal(TerminalSpec::new("a").relayed())
        .terminal(TerminalSpec::new("evil").stays_off())
        .start();
    let relay = mesh.relay("r1").listen();
    let data = mesh.terminal("evil").data().to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut stream = runtime.block_on(raw::log_in(relay, "r1.relay.lab.tasuki", &data)).unwrap();
    let peer = runtime.spawn(async move {
        loop {
            match stream.hear_relay().await {
                Ok(ToTerminal::Incoming(call)) => {
                    let refusal = Refusal::new(RefusalCode::TargetRefused, EVIL);
                    let refused = CallRefused { session: call.session, refusal, winner: None };
                    if stream.say(&ToRelay::Refuse(refused).to_envelope()).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(error) if error.starts_with("nothing in") => {}
                Err(_) => return,
            }
        }
    });
    mesh.wait_state("evil", "logged-in", SOON);
    let harmful = ['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}', '\u{200b}', '\r'];
    for verb in [
        &["dial", "evil/ssh"][..],
        &["ping", "evil"],
        &["send", "Cargo.toml", "evil:"],
        &["forward", "127.0.0.1:0", "evil/ssh"],
    ] {
        let done = mesh.terminal("a").verb(verb);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("target-refused: \\u{1b}]0;owned\\u{7}"), "{}", done.stderr);
        assert!(!done.stderr.contains(harmful), "{:?}", done.stderr);
        assert_eq!(done.stderr.trim_end().lines().count(), 1, "{:?}", done.stderr);
    }
    for (who, log) in [("a", mesh.terminal("a").log_text()), ("r1", mesh.relay("r1").log_text())] {
        assert!(!log.contains(harmful), "the log of {who}");
    }
    peer.abort();
}

/// Who talks with a terminal whose agent was killed and started again did not log in twice.
#[test]
fn a_peer_that_started_again_was_lost_and_nobody_is_told_to_stop_an_agent() {
    let echo = TcpService::echo(None);
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .terminal(TerminalSpec::new("a").relayed())
        .terminal(
            TerminalSpec::new("b").relayed().offers("echo", &format!("tcp://{}", echo.address())),
        )
        .start();
    let mut dial = mesh.terminal("a").dial("b/echo");
    dial.write(b"12345678").unwrap();
    dial.read_exact(8, SOON).unwrap();
    mesh.terminal("b").kill();
    mesh.terminal("b").start();
    dial.process().wait(LONG);
    let said = dial.stderr();
    assert!(said.contains("peer-lost") && !said.contains("superseded"), "{said}");
    // And a verb whose own agent goes away says so in words.
    let mut dial = mesh.terminal("a").dial("b/echo");
    dial.write(b"12345678").unwrap();
    dial.read_exact(8, LONG).unwrap();
    mesh.terminal("a").kill();
    dial.process().wait(LONG);
    let said = dial.stderr();
    assert!(said.contains("agent-lost: the agent ended or hung up"), "{said}");
}

/// Errors of the machine come with the path or port, and with advice that fits.
#[test]
fn errors_of_the_machine_come_with_advice_that_fits() {
    let folder = tempfile::tempdir().unwrap();
    let (agent, relay) = (&Bins::find().agent, &Bins::find().relay);
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let says = |command: &mut Command, words: &[&str]| {
        let done = run(command, SOON);
        assert_ne!(done.code, 0, "{command:?}");
        for word in words {
            assert!(done.stderr.contains(word), "{command:?}: not '{word}': {}", done.stderr);
        }
    };
    // Where another user finds it, too.
    let everybodys = folder.path().join("tasuki-relay");
    std::fs::copy(relay, &everybodys).unwrap();
    let init = |data: &Path, user: Option<u32>| {
        let mut command = Command::new(&everybodys);
        command.arg("--data").arg(data).args(["init", "--name", "r1", "--listen", "127.0.0.1:443"]);
        command.args(["--status", "127.0.0.1:0"]);
        if let Some(user) = user {
            command.uid(user);
        }
        run(&mut command, SOON).ok();
    };
    let long = folder.path().join("x".repeat(120));
    init(&long, None);
    says(Command::new(relay).arg("--data").arg(&long).arg("run"), &["too long", "shorter --data"]);
    std::fs::write(long.join("agent.lock"), "").unwrap();
    says(Command::new(agent).arg("--data").arg(&long).arg("run"), &["too long", "shorter --data"]);
    let lost = Command::new(agent).arg("--data").arg(folder.path().join("no")).arg("ls").output();
    assert!(String::from_utf8_lossy(&lost.unwrap().stderr).contains("agent-not-running: "));
    if !is_root() {
        left_out("ports and owners: to change the user needs root");
        return;
    }
    const USER: u32 = 65_534;
    let theirs = folder.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    chown(&theirs, Some(USER), Some(USER)).unwrap();
    init(&theirs, Some(USER));
    let own = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/{name}");
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok())
    };
    if own("ip_unprivileged_port_start").is_none_or(|first| first > 443) {
        let mut run = Command::new(&everybodys);
        says(
            run.arg("--data").arg(&theirs).arg("run").uid(USER),
            &["cannot-listen: ", "127.0.0.1:443", "CAP_NET_BIND_SERVICE"],
        );
    } else {
        left_out("port 443 as an ordinary user: every user may have it here");
    }
    for program in [relay, agent] {
        says(
            Command::new(program).arg("--data").arg(&theirs).arg("run"),
            &["data-of-another-user: ", "65534", "--data"],
        );
    }
}

/// A data directory on a file system that is mounted read-only.
#[test]
fn a_read_only_data_directory_is_named() {
    if !Disk::is_possible("a read-only disk") {
        return;
    }
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .terminal(TerminalSpec::new("a").disk(4 << 20).stays_off())
        .start();
    let data = mesh.terminal("a").data();
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(data), SOON).ok();
    let done = mesh.terminal("a").verb(&["run"]);
    assert_eq!(done.code, 1);
    let path = data.display().to_string();
    assert!(done.stderr.contains(&path) && done.stderr.contains("read-only"), "{}", done.stderr);
    assert!(done.stderr.contains("mount it writable"), "{}", done.stderr);
}

/// A token need not stand in the list of processes.
#[test]
fn a_token_is_read_from_standard_input() {
    let mesh = MeshSpec::new().relay(RelaySpec::new("r1")).start();
    let input = format!("{}\n", mesh.token("a", &[]));
    let mut enroll = Command::new(&Bins::find().agent);
    enroll.arg("--data").arg(mesh.path("a")).args(["enroll", "-"]);
    let done = run_with_input(&mut enroll, input.as_bytes(), SOON).ok();
    assert!(done.text().contains("enrolled as a"), "{done:?}");
    let token = mesh.relay("r1").verb(&["token", "relay"]).ok().text();
    let mut join = Command::new(&Bins::find().relay);
    join.arg("--data").arg(mesh.path("r2")).args(["join", "-", "--name", "r2"]);
    join.args(["--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:9"]);
    run_with_input(&mut join, token.as_bytes(), SOON).ok();
    let mut enroll = Command::new(&Bins::find().agent);
    enroll.arg("--data").arg(mesh.path("b")).args(["enroll", "-"]);
    let empty = run_with_input(&mut enroll, b"\n", SOON);
    assert!(empty.code == 1 && empty.stderr.contains("bad-token"), "{empty:?}");
}
