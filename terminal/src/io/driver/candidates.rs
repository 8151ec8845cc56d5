//! The interfaces of this machine.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tasuki_proto::net::canonical;
use tokio::sync::{Notify, watch};

/// How often the machine's interfaces are looked at.
const PERIOD: Duration = Duration::from_secs(5);

/// The addresses of this machine's interfaces at which a socket bound to `local` is reached, looked at now and then and
/// when `look` says so. A thread of its own asks the kernel: on a host whose interfaces change all the time the answer
/// may take many seconds, and nothing else waits for it.
pub(super) fn watch(
    local: SocketAddr,
    look: Arc<Notify>,
) -> watch::Receiver<Option<BTreeSet<IpAddr>>> {
    let (known, watched) = watch::channel(None);
    tokio::spawn(async move {
        while !known.is_closed() {
            if let Ok(found) = tokio::task::spawn_blocking(move || interfaces(local)).await {
                known.send_if_modified(|known| {
                    let found = Some(found);
                    let changed = *known != found;
                    *known = found;
                    changed
                });
            }
            let _ = tokio::time::timeout(PERIOD, look.notified()).await;
        }
    });
    watched
}

fn interfaces(local: SocketAddr) -> BTreeSet<IpAddr> {
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
