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
/// Processes that a neighbour had before and that a relay remembers, so that it notices two with one identity; the oldest
/// makes room.
pub const PROCESSES_REMEMBERED: usize = 8;
/// Relays of which a relay shows that two processes have their identity; the oldest makes room.
pub const TWINS_SHOWN: usize = 16;
/// Links of one relay; further ones that others dial are refused with `overloaded`, and further ones in its row are
/// ignored.
pub const LINKS: usize = 64;
/// Validated addresses of one neighbour; the oldest makes room.
pub const NEIGHBOUR_ADDRESSES: usize = 16;
/// Messages waiting for one terminal, other than what becomes of its calls, sessions and paths; beyond: the attachment is
/// cut with `too-slow`.
pub const TERMINAL_QUEUE: usize = 256;
/// Calls and paths of others waiting for one terminal; further ones are refused with `busy`. One caller takes no more places
/// than are free, and one neighbour relay no more than three times as many.
pub const TERMINAL_OFFERS: usize = 128;
/// All messages waiting for one terminal, so many that the ends of all its sessions fit, and of an agent for its relay;
/// beyond: the attachment is cut with `too-slow`.
pub const TERMINAL_MESSAGES: usize = 8 * 1024;
/// Call messages waiting for one link, so many that the ends of all sessions fit that a relay may have; beyond: the link is
/// cut with `too-slow`.
pub const LINK_QUEUE: usize = 256 * 1024;
/// Call messages waiting for one link beyond which no call and no path is offered to it: refused with `busy`.
pub const LINK_OFFERS: usize = 2048;
/// Events waiting for a relay's core; senders wait.
pub const CORE_INBOX: usize = 4096;
/// Requests, events of attachments and events of sessions that wait for an agent's driver, each; senders wait.
pub const AGENT_INBOX: usize = 1024;
/// Accepted sessions that wait for an agent's services; a task for each waits.
pub const ACCEPTED_SESSIONS_QUEUE: usize = 64;
/// Ended sessions that an agent still shows; the oldest makes room.
pub const ENDED_SESSIONS_SHOWN_BY_AGENT: usize = 200;
/// Ended sessions that a relay still shows; the oldest makes room.
pub const ENDED_SESSIONS_SHOWN_BY_RELAY: usize = 2_000;
/// Sessions that one terminal begins, and sessions that it is called for, pending ones included; further calls and paths
/// that would make a session are refused with `busy`. Of those that it is called for one caller takes no more places than
/// are free, and one neighbour relay no more than three times as many.
pub const SESSIONS_PER_TERMINAL: usize = 1024;
/// Sessions from one terminal to another over one relay; further ones are refused with `busy`.
pub const SESSIONS_PER_PAIR: usize = 512;
/// Sessions over one relay; further ones are refused with `busy`. One terminal takes no more places than are free, and one
/// neighbour relay no more than three times as many.
pub const SESSIONS_PER_RELAY: usize = 200_000;
/// Relayed paths of one session at one relay; further ones are refused with `busy`.
pub const PATHS_PER_SESSION: usize = 4;
/// Wishes for knocks that a relay fulfils for one neighbour per second, on average; further wishes are told that none was sent.
pub const KNOCKS_PER_SECOND: u32 = 1;
/// Addresses of one advertised name that are knocked at for one wish; further ones are not.
pub const KNOCKED_ADDRESSES: usize = 4;
/// Wishes for knocks of one neighbour at once: one for each address that it may advertise.
pub const KNOCKS_AT_ONCE: u32 = RELAY_ADDRESSES as u32;
/// Calls that a relay refused by itself and writes into its ledger per second, on average; further ones are shown as long
/// as there is room, and not written.
pub const REFUSED_CALLS_KEPT_PER_SECOND: u32 = 10;
/// Such calls that are written at once.
pub const REFUSED_CALLS_KEPT_AT_ONCE: u32 = 100;
/// Calls and paths that one terminal may ask for per second, on average and in a burst; beyond: `busy`.
pub const CALLS_PER_SECOND: u32 = 2_000;
/// Calls and paths from one terminal to another per second, on average; beyond: `busy`.
pub const PAIR_CALLS_PER_SECOND: u32 = 1_000;
/// Calls and paths from one terminal to another at once; beyond: `busy`.
pub const PAIR_CALLS_AT_ONCE: u32 = 2_000;
/// Calls and paths that one neighbour relay may ask for per second, on average; beyond: `busy`.
pub const LINK_CALLS_PER_SECOND: u32 = 10_000;
/// Calls and paths that one neighbour relay may ask for at once; beyond: `busy`.
pub const LINK_CALLS_AT_ONCE: u32 = 20_000;
/// Messages of one terminal that a relay reads per second, on average and in a burst; beyond: it is not read for a while.
pub const TERMINAL_MESSAGES_PER_SECOND: u32 = 20_000;
/// Call messages of one neighbour relay that are read per second, on average and in a burst; beyond: as above.
pub const LINK_MESSAGES_PER_SECOND: u32 = 200_000;
/// Pages of lists that one terminal gets per second, on average; beyond: they come later.
pub const PAGES_PER_SECOND_AND_TERMINAL: u32 = 50;
/// Pages of lists that one terminal gets at once; beyond: they come later.
pub const PAGES_AT_ONCE_PER_TERMINAL: u32 = 200;
/// Pages of lists that all terminals of a relay get per second, on average and in a burst; beyond: they come later.
pub const PAGES_PER_SECOND: u32 = 200;
/// How far the epoch of a log-in may lie above the highest that is known of its terminal; beyond: a message is answered
/// with `protocol-error`, a row is as good as absent.
pub const EPOCH_JUMP: u64 = 1 << 20;
/// The highest epoch of a log-in, so that there is always one above it; a row beyond is as good as absent.
pub const EPOCH_MOST: u64 = u64::MAX / 2;
/// Log-ins in other relays' rows whose signatures a relay checked and remembers, as long as they are used: this many, and
/// as many again of those that were used before; beyond: they are checked again.
pub const ATTACHMENTS_CHECKED: usize = 1 << 20;
/// Log-ins in rows whose signatures a relay found not to hold and remembers, as above; beyond: they are checked again.
pub const ATTACHMENTS_REFUTED: usize = 1 << 16;
/// Signatures of log-ins that one look-up of a terminal checks at most; rows beyond count as absent until the next one.
pub const CHECKS_PER_LOOKUP: usize = 16;
/// How often per second an attachment may change its epoch or role, on average; beyond: cut with `protocol-error`.
pub const ROLE_CHANGES_PER_SECOND: u32 = 4;
/// Changes of an attachment's epoch or role in a burst.
pub const ROLE_CHANGES_AT_ONCE: u32 = 16;
/// How often per second all relays are told at once that a terminal came into communication or left it, on average; beyond:
/// a second later.
pub const COUNTS_PER_SECOND: u32 = 4;
/// How often in a burst.
pub const COUNTS_AT_ONCE: u32 = 16;
/// How often per second a relay tells its terminals that the relays of the mesh changed, on average; beyond: a moment later.
pub const CONTACTS_PER_SECOND: u32 = 2;
/// How often in a burst.
pub const CONTACTS_AT_ONCE: u32 = 16;
/// Attributes of a terminal, and groups.
pub const ATTRIBUTES: usize = 32;
/// Bytes of a key or value of an attribute.
pub const ATTRIBUTE_BYTES: usize = 256;
/// Advertised addresses of a relay; further ones are ignored.
pub const RELAY_ADDRESSES: usize = 8;
/// Bytes of the relays told to a terminal in one message; more go into further messages.
pub const CONTACT_BYTES_TOLD: usize = 128 * 1024;
/// Bytes of an advertised address: a DNS name and a port; longer ones are ignored.
pub const RELAY_ADDRESS_BYTES: usize = 260;
/// Bytes of the version of a peer's software that are kept.
pub const SOFTWARE_BYTES: usize = 64;
/// Incoming handshakes under way at one endpoint; beyond: not answered.
pub const INCOMING_HANDSHAKES: usize = 2_000;
/// First packets of sessions that wait to be looked at by a terminal; beyond: not answered. Each session has one
/// handshake, and further ones are not answered.
pub const SESSION_HANDSHAKES: usize = SESSIONS_PER_TERMINAL;
/// Words of one session's peer per second, on average; beyond: not read until later.
pub const WORDS_PER_SECOND: u32 = 20;
/// Such words at once.
pub const WORDS_AT_ONCE: u32 = 100;
/// Handshakes of the last half second that one endpoint carries out; beyond: not answered, the client asks again. One
/// address takes no more of them than are free, so that others always find some.
pub const HANDSHAKES_AT_ONCE: usize = 128;
/// Handshakes under way of one address (IPv4 address or IPv6 /64) at one endpoint, unless configured; beyond: not
/// answered.
pub const HANDSHAKES_PER_ADDRESS: u32 = 512;
/// Connections of one address at one endpoint, unless configured; further ones are refused.
pub const CONNECTIONS_PER_ADDRESS: u32 = 4_096;
/// Connections that one address begins per second at one endpoint, on average, unless configured; beyond: not
/// answered.
pub const CONNECTS_PER_SECOND_AND_ADDRESS: u32 = 256;
/// Connections that one address begins in a burst, unless configured; beyond: not answered.
pub const CONNECTS_AT_ONCE_PER_ADDRESS: u32 = 1_024;
/// Addresses that an endpoint remembers for their rate, besides twice as many as have connections; beyond: those
/// without a connection are forgotten.
pub const ADDRESSES_REMEMBERED: usize = 8_192;
/// How long a connected terminal may take to log in; then it is cut with `silent`.
pub const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of one terminal at one relay that are not logged in; the oldest makes room, cut with `overloaded`.
pub const LOGINS_PER_TERMINAL: usize = 4;
/// Pages of lists that one terminal asked for and that wait to be written to it; beyond: it is not read until they are.
pub const PAGES_PER_TERMINAL: usize = 4;
/// Bytes that one incoming handshake may buffer; beyond: dropped.
pub const INCOMING_HANDSHAKE_BYTES: u64 = 16 * 1024;
/// Bytes that all incoming handshakes together may buffer; beyond: dropped.
pub const INCOMING_TOTAL_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes of a QUIC packet of attachments, links and enrolment (what their endpoints announce: an Ethernet's 1,500
/// without the heads of IPv4 and UDP); longer ones are dropped and counted.
pub const OWN_PACKET_BYTES: usize = 1_472;
/// QUIC packets waiting in each of three queues for one of a node's own endpoints; beyond: dropped and counted.
pub const ENDPOINT_QUEUE: usize = 4096;
/// Of these, packets of one connection of a terminal or newcomer; beyond: dropped and counted.
pub const PACKETS_PER_CONNECTION: usize = 256;
/// Of these, packets of one link; beyond: dropped and counted.
pub const PACKETS_PER_LINK: usize = ENDPOINT_QUEUE / 2;
/// Packets that may be stateless resets, waiting for an endpoint that dials; beyond: dropped and counted.
pub const RESET_QUEUE: usize = 64;
/// How long a call may stay unanswered (interfaces: 10 s); then `no-answer`.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// End-to-end handshakes that one peer began at a terminal and that did not prove it, those included that were given up
/// in the last three seconds; further ones are refused.
pub const UNPROVEN_HANDSHAKES_PER_PEER: usize = 128;
/// As [`UNPROVEN_HANDSHAKES_PER_PEER`], of all peers.
pub const UNPROVEN_HANDSHAKES: usize = 512;
/// How long the end-to-end handshake of an accepted call may take; then the session ends with `peer-not-proven`.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a session whose paths are all lost waits for another one; then it ends, on both sides. Configurable at the
/// terminals.
pub const RESUME_TIME: Duration = Duration::from_secs(60);
/// The longest time after which a relay that is told to drain and end does so.
pub const DRAIN_TIME: Duration = Duration::from_secs(86_400);
/// Fresh calls for one request whose call was merged into one that came to nothing; then `no-answer`.
pub const REDIALS: u8 = 2;
/// Merged calls from one to the session that serves it; only a lying peer needs more.
pub const MERGED_CALLS: usize = 16;
/// Finished sessions that a terminal remembers to understand late messages; the oldest makes room.
pub const FINISHED_SESSIONS: usize = 4096;
/// Characters of the detail of a refusal that are kept of what a peer sent.
pub const REFUSAL_DETAIL: usize = 300;
/// The largest clock-free delay a peer may ask of us; longer ones are cut to it.
pub const PEER_DELAY: Duration = Duration::from_secs(300);
/// Rows in one page of a list.
pub const PAGE: usize = 1000;
/// Relays in a token; further ones are left out.
pub const TOKEN_RELAYS: usize = 4;
/// Characters of a token; a longer one is refused as damaged.
pub const TOKEN_CHARACTERS: usize = 8 * 1024;
/// Bytes of the registrar's answer; relays beyond are left out.
pub const ENROLMENT_ANSWER_BYTES: usize = 64 * 1024;
/// Connections for enrolment and renewal at one relay. Beyond, the oldest one makes room that has not asked yet or has its
/// answer, of the address that has most of those; where there is none, the next one is refused with `overloaded`.
pub const ENROLMENT_CONNECTIONS: usize = 256;
/// How long such a connection may take to ask; beyond: it ends.
pub const ENROLMENT_REQUEST_TIME: Duration = Duration::from_secs(3);
/// Requests for enrolment that one relay passes to the registrar and that are not answered yet, and as many for renewal, so
/// that both fit into the streams of a link; further ones are refused with `overloaded`. One address or neighbour relay
/// takes no more places than are free.
pub const ENROLMENT_REQUESTS: usize = 24;
/// Requests of one address or neighbour relay that are looked at per second, on average and in a burst: a renewal's
/// signature is checked. Beyond: `overloaded`.
pub const REQUESTS_LOOKED_AT_PER_SECOND: u32 = 200;
/// Requests for enrolment that one relay takes per second, on average, and as many for renewal; beyond: `overloaded`. One
/// address or neighbour relay takes half of them at most.
pub const ENROLMENTS_PER_SECOND: u32 = 100;
/// Such requests of one address or neighbour relay at once; of all together those of a second more. Beyond: `overloaded`.
pub const ENROLMENTS_AT_ONCE: u32 = 100;
/// Renewals of one node per second, on average; beyond: `overloaded`.
pub const RENEWALS_PER_SECOND_AND_NODE: u32 = 1;
/// Renewals of one node at once; beyond: `overloaded`.
pub const RENEWALS_AT_ONCE_PER_NODE: u32 = 8;
/// Tasks waiting for the store's thread; senders wait.
pub const STORE_QUEUE: usize = 1024;
/// Finished sessions in a relay's ledger; the oldest make room.
pub const LEDGER_SESSIONS: u64 = 200_000;
/// How long a finished session stays in a relay's ledger.
pub const LEDGER_AGE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Tokens that were made and are not used; further ones are refused with `overloaded`.
pub const OPEN_TOKENS: u64 = 100_000;
/// Connections to the status endpoint at once, and as many to the local socket. Beyond, the oldest one makes room that has
/// no request under way, of the address or user that has most of those; where there is none, as many again wait for
/// `HTTP_ANSWER_TIME`, and further ones are closed.
pub const HTTP_CONNECTIONS: usize = 64;
/// Requests of one user under way over the local socket; further connections of that user wait as above.
pub const HTTP_REQUESTS_PER_USER: usize = HTTP_CONNECTIONS * 3 / 4;
/// How long such a connection may take for its first byte; beyond: it ends.
pub const HTTP_FIRST_BYTE_TIME: Duration = Duration::from_secs(3);
/// Connections to the status endpoint of one address (IPv4 address or IPv6 /64) where it is open to the network; further
/// ones are closed.
pub const HTTP_CONNECTIONS_PER_ADDRESS: usize = 16;
/// How long a TLS handshake with the status endpoint may take; beyond: the connection ends.
pub const HTTP_HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Bytes of a request line with its header fields; beyond: 431, and the connection ends.
pub const HTTP_HEADER_BYTES: usize = 16 * 1024;
/// Header fields of a request; beyond: 431, and the connection ends.
pub const HTTP_HEADER_FIELDS: usize = 64;
/// Bytes of a request's body; beyond: 413.
pub const HTTP_BODY_BYTES: usize = 64 * 1024;
/// Bytes that a connection of the status endpoint buffers each way; beyond: it is not read until it is written.
pub const HTTP_BUFFER_BYTES: usize = 64 * 1024;
/// How long a client may take for a request's header, or be idle; beyond: the connection ends.
pub const HTTP_HEADER_TIME: Duration = Duration::from_secs(10);
/// How long a request may take, its body included; beyond: 408.
pub const HTTP_REQUEST_TIME: Duration = Duration::from_secs(15);
/// How old a connection of the status endpoint gets before it takes no further request.
pub const HTTP_CONNECTION_TIME: Duration = Duration::from_secs(60);
/// How long the last response of such a connection may still take; beyond: it is cut.
pub const HTTP_GRACE_TIME: Duration = Duration::from_secs(20);
/// How long the status endpoint waits for one answer of the core; beyond: 503.
pub const HTTP_ANSWER_TIME: Duration = Duration::from_secs(3);
/// How long one list request searches; beyond: the page ends early, with a cursor.
pub const HTTP_LIST_TIME: Duration = Duration::from_secs(3);
/// Bytes after which a page of a list ends early, with a cursor; the last rows may pass it.
pub const HTTP_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Event streams at once, those over the local socket included; one too many gets 503.
pub const HTTP_WATCHERS: usize = 32;
/// Bytes of events that wait for one watcher; beyond: they are left out, and it is told with `resync`.
pub const HTTP_WATCHER_BYTES: usize = 1024 * 1024;
/// Pieces of events that wait for one watcher; beyond: as above.
pub const HTTP_WATCHER_PIECES: usize = 256;
/// How long a watcher may be behind, and a response unread; beyond: the connection is cut.
pub const HTTP_STALL_TIME: Duration = Duration::from_secs(20);
/// How often watchers are told of changes; those of one row in between are one event.
pub const HTTP_EVENT_PERIOD: Duration = Duration::from_millis(100);
/// How long an event stream is silent at most: then it carries a comment.
pub const HTTP_COMMENT_PERIOD: Duration = Duration::from_secs(15);
/// Questions of the status endpoint that the core is asked at once; further ones wait, so that nothing else does.
pub const HTTP_QUESTIONS: usize = 4;
/// Changed rows that a relay remembers for its watchers; the oldest makes room, and who needs it gets `resync`.
pub const CHANGES: usize = 65_536;
/// Changed rows that the core shows at once; the next answer goes on behind them.
pub const CHANGES_AT_ONCE: usize = 256;
/// Terminals of a relay that came or went out of reach which watchers are told of one by one; beyond: `resync`.
pub const CHANGES_BY_REACH: usize = 4096;
/// Events in the history of one terminal or relay; the oldest makes room.
pub const HISTORY_PER_NAME: usize = 32;
/// Events in all histories together; the oldest makes room.
pub const HISTORY: usize = 65_536;
/// Bytes of a response that a verb reads from its daemon; beyond: the verb fails.
pub const HTTP_REPLY_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of records after which a gossip message takes no further record; the rest goes into the next message.
pub const GOSSIP_CHUNK_BYTES: usize = 64 * 1024;
/// Streams that the gossip of one link is spread over, by origin.
pub const GOSSIP_STREAMS: usize = 16;
/// Heads in one message; beyond: the link ends.
pub const GOSSIP_HEADS: usize = 256;
/// Origins that a table holds, the authority included; rows of further ones are dropped and counted.
pub const GOSSIP_ORIGINS: usize = 4096;
/// Rows of the authority; a head that stands for more is dropped and counted.
pub const GOSSIP_AUTHORITY_ROWS: u64 = 8 * 1024 * 1024;
/// Bytes of the authority's rows; a head that stands for more is dropped and counted.
pub const GOSSIP_AUTHORITY_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Rows of one relay besides two for each row of the authority; a head that stands for more is dropped and counted.
pub const GOSSIP_RELAY_ROWS: u64 = 65_536;
/// Bytes of the rows of one relay besides [`GOSSIP_ROW_BYTES`] for each row of the authority; a head that stands for
/// more is dropped and counted.
pub const GOSSIP_RELAY_BYTES: u64 = 32 * 1024 * 1024;
/// See [`GOSSIP_RELAY_BYTES`].
pub const GOSSIP_ROW_BYTES: u64 = 512;
/// Rows that the core puts into its table at once; further ones of the same head follow in later turns.
pub const GOSSIP_APPLIED_AT_ONCE: usize = 4096;
/// Heads of origins without a known key that are remembered for each link; beyond: the head is not remembered, and
/// comes again with the next refresh.
pub const GOSSIP_HEADS_WAITING: usize = 1024;
/// How far an origin's incarnation or sequence may jump at once; beyond: dropped and counted.
pub const VERSION_JUMP: u64 = 1 << 40;
/// The highest incarnation that is believed of an origin of which nothing was known; beyond: dropped and counted.
pub const FIRST_INCARNATION: u64 = 1 << 56;
/// Rows that one page of a list looks at, of a search those whose id contains its text; the next page goes on behind
/// them.
pub const PAGE_SCAN: usize = 4096;
/// Bytes of ids that one page of a search looks through, to the end of a block of 16 KiB; the next page goes on behind
/// them.
pub const SEARCH_BYTES: usize = 1024 * 1024;

/// Bytes of revocations after which a message to a terminal takes no further one; more go into further messages.
pub const REVOCATION_BYTES_TOLD: usize = 96 * 1024;
/// Revoked keys that an agent keeps; further ones are left out, with a warning.
pub const REVOKED_KEYS_KEPT: usize = 65_536;
/// Revocations of an authority's later term that an agent keeps until it knows the key of that term; further ones are
/// left out, with a warning.
pub const REVOCATIONS_UNPROVEN: usize = 1_024;
/// Rows and sessions that wait to be written; the core waits.
pub const STORE_BACKLOG: usize = 4096;
/// Rows and sessions written in one go; what waits longer is written next.
pub const STORE_BATCH: usize = 1024;
/// Spans that wait for the collector of traces; further ones are dropped and counted.
pub const TRACE_QUEUE: usize = 4096;
/// Spans in one message to the collector; the rest goes into the next.
pub const TRACE_BATCH: usize = 512;
/// How long the collector may take for one message once it is connected; beyond: its spans are dropped and counted.
pub const TRACE_TIME: Duration = Duration::from_secs(5);
/// Bytes of the first message of a session's stream; beyond: the stream is reset.
pub const SESSION_MESSAGE_BYTES: usize = 8 * 1024;
/// Bytes of an answer on a session's stream; beyond: the stream is given up.
pub const SESSION_ANSWER_BYTES: usize = 1024;
/// Bytes of the answer to an offered file: one hash a segment; beyond: the transfer is given up.
pub const SESSION_HAVE_BYTES: usize = FILE_SEGMENTS * 32 + 64;
/// Addresses that one end of a session offers for direct paths; further ones are ignored.
pub const CANDIDATES: usize = 8;
/// Paths to addresses that the peer of a session did not name, at once; one more each 2 s, and beyond: no path is made.
pub const UNNAMED_PATHS: u32 = 4;
/// Tries of a peer's addresses that its words begin, at once; one more each 5 s, and beyond: tried later.
pub const ADDRESS_WORDS: u32 = 8;
/// Probes per second to addresses that never answered, of all sessions of a terminal, on average; beyond: withheld and
/// counted.
pub const STRANGER_PROBES_PER_SECOND: u32 = 500;
/// Such probes at once.
pub const STRANGER_PROBES_AT_ONCE: u32 = 2_000;
/// Such probes per second to one IP address, on average; beyond: withheld and counted.
pub const STRANGER_PROBES_PER_SECOND_AND_TARGET: u32 = 32;
/// Such probes to one IP address at once.
pub const STRANGER_PROBES_AT_ONCE_PER_TARGET: u32 = 512;
/// IP addresses for which such probes are counted; beyond: withheld and counted.
pub const STRANGER_TARGETS: usize = 1_024;
/// Direct paths of one session that are tried or stand; further addresses that its peer sends from are ignored.
pub const DIRECT_PATHS: usize = 12;
/// Events of a terminal's socket that wait for its driver: probes heard, sessions that became busy; further ones are
/// dropped, and probes are sent again.
pub const SOCKET_EVENTS: usize = 4096;
/// Bytes that a terminal holds of one session for programs that do not read them; beyond, it reads no more for those.
/// Senders wait long before.
pub const SESSION_UNREAD_BYTES: usize = 192 * 1024 * 1024;
/// As [`SESSION_UNREAD_BYTES`], of all sessions.
pub const UNREAD_BYTES: usize = 256 * 1024 * 1024;
/// How long a stream may take to say what it is for; then it is reset.
pub const STREAM_BEGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Paths of a session whose congestion control is remembered; of others it begins anew.
pub const SESSION_PATHS: usize = 4;
/// Streams that one peer may have open in one session; further ones are refused with `busy`, logged and counted. More
/// than [`FORWARD_CONNECTIONS`], so that a connection which takes the place of one that is just ending is served.
pub const STREAMS_PER_SESSION: usize = 1_280;
/// Bidirectional streams that QUIC lets a peer open in one session: some more than are served, so that a refusal
/// can be said.
pub const QUIC_STREAMS_PER_SESSION: u32 = STREAMS_PER_SESSION as u32 + 24;
/// Streams that one peer of a terminal may have open in all its sessions; further ones are refused with `busy`.
pub const STREAMS_PER_PEER: usize = 4_000;
/// As [`STREAMS_PER_PEER`], of all peers.
pub const STREAMS: usize = 16_000;
/// Bytes that a session may have under way each way until a service is authorised; its sender waits.
pub const FIRST_WINDOW_BYTES: u32 = 64 * 1024;
/// Bytes that a session may have under way each way when a service is authorised, however many others there are.
pub const LEAST_WINDOW_BYTES: u32 = 256 * 1024;
/// Bytes of the windows of all sessions of one peer with authorised services, besides the least; a session gets a quarter
/// of what is left, or 16 MiB.
pub const WINDOW_BYTES_PER_PEER: u64 = 256 * 1024 * 1024;
/// As [`WINDOW_BYTES_PER_PEER`], of all peers.
pub const WINDOW_BYTES: u64 = 512 * 1024 * 1024;
/// Sessions that one peer may have called at a terminal; further calls are refused with `busy`.
pub const SESSIONS_PER_PEER: usize = SESSIONS_PER_TERMINAL / 2;
/// Sessions for pings that one peer may have called at a terminal; further calls are refused with `busy`.
pub const PING_SESSIONS_PER_PEER: usize = 64;
/// As [`PING_SESSIONS_PER_PEER`], of all peers.
pub const PING_SESSIONS: usize = 256;
/// Streams of pings that one peer may have open; further ones are refused with `busy`.
pub const PINGS_PER_PEER: usize = STREAMS_PER_SESSION;
/// As [`PINGS_PER_PEER`], of all peers.
pub const PINGS: usize = 4 * STREAMS_PER_SESSION;
/// Pieces that a stream of pings sends back per second; more wait.
pub const PINGS_PER_SECOND: u32 = 1_000;
/// Bytes of such a piece; the rest is the next piece.
pub const PING_BYTES: usize = 1_024;
/// A stream of pings by which nothing comes or goes for this long is reset; a session that was called for pings and has
/// no stream for this long, nor longer than twice this, ends.
pub const PING_IDLE: Duration = Duration::from_secs(30);
/// Streams that one peer may open in one session per second, on average and in a burst; beyond: `busy`.
pub const STREAM_OPENS_PER_SECOND: u32 = 20_000;
/// Flows of datagrams that a terminal serves in one session. At the limit a flow that got its answer makes room, or else
/// the one that is idle for longest, [`FLOW_MAKES_ROOM`] at least; where there is none the new flow is refused with
/// `busy`, logged and counted.
pub const FLOWS_PER_SESSION: usize = 256;
/// Flows of datagrams that a terminal opens in one session; at the limit as with [`FLOWS_PER_SESSION`], and payloads of
/// clients that find no place wait for one ([`WAITING_PAYLOADS`]). Fewer than [`FLOWS_PER_SESSION`], so that flows which
/// made room have time to end at the other terminal.
pub const FORWARDED_FLOWS: usize = 224;
/// UDP payloads of a forwarded port that wait for a flow, up to [`FLOW_WAIT`]; further ones are dropped, logged, counted
/// and told to the user of the port.
pub const WAITING_PAYLOADS: usize = 256;
/// How long a UDP payload waits for a flow that makes room; then it is dropped, logged, counted and told to the user.
pub const FLOW_WAIT: Duration = Duration::from_secs(1);
/// A flow without datagrams for this long makes room for a new one when its session has no place left.
pub const FLOW_MAKES_ROOM: Duration = Duration::from_secs(10);
/// Datagrams of a session that wait for their flow to be opened; the oldest makes room and is counted.
pub const EARLY_DATAGRAMS: usize = 512;
/// Bytes of the datagrams that wait for their flow; the oldest makes room and is counted.
pub const EARLY_DATAGRAM_BYTES: usize = 512 * 1024;
/// A flow without datagrams for this long is closed.
pub const FLOW_IDLE: Duration = Duration::from_secs(120);
/// Pieces in which a UDP payload travels that is too large for one packet of the session; what needs more is dropped,
/// logged with its size, counted, and told to the user of a forwarded port.
pub const DATAGRAM_PIECES: usize = 4;
/// UDP payloads of one session of which pieces are missing; the oldest is dropped and counted.
pub const INCOMPLETE_DATAGRAMS: usize = 256;
/// Bytes of the pieces of incomplete payloads of one session; the oldest payload is dropped and counted.
pub const INCOMPLETE_DATAGRAM_BYTES: usize = 512 * 1024;
/// How long the pieces of a UDP payload wait for the others; then they are dropped and counted.
pub const INCOMPLETE_DATAGRAM_TIME: Duration = Duration::from_secs(2);
/// How long a served stream may take to connect to one address of the service behind it; when none answers,
/// `service-down`.
pub const SERVICE_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection to a forwarded port waits for the session (interfaces: 20 s); then it is reset.
pub const FORWARD_WAIT: Duration = Duration::from_secs(20);
/// Connections of one forwarded port; further ones wait for one of them to end, up to [`FORWARD_WAIT`], then they are
/// reset. Both are logged, counted, and told to the user of the port.
pub const FORWARD_CONNECTIONS: usize = 1_000;
/// Connections of one forwarded port that wait for a place; further ones wait in the kernel's backlog.
pub const FORWARD_WAITING: usize = 1_000;
/// Segments of one file.
pub const FILE_SEGMENTS: usize = 4096;
/// Bytes of a file's segment, unless there would be more than [`FILE_SEGMENTS`].
pub const FILE_SEGMENT_BYTES: u64 = 1024 * 1024;
/// Files that one session receives at once; further ones are refused with `busy`.
pub const TRANSFERS_PER_SESSION: usize = 16;
/// Unfinished files of one sender in an inbox, those on their way included; the oldest makes room, and when all are on
/// their way `busy`.
pub const UNFINISHED_FILES_PER_SENDER: usize = 32;
/// Unfinished files in an inbox; the sender's oldest makes room, then the oldest that is not
/// [`REST_SAFE_TIME`] young; else `busy`.
pub const UNFINISHED_FILES: usize = 512;
/// How long the rest of another sender's transfer is safe from files that need its room.
pub const REST_SAFE_TIME: Duration = Duration::from_secs(3600);
/// Bytes of the disk that an inbox leaves to others, a twentieth of a small disk; beyond: `inbox-full`.
pub const INBOX_DISK_LEFT: u64 = 64 * 1024 * 1024;
/// Bytes of all files in an inbox, unless configured; beyond: `inbox-full`.
pub const INBOX_BYTES: u64 = 1_000_000_000_000;
/// Bytes of one sender's files in an inbox, unless configured; beyond: `inbox-full`.
pub const INBOX_BYTES_PER_SENDER: u64 = 250_000_000_000;
/// Files of one sender in an inbox; beyond: `inbox-full`.
pub const INBOX_FILES_PER_SENDER: usize = 100_000;
/// Terminals that an agent's `ls` lists; a relay that gives more is told off with `protocol-error`.
pub const LISTED_TERMINALS: usize = 2_000_000;
/// How long the rest of an interrupted transfer is kept.
pub const PARTIAL_FILE_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Connections of verbs to one daemon; further ones are refused with `busy`.
pub const IPC_CONNECTIONS: usize = 1024;
/// Bytes of a verb's request; beyond: the connection ends.
pub const IPC_REQUEST_BYTES: usize = 64 * 1024;
/// Addresses of one name that are used; further ones of an answer are ignored.
pub const ADDRESSES_PER_NAME: usize = 32;
/// Names whose last good answer is remembered; the oldest makes room.
pub const NAMES_REMEMBERED: usize = 1_024;
/// Addresses of which is remembered whether they answered; the oldest makes room.
pub const DIALLED_REMEMBERED: usize = 4_096;
/// Look-ups of different names that run at once; further ones wait.
pub const LOOKUPS_AT_ONCE: usize = 128;
/// Addresses that one dial of a relay or service tries; further ones wait for the next dial, which begins with them.
pub const TRIES_PER_DIAL: usize = 32;
/// As [`TRIES_PER_DIAL`], of a request that any relay can pass on to the registrar.
pub const TRIES_PER_REQUEST: usize = 64;
/// How long a served stream waits for the look-up of its service's name; then `service-down`. The look-up goes on, and its
/// answer serves the next stream.
pub const SERVICE_LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
