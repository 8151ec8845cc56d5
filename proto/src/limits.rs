//! Every limit on what a peer can make grow, with its unit and what happens there.

use std::time::Duration;

/// Bytes of a name (RFC 1035, section 2.3.4: a DNS label).
pub const NAME_BYTES: usize = 63;
/// Bytes that one bincode value may claim; beyond: decode error.
pub const DECODE_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of a message between terminal and relay; beyond: the connection ends.
pub const CONTROL_MESSAGE_BYTES: usize = 256 * 1024;
/// Bytes of a message between relays; beyond: the link ends.
pub const MESH_MESSAGE_BYTES: usize = 1024 * 1024;
/// Bytes of a message during enrolment, before anybody is known; beyond: the connection ends.
pub const ENROLMENT_MESSAGE_BYTES: usize = 16 * 1024;
/// Bytes of a record's payload; beyond: the record is dropped and counted.
pub const RECORD_PAYLOAD_BYTES: usize = 64 * 1024;
/// Relays on a route; a longer one is refused with `hop-limit`.
pub const ROUTE_RELAYS: usize = 16;
/// Relays of a mesh up to which each links with all others (architecture 5).
pub const FULL_MESH_RELAYS: usize = 12;
/// Relays that one relay knows; further ones are neither dialled nor accepted.
pub const RELAYS: usize = 4096;
/// Links of one relay; further ones that others dial are refused with `overloaded`.
pub const LINKS: usize = 64;
/// Validated addresses of one neighbour; the oldest makes room.
pub const NEIGHBOUR_ADDRESSES: usize = 16;
/// Messages waiting for one terminal; beyond: the attachment is cut with `too-slow`.
pub const TERMINAL_QUEUE: usize = 256;
/// Call messages waiting for one link; beyond: the link is cut with `too-slow`.
pub const LINK_QUEUE: usize = 4096;
/// Events waiting for a relay's core; senders wait.
pub const CORE_INBOX: usize = 4096;
/// Sessions of one terminal, pending ones included; further calls are refused with `busy`.
pub const SESSIONS_PER_TERMINAL: usize = 1024;
/// Sessions over one relay; further calls are refused with `busy`.
pub const SESSIONS_PER_RELAY: usize = 200_000;
/// Calls that one terminal may begin per second, on average and in a burst; beyond: `busy`.
pub const CALLS_PER_SECOND: u32 = 2_000;
/// Attributes of a terminal, and groups.
pub const ATTRIBUTES: usize = 32;
/// Bytes of a key or value of an attribute.
pub const ATTRIBUTE_BYTES: usize = 256;
/// Advertised addresses of a relay.
pub const RELAY_ADDRESSES: usize = 8;
/// Incoming handshakes that wait, per endpoint; beyond: refused.
pub const INCOMING_HANDSHAKES: usize = 2_000;
/// Bytes that one incoming handshake may buffer; beyond: dropped.
pub const INCOMING_HANDSHAKE_BYTES: u64 = 16 * 1024;
/// Bytes that all incoming handshakes together may buffer; beyond: dropped.
pub const INCOMING_TOTAL_BYTES: u64 = 8 * 1024 * 1024;
/// QUIC packets waiting for one of a relay's own endpoints; beyond: dropped and counted.
pub const ENDPOINT_QUEUE: usize = 4096;
/// How long a label that was removed is not used again.
pub const LABEL_REST: Duration = Duration::from_secs(120);
/// How long a call may stay unanswered (interfaces: 10 s); then `no-answer`.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end-to-end handshake of an accepted call may take; then the session ends with `peer-not-proven`.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(10);
/// Fresh calls for one request whose call was merged into one that came to nothing; then `no-answer`.
pub const REDIALS: u8 = 2;
/// Finished sessions that a terminal remembers to understand late messages; the oldest makes room.
pub const FINISHED_SESSIONS: usize = 4096;
/// Characters of the detail of a refusal that are kept of what a peer sent.
pub const REFUSAL_DETAIL: usize = 300;
/// The largest clock-free delay a peer may ask of us; longer ones are cut to it.
pub const PEER_DELAY: Duration = Duration::from_secs(300);
/// Rows in one page of a list.
pub const PAGE: usize = 1000;
