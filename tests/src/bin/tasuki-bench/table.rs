//! A large table (P11): memory of a row, time of a look-up, time of a newcomer.
//!
//! One account for each two attachments. The newcomer runs beside the relay that serves it, on one thread, through
//! encoded messages; so the time counts the work of both.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ring::signature::{Ed25519KeyPair, KeyPair};
use tasuki_proto::codec::Envelope;
use tasuki_proto::gossip::{GossipMessage, Rows, Span};
use tasuki_proto::identity::KeyFingerprint;
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::rows::{self, AccountRow, AttachmentRole, AttachmentRow};
use tasuki_proto::{Incarnation, LoginEpoch, MeshId, RelayId, TerminalId, limits};
use tasuki_relay::core::LinkId;
use tasuki_relay::core::directory::{Directory, Lookup};
use tasuki_relay::core::gossip::{Config, Gossip, Input, Output};

use crate::Options;
use crate::report::Report;

/// The table.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// Rows in the table.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Relays that terminals are attached to.
    #[arg(long, default_value_t = 50)]
    relays: u64,
}

const MESH: MeshId = MeshId([3; 16]);
const ONE: Incarnation = Incarnation(1);
const LINK: LinkId = LinkId(1);

/// A relay's cores.
struct Relay {
    gossip: Gossip,
    directory: Directory,
}

impl Relay {
    fn new(id: u64, key: &Ed25519KeyPair) -> Relay {
        let id = RelayId(id);
        let mut relay = Relay {
            gossip: Gossip::new(Config::new(id, ONE, MESH, 9), Instant::now()),
            directory: Directory::new(id, MESH),
        };
        let mut public = [0; 32];
        public.copy_from_slice(key.public_key().as_ref());
        relay.gossip.handle(Input::AuthorityKey(ONE, public), Instant::now());
        relay
    }

    /// Takes an input and gives the messages it leads to.
    fn handle(&mut self, input: Input) -> Vec<GossipMessage> {
        self.gossip.handle(input, Instant::now());
        let mut messages = Vec::new();
        while let Some(output) = self.gossip.poll_output() {
            match output {
                Output::Send(_, message) => messages.push(message),
                Output::Changed { old, new } => self.directory.handle_change(
                    old.as_ref(),
                    new.as_ref(),
                    self.gossip.table_mut(),
                ),
                _ => {}
            }
        }
        messages
    }
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).ok().context("the key")?;
    let terminals = flags.rows / 3;
    let attachments = 2 * terminals;

    let mut server = Relay::new(u64::MAX, &key);
    for number in 0..terminals {
        server.handle(Input::Authority(account(number, &key)));
    }
    fill(&mut server, terminals, attachments, flags.relays, &mut rng)?;

    let before = resident_bytes()?;
    let begun = Instant::now();
    let mut newcomer = Relay::new(u64::MAX - 1, &key);
    let bytes = sync(&mut server, &mut newcomer)?;
    let took = begun.elapsed();
    let after = resident_bytes()?;
    let table = newcomer.gossip.table();
    ensure!(table.hash() == server.gossip.table().hash(), "the tables differ");
    let rows = table.len() as f64;

    let reachable = (1..=flags.relays).map(RelayId).collect();
    newcomer.directory.set_reachable(&reachable);
    let first = lookups(&mut newcomer, terminals, 10_000, &mut rng)?;
    let begun = Instant::now();
    while newcomer.gossip.table().ready(RelayId::AUTHORITY) < terminals {
        newcomer.handle(Input::Tick);
    }
    let checked = begun.elapsed();
    let warm = lookups(&mut newcomer, terminals, 1_000_000, &mut rng)?;

    let ns = |times: &[u32], p: f64| f64::from(times[((times.len() - 1) as f64 * p) as usize]);
    Ok(Report::default()
        .with("rows", rows)
        .with("bytes_per_row", after.saturating_sub(before) as f64 / rows)
        .with("wire_bytes_per_row", bytes as f64 / rows)
        .with("newcomer_s", took.as_secs_f64())
        .with("lookup_first_use_p50_ns", ns(&first, 0.5))
        .with("lookup_p50_ns", ns(&warm, 0.5))
        .with("lookup_p99_ns", ns(&warm, 0.99))
        .with("signature_checks_s", checked.as_secs_f64()))
}

fn id_of(number: u64) -> String {
    format!("terminal-{number:07}")
}

fn account(number: u64, key: &Ed25519KeyPair) -> Record {
    let id = id_of(number);
    let row = AccountRow {
        kind: "plc".to_owned(),
        attributes: BTreeMap::from([("site".to_owned(), "osaka".to_owned())]),
        groups: Vec::new(),
        key: Some(KeyFingerprint([5; 32])),
        registered_ms: 1_700_000_000_000,
    };
    let draft = Draft {
        origin: RelayId::AUTHORITY,
        kind: RecordKind::ACCOUNT,
        key: id.as_bytes(),
        version: Version { incarnation: ONE, sequence: number + 1 },
        wall_ms: 1_700_000_000_000,
        scope: 0,
        lifetime_secs: 0,
        tombstone: false,
        payload: &rows::payload(&row),
    };
    Record::signed(&draft, &MESH, key)
}

