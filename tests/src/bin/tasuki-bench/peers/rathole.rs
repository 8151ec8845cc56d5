//! rathole: the server is the relay, its client is with the callee, and the caller comes to the server's port.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tasuki_tests::lab::netns::Namespace;
use tasuki_tests::lab::process::{Process, run};
use tasuki_tests::lab::programs::{command_in, wait_until_bound};

use crate::side::Side;
use crate::site::{Services, Site};

const LIMIT: Duration = Duration::from_secs(30);
const PASSWORD: &str = "bench";

/// How client and server talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Plain,
    Tls,
    Noise,
}

/// The `transport` parts of both configurations.
struct Parts {
    server: String,
    client: String,
}

/// Starts server and client.
pub(super) fn start(site: &Site, services: &Services, transport: Transport) -> Result<Side> {
    let program = super::program("rathole")?;
    let name = match transport {
        Transport::Plain => "rathole",
        Transport::Tls => "rathole_tls",
        Transport::Noise => "rathole_noise",
    };
    let folder = site.path(name);
    std::fs::create_dir(&folder)?;
    let parts = match transport {
        Transport::Plain => Parts { server: String::new(), client: String::new() },
        Transport::Tls => tls(&folder)?,
        Transport::Noise => noise(&program)?,
    };
    let [control, bulk, echo] = [0, 1, 2].map(|_| site.relay_address());
    let server = format!(
        "[server]\nbind_addr = \"{control}\"\ndefault_token = \"bench\"\n{}\
         [server.services.bulk]\nbind_addr = \"{bulk}\"\n\
         [server.services.echo]\nbind_addr = \"{echo}\"\n",
        parts.server
    );
    let client = format!(
        "[client]\nremote_addr = \"{control}\"\ndefault_token = \"bench\"\n{}\
         [client.services.bulk]\nlocal_addr = \"{}\"\n\
         [client.services.echo]\nlocal_addr = \"{}\"\n",
        parts.client, services.bulk, services.echo
    );
    let spawn = |at: Option<&Namespace>, role: &str, config: &str| -> Result<Process> {
        let path = folder.join(format!("{role}.toml"));
        std::fs::write(&path, config)?;
        let mut command = command_in(at, &program);
        command.arg(format!("--{role}")).arg(&path);
        let name = format!("{name} {role}");
        Ok(Process::spawn(&name, &mut command, &folder.join(format!("{role}.log"))))
    };
    let server = spawn(site.relay(), "server", &server)?;
    wait_until_bound(&server, "tcp", control.port());
    let client = spawn(site.callee.as_ref(), "client", &client)?;
    wait_until_bound(&server, "tcp", bulk.port());
    wait_until_bound(&server, "tcp", echo.port());
    let (relays, ends) = (vec![server.pid()], vec![client.pid()]);
    let _keep: Vec<Box<dyn std::any::Any + Send + Sync>> = vec![Box::new(client), Box::new(server)];
    Ok(Side { name: name.into(), bulk, echo, udp: None, terminals: None, relays, ends, _keep })
}

/// A certificate authority, and an identity of the server in the format that both of rathole's TLS libraries read.
fn tls(folder: &std::path::Path) -> Result<Parts> {
    super::program("openssl")?;
    let at = |name: &str| folder.join(name).display().to_string();
    let (ca_key, ca, key, request, certificate, pfx, extensions) = (
        at("ca.key"),
        at("ca.crt"),
        at("server.key"),
        at("server.csr"),
        at("server.crt"),
        at("identity.pfx"),
        at("extensions"),
    );
    std::fs::write(&extensions, "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n")?;
    let password = format!("pass:{PASSWORD}");
    let runs: [&[&str]; 4] = [
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=bench ca",
            "-keyout",
            &ca_key,
            "-out",
            &ca,
        ],
        &[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            &key,
            "-out",
            &request,
        ],
        &[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ],
        &[
            "pkcs12",
            "-export",
            "-out",
            &pfx,
            "-inkey",
            &key,
            "-in",
            &certificate,
            "-certfile",
            &ca,
            "-keypbe",
            "PBE-SHA1-3DES",
            "-certpbe",
            "PBE-SHA1-3DES",
            "-passout",
            &password,
        ],
    ];
    for arguments in runs {
        let done = run(Command::new("openssl").args(arguments), LIMIT);
        ensure!(done.code == 0, "openssl {}: {}", arguments[0], done.stderr);
    }
    Ok(Parts {
        server: format!(
            "[server.transport]\ntype = \"tls\"\n[server.transport.tls]\npkcs12 = \"{pfx}\"\n\
             pkcs12_password = \"{PASSWORD}\"\n"
        ),
        client: format!(
            "[client.transport]\ntype = \"tls\"\n[client.transport.tls]\ntrusted_root = \"{ca}\"\n\
             hostname = \"localhost\"\n"
        ),
    })
}

fn noise(program: &std::path::Path) -> Result<Parts> {
    let done = run(Command::new(program).arg("--genkey"), LIMIT);
    let text = done.text();
    let (private, public) = keys(&text).context("rathole --genkey printed no keys")?;
    Ok(Parts {
        server: format!(
            "[server.transport]\ntype = \"noise\"\n[server.transport.noise]\n\
             local_private_key = \"{private}\"\n"
        ),
        client: format!(
            "[client.transport]\ntype = \"noise\"\n[client.transport.noise]\n\
             remote_public_key = \"{public}\"\n"
        ),
    })
}

/// Private and public key, each on the line behind its heading.
fn keys(text: &str) -> Option<(&str, &str)> {
    let behind = |heading: &str| {
        let mut lines = text.lines().skip_while(|line| !line.starts_with(heading)).skip(1);
        lines.next().map(str::trim).filter(|key| !key.is_empty())
    };
    Some((behind("Private Key")?, behind("Public Key")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_keys_are_read() {
        let text = "Private Key:\nabc=\n\nPublic Key:\ndef=\n";
        assert_eq!(keys(text), Some(("abc=", "def=")));
        assert_eq!(keys("nothing"), None);
    }
}
