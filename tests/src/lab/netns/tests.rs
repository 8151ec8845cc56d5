//! The laboratory proves itself with plain sockets.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use serde_json::Value;

use super::nat::{NatKind, Natted, Outcome};
use super::*;

/// A socket in `namespace` that gives up after a moment.
fn socket(namespace: &Namespace, address: &str) -> UdpSocket {
    let socket = namespace.enter(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    socket
}

fn hear(socket: &UdpSocket) -> Option<SocketAddr> {
    socket.recv_from(&mut [0; 64]).ok().map(|(_, from)| from)
}

/// As [`hear`], for what must come: with patience, since this machine may stand still for a moment.
fn hear_at_last(socket: &UdpSocket) -> Option<SocketAddr> {
    (0..50).find_map(|_| hear(socket))
}

#[test]
fn a_nat_masquerades_and_lets_nothing_in_unasked() {
    let Some(wan) = Wan::new("the NAT of the laboratory") else { return };
    let host = wan.host("host", 11);
    let (a, b) = (wan.natted("a", 101), wan.natted("b", 102));
    let server = socket(&host, "203.0.113.11:4433");
    let client = socket(&a.machine, "192.168.1.10:5000");
    client.send_to(b"out", "203.0.113.11:4433").unwrap();
    let seen = hear_at_last(&server).expect("what goes out arrives");
    assert_eq!(seen.ip().to_string(), "203.0.113.101");
    server.send_to(b"back", seen).unwrap();
    assert!(hear_at_last(&client).is_some(), "the answer comes back");

    let stranger = socket(&b.machine, "0.0.0.0:0");
    stranger.send_to(b"unasked", seen).unwrap();
    assert_eq!(hear(&client), None, "a stranger gets in");

    a.router.drop_incoming("wan0", "udp sport 4433");
    server.send_to(b"lost", seen).unwrap();
    assert_eq!(hear(&client), None, "one direction is cut");
    client.send_to(b"out", "203.0.113.11:4433").unwrap();
    assert!(hear_at_last(&server).is_some(), "the other is not");
    a.router.heal();
    server.send_to(b"back", seen).unwrap();
    assert!(hear_at_last(&client).is_some(), "healed");

    a.router.change_address("wan0", "203.0.113.103/24", None);
    client.send_to(b"moved", "203.0.113.11:4433").unwrap();
    let moved = hear(&server).map(|from| from.ip().to_string());
    assert_ne!(moved.as_deref(), Some("203.0.113.101"), "the address is another");
}

#[test]
fn namespaces_are_gone_after_a_panic() {
    let Some(wan) = Wan::new("the clean-up of the laboratory") else { return };
    let name = wan.switch.name().to_owned();
    let joined = std::thread::spawn(move || {
        let _kept = wan;
        std::panic::resume_unwind(Box::new(()));
    })
    .join();
    assert!(joined.is_err());
    let list = run(Command::new("ip").args(["netns", "list"]), LIMIT).text();
    assert!(!list.contains(&name), "{list}");
}

#[test]
fn what_a_dead_process_left_is_swept() {
    if !sys::is_root() || !have("ip", "the sweep of namespaces") {
        return;
    }
    // No process has this id: it is above the kernel's limit of 2^22.
    let name = format!("{PREFIX}4194999x0-left");
    ip(&["netns", "add", &name]);
    sweep();
    let list = run(Command::new("ip").args(["netns", "list"]), LIMIT).text();
    assert!(!list.contains(&name), "{list}");
}

/// The kinds with a router.
const NATS: [NatKind; 7] = [
    NatKind::FullCone,
    NatKind::AddressRestricted,
    NatKind::PortRestricted,
    NatKind::Symmetric,
    NatKind::Masquerade,
    NatKind::CarrierGrade,
    NatKind::UdpBlocked,
];

/// What a machine sends comes to `at` from here.
fn seen_from(machine: &UdpSocket, at: &UdpSocket) -> SocketAddr {
    machine.send_to(b"out", at.local_addr().unwrap()).unwrap();
    hear_at_last(at).expect("what goes out arrives")
}

/// Whether `to` lets something from `from` through to the machine.
fn admits(from: &UdpSocket, to: SocketAddr, machine: &UdpSocket) -> bool {
    from.send_to(b"in", to).unwrap();
    hear(machine).is_some()
}

#[test]
fn each_kind_maps_and_filters_as_it_says() {
    let Some(wan) = Wan::new("kinds of NAT") else { return };
    let hosts = [wan.host("r1", 11), wan.host("r2", 12)];
    let one = socket(&hosts[0], "203.0.113.11:4433");
    let other_port = socket(&hosts[0], "203.0.113.11:4434");
    let other_address = socket(&hosts[1], "203.0.113.12:4433");
    for (kind, octet) in NATS.into_iter().zip(101..) {
        let placed = wan.place(kind, kind.name(), octet);
        let machine = socket(&placed.machine, "0.0.0.0:0");
        let seen = seen_from(&machine, &one);
        assert_eq!(seen.ip(), placed.public(), "{kind:?}");
        // Filtering first: only one destination was contacted.
        let admitted = [&one, &other_port, &other_address].map(|from| admits(from, seen, &machine));
        let expected = match kind {
            NatKind::FullCone => [true, true, true],
            NatKind::AddressRestricted => [true, true, false],
            _ => [true, false, false],
        };
        assert_eq!(admitted, expected, "filtering: {kind:?}");
        let mapped = [&other_port, &other_address].map(|at| seen_from(&machine, at) == seen);
        let expected = match kind {
            // The probes above were early ones.
            NatKind::Symmetric | NatKind::Masquerade => [false, false],
            _ => [true, true],
        };
        assert_eq!(mapped, expected, "mapping: {kind:?}");
        assert_eq!(seen_from(&machine, &one), seen, "a mapping stays: {kind:?}");
    }
}

#[test]
fn an_early_probe_moves_a_plain_masquerade_only_towards_the_prober() {
    let Some(wan) = Wan::new("plain masquerade") else { return };
    let hosts = [wan.host("r1", 11), wan.host("r2", 12)];
    let one = socket(&hosts[0], "203.0.113.11:4433");
    let silent = socket(&hosts[1], "203.0.113.12:4433");
    let early = socket(&hosts[1], "203.0.113.12:4434");
    let plain = wan.place(NatKind::Masquerade, "plain", 101);
    let machine = socket(&plain.machine, "0.0.0.0:0");
    let seen = seen_from(&machine, &one);
    assert_eq!(seen_from(&machine, &silent), seen, "the mapping is endpoint-independent");
    assert!(!admits(&early, seen, &machine), "an early probe comes in");
    let moved = seen_from(&machine, &early);
    assert_ne!(moved, seen, "the port is not moved");
    assert!(admits(&early, moved, &machine), "no answer to the moved port");
    assert_eq!(seen_from(&machine, &silent), seen, "another mapping is moved");
}

#[test]
fn machines_of_one_lan_reach_each_other_and_have_one_address() {
    let Some(wan) = Wan::new("a LAN behind one NAT") else { return };
    let host = wan.host("r1", 11);
    let server = socket(&host, "203.0.113.11:4433");
    let [a, b] = wan.home(NatKind::PortRestricted, ["a", "b"], 101);
    let (left, right) = (socket(&a.machine, "0.0.0.0:5000"), socket(&b.machine, "0.0.0.0:5000"));
    let (from_a, from_b) = (seen_from(&left, &server), seen_from(&right, &server));
    assert_eq!(from_a.ip(), from_b.ip());
    assert_ne!(from_a.port(), from_b.port(), "two machines share a mapping");
    left.send_to(b"within", "192.168.1.11:5000").unwrap();
    assert_eq!(hear_at_last(&right), Some("192.168.1.10:5000".parse().unwrap()));
    left.send_to(b"around", from_b).unwrap();
    assert_eq!(hear(&right), None, "the router turns packets round (hairpin)");
}

#[test]
fn blocked_udp_and_broken_families_leave_the_relays() {
    let Some(wan) = Wan::new("firewalls and broken families") else { return };
    let (relay, public) = (wan.dual_host("r1", 11), wan.dual_host("stranger", 90));
    let near = socket(&relay, "[::]:4433");
    let far = socket(&public, "[::]:4433");
    let (relay4, relay6) = (Wan::address(11).into(), Wan::address6(11).into());
    let (far4, far6) = (Wan::address(90).into(), Wan::address6(90).into());
    // Whether the relay and the stranger are reached, over IPv4 and over IPv6.
    let cases = [
        (NatKind::UdpBlocked, [true, false, false, false]),
        (NatKind::Public, [true, false, true, false]),
        (NatKind::Ipv6Only, [false, true, false, true]),
        (NatKind::BrokenIpv6, [true, false, true, false]),
        (NatKind::BrokenIpv4, [false, true, false, true]),
    ];
    for ((kind, expected), octet) in cases.into_iter().zip(101..) {
        let placed = wan.place(kind, kind.name(), octet);
        let machine = socket(&placed.machine, "[::]:0");
        let reaches = |at: &UdpSocket, ip: IpAddr| {
            // A v6 socket sends to both families; to one without a route it says so.
            let to = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
                v6 => v6,
            };
            // An address of IPv6 is not at once to be had (RFC 4862, 5.4).
            (0..3).any(|_| machine.send_to(b"out", (to, 4433)).is_ok() && hear(at).is_some())
        };
        let reached = [
            reaches(&near, relay4),
            reaches(&near, relay6),
            reaches(&far, far4),
            reaches(&far, far6),
        ];
        assert_eq!(reached, expected, "{kind:?}");
    }
}

