//! Every wrong combination of role, name, ALPN and key, by the function alone and in real handshakes.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};
use rustls_pki_types::CertificateDer;

use super::*;
use crate::id::{Incarnation, MeshName, RelayName, TerminalId};
use crate::refusal::RefusalCode;
use crate::version::Alpn;

/// s since 1970: a moment in 2033.
const NOW: u64 = 2_000_000_000;
const DAY: u64 = 86_400;

fn relay(name: &str) -> NodeName {
    NodeName::Relay(RelayName::new(name).unwrap())
}

fn terminal(name: &str) -> NodeName {
    NodeName::Terminal(TerminalId::new(name).unwrap())
}

fn mesh_name(name: &str) -> MeshName {
    MeshName::new(name).unwrap()
}

struct Mesh {
    root: Root,
    issuer: Issuer,
}

impl Mesh {
    fn new(name: &str) -> Self {
        let root = Root::generate(&mesh_name(name), NOW).unwrap();
        let issuer = root.issuer(&mesh_name(name), Incarnation(3), NOW).unwrap();
        Self { root, issuer }
    }

    fn node_at(&self, name: &NodeName, registrar: bool, now: u64) -> Identity {
        let key = NodeKey::generate().unwrap();
        let chain =
            self.issuer.certify(name, &key.public(), registrar, now, LEAF_LIFE_SECS).unwrap();
        Identity::new(key, chain, self.root.certificate().clone()).unwrap()
    }

    fn node(&self, name: &NodeName) -> Identity {
        self.node_at(name, false, NOW)
    }
}

/// A self-made certificate with these names, for what an issuer of ours never signs.
fn odd_certificate(names: Vec<SanType>) -> Vec<CertificateDer<'static>> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    vec![params.self_signed(&key).unwrap().der().clone()]
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

