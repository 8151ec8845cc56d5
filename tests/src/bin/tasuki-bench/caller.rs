//! The hidden verb `caller`: agents as a library, which call, wait for the first byte, and end the session again.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tasuki_proto::codec::Envelope;
use tasuki_proto::session::{Answer, Begin, OpenPing, PING};
use tasuki_proto::{RelayName, ServiceName, TerminalId, limits};
use tasuki_terminal::agent::Agent;
use tasuki_terminal::core::access::AccessRules;
use tasuki_tests::lab::agents;

use crate::helper;
use crate::rounds::percentile;

/// A first byte that takes longer has failed.
const FIRST_BYTE: Duration = Duration::from_secs(15);

#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// Data directories of enrolled terminals whose agents do not run.
    #[arg(long, value_delimiter = ',')]
    data: Vec<PathBuf>,
    /// Whom to call.
    #[arg(long, value_delimiter = ',')]
    targets: Vec<TerminalId>,
    /// The relay to attach to.
    #[arg(long)]
    relay: RelayName,
}

/// Answers `{}` when every agent is logged in; then each command `AT_ONCE MILLISECONDS` with what came of it.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut agents = Vec::new();
        for data in &flags.data {
            // Nobody calls these terminals.
            agents.push(agents::start(data, &flags.relay, AccessRules::default()).await?);
        }
        helper::answer(&json!({}))?;
        while let Some(command) = tokio::task::spawn_blocking(helper::command).await?? {
            let (at_once, ms) = command.split_once(' ').context("AT_ONCE MILLISECONDS")?;
            let time = Duration::from_millis(ms.parse()?);
            helper::answer(&call(&agents, &flags.targets, at_once.parse()?, time).await?)?;
        }
        Ok(())
    })
}

/// What callers have in common.
struct Tally {
    until: Instant,
    service: ServiceName,
    done: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    /// From the call to the first byte, µs.
    times: Vec<u64>,
    sessions: HashSet<String>,
    errors: BTreeSet<String>,
    failed: u64,
}

async fn call(
    agents: &[Agent],
    targets: &[TerminalId],
    at_once: usize,
    time: Duration,
) -> Result<serde_json::Value> {
    ensure!(!agents.is_empty() && !targets.is_empty(), "agents and targets are needed");
    let begun = Instant::now();
    let service = ServiceName::new(PING)?;
    let tally = Arc::new(Tally { until: begun + time, service, done: Mutex::default() });
    let callers: Vec<_> = (0..at_once)
        .map(|number| {
            let agent = agents[number % agents.len()].clone();
            let target = targets[number % targets.len()].clone();
            tokio::spawn(call_again(agent, target, tally.clone()))
        })
        .collect();
    for caller in callers {
        caller.await?;
    }
    let elapsed = begun.elapsed().as_secs_f64();
    let mut done = tally.done.lock().unwrap_or_else(PoisonError::into_inner);
    done.times.sort_unstable();
    let made = done.times.len();
    ensure!(done.sessions.len() == made, "two calls shared a session");
    Ok(json!({
        "elapsed_s": elapsed,
        "sessions_per_s": made as f64 / elapsed,
        "p50_ms": percentile(&done.times, 0.5) as f64 / 1000.0,
        "p99_ms": percentile(&done.times, 0.99) as f64 / 1000.0,
        "failed": done.failed,
        "errors": done.errors.iter().cloned().collect::<Vec<_>>().join("; "),
    }))
}

async fn call_again(agent: Agent, target: TerminalId, tally: Arc<Tally>) {
    while Instant::now() < tally.until {
        let begun = Instant::now();
        let made =
            tokio::time::timeout(FIRST_BYTE, first_byte(&agent, &target, &tally.service)).await;
        let took = begun.elapsed().as_micros() as u64;
        let mut done = tally.done.lock().unwrap_or_else(PoisonError::into_inner);
        match made {
            Ok(Ok(session)) => {
                done.times.push(took);
                done.sessions.insert(session);
            }
            failed => {
                done.failed += 1;
                let error = match failed {
                    Ok(Err(error)) => format!("{error:#}"),
                    _ => format!("nothing in {FIRST_BYTE:?}"),
                };
                // One of a kind is enough.
                if done.errors.len() < 8 {
                    done.errors.insert(error);
                }
            }
        }
    }
}

/// Calls and has one byte sent back. The session ends with its last holder, here. Gives its id.
async fn first_byte(agent: &Agent, target: &TerminalId, service: &ServiceName) -> Result<String> {
    let session = agent.call(target.clone(), service.clone()).await?;
    let (mut send, mut recv) = session.connection.open_bi().await?;
    let mut bytes = Begin::Ping(OpenPing {}).to_bytes().to_vec();
    bytes.push(0x5a);
    send.write_all(&bytes).await?;
    let envelope = Envelope::read(&mut recv, limits::SESSION_ANSWER_BYTES).await?;
    match Answer::from_peer(&envelope.context("the stream ended")?)? {
        Answer::Opened(_) => {}
        other => bail!("{other:?}"),
    }
    let mut byte = [0];
    recv.read_exact(&mut byte).await?;
    ensure!(byte == [0x5a], "another byte");
    let _ = send.finish();
    Ok(format!("{:?}", session.id))
}
