//! A transfer between two terminals that begins anew only when one of their agents died.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tasuki_tests::lab::netns::Namespace;
use tasuki_tests::lab::process::Process;
use tasuki_tests::lab::transfer::{Receiver, Sender};
use tasuki_tests::lab::wait::POLL;
use tasuki_tests::lab::{Mesh, paths};

/// Bytes a second of each: all together leave the machine room for what is struck.
const PACE: u64 = 400_000;
/// Bytes that show that a transfer goes on: more than waits at the receiving end.
const GOES_ON: u64 = 500_000;
/// Until the first bytes of a new transfer are there.
const BEGINS: Duration = Duration::from_secs(60);

/// One transfer.
pub(super) struct Load {
    pub(super) from: String,
    pub(super) to: String,
    receiver: Receiver,
    place: Option<Namespace>,
    seed: u64,
    running: Option<Running>,
    /// How many bytes show that it goes on.
    wanted: u64,
    /// What earlier ones carried that ended with an agent.
    before: u64,
}

struct Running {
    session: String,
    sender: Sender,
    _forward: Process,
}

impl Load {
    /// None yet; its receiver listens beside the terminal `to`, its sender beside `from`.
    pub(super) fn new(
        pair: (&str, &str),
        places: (Option<&Namespace>, Option<&Namespace>),
        seed: u64,
    ) -> Load {
        Load {
            from: pair.0.to_owned(),
            to: pair.1.to_owned(),
            receiver: Receiver::start(places.1, seed),
            place: places.0.cloned(),
            seed,
            running: None,
            wanted: 0,
            before: 0,
        }
    }

    /// What the terminal `to` exposes.
    pub(super) fn url(&self) -> String {
        format!("tcp://{}", self.receiver.address())
    }

    pub(super) fn name(&self) -> String {
        format!("{} to {}", self.from, self.to)
    }

    /// Begins, and waits until data flows.
    pub(super) fn begin(&mut self, mesh: &Mesh) -> Result<()> {
        let begun = Instant::now();
        loop {
            let (forward, address) =
                mesh.terminal(&self.from).forward(&format!("{}/bulk", self.to));
            let sender = Sender::paced(self.place.as_ref(), address, self.seed, PACE)?;
            let flows = self.receiver.wait_for_more(1, BEGINS / 2);
            match flows {
                Ok(()) => {
                    let row =
                        paths::row(mesh.terminal(&self.from), &self.to).map_err(|e| anyhow!(e))?;
                    let session = row["session"].as_str().context("a session")?.to_owned();
                    self.running = Some(Running { session, sender, _forward: forward });
                    return Ok(());
                }
                Err(error) if begun.elapsed() > BEGINS => {
                    return Err(anyhow!("{} does not begin: {error}", self.name()));
                }
                // Its agents have only just started: they may not know of each other.
                Err(_) => {
                    drop((sender, forward));
                    self.receiver.again();
                }
            }
        }
    }

    /// From here on it has to go on.
    pub(super) fn expect_more(&mut self) {
        self.wanted = self.receiver.seen().bytes + GOES_ON;
    }

    /// Waits until it has gone on since [`Load::expect_more`]: its agents live, so it must.
    pub(super) fn goes_on(&self, limit: Duration) -> Result<()> {
        let missing = self.wanted.saturating_sub(self.receiver.seen().bytes);
        let more = self.receiver.wait_for_more(missing, limit);
        more.map_err(|e| anyhow!("{}: {e}", self.name()))
    }

    /// Waits until it is over at every end, since the agent of `dead` is; the other one says why.
    pub(super) fn has_ended(&mut self, mesh: &Mesh, dead: &[&str], limit: Duration) -> Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        let begun = Instant::now();
        let alive = [&self.from, &self.to].into_iter().find(|name| !dead.contains(&name.as_str()));
        loop {
            let seen = self.receiver.seen();
            let over = seen.ended || seen.fault.is_some();
            let coded = match alive {
                Some(name) => ended_with(mesh, name, &running.session)?,
                None => true,
            };
            if over && coded {
                ensure!(
                    seen.fault.as_ref().is_none_or(|fault| !fault.contains("wrong byte")),
                    "{}: {:?}",
                    self.name(),
                    seen.fault
                );
                self.before += seen.bytes;
                drop(running);
                self.receiver.again();
                return Ok(());
            }
            ensure!(
                begun.elapsed() < limit,
                "{}: {dead:?} died, but {}",
                self.name(),
                if over { "nobody says why it ended" } else { "it did not end" }
            );
            std::thread::sleep(POLL * 5);
        }
    }

    /// Ends it; how many bytes it carried, each the right one.
    pub(super) fn finish(&mut self, limit: Duration) -> Result<u64> {
        let Some(running) = self.running.take() else { return Ok(self.before) };
        let total = running.sender.finish(&self.receiver, limit);
        Ok(self.before + total.map_err(|e| anyhow!("{}: {e}", self.name()))?)
    }

    /// How long it stood still at most since this was asked last.
    pub(super) fn stall(&self) -> Duration {
        let stall = self.receiver.seen().longest_gap;
        self.receiver.mark();
        stall
    }
}

/// Whether the agent shows that this session has ended, with a code; also where it has forgotten it.
fn ended_with(mesh: &Mesh, name: &str, session: &str) -> Result<bool> {
    let done = mesh.terminal(name).verb(&["sessions", "--json"]);
    let rows: Value = serde_json::from_slice(&done.stdout)
        .with_context(|| format!("sessions of {name}: {}", done.stderr))?;
    let rows = rows.as_array().or_else(|| rows["items"].as_array()).context("a list")?;
    let Some(row) = rows.iter().find(|row| row["id"] == session) else { return Ok(true) };
    Ok(row["state"] == "ended" && row["reason"].as_str().is_some_and(|code| !code.is_empty()))
}
