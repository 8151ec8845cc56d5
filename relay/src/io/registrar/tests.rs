//! Found a mesh, hand out tokens, join and enrol over QUIC on loopback, and every refusal.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tasuki_proto::dial::Dialler;
use tasuki_proto::enrolment::{
    Enrol, EnrolError, Enrolled, FromRegistrar, Newcomer, PendingKey, enrol, keep_renewed, renew,
};
use tasuki_proto::identity::{IdentityError, NodeKey, PublicKey, quinn_server_config};
use tasuki_proto::record::RecordKind;
use tasuki_proto::rows::{self, AccountRow, RelayAccountRow, RevocationRow};
use tasuki_proto::version::Alpn;
use tasuki_proto::{MeshName, RelayId, TerminalId};

use super::*;

const DAY: u64 = 86_400;

fn relay(name: &str) -> NodeName {
    NodeName::Relay(RelayName::new(name).unwrap())
}

fn terminal(name: &str) -> NodeName {
    NodeName::Terminal(TerminalId::new(name).unwrap())
}

fn order(made_for: &NodeName) -> TokenOrder {
    TokenOrder {
        made_for: match made_for {
            NodeName::Relay(_) => TokenFor::Relay,
            NodeName::Terminal(id) => TokenFor::Terminal(id.clone()),
        },
        kind: "plc".into(),
        attributes: [("site".to_owned(), "osaka".to_owned())].into(),
        groups: vec!["plants".into()],
        life: TOKEN_LIFE,
    }
}

/// A mesh of one relay that answers newcomers on loopback.
struct Mesh {
    data: tempfile::TempDir,
    registrar: Registrar,
    clock: Clock,
    records: mpsc::Receiver<Record>,
    endpoint: quinn::Endpoint,
}

impl Mesh {
    /// Founded `age` seconds ago.
    async fn new(name: &str, age: u64) -> Self {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path()).unwrap();
        let now = Clock::system(0).now_secs();
        // The endpoint first: its port goes into the tokens.
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let mesh = MeshName::new(name).unwrap();
        let r1 = RelayName::new("r1").unwrap();
        let addresses = vec![address.to_string()];
        let identity =
            Registrar::found(data.path(), &store, &mesh, r1, addresses, now - age).await.unwrap();
        identity.save(data.path()).unwrap();
        let clock = Clock::manual(now - age);
        let cell = IdentityCell::new(identity);
        let (sender, records) = mpsc::channel(1000);
        let registrar =
            Registrar::open(data.path(), cell.clone(), store, clock.clone(), sender).await;
        let registrar = registrar.unwrap().unwrap();
        let config = quinn_server_config(&cell, &Alpn::ALL, &clock).unwrap();
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint =
            quinn::Endpoint::new(quinn::EndpointConfig::default(), Some(config), socket, runtime);
        let this = Self { data, registrar, clock, records, endpoint: endpoint.unwrap() };
        this.serve();
        this
    }

    fn serve(&self) {
        let (endpoint, registrar) = (self.endpoint.clone(), self.registrar.clone());
        let gate = Arc::new(Gate::new(self.registrar.0.cell.clone(), self.clock.clone()));
        let ask = move |request| {
            let registrar = registrar.clone();
            async move { Some(registrar.answer(request).await) }
        };
        let service = Arc::new(EnrolmentService::new(ask, gate));
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        service.serve(connection).await;
                    }
                });
            }
        });
    }

    async fn token(&self, made_for: &NodeName) -> Token {
        let word = self.registrar.make_token(order(made_for)).await.unwrap();
        Token::from_word(&word).unwrap()
    }

    async fn enrol(
        &self,
        token: &Token,
        key: NodeKey,
        name: &NodeName,
    ) -> Result<Enrolled, Refusal> {
        let addresses = match name {
            NodeName::Relay(_) => vec!["relay.example.net:4433".to_owned()],
            NodeName::Terminal(_) => Vec::new(),
        };
        let enrolled = enrol(token, key, name, addresses, &self.clock);
        let enrolled = tokio::time::timeout(Duration::from_secs(20), enrolled).await.unwrap();
        enrolled.map_err(refusal)
    }

    async fn code(&self, token: &Token, name: &NodeName) -> RefusalCode {
        let key = NodeKey::generate().unwrap();
        self.enrol(token, key, name).await.unwrap_err().code
    }

    async fn renew(&self, identity: &Identity, relays: &Token) -> Result<Enrolled, Refusal> {
        renew(identity, &relays.relays, &Dialler::default(), &self.clock).await.map_err(refusal)
    }

    /// The records that came out since the last call; each is checked as a relay would.
    fn records(&mut self) -> Vec<Record> {
        let own = self.registrar.0.cell.get();
        let (term, key) = own.authority_key();
        let mut out: Vec<Record> = Vec::new();
        while let Ok(record) = self.records.try_recv() {
            assert!(record.is_signed_by(&own.mesh_id(), &key), "{record:?}");
            assert_eq!((record.origin(), record.version().incarnation), (RelayId::AUTHORITY, term));
            out.push(record);
        }
        assert!(out.is_sorted_by_key(Record::version), "in the order of versions: {out:?}");
        out
    }
}