#[test]
fn a_rebound_mapping_is_another_and_the_old_one_dead() {
    let Some(wan) = Wan::new("rebinding") else { return };
    let hosts = [wan.host("r1", 11), wan.host("r2", 12)];
    let one = socket(&hosts[0], "203.0.113.11:4433");
    let other = socket(&hosts[1], "203.0.113.12:4433");
    for (kind, octet) in
        [NatKind::FullCone, NatKind::PortRestricted, NatKind::CarrierGrade].into_iter().zip(101..)
    {
        let placed = wan.place(kind, kind.name(), octet);
        let machine = socket(&placed.machine, "0.0.0.0:0");
        let mut before = seen_from(&machine, &one);
        for _ in 0..2 {
            placed.rebind();
            assert!(!admits(&one, before, &machine), "the old mapping lives: {kind:?}");
            let after = seen_from(&machine, &one);
            assert_ne!(before, after, "the mapping is the same: {kind:?}");
            assert_eq!(seen_from(&machine, &other), after, "the kind is another: {kind:?}");
            assert!(admits(&one, after, &machine), "the new mapping is dead: {kind:?}");
            before = after;
        }
    }
}

#[test]
fn ways_are_blocked_lossy_and_free_again_while_relays_are_reached() {
    let Some(wan) = Wan::new("switched rules") else { return };
    let relay = wan.dual_host("r1", 11);
    let (a, b) = (wan.dual_host("a", 101), wan.dual_host("b", 102));
    let server = socket(&relay, "[::]:4433");
    let (left, right) = (socket(&a, "[::]:5000"), socket(&b, "[::]:5000"));
    let mapped = |octet| Wan::address(octet).to_ipv6_mapped();
    let reach = |from: &UdpSocket, to: std::net::Ipv6Addr, at: &UdpSocket, port: u16| {
        from.send_to(b"x", (to, port)).unwrap();
        hear(at).is_some()
    };
    let ways = || {
        [
            reach(&left, mapped(102), &right, 5000),
            reach(&right, mapped(101), &left, 5000),
            reach(&left, Wan::address6(102), &right, 5000),
            reach(&left, mapped(11), &server, 4433),
            reach(&left, Wan::address6(11), &server, 4433),
        ]
    };
    let counter = wan.count_direct();
    assert_eq!(counter.udp_packets(), 0);
    assert_eq!(ways(), [true; 5]);
    assert_eq!(counter.udp_packets(), 3, "those past the relay");
    wan.block_direct();
    assert_eq!(ways(), [false, false, false, true, true]);
    wan.allow();
    wan.block(Wan::address(101).into(), Wan::address(102).into());
    assert_eq!(ways(), [false, false, true, true, true]);
    assert_eq!(counter.udp_packets(), 9, "also those that are dropped");
    wan.allow();
    wan.block_one_way(Wan::address(101).into(), Wan::address(102).into());
    assert_eq!(ways(), [false, true, true, true, true]);
    wan.allow();
    assert_eq!(ways(), [true; 5]);

    wan.lose(Wan::address6(101).into(), Wan::address6(102).into(), 30);
    let (mut sent, mut heard) = (0, 0);
    right.set_nonblocking(true).unwrap();
    while sent < 1000 {
        // Few enough for the socket's buffer.
        for _ in 0..100 {
            left.send_to(b"x", (Wan::address6(102), 5000)).unwrap();
        }
        sent += 100;
        heard += std::iter::from_fn(|| hear(&right)).count();
    }
    // Six standard deviations of a fair draw.
    assert!((613..=787).contains(&heard), "{heard} of {sent} with 30 % loss");
}

