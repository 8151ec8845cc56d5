//! A large table (P11): memory of a row, time of a look-up, time of a newcomer.
//!
//! One account for each two attachments. The newcomer and the relay that serves it have a thread each and talk over
//! TCP on loopback.
//!
//! Each look-up is timed by itself, and the reading of the clock is part of the time; how long reading it twice takes
//! is a figure of its own. Terminals are chosen at random, so nearly every look-up waits for memory. They are timed in
//! rounds, and the spread over the rounds shows what else the machine did.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_proto::attest::Presence;
use tasuki_proto::codec::Envelope;
use tasuki_proto::gossip::{GossipMessage, Want};
use tasuki_proto::identity::{NodeKey, PublicKey, Signer};
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::rows::{self, AccountRow, AttachmentRole, AttachmentRow};
use tasuki_proto::{Incarnation, LoginEpoch, MeshId, RelayId, TerminalId, limits};
use tasuki_relay::core::LinkId;
use tasuki_relay::core::directory::{Directory, Lookup};
use tasuki_relay::core::gossip::{Config, Gossip, Input, Output, Write};

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
const SERVER: RelayId = RelayId(u64::MAX);
const NEWCOMER: RelayId = RelayId(u64::MAX - 1);
/// A newcomer that takes longer has failed.
const SYNC_LIMIT: Duration = Duration::from_secs(120);
/// Rounds of look-ups, and look-ups of a round.
const ROUNDS: usize = 5;
const LOOKUPS: usize = 400_000;

/// A relay's cores.
struct Relay {
    gossip: Gossip,
    directory: Directory,
}

impl Relay {
    /// A relay of a mesh of `relays`, the server and the newcomer aside.
    fn new(id: RelayId, relays: u64) -> Relay {
        let config = Config::new(id, ONE, MESH, signer(id), [9, id.0]);
        let mut relay = Relay {
            gossip: Gossip::new(config, Instant::now()),
            directory: Directory::new(id, MESH, [1, id.0]),
        };
        let key = signer(RelayId::AUTHORITY).public();
        relay.gossip.handle(Input::AuthorityKey(ONE, key), Instant::now());
        for other in (1..=relays).map(RelayId) {
            let key = Some(signer(other).public());
            relay.gossip.handle(Input::RelayKey(other, key), Instant::now());
        }
        relay
    }

    /// Takes an input and gives the messages it leads to.
    fn handle(&mut self, input: Input) -> Vec<GossipMessage> {
        self.gossip.handle(input, Instant::now());
        let mut messages = Vec::new();
        while let Some(output) = self.gossip.poll_output() {
            match output {
                Output::Send(_, message) => messages.push(message),
                Output::Changed { old, new } => {
                    self.directory.handle_change(old.as_ref(), new.as_ref(), self.gossip.table())
                }
                _ => {}
            }
        }
        messages
    }
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    // All terminals have one key: what a check costs does not depend on it.
    let terminals_key = NodeKey::generate()?;
    let terminals = flags.rows / 3;
    let attachments = 2 * terminals;

    let mut server = Relay::new(SERVER, flags.relays);
    for number in 0..terminals {
        server.handle(Input::Authority(account(number, &terminals_key)));
    }
    server.handle(Input::Issuer(ONE, signer(RelayId::AUTHORITY)));
    fill(&mut server, &terminals_key, (terminals, attachments), flags.relays, &mut rng)?;

    let before = resident_bytes()?;
    let mut newcomer = Relay::new(NEWCOMER, flags.relays);
    let (server, bytes, took) = sync(server, &mut newcomer)?;
    let after = resident_bytes()?;
    let table = newcomer.gossip.table();
    ensure!(table.hash() == server.gossip.table().hash(), "the tables differ");
    let rows = table.len() as f64;

