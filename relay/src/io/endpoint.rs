//! QUIC endpoints over the sockets that the switch owns: one for links, one for terminals and newcomers.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use quinn::{Endpoint, ServerConfig, TokioRuntime};
use tasuki_proto::dial::Dialler;
use tasuki_proto::identity::{Clock, IdentityCell, KeyFingerprint, quinn_server_config};
use tasuki_proto::limits;
use tasuki_proto::net::{
    AsyncUdp, CidClass, EndpointKeys, Periods, QueueSocket, attachment_transport, client_config,
    endpoint_config, link_transport,
};
use tasuki_proto::version::Alpn;
use tokio::sync::mpsc;

use super::admission::Admission;
use super::event::Event;
use super::requests::Requests;
use crate::core::admission::PerAddress;
use crate::switch::Switch;

/// What every connection task needs.
#[derive(Debug)]
pub struct Context {
    /// Who this relay is.
    pub identity: IdentityCell,
    /// The time of certificates.
    pub clock: Clock,
    /// Revoked keys; the driver keeps it.
    pub revoked: ArcSwap<HashSet<KeyFingerprint>>,
    /// The driver's inbox.
    pub events: mpsc::Sender<Event>,
    /// Serves or passes on requests to the registrar.
    pub requests: Requests,
    /// Keep-alive and idle time.
    pub periods: Periods,
    /// Reaches other relays by their names; the same one renews the certificate.
    pub dialler: Dialler,
    /// Who begins a handshake with the endpoint of terminals.
    pub terminals: Admission,
    /// Who begins a handshake with the endpoint of links.
    pub links: Admission,
    numbers: AtomicU64,
}

impl Context {
    /// Puts it together.
    pub fn new(
        identity: IdentityCell,
        clock: Clock,
        events: mpsc::Sender<Event>,
        requests: Requests,
        periods: Periods,
        per_address: PerAddress,
    ) -> Self {
        let (revoked, numbers) = (ArcSwap::default(), AtomicU64::new(1));
        let (terminals, links) = (Admission::new(per_address), Admission::new(per_address));
        let dialler = Dialler::default();
        Self {
            identity,
            clock,
            revoked,
            events,
            requests,
            periods,
            dialler,
            terminals,
            links,
            numbers,
        }
    }

    /// A number that this process never uses twice.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether a key is revoked.
    pub fn is_revoked(&self, key: &KeyFingerprint) -> bool {
        self.revoked.load().contains(key)
    }
}

/// The relay's QUIC endpoints.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// Other relays.
    pub links: Endpoint,
    /// Terminals and newcomers.
    pub terminals: Endpoint,
}

impl Endpoints {
    /// Opens both on the switch's socket.
    ///
    /// # Errors
    /// The system's, or an unusable identity.
    pub fn open(switch: &Switch, keys: &EndpointKeys, context: &Context) -> anyhow::Result<Self> {
        let udp = Arc::new(AsyncUdp::write_only(switch.socket().clone()));
        let server = |alpns: &[Alpn], transport| -> anyhow::Result<ServerConfig> {
            let mut config = quinn_server_config(&context.identity, alpns, &context.clock)?;
            config
                .transport_config(Arc::new(transport))
                .max_incoming(limits::INCOMING_HANDSHAKES)
                .incoming_buffer_size(limits::INCOMING_HANDSHAKE_BYTES)
                .incoming_buffer_size_total(limits::INCOMING_TOTAL_BYTES);
            Ok(config)
        };
        let terminals = Endpoint::new_with_abstract_socket(
            endpoint_config(CidClass::Terminals, keys),
            Some(server(
                &[Alpn::Attachment, Alpn::Enrolment],
                attachment_transport(context.periods),
            )?),
            Arc::new(QueueSocket::new(udp.clone(), switch.terminals.clone())),
            Arc::new(TokioRuntime),
        )?;
        let links = Endpoint::new_with_abstract_socket(
            endpoint_config(CidClass::Links, keys),
            Some(server(&[Alpn::Link], link_transport(context.periods.of_links()))?),
            Arc::new(QueueSocket::new(udp, switch.links.clone())),
            Arc::new(TokioRuntime),
        )?;
        let mut this = Self { links, terminals };
        this.links.set_default_client_config(Self::dialling(context)?);
        Ok(this)
    }

    fn dialling(context: &Context) -> anyhow::Result<quinn::ClientConfig> {
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(
            tasuki_proto::identity::client_config(&context.identity, Alpn::Link, &context.clock)?,
        )?;
        Ok(client_config(
            Arc::new(crypto),
            CidClass::Links,
            link_transport(context.periods.of_links()),
        ))
    }
}