#[test]
fn every_wrong_combination_is_refused_by_its_code() {
    use RefusalCode as Code;
    let mesh = Mesh::new("m");
    let (r1, t1) = (mesh.node(&relay("r1")), mesh.node(&terminal("t1")));
    let (r2, t2) = (mesh.node(&relay("r2")), mesh.node(&terminal("t2")));
    let other = Mesh::new("other").node(&relay("r2"));
    let late = mesh.node_at(&relay("r2"), false, NOW - LEAF_LIFE_SECS - 1);
    let early = mesh.node_at(&relay("r2"), false, NOW + 3 * DAY);
    let nobody = |_: &KeyFingerprint| false;
    let everybody = |_: &KeyFingerprint| true;
    let two = odd_certificate(vec![dns("r2.relay.m.tasuki"), dns("r3.relay.m.tasuki")]);
    let mixed = odd_certificate(vec![
        dns("r2.relay.m.tasuki"),
        SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
    ]);
    let none = odd_certificate(vec![]);
    let stranger = odd_certificate(vec![dns("www.example.org")]);
    let deeper = odd_certificate(vec![dns("a.r2.relay.m.tasuki")]);
    let wild = odd_certificate(vec![dns("*.relay.m.tasuki")]);
    let rubbish = vec![CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])];

    type Chain<'a> = &'a [CertificateDer<'a>];
    let roles: &[(Alpn, &Identity, &Identity, Result<(), Code>)] = &[
        (Alpn::Link, &r1, &r2, Ok(())),
        (Alpn::Link, &r1, &t1, Err(Code::WrongRole)),
        (Alpn::Link, &t1, &r1, Err(Code::WrongRole)),
        (Alpn::Link, &t1, &t2, Err(Code::WrongRole)),
        (Alpn::Attachment, &r1, &t1, Ok(())),
        (Alpn::Attachment, &t1, &r1, Ok(())),
        (Alpn::Attachment, &r1, &r2, Err(Code::WrongRole)),
        (Alpn::Attachment, &t1, &t2, Err(Code::WrongRole)),
        (Alpn::Session, &t1, &t2, Ok(())),
        (Alpn::Session, &t1, &r1, Err(Code::WrongRole)),
        (Alpn::Session, &r1, &t1, Err(Code::WrongRole)),
        (Alpn::Session, &r1, &r2, Err(Code::WrongRole)),
        (Alpn::Enrolment, &t1, &r1, Ok(())),
        (Alpn::Enrolment, &r1, &r2, Ok(())),
        (Alpn::Enrolment, &t1, &t2, Err(Code::WrongRole)),
        (Alpn::Enrolment, &r1, &t1, Err(Code::WrongRole)),
    ];
    for (alpn, ours, peer, expected) in roles {
        let found = identify_peer(*alpn, peer.chain(), &ours.ours(), None, &nobody, NOW);
        let case = format!("{alpn:?}: {} asks who {} is", ours.name(), peer.name());
        assert_eq!(found.map(drop), *expected, "{case}");
        // The right name changes nothing, a wrong one is refused where the role was right.
        let named = |name: &NodeName| {
            identify_peer(*alpn, peer.chain(), &ours.ours(), Some(name), &nobody, NOW).map(drop)
        };
        assert_eq!(named(peer.name()), *expected, "{case}, named");
        let wrong = expected.and(Err(Code::WrongName));
        for name in [relay("r9"), terminal("r9"), terminal("r2"), relay("t1")] {
            assert_eq!(named(&name), wrong, "{case}, expecting {name}");
        }
    }

    let cases: &[(&str, Chain<'_>, Code)] = &[
        ("no certificate", &[], Code::CertificateMissing),
        ("two names", &two, Code::BadCertificate),
        ("a name and an address", &mixed, Code::BadCertificate),
        ("no name", &none, Code::BadCertificate),
        ("another kind of name", &stranger, Code::BadCertificate),
        ("a name below an identity", &deeper, Code::BadCertificate),
        ("a wildcard", &wild, Code::BadCertificate),
        ("rubbish", &rubbish, Code::BadCertificate),
        ("another mesh", other.chain(), Code::WrongMesh),
        ("expired", late.chain(), Code::CertificateExpired),
        ("not yet valid", early.chain(), Code::CertificateNotYetValid),
    ];
    for (case, chain, code) in cases {
        let found = identify_peer(Alpn::Link, chain, &r1.ours(), None, &nobody, NOW);
        assert_eq!(found, Err(*code), "{case}");
    }
    let revoked = identify_peer(Alpn::Link, r2.chain(), &r1.ours(), None, &everybody, NOW);
    assert_eq!(revoked, Err(Code::Revoked));
    let only = |key: &KeyFingerprint| *key == r2.fingerprint();
    assert!(identify_peer(Alpn::Attachment, t1.chain(), &r1.ours(), None, &only, NOW).is_ok());
    assert_eq!(
        identify_peer(Alpn::Link, r2.chain(), &r1.ours(), None, &only, NOW),
        Err(Code::Revoked)
    );
}

#[test]
fn the_registrar_role_is_read_from_a_relays_certificate_alone() {
    let mesh = Mesh::new("m");
    let nobody = |_: &KeyFingerprint| false;
    let ours = mesh.node(&relay("r1"));
    let peer = mesh.node_at(&relay("r2"), true, NOW);
    let found = identify_peer(Alpn::Link, peer.chain(), &ours.ours(), None, &nobody, NOW).unwrap();
    assert!(found.registrar);
    assert_eq!(found.not_after, NOW + LEAF_LIFE_SECS);
    assert_eq!(found.key, peer.fingerprint());
    assert_eq!(found.relay().map(RelayName::as_str), Some("r2"));
    let peer = mesh.node_at(&terminal("t1"), true, NOW);
    let found = identify_peer(Alpn::Attachment, peer.chain(), &ours.ours(), None, &nobody, NOW);
    assert!(!found.unwrap().registrar);
}

#[test]
fn an_issuer_cannot_sign_for_another_mesh_and_a_leaf_cannot_sign() {
    let mesh = Mesh::new("m");
    let key = NodeKey::generate().unwrap();
    // The issuer's key, used outside of its constraint.
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![dns("r1.relay.n.tasuki")];
    params.not_before = rcgen::date_time_ymd(2030, 1, 1);
    params.not_after = rcgen::date_time_ymd(2034, 1, 1);
    let issuer_certificate =
        mesh.issuer.certify(&relay("x"), &key.public(), false, NOW, 1).unwrap().remove(1);
    let signer =
        rcgen::Issuer::from_ca_cert_der(&issuer_certificate, mesh.issuer.key().rcgen()).unwrap();
    let outside = params.signed_by(key.rcgen(), &signer).unwrap().der().clone();
    let chain = [outside, issuer_certificate];
    assert_eq!(
        verify_chain_when_valid(&chain, mesh.root.certificate(), NOW),
        Err(RefusalCode::BadCertificate)
    );

    let node = mesh.node(&relay("r1"));
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, "r1");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![dns("r2.relay.m.tasuki")];
    params.distinguished_name = distinguished_name;
    let signer = rcgen::Issuer::from_ca_cert_der(&node.chain()[0], node.key().rcgen()).unwrap();
    let below = params.signed_by(key.rcgen(), &signer).unwrap().der().clone();
    let chain = [below, node.chain()[0].clone(), node.chain()[1].clone()];
    assert!(verify_chain_when_valid(&chain, mesh.root.certificate(), NOW).is_err());
}

