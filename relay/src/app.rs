//! Puts a running relay together: identity, store, core, switch, endpoints, status endpoint.
#![allow(
    clippy::disallowed_methods,
    reason = "the composition root reads clocks and draws seeds once"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use rand::Rng;
use tasuki_proto::advice;
use tasuki_proto::control::RelayContact;
use tasuki_proto::dial::Dialler;
use tasuki_proto::enrolment::{keep_renewed, load_relays, save_relays};
use tasuki_proto::identity::{Clock, Identity, IdentityCell, NodeName, PublicKey};
use tasuki_proto::net::{EndpointKeys, Periods};
use tasuki_proto::traces::Traces;
use tasuki_proto::{Refusal, RelayName, limits};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::config::RelayConfig;
use crate::core::admin::AdminRequest;
use crate::core::{Config, Input, Relay};
use crate::io::driver::{Driver, HelloMaker, Stop};
use crate::io::endpoint::{Context, Endpoints};
use crate::io::event::Event;
use crate::io::http::{
    self, Admin, AdminToken, Events, LocalSocket, Node, Revoker, Security, Service,
};
use crate::io::registrar::{Registrar, local_routes, refusing_routes};
use crate::io::requests::{Requests, Way};
use crate::io::store::Store;
use crate::io::{links, terminals};
use crate::reload::Reloader;
use crate::switch::{Moved, Switch};

/// Keys that outlive a restart, in the data directory.
const ENDPOINT_KEYS: &str = "endpoint.key";
/// What actions over the status endpoint need, in the data directory.
const ADMIN_TOKEN: &str = "admin.token";
/// The local socket, in the data directory.
const SOCKET: &str = "relay.sock";
/// How long to wait before what the disk did not take is kept again.
const KEEP_AGAIN: Duration = Duration::from_secs(60);
/// How often the clock's high-water mark is kept.
const MARK_PERIOD: Duration = Duration::from_secs(3600);

/// Runs the relay until SIGTERM, which drains it first, or Ctrl-C, which does not. SIGHUP reads the settings again.
///
/// # Errors
/// When the data directory holds no identity, is in use, or something cannot be opened.
pub async fn run(reloader: Reloader) -> anyhow::Result<()> {
    let config = reloader.running.clone();
    let stop = stop_signals(config.periods.stop)?;
    let hangup = signal(SignalKind::hangup())?;
    let relay = Running::start(config).await?;
    tokio::spawn(reloader.run(hangup, relay.inbox.clone()));
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    relay.until(stop).await
}

/// A relay that runs in this process.
struct Running {
    driver: Driver,
    events: mpsc::Receiver<Event>,
    inbox: mpsc::Sender<Event>,
    stopped: watch::Sender<bool>,
    endpoints: Endpoints,
    /// Kept until the end: its drop stops the switch's threads.
    _switch: Arc<Switch>,
}