/// Two attachments for each terminal, at relays chosen at random.
fn fill(
    server: &mut Relay,
    terminals: u64,
    attachments: u64,
    relays: u64,
    rng: &mut StdRng,
) -> Result<()> {
    server.handle(Input::LinkUp(LINK, RelayId(1)));
    let mut keys: BTreeMap<u64, Vec<(u64, AttachmentRole)>> = BTreeMap::new();
    for number in 0..attachments {
        let role =
            if number < terminals { AttachmentRole::Primary } else { AttachmentRole::Standby };
        let relay = (number % terminals + u64::from(number >= terminals) * 7) % relays + 1;
        keys.entry(relay).or_default().push((number % terminals, role));
    }
    for (relay, list) in keys {
        let mut sequence = 0;
        for part in list.chunks(500) {
            let from = sequence;
            let mut records = BytesMut::new();
            for (number, role) in part {
                sequence += 1;
                records
                    .extend_from_slice(attachment(relay, *number, *role, sequence, rng).as_bytes());
            }
            let origin = RelayId(relay);
            let span =
                Span { origin, incarnation: ONE, from, to: sequence, horizon: 0, last: true };
            let rows = Rows { span, records: records.freeze() };
            server.handle(Input::Message(LINK, GossipMessage::Rows(rows)));
        }
    }
    server.handle(Input::LinkDown(LINK));
    ensure!(server.gossip.table().len() as u64 == terminals + attachments, "rows were lost");
    Ok(())
}

fn attachment(
    relay: u64,
    number: u64,
    role: AttachmentRole,
    sequence: u64,
    rng: &mut StdRng,
) -> Record {
    let row = AttachmentRow {
        role,
        epoch: LoginEpoch(3),
        instance: rng.random(),
        address: SocketAddr::from((Ipv4Addr::from(rng.random::<u32>()), 40_000)),
        since_ms: 1_700_000_000_000,
        sessions: 0,
    };
    Record::new(&Draft {
        origin: RelayId(relay),
        kind: RecordKind::ATTACHMENT,
        key: id_of(number).as_bytes(),
        version: Version { incarnation: ONE, sequence },
        wall_ms: 1_700_000_000_000,
        scope: 0,
        lifetime_secs: 0,
        tombstone: false,
        payload: &rows::payload(&row),
    })
}

/// Links the two and passes messages until nothing is left to say. Gives the bytes that went to the newcomer.
fn sync(server: &mut Relay, newcomer: &mut Relay) -> Result<u64> {
    let link = LinkId(2);
    let mut bytes = 0;
    let mut to_server = newcomer.handle(Input::LinkUp(link, RelayId(u64::MAX)));
    let mut to_newcomer = server.handle(Input::LinkUp(link, RelayId(u64::MAX - 1)));
    while !to_server.is_empty() || !to_newcomer.is_empty() {
        let (mut next_to_server, mut next_to_newcomer) = (Vec::new(), Vec::new());
        for message in to_newcomer.drain(..) {
            let wire = message.to_envelope().to_bytes();
            bytes += wire.len() as u64;
            next_to_server.extend(newcomer.handle(Input::Message(link, decode(&wire)?)));
            next_to_newcomer.extend(server.handle(Input::Sent(link)));
        }
        for message in to_server.drain(..) {
            let wire = message.to_envelope().to_bytes();
            next_to_newcomer.extend(server.handle(Input::Message(link, decode(&wire)?)));
            next_to_server.extend(newcomer.handle(Input::Sent(link)));
        }
        (to_server, to_newcomer) = (next_to_server, next_to_newcomer);
    }
    Ok(bytes)
}

fn decode(wire: &[u8]) -> Result<GossipMessage> {
    let mut buffer = BytesMut::from(wire);
    let envelope =
        Envelope::take(&mut buffer, limits::MESH_MESSAGE_BYTES)?.context("a whole one")?;
    GossipMessage::from_envelope(&envelope)?.context("a known one")
}

/// Times of look-ups of random terminals, ns, sorted.
fn lookups(relay: &mut Relay, terminals: u64, count: usize, rng: &mut StdRng) -> Result<Vec<u32>> {
    let ids = (0..count)
        .map(|_| TerminalId::new(&id_of(rng.random_range(0..terminals))))
        .collect::<Result<Vec<_>, _>>()?;
    let mut times = Vec::with_capacity(count);
    for id in &ids {
        let begun = Instant::now();
        let found = relay.directory.lookup(relay.gossip.table_mut(), id);
        times.push(begun.elapsed().as_nanos() as u32);
        ensure!(matches!(found, Lookup::At(_)), "{id} is lost: {found:?}");
    }
    times.sort_unstable();
    Ok(times)
}

/// Resident memory of this process.
fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib * 1024)
}
