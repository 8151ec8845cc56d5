//! kill -9 of a relay at each of its writes, one after the other: what it acknowledged is there afterwards (invariant 8).
//!
//! strace lets the relay die when one of its threads comes to its Nth call that changes the disk. N grows until the
//! operation comes through.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tasuki_proto::control::ToTerminal;
use tasuki_proto::version::PROTOCOL;
use tasuki_proto::{RefusalCode, SessionId};
use tasuki_relay::io::store::Store;
use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::mesh::{Relay, VERB};
use tasuki_tests::lab::process::{Done, Process, run};
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, TerminalSpec, eventually, have, raw};

/// The calls that change what is on the disk. Writes to sockets and logs are others.
const WRITES: &str =
    "pwrite64,pwritev,fsync,fdatasync,ftruncate,rename,renameat,renameat2,unlink,unlinkat";
/// More writes than any of these operations takes.
const MOST: usize = 100;

/// Lets a relay die at its write of number `at`. Dropped, it lets go.
struct Trap {
    _strace: Process,
}

impl Trap {
    fn set(relay: &Relay, at: usize, folder: &Path) -> Trap {
        let log = folder.join(format!("strace-{at}.log"));
        let mut command = Command::new("strace");
        command.args(["-f", "-o", "/dev/null", "-e", &format!("trace={WRITES}")]);
        command.args(["-e", &format!("inject={WRITES}:signal=KILL:when={at}")]);
        command.args(["-p", &relay.pid().unwrap().to_string()]);
        let strace = Process::spawn("strace", &mut command, &log);
        eventually("strace watches the relay", SOON, || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            if said.contains("attached") { Ok(()) } else { Err(said) }
        });
        Trap { _strace: strace }
    }
}

/// What came of an operation during which the relay may have died.
struct Came {
    acknowledged: bool,
    died: bool,
}

/// Does something while the relay is to die at its write of number `at`, and starts the relay again where it did.
fn dying(relay: &Relay, at: usize, folder: &Path, act: impl FnOnce() -> Done + Send) -> Came {
    let lives = || relay.log_text().matches("relay runs").count();
    let before = lives();
    let trap = Trap::set(relay, at, folder);
    let acknowledged = std::thread::scope(|scope| {
        let acting = scope.spawn(act);
        // Whoever waits for an answer gets it from the relay's next life, or hears that there was none.
        while !acting.is_finished() {
            if !relay.is_running() {
                let _ = relay.start();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        acting.join().unwrap().code == 0
    });
    // A write may come behind the answer.
    std::thread::sleep(Duration::from_millis(50));
    drop(trap);
    // One that is just dying still counts as running, and answers nobody.
    eventually("the relay answers", SOON, || {
        if !relay.is_running() {
            relay.start();
        }
        relay.api.get("/healthz").map(drop).map_err(|error| error.to_string())
    });
    Came { acknowledged, died: lives() > before }
}

fn enroll(data: &Path, token: &str) -> Done {
    run(Command::new(&Bins::find().agent).arg("--data").arg(data).args(["enroll", token]), VERB)
}

/// C2: who was told that it is enrolled has an account, and who was not gets in with the same token.
#[test]
fn no_acknowledged_enrolment_is_lost() {
    if !have("strace", "deaths at each write") {
        return;
    }
    let mesh = MeshSpec::line(&["r1"]).start();
    let relay = mesh.relay("r1");
    let mut acknowledged = 0;
    for at in 1..MOST {
        let name = format!("t{at}");
        let token = mesh.token(&name, &[]);
        let data = mesh.path(&name);
        let came = dying(relay, at, &mesh.path(""), || enroll(&data, &token));
        acknowledged += usize::from(came.acknowledged);
        if !came.acknowledged {
            enroll(&data, &token).ok();
        }
        // The newcomer hears of its account as soon as it is on the disk; the table hears of it then.
        mesh.wait_state(&name, "logged-out", SOON);
        if !came.died {
            println!("{at} deaths at one enrolment each, {acknowledged} acknowledged all the same");
            return;
        }
    }
    panic!("an enrolment takes {MOST} writes");
}

/// C2: a key whose revocation was acknowledged stays revoked.
#[test]
fn no_acknowledged_revocation_is_lost() {
    if !have("strace", "deaths at each write") {
        return;
    }
    let mesh = MeshSpec::line(&["r1"]).start();
    let relay = mesh.relay("r1");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for at in 1..MOST {
        let name = format!("t{at}");
        let data = mesh.path(&name);
        enroll(&data, &mesh.token(&name, &[])).ok();
        let came = dying(relay, at, &mesh.path(""), || relay.verb(&["revoke", &name]));
        if !came.acknowledged {
            relay.verb(&["revoke", &name]).ok();
        }
        // It is acknowledged as soon as it is on the disk; the table hears of it then.
        eventually(&format!("{name} is revoked"), SOON, || {
            let hello = raw::hello(relay.listen(), "r1.relay.lab.tasuki", &data, PROTOCOL);
            match runtime.block_on(hello) {
                Ok((_, ToTerminal::Refused(answer))) => {
                    assert_eq!(answer.refusal.code, RefusalCode::Revoked);
                }
                Ok((_, answer)) => return Err(format!("welcome: {answer:?}")),
                Err(reason) => println!("{name}: {reason}"),
            }
            Ok(())
        });
        if !came.died {
            println!("{at} deaths at one revocation each");
            return;
        }
    }
    panic!("a revocation takes {MOST} writes");
}

/// The sessions in a relay's ledger; it is started again.
fn ledger(relay: &Relay) -> Vec<String> {
    relay.kill();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sessions = runtime.block_on(async {
        let store = Store::open(relay.data()).unwrap();
        store.sessions(None::<SessionId>, 1_000).await.unwrap()
    });
    drop(runtime);
    relay.start();
    sessions.into_iter().map(|session| session.id.to_string()).collect()
}

/// Invariant 6: a session whose end was acknowledged stands in the ledger.
#[test]
fn no_acknowledged_end_of_a_session_is_lost() {
    if !have("strace", "deaths at each write") {
        return;
    }
    let echo = TcpService::echo(None);
    let terminal = |name: &str| TerminalSpec::new(name).at(&["r1"]).relayed();
    let mesh: Mesh = MeshSpec::line(&["r1"])
        .terminal(terminal("a"))
        .terminal(terminal("b").offers("echo", &format!("tcp://{}", echo.address())))
        .start();
    let relay = mesh.relay("r1");
    for at in 1..MOST {
        for name in ["a", "b"] {
            // Agents notice a relay's death when they say that they are alive, each 9 s.
            mesh.wait_state(name, "logged-in", SOON * 2);
        }
        let mut dial = mesh.terminal("a").dial("b/echo");
        dial.write(b"12345678").unwrap();
        dial.read_exact(8, SOON).unwrap();
        let session = relay.running_sessions().unwrap()[0]["id"].as_str().unwrap().to_owned();
        let came = dying(relay, at, &mesh.path(""), || relay.verb(&["end", &session]));
        drop(dial);
        if came.acknowledged {
            let known = ledger(relay);
            assert!(known.contains(&session), "death {at}: {session} is not among {known:?}");
        }
        if !came.died {
            println!("{at} deaths at one end of a session each");
            return;
        }
    }
    panic!("the end of a session takes {MOST} writes");
}