fn refusal(error: EnrolError) -> Refusal {
    match error {
        EnrolError::Refused(refusal) => refusal,
        other => panic!("not a refusal: {other}"),
    }
}

fn key() -> NodeKey {
    NodeKey::generate().unwrap()
}

fn pending() -> (tempfile::TempDir, PendingKey) {
    let dir = tempfile::tempdir().unwrap();
    let pending = PendingKey::load_or_make(dir.path()).unwrap();
    (dir, pending)
}

#[tokio::test]
async fn a_terminal_enrols_and_its_account_goes_out() {
    let mut mesh = Mesh::new("m", 0).await;
    let name = terminal("plant7");
    let token = mesh.token(&name).await;
    let made = mesh.records();
    assert_eq!(made.len(), 1);
    let account: AccountRow = rows::read(made[0].payload()).unwrap();
    assert_eq!((account.key, account.kind.as_str()), (None, "plc"));
    assert_eq!((made[0].kind(), made[0].key()), (RecordKind::ACCOUNT, &b"plant7"[..]));

    let enrolled = mesh.enrol(&token, key(), &name).await.unwrap();
    assert_eq!(enrolled.identity.name(), &name);
    assert!(!enrolled.identity.is_registrar());
    let names: Vec<_> = enrolled.relays.iter().map(|relay| relay.name.as_str()).collect();
    assert_eq!(names, ["r1"]);
    let records = mesh.records();
    let row: AccountRow = rows::read(records[0].payload()).unwrap();
    assert_eq!(row.key, Some(PublicKey(enrolled.identity.key().public())));
    assert_eq!(row, AccountRow { key: row.key, ..account }, "the rest stays");
}

#[tokio::test]
async fn a_relay_joins_and_everybody_after_it_hears_of_it() {
    let mut mesh = Mesh::new("m", 0).await;
    let token = mesh.token(&relay("any")).await;
    assert!(mesh.records().is_empty(), "a relay's token registers nothing");
    let joined = mesh.enrol(&token, key(), &relay("r2")).await.unwrap();
    assert_eq!(joined.identity.name(), &relay("r2"));
    let records = mesh.records();
    let row: RelayAccountRow = rows::read(records[0].payload()).unwrap();
    assert_eq!(row.addresses, ["relay.example.net:4433"]);
    assert_eq!((row.key.fingerprint(), row.registrar), (joined.identity.fingerprint(), false));
    let later = mesh.token(&terminal("t1")).await;
    let names: Vec<_> = later.relays.iter().map(|relay| relay.name.to_string()).collect();
    assert_eq!(names, ["r1", "r2"], "the registrar first");
}

