//! Relays that lie about attachments and revocations.

use std::time::Duration;

use ring::signature::Ed25519KeyPair;
use tasuki_proto::attest::{SIGNATURE_BYTES, Signature};
use tasuki_proto::control::{Refused, Revoked, ToRelay, ToTerminal};
use tasuki_proto::identity::Identity;
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::rows::{self, AttachmentRole, AttachmentRow, RevocationRow};
use tasuki_proto::{Incarnation, LoginEpoch, MeshId, RefusalCode, RelayId};
use tasuki_tests::lab::bad_relay::{Author, BadLink, BadRelay, Honest};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually, raw};
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The agent of `name` is logged in at r1, and says so itself.
fn wait_at_r1(mesh: &Mesh, name: &str) {
    eventually(&format!("{name} is logged in at r1"), SOON, || {
        let status = mesh.terminal(name).verb(&["status", "--json"]).ok().json();
        let relays = status["attachments"].as_array().cloned().unwrap_or_default();
        let at_r1 = relays.iter().any(|one| one["relay"] == "r1");
        if status["state"] == "logged-in" && at_r1 { Ok(()) } else { Err(status.to_string()) }
    });
}

/// `a` reaches `b`, and neither was ever parked.
fn wait_untouched(mesh: &Mesh) {
    wait_at_r1(mesh, "a");
    mesh.terminal("a").verb(&["ping", "b", "-c", "1"]).ok();
    for name in ["a", "b"] {
        let log = mesh.terminal(name).log_text();
        assert!(!log.contains("parked"), "{name} was parked:\n{log}");
    }
}

/// r1, whose terminals are a and b, and r2, which an enemy takes over.
fn mesh() -> Mesh {
    MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .relay(RelaySpec::new("r2"))
        .each_relay(RelaySpec::quick_silence)
        .terminal(TerminalSpec::new("a").relayed().quick_silence().at(&["r1", "r2"]))
        .terminal(TerminalSpec::new("b").relayed().quick_silence().at(&["r1"]))
        .start()
}

fn attachment(epoch: u64, signature: Signature) -> bytes::Bytes {
    rows::payload(&AttachmentRow {
        role: AttachmentRole::Primary,
        epoch: LoginEpoch(epoch),
        instance: 99,
        address: "192.0.2.1:1".parse().unwrap(),
        since_ms: 1,
        sessions: 0,
        signature,
    })
}

#[test]
fn a_relay_claims_no_terminal_that_did_not_log_in_there() {
    let mesh = mesh();
    wait_at_r1(&mesh, "a");
    let (r1, r2) = (mesh.relay("r1"), mesh.relay("r2"));
    r2.kill();
    runtime().block_on(async {
        let process = (Incarnation(1 << 40), 1);
        let server = "r1.relay.lab.tasuki";
        let mut link = BadLink::connect(r1.listen(), server, r2.data(), process).await.unwrap();
        let mut author = Author::new(r2.data(), process.0, None);
        // Made up; and signed by the terminal, but for another relay.
        let elsewhere = raw::attest(mesh.terminal("a").data(), RelayId(5), LoginEpoch(1_001), 99);
        let forged = [Signature::new([7; SIGNATURE_BYTES]), elsewhere.signature];
        for (epoch, signature) in (1_000..).zip(forged) {
            let row = attachment(epoch, signature);
            link.say(&author.write(RecordKind::ATTACHMENT, b"a", row)).await.unwrap();
        }
        tokio::task::block_in_place(|| {
            eventually("the forged rows are found out", SOON, || {
                let status = r1.api.json("/api/v1/status")?;
                let forged = status["drops"]["attachments-forged"].as_u64();
                if forged == Some(2) { Ok(()) } else { Err(status["drops"].to_string()) }
            });
            let row = r1.row("a").unwrap();
            let attachments = row["attachments"].as_array().cloned().unwrap_or_default();
            assert!(attachments.iter().all(|one| one["relay"] == "r1"), "{row}");
            wait_untouched(&mesh);
        });
        assert!(link.stands(), "whoever wrote the rows, it is the row that is void");
    });
}

