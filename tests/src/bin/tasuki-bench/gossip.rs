//! Gossip in the simulator (P9, P10).

use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_proto::record::RecordKind;
use tasuki_tests::sim::topology::Topology;
use tasuki_tests::sim::{Mesh, MeshModel};

use crate::Options;
use crate::report::Report;

/// The mesh.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// Relays.
    #[arg(long, default_value_t = 50)]
    relays: usize,
    /// Links of each relay, about.
    #[arg(long, default_value_t = 6)]
    links: usize,
    /// Rows in the table.
    #[arg(long, default_value_t = 100_000)]
    rows: usize,
    /// Changes per second.
    #[arg(long, default_value_t = 5_000)]
    changes: u64,
    /// Packets lost, percent.
    #[arg(long, default_value_t = 1.0)]
    loss: f64,
}

const MS: Duration = Duration::from_millis(1);

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let begun = Instant::now();
    let secs = Duration::from_secs(options.secs.unwrap_or(20));
    let topology = Topology::Regular(flags.links);
    let mut mesh = Mesh::new(&MeshModel {
        seed: options.seed,
        relays: flags.relays,
        links: topology.links(flags.relays, &mut StdRng::seed_from_u64(options.seed)),
        delay: 2 * MS..30 * MS,
        jitter: MS,
        loss: flags.loss / 100.0,
        detect: 300 * MS,
        shadow: false,
    });
    mesh.want_links(|_, _| false);
    mesh.start_all();
    for row in 0..flags.rows {
        change(&mut mesh, row, flags.relays);
    }
    mesh.want_links(|_, _| true);
    let first = mesh.run_until_equal(Duration::from_secs(120));
    let diameter = mesh.diameter();

    // The trees settle; then what counts.
    churn(&mut mesh, flags, Duration::from_secs(3));
    mesh.run_until_equal(Duration::from_secs(20));
    mesh.observe();
    churn(&mut mesh, flags, secs);
    mesh.run_until_equal(Duration::from_secs(20));
    let (copies, most) = mesh.observed.copies();
    let updates = mesh.observed.updates();
    let known = mesh.observed.spread.len();
    let (p50, p99) = (mesh.observed.percentile(0.5), mesh.observed.percentile(0.99));
    let relays = flags.relays as f64;
    let messages = mesh.observed.messages as f64 / relays / secs.as_secs_f64();
    let bytes = mesh.observed.bytes as f64 / relays / secs.as_secs_f64();

    // Half of the mesh goes its own way for ten seconds.
    mesh.want_links(|a, b| (a < flags.relays / 2) == (b < flags.relays / 2));
    churn(&mut mesh, flags, Duration::from_secs(10).min(secs));
    mesh.run(Duration::from_secs(1));
    mesh.want_links(|_, _| true);
    let heal = mesh.run_until_equal(Duration::from_secs(60));

    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    Ok(Report::default()
        .with("relays", relays)
        .with("rows", flags.rows as f64)
        .with("updates", updates as f64)
        .with("updates_known_to_all", known as f64)
        .with("copies_per_update", copies)
        .with("copies_max", f64::from(most))
        .with("diameter_ms", ms(diameter))
        .with("converge_p50_ms", ms(p50))
        .with("converge_p99_ms", ms(p99))
        .with("converge_p99_per_diameter", ms(p99) / ms(diameter))
        .with("first_sync_ms", ms(first))
        .with("heal_ms", ms(heal))
        .with("messages_per_relay_per_s", messages)
        .with("bytes_per_relay_per_s", bytes)
        .with("elapsed_s", begun.elapsed().as_secs_f64()))
}

/// One row changes at its relay.
fn change(mesh: &mut Mesh, row: usize, relays: usize) {
    let payload = Bytes::from(format!("{:0>40}", mesh.rng().random::<u32>()));
    let key = format!("terminal-{row}");
    mesh.write(row % relays, RecordKind::ATTACHMENT, key.as_bytes(), Some(payload), 0);
}

fn churn(mesh: &mut Mesh, flags: &Flags, time: Duration) {
    let changes = time.as_secs_f64() * flags.changes as f64;
    let gap = Duration::from_secs_f64(1.0 / flags.changes as f64);
    for _ in 0..changes as u64 {
        let row = mesh.rng().random_range(0..flags.rows);
        change(mesh, row, flags.relays);
        mesh.run(gap);
    }
}
