//! What relays learn of terminals behind NATs: never the private addresses that the terminals tell each other.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tasuki_proto::{RelayName, ServiceName, TerminalId};
use tasuki_terminal::agent::Agent;
use tasuki_tests::lab::netns::nat::NatKind::Symmetric;
use tasuki_tests::lab::netns::{Namespace, Wan};
use tasuki_tests::lab::pairs::public_relays;
use tasuki_tests::lab::paths::DIRECT_WITHIN;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{TerminalSpec, agents, eventually};
use tokio::runtime::Runtime;

/// `ETH_P_ALL`, in the order of the network.
const EVERYTHING: i32 = 3_u16.to_be() as i32;
const SERVICE: &str = "whisper";

/// Copies every packet of a namespace until it is told to end.
struct Capture {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u8>>,
}

impl Capture {
    fn start(namespace: &Namespace) -> Capture {
        let mut socket = namespace
            .enter(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERYTHING))))
            .unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let thread = std::thread::spawn(move || {
            let (mut all, mut packet) = (Vec::new(), vec![0; 65_536]);
            while !until.load(Ordering::Relaxed) {
                if let Ok(length) = socket.read(&mut packet) {
                    all.extend_from_slice(&packet[..length]);
                }
            }
            all
        });
        Capture { ended, thread }
    }

    fn end(self) -> Vec<u8> {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// The forms in which an address could stand somewhere. Its 16 bytes as a v4-mapped one end in the first of these.
fn forms(ip: Ipv4Addr) -> Vec<Vec<u8>> {
    let [a, b, c, d] = ip.octets();
    let hex = format!("{a:02x}{b:02x}{c:02x}{d:02x}");
    let number = u32::from(ip).to_string();
    vec![
        vec![a, b, c, d],
        vec![d, c, b, a],
        ip.to_string().into_bytes(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        number.into_bytes(),
    ]
}

fn find(bytes: &[u8], ip: Ipv4Addr) -> Option<Vec<u8>> {
    forms(ip).into_iter().find(|form| contains(bytes, form))
}

struct Overheard {
    runtime: Runtime,
    agent: Agent,
    said: Arc<Mutex<Vec<u8>>>,
}

fn agent(
    mesh: &tasuki_tests::lab::Mesh,
    name: &str,
    relay: &str,
    service: &ServiceName,
) -> Overheard {
    let terminal = mesh.terminal(name);
    let runtime = agents::runtime(terminal.namespace()).unwrap();
    let said = Arc::new(Mutex::new(Vec::new()));
    let (data, relay) = (terminal.data().to_owned(), RelayName::new(relay).unwrap());
    let (rules, copy) = (agents::open(service), said.clone());
    let started = runtime
        .spawn(async move { agents::start_overheard(&data, &relay, rules, Some(copy)).await });
    let agent = runtime.block_on(started).unwrap().unwrap();
    Overheard { runtime, agent, said }
}

/// Two machines of one LAN, whose only direct way is between their private addresses: that it is found shows that they
/// told each other. Every byte of their control messages, and every packet at the relays, is searched for them.
#[test]
fn relays_never_see_the_private_addresses_that_peers_exchange() {
    let Some(wan) = Wan::new("what relays see") else { return };
    let [a, b] = wan.home(Symmetric, ["a", "b"], 101);
    let IpAddr::V4(public) = a.public() else { panic!("a public IPv4 address") };
    let (mesh, hosts) = public_relays(&wan);
    let mesh = mesh
        .terminal(TerminalSpec::new("a").on(&a.machine).stays_off())
        .terminal(TerminalSpec::new("b").on(&b.machine).stays_off())
        .start();
    let at_relays = [0, 1].map(|n: usize| Capture::start(&hosts[n]));
    let in_lan = Capture::start(&a.machine);
    let service = ServiceName::new(SERVICE).unwrap();
    let (a, b) = (agent(&mesh, "a", "r1", &service), agent(&mesh, "b", "r2", &service));
    // Each is logged in at its own relay; the relay of one hears of the other later.
    for name in ["a", "b"] {
        mesh.wait_state(name, "logged-in", SOON);
    }
    let calling = a.agent.clone();
    let call = async move { calling.call(TerminalId::new("b").unwrap(), service).await };
    let session = a.runtime.block_on(a.runtime.spawn(call)).unwrap().unwrap();
    // Traffic begins over the relays.
    let begun = Instant::now();
    eventually("a direct path in the LAN", DIRECT_WITHIN, || {
        let _ = session.connection.send_datagram(vec![0; 200].into());
        let paths = a.runtime.block_on(a.agent.paths()).map_err(|e| e.to_string())?;
        if paths.iter().any(|path| path.path == "direct") {
            Ok(())
        } else {
            Err(format!("{paths:?}"))
        }
    });
    println!("direct after {:?}", begun.elapsed());
    drop(session);
    for end in [&a, &b] {
        end.runtime.block_on(end.agent.logout()).unwrap();
    }
    let private = [Ipv4Addr::new(192, 168, 1, 10), Ipv4Addr::new(192, 168, 1, 11)];
    let said = [&a, &b].map(|end| end.said.lock().unwrap().clone());
    // The search finds what is there.
    assert!(contains(&said[0], SERVICE.as_bytes()), "the call was overheard");
    let lan = in_lan.end();
    for ip in private {
        assert!(find(&lan, ip).is_some(), "{ip} is in packets of the LAN");
        for (name, said) in ["a", "b"].iter().zip(&said) {
            let found = find(said, ip);
            assert!(
                found.is_none(),
                "{name} told its relay {ip}: {found:?} in {} bytes",
                said.len()
            );
        }
    }
    for (relay, capture) in ["r1", "r2"].iter().zip(at_relays) {
        let seen = capture.end();
        assert!(contains(&seen, &public.octets()), "{relay} sees the NAT's address");
        for ip in private {
            let found = find(&seen, ip);
            assert!(found.is_none(), "{ip} at {relay}: {found:?} in {} bytes", seen.len());
        }
        println!("{relay}: {} bytes of packets, no private address", seen.len());
    }
}
