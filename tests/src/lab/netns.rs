//! Network namespaces: an internet of one switch, hosts on it, and machines behind NATs of their own.
//!
//! ```text
//!  203.0.113.0/24          host r1 (.11)   host r2 (.12)
//!  2001:db8::/64 ----------+---------------+----------
//!      | wan0 (.101)                wan0 (.102) |
//!   router, NAT of a kind        router, NAT of a kind
//!      | lan0 192.168.1.1           lan0 192.168.1.1 |
//!   terminal 192.168.1.10        terminal 192.168.1.10
//! ```
//!
//! No interface of a laboratory leads out of it: each is a loopback, a bridge, or one end of a pair whose other
//! end lies in another of its namespaces. Relays have the lowest addresses ([`RELAYS`]), so that rules can tell
//! what goes through them from what goes past them. [`nat`] has the kinds of NAT, [`rules`] what the internet does
//! to packets on their way.

pub mod nat;
pub mod rules;

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::process::{Done, run, run_with_input};
use super::{have, left_out, sys};

const LIMIT: Duration = Duration::from_secs(20);
const PREFIX: &str = "tsk";
/// The addresses of relays, 203.0.113.1 to .63 and 2001:db8::1 to ::3f, for nftables.
pub const RELAYS: [&str; 2] = ["203.0.113.0/26", "2001:db8::/122"];

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
        rules::prepare(&switch);
        Some(Wan { tag, switch, ports: AtomicU32::new(0) })
    }

    /// The public address of number `octet`.
    pub fn address(octet: u8) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, octet)
    }

    /// The public IPv6 address of number `octet`.
    pub fn address6(octet: u8) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(octet))
    }

    /// A public machine at 203.0.113.`octet` on `eth0`.
    pub fn host(&self, name: &str, octet: u8) -> Namespace {
        let host = self.namespace(name);
        self.plug(&host, "eth0", octet);
        host
    }

    /// A public machine at 203.0.113.`octet` and 2001:db8::`octet` on `eth0`.
    pub fn dual_host(&self, name: &str, octet: u8) -> Namespace {
        let host = self.host(name, octet);
        self.plug6(&host, "eth0", octet);
        host
    }

    /// A new namespace of this laboratory.
    fn namespace(&self, name: &str) -> Namespace {
        Namespace::new(format!("{}-{name}", self.tag))
    }

    /// Connects an interface with the switch.
    fn wire(&self, namespace: &Namespace, interface: &str) {
        let port = format!("p{}", self.ports.fetch_add(1, Ordering::Relaxed));
        veth(namespace, interface, &self.switch, &port);
        self.switch.ip(&["link", "set", &port, "master", "br0"]);
    }

    fn plug(&self, namespace: &Namespace, interface: &str, octet: u8) {
        self.wire(namespace, interface);
        let address = format!("{}/24", Self::address(octet));
        namespace.ip(&["addr", "add", &address, "dev", interface]);
    }

    /// Gives an interface that is connected its address of the other family.
    fn plug6(&self, namespace: &Namespace, interface: &str, octet: u8) {
        let address = format!("{}/64", Self::address6(octet));
        namespace.ip(&["addr", "add", &address, "dev", interface, "nodad"]);
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
mod tests;
