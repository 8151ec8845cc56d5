//! The hidden verb `herd`: thousands of terminals in one process that log in for real and stay. They share a few
//! UDP sockets, since a machine has fewer open files than terminals.
//!
//! Each has a key, a certificate and an account of its own. The accounts are written into the registrar's store
//! while its relay is stopped: as enrolment leaves them, signed by the mesh's issuer.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use quinn::{Connection, Endpoint, RecvStream, SendStream, TokioRuntime};
use rand::Rng;
use serde_json::{Value, json};
use tasuki_proto::attest::Presence;
use tasuki_proto::codec::Envelope;
use tasuki_proto::control::{Hello, Login, ToRelay, ToTerminal};
use tasuki_proto::identity::{
    Clock, Identity, IdentityCell, Issuer, LEAF_LIFE_SECS, NodeKey, NodeName, PublicKey,
    identify_connection,
};
use tasuki_proto::net::{
    CidClass, EndpointKeys, Periods, attachment_transport, client_config, endpoint_config,
};
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::rows::{self, AccountRow, AttachmentRole};
use tasuki_proto::version::{Alpn, PROTOCOL, SOFTWARE};
use tasuki_proto::{LoginEpoch, RelayId, RelayName, TerminalId, limits};
use tasuki_relay::io::store::{IssuedCertificate, Mark, Rows, Store, StoreError};
use tasuki_terminal::core::login::{ATTACH_TIMEOUT, BACKOFF_MAX, BACKOFF_MIN, HASTE};
use tokio::sync::{Semaphore, watch};

use crate::helper;
use crate::rounds::percentile;

/// Accounts that are written in one transaction.
const BATCH: usize = 1_000;
/// Bytes that a socket buffers each way, as far as the system allows.
const SOCKET_BUFFER: usize = 8 * 1024 * 1024;
/// How long everybody's log-out may take.
const ALL_OUT: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// The registrar's data directory; its relay is stopped until the first answer.
    #[arg(long)]
    relay_data: PathBuf,
    /// Where the relay listens.
    #[arg(long)]
    relay: SocketAddr,
    /// Where they log in when that relay is lost: NAME=ADDRESS.
    #[arg(long)]
    other: Vec<String>,
    /// Terminals.
    #[arg(long)]
    count: usize,
    /// UDP sockets that they share.
    #[arg(long)]
    sockets: usize,
}

/// Answers `{}` when the accounts are written; then the commands `login AT_ONCE SECONDS`, `alive` and `leave`; and
/// after `anew`, `lost SECONDS`, answered when the first attachment is lost, and `again SECONDS`, when all that were lost are back.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let herd = Herd::new(flags).await?;
        helper::answer(&json!({}))?;
        while let Some(command) = tokio::task::spawn_blocking(helper::command).await?? {
            let answer = match command.split_once(' ') {
                Some(("login", rest)) => {
                    let (at_once, limit) = rest.split_once(' ').context("AT_ONCE SECONDS")?;
                    herd.log_in(at_once.parse()?, Duration::from_secs(limit.parse()?)).await?
                }
                Some(("lost", limit)) => herd.wait_lost(Duration::from_secs(limit.parse()?)).await,
                Some(("again", limit)) => herd.again(Duration::from_secs(limit.parse()?)).await,
                None if command == "alive" => herd.alive(),
                None if command == "anew" => {
                    herd.count_anew();
                    json!({})
                }
                None if command == "leave" => herd.leave().await,
                _ => bail!("unknown command: {command}"),
            };
            helper::answer(&answer)?;
        }
        Ok(())
    })
}