#[test]
fn nothing_leads_out_of_a_laboratory() {
    let Some(wan) = Wan::new("the closed laboratory") else { return };
    let before = links(&mut Command::new("ip"));
    let placed: Vec<_> = NatKind::ALL
        .into_iter()
        .zip(101..)
        .map(|(kind, octet)| wan.place(kind, kind.name(), octet))
        .collect();
    let host = wan.dual_host("r1", 11);
    let ours = |link: &Value| {
        let kind = link["linkinfo"]["info_kind"].as_str().unwrap_or_default();
        // The other end of a pair lies in a namespace; in that of this process it would have no number here.
        match kind {
            "veth" => link["link_netnsid"].is_number(),
            "bridge" => true,
            _ => link["ifname"] == "lo",
        }
    };
    let routers =
        placed.iter().flat_map(|p| [Some(&p.machine), Some(&p.router), p.carrier.as_ref()]);
    for namespace in routers.flatten().chain([&host, &wan.switch]) {
        let mut command = Command::new("ip");
        for link in links(command.args(["-n", namespace.name()])) {
            assert!(ours(&link), "{}: {link}", namespace.name());
            // Idents of namespaces are local: ask the kernel which one it is.
            if let Some(id) = link["link_netnsid"].as_u64() {
                let list = run(
                    Command::new("ip")
                        .args(["-n", namespace.name(), "netns", "list-id", "nsid"])
                        .arg(id.to_string()),
                    LIMIT,
                );
                let text = list.ok().text();
                assert!(text.contains(&wan.tag), "{}: {link} leads to {text:?}", namespace.name());
            }
        }
    }
    let names = |all: &[Value]| -> Vec<String> {
        all.iter().map(|link| link["ifname"].to_string()).collect()
    };
    assert_eq!(names(&links(&mut Command::new("ip"))), names(&before), "this machine's interfaces");
}