/// A revocation of the key of `whom` that another issuer signed.
fn forged_revocation(mesh: &Mesh, whom: &str) -> Record {
    let identity = Identity::load(mesh.terminal(whom).data()).unwrap().unwrap();
    let row = RevocationRow { name: whom.to_owned(), revoked_ms: 1 };
    let (term, _) = identity.authority_key();
    let draft = Draft {
        origin: RelayId::AUTHORITY,
        kind: RecordKind::REVOCATION,
        key: &identity.fingerprint().0,
        version: Version { incarnation: term, sequence: 1_000 },
        wall_ms: 1,
        scope: 0,
        lifetime_secs: 0,
        tombstone: false,
        payload: &rows::payload(&row),
    };
    let mesh_id: MeshId = identity.mesh_id();
    Record::signed(&draft, &mesh_id, &Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap())
}

type Lie = Box<dyn Fn(&Honest, ToRelay) -> Vec<ToTerminal> + Send + Sync>;

/// Takes the place of r2 with such a script, until it was asked for `logins` log-ins or left alone.
fn attack(what: &str, wants_login: bool, lie: impl FnOnce(&Mesh) -> Lie) {
    let mesh = mesh();
    wait_at_r1(&mesh, "a");
    let script = lie(&mesh);
    let r2 = mesh.relay("r2");
    r2.kill();
    let runtime = runtime();
    let bad = runtime.block_on(async { BadRelay::start(r2.listen(), r2.data(), script) });
    eventually(&format!("{what}: the agent noticed"), Duration::from_secs(40), || {
        let log = mesh.terminal("a").log_text();
        let told = log.contains("its attachment ends") || log.contains("protocol-error");
        if bad.logins() > 0 || (told && !wants_login) { Ok(()) } else { Err(log) }
    });
    wait_untouched(&mesh);
    // It has heard the lie; a while later still nothing came of it.
    mesh.wait_everywhere(what, SOON, |relay| {
        let row = relay.row("a")?;
        if row["state"] == "logged-in" { Ok(()) } else { Err(row.to_string()) }
    });
    wait_untouched(&mesh);
    drop(bad);
}

#[test]
fn an_agent_is_parked_by_no_forged_log_in() {
    attack("a forged Welcome", false, |_| {
        Box::new(|honest, message| {
            let said = raw_attestation(LoginEpoch(1_000));
            honest.answer(&message, Some(said))
        })
    });
}

#[test]
fn an_agent_is_parked_by_no_refusal_without_a_proof() {
    attack("superseded without a proof", true, |_| {
        Box::new(|honest, message| match message {
            ToRelay::Login(_) => {
                let by = None;
                let refusal = RefusalCode::Superseded.into();
                vec![ToTerminal::Refused(Refused { refusal, retry_after_ms: 0, by })]
            }
            message => honest.answer(&message, None),
        })
    });
}

#[test]
fn a_forged_list_of_revocations_ends_its_attachment_and_nothing_else() {
    attack("forged revocations", true, |mesh| {
        let record = forged_revocation(mesh, "b");
        Box::new(move |honest, message| {
            let mut said = honest.answer(&message, None);
            if matches!(message, ToRelay::Login(_)) {
                said.extend(Revoked::of([record.clone()]).into_iter().map(ToTerminal::Revoked));
            }
            said
        })
    });
}

/// A log-in that nobody signed.
fn raw_attestation(epoch: LoginEpoch) -> tasuki_proto::attest::Attestation {
    let role = AttachmentRole::Primary;
    let presence = tasuki_proto::attest::Presence { relay: RelayId(5), epoch, instance: 99, role };
    let signature = Signature::new([7; SIGNATURE_BYTES]);
    tasuki_proto::attest::Attestation { presence, signature }
}