#[test]
fn a_chain_is_checked_at_a_time_when_it_was_valid() {
    let mesh = Mesh::new("m");
    let node = mesh.node(&terminal("t1"));
    let root = mesh.root.certificate();
    for now in [NOW, NOW + LEAF_LIFE_SECS, NOW + 1000 * DAY] {
        assert!(verify_chain_when_valid(node.chain(), root, now).is_ok(), "{now}");
    }
    let before = NOW - 3 * DAY;
    let verdict = verify_chain_when_valid(node.chain(), root, before);
    assert_eq!(verdict.map(drop), Err(RefusalCode::CertificateNotYetValid));
    let other = Mesh::new("m");
    let verdict = verify_chain_when_valid(node.chain(), other.root.certificate(), NOW);
    assert_eq!(verdict.map(drop), Err(RefusalCode::WrongMesh));
}

#[test]
fn a_leaf_never_outlives_its_issuer() {
    let mesh = Mesh::new("m");
    let late = mesh.issuer.not_after() - DAY;
    let node = mesh.node_at(&relay("r1"), false, late);
    assert_eq!(node.not_after(), mesh.issuer.not_after());
    assert!(mesh.issuer.wants_renewal(late) && !mesh.issuer.wants_renewal(NOW));
    let renewed = mesh.root.renew(&mesh.issuer, late).unwrap();
    assert_eq!((renewed.term(), renewed.key().public()), node.authority_key());
    assert!(!renewed.wants_renewal(late));
    assert!(Mesh::new("m").root.renew(&mesh.issuer, late).is_err());
}

#[test]
fn identities_come_back_from_disk_and_stay_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("new/data");
    assert!(Identity::load(&data).unwrap().is_none());
    let mesh = Mesh::new("m");
    let node = mesh.node_at(&relay("r1"), true, NOW);
    node.save(&data).unwrap();
    let again = Identity::load(&data).unwrap().unwrap();
    assert_eq!(again.name(), node.name());
    assert_eq!(again.fingerprint(), node.fingerprint());
    assert_eq!(again.mesh_id(), node.mesh_id());
    assert_eq!(again.chain(), node.chain());
    assert_eq!(again.authority_key(), (Incarnation(3), mesh.issuer.key().public()));
    assert!(again.is_registrar());
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&data) & 0o777, 0o700);
    assert_eq!(mode(&data.join(Identity::FILE)) & 0o777, 0o600);
    let files: Vec<_> = std::fs::read_dir(&data).unwrap().collect();
    assert_eq!(files.len(), 1, "no temporary file stays behind");

    mesh.root.save(&data).unwrap();
    mesh.issuer.save(&data).unwrap();
    let root = Root::load(&data).unwrap().unwrap();
    assert_eq!(root.fingerprint(), mesh.root.fingerprint());
    let issuer = Issuer::load(&data, &mesh_name("m")).unwrap().unwrap();
    assert_eq!(issuer.mesh_id(), node.mesh_id());
    assert_eq!(issuer.term(), Incarnation(3));

    std::fs::write(data.join(Identity::FILE), "-----BEGIN PRIVATE KEY-----\n").unwrap();
    assert!(Identity::load(&data).is_err());
}