/// Writes an account for each name, with a certificate of a new key: what enrolment leaves in the store.
async fn register(data: &Path, names: Vec<TerminalId>) -> Result<Vec<IdentityCell>> {
    let own = Identity::load(data)?.context("no identity")?;
    let issuer = Arc::new(Issuer::load(data, own.mesh())?.context("no issuer")?);
    let store = Store::open(data)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut cells = Vec::with_capacity(names.len());
    for batch in names.chunks(BATCH) {
        let mut issued = Vec::with_capacity(batch.len());
        for id in batch {
            let (key, name) = (NodeKey::generate()?, NodeName::Terminal(id.clone()));
            let chain =
                issuer.certify(&name, &key.public(), false, since.as_secs(), LEAF_LIFE_SECS)?;
            let identity = Identity::new(key, chain, own.root().clone())?;
            let certificate = IssuedCertificate {
                not_before: identity.not_before(),
                not_after: identity.not_after(),
                chain: identity.chain().iter().map(|part| part.to_vec()).collect(),
            };
            issued.push((id.clone(), PublicKey(identity.key().public()), certificate));
            cells.push(IdentityCell::new(identity));
        }
        let (issuer, wall_ms) = (issuer.clone(), since.as_millis() as u64);
        let write = move |rows: &Rows<'_>| -> Result<(), StoreError> {
            for (id, key, certificate) in &issued {
                let account = AccountRow {
                    kind: "bench".into(),
                    attributes: std::collections::BTreeMap::new(),
                    groups: Vec::new(),
                    key: Some(*key),
                    registered_ms: wall_ms,
                };
                let sequence = rows.next(Mark::AuthoritySequence)?;
                let node = NodeName::Terminal(id.clone());
                rows.put_certificate(&key.fingerprint(), &node, certificate)?;
                let draft = Draft {
                    origin: RelayId::AUTHORITY,
                    kind: RecordKind::ACCOUNT,
                    key: id.as_str().as_bytes(),
                    version: Version { incarnation: issuer.term(), sequence },
                    wall_ms,
                    scope: 0,
                    lifetime_secs: 0,
                    tombstone: false,
                    payload: &rows::payload(&account),
                };
                rows.put_record(&Record::signed(&draft, &issuer.mesh_id(), issuer.key().signer()))?;
            }
            Ok(())
        };
        store.run(write).await?;
    }
    Ok(cells)
}

/// A client endpoint on a socket of its own.
fn endpoint() -> Result<Endpoint> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let sized = socket2::SockRef::from(&socket);
    // The system may allow less.
    let _ = sized.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = sized.set_send_buffer_size(SOCKET_BUFFER);
    let config = endpoint_config(CidClass::Terminals, &EndpointKeys::random());
    Ok(Endpoint::new(config, None, socket, Arc::new(TokioRuntime))?)
}

struct Herd {
    terminals: Vec<Arc<Terminal>>,
    shared: Arc<Shared>,
}

struct Terminal {
    cell: IdentityCell,
    config: quinn::ClientConfig,
    endpoint: Endpoint,
}

/// A relay, and who it has to be.
struct Known {
    address: SocketAddr,
    name: NodeName,
    server: String,
}

struct Shared {
    /// The one that all log in to, and those for who lost it.
    relays: Vec<Known>,
    clock: Clock,
    tries: AtomicU64,
    logged_in: AtomicUsize,
    alive: AtomicUsize,
    /// Attachments that ended though nobody here wanted it.
    lost: AtomicU64,
    /// From the first try to being logged in, ms.
    times: Mutex<Vec<u64>>,
    last_error: Mutex<String>,
    stay: watch::Sender<bool>,
}

