//! The machine: buffers, offloads, file limits.

use tasuki_proto::limits;
use tasuki_proto::net::{BUFFER_BYTES, UdpIo};

use super::{Finding, Level};
use crate::cli::query::text::bytes;

/// Open files that a relay needs: connections of both doors of the status endpoint and those that wait or go, the store, sockets, and some more.
/// Terminals and links take none: all share the sockets of the switch.
const FILES: u64 = (2 * 4 * limits::HTTP_CONNECTIONS + limits::HTTP_CONNECTIONS) as u64;

pub(super) fn checks(pid: Option<i32>) -> Vec<Finding> {
    let maximum = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    vec![
        buffers(maximum("rmem_max"), maximum("wmem_max")),
        offloads(),
        files(
            &std::fs::read_to_string(match pid {
                Some(pid) => format!("/proc/{pid}/limits"),
                None => "/proc/self/limits".to_owned(),
            })
            .unwrap_or_default(),
        ),
    ]
}

/// By the kernel's largest receive and send buffers, bytes.
pub(super) fn buffers(receive: Option<u64>, send: Option<u64>) -> Finding {
    let name = "buffers";
    let (Some(receive), Some(send)) = (receive, send) else {
        let what = "/proc/sys/net/core/rmem_max and wmem_max cannot be read";
        return Finding::new(name, Level::Unknown, what, "");
    };
    let wanted = BUFFER_BYTES as u64;
    let what = format!(
        "UDP buffers: receive up to {}, send up to {}, {} wanted",
        bytes(receive),
        bytes(send),
        bytes(wanted)
    );
    if receive.min(send) >= wanted {
        return Finding::ok(name, what);
    }
    let set = |key: &str, is: u64| (is < wanted).then(|| format!("net.core.{key}={wanted}"));
    let lines = [set("rmem_max", receive), set("wmem_max", send)];
    let lines = lines.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let advice = format!(
        "sysctl -w {lines}; the same lines in /etc/sysctl.d/ keep it; then restart the relay"
    );
    Finding::new(name, Level::Warning, what, advice)
}

fn offloads() -> Finding {
    match UdpIo::bind(([127, 0, 0, 1], 0).into(), false) {
        Ok(socket) => segments(socket.gso_segments(), socket.gro_segments()),
        Err(error) => Finding::new("offloads", Level::Unknown, error.to_string(), ""),
    }
}

/// By how many datagrams one send and one receive may carry.
pub(super) fn segments(gso: usize, gro: usize) -> Finding {
    let what = format!("{gso} datagrams a send (GSO), {gro} a receive (GRO)");
    if gso > 1 && gro > 1 {
        return Finding::ok("offloads", what);
    }
    let advice = "the relay works, and takes several times the processor time for each byte; use Linux 5.0 or later";
    Finding::new("offloads", Level::Warning, what, advice)
}

/// By the text of `/proc/PID/limits`.
pub(super) fn files(limits: &str) -> Finding {
    let name = "open-files";
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    let soft = match soft {
        Some("unlimited") => Some(u64::MAX),
        soft => soft.and_then(|number| number.parse().ok()),
    };
    match soft {
        None => Finding::new(name, Level::Unknown, "the limit of open files cannot be read", ""),
        Some(soft) if soft < FILES => Finding::new(
            name,
            Level::Warning,
            format!("{soft} may be open, {FILES} are needed at most; terminals take none"),
            format!("LimitNOFILE={FILES} in the unit, or 'ulimit -n {FILES}' before the start"),
        ),
        Some(u64::MAX) => Finding::ok(name, "no limit"),
        Some(soft) => Finding::ok(name, format!("{soft} may be open; terminals take none")),
    }
}