#[test]
fn an_identity_is_not_put_together_from_parts_of_two() {
    let mesh = Mesh::new("m");
    let node = mesh.node(&relay("r1"));
    let root = mesh.root.certificate().clone();
    let another = || NodeKey::generate().unwrap();
    assert!(Identity::new(another(), node.chain().to_vec(), root.clone()).is_err());
    assert!(Identity::new(another(), vec![], root).is_err());
    assert!(node.renewed(mesh.node(&relay("r1")).chain().to_vec()).is_err(), "another key");
    let chain = |name: &str| {
        mesh.issuer
            .certify(&relay(name), &node.key().public(), false, NOW + DAY, LEAF_LIFE_SECS)
            .unwrap()
    };
    assert!(node.renewed(chain("r2")).is_err(), "another name");
    assert_eq!(node.renewed(chain("r1")).unwrap().not_after(), node.not_after() + DAY);
}

#[test]
fn the_clock_never_goes_below_its_mark() {
    let clock = Clock::manual(NOW);
    assert_eq!(clock.advance_mark(NOW + DAY), NOW);
    clock.set(NOW - DAY);
    assert_eq!((clock.now_secs(), clock.behind_secs()), (NOW, DAY));
    clock.set(NOW + 100 * DAY);
    assert_eq!(clock.advance_mark(NOW + DAY), NOW + DAY, "not beyond the own certificate");
    assert_eq!(clock.behind_secs(), 0);
    clock.set(NOW);
    assert_eq!(clock.now_secs(), NOW + DAY);
    assert!(Clock::system(0).now_secs() > 1_700_000_000);
    assert_eq!(Clock::system(u64::MAX).now_secs(), u64::MAX);
}

// Handshakes.

fn endpoint(server: Option<quinn::ServerConfig>) -> quinn::Endpoint {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    match server {
        Some(config) => quinn::Endpoint::server(config, any).unwrap(),
        None => quinn::Endpoint::client(any).unwrap(),
    }
}

/// What both sides of a handshake come to: the connection, or the code that people see.
type Outcome = Result<quinn::Connection, Option<RefusalCode>>;

struct Pair {
    server: quinn::Endpoint,
    client: quinn::Endpoint,
}

impl Pair {
    fn new(server: &IdentityCell, clock: &Clock) -> Self {
        let config = quinn_server_config(server, &Alpn::ALL, clock).unwrap();
        Self { server: endpoint(Some(config)), client: endpoint(None) }
    }

    async fn shake(&self, config: quinn::ClientConfig, name: &str) -> (Outcome, Outcome) {
        let address = self.server.local_addr().unwrap();
        let dial = async {
            let dialled = self.client.connect_with(config, address, name).unwrap().await;
            let connection = dialled.map_err(|error| connection_refusal(&error))?;
            // A client is done before the server has looked at its certificate (RFC 8446, section 2).
            match connection.accept_uni().await {
                Ok(_) => Ok(connection),
                Err(error) => Err(connection_refusal(&error)),
            }
        };
        let answer = async {
            let accepted = self.server.accept().await.unwrap().await;
            let connection = accepted.map_err(|error| connection_refusal(&error))?;
            let mut stream = connection.open_uni().await.unwrap();
            stream.write_all(b"!").await.unwrap();
            Ok(connection)
        };
        tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(dial, answer) })
            .await
            .expect("the handshake ends")
    }
}