fn links(ip: &mut Command) -> Vec<Value> {
    let done = run(ip.args(["-d", "-j", "link", "show"]), LIMIT).ok();
    done.json().as_array().cloned().unwrap_or_default()
}

#[test]
fn expectations_do_not_depend_on_who_calls() {
    for a in NatKind::ALL {
        for b in NatKind::ALL {
            assert_eq!(a.expected(b), b.expected(a), "{a:?} {b:?}");
        }
    }
    let expected =
        |a: NatKind, b: NatKind, outcome| assert_eq!(a.expected(b), outcome, "{a:?} {b:?}");
    expected(NatKind::PortRestricted, NatKind::PortRestricted, Outcome::Direct);
    expected(NatKind::Symmetric, NatKind::Symmetric, Outcome::Relayed);
    expected(NatKind::Symmetric, NatKind::PortRestricted, Outcome::Relayed);
    expected(NatKind::Symmetric, NatKind::Masquerade, Outcome::Relayed);
    expected(NatKind::Symmetric, NatKind::AddressRestricted, Outcome::Direct);
    expected(NatKind::Masquerade, NatKind::AddressRestricted, Outcome::Direct);
    expected(NatKind::Masquerade, NatKind::CarrierGrade, Outcome::Race);
    expected(NatKind::Public, NatKind::UdpBlocked, Outcome::Relayed);
    expected(NatKind::Ipv6Only, NatKind::BrokenIpv4, Outcome::Direct);
    expected(NatKind::Ipv6Only, NatKind::BrokenIpv6, Outcome::Relayed);
}

/// A terminal of plain sockets.
struct Puncher {
    socket: UdpSocket,
    /// How the relay sees it, over each family that works.
    seen: Vec<SocketAddr>,
    /// Whence probes came that were probed in turn.
    probed_back: Vec<SocketAddr>,
    /// Whether a probe of its own was answered.
    proven: bool,
}

