//! Ports, advertised addresses, reachability.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Finding, Level};
use crate::cli::query::lists::{items, plain};
use crate::config::RelayConfig;

pub(super) async fn checks(config: &RelayConfig, status: Option<&Value>) -> Vec<Finding> {
    let is_running = status.is_some();
    let mut out = vec![
        port("udp-port", config.listen, udp(config.listen), is_running),
        port("status-port", config.status, TcpListener::bind(config.status).map(drop), is_running),
    ];
    let local = config.listen.ip().to_canonical().is_loopback();
    for address in &config.advertise {
        let found = tokio::net::lookup_host(address).await.map(Iterator::collect::<Vec<_>>);
        out.push(advertised(address, found, local));
    }
    out.extend(reachable(status));
    out
}

fn udp(listen: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&listen.into())
}

/// By whether an address could be bound, and whether the relay of this data directory runs.
pub(super) fn port(
    name: &'static str,
    address: SocketAddr,
    bound: io::Result<()>,
    is_running: bool,
) -> Finding {
    let error = match bound {
        Ok(()) if is_running => {
            let what = format!("{address} is free although the relay runs: it has another one");
            return Finding::new(
                name,
                Level::Unknown,
                what,
                "check with the flags and the --config of 'run'",
            );
        }
        Ok(()) => return Finding::ok(name, format!("{address} is free")),
        Err(error) => error,
    };
    let (what, advice) = match error.kind() {
        ErrorKind::AddrInUse if is_running => {
            return Finding::ok(name, format!("{address} is held by the running relay"));
        }
        ErrorKind::AddrInUse => (
            format!("{address} is held by another process"),
            format!(
                "see which: ss -lntup 'sport = :{}'; stop it, or choose another port",
                address.port()
            ),
        ),
        ErrorKind::AddrNotAvailable => {
            let advice = "listen on an address of this machine (ip address), or on [::]";
            (format!("{address}: this machine has no such address"), advice.to_owned())
        }
        ErrorKind::PermissionDenied => (
            format!("{address}: this user may not use it"),
            "use a port from 1024 on, or AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit"
                .to_owned(),
        ),
        _ => (format!("{address}: {error}"), "choose another address".to_owned()),
    };
    Finding::new(name, Level::Bad, what, advice)
}

/// By what an advertised address resolves to; `local`: the relay listens on loopback only.
pub(super) fn advertised(
    address: &str,
    found: io::Result<Vec<SocketAddr>>,
    local: bool,
) -> Finding {
    let name = "advertised";
    let found = match found {
        Ok(found) if !found.is_empty() => found,
        Ok(_) | Err(_) => {
            let advice = "mend the name in the DNS, or advertise another address";
            let what = format!("{address} cannot be resolved here");
            return Finding::new(name, Level::Bad, what, advice);
        }
    };
    let ips: Vec<IpAddr> = found.iter().map(|at| at.ip().to_canonical()).collect();
    let shown = ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let what =
        if address.contains(&shown) { address.to_owned() } else { format!("{address} is {shown}") };
    if ips.iter().any(IpAddr::is_loopback) {
        return match local {
            true => Finding::ok(name, format!("{what}: for this machine only, as --listen says")),
            false => Finding::new(
                name,
                Level::Bad,
                format!("{what}: others would dial themselves"),
                "advertise an address at which others reach this machine",
            ),
        };
    }
    if ips.iter().all(|ip| is_private(*ip)) {
        let advice = "fine where all relays and terminals are in this network; otherwise advertise the public address \
                      that is forwarded to this machine";
        return Finding::new(name, Level::Warning, format!("{what}: private"), advice);
    }
    Finding::ok(name, what)
}

/// Addresses that other networks cannot reach (RFC 1918, 3927, 4193, 4291, 6598).
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let shared = u32::from(Ipv4Addr::new(100, 64, 0, 0));
            ip.is_private() || ip.is_link_local() || u32::from(ip) & 0xffc0_0000 == shared
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// By what other relays found when they tried.
pub(super) fn reachable(status: Option<&Value>) -> Vec<Finding> {
    let name = "from-outside";
    let unknown = |what: &str, advice: &str| {
        vec![Finding::new(name, Level::Unknown, what.to_owned(), advice)]
    };
    let Some(status) = status else {
        return unknown(
            "other relays try the addresses of a relay that runs",
            "start it, and check again",
        );
    };
    let rows = items(&status["reachable_from_outside"]);
    if rows.is_empty() {
        return unknown("the running relay does not say", "update it, and check again");
    }
    rows.iter()
        .map(|row| {
            let [address, state, by] = ["address", "reachable", "by"].map(|key| plain(&row[key]));
            match state.as_str() {
                "yes" => Finding::ok(name, format!("{address} was reached by {by}")),
                "no" => Finding::new(
                    name,
                    Level::Bad,
                    format!("{address} was not reached by {by}"),
                    format!("let UDP in to {address}: firewall, port forwarding, and UDP as well as TCP in containers"),
                ),
                _ => Finding::new(
                    name,
                    Level::Unknown,
                    format!("{address} has not been tried by another relay"),
                    "a mesh of one relay has nobody to try; otherwise check again in a minute",
                ),
            }
        })
        .collect()
}
