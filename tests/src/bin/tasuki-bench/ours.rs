//! Our side: relays in a line, a caller at the first, a callee at each.

use std::any::Any;

use anyhow::Result;
use serde_json::Value;
use tasuki_tests::lab::process::Process;
use tasuki_tests::lab::wait::{POLL, SOON};
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec};

use crate::side::Side;
use crate::site::{Services, Site};

/// The side whose sessions may take a direct path.
pub(crate) const DIRECT: &str = "tasuki_direct";

/// A mesh, and a side for each number of relays on the route.
pub(crate) struct Ours {
    pub(crate) mesh: Mesh,
    pub(crate) sides: Vec<Side>,
    /// Why there is no direct path, where there is none.
    pub(crate) no_direct: Option<String>,
}

/// The name of the side with this many relays on the route.
pub(crate) fn name(relays: usize) -> String {
    if relays == 1 { "tasuki".to_owned() } else { format!("tasuki_{relays}relays") }
}

impl Ours {
    /// Starts as many relays as the longest route has. With `direct`, a pair of agents that may find a direct path
    /// is a side of its own, if they find it.
    pub(crate) fn start(
        site: &Site,
        services: &Services,
        routes: &[usize],
        direct: bool,
    ) -> Result<Ours> {
        let most = routes.iter().copied().max().unwrap_or(1);
        let mesh = relays_in_line(site, most);
        let mut ours = Ours { mesh, sides: Vec::new(), no_direct: None };
        for &relays in routes {
            let side = ours.pair(site, services, relays, "never", &name(relays))?;
            ours.sides.push(side);
        }
        if direct {
            let side = ours.pair(site, services, 1, "auto", DIRECT)?;
            match ours.wait_direct("caller-auto-1") {
                Ok(()) => ours.sides.push(side),
                Err(path) => ours.no_direct = Some(path),
            }
        }
        Ok(ours)
    }

    /// A caller at the first relay and a callee at the last of the route, with a session for each service.
    fn pair(
        &mut self,
        site: &Site,
        services: &Services,
        relays: usize,
        direct: &str,
        name: &str,
    ) -> Result<Side> {
        let (caller, callee) =
            (format!("caller-{direct}-{relays}"), format!("callee-{direct}-{relays}"));
        let far = format!("r{relays}");
        let terminal = TerminalSpec::new(&callee)
            .at(&[&far])
            .flags(&["--direct", direct])
            .offers("bulk", &format!("tcp://{}", services.bulk))
            .offers("echo", &format!("tcp://{}", services.echo))
            .offers("udp", &format!("udp://{}", services.udp));
        self.add(terminal, site.callee.as_ref(), &callee);
        let terminal = TerminalSpec::new(&caller).at(&["r1"]).flags(&["--direct", direct]);
        self.add(terminal, site.caller.as_ref(), &caller);

        let terminal = self.mesh.terminal(&caller);
        let (bulk, bulk_at) = terminal.forward(&format!("{callee}/bulk"));
        let (echo, echo_at) = terminal.forward(&format!("{callee}/echo"));
        let (udp, udp_at) = terminal.forward_udp(&format!("{callee}/udp"));
        let path: Vec<String> = (1..=relays).map(|n| format!("r{n}")).collect();
        let pids = path.iter().filter_map(|name| self.mesh.relay(name).pid()).collect();
        let agents = [terminal.pid(), self.mesh.terminal(&callee).pid()].into_iter().flatten();
        let verbs = [&bulk, &echo, &udp].map(Process::pid);
        let side = Side {
            name: name.to_owned(),
            bulk: bulk_at,
            echo: echo_at,
            udp: Some(udp_at),
            terminals: Some((caller.clone(), callee.clone())),
            relays: pids,
            ends: agents.chain(verbs).collect(),
            _keep: [bulk, echo, udp].map(|p| Box::new(p) as Box<dyn Any + Send + Sync>).into(),
        };
        side.wait(site)?;
        self.check_route(&caller, &path)?;
        Ok(side)
    }

    fn add(
        &mut self,
        spec: TerminalSpec,
        at: Option<&tasuki_tests::lab::netns::Namespace>,
        name: &str,
    ) {
        self.mesh.add_terminal(match at {
            Some(namespace) => spec.on(namespace),
            None => spec,
        });
        self.mesh.wait_state(name, "logged-in", SOON);
    }

    /// What is measured is what the name says: each session of the caller goes over exactly these relays.
    fn check_route(&self, caller: &str, path: &[String]) -> Result<()> {
        for row in self.mesh.terminal(caller).list("paths") {
            let relays: Vec<&str> =
                row["relays"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            anyhow::ensure!(relays == path, "{caller} goes over {relays:?}, not {path:?}");
        }
        Ok(())
    }

    /// A possible direct path stands within 5 s of the session (interfaces).
    fn wait_direct(&self, caller: &str) -> Result<(), String> {
        let begun = std::time::Instant::now();
        loop {
            let rows = self.mesh.terminal(caller).list("paths");
            if !rows.is_empty() && rows.iter().all(|row| row["path"] == "direct") {
                return Ok(());
            }
            if begun.elapsed() > SOON / 3 {
                let path = rows.first().map_or("no session".into(), |row| row["path"].to_string());
                return Err(format!("the sessions of agents that may stay {path}"));
            }
            std::thread::sleep(POLL);
        }
    }
}

/// What lets thousands of terminals in from the one address that they share.
const FOR_A_CROWD: [&str; 8] = [
    "--address-connections",
    "1000000",
    "--address-handshakes",
    "1000000",
    "--address-rate",
    "1000000",
    "--address-burst",
    "1000000",
];

/// One relay that lets thousands of terminals in.
pub(crate) fn relay_for_a_crowd(site: &Site) -> Mesh {
    start_line(site, 1, &FOR_A_CROWD)
}

/// Relays that are linked with each other, each for thousands of terminals.
pub(crate) fn relays_for_a_crowd(names: &[&str]) -> Mesh {
    let relays = names.iter().map(|name| {
        let others: Vec<&str> = names.iter().copied().filter(|other| other != name).collect();
        RelaySpec::new(name).links(&[&others.join(",")]).run_flags(&FOR_A_CROWD)
    });
    relays.fold(MeshSpec::new(), MeshSpec::relay).start()
}

/// Relays r1, r2, ..., each linked with the next.
pub(crate) fn relays_in_line(site: &Site, count: usize) -> Mesh {
    start_line(site, count, &[])
}

fn start_line(site: &Site, count: usize, flags: &[&str]) -> Mesh {
    let names: Vec<String> = (1..=count).map(|n| format!("r{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut hosts = site.relays.iter().zip(11_u8..);
    MeshSpec::line(&names)
        .each_relay(|relay: RelaySpec| match hosts.next() {
            Some((host, octet)) => relay.on(host, tasuki_tests::lab::netns::Wan::address(octet)),
            None => relay,
        })
        .each_relay(|relay| relay.run_flags(flags))
        .start()
}
