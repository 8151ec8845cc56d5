//! Network namespaces: an internet of one switch, hosts on it, and machines behind NATs of their own.
//!
//! ```text
//!  203.0.113.0/24          host r1 (.11)   host r2 (.12)
//!  ----+-------------------+---------------+----------
//!      | wan0 (.101)                wan0 (.102) |
//!   router, masquerade           router, masquerade
//!      | lan0 192.168.1.1           lan0 192.168.1.1 |
//!   terminal 192.168.1.10        terminal 192.168.1.10
//! ```

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::process::{Done, run, run_with_input};
use super::{have, left_out, sys};

const LIMIT: Duration = Duration::from_secs(20);
const PREFIX: &str = "tsk";

/// A network namespace; the last clone removes it, and ends what still runs in it.
#[derive(Debug, Clone)]
pub struct Namespace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
}

impl Drop for Inner {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Ends what runs in a namespace of ours and removes it.
fn remove(name: &str) {
    // While a program that was just started is still on its way in, the list may be short of it: look twice.
    for _ in 0..2 {
        let Ok(pids) = Command::new("ip").args(["netns", "pids", name]).output() else { return };
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            let _ = Command::new("kill").args(["-KILL", pid]).output();
        }
    }
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

impl Namespace {
    fn new(name: String) -> Namespace {
        ip(&["netns", "add", &name]);
        let namespace = Namespace(Arc::new(Inner { name }));
        ip(&["-n", namespace.name(), "link", "set", "lo", "up"]);
        namespace
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// `program`, to be run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name()]).arg(program);
        command
    }

    /// Runs `action` on a thread that is inside. Sockets made there stay there. Processes are started with
    /// [`Namespace::command`] instead: they die with the thread that starts them.
    ///
    /// # Panics
    /// When the namespace cannot be entered, or `action` panics.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name())).expect("the namespace");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                sys::enter_net_namespace(&file).expect("root may enter a namespace");
                action()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// `ip` inside.
    ///
    /// # Panics
    /// When it fails.
    pub fn ip(&self, arguments: &[&str]) {
        let mut all = vec!["-n", self.name()];
        all.extend_from_slice(arguments);
        ip(&all);
    }

    /// Feeds `rules` to nftables inside.
    ///
    /// # Panics
    /// When they are not accepted.
    pub fn nft(&self, rules: &str) {
        run_with_input(self.command("nft").args(["-f", "-"]), rules.as_bytes(), LIMIT).ok();
    }

    /// Drops, without a word to anybody, what leaves by `interface` and matches `rule` (nftables syntax, empty
    /// for everything). Nothing is closed: the other direction goes on.
    pub fn drop_outgoing(&self, interface: &str, rule: &str) {
        let filter = |hook: &str| {
            format!(
                "chain {hook} {{\n type filter hook {hook} priority 10\n \
                 oifname \"{interface}\" {rule} drop\n }}\n"
            )
        };
        self.nft(&format!("table inet cut {{\n{}{}}}\n", filter("output"), filter("forward")));
    }

    /// As [`Namespace::drop_outgoing`], for what comes in.
    pub fn drop_incoming(&self, interface: &str, rule: &str) {
        self.nft(&format!(
            "table inet cut {{\n chain incoming {{\n type filter hook prerouting priority -300\n \
             iifname \"{interface}\" {rule} drop\n }}\n}}\n"
        ));
    }

    /// Takes back all drops.
    pub fn heal(&self) {
        self.nft("table inet cut {}\ndelete table inet cut");
    }

    /// Gives `interface` another address (`ADDRESS/PREFIX`) instead of its present ones, and a default route by
    /// `gateway` where one is given.
    pub fn change_address(&self, interface: &str, address: &str, gateway: Option<&str>) {
        self.ip(&["addr", "flush", "dev", interface]);
        self.ip(&["addr", "add", address, "dev", interface]);
        if let Some(gateway) = gateway {
            self.ip(&["route", "replace", "default", "via", gateway]);
        }
    }

    /// Forgets every NAT mapping of a router, as after its restart.
    pub fn forget_mappings(&self, interface: &str) {
        // Addresses that go away take their masqueraded connections along.
        self.ip(&["link", "set", interface, "down"]);
        self.ip(&["link", "set", interface, "up"]);
    }
}

/// A machine behind its own NAT.
#[derive(Debug, Clone)]
pub struct Natted {
    /// The machine: 192.168.1.10 on `eth0`.
    pub machine: Namespace,
    /// Its router: `wan0` outside, `lan0` inside.
    pub router: Namespace,
}

/// An internet of one switch.
#[derive(Debug)]
pub struct Wan {
    tag: String,
    switch: Namespace,
    ports: AtomicU32,
}

impl Wan {
    /// An internet, or `None` (said loudly) where this machine cannot make one. Removes what test processes
    /// that were killed left behind.
    pub fn new(what: &str) -> Option<Wan> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !sys::is_root() {
            left_out(&format!("{what}: network namespaces need root"));
            return None;
        }
        if !have("ip", what) || !have("nft", what) {
            return None;
        }
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{PREFIX}{}x{number}", std::process::id());
        let switch = Namespace::new(format!("{tag}-switch"));
        switch.ip(&["link", "add", "br0", "type", "bridge"]);
        switch.ip(&["link", "set", "br0", "up"]);
        Some(Wan { tag, switch, ports: AtomicU32::new(0) })
    }