#[tokio::test]
async fn both_ends_know_each_other_after_a_handshake() {
    let (mesh, clock) = (Mesh::new("m"), Clock::manual(NOW));
    let server = IdentityCell::new(mesh.node(&relay("r1")));
    let client = IdentityCell::new(mesh.node(&terminal("t1")));
    let pair = Pair::new(&server, &clock);
    let config = quinn_client_config(&client, Alpn::Attachment, &clock).unwrap();
    let (dialled, accepted) = pair.shake(config, "r1.relay.m.tasuki").await;
    let nobody = |_: &KeyFingerprint| false;
    let (alpn, peer) =
        identify_connection(&dialled.unwrap(), &client.get(), Some(&relay("r1")), &nobody, NOW)
            .unwrap();
    assert_eq!((alpn, peer.name), (Alpn::Attachment, relay("r1")));
    let accepted = accepted.unwrap();
    let (_, peer) = identify_connection(&accepted, &server.get(), None, &nobody, NOW).unwrap();
    assert_eq!((peer.name, peer.key), (terminal("t1"), client.get().fingerprint()));
    let as_relay = identify_connection(&accepted, &server.get(), Some(&relay("r2")), &nobody, NOW);
    assert_eq!(as_relay, Err(RefusalCode::WrongName));
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_from_the_next_handshake_on() {
    let (mesh, clock) = (Mesh::new("m"), Clock::manual(NOW));
    let server = IdentityCell::new(mesh.node(&relay("r1")));
    let client = IdentityCell::new(mesh.node(&relay("r2")));
    let pair = Pair::new(&server, &clock);
    let config = quinn_client_config(&client, Alpn::Link, &clock).unwrap();
    let until = async || {
        let (dialled, accepted) = pair.shake(config.clone(), "r1.relay.m.tasuki").await;
        let nobody = |_: &KeyFingerprint| false;
        let now = clock.now_secs();
        let (_, one) =
            identify_connection(&dialled.unwrap(), &client.get(), None, &nobody, now).unwrap();
        let (_, two) =
            identify_connection(&accepted.unwrap(), &server.get(), None, &nobody, now).unwrap();
        (one.not_after, two.not_after)
    };
    let end = NOW + LEAF_LIFE_SECS;
    assert_eq!(until().await, (end, end));
    clock.set(NOW + DAY);
    for cell in [&server, &client] {
        let old = cell.get();
        let chain =
            mesh.issuer.certify(old.name(), &old.key().public(), false, NOW + DAY, LEAF_LIFE_SECS);
        cell.renew(old.renewed(chain.unwrap()).unwrap());
    }
    assert_eq!(until().await, (end + DAY, end + DAY));
}

#[tokio::test]
async fn handshakes_fail_with_a_code_for_people_on_both_sides() {
    let mesh = Mesh::new("m");
    let clock = Clock::manual(NOW);
    let cell = |identity| IdentityCell::new(identity);
    let good = cell(mesh.node(&relay("r1")));
    let late = cell(mesh.node_at(&relay("r1"), false, NOW - LEAF_LIFE_SECS - 1));
    // The same name in another mesh of the same name.
    let other = cell(Mesh::new("m").node(&relay("r1")));
    let peer = cell(mesh.node(&relay("r2")));
    let right = "r1.relay.m.tasuki";
    let cases = [
        ("expired server", &late, &peer, right, RefusalCode::CertificateExpired),
        ("expired client", &peer, &late, "r2.relay.m.tasuki", RefusalCode::CertificateExpired),
        ("server of another mesh", &other, &peer, right, RefusalCode::WrongMesh),
        ("client of another mesh", &peer, &other, "r2.relay.m.tasuki", RefusalCode::WrongMesh),
        ("another name", &good, &peer, "r3.relay.m.tasuki", RefusalCode::WrongName),
        ("another role", &good, &peer, "r1.terminal.m.tasuki", RefusalCode::WrongName),
    ];
    for (case, server, client, name, code) in cases {
        let pair = Pair::new(server, &clock);
        let config = quinn_client_config(client, Alpn::Link, &clock).unwrap();
        let (dialled, accepted) = pair.shake(config, name).await;
        assert_eq!(dialled.map(drop), Err(Some(code)), "{case}, who dials");
        assert_eq!(accepted.map(drop), Err(Some(code)), "{case}, who is dialled");
    }
}

#[tokio::test]
async fn a_newcomer_trusts_a_fingerprint_alone_and_is_nobody() {
    let (mesh, clock) = (Mesh::new("m"), Clock::manual(NOW));
    let server = IdentityCell::new(mesh.node(&relay("r1")));
    let pair = Pair::new(&server, &clock);
    let name = "r1.relay.m.tasuki";
    let config = quinn_newcomer_config(mesh.root.fingerprint(), &clock).unwrap();
    let (dialled, accepted) = pair.shake(config.clone(), name).await;
    assert!(dialled.is_ok());
    let accepted = accepted.unwrap();
    assert_eq!(connection_alpn(&accepted), Ok(Alpn::Enrolment));
    let nobody = |_: &KeyFingerprint| false;
    let peer = identify_connection(&accepted, &server.get(), None, &nobody, NOW);
    assert_eq!(peer, Err(RefusalCode::CertificateMissing));

    let (dialled, _) = pair.shake(config, "r2.relay.m.tasuki").await;
    assert_eq!(dialled.map(drop), Err(Some(RefusalCode::WrongName)));
    let wrong = quinn_newcomer_config(KeyFingerprint([7; 32]), &clock).unwrap();
    let (dialled, _) = pair.shake(wrong, name).await;
    assert_eq!(dialled.map(drop), Err(Some(RefusalCode::WrongMesh)));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_nobody_on_any_protocol() {
    let (mesh, clock) = (Mesh::new("m"), Clock::manual(NOW));
    let server = IdentityCell::new(mesh.node(&relay("r1")));
    let client = IdentityCell::new(mesh.node(&relay("r2")));
    let pair = Pair::new(&server, &clock);
    for alpn in Alpn::ALL {
        let mut config = client_config(&client, Alpn::Enrolment, &clock).unwrap();
        config.alpn_protocols = vec![alpn.wire().to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        let config = quinn::ClientConfig::new(std::sync::Arc::new(crypto));
        let (_, accepted) = pair.shake(config, "r1.relay.m.tasuki").await;
        let accepted = accepted.unwrap();
        assert_eq!(connection_alpn(&accepted), Ok(alpn));
        let peer = identify_connection(&accepted, &server.get(), None, &|_| false, NOW);
        assert_eq!(peer, Err(RefusalCode::CertificateMissing), "{alpn:?}");
    }
}

#[test]
fn configurations_keep_no_session_and_take_no_early_data() {
    let (mesh, clock) = (Mesh::new("m"), Clock::manual(NOW));
    let cell = IdentityCell::new(mesh.node(&relay("r1")));
    let server = server_config(&cell, &Alpn::ALL, &clock).unwrap();
    assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
    assert!(!server.session_storage.can_cache());
    let client = client_config(&cell, Alpn::Link, &clock).unwrap();
    assert!(!client.enable_early_data && !client.enable_sni);
}

mod token {
    use proptest::prelude::*;

    use super::super::*;
    use super::{mesh_name, terminal};
    use crate::control::RelayContact;
    use crate::id::{MeshId, RelayName, TerminalId};
    use crate::limits;

    fn contact(name: &str) -> RelayContact {
        RelayContact {
            name: RelayName::new(name).unwrap(),
            addresses: vec!["r1.example.net:4433".into(), "[2001:db8::1]:4433".into()],
            draining: false,
        }
    }

    fn token(made_for: TokenFor) -> Token {
        let relays = (1..9).map(|n| contact(&format!("r{n}"))).collect();
        Token::generate(KeyFingerprint([9; 32]), mesh_name("m"), made_for, relays).unwrap()
    }

    #[test]
    fn it_is_one_word_that_begins_with_a_letter_and_comes_back() {
        for made_for in [TokenFor::Relay, TokenFor::Terminal(TerminalId::new("t1").unwrap())] {
            let token = token(made_for.clone());
            let word = token.to_word();
            assert!(word.starts_with("tk1"));
            assert!(word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
            for word in [word.to_string(), format!(" {}\n", *word)] {
                let again = Token::from_word(&word).unwrap();
                assert_eq!(again.made_for, made_for);
                assert_eq!(again.id, token.id);
                assert_eq!(again.secret.as_bytes(), token.secret.as_bytes());
                assert_eq!((again.root, again.mesh), (token.root, token.mesh.clone()));
                assert_eq!(again.relays.len(), limits::TOKEN_RELAYS);
            }
            assert!(!format!("{token:?}").contains(&format!("{:?}", token.secret.as_bytes())));
        }
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let word = token(TokenFor::Relay).to_word().to_string();
        for at in 0..word.len() {
            let mut damaged = word.clone().into_bytes();
            damaged[at] = if damaged[at] == b'a' { b'b' } else { b'a' };
            assert!(Token::from_word(std::str::from_utf8(&damaged).unwrap()).is_err(), "{at}");
            assert!(Token::from_word(&word[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(Token::from_word("hello").unwrap_err(), TokenError::NotAToken);
        let long = format!("tk1{}", "a".repeat(limits::TOKEN_CHARACTERS + 8));
        assert_eq!(Token::from_word(&long).unwrap_err(), TokenError::Damaged);
    }

    #[test]
    fn a_proof_is_bound_to_mesh_token_request_and_secret() {
        let token = token(TokenFor::Relay);
        let (mesh, id) = (token.root.mesh_id(), token.id);
        let proof = token.secret.prove(&mesh, &id, b"request");
        assert!(token.secret.is_proven(&mesh, &id, b"request", &proof));
        assert!(!token.secret.is_proven(&mesh, &id, b"requesT", &proof));
        assert!(!token.secret.is_proven(&MeshId([0; 16]), &id, b"request", &proof));
        assert!(!token.secret.is_proven(&mesh, &TokenId([0; 16]), b"request", &proof));
        assert!(!token.secret.is_proven(&mesh, &id, b"request", &proof[..31]));
        assert!(!TokenSecret::from_bytes([0; 32]).is_proven(&mesh, &id, b"request", &proof));
    }

    #[test]
    fn a_signing_request_gives_its_key_and_nothing_else() {
        let key = NodeKey::generate().unwrap();
        let mut csr = key.signing_request().unwrap();
        assert_eq!(NodeKey::requested(&csr), Some(key.public()));
        for at in 0..csr.len() {
            csr[at] ^= 1;
            let found = NodeKey::requested(&csr);
            csr[at] ^= 1;
            // What comes behind the key is the proof and how it is encoded.
            let signed = csr.windows(32).position(|part| part == key.public()).unwrap() + 32;
            assert!(found.is_none() || at >= signed && found == Some(key.public()), "{at}");
        }
        let p256 = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&p256).unwrap();
        assert_eq!(NodeKey::requested(csr.der()), None);
    }

    proptest! {
        #[test]
        fn no_word_makes_it_panic(word in "tk1[a-z2-7A-Z]{0,400}|\\PC{0,80}") {
            let _ = Token::from_word(&word);
        }

        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            // With a sound check sum, so that the sections are reached.
            let check = ring::digest::digest(&ring::digest::SHA256, &body);
            let bytes = [&body[..], &check.as_ref()[..4]].concat();
            let word = data_encoding::BASE32_NOPAD.encode(&bytes);
            let _ = Token::from_word(&format!("tk1{word}"));
            let _ = NodeKey::requested(&body);
            let _ = CertificateFacts::read(&body.into());
        }

        #[test]
        fn names_come_back_from_certificates(name in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", other in "\\PC{0,60}") {
            let (node, mesh) = (terminal(&name), mesh_name(&name));
            prop_assert_eq!(NodeName::from_dns_name(&node.dns_name(&mesh)), Some((node, mesh)));
            let _ = NodeName::from_dns_name(&other);
        }
    }
}
