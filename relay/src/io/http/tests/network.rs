//! The endpoint beyond loopback: its rules and its TLS, over loopback.

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, ServerName};
use tasuki_proto::identity::IdentityCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::io::http::tls::Tls;
use crate::io::registrar::Registrar as Founder;
use crate::io::store::Store;

const NAME: &str = "status.example";

/// Files with a certificate for [`NAME`] and its key, and who trusts it.
struct Files {
    folder: tempfile::TempDir,
    files: CertificateFiles,
}

impl Files {
    fn new() -> (Self, TlsConnector) {
        let folder = tempfile::tempdir().unwrap();
        let files = CertificateFiles {
            certificate: folder.path().join("cert.pem"),
            key: folder.path().join("key.pem"),
        };
        let this = Self { folder, files };
        let trusting = this.replace();
        (this, trusting)
    }

    /// Writes another certificate and key, and gives who trusts them alone.
    fn replace(&self) -> TlsConnector {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let other = self.folder.path().join("other");
        for (path, text) in [
            (&self.files.certificate, made.cert.pem()),
            (&self.files.key, made.signing_key.serialize_pem()),
        ] {
            std::fs::write(&other, text).unwrap();
            std::fs::rename(&other, path).unwrap();
        }
        trusting(made.cert.der())
    }

    fn tls(&self) -> Tls {
        let period = Duration::from_millis(20);
        Tls::looking(&Certificate::Files(self.files.clone()), period).unwrap()
    }
}

fn trusting(root: &CertificateDer<'static>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config).into()
}

/// The first relay of mesh `m`.
async fn identity() -> IdentityCell {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mesh = tasuki_proto::MeshName::new("m").unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let founded =
        Founder::found(folder.path(), &store, &mesh, relay("r1"), vec![], now.as_secs()).await;
    IdentityCell::new(founded.unwrap())
}

/// An endpoint under the rules of other addresses than loopback.
async fn start(tls: Tls, bounds: Bounds) -> Endpoint {
    let world = World { terminals: 3, sessions: 3, ..World::default() };
    Endpoint::start_with(world, bounds, Security { network: true, tls: Some(tls) }).await
}

impl Endpoint {
    async fn handshake(
        &self,
        connector: &TlsConnector,
        name: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        connector.connect(name, self.tcp().await).await
    }

    async fn over_tls(
        &self,
        connector: &TlsConnector,
        method: &str,
        path: &str,
        head: &str,
    ) -> Reply {
        let stream = self.handshake(connector, NAME).await.unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nHost: {NAME}\r\n{head}\r\n");
        exchange(stream, &request).await
    }
}

#[tokio::test]
async fn nothing_is_read_without_the_token() {
    let (files, connector) = Files::new();
    let endpoint = start(files.tls(), Bounds::default()).await;
    let (wrong, right) = (
        format!("Authorization: Bearer {TOKEN}x\r\n"),
        format!("Authorization: Bearer {TOKEN}\r\n"),
    );
    for path in [
        "/metrics",
        "/api/v1/status",
        "/api/v1/summary",
        "/api/v1/relays",
        "/api/v1/relays/r1/history",
        "/api/v1/terminals",
        "/api/v1/terminals/t0001",
        "/api/v1/terminals/t0001/history",
        "/api/v1/sessions",
        "/api/v1/explain?from=a&to=b",
        "/api/v1/events",
        "/api/v1/terminals?limit=x",
        "/api/v1/nothing",
        "/nothing",
    ] {
        for head in ["", &wrong] {
            let reply = endpoint.over_tls(&connector, "GET", path, head).await;
            reply.problem(401, "unauthorized");
        }
        let reply = endpoint.over_tls(&connector, "HEAD", path, &wrong).await;
        assert_eq!((reply.status, reply.body.as_str()), (401, ""), "{path}");
        if path != "/api/v1/events" {
            let reply = endpoint.over_tls(&connector, "GET", path, &right).await;
            assert!([200, 400, 404].contains(&reply.status), "{path}: {reply:?}");
        }
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(endpoint.over_tls(&connector, "GET", path, "").await.body, "ok\n");
        endpoint.over_tls(&connector, "POST", path, "").await.problem(401, "unauthorized");
        endpoint.over_tls(&connector, "POST", path, &right).await.problem(405, "wrong-method");
    }
    let drain = |head: String| {
        let (endpoint, connector) = (&endpoint, &connector);
        async move { endpoint.over_tls(connector, "POST", "/api/v1/drain", &head).await }
    };
    drain(String::new()).await.problem(401, "unauthorized");
    drain(wrong).await.problem(401, "unauthorized");
    assert!(endpoint.world.commands().is_empty());
    assert_eq!(drain(right).await.status, 200);
    assert_eq!(std::mem::take(&mut *endpoint.world.commands()), ["Drain(None)"]);
    endpoint.stop().await;
}

#[tokio::test]
async fn who_speaks_no_tls_hears_nothing() {
    let (files, connector) = Files::new();
    let endpoint = start(files.tls(), Bounds::default()).await;
    let head = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    assert_eq!(endpoint.over_tcp("GET", "/healthz", &head).await.status, 0);
    assert_eq!(endpoint.over_tls(&connector, "GET", "/healthz", "").await.status, 200);
    endpoint.stop().await;
}

#[tokio::test]
async fn loopback_with_files_has_tls_and_the_rules_of_loopback() {
    let (files, connector) = Files::new();
    let security = Security { network: false, tls: Some(files.tls()) };
    let endpoint = Endpoint::start_with(World::default(), Bounds::default(), security).await;
    endpoint.over_tls(&connector, "GET", "/healthz", "").await.problem(421, "wrong-host");
    let stream = endpoint.handshake(&connector, NAME).await.unwrap();
    let request = "GET /api/v1/status HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\n\r\n";
    assert_eq!(exchange(stream, request).await.status, 200);
    endpoint.stop().await;
}

