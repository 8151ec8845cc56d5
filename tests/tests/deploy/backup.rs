//! A relay is copied while it runs, lost, and lives again from the copy.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::mesh::VERB;
use tasuki_tests::lab::process::run;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, RelaySpec, TerminalSpec, eventually};

#[test]
fn a_registrar_lives_again_from_its_back_up() {
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .relay(RelaySpec::new("r2"))
        .each_relay(RelaySpec::quick_silence)
        .terminal(TerminalSpec::new("t1"))
        .start();
    let (r1, r2) = (mesh.relay("r1"), mesh.relay("r2"));
    let folder = mesh.path("kept");
    let kept = folder.to_str().unwrap();
    println!("{}", r1.verb(&["backup", kept]).ok().text());
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    let mut names = Vec::new();
    for file in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
        assert_eq!(mode(&file.path()), 0o600, "{:?}", file.path());
        names.push(file.file_name().into_string().unwrap());
    }
    for name in ["relay.db", "identity.pem", "issuer.pem", "node.toml", "admin.token"] {
        assert!(names.iter().any(|one| one == name), "{name} is not in {names:?}");
    }
    assert!(!names.iter().any(|name| name == "root.pem"), "the root key stays where it is");
    let again = r1.verb(&["backup", kept]);
    assert!(again.code == 1 && again.stderr.contains("choose a new one"), "{again:?}");

    // What happens after the back-up, its relay knows nothing of: here a terminal, and a revocation.
    mesh.token("t2", &[]);
    r1.verb(&["revoke", "t2", "--terminal"]).ok();
    mesh.wait_tables_equal(SOON);
    let in_use = r1.verb(&["restore", kept]);
    assert!(in_use.code == 1 && in_use.stderr.contains("data-in-use"), "{in_use:?}");
    r1.kill();
    std::fs::remove_dir_all(r1.data()).unwrap();
    println!("{}", r1.verb(&["restore", kept]).ok().text());
    r1.start();
    mesh.wait_state("t1", "logged-in", SOON);
    mesh.wait_tables_equal(SOON);

    // What it signs from here on counts at once: the others hold later numbers than the back-up's.
    let token = mesh.token("t3", &[]);
    let mut enroll = Command::new(&Bins::find().agent);
    run(enroll.arg("--data").arg(mesh.path("t3")).args(["enroll", &token]), VERB).ok();
    eventually("r2 shows t3", SOON, || r2.row("t3").map(drop));
    r1.verb(&["revoke", "t1", "--terminal"]).ok();
    eventually("t1 is cut off at r2", SOON, || {
        let row = r2.row("t1")?;
        if row["state"] == "logged-out" { Ok(()) } else { Err(row.to_string()) }
    });
}