    /// The public address of number `octet`.
    pub fn address(octet: u8) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, octet)
    }

    /// A public machine at 203.0.113.`octet` on `eth0`.
    pub fn host(&self, name: &str, octet: u8) -> Namespace {
        let host = Namespace::new(format!("{}-{name}", self.tag));
        self.plug(&host, "eth0", octet);
        host
    }

    /// A machine behind a NAT at 203.0.113.`octet` that lets nothing in unasked.
    pub fn natted(&self, name: &str, octet: u8) -> Natted {
        let router = Namespace::new(format!("{}-{name}-nat", self.tag));
        let machine = Namespace::new(format!("{}-{name}", self.tag));
        self.plug(&router, "wan0", octet);
        veth(&machine, "eth0", &router, "lan0");
        machine.ip(&["addr", "add", "192.168.1.10/24", "dev", "eth0"]);
        router.ip(&["addr", "add", "192.168.1.1/24", "dev", "lan0"]);
        machine.ip(&["route", "add", "default", "via", "192.168.1.1"]);
        let forwarding = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        run(router.command("sh").args(["-c", forwarding]), LIMIT).ok();
        router.nft(
            "table ip nat {
               chain out { type nat hook postrouting priority srcnat; oifname \"wan0\" masquerade; }
               chain through { type filter hook forward priority filter; policy drop;
                 iifname \"lan0\" accept; ct state established,related accept; }
               chain in { type filter hook input priority filter;
                 iifname \"wan0\" ct state new drop; }
             }",
        );
        Natted { machine, router }
    }

    fn plug(&self, namespace: &Namespace, interface: &str, octet: u8) {
        let port = format!("p{}", self.ports.fetch_add(1, Ordering::Relaxed));
        veth(namespace, interface, &self.switch, &port);
        self.switch.ip(&["link", "set", &port, "master", "br0"]);
        let address = format!("{}/24", Self::address(octet));
        namespace.ip(&["addr", "add", &address, "dev", interface]);
    }
}

fn veth(a: &Namespace, a_name: &str, b: &Namespace, b_name: &str) {
    ip(&[
        "link",
        "add",
        "name",
        a_name,
        "netns",
        a.name(),
        "type",
        "veth",
        "peer",
        "name",
        b_name,
        "netns",
        b.name(),
    ]);
    a.ip(&["link", "set", a_name, "up"]);
    b.ip(&["link", "set", b_name, "up"]);
}

fn ip(arguments: &[&str]) -> Done {
    run(Command::new("ip").args(arguments), LIMIT).ok()
}

/// Removes namespaces of test processes that are gone.
fn sweep() {
    remove_owned_by(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

/// Removes all namespaces that this process made, and ends what runs in them: for a program that was told to end.
pub fn remove_own() {
    if sys::is_root() {
        remove_owned_by(|pid| pid == std::process::id());
    }
}

fn remove_owned_by(mut is_owner: impl FnMut(u32) -> bool) {
    let list = run(Command::new("ip").args(["netns", "list"]), LIMIT).text();
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('x'));
        let owner = owner.and_then(|(pid, _)| pid.parse::<u32>().ok());
        if owner.is_some_and(&mut is_owner) {
            remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use super::*;

    /// A socket in `namespace` that gives up after a moment.
    fn socket(namespace: &Namespace, address: &str) -> UdpSocket {
        let socket = namespace.enter(|| UdpSocket::bind(address)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    }

    fn hear(socket: &UdpSocket) -> Option<SocketAddr> {
        socket.recv_from(&mut [0; 64]).ok().map(|(_, from)| from)
    }

    #[test]
    fn a_nat_masquerades_and_lets_nothing_in_unasked() {
        let Some(wan) = Wan::new("the NAT of the laboratory") else { return };
        let host = wan.host("host", 11);
        let (a, b) = (wan.natted("a", 101), wan.natted("b", 102));
        let server = socket(&host, "203.0.113.11:4433");
        let client = socket(&a.machine, "192.168.1.10:5000");
        client.send_to(b"out", "203.0.113.11:4433").unwrap();
        let seen = hear(&server).expect("what goes out arrives");
        assert_eq!(seen.ip().to_string(), "203.0.113.101");
        server.send_to(b"back", seen).unwrap();
        assert!(hear(&client).is_some(), "the answer comes back");

        let stranger = socket(&b.machine, "0.0.0.0:0");
        stranger.send_to(b"unasked", seen).unwrap();
        assert_eq!(hear(&client), None, "a stranger gets in");

        a.router.drop_incoming("wan0", "udp sport 4433");
        server.send_to(b"lost", seen).unwrap();
        assert_eq!(hear(&client), None, "one direction is cut");
        client.send_to(b"out", "203.0.113.11:4433").unwrap();
        assert!(hear(&server).is_some(), "the other is not");
        a.router.heal();
        server.send_to(b"back", seen).unwrap();
        assert!(hear(&client).is_some(), "healed");

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
}
