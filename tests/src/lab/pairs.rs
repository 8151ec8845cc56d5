//! Terminals behind NATs of all kinds, in one mesh of two public relays, and calls between any two of them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::mesh::{Mesh, MeshSpec, RelaySpec, TerminalSpec};
use super::netns::nat::{NatKind, Natted};
use super::netns::{Namespace, Wan};
use super::paths;
use super::programs::{TcpService, inside};
use super::wait::{POLL, SOON};

/// The last part of the address of the first relay, of the first caller, of the first callee.
const RELAY: u8 = 11;
const CALLER: u8 = 101;
const CALLEE: u8 = 151;
/// One echo.
const ECHO: Duration = Duration::from_secs(5);

/// How a call went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Went {
    /// Over a direct path, after this time.
    Direct(Duration),
    /// Through relays all the time.
    Relayed,
}

/// A caller and a callee for each kind of NAT, all logged in. Each callee offers an echo.
#[derive(Debug)]
pub struct Pairs {
    /// The mesh of relays `r1` and `r2`.
    pub mesh: Mesh,
    /// Ends after the mesh.
    _echoes: Vec<TcpService>,
    _places: Vec<Natted>,
    _relays: [Namespace; 2],
    _wan: Wan,
}

/// The name of the terminal of this kind that calls.
pub fn caller(kind: NatKind) -> String {
    format!("{}-a", kind.name())
}

/// The name of the terminal of this kind that is called.
pub fn callee(kind: NatKind) -> String {
    format!("{}-b", kind.name())
}

/// Two relays with public addresses of both families, linked.
pub fn public_relays(wan: &Wan) -> (MeshSpec, [Namespace; 2]) {
    let hosts = [wan.dual_host("r1", RELAY), wan.dual_host("r2", RELAY + 1)];
    let relay = |n: usize, name: &str, other: &str| {
        let octet = RELAY + n as u8;
        let spec = RelaySpec::new(name).links(&[other]);
        spec.on_both(&hosts[n], Wan::address(octet), Wan::address6(octet))
    };
    let mesh = MeshSpec::new().relay(relay(0, "r1", "r2")).relay(relay(1, "r2", "r1"));
    (mesh, hosts)
}

impl Pairs {
    /// Starts them; `None`, said loudly, where this machine cannot make namespaces. The callers are at the first
    /// relay and the callees at the second, so that a relayed call has both on its route.
    ///
    /// # Panics
    /// When one does not come up.
    pub fn start(what: &str, kinds: &[NatKind]) -> Option<Pairs> {
        let wan = Wan::new(what)?;
        let (mut spec, relays) = public_relays(&wan);
        let (mut places, mut echoes) = (Vec::new(), Vec::new());
        for (&kind, n) in kinds.iter().zip(0..) {
            let from = wan.place(kind, &caller(kind), CALLER + n);
            let to = wan.place(kind, &callee(kind), CALLEE + n);
            let echo = TcpService::echo(Some(&to.machine));
            let url = format!("tcp://{}", echo.address());
            spec = spec
                .terminal(TerminalSpec::new(&caller(kind)).at(&["r1"]).on(&from.machine))
                .terminal(
                    TerminalSpec::new(&callee(kind))
                        .at(&["r2"])
                        .on(&to.machine)
                        .offers("echo", &url),
                );
            places.extend([from, to]);
            echoes.push(echo);
        }
        let mesh = spec.start();
        Some(Pairs { mesh, _echoes: echoes, _places: places, _relays: relays, _wan: wan })
    }

    /// Calls, keeps data flowing, and looks for a direct path for up to `limit` after the session stands.
    ///
    /// # Errors
    /// When there is no session, or its data does not come back.
    pub fn call(&self, from: NatKind, to: NatKind, limit: Duration) -> Result<Went, String> {
        let (terminal, peer) = (self.mesh.terminal(&caller(from)), callee(to));
        let (_forward, address) = terminal.forward(&format!("{peer}/echo"));
        let mut echo = Echo::connect(terminal.namespace(), address)?;
        let begun = Instant::now();
        echo.round()?;
        loop {
            let row = paths::row(terminal, &peer)?;
            let took = begun.elapsed();
            let went = match row["path"].as_str() {
                Some("direct") => Some(Went::Direct(took)),
                Some("relayed") if took >= limit => Some(Went::Relayed),
                Some("relayed") => None,
                _ => return Err(format!("no path: {row}")),
            };
            // Also over the path that stands at the end.
            echo.round()?;
            match went {
                Some(went) => return Ok(went),
                None => std::thread::sleep(POLL),
            }
        }
    }
}

/// A connection to an echo.
#[derive(Debug)]
pub struct Echo {
    stream: TcpStream,
    rounds: u64,
}

impl Echo {
    /// Connects from a namespace or from here.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(namespace: Option<&Namespace>, address: SocketAddr) -> Result<Echo, String> {
        let stream = inside(namespace, || TcpStream::connect_timeout(&address, ECHO));
        let stream = stream.map_err(|e| format!("{address}: {e}"))?;
        // The first one waits for the session too.
        let prepared = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(SOON)));
        prepared.map_err(|e| e.to_string())?;
        Ok(Echo { stream, rounds: 0 })
    }

    /// Sends a number and waits for it.
    ///
    /// # Errors
    /// When something else comes back, or nothing.
    pub fn round(&mut self) -> Result<(), String> {
        self.rounds += 1;
        let (sent, mut heard) = (self.rounds.to_be_bytes(), [0; 8]);
        let done = self.stream.write_all(&sent).and_then(|()| self.stream.read_exact(&mut heard));
        done.map_err(|e| format!("echo {}: {e}", self.rounds))?;
        if heard == sent { Ok(()) } else { Err(format!("echo {}: {heard:?}", self.rounds)) }
    }
}