#[tokio::test]
async fn a_slow_handshake_is_cut() {
    let (files, connector) = Files::new();
    let bounds = Bounds { handshake: Duration::from_millis(300), ..short() };
    let endpoint = start(files.tls(), bounds).await;
    let silent = endpoint.tcp().await;
    let mut drips = endpoint.tcp().await;
    // A record that says that 512 bytes follow (RFC 8446, section 5.1).
    drips.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    // There is one place: it is free once both were cut. A busy machine may be too slow for it too.
    let begun = std::time::Instant::now();
    let request = format!("GET /healthz HTTP/1.1\r\nConnection: close\r\nHost: {NAME}\r\n\r\n");
    loop {
        if let Ok(stream) = endpoint.handshake(&connector, NAME).await
            && exchange(stream, &request).await.status == 200
        {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "nobody gets in");
    }
    drop((silent, drips));
    endpoint.stop().await;
}

#[tokio::test]
async fn one_address_gets_so_many_connections() {
    let (files, connector) = Files::new();
    let bounds = Bounds { per_source: 2, ..Bounds::default() };
    let endpoint = start(files.tls(), bounds).await;
    let one = endpoint.handshake(&connector, NAME).await.unwrap();
    let _other = endpoint.handshake(&connector, NAME).await.unwrap();
    assert!(endpoint.handshake(&connector, NAME).await.is_err());
    drop(one);
    let begun = std::time::Instant::now();
    while endpoint.handshake(&connector, NAME).await.is_err() {
        assert!(begun.elapsed() < DEADLINE, "its place is not free");
    }
    endpoint.stop().await;
}

#[tokio::test]
async fn files_that_change_are_taken_live() {
    let (files, first) = Files::new();
    let endpoint = start(files.tls(), Bounds::default()).await;
    assert!(endpoint.handshake(&first, NAME).await.is_ok());

    // What cannot be used changes nothing.
    let key = std::fs::read(&files.files.key).unwrap();
    std::fs::write(&files.files.key, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(endpoint.handshake(&first, NAME).await.is_ok());
    std::fs::write(&files.files.key, key).unwrap();

    let second = files.replace();
    let begun = std::time::Instant::now();
    while endpoint.handshake(&second, NAME).await.is_err() {
        assert!(begun.elapsed() < DEADLINE, "the other certificate is not shown");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(endpoint.handshake(&first, NAME).await.is_err());
    endpoint.stop().await;
}

#[tokio::test]
async fn files_that_cannot_be_used_are_said_at_the_start() {
    let (files, _) = Files::new();
    let (other, _) = Files::new();
    let says = |certificate: &std::path::Path, key: &std::path::Path| {
        let files = CertificateFiles { certificate: certificate.into(), key: key.into() };
        Tls::new(&Certificate::Files(files)).unwrap_err().to_string()
    };
    let (certificate, key) = (&files.files.certificate, &files.files.key);
    let nowhere = files.folder.path().join("nowhere");
    assert!(says(&nowhere, key).contains("nowhere: No such file"), "{}", says(&nowhere, key));
    assert!(says(key, key).contains("no certificate"), "{}", says(key, key));
    assert!(says(certificate, certificate).contains("no key"));
    let mixed = says(certificate, &other.files.key);
    assert!(mixed.contains("give the key of"), "{mixed}");
}

#[tokio::test]
async fn the_certificate_of_the_mesh_leads_to_its_root() {
    let cell = identity().await;
    let connector = trusting(cell.get().root());
    let endpoint =
        start(Tls::new(&Certificate::Mesh(cell.clone())).unwrap(), Bounds::default()).await;
    endpoint.handshake(&connector, "r1.relay.m.tasuki").await.unwrap();
    assert!(endpoint.handshake(&connector, "r2.relay.m.tasuki").await.is_err());
    endpoint.stop().await;
}

#[tokio::test]
async fn an_open_address_has_tls() {
    let endpoint = Endpoint::start(World::default()).await;
    let everywhere = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let admin = Admin::new(mpsc::channel(1).0);
    let service = Service {
        events: Events::start(admin.clone(), relay("r1")),
        admin,
        token: AdminToken::new(TOKEN).unwrap(),
        revoker: Arc::new(Registrar(endpoint.world.clone())),
        metrics: vec![],
    };
    let plain = Security { network: false, tls: None };
    let refused = serve_tcp(everywhere, service, plain, std::future::pending());
    let refused = timeout(DEADLINE, refused).await.unwrap();
    assert!(matches!(refused, Err(ServeError::NotEncrypted(_))));

    let (files, _) = Files::new();
    let cell = identity().await;
    let scheme = |address: &str, files: Option<&CertificateFiles>| {
        let security = Security::new(address.parse().unwrap(), files, &cell).unwrap();
        (security.scheme(), security.network)
    };
    for address in ["0.0.0.0:1", "192.0.2.1:1", "[::]:1", "[::ffff:192.0.2.1]:1"] {
        assert_eq!(scheme(address, None), ("https", true), "{address}");
        assert_eq!(scheme(address, Some(&files.files)), ("https", true), "{address}");
    }
    for address in ["127.0.0.1:1", "127.0.0.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(scheme(address, None), ("http", false), "{address}");
        assert_eq!(scheme(address, Some(&files.files)), ("https", false), "{address}");
    }
    endpoint.stop().await;
}