impl Running {
    async fn start(config: RelayConfig) -> anyhow::Result<Self> {
        let data = config.data.clone();
        if let Some(why) = advice::foreign_owner(&data) {
            anyhow::bail!(why);
        }
        let cell = IdentityCell::new(Identity::load(&data)?.with_context(|| {
            format!("no-identity: {}: use 'tasuki-relay init' or 'join' first", data.display())
        })?);
        let identity = cell.get();
        let name = identity
            .relay_name()
            .cloned()
            .with_context(|| format!("wrong-role: {}: it belongs to a terminal", data.display()))?;
        // Taken first: it shows whether another process runs on this directory.
        let socket = LocalSocket::bind(&data.join(SOCKET))?;
        let security = Security::new(config.status, config.status_certificate.as_ref(), &cell)?;
        let scheme = security.scheme();
        let status = TcpListener::bind(config.status).await.map_err(|error| {
            let (at, advice) = (config.status, advice::port(config.status, &error));
            anyhow::anyhow!("cannot-listen: status address (--status) {at}: {error}: {advice}")
        })?;
        let token = AdminToken::new(&admin_token(&data)?)?;
        let store = Store::open_for_run(&data)?;
        let incarnation = store.begin_incarnation_anyhow(wall_ms() / 1000).await?;
        tokio::spawn(store.clone().keep_incarnation(incarnation));
        tokio::spawn(store.clone().keep_trying());
        let clock = Clock::system(store.clock_mark().await?);
        let (inbox, arriving) = mpsc::channel(limits::CORE_INBOX);
        let events = inbox.clone();
        let moving = events.clone();
        // Where the inbox is full the table shows the earlier address until the next move.
        let moved: Moved = Arc::new(move |handle, to| {
            let _ = moving.try_send(Event::Moved(handle, to));
        });
        let secret = rand::rng().random();
        let keys = data.join(ENDPOINT_KEYS);
        let keys = EndpointKeys::load_or_create(&keys).map_err(|error| {
            anyhow::anyhow!("endpoint-key: {}: {error}: {}", keys.display(), advice::file(&error))
        })?;
        let secrets = (&secret, &keys);
        let switch =
            Arc::new(Switch::start(config.listen, threads(), secrets, moved).map_err(|error| {
                let (at, advice) = (config.listen, advice::port(config.listen, &error));
                anyhow::anyhow!("cannot-listen: UDP address (--listen) {at}: {error}: {advice}")
            })?);
        switch.table.pace.set(config.limits.session_mbit_s);
        let (records, made) = mpsc::channel(limits::CORE_INBOX);
        let (admin, asked) = mpsc::channel(limits::TERMINAL_QUEUE);
        tokio::spawn(forward(made, events.clone(), Event::Authority));
        tokio::spawn(forward(asked, events.clone(), Event::Admin));
        let registrar =
            Registrar::open(&data, cell.clone(), store.clone(), clock.clone(), records).await?;

        let way = Way::here(registrar.clone());
        let context = Arc::new(Context::new(
            cell.clone(),
            clock.clone(),
            events.clone(),
            Requests::new(way.clone(), cell.clone(), clock.clone()),
            Periods { keep_alive: config.periods.keep_alive, idle: config.periods.idle },
            config.limits.per_address,
        ));
        let endpoints = Endpoints::open(&switch, &keys, &context)?;
        let shown_name = name.clone();
        let mut core =
            Relay::new(core_config(&config, &identity, incarnation, name), Instant::now());
        let known = load_relays(&data)?;
        core.handle(Input::Contacts(known), Instant::now(), wall_ms());
        for record in store.records().await? {
            core.handle(Input::Authority(record), Instant::now(), wall_ms());
        }
        if let Some(head) = store.head().await? {
            core.handle(Input::AuthorityHead(head), Instant::now(), wall_ms());
        }
        if let Some(registrar) = &registrar {
            let (term, signer) = registrar.issuer_signer();
            core.handle(Input::Issuer(term, signer), Instant::now(), wall_ms());
        }

        let hello = Arc::new(HelloMaker {
            addresses: config.advertise.clone(),
            incarnation: AtomicU64::new(incarnation.0),
            instance: rand::rng().random(),
        });
        let making = hello.clone();
        tokio::spawn(terminals::accept(endpoints.terminals.clone(), context.clone()));
        tokio::spawn(links::accept(
            endpoints.links.clone(),
            Arc::new(move || making.hello()),
            context.clone(),
        ));
        let traces = Traces::start(config.traces.clone(), "tasuki-relay", shown_name.as_str());
        let admin = Admin::new(admin);
        let service = Service {
            events: Events::start(admin.clone(), shown_name),
            admin,
            token,
            revoker: Arc::new(Revoking(registrar.clone(), way.clone())),
            metrics: vec![Arc::new(traces.clone()), Arc::new(store.health().clone())],
        };
        tokio::spawn(keep_watchdog(service.admin.clone()));
        let (stopped, stop) = watch::channel(false);
        serve_http((status, security), socket, service, registrar.clone(), way.clone(), &stop);
        if let Some(registrar) = registrar {
            if let Err(refusal) = registrar.advertise(config.advertise.clone()).await {
                // Others hear the addresses from this relay itself; its account has those of the last start.
                tracing::error!(%refusal, "this relay's account could not be brought up to date");
            }
            tokio::spawn(registrar.run());
        }
        let contacts: watch::Sender<Vec<RelayContact>> = watch::Sender::new(load_relays(&data)?);
        tokio::spawn(tell_renewals(cell.clone(), context.events.clone()));
        let renewing = (cell, clock.clone(), context.dialler.clone());
        tokio::spawn(keep_certificate(renewing, data.clone(), contacts.subscribe()));
        tokio::spawn(keep_mark(store.clone(), clock, context.identity.clone()));
        tokio::spawn(keep_contacts(data, contacts.subscribe()));
        let parts = (endpoints.clone(), switch.clone());
        let driver = Driver::new(core, context, parts, hello, way, (store, traces), contacts);
        tracing::info!(
            listen = %switch.socket().local_addr()?,
            status = %format_args!("{scheme}://{}", config.status),
            incarnation = incarnation.0,
            "relay runs"
        );
        Ok(Self { driver, events: arriving, inbox, stopped, endpoints, _switch: switch })
    }

