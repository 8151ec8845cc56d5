//! OpenSSH as a relay: the callee opens a port at the server (`-R`), and the caller comes to it directly or over an
//! SSH connection of its own (`-L`).

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tasuki_tests::lab::netns::Namespace;
use tasuki_tests::lab::process::Process;
use tasuki_tests::lab::programs::{Sshd, command_in, free_address, wait_until_bound};

use crate::side::Side;
use crate::site::{Services, Site};

/// The cipher that costs least on machines with AES instructions.
const CIPHER: &str = "aes128-gcm@openssh.com";

/// Runs at the server until its connection is gone. With a command OpenSSH switches Nagle's algorithm off on both
/// sides; with `-N` it does not, and small messages wait for delayed acknowledgements.
const COMMAND: &str = "exec sh -c 'while kill -0 $PPID 2>/dev/null; do sleep 1; done'";

/// `-R` alone, or with `-L`.
pub(super) fn start(site: &Site, services: &Services, both: bool) -> Result<Side> {
    for name in ["sshd", "ssh", "ssh-keygen"] {
        super::program(name)?;
    }
    let name = if both { "ssh_rl" } else { "ssh_r" };
    let relay = site.relay();
    let server = Sshd::start_at(site.relay_address(), &site.path(name), relay);
    let client = |at: Option<&Namespace>, role: &str, forwards: &[String]| {
        let mut command = command_in(at, "ssh");
        command.args(server.client_options("relay"));
        command.args(["-c", CIPHER, "-p", &server.address().port().to_string()]);
        command.args(["-o", "HostKeyAlias=relay", "-o", "ExitOnForwardFailure=yes"]);
        command.args(forwards).arg(server.address().ip().to_string()).arg(COMMAND);
        Process::spawn(role, &mut command, &site.path(&format!("{name}-{role}.log")))
    };
    // With -L nobody else needs to come to the port.
    let public = if both { Ipv4Addr::LOCALHOST.into() } else { server.address().ip() };
    let open = |_| SocketAddr::new(public, site.relay_address().port());
    let [bulk, echo] = [0, 1].map(open);
    let forward = |kind: &str, from: SocketAddr, to: SocketAddr| format!("-{kind}{from}:{to}");
    let callee = client(
        site.callee.as_ref(),
        "callee",
        &[forward("R", bulk, services.bulk), forward("R", echo, services.echo)],
    );
    let (mut ends, mut keep): (_, Vec<Box<dyn Any + Send + Sync>>) =
        (vec![callee.pid()], vec![Box::new(callee)]);
    let mut at = [bulk, echo];
    if both {
        at = [free_address(), free_address()];
        let forwards = [forward("L", at[0], bulk), forward("L", at[1], echo)];
        let caller = client(site.caller.as_ref(), "caller", &forwards);
        wait_until_bound(&caller, "tcp", at[1].port());
        ends.push(caller.pid());
        keep.push(Box::new(caller));
    }
    let relays = vec![server.pid()];
    keep.push(Box::new(server));
    let [bulk, echo] = at;
    Ok(Side {
        name: name.into(),
        bulk,
        echo,
        udp: None,
        terminals: None,
        relays,
        ends,
        _keep: keep,
    })
}
