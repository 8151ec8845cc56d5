//! Relays that lie about the table: what one says of others changes nothing, and what it says of itself is bounded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tasuki_proto::gossip::{GossipMessage, Head, Heads, Rows, Span};
use tasuki_proto::identity::Identity;
use tasuki_proto::record::{RecordKind, Version};
use tasuki_proto::rows::{self, LinkState, LinksRow, RelayRow};
use tasuki_proto::{Incarnation, MeshId, RelayId, RelayName};
use tasuki_tests::lab::bad_relay::{Author, BadLink};
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually, raw};
use tokio::runtime::Runtime;

/// The life in which the bad relay says that it is: later than every honest one.
const LIFE: Incarnation = Incarnation(1 << 40);
/// A revocation is known everywhere within this time, whatever a bad relay does meanwhile.
const REVOKED_WITHIN: Duration = Duration::from_secs(2);
/// The longest that a relay may take for an answer while it is attacked (debug build, busy machine).
const ANSWER: Duration = Duration::from_secs(2);
/// What an attack of this file may make a relay hold on to.
const GROWTH: u64 = 64 * 1024 * 1024;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// r1, the registrar, with a; r2 with b, which serves `echo`; and r3, which an enemy takes over. c is logged out.
struct World {
    mesh: Mesh,
    runtime: Runtime,
    _echo: TcpService,
}

impl World {
    fn new() -> World {
        let echo = TcpService::echo(None);
        let offer = format!("tcp://{}", echo.address());
        let mesh = MeshSpec::new()
            .relay(RelaySpec::new("r1"))
            .relay(RelaySpec::new("r2"))
            .relay(RelaySpec::new("r3"))
            .each_relay(RelaySpec::quick_silence)
            .terminal(TerminalSpec::new("a").relayed().quick_silence().at(&["r1"]))
            .terminal(
                TerminalSpec::new("b").relayed().quick_silence().at(&["r2"]).offers("echo", &offer),
            )
            .terminal(TerminalSpec::new("c").stays_off())
            .start();
        for name in ["a", "b"] {
            mesh.wait_state(name, "logged-in", SOON);
        }
        mesh.relay("r3").kill();
        World { mesh, runtime: runtime(), _echo: echo }
    }

