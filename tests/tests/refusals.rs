//! Every refusal by its code and its one line (C2, C7, C8).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use tasuki_proto::RefusalCode;
use tasuki_proto::control::{CallRefused, ToRelay, ToTerminal};
use tasuki_proto::version::PROTOCOL;
use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::mesh::VERB;
use tasuki_tests::lab::process::{Done, Signal, run};
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually, raw};

/// Exit code 1, and one line on stderr with the code and what to do.
fn refused(done: &Done, code: RefusalCode) {
    refused_with(done.code, &done.stderr, code);
}

fn refused_with(exit: i32, stderr: &str, code: RefusalCode) {
    assert_eq!(exit, 1, "{stderr}");
    let lines: Vec<_> = stderr.lines().filter(|l| !l.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one line: {stderr}");
    assert!(lines[0].contains(code.word()), "{} in: {}", code.word(), lines[0]);
    assert!(lines[0].contains(code.advice()), "what to do in: {}", lines[0]);
    println!("{}", lines[0]);
}

/// `dial` with a stdin that stays open: a refusal ends it all the same. How long it took.
fn dial_refused(mesh: &Mesh, from: &str, target: &str, code: RefusalCode) -> Duration {
    let start = Instant::now();
    let mut dial = mesh.terminal(from).dial(target);
    let status = dial.process().wait(SOON);
    let took = start.elapsed();
    refused_with(status.code().unwrap_or(-1), &dial.stderr(), code);
    took
}

fn enroll(data: &Path, token: &str) -> Done {
    run(Command::new(&Bins::find().agent).arg("--data").arg(data).args(["enroll", token]), VERB)
}

/// C7, C8: the refusals of calls.
#[test]
fn calls_are_refused_with_a_code_and_advice() {
    let echo = TcpService::echo(None);
    let url = format!("tcp://{}", echo.address());
    // r3 keeps its patience, or it would cut a terminal that hangs before its call fails.
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").links(&["r2"]).quick_silence())
        .relay(RelaySpec::new("r2").links(&["r1", "r3"]).quick_silence())
        .relay(RelaySpec::new("r3").links(&["r2"]))
        .terminal(TerminalSpec::new("a").at(&["r1"]))
        .terminal(
            TerminalSpec::new("b")
                .at(&["r3"])
                .offers("echo", &url)
                .flags(&["--expose", &format!("closed={url}")])
                .flags(&["--expose", &format!("others={url}"), "--allow", "others=c"]),
        )
        .terminal(TerminalSpec::new("c").at(&["r3"]).stays_off())
        .start();

    let at_once = Duration::from_secs(3);
    assert!(dial_refused(&mesh, "a", "nobody/echo", RefusalCode::UnknownTarget) < at_once);
    assert!(dial_refused(&mesh, "a", "c/echo", RefusalCode::TargetLoggedOut) < at_once);
    // C7: without asking another relay.
    assert!(mesh.relay("r2").sessions().unwrap().is_empty(), "another relay was asked");
    assert!(dial_refused(&mesh, "a", "b/nothing", RefusalCode::ServiceNotExposed) < at_once);
    assert!(dial_refused(&mesh, "a", "b/closed", RefusalCode::CallerNotAllowed) < at_once);
    assert!(dial_refused(&mesh, "a", "b/others", RefusalCode::CallerNotAllowed) < at_once);
    assert!(dial_refused(&mesh, "a", "a/echo", RefusalCode::SelfCall) < at_once);

    // A target that hangs.
    mesh.terminal("b").signal(Signal::Stop);
    let took = dial_refused(&mesh, "a", "b/echo", RefusalCode::NoAnswer);
    mesh.terminal("b").signal(Signal::Continue);
    println!("no answer after {took:?}");
    assert!((9.0..13.0).contains(&took.as_secs_f64()), "interfaces: after 10 s, not {took:?}");

    // A target whose user says no: a terminal by hand that logs in as c.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let c = mesh.terminal("c").data().to_owned();
    let r3 = mesh.relay("r3").listen();
    let mut by_hand = runtime.block_on(raw::log_in(r3, "r3.relay.lab.tasuki", &c)).unwrap();
    mesh.wait_state("c", "logged-in", SOON);
    let done = std::thread::scope(|scope| {
        let dial = scope.spawn(|| mesh.terminal("a").verb(&["dial", "c/anything"]));
        runtime.block_on(async {
            loop {
                if let ToTerminal::Incoming(call) = by_hand.hear_relay().await.unwrap() {
                    assert_eq!(call.caller.as_str(), "a");
                    let refusal = RefusalCode::TargetRefused.into();
                    let refuse = CallRefused { session: call.session, refusal, winner: None };
                    by_hand.say(&ToRelay::Refuse(refuse).to_envelope()).await.unwrap();
                    break;
                }
            }
            // What was said leaves only while this runtime runs.
            while !dial.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        dial.join().unwrap()
    });
    refused(&done, RefusalCode::TargetRefused);
    mesh.wait_no_sessions(SOON);

    // A target whose relays cannot be reached.
    mesh.relay("r3").kill();
    let what = "the target is unreachable";
    mesh.wait_everywhere(what, Duration::from_secs(35), |relay| {
        let row = relay.row("b")?;
        if row["state"] == "unreachable" { Ok(()) } else { Err(row.to_string()) }
    });
    assert!(dial_refused(&mesh, "a", "b/echo", RefusalCode::TargetUnreachable) < at_once);
    drop(by_hand);
}

/// A relay that carries as many sessions as it may refuses further calls, and takes calls again when one is over.
#[test]
fn a_full_relay_refuses_a_call_as_busy() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("relay.toml");
    std::fs::write(&config, "sessions = 1\n").unwrap();
    let echo = TcpService::echo(None);
    let url = format!("tcp://{}", echo.address());
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").run_flags(&["--config", config.to_str().unwrap()]))
        .terminal(TerminalSpec::new("a").at(&["r1"]))
        .terminal(TerminalSpec::new("b").at(&["r1"]).offers("echo", &url))
        .terminal(TerminalSpec::new("c").at(&["r1"]))
        .start();
    let mut first = mesh.terminal("a").dial("b/echo");
    first.write(b"one").unwrap();
    assert_eq!(first.read_exact(3, SOON).unwrap(), b"one");
    dial_refused(&mesh, "c", "b/echo", RefusalCode::Busy);
    // The session that runs does not notice.
    first.write(b"two").unwrap();
    assert_eq!(first.read_exact(3, SOON).unwrap(), b"two");
    drop(first);
    mesh.wait_no_sessions(SOON);
    let mut next = mesh.terminal("c").dial("b/echo");
    next.write(b"three").unwrap();
    assert_eq!(next.read_exact(5, SOON).unwrap(), b"three");
}

/// C2: the refusals of tokens and identities.
#[test]
fn strangers_are_refused_with_a_code_and_advice() {
    let mesh = MeshSpec::line(&["r1", "r2"])
        .terminal(TerminalSpec::new("a").at(&["r2"]))
        .terminal(TerminalSpec::new("old").at(&["r1"]).stays_off())
        .start();
    let r1 = mesh.relay("r1");

    // Used: by another key.
    let token = mesh.token("once", &[]);
    enroll(&mesh.path("once"), &token).ok();
    refused(&enroll(&mesh.path("once-more"), &token), RefusalCode::TokenUsed);
    assert!(!mesh.path("once-more").join("identity.pem").exists());

    // Expired: it was good for a second.
    let token = mesh.token("late", &["--ttl".into(), "1s".into()]);
    let over = SystemTime::now() + Duration::from_millis(2_100);
    eventually("the token's life is over", SOON, || {
        if SystemTime::now() > over { Ok(()) } else { Err("not yet".into()) }
    });
    refused(&enroll(&mesh.path("late"), &token), RefusalCode::TokenExpired);

    // Of another kind of node.
    let for_relay = r1.verb(&["token", "relay"]).ok().text();
    refused(&enroll(&mesh.path("kind"), &for_relay), RefusalCode::TokenKind);
    // Elsewhere than at the registrar, whose name the refusal tells.
    let elsewhere = mesh.relay("r2").verb(&["token", "terminal", "x"]);
    refused(&elsewhere, RefusalCode::NotRegistrar);
    assert!(elsewhere.stderr.contains("r1"), "{}", elsewhere.stderr);

    // Too old a protocol, then a good one, from the same identity.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let old = mesh.terminal("old").data().to_owned();
    let server = "r1.relay.lab.tasuki";
    runtime.block_on(async {
        let (_, answer) = raw::hello(r1.listen(), server, &old, 0).await.unwrap();
        let ToTerminal::Refused(answer) = answer else { panic!("{answer:?}") };
        assert_eq!(answer.refusal.code, RefusalCode::ProtocolTooOld);
        let (_, answer) = raw::hello(r1.listen(), server, &old, PROTOCOL).await.unwrap();
        assert!(matches!(answer, ToTerminal::Welcome(_)), "{answer:?}");
    });

    // Another mesh: the relay cuts a terminal of a mesh that is not its own.
    let other = MeshSpec::line(&["r1"]).terminal(TerminalSpec::new("a").at(&["r1"])).start();
    let foreign = other.terminal("a").data().to_owned();
    let heard = runtime.block_on(raw::hello(r1.listen(), server, &foreign, PROTOCOL));
    match heard {
        Ok((_, ToTerminal::Refused(answer))) => {
            assert_eq!(answer.refusal.code, RefusalCode::WrongMesh);
        }
        Ok((_, answer)) => panic!("a stranger is welcome: {answer:?}"),
        // Cut in the handshake: the terminal learns it by the TLS alert (48, unknown_ca), or when the alert is
        // late, by a connection that is closed.
        Err(reason) => {
            println!("a certificate of another mesh: {reason}");
            let word = reason.to_lowercase();
            assert!(word.contains("unknownissuer") || word.contains("closed"), "{reason}");
        }
    }
    drop(other);

    // Revoked: by its key, and it stays so after a restart of the agent.
    r1.verb(&["revoke", "a"]).ok();
    mesh.wait_state("a", "logged-out", SOON);
    let knows = || {
        let status = mesh.terminal("a").verb(&["status", "--json"]);
        let text = status.text() + &status.stderr + &mesh.terminal("a").log_text();
        if text.contains(RefusalCode::Revoked.word()) { Ok(()) } else { Err(text) }
    };
    eventually("the agent knows that it is revoked", SOON, knows);
    mesh.terminal("a").kill();
    mesh.terminal("a").start();
    eventually("a revoked agent is told again", SOON, knows);
    mesh.wait_state("a", "logged-out", SOON);
    refused(&mesh.relay("r2").verb(&["revoke", "a"]), RefusalCode::NotRegistrar);
}

/// A token that its registrar does not know: made after the back-up that the registrar was restored from.
#[test]
fn a_token_that_was_never_issued_is_unknown() {
    let mesh = MeshSpec::line(&["r1"]).start();
    let relay = mesh.relay("r1");
    relay.kill();
    let backup = mesh.path("backup");
    run(Command::new("cp").arg("-a").arg(relay.data()).arg(&backup), VERB).ok();
    relay.start();
    let token = mesh.token("x", &[]);
    relay.kill();
    std::fs::remove_dir_all(relay.data()).unwrap();
    run(Command::new("cp").arg("-a").arg(&backup).arg(relay.data()), VERB).ok();
    relay.start();
    refused(&enroll(&mesh.path("x"), &token), RefusalCode::TokenUnknown);
    let cut = &token[..token.len() - 4];
    let done = enroll(&mesh.path("y"), cut);
    assert!(done.code == 1 || done.code == 2, "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
}

/// An agent whose relays belong to another mesh says so: the address was taken over.
#[test]
fn an_agent_says_that_its_relay_is_of_another_mesh() {
    let mesh = MeshSpec::line(&["r1"])
        .terminal(TerminalSpec::new("a").at(&["r1"]).quick_silence())
        .start();
    let relay = mesh.relay("r1");
    relay.kill();
    let data = mesh.path("usurper");
    let listen = relay.listen().to_string();
    let status = tasuki_tests::lab::programs::free_address().to_string();
    let bin = &Bins::find().relay;
    let mut init = Command::new(bin);
    init.arg("--data").arg(&data).args(["init", "--mesh", "lab", "--name", "r1"]);
    init.args(["--listen", &listen, "--advertise", &listen, "--status", &status]);
    run(&mut init, VERB).ok();
    let mut usurper = Command::new(bin);
    usurper.arg("--data").arg(&data).arg("run");
    let log = mesh.path("usurper.log");
    let _usurper = tasuki_tests::lab::process::Process::spawn("usurper", &mut usurper, &log);
    eventually("the agent says wrong-mesh", Duration::from_secs(40), || {
        let status = mesh.terminal("a").verb(&["status", "--json"]).ok().json();
        let why = status["why"].as_str().unwrap_or_default();
        if why.contains(RefusalCode::WrongMesh.word()) { Ok(()) } else { Err(status.to_string()) }
    });
}