    let reachable = (1..=flags.relays).map(RelayId).collect();
    newcomer.directory.set_reachable(&reachable);
    let (first, _) = lookups(&mut newcomer, terminals, 10_000, &mut rng)?;
    let begun = Instant::now();
    for number in 0..terminals {
        let id = TerminalId::new(&id_of(number))?;
        let found = newcomer.directory.lookup(newcomer.gossip.table(), &id);
        ensure!(matches!(found, Lookup::At(_)), "{id} is lost: {found:?}");
    }
    let attested = begun.elapsed();
    let with_checks = resident_bytes()?;
    let (mut far, mut near, mut of_rounds) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (round, again) = lookups(&mut newcomer, terminals, LOOKUPS, &mut rng)?;
        of_rounds.push(percentile(&round, 0.99));
        far.extend(round);
        near.extend(again);
    }
    of_rounds.sort_unstable_by(f64::total_cmp);
    far.sort_unstable();
    near.sort_unstable();

    Ok(Report::default()
        .with("rows", rows)
        .with("bytes_per_row", after.saturating_sub(before) as f64 / rows)
        .with("wire_bytes_per_row", bytes as f64 / rows)
        .with("newcomer_s", took.as_secs_f64())
        .with("lookup_first_use_p50_ns", percentile(&first, 0.5))
        .with("lookup_p50_ns", percentile(&far, 0.5))
        .with("lookup_p99_ns", percentile(&far, 0.99))
        .with("lookup_p99_best_round_ns", of_rounds[0])
        .with("lookup_p99_worst_round_ns", of_rounds[ROUNDS - 1])
        .with("lookup_again_p50_ns", percentile(&near, 0.5))
        .with("clock_p50_ns", clock_cost())
        .with("attachment_checks_s", attested.as_secs_f64())
        .with("bytes_per_row_all_checked", with_checks.saturating_sub(before) as f64 / rows))
}

/// Of sorted times.
fn percentile(times: &[u32], p: f64) -> f64 {
    f64::from(times[((times.len() - 1) as f64 * p) as usize])
}

/// What a time holds in which nothing is done, ns.
fn clock_cost() -> f64 {
    let mut times: Vec<u32> = (0..100_000)
        .map(|_| {
            let begun = Instant::now();
            begun.elapsed().as_nanos() as u32
        })
        .collect();
    times.sort_unstable();
    percentile(&times, 0.5)
}

fn id_of(number: u64) -> String {
    format!("terminal-{number:07}")
}

/// The key of an origin, made from its id.
fn signer(of: RelayId) -> Signer {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&of.0.to_be_bytes());
    Signer::from_seed(&seed)
}

