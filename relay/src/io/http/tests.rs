//! The whole endpoint over real sockets, with a core that is made up.

mod events;
mod network;
mod openapi;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use axum::routing::post;
use serde_json::{Value, json};
use tasuki_proto::view::{TerminalState, TerminalView};
use tasuki_proto::{RefusalCode, RelayId, ServiceName, SessionId, limits};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::cli::{self, Global, local};
use crate::core::admin::*;

const TOKEN: &str = "a-token-of-some-length";
const DEADLINE: Duration = Duration::from_secs(20);
/// Rows that the made-up core looks at for one page.
const LOOKS_AT: usize = 40;

fn id(number: usize) -> TerminalId {
    TerminalId::new(&format!("t{number:04}")).unwrap()
}

fn session_id(nonce: u64) -> SessionId {
    SessionId { edge: RelayId(7), nonce }
}

fn relay(name: &str) -> RelayName {
    RelayName::new(name).unwrap()
}

fn terminal(number: usize) -> TerminalView {
    let in_use = number.is_multiple_of(50);
    TerminalView {
        id: id(number),
        kind: if number.is_multiple_of(2) { "camera" } else { "printer" }.to_owned(),
        attributes: BTreeMap::new(),
        state: if in_use { TerminalState::InCommunication } else { TerminalState::LoggedOut },
        sessions: 0,
        attachments: vec![],
        updated_at: 1,
    }
}

fn session(nonce: u64) -> SessionView {
    let ended = nonce.is_multiple_of(2);
    SessionView {
        id: session_id(nonce).to_string(),
        caller: id(1),
        callee: id(2),
        service: ServiceName::new("ssh").unwrap(),
        state: if ended { SessionState::Ended } else { SessionState::Active },
        started_at: 1,
        ended_at: ended.then_some(2),
        reason: ended.then(|| "ended-by-caller".to_owned()),
        route: vec![relay("r1"), relay("r2")],
        path: "relayed".to_owned(),
        bytes_to_callee: 1,
        packets_to_callee: 1,
        bytes_to_caller: 1,
        packets_to_caller: 1,
    }
}

fn relay_view(name: &str, id: &str) -> RelayView {
    RelayView {
        id: id.to_owned(),
        name: relay(name),
        addresses: vec!["127.0.0.1:4433".to_owned()],
        version: "0.1.0".to_owned(),
        registrar: name == "r1",
        reachable: true,
        draining: false,
        terminals: 3,
        links: vec![RelayLinkView { relay: relay("r9"), rtt_us: 900 }],
        updated_at: 5,
    }
}

fn status(not_ready: Option<&str>) -> StatusView {
    StatusView {
        connections: 0,
        handshakes: 0,
        handshakes_refused: 0,
        forwarded: ForwardedView::default(),
        certificate_until: 0,
        renewal: None,
        renewal_failures: 0,
        labels: 0,
        id: "0000000000000007".to_owned(),
        name: relay("r1"),
        mesh: "m".to_owned(),
        version: "0.1.0".to_owned(),
        incarnation: 3,
        uptime_s: 9,
        registrar: true,
        draining: false,
        ends_in_s: None,
        not_ready: not_ready.map(str::to_owned),
        links: vec![LinkView {
            relay: relay("r2"),
            rtt_us: 1500,
            address: "127.0.0.1:1".to_owned(),
            since: 1,
        }],
        twins: Vec::new(),
        reachable_from_outside: Vec::new(),
        terminals: 1,
        sessions: 2,
        table: TableView { rows: 4, relays: 3, terminals: 1, hash: "00ff".to_owned() },
        gossip_lag_ms: Percentiles { p50: 1.5, p99: 20.0 },
        gossip: BTreeMap::from([("applied".to_owned(), 5), ("stale".to_owned(), 1)]),
        drops: BTreeMap::from([("no-label".to_owned(), 2)]),
        direct: Vec::new(),
    }
}

/// What the made-up core and registrar were told to do.
#[derive(Default)]
struct World {
    /// What changed, ascending, and up to where it is forgotten.
    news: Mutex<(Vec<(u64, ChangedRow)>, u64)>,
    /// How often the core was asked what changed.
    asked: AtomicUsize,
    commands: Mutex<Vec<String>>,
    terminals: usize,
    sessions: u64,
    attribute_bytes: usize,
    not_ready: Option<&'static str>,
    /// Finds nothing, slowly, in a table without end.
    endless: bool,
}

