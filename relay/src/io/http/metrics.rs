//! Prometheus' text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;

use tasuki_proto::traces::Traces;

use crate::core::admin::StatusView;
use crate::core::selftest::Reached;
use crate::io::store::Health;

/// The content type of what [`Exposition::finish`] returns.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Something that has metrics to show. It must not block.
pub trait MetricSource: Send + Sync {
    /// Writes its metrics. Their names begin `tasuki_`, those of counters end in `_total`, units are base units.
    fn collect(&self, out: &mut Exposition);

    /// Why the relay does not do all that it should; `None` where this source knows of nothing.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// Collects samples by name, so that those of one name stand together below their HELP and TYPE.
#[derive(Debug, Default)]
pub struct Exposition {
    families_by_name: BTreeMap<&'static str, Family>,
}

#[derive(Debug)]
struct Family {
    help: &'static str,
    kind: &'static str,
    samples: String,
}

impl Exposition {
    /// Adds a sample of a value that only grows.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: u64,
    ) {
        debug_assert!(name.ends_with("_total"), "{name}");
        self.sample(name, help, "counter", labels, &value.to_string());
    }

    /// Adds a sample of a value that grows and shrinks.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        self.sample(name, help, "gauge", labels, &value.to_string());
    }

    fn sample(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: &'static str,
        labels: &[(&str, &str)],
        value: &str,
    ) {
        debug_assert!(name.starts_with("tasuki_"), "{name}");
        let family = self.families_by_name.entry(name).or_insert_with(|| Family {
            help,
            kind,
            samples: String::new(),
        });
        let out = &mut family.samples;
        out.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            out.push(if at == 0 { '{' } else { ',' });
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // Writing to a String does not fail.
            let _ = write!(out, "{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            out.push('}');
        }
        let _ = writeln!(out, " {value}");
    }

    /// All of it as text.
    pub(super) fn finish(self) -> String {
        let mut out = String::new();
        for (name, Family { help, kind, samples }) in self.families_by_name {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        out
    }
}

fn seconds(milliseconds: f64) -> f64 {
    milliseconds / 1000.0
}

impl MetricSource for Traces {
    fn collect(&self, out: &mut Exposition) {
        const NAME: &str = "tasuki_trace_spans_total";
        const HELP: &str = "Spans for the collector of traces: sent to it, or dropped since the queue was full or it did not take them.";
        let counts = self.counts();
        out.counter(NAME, HELP, &[("outcome", "sent")], counts.sent());
        out.counter(NAME, HELP, &[("outcome", "dropped")], counts.dropped());
    }
}

impl MetricSource for Health {
    fn collect(&self, out: &mut Exposition) {
        let fails = f64::from(u8::from(Health::trouble(self).is_some()));
        let help = "Whether the store takes nothing: see readyz for why.";
        out.gauge("tasuki_store_failing", help, &[], fails);
    }

    fn trouble(&self) -> Option<String> {
        Health::trouble(self).map(|why| format!("the store cannot write: {why}"))
    }
}