impl Herd {
    async fn new(flags: &Flags) -> Result<Herd> {
        let names = (0..flags.count).map(|n| TerminalId::new(&format!("bench{n}")));
        let cells = register(&flags.relay_data, names.collect::<Result<_, _>>()?).await?;
        let endpoints =
            (0..flags.sockets.max(1)).map(|_| endpoint()).collect::<Result<Vec<_>>>()?;
        let clock = Clock::system(0);
        let own = Identity::load(&flags.relay_data)?.context("no identity")?;
        let relay: RelayName = own.relay_name().context("not a relay's directory")?.clone();
        let known = |name: RelayName, address| {
            let name = NodeName::Relay(name);
            Known { address, server: name.dns_name(own.mesh()), name }
        };
        let mut relays = vec![known(relay, flags.relay)];
        for other in &flags.other {
            let (name, address) = other.split_once('=').context("--other NAME=ADDRESS")?;
            relays.push(known(RelayName::new(name)?, address.parse()?));
        }
        let shared = Shared {
            relays,
            clock: clock.clone(),
            tries: AtomicU64::new(0),
            logged_in: AtomicUsize::new(0),
            alive: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            times: Mutex::default(),
            last_error: Mutex::default(),
            stay: watch::Sender::new(true),
        };
        let mut terminals = Vec::with_capacity(cells.len());
        for (cell, endpoint) in cells.into_iter().zip(endpoints.iter().cycle()) {
            let tls = tasuki_proto::identity::client_config(&cell, Alpn::Attachment, &clock)?;
            let crypto = Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls)?);
            let transport = attachment_transport(Periods::default());
            let config = client_config(crypto, CidClass::Terminals, transport);
            terminals.push(Arc::new(Terminal { cell, config, endpoint: endpoint.clone() }));
        }
        Ok(Herd { terminals, shared: Arc::new(shared) })
    }

    /// Logs everybody in, `at_once` at a time, each as often as it takes; who is not in within `limit` is counted as
    /// missing.
    async fn log_in(&self, at_once: usize, limit: Duration) -> Result<Value> {
        let shared = &self.shared;
        shared.stay.send_replace(true);
        shared.tries.store(0, Ordering::Relaxed);
        shared.logged_in.store(0, Ordering::Relaxed);
        lock(&shared.times).clear();
        let gate = Arc::new(Semaphore::new(at_once.max(1)));
        for terminal in &self.terminals {
            tokio::spawn(live(terminal.clone(), shared.clone(), gate.clone()));
        }
        Ok(self.all_in(limit).await)
    }

    /// Waits until an attachment is lost.
    async fn wait_lost(&self, limit: Duration) -> Value {
        let begun = Instant::now();
        while self.shared.lost.load(Ordering::Relaxed) == 0 && begun.elapsed() < limit {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.alive()
    }

    /// Waits until all are logged in a second time, at other relays.
    async fn again(&self, limit: Duration) -> Value {
        self.all_in(limit).await
    }

    async fn all_in(&self, limit: Duration) -> Value {
        let (begun, shared) = (Instant::now(), &self.shared);
        while shared.logged_in.load(Ordering::Relaxed) < self.terminals.len()
            && begun.elapsed() < limit
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = begun.elapsed().as_secs_f64();
        let mut times = lock(&shared.times).clone();
        times.sort_unstable();
        json!({
            "logged_in": times.len(),
            "all_in_s": took,
            "tries": shared.tries.load(Ordering::Relaxed),
            "p50_ms": percentile(&times, 0.5),
            "p99_ms": percentile(&times, 0.99),
            "max_ms": times.last(),
            "last_error": *lock(&shared.last_error),
        })
    }

    /// Who is lost from here on counts anew, and comes back.
    fn count_anew(&self) {
        let shared = &self.shared;
        for counter in [&shared.tries, &shared.lost] {
            counter.store(0, Ordering::Relaxed);
        }
        shared.logged_in.store(0, Ordering::Relaxed);
        lock(&shared.times).clear();
        lock(&shared.last_error).clear();
    }

    fn alive(&self) -> Value {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        json!({ "alive": self.shared.alive.load(Ordering::Relaxed), "lost": load(&self.shared.lost) })
    }

    /// Logs everybody out.
    async fn leave(&self) -> Value {
        self.shared.stay.send_replace(false);
        let begun = Instant::now();
        while self.shared.alive.load(Ordering::Relaxed) > 0 && begun.elapsed() < ALL_OUT {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.alive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One terminal: tries until it is logged in, as an agent does, and stays until told to leave. One that is cut off
/// logs in elsewhere, where it knows of other relays.
async fn live(terminal: Arc<Terminal>, shared: Arc<Shared>, gate: Arc<Semaphore>) {
    let Ok(permit) = gate.acquire_owned().await else { return };
    let Some(attached) = log_in(&terminal, &shared, &shared.relays[..1]).await else { return };
    drop(permit);
    let mut attached = attached;
    while stay(&shared, attached).await && shared.relays.len() > 1 {
        // After the loss of all attachments an agent tries within this time.
        let wait = HASTE.mul_f64(rand::rng().random_range(0.0..1.0));
        tokio::time::sleep(wait).await;
        let Some(again) = log_in(&terminal, &shared, &shared.relays[1..]).await else { return };
        attached = again;
    }
}

/// Logs in to any of these relays; `None` when told to leave.
async fn log_in(terminal: &Terminal, shared: &Shared, relays: &[Known]) -> Option<Attached> {
    let (begun, mut failures) = (Instant::now(), 0_u32);
    let stay = shared.stay.subscribe();
    let attached = loop {
        if !*stay.borrow() {
            return None;
        }
        shared.tries.fetch_add(1, Ordering::Relaxed);
        let relay = &relays[rand::rng().random_range(0..relays.len())];
        match tokio::time::timeout(ATTACH_TIMEOUT, attach(terminal, shared, relay)).await {
            Ok(Ok(attached)) => break attached,
            Ok(Err(error)) => *lock(&shared.last_error) = format!("{error:#}"),
            Err(_) => *lock(&shared.last_error) = format!("nothing in {ATTACH_TIMEOUT:?}"),
        }
        let wait = BACKOFF_MIN.saturating_mul(1 << failures.min(8)).min(BACKOFF_MAX);
        failures += 1;
        let jitter = rand::rng().random_range(0.75..1.25);
        tokio::time::sleep(wait.mul_f64(jitter)).await;
    };
    lock(&shared.times).push(begun.elapsed().as_millis() as u64);
    shared.logged_in.fetch_add(1, Ordering::Relaxed);
    Some(attached)
}

/// Stays logged in until told to leave or cut off; whether it was cut off.
async fn stay(shared: &Shared, attached: Attached) -> bool {
    let (connection, mut send, mut recv) = attached;
    let mut stay = shared.stay.subscribe();
    shared.alive.fetch_add(1, Ordering::Relaxed);
    let lost = tokio::select! {
        () = async { drop(stay.wait_for(|stay| !stay).await) } => {
            let logout = ToRelay::Logout(tasuki_proto::control::Logout {});
            let _ = send.write_chunk(logout.to_envelope().to_bytes()).await;
            let _ = tokio::time::timeout(ATTACH_TIMEOUT, connection.closed()).await;
            connection.close(0_u32.into(), b"");
            false
        }
        // Whatever a relay says to an idle terminal is read and let go.
        _ = async { while let Ok(Some(_)) = recv.read_chunk(usize::MAX, true).await {} } => {
            shared.lost.fetch_add(1, Ordering::Relaxed);
            let why = connection.close_reason().map(|reason| reason.to_string());
            *lock(&shared.last_error) = why.unwrap_or_else(|| "the stream ended".into());
            true
        }
    };
    shared.alive.fetch_sub(1, Ordering::Relaxed);
    lost
}

type Attached = (Connection, SendStream, RecvStream);

/// Handshake, proof of who the relay is, log-in.
async fn attach(terminal: &Terminal, shared: &Shared, relay: &Known) -> Result<Attached> {
    let config = terminal.config.clone();
    let connection = terminal.endpoint.connect_with(config, relay.address, &relay.server)?.await?;
    let (own, now) = (terminal.cell.get(), shared.clock.now_secs());
    identify_connection(&connection, &own, Some(&relay.name), &|_| false, now)
        .map_err(|code| anyhow!("{code}"))?;
    let (mut send, mut recv) = connection.open_bi().await?;
    let instance = rand::rng().random_range(1..u64::MAX);
    let hello = Hello { protocol: PROTOCOL, software: SOFTWARE.to_owned(), instance };
    send.write_chunk(ToRelay::Hello(hello).to_envelope().to_bytes()).await?;
    loop {
        let envelope = Envelope::read(&mut recv, limits::CONTROL_MESSAGE_BYTES).await?;
        match ToTerminal::from_envelope(&envelope.context("the relay closed")?)? {
            Some(ToTerminal::Welcome(welcome)) => {
                let epoch = LoginEpoch(welcome.epoch().0 + 1);
                let (relay, role) = (welcome.relay, AttachmentRole::Primary);
                let presence = Presence { relay, epoch, instance, role };
                let id = own.terminal_id().context("a terminal's identity")?;
                let signature = presence.sign(&own.mesh_id(), id, own.key()).signature;
                let login = Login { epoch, role, signature };
                send.write_chunk(ToRelay::Login(login).to_envelope().to_bytes()).await?;
            }
            Some(ToTerminal::LoggedIn(_)) => return Ok((connection, send, recv)),
            Some(ToTerminal::Refused(refused)) => bail!("{}", refused.refusal),
            _ => {}
        }
    }
}
