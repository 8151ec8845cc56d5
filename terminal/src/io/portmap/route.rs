//! The gateway of this machine's default route, as Linux shows it; elsewhere none is found.

use std::net::Ipv4Addr;

/// `RTF_GATEWAY`: the route leads over a gateway.
const OVER_GATEWAY: u32 = 2;

/// The IPv4 gateway with the least metric, where it is a private or shared address (RFC 1918, RFC 6598): others are no
/// home routers.
pub(super) fn default_gateway() -> Option<Ipv4Addr> {
    gateway_in(&std::fs::read_to_string("/proc/thread-self/net/route").ok()?)
}

fn gateway_in(table: &str) -> Option<Ipv4Addr> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |n: usize| u32::from_str_radix(fields.get(n)?, 16).ok();
        let (destination, gateway, flags, mask) = (hex(1)?, hex(2)?, hex(3)?, hex(7)?);
        let metric: u32 = fields.get(6)?.parse().ok()?;
        let is_default = destination == 0 && mask == 0 && flags & OVER_GATEWAY != 0;
        // The kernel writes the bytes of the network as a number of the machine.
        is_default.then(|| (metric, Ipv4Addr::from(gateway.to_ne_bytes())))
    });
    let (_, gateway) = routes.min()?;
    is_inner(gateway).then_some(gateway)
}

fn is_inner(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private() || (a == 100 && (64..128).contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    fn line(destination: &str, gateway: [u8; 4], flags: u32, metric: u32, mask: &str) -> String {
        let gateway = u32::from_ne_bytes(gateway);
        format!(
            "eth0\t{destination}\t{gateway:08X}\t{flags:04X}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n"
        )
    }

    #[test]
    fn the_nearest_default_gateway_is_found() {
        let lan = line("0001A8C0", [0; 4], 1, 0, "00FFFFFF");
        let far = line("00000000", [10, 0, 0, 1], 3, 600, "00000000");
        let near = line("00000000", [192, 168, 1, 1], 3, 100, "00000000");
        let table = [HEAD, &lan, &far, &near].concat();
        assert_eq!(gateway_in(&table), Some([192, 168, 1, 1].into()));
        assert_eq!(gateway_in(&[HEAD, &lan].concat()), None);
        assert_eq!(gateway_in("what\nis this\n"), None);
    }

    #[test]
    fn public_gateways_are_not_asked() {
        let public = line("00000000", [203, 0, 113, 1], 3, 0, "00000000");
        assert_eq!(gateway_in(&[HEAD, &public].concat()), None);
        let carrier = line("00000000", [100, 64, 0, 1], 3, 0, "00000000");
        assert_eq!(gateway_in(&[HEAD, &carrier].concat()), Some([100, 64, 0, 1].into()));
    }
}
