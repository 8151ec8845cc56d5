//! Terminals that exhaust other terminals or relays.

use std::time::Duration;

use tasuki_proto::session::{Begin, OpenPing, PING};
use tasuki_proto::{RelayName, ServiceName, TerminalId, limits};
use tasuki_terminal::core::access::AccessRules;
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