#[tokio::test]
async fn every_refusal_has_its_code() {
    use RefusalCode as Code;
    let mesh = Mesh::new("m", 0).await;
    let t1 = terminal("t1");
    let good = mesh.token(&t1).await;

    let unknown = Token { id: tasuki_proto::identity::TokenId([7; 16]), ..good.clone() };
    assert_eq!(mesh.code(&unknown, &t1).await, Code::TokenUnknown);
    let secret = tasuki_proto::identity::TokenSecret::from_bytes([7; 32]);
    assert_eq!(mesh.code(&Token { secret, ..good.clone() }, &t1).await, Code::TokenProof);
    assert_eq!(mesh.code(&good, &relay("t1")).await, Code::TokenKind);
    assert_eq!(mesh.code(&good, &terminal("t2")).await, Code::TokenKind);
    let for_relay = mesh.token(&relay("any")).await;
    assert_eq!(mesh.code(&for_relay, &terminal("t3")).await, Code::TokenKind);
    assert_eq!(mesh.code(&for_relay, &relay("r1")).await, Code::NameTaken);
    assert_eq!(mesh.code(&for_relay, &relay("t1")).await, Code::NameTaken, "a terminal has it");

    // None of that used a token up.
    mesh.enrol(&for_relay, key(), &relay("r2")).await.unwrap();
    mesh.enrol(&good, key(), &t1).await.unwrap();
    assert_eq!(mesh.code(&good, &t1).await, Code::TokenUsed);
    assert_eq!(mesh.code(&for_relay, &relay("r3")).await, Code::TokenUsed);
    let taken = mesh.registrar.make_token(order(&t1)).await.unwrap_err();
    assert_eq!(taken.code, Code::NameTaken);
    let taken = mesh.registrar.make_token(order(&terminal("r2"))).await.unwrap_err();
    assert_eq!(taken.code, Code::NameTaken, "a relay has it");

    let short = TokenOrder { life: Duration::ZERO, ..order(&terminal("t4")) };
    let word = mesh.registrar.make_token(short).await.unwrap();
    let expired = Token::from_word(&word).unwrap();
    let made = wall_ms();
    while wall_ms() <= made {
        tokio::task::yield_now().await;
    }
    assert_eq!(mesh.code(&expired, &terminal("t4")).await, Code::TokenExpired);

    // A token of one mesh at the relay of another, under the same names.
    let other = Mesh::new("m", 0).await;
    let elsewhere = Token {
        relays: mesh.token(&terminal("t5")).await.relays,
        ..other.token(&terminal("t5")).await
    };
    assert_eq!(mesh.code(&elsewhere, &terminal("t5")).await, Code::WrongMesh);
}