impl MetricSource for StatusView {
    fn collect(&self, out: &mut Exposition) {
        let flag = |on: bool| f64::from(u8::from(on));
        let count = |number: usize| number as f64;
        let relay = [("relay", self.name.as_str()), ("version", self.version.as_str())];
        out.gauge("tasuki_build_info", "The relay's name and version; always 1.", &relay, 1.0);
        let mut gauge = |name, help, value| out.gauge(name, help, &[], value);
        gauge("tasuki_uptime_seconds", "Since the relay's start.", self.uptime_s as f64);
        gauge("tasuki_incarnation", "Which life of the relay.", self.incarnation as f64);
        gauge("tasuki_ready", "Whether the relay takes terminals.", flag(self.not_ready.is_none()));
        gauge("tasuki_draining", "Whether it is told to take none.", flag(self.draining));
        gauge("tasuki_links", "Links with other relays.", count(self.links.len()));
        gauge("tasuki_terminals", "Terminals attached to this relay.", count(self.terminals));
        gauge("tasuki_sessions", "Sessions over this relay.", count(self.sessions));
        gauge(
            "tasuki_switch_labels",
            "Labels that the switch forwards, two for each accepted session.",
            count(self.labels),
        );
        gauge(
            "tasuki_connections",
            "QUIC connections that others opened, handshakes included.",
            count(self.connections),
        );
        gauge("tasuki_handshakes", "Handshakes under way.", count(self.handshakes));
        gauge("tasuki_table_rows", "Rows of the table.", count(self.table.rows));
        gauge("tasuki_table_relays", "Relays in the table.", count(self.table.relays));
        gauge("tasuki_table_terminals", "Accounts in the table.", count(self.table.terminals));
        gauge(
            "tasuki_gossip_lag_p50_seconds",
            "Median age of updates at their arrival.",
            seconds(self.gossip_lag_ms.p50),
        );
        gauge(
            "tasuki_gossip_lag_p99_seconds",
            "99th percentile of the age of updates at their arrival.",
            seconds(self.gossip_lag_ms.p99),
        );
        out.counter(
            "tasuki_handshakes_refused_total",
            "Handshakes that were not begun, or were given up.",
            &[],
            self.handshakes_refused,
        );
        out.gauge(
            "tasuki_certificate_expiry_timestamp_seconds",
            "When this relay's certificate ends, since 1970.",
            &[],
            self.certificate_until as f64,
        );
        out.gauge(
            "tasuki_certificate_renewal_failing",
            "Whether renewals of this relay's certificate fail.",
            &[],
            flag(self.renewal.is_some()),
        );
        out.counter(
            "tasuki_certificate_renewal_failures_total",
            "Renewals of this relay's certificate that failed.",
            &[],
            self.renewal_failures,
        );
        let forwarded = &self.forwarded;
        for (direction, packets, bytes) in [
            ("to_callee", forwarded.packets_to_callee, forwarded.bytes_to_callee),
            ("to_caller", forwarded.packets_to_caller, forwarded.bytes_to_caller),
        ] {
            let labels = [("direction", direction)];
            let help = "Packets of sessions that were forwarded.";
            out.counter("tasuki_forwarded_packets_total", help, &labels, packets);
            let help = "Bytes of sessions that were forwarded, heads of frames included.";
            out.counter("tasuki_forwarded_bytes_total", help, &labels, bytes);
        }
        for address in &self.reachable_from_outside {
            let labels = [("address", address.address.as_str())];
            let help = "Whether other relays reach an advertised address; absent as long as it is not known.";
            match address.reachable {
                Reached::Yes => out.gauge("tasuki_address_reachable", help, &labels, 1.0),
                Reached::No => out.gauge("tasuki_address_reachable", help, &labels, 0.0),
                Reached::Unknown => {}
            }
        }
        for link in &self.links {
            let labels = [("relay", link.relay.as_str())];
            let rtt = f64::from(link.rtt_us) / 1e6;
            out.gauge("tasuki_link_rtt_seconds", "Round-trip time of a link.", &labels, rtt);
        }
        for (what, &number) in &self.gossip {
            let help = "Updates of the table, by what became of them.";
            out.counter("tasuki_gossip_updates_total", help, &[("what", what)], number);
        }
        for one in &self.direct {
            let help = "What callers attached here said of direct paths, by the kinds of NAT of both sides.";
            let labels = [
                ("nat", one.nat.word()),
                ("peer_nat", one.peer_nat.word()),
                ("news", one.news.word()),
            ];
            out.counter("tasuki_direct_paths_total", help, &labels, one.count);
        }
        for (reason, &number) in &self.drops {
            let help = "What was dropped or refused, by reason.";
            out.counter("tasuki_drops_total", help, &[("reason", reason)], number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_name_stand_together_and_labels_are_escaped() {
        let mut out = Exposition::default();
        out.counter("tasuki_b_total", "B.", &[("x", "a\"\\\nb"), ("y", "")], u64::MAX);
        out.gauge("tasuki_a", "A.", &[], 0.5);
        out.counter("tasuki_b_total", "B.", &[], 1);
        let expected = "# HELP tasuki_a A.\n# TYPE tasuki_a gauge\ntasuki_a 0.5\n\
            # HELP tasuki_b_total B.\n# TYPE tasuki_b_total counter\n\
            tasuki_b_total{x=\"a\\\"\\\\\\nb\",y=\"\"} 18446744073709551615\ntasuki_b_total 1\n";
        assert_eq!(out.finish(), expected);
    }
}
