//! UDP sockets that quinn and the switch share, and the QUIC settings that both kinds of node have in common.
#![allow(clippy::disallowed_methods, reason = "this room acts: it owns sockets")]

mod batch;
mod cid;
mod files;
mod hops;
mod queue;
mod quic;
mod udp;

pub use batch::run_in_batches;
pub(crate) use cid::initial;
pub use cid::{CidClass, class_of};
pub use files::allow_files;
pub use hops::send_within;
pub use queue::{Inbox, Packet, QueueSocket};
pub use quic::{
    EndpointKeys, Periods, attachment_transport, client_config, endpoint_config, link_transport,
};
pub use udp::{AsyncUdp, BUFFER_BYTES, UdpIo, mtu_towards};

use std::net::SocketAddr;

/// An address as people and checks see it: a v4-mapped IPv6 address is written as IPv4 (CVE-2020-26262).
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
