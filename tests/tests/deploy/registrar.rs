//! The registrar dies for good, and another relay takes the role over with the root key.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::mesh::Relay;
use tasuki_tests::lab::process::{Done, Signal, run};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually};

const VERB: Duration = Duration::from_secs(20);

/// A verb of the agent on a data directory of the mesh's folder.
fn agent(mesh: &Mesh, name: &str, arguments: &[&str]) -> Done {
    let mut command = Command::new(&Bins::find().agent);
    run(command.arg("--data").arg(mesh.path(name)).args(arguments), VERB)
}

fn stop(relay: &Relay) {
    relay.signal(Signal::Terminate);
    eventually("the relay ends", SOON, || match relay.is_running() {
        true => Err("it runs".into()),
        false => Ok(()),
    });
}

fn registrars(relay: &Relay) -> Result<Vec<String>, String> {
    let rows = relay.api.items("/api/v1/relays")?;
    let has_role = |row: &&Value| row["registrar"] == true;
    let name = |row: &Value| row["name"].as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().filter(has_role).map(name).collect())
}

#[test]
fn another_relay_becomes_the_registrar() {
    // r3 hears of r2 over nobody else; t1 and t2 are attached away from the registrar that dies.
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .relay(RelaySpec::new("r2"))
        .relay(RelaySpec::new("r3"))
        .each_relay(RelaySpec::quick_silence)
        .terminal(TerminalSpec::new("t1").at(&["r2", "r3"]))
        .terminal(TerminalSpec::new("t2").at(&["r3"]))
        .start();
    mesh.wait_tables_equal(SOON);
    let (r1, r2, r3) = (mesh.relay("r1"), mesh.relay("r2"), mesh.relay("r3"));
    let root = mesh.path("usb.pem");
    std::fs::copy(r1.data().join("root.pem"), &root).unwrap();

    // While the relay runs, or without the right root, nothing changes.
    let become_registrar =
        |relay: &Relay, root: &str| relay.verb(&["become-registrar", "--root", root]);
    let root = root.to_str().unwrap();
    let refused = become_registrar(r2, root);
    assert!(refused.code == 1 && refused.stderr.contains("stop it first"), "{refused:?}");
    r1.kill();
    stop(r2);
    let refused = become_registrar(r2, "/nonexistent");
    assert!(refused.code == 1 && refused.stderr.contains("no-root"), "{refused:?}");
    let elsewhere = mesh.path("other");
    let mut other = Command::new(&Bins::find().relay);
    other.arg("--data").arg(&elsewhere).args(["init", "--name", "x", "--listen", "127.0.0.1:4433"]);
    run(&mut other, VERB).ok();
    let refused = become_registrar(r2, elsewhere.join("root.pem").to_str().unwrap());
    assert!(refused.code == 1 && refused.stderr.contains("another mesh"), "{refused:?}");
    assert!(!r2.data().join("issuer.pem").exists());

    println!("{}", become_registrar(r2, root).ok().text());
    assert!(!r2.data().join("root.pem").exists(), "the root key is not kept");
    r2.start();
    mesh.wait_everywhere("r2 is the registrar", SOON, |relay| match registrars(relay)? {
        names if names == ["r2"] => Ok(()),
        names => Err(format!("{names:?}")),
    });

    // Old terminals stay, new ones come, through any relay.
    mesh.wait_state("t1", "logged-in", SOON);
    mesh.wait_state("t2", "logged-in", SOON);
    let reach = |from: &str, to: &str| {
        eventually(&format!("{from} reaches {to}"), SOON, || {
            let done = agent(&mesh, from, &["ping", to, "-c", "1"]);
            if done.code == 0 { Ok(()) } else { Err(done.stderr) }
        });
    };
    reach("t1", "t2");
    let token = r2.verb(&["token", "terminal", "t3"]).ok().text();
    agent(&mesh, "t3", &["enroll", &token]).ok();
    let mut command = Command::new(&Bins::find().agent);
    command.arg("--data").arg(mesh.path("t3")).args(["run", "--relays", "r3"]);
    let log = mesh.path("logs").join("t3.log");
    let _t3 = tasuki_tests::lab::process::Process::spawn("t3", &mut command, &log);
    reach("t2", "t3");

    // A terminal of the old registrar's days is revoked by the new one, and cut off where it is attached.
    r2.verb(&["revoke", "t2", "--terminal"]).ok();
    eventually("t2 is cut off", SOON, || {
        let row = r3.row("t2")?;
        if row["state"] == "logged-out" { Ok(()) } else { Err(row.to_string()) }
    });
    assert!(agent(&mesh, "t1", &["ping", "t2", "-c", "1"]).code != 0);

    // The old one comes back all the same: an ordinary relay.
    r1.start();
    eventually("r1 knows that its time is over", SOON, || {
        let refused = r1.verb(&["token", "relay"]);
        if refused.code == 1 && refused.stderr.contains("not-registrar") {
            Ok(())
        } else {
            Err(format!("{refused:?}"))
        }
    });
    mesh.wait_tables_equal(SOON);
    assert_eq!(registrars(r1).unwrap(), ["r2"]);
    stop(r1);
    r1.start();
    let refused = r1.verb(&["token", "relay"]);
    assert!(refused.stderr.contains("not-registrar"), "{refused:?}");
    mesh.wait_tables_equal(SOON);
    // And gone for good.
    r2.verb(&["revoke", "r1", "--relay"]).ok();
    eventually("r1 is forgotten", SOON, || match r3.relay_row("r1") {
        Ok(row) if row["reachable"] == true => Err(row.to_string()),
        _ => Ok(()),
    });
}
