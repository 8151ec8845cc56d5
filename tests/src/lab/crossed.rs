//! Two terminals that call each other at the same instant (D3, D4), through real relays.
//!
//! Both agents run on one thread, which hands out both their calls before it does anything else, so that they meet.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tasuki_proto::{Refusal, RelayName, ServiceName, SessionId, TerminalId, limits};
use tasuki_terminal::agent::{Agent, Session};
use tasuki_terminal::core::access::AccessRules;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::wait::SOON;
use super::{Mesh, agents};

/// What both call.
const SERVICE: &str = "meet";
/// How long a call may take before it has neither a session nor a refusal: an unanswered one fails after 10 s.
const ANSWERED: Duration = Duration::from_secs(25);
/// How long two users of a session may need to hear each other, whatever died on its way before.
const HEARD: Duration = Duration::from_secs(20);
/// How long it may take until both agents know of the same sessions.
const AGREED: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);

/// What came of a call.
pub type Called = Result<Session, Refusal>;

/// Two agents and the thread that they run on.
#[derive(Debug)]
pub struct Crossed {
    runtime: Runtime,
    /// The two.
    pub pair: Pair,
}

/// The two agents; clones share them.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The agents.
    pub agents: [Agent; 2],
    names: [TerminalId; 2],
    service: ServiceName,
}

impl Crossed {
    /// Starts the agents of two terminals of the mesh that were enrolled and not started, each at one relay. `open`
    /// says whether each lets the other in. Both are in the table of every relay then: the relay of one may hear of the
    /// other's log-in later than the other itself.
    ///
    /// # Errors
    /// When one does not log in.
    ///
    /// # Panics
    /// When a log-in does not reach every relay.
    pub fn start(
        mesh: &Mesh,
        names: [&str; 2],
        relays: [&str; 2],
        open: [bool; 2],
    ) -> Result<Self> {
        let runtime = agents::runtime(None)?;
        let service = ServiceName::new(SERVICE)?;
        let start = |n: usize| {
            let relay = RelayName::new(relays[n])?;
            let rules = if open[n] { agents::open(&service) } else { AccessRules::default() };
            runtime.block_on(agents::start(mesh.terminal(names[n]).data(), &relay, rules))
        };
        let agents = [start(0)?, start(1)?];
        for name in names {
            mesh.wait_state(name, "logged-in", SOON);
        }
        let names = [TerminalId::new(names[0])?, TerminalId::new(names[1])?];
        Ok(Self { runtime, pair: Pair { agents, names, service } })
    }

    /// Runs something on the thread of the agents.
    ///
    /// # Panics
    /// When it panics.
    pub fn run<T: Send + 'static>(&self, act: impl Future<Output = T> + Send + 'static) -> T {
        let task = self.runtime.spawn(act);
        self.runtime.block_on(task).unwrap_or_else(|error| panic!("{error}"))
    }

    /// `rounds` times: both call each other at the same instant, both get the one session, both hear each other on it,
    /// both are done with it, and nothing of it is left at either. How often the calls met: where the machine stops the
    /// thread between the two, the first may be there before the second is made, and then each has a session of its own.
    ///
    /// # Errors
    /// The round that went otherwise, and how.
    pub fn meet(&self, rounds: u32) -> Result<u32> {
        let pair = self.pair.clone();
        self.run(async move {
            let mut met = 0;
            for round in 0..rounds {
                let once = pair.meet_once().await;
                met += u32::from(once.with_context(|| format!("round {round} of {rounds}"))?);
            }
            Ok(met)
        })
    }
}

impl Pair {
    /// Calls the other, as the agent of number `n`.
    pub async fn call(&self, n: usize) -> Result<Called> {
        let target = self.names[1 - n].clone();
        let called = self.agents[n].call(target, self.service.clone());
        timeout(ANSWERED, called).await.with_context(|| format!("{}: no answer", self.names[n]))
    }

    /// Whether the calls met.
    async fn meet_once(&self) -> Result<bool> {
        let (a, b) = tokio::join!(self.call(0), self.call(1));
        let (a, b) = (a?.context("the first was refused")?, b?.context("the second was refused")?);
        let met = a.id == b.id;
        if met {
            ensure!(a.outgoing != b.outgoing, "both are the caller of {}", a.id);
            let one = BTreeSet::from([a.id.to_string()]);
            ensure!(self.running().await? == [one.clone(), one], "more than one session");
        } else {
            ensure!(a.outgoing && b.outgoing, "{} and {} are crossed", a.id, b.id);
        }
        self.hold(&[&a, &b]).await?;
        drop((a, b));
        self.wait_until_over().await?;
        Ok(met)
    }

    /// The sessions that each agent has.
    async fn running(&self) -> Result<[BTreeSet<String>; 2]> {
        let mut found = [BTreeSet::new(), BTreeSet::new()];
        for (found, agent) in found.iter_mut().zip(&self.agents) {
            let sessions = agent.sessions().await?.into_iter();
            found.extend(sessions.filter(|one| one.state != "ended").map(|one| one.id));
        }
        Ok(found)
    }

    /// Waits until neither agent has a session, a call or a path.
    ///
    /// # Errors
    /// What is left when the time is over.
    pub async fn wait_until_over(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let running = self.running().await?;
            let mut left: usize = running.iter().map(BTreeSet::len).sum();
            for agent in &self.agents {
                left += agent.paths().await?.len() + agent.status().await?.sessions;
            }
            if left == 0 {
                return Ok(());
            }
            ensure!(begun.elapsed() < AGREED, "{left} left: {running:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until both agents have the same sessions: those that users hold here and that are not over. Then those
    /// carry data both ways. So nothing is half-open.
    ///
    /// # Errors
    /// What one has and the other has not.
    pub async fn hold(&self, held: &[&Session]) -> Result<()> {
        let begun = Instant::now();
        loop {
            let [a, b] = self.running().await?;
            let alive = held.iter().filter(|session| session.ended.borrow().is_none());
            let alive: BTreeSet<String> = alive.map(|session| session.id.to_string()).collect();
            if a == b && a == alive {
                break;
            }
            if begun.elapsed() > AGREED {
                bail!("one has {a:?}, the other {b:?}, their users {alive:?}");
            }
            tokio::time::sleep(POLL).await;
        }
        if let [a, b] = held
            && a.id == b.id
            && a.ended.borrow().is_none()
        {
            hear_each_other(a, b).await?;
        }
        Ok(())
    }
}

/// Each side opens a stream and the other reads what it says.
async fn hear_each_other(a: &Session, b: &Session) -> Result<()> {
    let both = async { tokio::try_join!(hear(a, b), hear(b, a)) };
    timeout(HEARD, both).await.with_context(|| format!("{}: not heard", a.id))??;
    Ok(())
}

async fn hear(from: &Session, to: &Session) -> Result<()> {
    let said = from.peer.as_str().as_bytes();
    let (mut send, _) = from.connection.open_bi().await?;
    send.write_all(said).await?;
    send.finish()?;
    let (_, mut recv) = to.connection.accept_bi().await?;
    let heard = recv.read_to_end(limits::SESSION_ANSWER_BYTES).await?;
    ensure!(heard == said, "{heard:?}");
    Ok(())
}

/// The ids of what two calls came to, for people.
pub fn came_to(called: [&Called; 2]) -> [Result<SessionId, Refusal>; 2] {
    called.map(|one| one.as_ref().map(|session| session.id).map_err(Clone::clone))
}