    /// Runs until `stop`; everybody is told, so that nobody waits for silence.
    async fn until(self, stop: mpsc::Receiver<Stop>) -> anyhow::Result<()> {
        self.driver.run(self.events, stop).await;
        tracing::info!("relay stops");
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
        self.stopped.send_replace(true);
        let goodbye = async {
            self.endpoints.terminals.wait_idle().await;
            self.endpoints.links.wait_idle().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
        Ok(())
    }
}

/// What actions over the status endpoint need.
fn admin_token(data: &Path) -> anyhow::Result<String> {
    let path = data.join(ADMIN_TOKEN);
    std::fs::read_to_string(&path).map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "restore it from a backup, or write 40 random letters into it (mode 600)"
            }
            _ => advice::file(&error),
        };
        anyhow::anyhow!("admin-token: {}: {error}: {advice}", path.display())
    })
}

fn core_config(
    config: &RelayConfig,
    identity: &Identity,
    incarnation: tasuki_proto::Incarnation,
    name: RelayName,
) -> Config {
    Config {
        name,
        mesh: identity.mesh().clone(),
        mesh_id: identity.mesh_id(),
        addresses: config.advertise.clone(),
        registrar: identity.is_registrar(),
        incarnation,
        authority: authority_of(identity),
        signer: identity.key().shared_signer(),
        links: config.links.choice(),
        terminals: config.limits.terminals,
        sessions: config.limits.sessions,
        seed: rand::rng().random(),
        started_ms: wall_ms(),
    }
}

fn authority_of(identity: &Identity) -> (tasuki_proto::Incarnation, PublicKey) {
    let (term, key) = identity.authority_key();
    (term, PublicKey(key))
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// One thread of the switch for every two processors, at most four.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| (n.get() / 2).clamp(1, 4))
}

/// SIGTERM lets everybody leave, for `drain` at most; a second one, or Ctrl-C, ends at once.
fn stop_signals(drain: Duration) -> anyhow::Result<mpsc::Receiver<Stop>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (told, stop) = mpsc::channel(2);
    tokio::spawn(async move {
        let mut drains = !drain.is_zero();
        loop {
            let terminated = tokio::select! {
                _ = terminate.recv() => true,
                _ = interrupt.recv() => false,
            };
            let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
            let stop = if terminated && drains { Stop::Drained(drain) } else { Stop::Now };
            drains = false;
            if told.send(stop).await.is_err() {
                return;
            }
        }
    });
    Ok(stop)
}

/// Tells systemd that the core answers, three times in each period that it asks for (`WatchdogSec`).
async fn keep_watchdog(admin: Admin) {
    let mut period_us = 0;
    if !sd_notify::watchdog_enabled(false, &mut period_us) {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_micros((period_us / 3).max(1000)));
    loop {
        ticks.tick().await;
        if admin.ask(AdminRequest::Status).await.is_none() {
            return;
        }
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
    }
}