fn account(number: u64, terminals_key: &NodeKey) -> Record {
    let id = id_of(number);
    let row = AccountRow {
        kind: "plc".to_owned(),
        attributes: BTreeMap::from([("site".to_owned(), "osaka".to_owned())]),
        groups: Vec::new(),
        key: Some(PublicKey(terminals_key.public())),
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
    Record::new(&draft)
}

/// Two attachments for each terminal, at relays chosen at random.
fn fill(
    server: &mut Relay,
    key: &NodeKey,
    (terminals, attachments): (u64, u64),
    relays: u64,
    rng: &mut StdRng,
) -> Result<()> {
    let mut keys: BTreeMap<u64, Vec<(u64, AttachmentRole)>> = BTreeMap::new();
    for number in 0..attachments {
        let role =
            if number < terminals { AttachmentRole::Primary } else { AttachmentRole::Standby };
        let relay = (number % terminals + u64::from(number >= terminals) * 7) % relays + 1;
        keys.entry(relay).or_default().push((number % terminals, role));
    }
    for (relay, list) in keys {
        let mut origin = Relay::new(RelayId(relay), relays);
        for (number, role) in list {
            let write = attachment((relay, number, role), key, rng)?;
            origin.handle(Input::Write(write));
        }
        tell(&mut origin, server);
    }
    ensure!(server.gossip.table().len() as u64 == terminals + attachments, "rows were lost");
    Ok(())
}

/// A relay tells the server its rows, and is gone.
fn tell(origin: &mut Relay, server: &mut Relay) {
    let mut to_origin = VecDeque::from(server.handle(Input::LinkUp(LINK, origin.gossip.id())));
    let mut to_server = VecDeque::from(origin.handle(Input::LinkUp(LINK, SERVER)));
    let want = Want { origin: origin.gossip.id(), incarnation: ONE, watermark: 0 };
    to_origin.push_back(GossipMessage::Want(want));
    let done = |origin: &Relay, server: &Relay| {
        let of = |relay: &Relay| relay.gossip.table().watermark(origin.gossip.id());
        of(server) == of(origin)
    };
    while !done(origin, server) {
        if let Some(message) = to_origin.pop_front() {
            to_server.extend(origin.handle(Input::Message(LINK, message)));
            to_origin.extend(server.handle(Input::Sent(LINK)));
        } else if let Some(message) = to_server.pop_front() {
            to_origin.extend(server.handle(Input::Message(LINK, message)));
            to_server.extend(origin.handle(Input::Sent(LINK)));
        } else {
            to_origin.extend(server.handle(Input::Tick));
            to_server.extend(origin.handle(Input::Tick));
        }
    }
    server.handle(Input::LinkDown(LINK));
}

fn attachment(
    (relay, number, role): (u64, u64, AttachmentRole),
    key: &NodeKey,
    rng: &mut StdRng,
) -> Result<Write> {
    let (epoch, instance) =
        (LoginEpoch(3), number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let presence = Presence { relay: RelayId(relay), epoch, instance, role };
    let signed = presence.sign(&MESH, &TerminalId::new(&id_of(number))?, key);
    let row = AttachmentRow {
        role,
        epoch,
        instance,
        address: SocketAddr::from((Ipv4Addr::from(rng.random::<u32>()), 40_000)),
        since_ms: 1_700_000_000_000,
        sessions: 0,
        signature: signed.signature,
    };
    Ok(Write {
        kind: RecordKind::ATTACHMENT,
        key: id_of(number).into(),
        payload: Some(rows::payload(&row)),
        lifetime_secs: 0,
        wall_ms: 1_700_000_000_000,
        scope: 0,
    })
}

/// Links the two until the newcomer has as much. Gives the server back, the bytes that went to the newcomer, and the
/// time from connecting to the last row.
fn sync(server: Relay, newcomer: &mut Relay) -> Result<(Relay, u64, Duration)> {
    let whole = (server.gossip.table().len(), server.gossip.table().hash());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let serving = std::thread::spawn(move || -> Result<Relay> {
        let mut server = server;
        let (stream, _) = listener.accept()?;
        converse(&mut server, stream, NEWCOMER, |_| false)?;
        Ok(server)
    });
    let begun = Instant::now();
    let stream = TcpStream::connect(address)?;
    let bytes = converse(newcomer, stream, SERVER, |relay| {
        let table = relay.gossip.table();
        (table.len(), table.hash()) == whole
    })?;
    let took = begun.elapsed();
    let server = serving.join().map_err(|_| anyhow!("the server panicked"))??;
    Ok((server, bytes, took))
}

/// A relay's part in a link over a stream, until it is done or the peer is. Gives the bytes that came.
fn converse(
    relay: &mut Relay,
    mut stream: TcpStream,
    peer: RelayId,
    done: impl Fn(&Relay) -> bool,
) -> Result<u64> {
    let link = LinkId(2);
    let begun = Instant::now();
    let (mut bytes, mut buffer, mut chunk) = (0, BytesMut::new(), vec![0; 256 * 1024]);
    stream.set_nodelay(true)?;
    let mut messages = VecDeque::from(relay.handle(Input::LinkUp(link, peer)));
    loop {
        while let Some(message) = messages.pop_front() {
            match stream.write_all(&message.to_envelope().to_bytes()) {
                Err(error) if is_end(&error) => return Ok(bytes),
                written => written?,
            }
            messages.extend(relay.handle(Input::Sent(link)));
        }
        if done(relay) {
            stream.shutdown(Shutdown::Both)?;
            return Ok(bytes);
        }
        ensure!(begun.elapsed() < SYNC_LIMIT, "not in step after {SYNC_LIMIT:?}");
        if let Some(envelope) = Envelope::take(&mut buffer, limits::MESH_MESSAGE_BYTES)? {
            let message = GossipMessage::from_envelope(&envelope)?.context("a known message")?;
            messages.extend(relay.handle(Input::Message(link, message)));
            continue;
        }
        let due = relay.gossip.poll_timeout().map_or(SYNC_LIMIT, |at| at - Instant::now());
        stream.set_read_timeout(Some(due.max(Duration::from_millis(1))))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(count) => {
                bytes += count as u64;
                buffer.extend_from_slice(&chunk[..count]);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                messages.extend(relay.handle(Input::Tick));
            }
            Err(error) if is_end(&error) => return Ok(bytes),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The peer has closed the stream.
fn is_end(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

/// Times of look-ups of random terminals, and of each again at once, when memory is near. ns, each sorted.
fn lookups(
    relay: &mut Relay,
    terminals: u64,
    count: usize,
    rng: &mut StdRng,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let ids = (0..count)
        .map(|_| TerminalId::new(&id_of(rng.random_range(0..terminals))))
        .collect::<Result<Vec<_>, _>>()?;
    let (mut far, mut near) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for id in &ids {
        for times in [&mut far, &mut near] {
            let begun = Instant::now();
            let found = relay.directory.lookup(relay.gossip.table(), id);
            times.push(begun.elapsed().as_nanos() as u32);
            ensure!(matches!(found, Lookup::At(_)), "{id} is lost: {found:?}");
        }
    }
    far.sort_unstable();
    near.sort_unstable();
    Ok((far, near))
}

/// Resident memory of this process.
fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib * 1024)
}
