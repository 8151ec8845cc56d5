//! Asks the gateway for a port that leads to the one UDP socket: PCP (RFC 6887), NAT-PMP (RFC 6886), UPnP-IGD.
//!
//! One task. It asks while the driver wants a mapping, renews it at half of its life, takes it back when the driver wants
//! none any more, and comes back later and later to a gateway that gives none. Only the gateway of the default route is
//! asked, by unicast, and a mapping counts only if it is at an address that a relay sees: behind a second NAT it would lead
//! nowhere, and nobody can make this terminal name a stranger's address to its peers.

mod route;
mod upnp;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{
    InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use upnp::Upnp;

/// How long a mapping is asked for, s: what a crash leaves behind is gone after that.
const LIFETIME: u32 = 3_600;
/// A mapping is not renewed more often.
const RENEW_LEAST: Duration = Duration::from_secs(1);
/// After the first attempts that failed, until the next; then the last again and again.
const AGAIN: [Duration; 3] =
    [Duration::from_secs(60), Duration::from_secs(300), Duration::from_secs(1_800)];
/// How long it may take to give a mapping back.
const FAREWELL: Duration = Duration::from_secs(1);
/// 250 ms, and three more tries: 3.75 s in all.
const TIMES: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 3,
    max_retry_timeout: Some(Duration::from_secs(2)),
};

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    gateway: Ipv4Addr,
    client: Ipv4Addr,
    port: NonZeroU16,
    seen: BTreeSet<IpAddr>,
}

impl Wanted {
    /// A mapping for `port`, at one of the addresses that relays see; `None` where there is no gateway to ask. Sends
    /// nothing.
    pub(super) fn new(port: u16, seen: BTreeSet<IpAddr>) -> Option<Wanted> {
        let gateway = route::default_gateway()?;
        // Connecting chooses the address of this machine, and no more.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((gateway, crab_nat::GATEWAY_PORT)).ok()?;
        let IpAddr::V4(client) = socket.local_addr().ok()?.ip() else { return None };
        Some(Wanted { gateway, client, port: NonZeroU16::new(port)?, seen })
    }
}

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is wanted, and nothing is held.
    Idle,
    /// Something is wanted or held, but leads nowhere at present.
    Without,
    /// This address leads to the socket.
    Mapped(SocketAddr),
}

/// The task, as the driver sees it. Both channels hold the latest value only.
#[derive(Debug)]
pub(super) struct PortMap {
    wanted: watch::Sender<Option<Wanted>>,
    state: watch::Receiver<State>,
}

impl PortMap {
    /// Starts the task; it ends after this is dropped and the mapping was given back.
    pub(super) fn start() -> PortMap {
        let (wanted, asked) = watch::channel(None);
        let (told, state) = watch::channel(State::Idle);
        tokio::spawn(run(asked, told));
        PortMap { wanted, state }
    }

    /// Says what is wanted, or that nothing is.
    pub(super) fn want(&self, wanted: Option<Wanted>) {
        self.wanted.send_if_modified(|now| {
            let changed = *now != wanted;
            *now = wanted;
            changed
        });
    }

    /// The address that leads to the socket.
    pub(super) fn mapped(&self) -> Option<SocketAddr> {
        match *self.state.borrow() {
            State::Mapped(address) => Some(address),
            State::Idle | State::Without => None,
        }
    }

    /// Whether nothing is wanted and nothing is held.
    pub(super) fn is_idle(&self) -> bool {
        self.wanted.borrow().is_none() && *self.state.borrow() == State::Idle
    }

