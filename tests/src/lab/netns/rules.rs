//! What the internet does to packets on their way, switched while everything runs: its switch drops what passes
//! between two addresses, in both directions or one, always or by chance. Relays stay reachable. Nothing is closed
//! and nobody is told.

use std::net::IpAddr;

use super::{LIMIT, Namespace, RELAYS, Wan};
use crate::lab::process::run;

/// A filter of its own family: packets that a switch passes on are not routed.
const TABLE: &str = "bridge way";
/// The counters are apart: they stay when the filter is emptied.
const COUNTS: &str = "bridge counts";

/// Routers that the internet has between two machines.
const HOPS: u8 = 8;

/// The empty filter; and a packet that may not be passed on as often as the internet has routers dies on its way.
pub(super) fn prepare(switch: &Namespace) {
    switch.nft(&format!(
        "table {TABLE} {{
           chain between {{ type filter hook forward priority 0; }}
           chain hops {{ type filter hook forward priority 10;
             ip ttl < {HOPS} drop; meta l4proto udp ip6 hoplimit < {HOPS} drop; }}
         }}"
    ));
}

impl Wan {
    /// Drops what passes between two addresses, both ways.
    ///
    /// # Panics
    /// When the rule is not accepted; so do the others here.
    pub fn block(&self, a: IpAddr, b: IpAddr) {
        self.block_one_way(a, b);
        self.block_one_way(b, a);
    }

    /// Drops what passes between machines other than relays.
    pub fn block_direct(&self) {
        for (family, relays) in ["ip", "ip6"].iter().zip(RELAYS) {
            self.add(&format!("{family} saddr != {relays} {family} daddr != {relays} drop"));
        }
    }

    /// Drops what passes from one address to another; the other way stays free.
    pub fn block_one_way(&self, from: IpAddr, to: IpAddr) {
        self.add(&format!("{} drop", between(from, to)));
    }

    /// Drops so many of 100 packets on their way from one address to another, at random; at most 99.
    pub fn lose(&self, from: IpAddr, to: IpAddr, percent: u8) {
        self.add(&format!("{} numgen random mod 100 < {percent} drop", between(from, to)));
    }

    /// Takes back everything that was dropped.
    pub fn allow(&self) {
        self.switch.nft(&format!("flush chain {TABLE} between"));
    }

    /// Counts, from here on, the UDP packets that pass between machines other than relays, also those that are
    /// dropped.
    pub fn count_direct(&self) -> Counter<'_> {
        let count = |(family, relays): (&str, &str)| {
            format!(
                "{family} saddr != {relays} {family} daddr != {relays} meta l4proto udp counter;\n"
            )
        };
        let rules: String = ["ip", "ip6"].into_iter().zip(RELAYS).map(count).collect();
        self.switch.nft(&format!(
            "table {COUNTS} {{}}\n delete table {COUNTS}\n table {COUNTS} {{\n \
             chain between {{ type filter hook forward priority -10; {rules} }}\n }}"
        ));
        Counter(self)
    }

    fn add(&self, rule: &str) {
        self.switch.nft(&format!("add rule {TABLE} between {rule}"));
    }
}

/// What passes between machines other than relays; a later one begins again for all.
#[derive(Debug)]
pub struct Counter<'a>(&'a Wan);

impl Counter<'_> {
    /// UDP packets of both families so far.
    ///
    /// # Panics
    /// When nftables does not say.
    pub fn udp_packets(&self) -> u64 {
        let mut nft = self.0.switch.command("nft");
        let table = run(nft.args(["-j", "list", "table"]).args(COUNTS.split(' ')), LIMIT).ok();
        let rules = table.json()["nftables"].as_array().cloned().unwrap_or_default();
        let counters = rules.iter().filter_map(|row| row["rule"]["expr"].as_array()).flatten();
        let packets: Vec<u64> =
            counters.filter_map(|part| part["counter"]["packets"].as_u64()).collect();
        assert_eq!(packets.len(), RELAYS.len(), "{rules:?}");
        packets.iter().sum()
    }
}

/// What goes from one address to another.
fn between(from: IpAddr, to: IpAddr) -> String {
    let family = if from.is_ipv4() { "ip" } else { "ip6" };
    format!("{family} saddr {from} {family} daddr {to}")
}
