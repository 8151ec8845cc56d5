//! Where a measurement takes place: caller, callee and relays all on loopback, or each in a namespace of its own
//! with an MTU of 1500; and the services that are carried.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tasuki_tests::lab::netns::{Namespace, Wan};
use tasuki_tests::lab::process::{Process, run};
use tasuki_tests::lab::programs::{
    UdpEcho, command_in, free_address, free_port, inside, wait_until_bound,
};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);
/// Threads of the echo service: connections that it serves at once.
const ECHO_THREADS: usize = 64;
/// The last part of the address of the first relay, of caller and callee.
const RELAY: u8 = 11;
const CALLER: u8 = 101;
const CALLEE: u8 = 102;

/// The machines.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) caller: Option<Namespace>,
    pub(crate) callee: Option<Namespace>,
    pub(crate) relays: Vec<Namespace>,
    folder: TempDir,
    _wan: Option<Wan>,
}

impl Site {
    /// On loopback, or in namespaces.
    pub(crate) fn new(netns: bool, relays: usize) -> Result<Site> {
        let folder = tempfile::Builder::new().prefix("site").tempdir()?;
        if !netns {
            return Ok(Site { caller: None, callee: None, relays: Vec::new(), folder, _wan: None });
        }
        let wan = Wan::new("namespaces for measurements").context("--netns needs root, ip, nft")?;
        let hosts = (0..relays).map(|n| wan.host(&format!("r{}", n + 1), RELAY + n as u8));
        let relays: Vec<Namespace> = hosts.collect();
        let (caller, callee) = (wan.host("caller", CALLER), wan.host("callee", CALLEE));
        for namespace in relays.iter().chain([&caller, &callee]) {
            // Many short connections between two machines would use up the ports for a minute otherwise.
            let reuse = "echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse";
            run(namespace.command("sh").args(["-c", reuse]), LIMIT).ok();
        }
        Ok(Site { caller: Some(caller), callee: Some(callee), relays, folder, _wan: Some(wan) })
    }

    /// A path in the site's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The first relay's machine, for peers.
    pub(crate) fn relay(&self) -> Option<&Namespace> {
        self.relays.first()
    }

    /// A free port at the first relay, as everybody reaches it.
    pub(crate) fn relay_address(&self) -> SocketAddr {
        (self.ip(RELAY), free_port()).into()
    }

    /// The address of the callee's machine as the caller sees it.
    pub(crate) fn callee_ip(&self) -> IpAddr {
        self.ip(CALLEE)
    }

    fn ip(&self, octet: u8) -> IpAddr {
        match self.caller {
            Some(_) => Wan::address(octet).into(),
            None => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// Runs `action` on the caller's machine.
    pub(crate) fn at_caller<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        inside(self.caller.as_ref(), action)
    }
}

/// What the callee's machine offers: iperf3, and echoes over TCP and UDP.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) bulk: SocketAddr,
    pub(crate) echo: SocketAddr,
    pub(crate) udp: SocketAddr,
    _iperf: Option<Process>,
    _udp: UdpEcho,
}

impl Services {
    /// Starts them; iperf3 only where it is asked for.
    pub(crate) fn start(site: &Site, iperf: bool) -> Result<Services> {
        let callee = site.callee.as_ref();
        let bulk = free_address();
        let iperf = iperf.then(|| serve_iperf(bulk, callee, &site.path("iperf3.log")));
        let echo = free_address();
        // In a namespace everybody may come, so that there is a side without any tunnel.
        let any = (
            if callee.is_some() { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST },
            echo.port(),
        );
        let listener = inside(callee, || TcpListener::bind(any))?;
        serve_echo(listener);
        let udp = UdpEcho::start_in(callee);
        Ok(Services { bulk, echo, udp: udp.address(), _iperf: iperf, _udp: udp })
    }
}

fn serve_iperf(at: SocketAddr, namespace: Option<&Namespace>, log: &Path) -> Process {
    let mut command = command_in(namespace, "iperf3");
    command.args(["-s", "-p", &at.port().to_string()]);
    if namespace.is_none() {
        command.args(["-B", "127.0.0.1"]);
    }
    let process = Process::spawn("iperf3", &mut command, log);
    // Not probed by a connection: the server would take it for a test.
    wait_until_bound(&process, "tcp", at.port());
    process
}

/// Sends back what comes, on threads that live as long as the program.
fn serve_echo(listener: TcpListener) {
    let listener = Arc::new(listener);
    for _ in 0..ECHO_THREADS {
        let listener = Arc::clone(&listener);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.set_nodelay(true);
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
            }
        });
    }
}

/// What one run of iperf3 moved, as the receiver counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Moved {
    pub(crate) bytes: f64,
    pub(crate) bits_per_second: f64,
}

/// One TCP stream of iperf3 from the caller's machine to `address` for `seconds`.
pub(crate) fn iperf(site: &Site, address: SocketAddr, seconds: u64) -> Result<Moved> {
    iperf_from(site, address, seconds, 0)
}

/// As [`iperf`], after so many seconds that do not count.
pub(crate) fn iperf_from(
    site: &Site,
    address: SocketAddr,
    seconds: u64,
    warm: u64,
) -> Result<Moved> {
    let mut command = command_in(site.caller.as_ref(), "iperf3");
    command.args(["-J", "-c", &address.ip().to_string(), "-p", &address.port().to_string()]);
    command.args(["-t", &seconds.to_string(), "-O", &warm.to_string()]);
    let done = run(&mut command, LIMIT + Duration::from_secs(seconds + warm));
    let report: Value = serde_json::from_slice(&done.stdout)
        .with_context(|| format!("iperf3 printed no JSON: {}{}", done.text(), done.stderr))?;
    moved(&report)
}

/// Reads what `iperf3 -J` prints.
fn moved(report: &Value) -> Result<Moved> {
    ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
    let sum = &report["end"]["sum_received"];
    let number = |name: &str| sum[name].as_f64().filter(|value| *value > 0.0);
    let figures = number("bytes").zip(number("bits_per_second"));
    let (bytes, bits_per_second) = figures.context("iperf3 received nothing")?;
    Ok(Moved { bytes, bits_per_second })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_receivers_count_is_read() {
        let sum = json!({ "bytes": 1000, "bits_per_second": 8000.5 });
        let moved_ = moved(&json!({ "end": { "sum_received": sum } })).unwrap();
        assert_eq!(moved_, Moved { bytes: 1000.0, bits_per_second: 8000.5 });
        assert!(moved(&json!({ "error": "unable to connect" })).is_err());
        let nothing = json!({ "end": { "sum_received": { "bytes": 0, "bits_per_second": 0 } } });
        assert!(moved(&nothing).is_err());
    }
}
