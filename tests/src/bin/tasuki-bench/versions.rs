//! Two versions in one mesh: relays and agents of another build beside those of this one. Calls in all combinations, a
//! transfer that goes on while each relay is upgraded in place, and equal tables at the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::process::Signal;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::transfer::{Receiver, Sender};
use tasuki_tests::lab::wait::{POLL, SOON};
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec};

use crate::Options;
use crate::report::Report;
use crate::side;

const HOW: &str = "--old names a folder with tasuki-relay and tasuki-agent of another build. To make one of an earlier commit:
  git worktree add ../old COMMIT
  cargo build --manifest-path ../old/Cargo.toml -p tasuki-relay -p tasuki-terminal --bins
  tasuki-bench versions --old ../old/target/debug";
/// A relay that is told to end does so within 5 s.
const ENDS: Duration = Duration::from_secs(30);
/// A transfer that stands still for longer is broken.
const BROKEN: Duration = Duration::from_secs(30);
/// Bytes that show that a transfer goes on: more than lies in buffers on the way.
const GOES_ON: u64 = 16 * 1024 * 1024;
const RELAYS: [&str; 3] = ["r1", "r2", "r3"];
const AGENTS: [&str; 4] = ["old-a", "new-a", "old-b", "new-b"];

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// A folder with tasuki-relay and tasuki-agent of another build.
    #[arg(long)]
    old: Option<PathBuf>,
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let folder = flags.old.as_ref().ok_or_else(|| anyhow!(HOW))?;
    let old = Bins { relay: folder.join("tasuki-relay"), agent: folder.join("tasuki-agent") };
    ensure!(old.relay.is_file() && old.agent.is_file(), "nothing in {}: {HOW}", folder.display());
    let new = Bins::find();
    let (receiver, echo) = (Receiver::start(None, options.seed), TcpService::echo(None));
    let offers = |name: &str| {
        let spec = TerminalSpec::new(name).relayed();
        let spec = spec.offers("bulk", &format!("tcp://{}", receiver.address()));
        let spec = spec.offers("echo", &format!("tcp://{}", echo.address()));
        if name.starts_with("old") { spec.program(&old.agent) } else { spec }
    };
    // The registrar is old, as where an upgrade begins; one of its relays is new already.
    let relay = |name: &str| {
        let spec = RelaySpec::new(name);
        if name == "r2" { spec } else { spec.program(&old.relay) }
    };
    let spec = RELAYS.iter().fold(MeshSpec::new(), |spec, name| spec.relay(relay(name)));
    let mesh = AGENTS.iter().fold(spec, |spec, name| spec.terminal(offers(name))).start();
    let mixed = call_all(&mesh)?;

    let (_forward, address) = mesh.terminal("old-a").forward("new-b/bulk");
    let (_forward_back, address_back) = mesh.terminal("new-a").forward("old-b/bulk");
    let sender = Sender::start(None, address, options.seed, u64::MAX)?;
    receiver.mark();
    goes_on(&receiver, "before anything was upgraded")?;
    for name in RELAYS {
        upgrade(&mesh, name, &new.relay)?;
        goes_on(&receiver, &format!("after {name} was upgraded"))?;
    }
    let stall = receiver.seen().longest_gap;
    let bytes = sender.finish(&receiver, BROKEN).map_err(|error| anyhow!("at the end: {error}"))?;
    let upgraded = call_all(&mesh)?;

    // And the other way round, with every relay new: what an old agent is called by, and calls.
    receiver.again();
    let back = Sender::start(None, address_back, options.seed, u64::MAX)?;
    goes_on(&receiver, "from a new agent to an old one")?;
    back.finish(&receiver, BROKEN).map_err(|error| anyhow!("back: {error}"))?;
    for name in AGENTS.into_iter().filter(|name| name.starts_with("old")) {
        let terminal = mesh.terminal(name);
        terminal.kill();
        terminal.set_program(&new.agent);
        terminal.start();
        mesh.wait_state(name, "logged-in", SOON);
        wait_attached(&mesh, name);
    }
    let all_new = call_all(&mesh)?;
    let equal = mesh.wait_tables_equal(SOON);
    Ok(Report::default()
        .with("calls_mixed", mixed as f64)
        .with("calls_new_relays", upgraded as f64)
        .with("calls_all_new", all_new as f64)
        .with("transfer_bytes", bytes as f64)
        .with("stall_max_ms", stall.as_secs_f64() * 1000.0)
        .with("tables_equal_after_ms", equal.as_secs_f64() * 1000.0)
        .with_flag("hash_equal", true))
}

fn goes_on(receiver: &Receiver, when: &str) -> Result<()> {
    receiver.wait_for_more(GOES_ON, BROKEN).map_err(|error| anyhow!("the transfer {when}: {error}"))
}

/// A call and an echo from each agent to each other; how many.
fn call_all(mesh: &Mesh) -> Result<usize> {
    let mut calls = 0;
    for from in AGENTS {
        for to in AGENTS.into_iter().filter(|to| *to != from) {
            let (_forward, address) = mesh.terminal(from).forward(&format!("{to}/echo"));
            side::echo_once(address).map_err(|error| anyhow!("{from} calls {to}: {error}"))?;
            calls += 1;
        }
    }
    Ok(calls)
}

/// A relay ends as a service manager ends it, and starts as another version on the same data.
fn upgrade(mesh: &Mesh, name: &str, program: &Path) -> Result<()> {
    let relay = mesh.relay(name);
    relay.signal(Signal::Terminate);
    let begun = Instant::now();
    while relay.is_running() {
        ensure!(begun.elapsed() < ENDS, "{name} does not end");
        std::thread::sleep(POLL);
    }
    let ended = begun.elapsed();
    relay.kill();
    relay.set_program(program);
    let healthy = relay.start();
    mesh.wait_for_links();
    for agent in AGENTS {
        wait_attached(mesh, agent);
    }
    let equal = mesh.wait_tables_equal(SOON);
    eprintln!(
        "{name}: ended after {ended:.1?}, healthy after {healthy:.1?}, equal after {equal:.1?}"
    );
    Ok(())
}

/// Waits until every table shows both attachments of an agent.
fn wait_attached(mesh: &Mesh, name: &str) {
    mesh.wait_everywhere(&format!("{name} is attached twice"), SOON, |relay| {
        let row = relay.row(name)?;
        match row["attachments"].as_array().map_or(0, Vec::len) {
            2 => Ok(()),
            _ => Err(row.to_string()),
        }
    });
}
