//! QUIC settings that relay and terminal have in common.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quinn::{EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use rand::Rng;

use super::cid::{CidClass, ClassCids};
use crate::identity::write_private;
use crate::limits;

/// Streams of a link: calls, gossip, and requests to the registrar.
const LINK_STREAMS: u32 = 1 + limits::GOSSIP_STREAMS as u32 + 63;

/// Keys that outlive a restart, so that peers of the earlier process are told at once that it is gone.
#[derive(Clone)]
pub struct EndpointKeys {
    reset: [u8; 32],
    cid: [u8; 32],
}

impl EndpointKeys {
    /// Fresh keys, for a node whose peers need not notice a restart.
    pub fn random() -> Self {
        let mut rng = rand::rng();
        Self { reset: rng.random(), cid: rng.random() }
    }

    /// The keys in the file `path`; makes it (0600) where it is missing or damaged. Where it cannot be written, the keys
    /// serve for this start.
    ///
    /// # Errors
    /// The system's, when the file is there and cannot be read.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        let kept = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        if let Ok(bytes) = <[u8; 64]>::try_from(&kept[..]) {
            let mut keys = Self { reset: [0; 32], cid: [0; 32] };
            keys.reset.copy_from_slice(&bytes[..32]);
            keys.cid.copy_from_slice(&bytes[32..]);
            return Ok(keys);
        }
        if !kept.is_empty() {
            tracing::warn!(path = %path.display(), "the file with the endpoint's keys is damaged and made anew");
        }
        let keys = Self::random();
        // On a full disk they serve until the next start.
        if let Err(error) = write_private(path, &[keys.reset, keys.cid].concat()) {
            tracing::warn!(%error, "the endpoint's keys could not be kept");
        }
        Ok(keys)
    }
}

/// How often a peer proves that it lives, and when it counts as dead (C3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Periods {
    /// A QUIC PING goes out after this much silence; its acknowledgement proves the other side.
    pub keep_alive: Duration,
    /// Nothing received for this long ends the connection, on both sides.
    pub idle: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self { keep_alive: Duration::from_secs(9), idle: Duration::from_secs(20) }
    }
}

impl Periods {
    /// Those of links between relays: at most 2 s and 6 s. They are few and carry everybody's calls, so each looks
    /// more often.
    pub fn of_links(self) -> Self {
        let idle = self.idle.min(Duration::from_secs(6));
        Self { keep_alive: self.keep_alive.min(Duration::from_secs(2)), idle }
    }
}

impl EndpointKeys {
    pub(super) fn cids(&self, class: CidClass) -> ClassCids {
        ClassCids::new(class, &self.cid)
    }
}

/// The settings of an endpoint.
pub fn endpoint_config(class: CidClass, keys: &EndpointKeys) -> EndpointConfig {
    let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &keys.reset);
    let mut config = EndpointConfig::new(Arc::new(reset));
    let cids = keys.cids(class);
    config
        .cid_generator(move || Box::new(cids.clone()))
        // Frames and QUIC packets are told apart by the fixed bit (crate::frame).
        .grease_quic_bit(false)
        // At the default of 20 ms a quarter of 1,000 peers would not hear of a restart for 20 s.
        .min_reset_interval(Duration::from_micros(100));
    config
}

/// A client configuration whose first packets are sorted to `class` by the server's reader.
pub fn client_config(
    crypto: Arc<dyn quinn::crypto::ClientConfig>,
    class: CidClass,
    transport: TransportConfig,
) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(crypto);
    config.transport_config(Arc::new(transport));
    config.initial_dst_cid_provider(Arc::new(move || super::cid::initial(class)));
    config
}

fn idle(period: Duration) -> Option<IdleTimeout> {
    IdleTimeout::try_from(period).ok()
}

/// Attachments and enrolment: few small streams, little memory (P7). Both sides keep alive, so that neither depends
/// on the other's period; what one sends puts off the other, so it costs no more.
pub fn attachment_transport(periods: Periods) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(2))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(64 * 1024))
        .receive_window(VarInt::from_u32(128 * 1024))
        .send_window(512 * 1024)
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(None)
        .keep_alive_interval(Some(periods.keep_alive))
        .max_idle_timeout(idle(periods.idle))
        .enable_segmentation_offload(false);
    transport
}

/// Links: a table of a million rows must cross them in seconds (P11).
pub fn link_transport(periods: Periods) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(LINK_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(2 * 1024 * 1024))
        .receive_window(VarInt::from_u32(8 * 1024 * 1024))
        .send_window(8 * 1024 * 1024)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(periods.keep_alive))
        .max_idle_timeout(idle(periods.idle));
    transport
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_outlive_a_restart_and_nothing_stops_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoint.key");
        let first = EndpointKeys::load_or_create(&path).unwrap();
        assert_eq!(EndpointKeys::load_or_create(&path).unwrap().reset, first.reset);
        // As a full disk leaves it.
        std::fs::write(&path, [7; 5]).unwrap();
        let second = EndpointKeys::load_or_create(&path).unwrap();
        assert_ne!(second.reset, first.reset);
        assert_eq!(EndpointKeys::load_or_create(&path).unwrap().reset, second.reset);
        assert!(EndpointKeys::load_or_create(&dir.path().join("none/endpoint.key")).is_ok());
    }
}
