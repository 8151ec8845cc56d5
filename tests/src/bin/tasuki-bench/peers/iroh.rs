//! iroh through a local relay: `iroh-relay`, and at both ends the small program in `tests/peers/iroh`, which has no
//! other way than the relay and contacts nobody else.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use tasuki_tests::lab::bins::workspace;
use tasuki_tests::lab::process::Process;
use tasuki_tests::lab::programs::{command_in, free_address, wait_until_bound};
use tasuki_tests::lab::wait::eventually;

use crate::side::Side;
use crate::site::{Services, Site};

const LIMIT: Duration = Duration::from_secs(20);
const PROGRAM: &str = "iroh-peer";

/// Where [`PROGRAM`] is: as every peer's, or where its own build leaves it.
fn program() -> Result<PathBuf> {
    let built = workspace().join("tests/peers/iroh/target/release").join(PROGRAM);
    super::program(PROGRAM)
        .or_else(|missing| if built.is_file() { Ok(built) } else { Err(missing) })
}

/// Starts the relay and both ends.
pub(super) fn start(site: &Site, services: &Services) -> Result<Side> {
    let (relay_program, program) = (super::program("iroh-relay")?, program()?);
    let folder = site.path("iroh");
    std::fs::create_dir(&folder)?;
    let listen = site.relay_address();
    let config = folder.join("relay.toml");
    std::fs::write(&config, format!("http_bind_addr = \"{listen}\"\nenable_metrics = false\n"))?;
    let mut command = command_in(site.relay(), relay_program);
    command.args(["--dev", "-c"]).arg(&config);
    let relay = Process::spawn("iroh-relay", &mut command, &folder.join("relay.log"));
    wait_until_bound(&relay, "tcp", listen.port());

    let url = format!("http://{listen}");
    let mut command = command_in(site.callee.as_ref(), &program);
    command.args(["serve", &url, &services.bulk.to_string(), &services.echo.to_string()]);
    let callee = Process::spawn("iroh callee", &mut command, &folder.join("callee.log"));
    let id = eventually("the id of iroh's callee", LIMIT, || {
        let text = callee.output();
        let id = text.split_once('\n').map(|(id, _)| id.to_owned());
        id.ok_or_else(|| format!("none yet: {text}"))
    });
    let id = id.split_whitespace().next_back().context("no id")?.to_owned();

    let (bulk, echo) = (free_address(), free_address());
    let mut command = command_in(site.caller.as_ref(), &program);
    command.args(["forward", &url, &id, &bulk.port().to_string(), &echo.port().to_string()]);
    let caller = Process::spawn("iroh caller", &mut command, &folder.join("caller.log"));
    wait_until_bound(&caller, "tcp", bulk.port());
    wait_until_bound(&caller, "tcp", echo.port());
    let (relays, ends) = (vec![relay.pid()], vec![caller.pid(), callee.pid()]);
    Ok(Side {
        name: "iroh".into(),
        bulk,
        echo,
        udp: None,
        terminals: None,
        relays,
        ends,
        _keep: vec![Box::new(caller), Box::new(callee), Box::new(relay)],
    })
}