#[tokio::test]
async fn a_newer_token_for_an_unused_name_voids_the_older() {
    let mesh = Mesh::new("m", 0).await;
    let t1 = terminal("t1");
    let (old, new) = (mesh.token(&t1).await, mesh.token(&t1).await);
    assert_eq!(mesh.code(&old, &t1).await, RefusalCode::TokenUnknown);
    mesh.enrol(&new, key(), &t1).await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_burns_nothing() {
    let mut mesh = Mesh::new("m", 0).await;
    let (name, (_dir, pending)) = (relay("r2"), pending());
    let token = mesh.token(&name).await;
    let first = mesh.enrol(&token, pending.key().unwrap(), &name).await.unwrap();
    mesh.records();
    let second = mesh.enrol(&token, pending.key().unwrap(), &name).await.unwrap();
    assert_eq!(first.identity.chain(), second.identity.chain());
    assert!(mesh.records().is_empty(), "and changes nothing");
    let other = mesh.enrol(&token, pending.key().unwrap(), &relay("r3")).await.unwrap_err();
    assert_eq!(other.code, RefusalCode::TokenUsed);
    // The same key under a second name.
    let another = mesh.token(&relay("any")).await;
    let other = mesh.enrol(&another, pending.key().unwrap(), &relay("r3")).await.unwrap_err();
    assert_eq!(other.code, RefusalCode::BadRequest);
}

#[tokio::test]
async fn two_at_once_with_one_token_and_one_gets_it() {
    let mesh = Mesh::new("m", 0).await;
    let name = terminal("t1");
    let token = mesh.token(&name).await;
    let tries = (0..8).map(|_| mesh.enrol(&token, key(), &name));
    let results = futures_util::future::join_all(tries).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    let used = |result: &&Result<_, Refusal>| {
        result.as_ref().is_err_and(|refusal| refusal.code == RefusalCode::TokenUsed)
    };
    assert_eq!(results.iter().filter(used).count(), 7);
}

#[tokio::test]
async fn certificates_are_renewed_also_after_they_ended_until_revoked() {
    let mut mesh = Mesh::new("m", 100 * DAY).await;
    let start = mesh.clock.now_secs();
    let name = terminal("t1");
    let token = mesh.token(&name).await;
    let identity = mesh.enrol(&token, key(), &name).await.unwrap().identity;
    let fresh = mesh.renew(&identity, &token).await.unwrap().identity;
    assert_eq!(fresh.chain(), identity.chain(), "a fresh one is given again");

    mesh.clock.set(start + 21 * DAY);
    mesh.registrar.tend().await;
    let renewed = mesh.renew(&identity, &token).await.unwrap().identity;
    assert_eq!(renewed.not_after(), identity.not_after() + 21 * DAY);
    assert_eq!(renewed.fingerprint(), identity.fingerprint());

    // Long after both ended; the registrar's own was renewed by itself.
    mesh.clock.set(start + 90 * DAY);
    mesh.registrar.tend().await;
    let late = mesh.renew(&identity, &token).await.unwrap().identity;
    assert_eq!(late.not_after(), identity.not_after() + 90 * DAY);

    mesh.records();
    assert_eq!(mesh.registrar.revoke_name("t1").await, Ok(1));
    let records = mesh.records();
    let kinds: Vec<_> = records.iter().map(Record::kind).collect();
    assert_eq!(kinds, [RecordKind::REVOCATION, RecordKind::ACCOUNT]);
    assert_eq!(records[0].key(), identity.fingerprint().0);
    let row: RevocationRow = rows::read(records[0].payload()).unwrap();
    assert_eq!(row.name, "t1");
    for identity in [&identity, &late] {
        let refused = mesh.renew(identity, &token).await.unwrap_err();
        assert_eq!(refused.code, RefusalCode::Revoked);
    }
    // A new token lets the machine come back under its name, with another key.
    let again = mesh.token(&name).await;
    let back = mesh.enrol(&again, key(), &name).await.unwrap().identity;
    assert_ne!(back.fingerprint(), identity.fingerprint());
    assert_eq!(mesh.renew(&identity, &token).await.unwrap_err().code, RefusalCode::Revoked);
}

#[tokio::test]
async fn a_node_renews_by_itself_before_its_certificate_ends() {
    let mesh = Mesh::new("m", 100 * DAY).await;
    let name = terminal("t1");
    let token = mesh.token(&name).await;
    let enrolled = mesh.enrol(&token, key(), &name).await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let (cell, end) = (IdentityCell::new(enrolled.identity), mesh.clock.now_secs() + 30 * DAY);
    let relays = || vec![enrolled.relays.clone()];
    let dialler = Dialler::default();
    let keep = |renewed: &Enrolled| renewed.identity.save(data.path());
    let mut renewals = cell.subscribe();

    let undisturbed = keep_renewed(&cell, &mesh.clock, &dialler, relays, keep);
    assert!(tokio::time::timeout(Duration::from_millis(50), undisturbed).await.is_err());
    assert!(!renewals.has_changed().unwrap(), "not before its time");

    mesh.clock.set(end - 5 * DAY);
    mesh.registrar.tend().await;
    let renewed = async {
        renewals.changed().await.unwrap();
        renewals.borrow().not_after()
    };
    let until = tokio::select! {
        () = keep_renewed(&cell, &mesh.clock, &dialler, relays, keep) => unreachable!("it goes on for ever"),
        until = tokio::time::timeout(Duration::from_secs(20), renewed) => until.unwrap(),
    };
    assert_eq!(until, end + 25 * DAY);
    assert_eq!(Identity::load(data.path()).unwrap().unwrap().not_after(), until, "on disk first");
}

/// As on a full disk: the node goes on with what it was given, and writes it when there is room.
#[tokio::test]
async fn a_renewed_certificate_that_cannot_be_written_is_used_and_kept_later() {
    let mesh = Mesh::new("m", 100 * DAY).await;
    let name = terminal("t1");
    let token = mesh.token(&name).await;
    let enrolled = mesh.enrol(&token, key(), &name).await.unwrap();
    let (cell, end) = (IdentityCell::new(enrolled.identity), mesh.clock.now_secs() + 30 * DAY);
    let relays = || vec![enrolled.relays.clone()];
    let dialler = Dialler::default();
    let tries = std::sync::atomic::AtomicUsize::new(0);
    let (kept, mut seen) = tokio::sync::watch::channel(0);
    let keep = |renewed: &Enrolled| {
        if tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(IdentityError::File { path: "identity.pem".into(), source });
        }
        kept.send_replace(renewed.identity.not_after());
        Ok(())
    };
    mesh.clock.set(end - 5 * DAY);
    mesh.registrar.tend().await;
    let mut renewals = cell.subscribe();
    let both = async {
        renewals.changed().await.unwrap();
        assert_eq!(cell.get().not_after(), end + 25 * DAY, "used at once");
        seen.changed().await.unwrap();
        assert_eq!(*seen.borrow(), end + 25 * DAY, "and kept");
    };
    tokio::select! {
        () = keep_renewed(&cell, &mesh.clock, &dialler, relays, keep) => unreachable!("it goes on"),
        done = tokio::time::timeout(Duration::from_secs(20), both) => done.unwrap(),
    }
}

