//! The interfaces of this machine.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tasuki_proto::net::canonical;

/// How often the machine's interfaces are looked at.
pub(super) const PERIOD: Duration = Duration::from_secs(5);

/// The addresses of this machine's interfaces at which a socket bound to `local` is reached.
pub(super) fn interfaces(local: SocketAddr) -> BTreeSet<IpAddr> {
    if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .map(|interface| interface.ip())
        .filter(|ip| is_bound(local, *ip))
        .collect()
}

/// Whether a socket bound to `local` is reached at `ip`.
fn is_bound(local: SocketAddr, ip: IpAddr) -> bool {
    match canonical(local).ip() {
        IpAddr::V4(any) if any.is_unspecified() => ip.is_ipv4(),
        any if any.is_unspecified() => true,
        bound => bound == ip,
    }
}
