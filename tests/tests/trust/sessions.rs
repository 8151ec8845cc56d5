//! Terminals that exhaust other terminals or relays.

use std::time::Duration;

use serde_json::Value;
use tasuki_proto::session::{Begin, OpenPing, PING};
use tasuki_proto::{RelayName, ServiceName, TerminalId, limits};
use tasuki_terminal::core::access::AccessRules;
use tasuki_tests::lab::bad_frames::{BadFrames, FirstPackets};
use tasuki_tests::lab::mesh::{Relay, Terminal};
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, TerminalSpec, agents, eventually};

const MIB: u64 = 1024 * 1024;
/// What one peer may make a terminal hold on to by sessions for pings.
const GROWTH: u64 = 64 * MIB;
/// How many it tries to have.
const TRIED: usize = limits::PING_SESSIONS_PER_PEER + 40;
/// How long it pushes bytes into each.
const PUSH: Duration = Duration::from_millis(200);

/// A terminal that may do no more than ping opens many sessions, pushes bytes into each, and reads none of the echoes.
#[test]
fn pings_whose_echoes_nobody_reads_cost_little_and_leave_room_for_others() {
    let terminal = |name: &str| TerminalSpec::new(name).at(&["r1"]).relayed();
    let mesh = MeshSpec::line(&["r1"])
        .terminal(terminal("bad").stays_off())
        .terminal(terminal("b"))
        .terminal(terminal("c"))
        .start();
    let (b, c) = (mesh.terminal("b"), mesh.terminal("c"));
    c.verb(&["ping", "b", "-c", "1"]).ok();
    let before = b.rss();
    let runtime = agents::runtime(None).unwrap();
    let relay = RelayName::new("r1").unwrap();
    let data = mesh.terminal("bad").data().to_owned();
    let held = runtime.block_on(async {
        let agent = agents::start(&data, &relay, AccessRules::default()).await.unwrap();
        let (target, service) = (TerminalId::new("b").unwrap(), ServiceName::new(PING).unwrap());
        let mut held = Vec::new();
        let block = vec![7; 4 * 1024 * 1024];
        for _ in 0..TRIED {
            let Ok(session) = agent.call(target.clone(), service.clone()).await else { continue };
            // Its own windows are small too: what it pushes is what the other end lets in.
            session.connection.set_send_window(64 * MIB);
            let mut streams = Vec::new();
            for _ in 0..8 {
                let (mut send, recv) = session.connection.open_bi().await.unwrap();
                let push = async {
                    send.write_all(&Begin::Ping(OpenPing {}).to_bytes()).await?;
                    send.write_all(&block).await
                };
                // Most of it never leaves: nobody lets it in.
                let _ = tokio::time::timeout(PUSH / 8, push).await;
                streams.push((send, recv));
            }
            held.push((session, streams));
        }
        (agent, held)
    });
    assert_eq!(held.1.len(), limits::PING_SESSIONS_PER_PEER, "one peer's budget");
    let growth = b.rss().saturating_sub(before);
    println!("{} sessions, {} MiB", held.1.len(), growth / MIB);
    assert!(growth < GROWTH, "{} MiB", growth / MIB);
    // Others find room meanwhile.
    let ping = c.verb(&["ping", "b", "-c", "3", "--json"]).ok().json();
    assert_eq!(ping["received"], 3, "{ping}");
    drop(held);
    drop(runtime);
    eventually("b answers as before", SOON, || {
        let status = b.verb(&["status", "--json"]).ok().json();
        if status["state"] == "logged-in" { Ok(()) } else { Err(status.to_string()) }
    });
}

/// First packets of QUIC connections in the frames of one call, and what they may cost the terminal that was called: one
/// handshake.
const FIRST_PACKETS: usize = 6_000;
const HANDSHAKE_GROWTH: u64 = 4 * MIB;
/// Calls that follow each other at up to 50 a second, each with a handshake that is begun and left, and what they may cost
/// together: QUIC forgets a connection three seconds after its end (RFC 9000, section 10.2). Handshakes that outlived their
/// sessions would cost more.
const CALLS: usize = 300;
const CALLS_GROWTH: u64 = 28 * MIB;
/// The longest that the session of another terminal may stand still beside them.
const STALL: Duration = Duration::from_secs(5);