#[tokio::test]
async fn a_registrar_that_moved_says_so_once() {
    let mut mesh = Mesh::new("m", 0).await;
    for expected in [1, 0] {
        mesh.registrar.advertise(vec!["r1.example.net:4433".into()]).await.unwrap();
        assert_eq!(mesh.records().len(), expected);
    }
    let token = mesh.token(&relay("any")).await;
    assert_eq!(token.relays[0].addresses, ["r1.example.net:4433"]);
    let refused = mesh.registrar.advertise(vec!["nowhere".into()]).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::BadRequest);
}

#[tokio::test]
async fn a_revoked_relay_is_forgotten_and_its_key_stays_out() {
    let mut mesh = Mesh::new("m", 0).await;
    let (name, (_dir, pending)) = (relay("r2"), pending());
    let token = mesh.token(&name).await;
    let identity = mesh.enrol(&token, pending.key().unwrap(), &name).await.unwrap().identity;
    mesh.records();
    assert_eq!(mesh.registrar.revoke_name("r2").await, Ok(1));
    let records = mesh.records();
    assert!(records[1].kind() == RecordKind::RELAY_ACCOUNT && records[1].is_tombstone());
    assert_eq!(mesh.renew(&identity, &token).await.unwrap_err().code, RefusalCode::Revoked);
    let again = mesh.token(&name).await;
    assert_eq!(again.relays.len(), 1);
    let refused = mesh.enrol(&again, pending.key().unwrap(), &name).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Revoked);
    mesh.enrol(&again, key(), &name).await.unwrap();

    for (name, code) in [
        ("nobody", RefusalCode::UnknownTarget),
        ("No Name", RefusalCode::UnknownTarget),
        ("r1", RefusalCode::BadRequest),
    ] {
        assert_eq!(mesh.registrar.revoke_name(name).await.unwrap_err().code, code, "{name}");
    }
}

#[tokio::test]
async fn a_renewal_by_somebody_else_is_refused() {
    let mesh = Mesh::new("m", 0).await;
    let name = terminal("t1");
    let token = mesh.token(&name).await;
    let identity = mesh.enrol(&token, key(), &name).await.unwrap().identity;
    let chain: Vec<Vec<u8>> = identity.chain().iter().map(|c| c.to_vec()).collect();
    let other = key();
    let mesh_id = identity.mesh_id();
    let signed = tasuki_proto::enrolment::renewal_to_sign(&mesh_id, &chain[0]);
    let by_other = other.signer().sign(&signed).as_ref().to_vec();
    let for_record = identity.key().signer().sign(&chain[0]).as_ref().to_vec();
    let alien = Mesh::new("m", 0).await;
    let alien = alien.registrar.0.cell.get();
    let aliens: Vec<Vec<u8>> = alien.chain().iter().map(|c| c.to_vec()).collect();
    let by_alien = alien
        .key()
        .signer()
        .sign(&tasuki_proto::enrolment::renewal_to_sign(&mesh_id, &aliens[0]))
        .as_ref()
        .to_vec();
    for (case, chain, signature, code) in [
        ("another key", chain.clone(), by_other, RefusalCode::BadCertificate),
        ("another domain", chain, for_record, RefusalCode::BadCertificate),
        ("another mesh", aliens, by_alien, RefusalCode::WrongMesh),
        ("nothing", vec![], vec![], RefusalCode::CertificateMissing),
        ("rubbish", vec![vec![1, 2, 3]; 9], vec![0; 64], RefusalCode::BadCertificate),
    ] {
        let renew = tasuki_proto::enrolment::Renew { chain, signature };
        let answer = mesh.registrar.answer(ToRegistrar::Renew(renew).to_envelope()).await;
        let Ok(Some(FromRegistrar::Refused(refusal))) = FromRegistrar::from_envelope(&answer)
        else {
            panic!("{case}: not refused");
        };
        assert_eq!(refusal.code, code, "{case}");
    }
}

#[tokio::test]
async fn what_is_not_a_request_is_refused() {
    let mesh = Mesh::new("m", 0).await;
    let token = mesh.token(&terminal("t1")).await;
    let prove = |newcomer: Vec<u8>| {
        let proof = token.secret.prove(&token.root.mesh_id(), &token.id, &newcomer);
        ToRegistrar::Enrol(Enrol { token: token.id, newcomer, proof }).to_envelope()
    };
    let newcomer = |signing_request: Vec<u8>, addresses: Vec<String>| {
        tasuki_proto::codec::encode(&Newcomer { signing_request, name: terminal("t1"), addresses })
    };
    let unknown = Envelope { kind: 999, body: bytes::Bytes::from_static(b"?") };
    let truncated = Envelope { kind: 1, body: bytes::Bytes::from_static(&[1, 0, 0, 0, 9]) };
    for request in
        [unknown, truncated, prove(vec![1, 2, 3]), prove(newcomer(vec![0x30; 900], vec![]))]
    {
        let answer = mesh.registrar.answer(request).await;
        let answer = FromRegistrar::from_envelope(&answer).unwrap().unwrap();
        assert_eq!(answer, FromRegistrar::Refused(RefusalCode::BadRequest.into()));
    }
    mesh.enrol(&token, key(), &terminal("t1")).await.unwrap();
}