impl World {
    fn commands(&self) -> MutexGuard<'_, Vec<String>> {
        self.commands.lock().unwrap()
    }

    fn answer(&self, request: AdminRequest) -> AdminReply {
        match request {
            AdminRequest::Status => AdminReply::Status(Box::new(status(self.not_ready))),
            // By name; their ids are in another order.
            AdminRequest::Relays => AdminReply::Relays(vec![
                relay_view("r1", "cc"),
                relay_view("r2", "aa"),
                relay_view("t0001", "bb"),
            ]),
            AdminRequest::Terminals { .. } if self.endless => {
                AdminReply::Terminals(vec![], Some(id(1)))
            }
            AdminRequest::Terminals { filter, after, limit } => self.page(&filter, after, limit),
            AdminRequest::Terminal(name) => match (0..self.terminals).find(|n| id(*n) == name) {
                Some(number) => AdminReply::Terminal(Box::new(terminal(number))),
                None => {
                    AdminReply::Refused(Refusal::new(RefusalCode::UnknownTarget, name.as_str()))
                }
            },
            AdminRequest::Sessions { state, after, limit } => {
                let all =
                    (0..self.sessions).filter(|n| after.is_none_or(|after| session_id(*n) > after));
                let mut rows =
                    all.map(session).filter(|row| state.is_none_or(|state| row.state == state));
                let page: Vec<_> = rows.by_ref().take(limit).collect();
                let last = page.last().map(|row| row.id.parse().unwrap());
                AdminReply::Sessions(page, last.filter(|_| rows.next().is_some()))
            }
            AdminRequest::Session(session) if session.nonce < self.sessions => {
                AdminReply::Session(Box::new(self::session(session.nonce)))
            }
            AdminRequest::Summary { after: None } => {
                let mut terminals = TerminalCounts::default();
                terminals.add(TerminalState::LoggedIn);
                let types = BTreeMap::from([("camera".to_owned(), 2)]);
                let relays = RelayCounts { total: 3, reachable: 2, draining: 1 };
                AdminReply::Summary(Box::new(Summary { terminals, types, relays }), Some(id(1)))
            }
            AdminRequest::Summary { .. } => {
                let mut rest = Summary::default();
                rest.terminals.add(TerminalState::Unreachable);
                rest.types.insert("camera".to_owned(), 2);
                rest.relays = RelayCounts { total: 3, reachable: 2, draining: 1 };
                AdminReply::Summary(Box::new(rest), None)
            }
            AdminRequest::TerminalHistory(name) if name == id(1) => {
                let event = |at| HistoryView {
                    at,
                    what: "logged-in".to_owned(),
                    detail: "at r1 as primary".to_owned(),
                };
                AdminReply::History(vec![event(2), event(1)])
            }
            AdminRequest::TerminalHistory(name) => {
                AdminReply::Refused(Refusal::new(RefusalCode::UnknownTarget, name.as_str()))
            }
            AdminRequest::RelayHistory(name) if name == relay("r1") => AdminReply::History(vec![]),
            AdminRequest::RelayHistory(name) => AdminReply::UnknownRelay(name),
            AdminRequest::Changes(after) => AdminReply::Changes(Box::new(self.changed(after))),
            AdminRequest::Session(_) => AdminReply::Refused(RefusalCode::UnknownSession.into()),
            AdminRequest::Explain { service, .. } => {
                AdminReply::Explanation(Box::new(Explanation {
                    allowed: service.is_none(),
                    code: service.map(|_| "caller-not-allowed".to_owned()),
                    why: "because".to_owned(),
                    advice: "do this".to_owned(),
                    route: vec![relay("r1"), relay("r2")],
                    ..Explanation::default()
                }))
            }
            AdminRequest::ExplainSession(id) => {
                let session = Some(session(id.nonce));
                AdminReply::Explanation(Box::new(Explanation {
                    code: Some("ended-by-caller".to_owned()),
                    session,
                    ..Explanation::default()
                }))
            }
            command => {
                self.commands().push(format!("{command:?}"));
                AdminReply::Done
            }
        }
    }

    fn changed(&self, after: Option<u64>) -> Changed {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let news = self.news.lock().unwrap();
        let (all, forgotten) = &*news;
        let head = all.last().map_or(*forgotten, |(seq, _)| *seq);
        let told = Changed { incarnation: 3, upto: head, ..Changed::default() };
        let Some(after) = after else { return told };
        if after < *forgotten || after > head {
            return Changed { missed: true, ..told };
        }
        let mut rows: Vec<_> = all.iter().filter(|(seq, _)| *seq > after).cloned().collect();
        let more = rows.len() > limits::CHANGES_AT_ONCE;
        rows.truncate(limits::CHANGES_AT_ONCE);
        let upto = rows.last().map_or(head, |(seq, _)| *seq);
        Changed { rows, more, upto, ..told }
    }

    /// These rows change, each with the next number.
    fn change(&self, rows: impl IntoIterator<Item = ChangedRow>) {
        let mut news = self.news.lock().unwrap();
        for row in rows {
            let next = news.0.last().map_or(news.1, |(seq, _)| *seq) + 1;
            news.0.push((next, row));
        }
    }

    fn page(
        &self,
        filter: &tasuki_proto::view::TerminalFilter,
        after: Option<TerminalId>,
        limit: usize,
    ) -> AdminReply {
        let first =
            after.map_or(0, |after| (0..self.terminals).take_while(|n| id(*n) <= after).count());
        let mut rows = Vec::new();
        for number in first..self.terminals {
            if rows.len() == limit || number - first == LOOKS_AT {
                return AdminReply::Terminals(rows, Some(id(number - 1)));
            }
            let mut row = terminal(number);
            row.attributes.insert("x".to_owned(), "x".repeat(self.attribute_bytes));
            let kept = filter.state.is_none_or(|state| row.state == state)
                && filter.kind.as_ref().is_none_or(|kind| row.kind == *kind)
                && filter.text.as_ref().is_none_or(|text| row.id.as_str().contains(text));
            if kept {
                rows.push(row);
            }
        }
        AdminReply::Terminals(rows, None)
    }
}