/// The sessions of `b` that `caller` called.
fn called_by(b: &Terminal, caller: &str) -> usize {
    let running = |row: &&Value| row["state"] != "ended" && row["caller"] == caller;
    b.list("sessions").iter().filter(running).count()
}

/// What a relay carried to the callees of sessions that `caller` called, in packets.
fn carried(relay: &Relay, caller: &str) -> u64 {
    let rows = relay.sessions().unwrap();
    let rows = rows.iter().filter(|row| row["caller"] == caller);
    rows.filter_map(|row| row["packets_to_callee"].as_u64()).sum()
}

/// A terminal that may do no more than ping begins one handshake after the other in the frames of its session.
#[test]
fn first_packets_in_frames_begin_one_handshake_a_session() {
    let echo = TcpService::echo(None);
    let terminal = |name: &str| TerminalSpec::new(name).at(&["r1"]).relayed();
    let mesh = MeshSpec::line(&["r1"])
        .terminal(terminal("bad").stays_off())
        .terminal(terminal("b").offers("echo", &format!("tcp://{}", echo.address())))
        .terminal(terminal("c"))
        .start();
    let (r1, b, c) = (mesh.relay("r1"), mesh.terminal("b"), mesh.terminal("c"));
    let mut dial = c.dial("b/echo");
    let mut round = || {
        dial.write(b"12345678").unwrap();
        dial.read_exact(8, STALL).unwrap_or_else(|error| panic!("c's session: {error}"));
    };
    round();
    let before = b.rss();
    let mut most = 0;
    let mut grown = |what: &str, limit: u64| {
        let growth = b.rss().saturating_sub(before);
        most = growth.max(most);
        assert!(growth < limit, "{} KiB more: {what}", growth / 1024);
    };
    let packets = FirstPackets::random();
    let runtime = agents::runtime(None).unwrap();
    let mut bad = runtime.block_on(async {
        let data = mesh.terminal("bad").data();
        BadFrames::log_in((r1.listen(), "r1"), data).await.unwrap()
    });
    let (session, label) = runtime.block_on(bad.call("b", PING)).unwrap();
    let batch = FIRST_PACKETS / 20;
    for n in 0..20 {
        let packets = std::iter::repeat_with(|| packets.packet()).take(batch);
        runtime.block_on(bad.send(label, packets)).unwrap();
        round();
        grown(&format!("{} first packets", (n + 1) * batch), HANDSHAKE_GROWTH);
    }
    eventually("the relay carried them", SOON, || {
        let carried = carried(r1, "bad");
        if carried >= FIRST_PACKETS as u64 { Ok(()) } else { Err(carried.to_string()) }
    });
    assert!(bad.heard() > 0, "b never answered");
    assert_eq!(called_by(b, "bad"), 1);
    runtime.block_on(bad.end(session)).unwrap();
    eventually("b holds no session of bad", SOON, || match called_by(b, "bad") {
        0 => Ok(()),
        more => Err(more.to_string()),
    });
    // A handshake ends with its session, however many of them follow each other.
    for n in 0..CALLS {
        let (session, label) = runtime.block_on(bad.call("b", PING)).unwrap();
        runtime.block_on(bad.send(label, std::iter::once(packets.packet()))).unwrap();
        eventually("b answers a first packet", SOON, || {
            if bad.heard() > 0 { Ok(()) } else { Err(format!("call {n}")) }
        });
        runtime.block_on(bad.end(session)).unwrap();
        if n % 20 == 0 {
            round();
            grown(&format!("{n} calls that are over"), CALLS_GROWTH);
        }
    }
    grown("at the end", CALLS_GROWTH);
    round();
    c.verb(&["ping", "b", "-c", "1"]).ok();
    println!("{} KiB at most", most / 1024);
}