#[tokio::test]
async fn other_relays_pass_on_or_say_that_the_registrar_is_away() {
    let mesh = Mesh::new("m", 0).await;
    let token = mesh.token(&relay("any")).await;
    let r2 = mesh.enrol(&token, key(), &relay("r2")).await.unwrap().identity;
    let t1 = mesh.token(&terminal("t1")).await;

    for reaches in [false, true] {
        let config = quinn_server_config(
            &IdentityCell::new(r2.renewed(r2.chain().to_vec()).unwrap()),
            &Alpn::ALL,
            &mesh.clock,
        );
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = quinn::Endpoint::server(config.unwrap(), any).unwrap();
        let registrar = mesh.registrar.clone();
        let gate = Gate::new(mesh.registrar.0.cell.clone(), mesh.clock.clone());
        let ask = move |request| {
            let registrar = registrar.clone();
            async move { if reaches { Some(registrar.answer(request).await) } else { None } }
        };
        let service = EnrolmentService::new(ask, Arc::new(gate));
        let mut through = t1.clone();
        through.relays = vec![tasuki_proto::control::RelayContact {
            name: RelayName::new("r2").unwrap(),
            addresses: vec![endpoint.local_addr().unwrap().to_string()],
            draining: false,
        }];
        let serve = async {
            service.serve(endpoint.accept().await.unwrap().await.unwrap()).await;
        };
        let name = terminal("t1");
        let (result, ()) = tokio::join!(mesh.enrol(&through, key(), &name), serve);
        match result {
            Ok(_) => assert!(reaches),
            Err(refusal) => {
                assert!(!reaches);
                assert_eq!(refusal.code, RefusalCode::RegistrarUnreachable);
            }
        }
    }
}

#[tokio::test]
async fn nobody_at_the_address_is_one_line_that_names_it() {
    let mesh = Mesh::new("m", 0).await;
    let token = mesh.token(&terminal("t1")).await;
    mesh.endpoint.close(0_u32.into(), b"");
    mesh.endpoint.wait_idle().await;
    let unused = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = unused.local_addr().unwrap().to_string();
    let mut nowhere = token.clone();
    nowhere.relays[0].addresses = vec![address.clone(), "no-such-host.invalid:1".into()];
    let error = enrol(&nowhere, key(), &terminal("t1"), vec![], &mesh.clock).await.unwrap_err();
    let line = error.to_string();
    assert!(matches!(error, EnrolError::Unreachable(_)), "{line}");
    assert!(line.contains(&address) && line.contains("no-such-host") && !line.contains('\n'));
}

#[tokio::test]
async fn after_a_restart_everything_is_there_and_versions_go_on() {
    let mut mesh = Mesh::new("m", 0).await;
    let token = mesh.token(&terminal("t1")).await;
    let identity = mesh.enrol(&token, key(), &terminal("t1")).await.unwrap().identity;
    mesh.registrar.revoke_name("t1").await.unwrap();
    let last = mesh.records().last().unwrap().version();

    let store = Store::open(mesh.data.path()).unwrap();
    let own = Identity::load(mesh.data.path()).unwrap().unwrap();
    let (sender, mut records) = mpsc::channel(10);
    let cell = IdentityCell::new(own);
    let registrar =
        Registrar::open(mesh.data.path(), cell, store.clone(), mesh.clock.clone(), sender).await;
    let registrar = registrar.unwrap().unwrap();
    let kept = store.records().await.unwrap();
    let key = identity.fingerprint();
    assert!(kept.iter().any(|r| r.kind() == RecordKind::REVOCATION && r.key() == key.0));
    registrar.make_token(order(&terminal("t1"))).await.unwrap();
    assert!(records.recv().await.unwrap().version() > last);

    // Its role is in the certificate; without the issuer's key it does not start.
    std::fs::remove_file(mesh.data.path().join(Issuer::FILE)).unwrap();
    let cell = IdentityCell::new(Identity::load(mesh.data.path()).unwrap().unwrap());
    let (sender, _) = mpsc::channel(1);
    let opened = Registrar::open(mesh.data.path(), cell, store, mesh.clock.clone(), sender).await;
    assert!(matches!(opened, Err(RegistrarError::NoIssuer(_))));
}