    async fn link(&self, to: &str) -> BadLink {
        let (relay, bad) = (self.mesh.relay(to), self.mesh.relay("r3"));
        let server = format!("{to}.relay.lab.tasuki");
        // A link that was just cut may be refused for a moment.
        for _ in 0..100 {
            match BadLink::connect(relay.listen(), &server, bad.data(), (LIFE, 7)).await {
                Ok(link) => return link,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        panic!("no link with {to}");
    }

    /// The mesh's id.
    fn id(&self) -> MeshId {
        let own = Identity::load(self.mesh.relay("r3").data()).unwrap().unwrap();
        own.mesh_id()
    }

    fn author(&self, origin: Option<RelayId>) -> Author {
        Author::new(self.mesh.relay("r3").data(), LIFE, origin)
    }

    /// The honest mesh lost nothing: accounts, attachments and calls are there, at both relays alike.
    fn is_whole(&self) {
        for at in ["r1", "r2"] {
            let relay = self.mesh.relay(at);
            for (name, state) in [("a", "logged-in"), ("b", "logged-in"), ("c", "logged-out")] {
                eventually(&format!("{at} shows {name}"), SOON, || {
                    let row = relay.row(name)?;
                    if row["state"] == state { Ok(()) } else { Err(row.to_string()) }
                });
            }
        }
        let mut dial = self.mesh.terminal("a").dial("b/echo");
        dial.write(b"still here").unwrap();
        assert_eq!(dial.read_exact(10, SOON).unwrap(), b"still here");
    }

    /// Revokes a terminal, and waits until every relay refuses its key.
    fn revokes(&self, name: &str) {
        let began = Instant::now();
        self.mesh.relay("r1").verb(&["revoke", name]).ok();
        for at in ["r1", "r2"] {
            let relay = self.mesh.relay(at);
            let server = format!("{at}.relay.lab.tasuki");
            let data = self.mesh.terminal(name).data();
            eventually(&format!("{at} refuses {name}"), REVOKED_WITHIN, || {
                match self.runtime.block_on(raw::log_in(relay.listen(), &server, data)) {
                    Err(why) if is_revoked(&why) => Ok(()),
                    other => Err(format!("{:?}", other.err())),
                }
            });
        }
        println!("{name} is revoked everywhere after {:?}", began.elapsed());
    }
}

/// Whether a connection was refused since its key is revoked: by the code of a refusal, or by the alert of TLS (RFC 8446,
/// section 6.2).
fn is_revoked(why: &str) -> bool {
    why.contains("evoked") || why.contains("error 44") || why.contains("0x12c")
}

fn rows(head: Head, from: u64) -> GossipMessage {
    let span = Span { from, to: head.version.sequence };
    GossipMessage::Rows(Rows { head, span, records: Bytes::new() })
}

/// What a message was that went over a link to `to`: it costs the link and changes nothing.
fn costs_the_link(world: &World, to: &str, lie: impl Fn(Head) -> GossipMessage) {
    world.runtime.block_on(async {
        let mut link = world.link(to).await;
        let head = link.head_of(RelayId::AUTHORITY).await.unwrap();
        link.say(&lie(head)).await.unwrap();
        link.cut().await.unwrap();
    });
}

#[test]
fn the_authority_is_neither_erased_nor_silenced_by_a_relay() {
    let world = World::new();
    for to in ["r1", "r2"] {
        // Rows from 0 that are none, behind a horizon that voids all others.
        costs_the_link(&world, to, |head| {
            let version = Version { sequence: head.version.sequence + (1 << 38), ..head.version };
            rows(Head { version, horizon: version.sequence, rows: 0, bytes: 0, ..head }, 0)
        });
        // A watermark far ahead.
        costs_the_link(&world, to, |head| {
            let sequence = head.version.sequence + (1 << 39);
            let from = head.version.sequence;
            rows(Head { version: Version { sequence, ..head.version }, ..head }, from)
        });
        costs_the_link(&world, to, |head| {
            let sequence = head.version.sequence + 1;
            let head = Head { version: Version { sequence, ..head.version }, ..head };
            GossipMessage::Heads(Heads { heads: vec![head] })
        });
    }
    world.is_whole();
    world.revokes("c");
    let refused = world.mesh.relay("r2").api.json("/api/v1/status").unwrap();
    println!("gossip: {}", refused["gossip"]);
}

#[test]
fn a_relay_moves_no_other_relay_and_its_terminals() {
    let world = World::new();
    let victim = RelayId::of(&world.id(), &RelayName::new("r1").unwrap());
    let until = Instant::now() + Duration::from_secs(3);
    let mut said = 0;
    world.runtime.block_on(async {
        while Instant::now() < until {
            let mut link = world.link("r2").await;
            let mut author = world.author(Some(victim));
            let row = RelayRow {
                name: RelayName::new("r1").unwrap(),
                addresses: vec!["127.0.0.1:9".to_owned()],
                registrar: true,
                software: "bad".to_owned(),
            };
            let lie = author.write(RecordKind::RELAY, b"", rows::payload(&row));
            while link.stands() && link.say(&lie).await.is_ok() {
                said += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    println!("{said} messages");
    assert!(said > 2);
    world.is_whole();
    for at in ["r1", "r2"] {
        let relays = world.mesh.relay(at).api.json("/api/v1/relays").unwrap().to_string();
        assert!(!relays.contains("127.0.0.1:9\"") && !relays.contains("\"bad\""), "{relays}");
    }
}

#[test]
fn relays_that_do_not_exist_fill_no_table_and_no_list() {
    let world = World::new();
    let before = world.mesh.relay("r2").rss();
    world.runtime.block_on(async {
        let mut link = world.link("r2").await;
        for number in 0..200 {
            let name = RelayName::new(&format!("ghost{number}")).unwrap();
            let id = RelayId::of(&world.id(), &name);
            let addresses = (0..900).map(|n| format!("{n:060}:1")).collect();
            let row = RelayRow { name, addresses, registrar: false, software: "x".repeat(1000) };
            let lie = world.author(Some(id)).write(RecordKind::RELAY, b"", rows::payload(&row));
            link.say(&lie).await.unwrap();
        }
        // Its own row may be as long as a row can be; what is kept of it is bounded.
        let name = RelayName::new("r3").unwrap();
        let addresses = (0..900).map(|n| format!("{n:060}:1")).collect();
        let row = RelayRow { name, addresses, registrar: false, software: "x".repeat(1000) };
        let own = world.author(None).write(RecordKind::RELAY, b"", rows::payload(&row));
        link.say(&own).await.unwrap();
        tokio::task::block_in_place(|| {
            eventually("the bad relay's own row is there", SOON, || {
                let relays = world.mesh.relay("r2").api.json("/api/v1/relays")?;
                let text = relays.to_string();
                if text.contains("xxxx") { Ok(()) } else { Err(text.chars().take(300).collect()) }
            });
        });
        assert!(link.stands(), "what it says of itself is its own affair");
    });
    world.is_whole();
    let relays = world.mesh.relay("r2").api.json("/api/v1/relays").unwrap();
    let items = relays["items"].as_array().unwrap();
    assert_eq!(items.len(), 3, "{relays}");
    let bad = items.iter().find(|row| row["name"] == "r3").unwrap();
    assert!(bad["addresses"].as_array().unwrap().len() <= tasuki_proto::limits::RELAY_ADDRESSES);
    assert!(bad["version"].as_str().unwrap().len() <= tasuki_proto::limits::SOFTWARE_BYTES);
    for name in ["a", "b"] {
        let log = world.mesh.terminal(name).log_text();
        assert!(log.matches("logged in").count() <= 2, "{name} logged in again and again:\n{log}");
    }
    let grown = world.mesh.relay("r2").rss().saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes");
}

/// Rows up to every limit, and a links row with thousands of relays that do not exist.
#[test]
fn a_relay_that_says_as_much_as_it_may_holds_nobody_up() {
    let world = World::new();
    let r2 = world.mesh.relay("r2");
    let before = r2.rss();
    let done = AtomicBool::new(false);
    let worst = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut worst = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                r2.api.json("/api/v1/status").unwrap();
                worst = worst.max(began.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            worst
        });
        world.runtime.block_on(async {
            let mut link = world.link("r2").await;
            let mut author = world.author(None);
            for round in 0..20_u64 {
                let links =
                    (1..3_000).map(|n| LinkState { peer: RelayId(n * 7 + round), rtt_us: 1 });
                let row = LinksRow { links: links.collect() };
                let _ = link.say(&author.write(RecordKind::LINKS, b"", rows::payload(&row))).await;
            }
            // More than its share: 48 MiB of rows.
            for number in 0..800_u32 {
                let key = number.to_be_bytes();
                let lie = author.write(RecordKind(900), &key, Bytes::from(vec![0; 60_000]));
                if link.say(&lie).await.is_err() {
                    break;
                }
            }
            for rows in author.tell(0) {
                if link.say(&GossipMessage::Rows(rows)).await.is_err() {
                    break;
                }
            }
        });
        done.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    println!("the longest answer took {worst:?}");
    assert!(worst < ANSWER, "{worst:?}");
    let grown = r2.rss().saturating_sub(before);
    println!("{} MiB more", grown >> 20);
    assert!(grown < GROWTH, "{grown} bytes");
    world.is_whole();
}

#[test]
fn a_relay_is_revoked_everywhere_while_it_attacks() {
    let world = World::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for to in ["r1", "r2"] {
            let (world, stop) = (&world, &stop);
            scope.spawn(move || {
                let runtime = runtime();
                runtime.block_on(async {
                    let bad = world.mesh.relay("r3");
                    let (relay, server) = (world.mesh.relay(to), format!("{to}.relay.lab.tasuki"));
                    while !stop.load(Ordering::Relaxed) {
                        let link = BadLink::connect(relay.listen(), &server, bad.data(), (LIFE, 7));
                        let Ok(mut link) = link.await else { continue };
                        let Ok(head) = link.head_of(RelayId::AUTHORITY).await else { continue };
                        let sequence = head.version.sequence + 1;
                        let version = Version { sequence, ..head.version };
                        let forged = Head { version, horizon: sequence, ..head };
                        let _ = link.say(&rows(forged, 0)).await;
                        let _ = link.cut().await;
                    }
                });
            });
        }
        std::thread::sleep(Duration::from_millis(500));
        let began = Instant::now();
        world.mesh.relay("r1").verb(&["revoke", "r3"]).ok();
        let server = "r2.relay.lab.tasuki";
        eventually("r2 refuses the revoked relay", REVOKED_WITHIN, || {
            let bad = world.mesh.relay("r3").data();
            let to = world.mesh.relay("r2").listen();
            let again = BadLink::connect(to, server, bad, (LIFE, 7));
            match world.runtime.block_on(again) {
                Err(why) if is_revoked(&why) => Ok(()),
                other => Err(format!("{:?}", other.err())),
            }
        });
        println!("refused everywhere after {:?}", began.elapsed());
        stop.store(true, Ordering::Relaxed);
    });
    world.is_whole();
    // Nothing that it said of itself is left.
    for at in ["r1", "r2"] {
        eventually("its rows are gone", SOON, || {
            let relays = world.mesh.relay(at).api.json("/api/v1/relays")?.to_string();
            if relays.contains("\"r3\"") { Err(relays) } else { Ok(()) }
        });
    }
}