impl Puncher {
    /// A new mapping, shown to the relay.
    fn new(at: &Natted, relay: &UdpSocket) -> Puncher {
        let socket = at.machine.enter(|| UdpSocket::bind("[::]:0")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(3))).unwrap();
        let ways = [Wan::address(11).to_ipv6_mapped(), Wan::address6(11)];
        let seen = ways
            .into_iter()
            .filter_map(|ip| socket.send_to(b"out", (ip, 4433)).ok().and_then(|_| hear(relay)));
        Puncher { seen: seen.collect(), socket, probed_back: Vec::new(), proven: false }
    }

    /// One probe to each of the other's addresses.
    fn probe(&self, other: &Puncher) {
        for to in &other.seen {
            let _ = self.socket.send_to(b"probe", to);
        }
    }

    /// Answers what has come.
    fn answer(&mut self) {
        let mut buffer = [0; 64];
        while let Ok((count, from)) = self.socket.recv_from(&mut buffer) {
            match &buffer[..count] {
                b"probe" => {
                    let _ = self.socket.send_to(b"answer", from);
                    // Whoever it comes from may not be whom the relay sees (ICE: peer-reflexive).
                    if !self.probed_back.contains(&from) {
                        self.probed_back.push(from);
                        let _ = self.socket.send_to(b"probe", from);
                    }
                }
                _ => self.proven = true,
            }
        }
    }
}

/// A relay for plain sockets, and two machines of each kind.
struct Field {
    _host: Namespace,
    relay: UdpSocket,
    callers: Vec<Natted>,
    callees: Vec<Natted>,
    _wan: Wan,
}

impl Field {
    fn new(what: &str, kinds: &[NatKind]) -> Option<Field> {
        let wan = Wan::new(what)?;
        let host = wan.dual_host("r1", 11);
        let relay = socket(&host, "[::]:4433");
        relay.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let places = |side: &str, first: u8| -> Vec<Natted> {
            let numbered = kinds.iter().zip(first..);
            let place =
                |(kind, n): (&NatKind, u8)| wan.place(*kind, &format!("{}-{side}", kind.name()), n);
            numbered.map(place).collect()
        };
        let (callers, callees) = (places("a", 101), places("b", 151));
        Some(Field { _host: host, relay, callers, callees, _wan: wan })
    }

    /// Calls from each to each: `open` first, then three rounds, in which the caller probes before the callee, and
    /// both answer what comes in. `expected` says who must have proven the path: both or neither.
    fn each_pair(
        &self,
        open: impl Fn(&Puncher, &Puncher),
        expected: impl Fn(NatKind, NatKind) -> bool,
    ) {
        for (from, to) in self.callers.iter().flat_map(|a| self.callees.iter().map(move |b| (a, b)))
        {
            let (mut a, mut b) = (Puncher::new(from, &self.relay), Puncher::new(to, &self.relay));
            open(&a, &b);
            for _ in 0..3 {
                a.probe(&b);
                b.answer();
                b.probe(&a);
                a.answer();
                b.answer();
                a.answer();
                if a.proven && b.proven {
                    break;
                }
            }
            let expected = expected(from.kind(), to.kind());
            let what = format!("{:?} calls {:?}", from.kind(), to.kind());
            let seen = (&a.seen, &b.seen);
            assert_eq!((a.proven, b.proven), (expected, expected), "{what}: {seen:?}");
        }
    }
}

/// The expectations, shown by the simplest terminals that can be. So they hold for any terminal, and no more can be
/// had without guessing ports.
#[test]
fn plain_sockets_reach_each_other_where_it_is_expected() {
    let what = "the matrix of NATs with plain sockets";
    let Some(field) = Field::new(what, &NatKind::ALL) else { return };
    field.each_pair(
        |_, _| (),
        |from, to| match from.expected(to) {
            Outcome::Direct => true,
            Outcome::Relayed => false,
            // Only whose own port the first probe does not move.
            Outcome::Race => to != NatKind::Masquerade,
        },
    );
}

#[test]
fn packets_of_a_short_life_win_every_race() {
    let kinds = [NatKind::PortRestricted, NatKind::Masquerade, NatKind::CarrierGrade];
    let Some(field) = Field::new("races with plain sockets", &kinds) else { return };
    let open = |a: &Puncher, b: &Puncher| {
        for (from, to) in [(a, b), (b, a)] {
            let life = from.socket.ttl().unwrap();
            // Enough for two NATs of its own.
            from.socket.set_ttl(4).unwrap();
            from.probe(to);
            from.socket.set_ttl(life).unwrap();
        }
    };
    field.each_pair(open, |_, _| true);
}