#[tokio::test]
async fn the_issuer_is_renewed_where_the_root_is_at_hand() {
    let mesh = Mesh::new("m", 0).await;
    let end = mesh.registrar.authority().issuer.not_after();
    mesh.clock.set(end - DAY);
    let root = mesh.data.path().join(Root::FILE);
    let away = mesh.data.path().join("away");
    std::fs::rename(&root, &away).unwrap();
    mesh.registrar.tend().await;
    assert_eq!(mesh.registrar.authority().issuer.not_after(), end, "the root is offline");
    std::fs::rename(&away, &root).unwrap();
    let before = mesh.registrar.0.cell.get().authority_key();
    mesh.clock.set(end + DAY);
    let token = mesh.token(&terminal("t1")).await;
    let key = NodeKey::generate().unwrap();
    let request = ToRegistrar::Enrol({
        let newcomer = tasuki_proto::codec::encode(&Newcomer {
            signing_request: key.signing_request().unwrap(),
            name: terminal("t1"),
            addresses: vec![],
        });
        let proof = token.secret.prove(&token.root.mesh_id(), &token.id, &newcomer);
        Enrol { token: token.id, newcomer, proof }
    });
    let answer = mesh.registrar.answer(request.to_envelope()).await;
    let Ok(Some(FromRegistrar::Refused(refusal))) = FromRegistrar::from_envelope(&answer) else {
        panic!("an issuer that ended certified somebody");
    };
    assert_eq!(refusal.code, RefusalCode::CertificateExpired);
    mesh.registrar.tend().await;
    assert!(mesh.registrar.authority().issuer.not_after() > end);
    assert_eq!(mesh.registrar.0.cell.get().authority_key(), before, "same key, same term");
    assert!(mesh.registrar.0.cell.get().not_after() > end);
}

#[tokio::test]
async fn orders_over_the_local_socket_are_bounded_and_refused_elsewhere() {
    use serde_json::{Value, json};

    async fn post(router: axum::Router, path: &str, body: Value) -> (u16, Value) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let answer = crate::cli::local::call(&socket, "POST", path, Some(body)).await.unwrap();
        server.abort();
        answer
    }

    let mesh = Mesh::new("m", 0).await;
    let routes = || local_routes(mesh.registrar.clone());
    let (status, body) = post(routes(), "/local/v1/tokens", json!({ "ttl_s": 60 })).await;
    assert_eq!(status, 200);
    let token = Token::from_word(body["token"].as_str().unwrap()).unwrap();
    assert_eq!(token.made_for, TokenFor::Relay);
    let body =
        json!({ "terminal": "t1", "type": "plc", "attributes": { "a": "b" }, "groups": ["g"] });
    assert_eq!(post(routes(), "/local/v1/tokens", body).await.0, 200);
    let long = json!({ "terminal": "t2", "type": "x".repeat(257) });
    let (status, body) = post(routes(), "/local/v1/tokens", long).await;
    assert_eq!((status, body["code"].as_str()), (400, Some("bad-request")));
    assert_eq!(post(routes(), "/local/v1/revoke", json!({ "name": "t1" })).await.0, 200);
    let (status, body) = post(routes(), "/local/v1/revoke", json!({ "name": "t9" })).await;
    assert_eq!((status, body["code"].as_str()), (404, Some("unknown-target")));

    let elsewhere =
        refusing_routes(|| Refusal::new(RefusalCode::NotRegistrar, "the registrar is r1"));
    let (status, body) = post(elsewhere, "/local/v1/tokens", json!({})).await;
    assert_eq!((status, body["code"].as_str()), (409, Some("not-registrar")));
    assert!(body["detail"].as_str().unwrap().contains("r1"));
}

#[test]
fn addresses_are_host_and_port() {
    for good in ["r1.example.net:4433", "192.0.2.1:1", "[2001:db8::1]:65535", "localhost:4433"] {
        assert!(is_address(good), "{good}");
    }
    for bad in
        ["", ":1", "host", "host:", "host:0", "host:65536", "2001:db8::1:1", "[x]:1", "a b:1"]
    {
        assert!(!is_address(bad), "{bad}");
    }
}

