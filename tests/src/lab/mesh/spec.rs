//! What a mesh is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::{Mesh, QUICK_SILENCE};
use crate::lab::forwarder::Impairment;
use crate::lab::netns::Namespace;
use crate::lab::wait::SOON;

/// A relay to be started.
#[derive(Debug, Clone)]
pub struct RelaySpec {
    pub(super) name: String,
    pub(super) links: Option<String>,
    pub(super) init_flags: Vec<String>,
    pub(super) run_flags: Vec<String>,
    pub(super) quick_silence: bool,
    pub(super) line: Option<Impairment>,
    pub(super) host: Option<(Namespace, IpAddr)>,
    pub(super) other_family: Option<IpAddr>,
    pub(super) disk: Option<u64>,
    pub(super) program: Option<PathBuf>,
}

impl RelaySpec {
    /// A relay on loopback that links with what it finds.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            links: None,
            init_flags: Vec::new(),
            run_flags: Vec::new(),
            quick_silence: false,
            line: None,
            host: None,
            other_family: None,
            disk: None,
            program: None,
        }
    }

    /// Runs this program, of another version, from the beginning.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Links with these and no others.
    pub fn links(mut self, names: &[&str]) -> Self {
        self.links = Some(names.join(","));
        self
    }

    /// More flags for `init` or `join`.
    pub fn init_flags(mut self, flags: &[&str]) -> Self {
        self.init_flags.extend(flags.iter().map(|&f| f.to_owned()));
        self
    }

    /// More flags for `run`.
    pub fn run_flags(mut self, flags: &[&str]) -> Self {
        self.run_flags.extend(flags.iter().map(|&f| f.to_owned()));
        self
    }

    /// Notices a silent neighbour within a few seconds: its configuration file says so.
    pub fn quick_silence(mut self) -> Self {
        self.quick_silence = true;
        self
    }

    /// Everybody reaches this relay over a line like this only; see `Relay::line`.
    pub fn behind(mut self, line: Impairment) -> Self {
        self.line = Some(line);
        self
    }

    /// Its data directory is a disk of its own, of so many bytes; see [`super::Disk`] and `Relay::disk`.
    pub fn disk(mut self, bytes: u64) -> Self {
        self.disk = Some(bytes);
        self
    }

    /// In a namespace that has this address, on the usual ports.
    pub fn on(mut self, namespace: &Namespace, address: impl Into<IpAddr>) -> Self {
        self.host = Some((namespace.clone(), address.into()));
        self
    }

    /// In a namespace that has an address of each family, on the usual ports.
    pub fn on_both(self, namespace: &Namespace, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        Self { other_family: Some(v6.into()), ..self.on(namespace, v4) }
    }
}

/// A terminal to be enrolled and started.
#[derive(Debug, Clone)]
pub struct TerminalSpec {
    pub(super) name: String,
    pub(super) relays: Option<String>,
    pub(super) token_flags: Vec<String>,
    pub(super) run_flags: Vec<String>,
    pub(super) namespace: Option<Namespace>,
    pub(super) starts: bool,
    pub(super) program: Option<PathBuf>,
    pub(super) disk: Option<u64>,
}

impl TerminalSpec {
    /// A terminal on loopback that chooses its relays by itself.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            relays: None,
            token_flags: Vec::new(),
            run_flags: Vec::new(),
            namespace: None,
            starts: true,
            program: None,
            disk: None,
        }
    }

    /// Its data directory is a disk of its own, of so many bytes; see [`super::Disk`] and `Terminal::disk`.
    pub fn disk(mut self, bytes: u64) -> Self {
        self.disk = Some(bytes);
        self
    }

    /// Runs this program, of another version, from the beginning.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Attaches to these relays and no others.
    pub fn at(mut self, relays: &[&str]) -> Self {
        self.relays = Some(relays.join(","));
        self
    }

    /// Exposes a service at a `tcp://` or `udp://` address to everybody.
    pub fn offers(self, service: &str, url: &str) -> Self {
        self.flags(&["--expose", &format!("{service}={url}"), "--allow", &format!("{service}=*")])
    }

    /// More flags for `run`.
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.run_flags.extend(flags.iter().map(|&f| f.to_owned()));
        self
    }

    /// More flags for `token terminal`.
    pub fn token_flags(mut self, flags: &[&str]) -> Self {
        self.token_flags.extend(flags.iter().map(|&f| f.to_owned()));
        self
    }

    /// Notices a silent relay, and is noticed when silent, within a few seconds, and waits no longer for a lost path
    /// ([`QUICK_SILENCE`]).
    pub fn quick_silence(self) -> Self {
        self.flags(&QUICK_SILENCE)
    }

    /// Takes no direct path.
    pub fn relayed(self) -> Self {
        self.flags(&["--direct", "never"])
    }

    /// In a namespace.
    pub fn on(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    /// Enrolled, but its agent is not started.
    pub fn stays_off(mut self) -> Self {
        self.starts = false;
        self
    }
}