    /// Comes back when something changed.
    pub(super) async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            // The task is gone: nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}

async fn run(mut wanted: watch::Receiver<Option<Wanted>>, state: watch::Sender<State>) {
    let mut ended = false;
    while !ended {
        let now = wanted.borrow_and_update().clone();
        if let Some(wish) = now {
            let mut held = None;
            ended = tokio::select! {
                changed = wanted.changed() => changed.is_err(),
                () = keep(&wish, &mut held, &state) => true,
            };
            if let Some(held) = held {
                state.send_replace(State::Without);
                let _ = timeout(FAREWELL, held.give_back()).await;
            }
            state.send_replace(State::Idle);
        } else {
            ended = wanted.changed().await.is_err();
        }
    }
}

/// Makes a mapping and renews it, without end.
async fn keep(wish: &Wanted, held: &mut Option<Held>, state: &watch::Sender<State>) {
    state.send_replace(State::Without);
    let mut failures = 0;
    loop {
        let next = match attempt(wish, held).await {
            Ok((external, lifetime)) => {
                failures = 0;
                state.send_replace(State::Mapped(external));
                (lifetime / 2).max(RENEW_LEAST)
            }
            Err(error) => {
                tracing::debug!(%error, gateway = %wish.gateway, "no port is mapped");
                state.send_replace(State::Without);
                if let Some(held) = held.take() {
                    let _ = timeout(FAREWELL, held.give_back()).await;
                }
                let wait = AGAIN[failures.min(AGAIN.len() - 1)];
                failures += 1;
                wait
            }
        };
        sleep_until(Instant::now() + next).await;
    }
}

/// Makes a mapping, or renews the one that is held: where it is, and for how long.
async fn attempt(wish: &Wanted, held: &mut Option<Held>) -> Result<(SocketAddr, Duration), Failed> {
    let held = match &mut *held {
        Some(held) => {
            held.renew().await?;
            held
        }
        None => {
            let made = Held::make(wish).await?;
            tracing::info!(external = %made.external(), by = made.name(), "port mapped");
            held.insert(made)
        }
    };
    let external = held.external();
    if wish.seen.contains(&external.ip()) {
        Ok((external, held.lifetime()))
    } else {
        Err(Failed(format!("{} is not what relays see", external.ip())))
    }
}

/// Why there is no mapping, for people.
#[derive(Debug)]
struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A mapping.
enum Held {
    /// Made by PCP or NAT-PMP, and the gateway's outer address where that is known apart.
    Asked(PortMapping, Option<Ipv4Addr>),
    /// Made by UPnP-IGD.
    Upnp(Upnp),
}

impl Held {
    async fn make(wish: &Wanted) -> Result<Held, Failed> {
        let options = PortMappingOptions {
            external_port: Some(wish.port),
            lifetime_seconds: Some(LIFETIME),
            timeout_config: Some(TIMES),
        };
        let (gateway, client) = (wish.gateway.into(), wish.client.into());
        let made =
            PortMapping::new(gateway, client, InternetProtocol::Udp, wish.port, options).await;
        let asked = match made {
            Ok(mapping) => Self::with_address(mapping).await,
            Err(error) => Err(Failed(error.to_string())),
        };
        match asked {
            Ok(held) => Ok(held),
            Err(first) => {
                Upnp::make(wish.gateway, SocketAddrV4::new(wish.client, wish.port.get()), LIFETIME)
                    .await
                    .map(Held::Upnp)
                    .map_err(|second| Failed(format!("{first}; UPnP: {second}")))
            }
        }
    }

    async fn with_address(mapping: PortMapping) -> Result<Held, Failed> {
        let address = match mapping.mapping_type() {
            PortMappingType::Pcp { .. } => None,
            PortMappingType::NatPmp => {
                let asked = natpmp::external_address(mapping.gateway(), Some(TIMES)).await;
                Some(asked.map_err(|error| Failed(error.to_string()))?)
            }
        };
        Ok(Held::Asked(mapping, address))
    }

    async fn renew(&mut self) -> Result<(), Failed> {
        match self {
            Held::Asked(mapping, address) => {
                mapping.renew().await.map_err(|error| Failed(error.to_string()))?;
                if address.is_some() {
                    let asked = natpmp::external_address(mapping.gateway(), Some(TIMES)).await;
                    *address = Some(asked.map_err(|error| Failed(error.to_string()))?);
                }
                Ok(())
            }
            Held::Upnp(mapping) => mapping.renew().await.map_err(Failed),
        }
    }

    async fn give_back(self) {
        match self {
            Held::Asked(mapping, _) => drop(mapping.try_drop().await),
            Held::Upnp(mapping) => mapping.give_back().await,
        }
    }

    fn external(&self) -> SocketAddr {
        match self {
            Held::Asked(mapping, address) => {
                let ip = match (address, mapping.mapping_type()) {
                    (Some(address), _) => IpAddr::V4(*address),
                    (None, PortMappingType::Pcp { external_ip, .. }) => external_ip.to_canonical(),
                    (None, PortMappingType::NatPmp) => Ipv4Addr::UNSPECIFIED.into(),
                };
                (ip, mapping.external_port().get()).into()
            }
            Held::Upnp(mapping) => mapping.external(),
        }
    }

    fn lifetime(&self) -> Duration {
        Duration::from_secs(match self {
            Held::Asked(mapping, _) => mapping.lifetime().into(),
            Held::Upnp(_) => LIFETIME.into(),
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Held::Asked(mapping, _) => match mapping.mapping_type() {
                PortMappingType::Pcp { .. } => "PCP",
                PortMappingType::NatPmp => "NAT-PMP",
            },
            Held::Upnp(_) => "UPnP",
        }
    }
}