/// A relay's data directory that holds what gossip brought it of `mesh`.
async fn joined(mesh: &mut Mesh, name: &str) -> (tempfile::TempDir, Store, Identity) {
    let token = mesh.token(&relay("any")).await;
    let identity = mesh.enrol(&token, key(), &relay(name)).await.unwrap().identity;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.put_records(mesh.registrar.0.store.records().await.unwrap(), None).await.unwrap();
    (dir, store, identity)
}

#[tokio::test]
async fn another_relay_takes_the_role_over() {
    let mut mesh = Mesh::new("m", 0).await;
    let token = mesh.token(&terminal("t1")).await;
    let old = mesh.enrol(&token, key(), &terminal("t1")).await.unwrap().identity;
    let token = mesh.token(&terminal("t2")).await;
    mesh.enrol(&token, key(), &terminal("t2")).await.unwrap();
    mesh.registrar.revoke(terminal("t2")).await.unwrap();
    let (dir, store, before) = joined(&mut mesh, "r2").await;
    let now = mesh.clock.now_secs();

    let other = Root::generate(&MeshName::new("m").unwrap(), now).unwrap();
    let refused = Registrar::take_over(dir.path(), &store, &before, &other, now).await;
    assert!(refused.is_err() && !dir.path().join(Issuer::FILE).exists());

    let root = Root::load(mesh.data.path()).unwrap().unwrap();
    let (identity, term) =
        Registrar::take_over(dir.path(), &store, &before, &root, now).await.unwrap();
    assert_eq!((term.0, identity.authority_key().0.0), (2, 2));
    assert!(identity.is_registrar() && identity.fingerprint() == before.fingerprint());
    let (term, authority) = identity.authority_key();
    for record in store.records().await.unwrap() {
        assert!(record.is_signed_by(&identity.mesh_id(), &authority), "{record:?}");
        assert_eq!(record.version().incarnation, term);
    }
    let rows = |kind| store.run(move |rows: &Rows<'_>| rows.records_of(kind));
    let mut registrars = Vec::new();
    for record in rows(RecordKind::RELAY_ACCOUNT).await.unwrap() {
        let row: RelayAccountRow = rows::read(record.payload()).unwrap();
        registrars.push((String::from_utf8_lossy(record.key()).into_owned(), row.registrar));
    }
    assert_eq!(registrars, [("r1".to_owned(), false), ("r2".to_owned(), true)]);
    assert_eq!(rows(RecordKind::REVOCATION).await.unwrap().len(), 1, "what was revoked stays so");

    // It renews what the old one certified, and revokes it.
    let cell = IdentityCell::new(identity);
    let (sender, _records) = mpsc::channel(1000);
    let open = Registrar::open(dir.path(), cell, store, mesh.clock.clone(), sender).await;
    let heir = open.unwrap().unwrap();
    let renewed = |identity: &Identity| {
        let leaf = identity.chain()[0].clone();
        let signed = tasuki_proto::enrolment::renewal_to_sign(&identity.mesh_id(), &leaf);
        ToRegistrar::Renew(tasuki_proto::enrolment::Renew {
            chain: identity.chain().iter().map(|c| c.to_vec()).collect(),
            signature: identity.key().signer().sign(&signed).as_ref().to_vec(),
        })
    };
    let answer = async |identity: &Identity| {
        let answer = heir.answer(renewed(identity).to_envelope()).await;
        FromRegistrar::from_envelope(&answer).unwrap().unwrap()
    };
    let FromRegistrar::Certified(certified) = answer(&old).await else { panic!("no renewal") };
    let chain = certified.chain.into_iter().map(CertificateDer::from).collect();
    assert_eq!(old.renewed(chain).unwrap().authority_key(), (term, authority));
    assert_eq!(heir.revoke(terminal("t1")).await.unwrap(), 1);
    assert!(
        matches!(answer(&old).await, FromRegistrar::Refused(r) if r.code == RefusalCode::Revoked)
    );

    // The old one learns of it by its own renewal, and refuses from then on.
    let first = mesh.registrar.0.cell.get();
    let FromRegistrar::Certified(certified) = answer(&first).await else { panic!("no renewal") };
    let chain = certified.chain.into_iter().map(CertificateDer::from).collect();
    let ordinary = first.renewed(chain).unwrap();
    assert!(!ordinary.is_registrar());
    mesh.registrar.0.cell.renew(ordinary);
    let refused = mesh.registrar.make_token(order(&terminal("t9"))).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::NotRegistrar);
}
