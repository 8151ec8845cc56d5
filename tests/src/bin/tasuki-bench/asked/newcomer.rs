//! A second relay, which joins the mesh once and then comes again and again with an empty table.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tasuki_relay::io::store;
use tasuki_tests::lab::mesh::Relay;
use tasuki_tests::lab::{Mesh, RelaySpec};

use super::Named;
use crate::idle::stop;
use crate::procs::cpu_seconds;

pub(super) const NAME: &str = "r2";
/// Until then its table has to be whole.
const LIMIT: Duration = Duration::from_secs(60);
/// How often its table is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Lets it join the mesh of r1 and leave again.
pub(super) fn join(mesh: &mut Mesh) -> Result<()> {
    mesh.add_relay(RelaySpec::new(NAME).links(&["r1"]));
    leave(mesh)
}

/// Stops it and forgets the rows that it has on disk: those that the authority signed. All others were in memory.
pub(super) fn leave(mesh: &Mesh) -> Result<()> {
    let relay = mesh.relay(NAME);
    stop(relay)?;
    let store = rusqlite::Connection::open(relay.data().join(store::FILE))?;
    store.execute("DELETE FROM records", []).context("the records of the newcomer")?;
    Ok(())
}

/// Starts it and waits until it has the row of every account that r1 has; how long that took, and what it cost the
/// newcomer. The few rows of relays and attachments do not count: they may change at any moment.
pub(super) fn take_table(mesh: &Mesh) -> Result<Named> {
    let newcomer = mesh.relay(NAME);
    let whole = accounts(mesh.relay("r1"))?;
    let begun = Instant::now();
    newcomer.start();
    loop {
        let taken = accounts(newcomer).unwrap_or_default();
        if taken >= whole {
            break;
        }
        ensure!(begun.elapsed() < LIMIT, "after {LIMIT:?} the newcomer has {taken} of {whole}");
        std::thread::sleep(LOOK);
    }
    let pid = [newcomer.pid().unwrap_or_default()];
    Ok(vec![("rows_s", begun.elapsed().as_secs_f64()), ("newcomer_cpu_s", cpu_seconds(&pid))])
}

/// Looks at every account, since the first look checks its signature.
pub(super) fn check_table(mesh: &Mesh) -> Result<()> {
    let mut after = String::new();
    loop {
        let page = mesh.relay(NAME).api.json(&format!("/api/v1/terminals?limit=1000{after}"));
        let page = page.map_err(|error| anyhow!("{error}"))?;
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(()),
        }
    }
}

/// How many accounts its table has.
fn accounts(relay: &Relay) -> Result<u64> {
    let status = relay.api.json("/api/v1/status").map_err(|error| anyhow!("{error}"))?;
    status["table"]["terminals"].as_u64().context("no number of accounts")
}
