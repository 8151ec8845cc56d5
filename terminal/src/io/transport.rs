//! What the end-to-end connections of sessions are like: windows, acknowledgements, packet sizes, time-outs
//! (architecture 7).

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use quinn::{Connection, TransportConfig, VarInt};
use tasuki_proto::TerminalId;
use tasuki_proto::frame::HEAD;
use tasuki_proto::limits;

use super::congestion::CurrentPath;
use super::socket::PLAIN_BYTES;
use crate::core::shares::Shares;

/// Nothing for this long from the other terminal ends a session.
const IDLE: Duration = Duration::from_secs(90);
/// A session without traffic sends this often.
const KEEP_ALIVE: Duration = Duration::from_secs(25);
/// Heads around a session's packets: IPv6 (RFC 8200), UDP, frame.
const HEADS: u16 = 40 + 8 + HEAD as u16;
/// The largest IP packets of a session: jumbo frames of Ethernet. On the way to a relay that takes no more than the
/// usual 1,500 bytes nothing larger is tried.
const IP_BYTES: RangeInclusive<u16> = 1_500..=9_000;
/// Where more might fit than does, it is tried this often while packets are sent: up to twelve probes, 36 KB.
const SEARCH_AGAIN: Duration = Duration::from_secs(1);
/// quinn ends a connection with more than 1,024 gaps in one stream; a window this large cannot have them.
pub(super) const STREAM_WINDOW: u32 = 2_359_296;
/// Bytes in flight on one connection: 100 ms at 1.3 Gbit/s.
pub(super) const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// One acknowledgement covers so many packets of a bulk transfer (draft-ietf-quic-ack-frequency); lost or disordered
/// ones are told of at once, the last ones after 25 ms.
const ACK_PACKETS: u32 = 10;
/// Bytes of datagrams that wait, each way.
const DATAGRAM_BYTES: usize = 4 * 1024 * 1024;

/// The largest QUIC packets of a session.
pub(super) const MOST: u16 = *IP_BYTES.end() - HEADS;

/// The largest QUIC packets that are worth a try on this path.
pub(super) fn packet_bytes(path: &CurrentPath) -> u16 {
    let (least, most) = IP_BYTES.into_inner();
    let mtu = path.get().and_then(|path| tasuki_proto::net::mtu_towards(path.to));
    mtu.unwrap_or(least).clamp(least, most) - HEADS
}

/// The transport of the session that takes this path: with small windows, until [`Room::widen`].
pub(super) fn of(path: &CurrentPath) -> Arc<TransportConfig> {
    let mut transport = session_transport(path, packet_bytes(path));
    transport
        .receive_window(VarInt::from_u32(limits::FIRST_WINDOW_BYTES))
        .send_window(limits::FIRST_WINDOW_BYTES.into());
    Arc::new(transport)
}

/// What the sessions of this process may have under way besides their first windows.
static WINDOWS: Mutex<Shares> =
    Mutex::new(Shares::new(limits::WINDOW_BYTES_PER_PEER, limits::WINDOW_BYTES));

fn windows() -> MutexGuard<'static, Shares> {
    WINDOWS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The windows of one session.
#[derive(Debug, Default)]
pub(crate) struct Room(OnceLock<(TerminalId, u64)>);

impl Room {
    /// Gives a session the windows of one that somebody may use: its peer a service, or a local user one of
    /// the peer's. They get smaller as its peer, or all together, have more.
    pub(crate) fn widen(&self, connection: &Connection, peer: &TerminalId) {
        let mut fresh = false;
        let (_, bytes) = self.0.get_or_init(|| {
            fresh = true;
            let bytes = windows().take_part(peer, CONNECTION_WINDOW.into());
            (peer.clone(), bytes)
        });
        if fresh {
            let bytes = u32::try_from(*bytes).unwrap_or(CONNECTION_WINDOW);
            let bytes = bytes.max(limits::LEAST_WINDOW_BYTES);
            connection.set_send_window(bytes.into());
            connection.set_receive_window(bytes.into());
        }
    }

    /// Whether somebody may use the session.
    pub(crate) fn is_wide(&self) -> bool {
        self.0.get().is_some()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some((peer, bytes)) = self.0.get() {
            windows().give(peer, *bytes);
        }
    }
}

/// The transport of a session that takes this path, with packets of at most `packet_bytes`.
pub fn session_transport(path: &CurrentPath, packet_bytes: u16) -> TransportConfig {
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(packet_bytes);
    if usize::from(packet_bytes) > PLAIN_BYTES {
        // The socket lets large probes through once the session is busy; until then the search fails.
        discovery.interval(SEARCH_AGAIN).minimum_change(packet_bytes / 64);
    }
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_PACKETS.into());
    let mut transport = TransportConfig::default();
    transport
        .ack_frequency_config(Some(acks))
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::QUIC_STREAMS_PER_SESSION))
        // One says whether this side uses the session.
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BYTES)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(path.controllers())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IDLE.try_into().ok());
    transport
}