/// What a mesh is made of. The first relay is the registrar.
#[derive(Debug, Clone, Default)]
pub struct MeshSpec {
    pub(super) relays: Vec<RelaySpec>,
    pub(super) terminals: Vec<TerminalSpec>,
    pub(super) expected_errors: Vec<String>,
}

impl MeshSpec {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Each relay is linked with the next.
    pub fn line(names: &[&str]) -> Self {
        let links: Vec<_> = names.windows(2).map(|pair| (pair[0], pair[1])).collect();
        Self::linked(names, &links)
    }

    /// A line whose ends are linked too.
    pub fn ring(names: &[&str]) -> Self {
        let next = names.iter().cycle().skip(1);
        let links: Vec<_> = names.iter().copied().zip(next.copied()).collect();
        Self::linked(names, &links)
    }

    /// Each relay is linked with the first.
    pub fn star(names: &[&str]) -> Self {
        let links: Vec<_> = names[1..].iter().map(|&name| (names[0], name)).collect();
        Self::linked(names, &links)
    }

    fn linked(names: &[&str], links: &[(&str, &str)]) -> Self {
        let neighbours = |name: &str| -> Vec<&str> {
            let peers = links.iter().filter_map(|&(a, b)| match name {
                _ if name == a => Some(b),
                _ if name == b => Some(a),
                _ => None,
            });
            peers.collect::<BTreeSet<_>>().into_iter().collect()
        };
        let relays = names.iter().map(|&name| match &neighbours(name)[..] {
            // A relay alone has nobody to name.
            [] => RelaySpec::new(name),
            peers => RelaySpec::new(name).links(peers),
        });
        Self { relays: relays.collect(), ..Self::default() }
    }

    /// With this relay too.
    pub fn relay(mut self, relay: RelaySpec) -> Self {
        self.relays.push(relay);
        self
    }

    /// With every relay changed so.
    pub fn each_relay(mut self, change: impl FnMut(RelaySpec) -> RelaySpec) -> Self {
        self.relays = self.relays.into_iter().map(change).collect();
        self
    }

    /// With this terminal too.
    pub fn terminal(mut self, terminal: TerminalSpec) -> Self {
        self.terminals.push(terminal);
        self
    }

    /// ERROR lines with this text do not fail the test.
    pub fn expect_error(mut self, text: &str) -> Self {
        self.expected_errors.push(text.to_owned());
        self
    }

    /// Makes the mesh, starts everything, and waits until every table shows every started terminal.
    ///
    /// # Panics
    /// When that does not come to pass.
    pub fn start(self) -> Mesh {
        let folder = tempfile::Builder::new().prefix("tsk").tempdir().expect("a folder");
        let mut mesh = Mesh {
            relays: BTreeMap::new(),
            terminals: BTreeMap::new(),
            expected_errors: self.expected_errors,
            folder,
        };
        std::fs::create_dir(mesh.path("logs")).expect("our own folder");
        for spec in self.relays {
            mesh.add_relay(spec);
        }
        mesh.wait_for_links();
        for spec in self.terminals {
            mesh.add_terminal(spec);
        }
        let started: Vec<String> = mesh
            .terminals
            .values()
            .filter(|t| t.is_running())
            .map(|terminal| terminal.name.clone())
            .collect();
        for name in started {
            mesh.wait_state(&name, "logged-in", SOON);
        }
        mesh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topologies_name_their_links() {
        let links = |spec: MeshSpec| -> Vec<String> {
            spec.relays.into_iter().map(|relay| relay.links.unwrap_or_default()).collect()
        };
        assert_eq!(links(MeshSpec::line(&["a"])), [""]);
        assert_eq!(links(MeshSpec::line(&["a", "b", "c"])), ["b", "a,c", "b"]);
        assert_eq!(links(MeshSpec::ring(&["a", "b", "c", "d"])), ["b,d", "a,c", "b,d", "a,c"]);
        assert_eq!(links(MeshSpec::star(&["a", "b", "c"])), ["b,c", "a", "a"]);
    }
}
