//! What has to be so when all is mended, and when all is over.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use tasuki_tests::lab::Mesh;

use super::{MENDED, Names};
use crate::procs::children;

/// Descriptors that a process may have more at the end: connections that rest, a log that was opened anew.
const MORE_DESCRIPTORS: usize = 12;

/// Waits until every terminal has two attachments, and every table says so.
pub(super) fn all_attached(mesh: &Mesh, names: &Names) {
    mesh.wait_everywhere("two attachments each", MENDED, |relay| {
        let rows = relay.api.items("/api/v1/terminals")?;
        let attached = |name: &String| {
            let row = rows.iter().find(|row| row["id"] == name.as_str());
            let row = row.ok_or_else(|| format!("no {name}"))?;
            let count = row["attachments"].as_array().map_or(0, Vec::len);
            let whole = count == 2
                && row["state"]
                    .as_str()
                    .is_some_and(|s| s.starts_with("logged-in") || s == "in-communication");
            if whole { Ok(()) } else { Err(row.to_string()) }
        };
        names.terminals.iter().try_for_each(attached)
    });
}

/// Open descriptors of each process of the mesh.
pub(super) fn descriptors(mesh: &Mesh, names: &Names) -> BTreeMap<String, usize> {
    let relays = names.relays.iter().map(|name| (name, mesh.relay(name).pid()));
    let terminals = names.terminals.iter().map(|name| (name, mesh.terminal(name).pid()));
    let count = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    relays.chain(terminals).map(|(name, pid)| (name.clone(), pid.map_or(0, count))).collect()
}

/// Nothing is left of what ran: sessions, labels, processes, descriptors; and all tables are equal.
pub(super) fn nothing_left(
    mesh: &Mesh,
    names: &Names,
    before: &BTreeMap<String, usize>,
) -> Result<()> {
    all_attached(mesh, names);
    mesh.wait_no_sessions(MENDED);
    mesh.wait_tables_equal(MENDED);
    let nodes = names.relays.len() + names.terminals.len();
    let running = children();
    ensure!(running == nodes, "{running} processes run, not {nodes}");
    for (name, count) in descriptors(mesh, names) {
        let before = before.get(&name).copied().unwrap_or_default();
        ensure!(count > 0, "{name} does not run");
        ensure!(
            count <= before + MORE_DESCRIPTORS,
            "{name} has {count} descriptors, {before} at first"
        );
    }
    Ok(())
}