async fn forward<T>(
    mut from: mpsc::Receiver<T>,
    to: mpsc::Sender<Event>,
    wrap: impl Fn(T) -> Event,
) {
    while let Some(one) = from.recv().await {
        if to.send(wrap(one)).await.is_err() {
            return;
        }
    }
}

fn serve_http(
    (status, security): (TcpListener, Security),
    socket: LocalSocket,
    service: Service,
    registrar: Option<Registrar>,
    way: Arc<Way>,
    stop: &watch::Receiver<bool>,
) {
    let stopping = |mut stop: watch::Receiver<bool>| async move {
        let _ = stop.wait_for(|stopped| *stopped).await;
    };
    let extra = match registrar {
        Some(registrar) => local_routes(registrar),
        None => refusing_routes(move || way.not_registrar()),
    };
    let (tcp, unix) = (stopping(stop.clone()), stopping(stop.clone()));
    let local = service.clone();
    tokio::spawn(async move {
        if let Err(error) = http::serve_tcp(status, service, security, tcp).await {
            tracing::error!(%error, "the status endpoint stopped");
        }
    });
    tokio::spawn(async move {
        http::serve_unix(socket, local, extra, unix).await;
    });
}

struct Revoking(Option<Registrar>, Arc<Way>);

impl Revoker for Revoking {
    fn revoke(&self, node: Node) -> BoxFuture<'_, Result<(), Refusal>> {
        let registrar = self.0.clone();
        Box::pin(async move {
            let registrar = registrar.ok_or_else(|| self.1.not_registrar())?;
            let name = match node {
                Node::Terminal(id) => NodeName::Terminal(id),
                Node::Relay(name) => NodeName::Relay(name),
            };
            registrar.revoke(name).await.map(|_| ())
        })
    }
}

/// A renewed certificate shows the key of the issuer that is in office.
async fn tell_renewals(cell: IdentityCell, events: mpsc::Sender<Event>) {
    let mut renewals = cell.subscribe();
    while renewals.changed().await.is_ok() {
        let (term, key) = authority_of(&renewals.borrow_and_update());
        if events.send(Event::Renewed(term, key)).await.is_err() {
            return;
        }
    }
}

async fn keep_certificate(
    (cell, clock, dialler): (IdentityCell, Clock, Dialler),
    data: std::path::PathBuf,
    contacts: watch::Receiver<Vec<RelayContact>>,
) {
    let keep = |enrolled: &tasuki_proto::enrolment::Enrolled| enrolled.identity.save(&data);
    let own = cell.get().relay_name().cloned();
    // Itself last: a registrar whose role went to another relay would certify itself.
    let relays = || {
        let all = contacts.borrow().clone();
        let is_own = |relay: &RelayContact| Some(&relay.name) == own.as_ref();
        let (own, others) = all.into_iter().partition(is_own);
        vec![others, own]
    };
    keep_renewed(&cell, &clock, &dialler, relays, keep).await;
}

async fn keep_mark(store: Store, clock: Clock, cell: IdentityCell) {
    loop {
        let mark = clock.advance_mark(cell.get().not_after());
        if let Err(error) = store.raise_clock_mark(mark).await {
            tracing::warn!(%error, "the clock's mark could not be kept");
        }
        if clock.behind_secs() > 300 {
            let seconds = clock.behind_secs();
            tracing::warn!(
                seconds,
                "this machine's clock is behind; certificates go by what passed"
            );
        }
        tokio::time::sleep(MARK_PERIOD).await;
    }
}

async fn keep_contacts(data: std::path::PathBuf, mut contacts: watch::Receiver<Vec<RelayContact>>) {
    while contacts.changed().await.is_ok() {
        loop {
            let (relays, data) = (contacts.borrow_and_update().clone(), data.clone());
            // The disk may take its time: no thread that others need waits for it.
            let saved = tokio::task::spawn_blocking(move || save_relays(&data, &relays)).await;
            match saved {
                Ok(Ok(())) => break,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the relays of the mesh could not be kept for the next start yet");
                    tokio::time::sleep(KEEP_AGAIN).await;
                }
                Err(_) => return,
            }
        }
    }
}