struct Registrar(Arc<World>);

impl Revoker for Registrar {
    fn revoke(&self, node: Node) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            if node == Node::Relay(relay("r1")) {
                return Err(Refusal::new(RefusalCode::NotRegistrar, "the registrar is r2"));
            }
            self.0.commands().push(format!("Revoke({node:?})"));
            Ok(())
        })
    }
}

struct Extra;

impl MetricSource for Extra {
    fn collect(&self, out: &mut Exposition) {
        out.counter("tasuki_switch_packets_total", "Packets.", &[("direction", "in")], 7);
    }
}

/// A running endpoint, over TCP and the local socket.
struct Endpoint {
    world: Arc<World>,
    address: SocketAddr,
    folder: tempfile::TempDir,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Endpoint {
    async fn start(world: World) -> Self {
        Self::start_within(world, Bounds::default()).await
    }

    async fn start_within(world: World, bounds: Bounds) -> Self {
        Self::start_with(world, bounds, Security { network: false, tls: None }).await
    }

    async fn start_with(world: World, bounds: Bounds, security: Security) -> Self {
        let world = Arc::new(world);
        let (inbox, mut requests) = mpsc::channel::<AdminCall>(8);
        let core = world.clone();
        let core = tokio::spawn(async move {
            while let Some((request, reply)) = requests.recv().await {
                if core.endless {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let _ = reply.send(core.answer(request));
            }
        });
        let service = Service {
            events: Events::start(Admin::new(inbox.clone()), relay("r1")),
            admin: Admin::new(inbox),
            token: AdminToken::new(TOKEN).unwrap(),
            revoker: Arc::new(Registrar(world.clone())),
            metrics: vec![Arc::new(Extra)],
        };
        let (stop, stopped) = watch::channel(false);
        let until = |mut stopped: watch::Receiver<bool>| async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tcp = until(stopped.clone());
        let tcp = serve_tcp_within(listener, service.clone(), security, bounds, tcp);
        let tcp = tokio::spawn(async { tcp.await.unwrap() });
        let folder = tempfile::tempdir().unwrap();
        let socket = LocalSocket::bind(&folder.path().join(local::SOCKET)).unwrap();
        let extra = Router::new().route("/local/v1/tokens", post(async |body: String| body));
        let unix = tokio::spawn(serve_unix(socket, service, extra, until(stopped)));
        Self { world, address, folder, stop, tasks: vec![core, tcp, unix] }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join(local::SOCKET)
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn get(&self, path: &str) -> Reply {
        self.over_tcp("GET", path, "Host: localhost\r\n").await
    }

    async fn over_tcp(&self, method: &str, path: &str, head: &str) -> Reply {
        exchange(
            self.tcp().await,
            &format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{head}\r\n"),
        )
        .await
    }

    async fn over_unix(&self, method: &str, path: &str) -> (u16, Value) {
        local::call(&self.socket(), method, path, None).await.unwrap()
    }

    /// Stops everything, and sees that it stops.
    async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            timeout(DEADLINE, task).await.expect("it stops in time").unwrap();
        }
        assert!(!self.folder.path().join(local::SOCKET).exists(), "the socket's file goes");
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// Checks that it is a problem with this status and code.
    fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.head.contains("content-type: application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(
            (&problem["status"], &problem["code"]),
            (&json!(status), &json!(code)),
            "{self:?}"
        );
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{self:?}");
        problem
    }
}

/// Sends `request` and reads until the endpoint closes; status 0 when it closed without a response.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Reply {
    let mut bytes = Vec::new();
    let read = async {
        // The endpoint may close while this still writes, or reset what it did not read.
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.read_to_end(&mut bytes).await;
    };
    timeout(DEADLINE, read).await.expect("the endpoint closes in time");
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
    Reply { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn ids(page: &Value) -> Vec<String> {
    let rows = page["items"].as_array().unwrap_or_else(|| panic!("no items: {page}"));
    rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn every_route_answers_over_both_doors() {
    let endpoint = Endpoint::start(World { terminals: 3, sessions: 3, ..World::default() }).await;
    let session = session_id(1);
    let expected = [
        ("/api/v1/status".to_owned(), "/name", json!("r1")),
        ("/api/v1/relays".to_owned(), "/items/0/name", json!("r2")),
        ("/api/v1/terminals".to_owned(), "/items/2/id", json!("t0002")),
        ("/api/v1/terminals/t0001".to_owned(), "/type", json!("printer")),
        (
            "/api/v1/sessions?state=ended".to_owned(),
            "/items/1/id",
            json!(session_id(2).to_string()),
        ),
        (format!("/api/v1/sessions/{session}"), "/service", json!("ssh")),
        ("/api/v1/explain?from=a&to=b".to_owned(), "/allowed", json!(true)),
        (
            "/api/v1/explain?from=a&to=b&service=ssh".to_owned(),
            "/code",
            json!("caller-not-allowed"),
        ),
    ];
    for (path, pointer, value) in expected {
        let reply = endpoint.get(&path).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert!(reply.head.contains("content-type: application/json"), "{reply:?}");
        assert!(reply.head.contains("cache-control: no-store"), "{reply:?}");
        assert_eq!(reply.json().pointer(pointer), Some(&value), "{path}: {reply:?}");
        assert_eq!(endpoint.over_unix("GET", &path).await, (200, reply.json()), "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        let reply = endpoint.get(path).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "ok\n"), "{path}");
        assert_eq!(endpoint.over_unix("GET", path).await, (200, json!("ok\n")), "{path}");
        let reply = endpoint.over_tcp("HEAD", path, "Host: localhost\r\n").await;
        assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{path}");
    }
    endpoint.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_a_problem() {
    let endpoint = Endpoint::start(World::default()).await;
    endpoint.get("/api/v1/terminals/nobody").await.problem(404, "unknown-target");
    endpoint.get("/api/v1/terminals/No_Name").await.problem(404, "unknown-target");
    endpoint.get("/api/v1/terminals/%ff").await.problem(404, "unknown-target");
    endpoint
        .get(&format!("/api/v1/sessions/{}", session_id(9)))
        .await
        .problem(404, "unknown-session");
    endpoint.get("/api/v1/sessions/xyz").await.problem(404, "unknown-session");
    endpoint.get("/api/v1/nothing").await.problem(404, "unknown-path");
    endpoint.get("/api/v1/drain").await.problem(405, "wrong-method");
    let head = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    let reply = endpoint.over_tcp("POST", "/api/v1/status", &head).await;
    reply.problem(405, "wrong-method");
    assert!(reply.head.contains("allow: get"), "{reply:?}");
    endpoint
        .over_tcp("POST", "/api/v1/relays/No_Name/kick", &head)
        .await
        .problem(404, "unknown-relay");
    endpoint.over_tcp("POST", "/local/v1/tokens", &head).await.problem(404, "unknown-path");
    let refused = endpoint.over_tcp("POST", "/api/v1/relays/r1/revoke", &head).await;
    let problem = refused.problem(409, "not-registrar");
    assert_eq!(problem["title"], "Conflict");
    assert!(problem["detail"].as_str().unwrap().starts_with("the registrar is r2: "), "{problem}");
    endpoint.stop().await;
}

#[tokio::test]
async fn readiness_says_why_not_and_health_does_not_care() {
    let endpoint = Endpoint::start(World { not_ready: Some("draining"), ..World::default() }).await;
    assert_eq!(endpoint.get("/readyz").await.problem(503, "not-ready")["detail"], "draining");
    assert_eq!(endpoint.get("/healthz").await.status, 200);
    endpoint.stop().await;
}

#[tokio::test]
async fn a_core_that_is_gone_or_hangs_makes_it_unhealthy() {
    let endpoint = Endpoint::start(World::default()).await;
    endpoint.tasks[0].abort();
    endpoint.get("/healthz").await.problem(503, "shutting-down");

    let (inbox, _requests) = mpsc::channel(8);
    let admin = Admin::new(inbox);
    let service = Service {
        events: Events::start(admin.clone(), relay("r1")),
        admin,
        token: AdminToken::new(TOKEN).unwrap(),
        revoker: Arc::new(Registrar(endpoint.world.clone())),
        metrics: vec![],
    };
    let socket = LocalSocket::bind(&endpoint.folder.path().join("hangs.sock")).unwrap();
    let server = tokio::spawn(serve_unix(socket, service, Router::new(), std::future::pending()));
    let path = endpoint.folder.path().join("hangs.sock");
    let (status, body) = local::call(&path, "GET", "/healthz", None).await.unwrap();
    assert_eq!((status, &body["code"]), (503, &json!("overloaded")));
    server.abort();
}

#[tokio::test]
async fn actions_need_the_token_over_tcp_and_none_over_the_local_socket() {
    let endpoint = Endpoint::start(World::default()).await;
    let session = session_id(5);
    let actions = [
        (format!("/api/v1/sessions/{session}/end"), format!("EndSession({session})")),
        ("/api/v1/terminals/t1/kick".to_owned(), "KickTerminal(t1)".to_owned()),
        ("/api/v1/terminals/t1/revoke".to_owned(), "Revoke(Terminal(t1))".to_owned()),
        ("/api/v1/relays/r2/kick".to_owned(), "KickRelay(r2)".to_owned()),
        ("/api/v1/relays/r2/revoke".to_owned(), "Revoke(Relay(r2))".to_owned()),
        ("/api/v1/drain".to_owned(), "Drain(None)".to_owned()),
        ("/api/v1/drain?end_within_s=300".to_owned(), "Drain(Some(300s))".to_owned()),
        ("/api/v1/undrain".to_owned(), "Undrain".to_owned()),
    ];
    for (path, command) in actions {
        let wrong = [
            String::new(),
            "Authorization: Bearer\r\n".to_owned(),
            "Authorization: Bearer \r\n".to_owned(),
            "Authorization: Bearer wrong-token-of-length\r\n".to_owned(),
            format!("Authorization: Bearer {TOKEN}x\r\n"),
            format!("Authorization: Basic {TOKEN}\r\n"),
            format!("Authorization: {TOKEN}\r\n"),
            format!("Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\n"),
            format!("Cookie: token={TOKEN}\r\n"),
        ];
        for head in wrong {
            let reply =
                endpoint.over_tcp("POST", &path, &format!("Host: localhost\r\n{head}")).await;
            reply.problem(401, "unauthorized");
            assert!(reply.head.contains("www-authenticate: bearer"), "{reply:?}");
            assert!(!reply.body.contains(TOKEN), "{reply:?}");
        }
        assert!(endpoint.world.commands().is_empty(), "{path}");
        let right = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
        let reply = endpoint.over_tcp("POST", &path, &right).await;
        assert_eq!((reply.status, reply.json()), (200, json!({"done": true})), "{path}");
        assert_eq!(std::mem::take(&mut *endpoint.world.commands()), [command.as_str()]);
        assert_eq!(endpoint.over_unix("POST", &path).await, (200, json!({"done": true})), "{path}");
        assert_eq!(std::mem::take(&mut *endpoint.world.commands()), [command.as_str()]);
    }
    endpoint.stop().await;
}

#[tokio::test]
async fn the_token_is_checked_before_anything_else() {
    let endpoint = Endpoint::start(World::default()).await;
    let requests = [
        ("POST", "/api/v1/nothing", "Host: localhost\r\n"),
        ("POST", "/api/v1/status", "Host: localhost\r\n"),
        ("POST", "/api/v1/terminals/No_Name/kick?bad=1", "Host: localhost\r\n"),
        ("POST", "/api/v1/drain", "Host: evil.example\r\n"),
        ("POST", "/api/v1/drain", "Host: localhost\r\nContent-Length: 99999999\r\n"),
        ("DELETE", "/api/v1/status", "Host: localhost\r\n"),
        ("OPTIONS", "/api/v1/drain", "Host: localhost\r\n"),
        ("BREW", "/api/v1/status", "Host: localhost\r\n"),
    ];
    for (method, path, head) in requests {
        endpoint.over_tcp(method, path, head).await.problem(401, "unauthorized");
    }
    endpoint.stop().await;
}

#[tokio::test]
async fn strangers_names_for_this_machine_are_refused() {
    let endpoint = Endpoint::start(World::default()).await;
    for host in ["localhost", "LOCALHOST:80", "127.0.0.1:8433", "[::1]:8433"] {
        let reply = endpoint.over_tcp("GET", "/api/v1/status", &format!("Host: {host}\r\n")).await;
        assert_eq!(reply.status, 200, "{host}: {reply:?}");
        assert!(!reply.head.contains("access-control"), "{reply:?}");
    }
    for head in
        ["Host: evil.example\r\n", "Host: \r\n", "Host: localhost\r\nHost: evil.example\r\n", ""]
    {
        for path in ["/api/v1/status", "/healthz", "/metrics", "/nothing"] {
            endpoint.over_tcp("GET", path, head).await.problem(421, "wrong-host");
        }
    }
    let absolute =
        endpoint.over_tcp("GET", "http://evil.example/healthz", "Host: localhost\r\n").await;
    absolute.problem(421, "wrong-host");
    let head = format!("Host: evil.example\r\nAuthorization: Bearer {TOKEN}\r\n");
    endpoint.over_tcp("POST", "/api/v1/drain", &head).await.problem(421, "wrong-host");
    assert!(endpoint.world.commands().is_empty());
    endpoint.stop().await;
}

#[tokio::test]
async fn pages_lead_to_the_end_and_a_filter_fills_them() {
    let endpoint = Endpoint::start(World { terminals: 260, sessions: 7, ..World::default() }).await;
    let lists = [
        ("/api/v1/terminals?limit=100", vec![100, 100, 60]),
        ("/api/v1/terminals?limit=1000", vec![260]),
        ("/api/v1/terminals?state=in-communication&limit=4", vec![4, 2]),
        ("/api/v1/terminals?type=camera&q=t00&limit=30", vec![30, 20]),
        ("/api/v1/terminals?q=nobody", vec![0]),
        ("/api/v1/sessions?limit=3", vec![3, 3, 1]),
        ("/api/v1/sessions?state=active&limit=2", vec![2, 1]),
        ("/api/v1/relays?limit=2", vec![2, 1]),
    ];
    for (path, expected) in lists {
        let (mut sizes, mut all, mut after) = (Vec::new(), Vec::new(), String::new());
        loop {
            let page = endpoint.get(&format!("{path}{after}")).await.json();
            sizes.push(ids(&page).len());
            all.extend(ids(&page));
            let Some(next) = page["next"].as_str() else { break };
            let join = if path.contains('?') { '&' } else { '?' };
            after = format!("{join}after={next}");
        }
        // A page may lead to an empty one: the core looks at a bounded number of rows.
        sizes.retain(|size| *size > 0 || expected == [0]);
        assert_eq!(sizes, expected, "{path}");
        assert!(all.is_sorted(), "{path}: {all:?}");
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{path}");
    }
    assert_eq!(ids(&endpoint.get("/api/v1/terminals").await.json()).len(), 100, "the default");
    endpoint.stop().await;
}

#[tokio::test]
async fn a_page_ends_early_when_its_rows_are_large() {
    let world = World { terminals: 1000, attribute_bytes: 16 * 1024, ..World::default() };
    let endpoint = Endpoint::start(world).await;
    let reply = endpoint.get("/api/v1/terminals?limit=1000").await;
    let page = reply.json();
    assert!(page["next"].is_string() && ids(&page).len() < 1000);
    assert!(reply.body.len() < limits::HTTP_PAGE_BYTES + 250 * 17 * 1024, "{}", reply.body.len());
    endpoint.stop().await;
}

#[tokio::test]
async fn a_search_without_end_ends_with_a_cursor() {
    let endpoint = Endpoint::start(World { endless: true, ..World::default() }).await;
    let reply = endpoint.get("/api/v1/terminals?q=x").await;
    assert_eq!((reply.status, reply.json()), (200, json!({"items": [], "next": "t0001"})));
    endpoint.stop().await;
}

#[tokio::test]
async fn unknown_parameters_and_bad_values_are_refused_with_what_is_allowed() {
    let endpoint = Endpoint::start(World::default()).await;
    let long = "x".repeat(300);
    let bad = [
        ("/api/v1/terminals?stat=x", "use state, type, q, limit, after"),
        ("/api/v1/status?x=1", "it takes none"),
        ("/api/v1/sessions?type=x", "use state, limit, after"),
        (
            "/api/v1/terminals?state=asleep",
            "`logged-out`, `logged-in`, `in-communication`, `unreachable`",
        ),
        ("/api/v1/sessions?state=", "`calling`, `active`, `ended`"),
        ("/api/v1/terminals?limit=0", "1 to 1000"),
        ("/api/v1/relays?limit=1001", "1 to 1000"),
        ("/api/v1/sessions?limit=-1", "1 to 1000"),
        ("/api/v1/terminals?limit=ten", "1 to 1000"),
        ("/api/v1/terminals?limit=99999999999999999999", "1 to 1000"),
        ("/api/v1/terminals?limit=1&limit=2", "once"),
        ("/api/v1/terminals?after=A", "1 to 63 of a-z"),
        ("/api/v1/sessions?after=x", "'x'"),
        ("/api/v1/explain?from=a", "'to' is missing"),
        ("/api/v1/explain?from=a&to=B", "1 to 63 of a-z"),
        (&format!("/api/v1/terminals?q={long}"), "at most 63 bytes"),
        (&format!("/api/v1/terminals?type={long}"), "at most 256 bytes"),
    ];
    for (path, allowed) in bad {
        let problem = endpoint.get(path).await.problem(400, "bad-request");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(allowed), "{path}: {detail}");
    }
    let head = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    endpoint.over_tcp("POST", "/api/v1/drain?now=1", &head).await.problem(400, "bad-request");
    for wrong in ["0", "86401", "-1", "99999999999999999999", "", "5m"] {
        let path = format!("/api/v1/drain?end_within_s={wrong}");
        endpoint.over_tcp("POST", &path, &head).await.problem(400, "bad-request");
    }
    assert!(endpoint.world.commands().is_empty());
    endpoint.stop().await;
}

/// Every sample has HELP and TYPE of its name above it, once, and its name begins `tasuki_`.
fn check_exposition(text: &str) -> BTreeSet<String> {
    let (mut helped, mut typed) = (BTreeSet::new(), BTreeSet::new());
    let mut samples = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(helped.insert(rest.split(' ').next().unwrap().to_owned()), "twice: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            assert!(typed.insert(name.to_owned()), "twice: {line}");
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            assert!(name.starts_with("tasuki_"), "{line}");
            assert!(helped.contains(name) && typed.contains(name), "not announced: {line}");
            value.parse::<f64>().unwrap_or_else(|_| panic!("no number: {line}"));
            assert!(samples.insert(sample.to_owned()), "twice: {line}");
        }
    }
    assert_eq!(helped, typed);
    samples
}

#[tokio::test]
async fn metrics_are_sound_prometheus_text() {
    let endpoint = Endpoint::start(World::default()).await;
    let reply = endpoint.get("/metrics").await;
    assert!(reply.head.contains("content-type: text/plain; version=0.0.4"), "{reply:?}");
    let samples = check_exposition(&reply.body);
    for sample in [
        "tasuki_links",
        "tasuki_link_rtt_seconds{relay=\"r2\"}",
        "tasuki_drops_total{reason=\"no-label\"}",
        "tasuki_switch_packets_total{direction=\"in\"}",
    ] {
        assert!(samples.contains(sample), "{sample}: {samples:?}");
    }
    endpoint.stop().await;
}

#[tokio::test]
async fn large_heads_and_bodies_are_refused() {
    let endpoint = Endpoint::start(World::default()).await;
    let large = format!("Host: localhost\r\nX: {}\r\n", "x".repeat(limits::HTTP_HEADER_BYTES));
    assert_eq!(endpoint.over_tcp("GET", "/healthz", &large).await.status, 431);
    let many: String = (0..=limits::HTTP_HEADER_FIELDS).map(|n| format!("X{n}: x\r\n")).collect();
    assert_eq!(
        endpoint.over_tcp("GET", "/healthz", &format!("Host: localhost\r\n{many}")).await.status,
        431
    );
    let length = limits::HTTP_BODY_BYTES + 1;
    let head =
        format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n");
    endpoint.over_tcp("POST", "/api/v1/drain", &head).await.problem(413, "too-large");

    // A body that does not say its length, to a route that reads it.
    let body = format!("{length:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(length));
    let head =
        "POST /local/v1/tokens HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let stream = UnixStream::connect(endpoint.socket()).await.unwrap();
    assert_eq!(exchange(stream, &format!("{head}{body}")).await.status, 413);
    endpoint.stop().await;
}

/// Short enough to wait for, long enough for a busy machine.
fn short() -> Bounds {
    let second = Duration::from_secs(1);
    let (connection, grace) = (2 * second, second / 2);
    Bounds {
        connections: 1,
        header: second,
        request: second,
        connection,
        grace,
        stall: second,
        ..Bounds::default()
    }
}

#[tokio::test]
async fn slow_clients_are_cut() {
    let endpoint = Endpoint::start_within(World::default(), short()).await;
    // With one connection at a time, each of these is answered only when the one before it was cut.
    assert_eq!(exchange(endpoint.tcp().await, "").await.status, 0, "says nothing");
    let reply = exchange(endpoint.tcp().await, "GET /healthz HTTP/1.1\r\nHo").await;
    assert!([0, 408].contains(&reply.status), "stops within the head: {reply:?}");
    let idle =
        exchange(endpoint.tcp().await, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(idle.status, 200, "answered, then idle");
    endpoint.stop().await;
}

#[tokio::test]
async fn a_body_that_never_comes_is_not_waited_for() {
    let endpoint = Endpoint::start(World::default()).await;
    let (door, bounds) = (Door::Local, short());
    let world = endpoint.world.clone();
    let admin = Admin::new(mpsc::channel(1).0);
    let service = Service {
        events: Events::start(admin.clone(), relay("r1")),
        admin,
        token: AdminToken::new(TOKEN).unwrap(),
        revoker: Arc::new(Registrar(world)),
        metrics: vec![],
    };
    let extra = Router::new().route("/read", post(async |body: String| body));
    let path = endpoint.folder.path().join("slow.sock");
    let socket = LocalSocket::bind(&path).unwrap();
    let router = router(service, door, extra, bounds);
    let server = tokio::spawn(serve::serve(socket, None, router, bounds, std::future::pending()));
    let stream = UnixStream::connect(&path).await.unwrap();
    let reply = exchange(stream, "POST /read HTTP/1.1\r\nContent-Length: 9\r\n\r\nx").await;
    reply.problem(408, "too-slow");
    server.abort();
    endpoint.stop().await;
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let endpoint = Endpoint::start(World::default()).await;
    let mut idle = endpoint.tcp().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    timeout(DEADLINE, idle.read_exact(&mut first)).await.unwrap().unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    endpoint.stop().await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut() {
    let world = World { terminals: 1000, attribute_bytes: 16 * 1024, ..World::default() };
    let endpoint = Endpoint::start_within(world, short()).await;
    let mut deaf = endpoint.tcp().await;
    let request = "GET /api/v1/terminals?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(20);
    deaf.write_all(request.as_bytes()).await.unwrap();
    // The only connection is taken until the deaf one is cut.
    assert_eq!(endpoint.get("/healthz").await.status, 200);
    drop(deaf);
    endpoint.stop().await;
}

#[tokio::test]
async fn the_local_socket_replaces_a_stale_one_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(local::SOCKET);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a stale socket");
    let socket = LocalSocket::bind(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert!(matches!(LocalSocket::bind(&path), Err(ServeError::Taken(_))));
    drop(socket);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    let error = LocalSocket::bind(&path).unwrap_err();
    assert!(error.to_string().contains("something else than a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn verbs_reach_what_they_name() {
    use cli::act::{self, Act};
    use cli::query::{self, Query};

    #[derive(clap::Parser)]
    enum Line {
        #[command(flatten)]
        Act(Act),
        #[command(flatten)]
        Query(Query),
    }
    let endpoint = Endpoint::start(World { terminals: 3, sessions: 2, ..World::default() }).await;
    let run = async |line: &str, json: bool| {
        let data = Some(endpoint.folder.path().to_owned());
        let global = Global { data, json, ..Global::default() };
        let words = std::iter::once("tasuki-relay").chain(line.split(' '));
        let mut out = Vec::new();
        match <Line as clap::Parser>::try_parse_from(words).unwrap() {
            Line::Act(act) => act::perform(&global, act, &mut out).await,
            Line::Query(query) => query::show(&global, query, &mut out).await,
        }
        .map_err(|error| error.to_string())?;
        Ok::<_, String>(String::from_utf8(out).unwrap())
    };
    let session = session_id(1);
    let acts = [
        ("kick t0002".to_owned(), "KickTerminal(t0002)".to_owned()),
        ("kick r2".to_owned(), "KickRelay(r2)".to_owned()),
        ("revoke t0002".to_owned(), "Revoke(Terminal(t0002))".to_owned()),
        ("revoke --relay t0001".to_owned(), "Revoke(Relay(t0001))".to_owned()),
        (format!("end {session}"), format!("EndSession({session})")),
        ("drain".to_owned(), "Drain(None)".to_owned()),
        ("undrain".to_owned(), "Undrain".to_owned()),
    ];
    for (line, command) in acts {
        assert!(run(&line, false).await.unwrap().ends_with('\n'), "{line}");
        assert_eq!(std::mem::take(&mut *endpoint.world.commands()), [command.as_str()]);
    }
    for (line, items) in [
        ("relays", 3),
        ("terminals", 3),
        ("terminals --type camera -q t00 --state logged-out", 1),
        ("terminals -q nobody", 0),
        ("sessions", 4),
        ("sessions --state ended", 2),
    ] {
        let table = run(line, false).await.unwrap();
        assert_eq!(table.lines().count(), 1 + items, "{line}: {table}");
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        let list: Value = serde_json::from_str(&run(line, true).await.unwrap()).unwrap();
        let lines = if line.starts_with("sessions") { 2 } else { 1 };
        assert_eq!(list.as_array().unwrap().len() * lines, items, "{line}");
    }
    let status = run("status", false).await.unwrap();
    assert!(status.contains("LINK  RTT     SINCE"), "{status}");
    assert!(status.contains("r2    1.5 ms  "), "{status}");
    assert!(status.lines().all(|line| line.chars().count() <= 80), "{status}");
    let explained = run("explain a b ssh", false).await.unwrap();
    let lines: Vec<&str> = explained.lines().collect();
    assert_eq!(
        &lines[..4],
        [
            "refused with caller-not-allowed",
            "why       because",
            "do        do this",
            "route     r1"
        ]
    );
    let explained = run(&format!("explain --session {session}"), false).await.unwrap();
    assert!(explained.starts_with("ended with ended-by-caller\n"), "{explained}");
    assert!(explained.contains(&format!("session   {session}\n")), "{explained}");
    assert!(explained.lines().all(|line| line.chars().count() <= 80), "{explained}");
    for line in ["status", "explain a b ssh", "drain"] {
        assert!(serde_json::from_str::<Value>(&run(line, true).await.unwrap()).is_ok(), "{line}");
    }
    endpoint.world.commands().clear();
    for (line, expected) in [
        ("kick t0001", "ambiguous-name: t0001: "),
        ("kick nobody", "unknown-name: nobody: "),
        ("revoke r1", "not-registrar: the registrar is r2: "),
    ] {
        let error = run(line, false).await.unwrap_err();
        assert!(error.starts_with(expected), "{line}: {error}");
    }
    assert!(endpoint.world.commands().is_empty());
    endpoint.stop().await;
}

#[tokio::test]
async fn the_console_is_served_with_its_policy_and_is_asked_for_again() {
    let endpoint = Endpoint::start(World::default()).await;
    let page = endpoint.get("/").await;
    assert_eq!(page.status, 200);
    for field in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; ",
        "referrer-policy: no-referrer",
        "x-content-type-options: nosniff",
        "cache-control: no-cache",
    ] {
        assert!(page.head.contains(field), "{field}: {page:?}");
    }
    let tag = page.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let again = endpoint
        .over_tcp("GET", "/", &format!("Host: localhost\r\nIf-None-Match: {tag}\r\n"))
        .await;
    assert_eq!((again.status, again.body.len()), (304, 0), "{again:?}");
    let script = endpoint.get("/console/views/map.js").await;
    assert_eq!(script.status, 200);
    assert!(script.head.contains("content-type: text/javascript"), "{script:?}");
    let login = "Host: localhost\r\nAuthorization: Bearer ".to_owned() + TOKEN + "\r\n";
    assert_eq!(endpoint.over_tcp("POST", "/api/v1/login", &login).await.status, 200);
    let login = "Host: localhost\r\nAuthorization: Bearer wrong-token-of-length\r\n";
    endpoint.over_tcp("POST", "/api/v1/login", login).await.problem(401, "unauthorized");
    for other in ["/console/", "/console/../Cargo.toml", "/console/index.html", "/console/views"] {
        assert_eq!(endpoint.get(other).await.status, 404, "{other}");
    }
    endpoint.stop().await;
}
