//! Agents as a library, in the test's own process: what they are told happens at the instant that the test chooses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tasuki_proto::enrolment::load_relays;
use tasuki_proto::identity::{Clock, Identity, IdentityCell};
use tasuki_proto::net::Periods;
use tasuki_proto::traces::Traces;
use tasuki_proto::{RelayName, ServiceName};
use tasuki_terminal::agent::{Agent, Session, Upper};
use tasuki_terminal::core::access::{AccessRules, Allowed};
use tasuki_terminal::core::login::RelayChoice;
use tasuki_terminal::core::paths;
use tasuki_terminal::io::driver::{self, Settings};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::netns::Namespace;

/// How long a log-in may take.
const ATTACHED: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(5);

/// Starts an agent with the identity that `enroll` left in `data`, at one relay and no other, and waits for its log-in.
/// It runs on the runtime that this is called from, until every clone of it is dropped.
///
/// # Errors
/// When there is no identity, or no log-in in time.
pub async fn start(data: &Path, relay: &RelayName, access: AccessRules) -> Result<Agent> {
    start_overheard(data, relay, access, None).await
}

/// As [`start`]; what the agent says to its relays is copied to `overheard`.
///
/// # Errors
/// As [`start`].
pub async fn start_overheard(
    data: &Path,
    relay: &RelayName,
    access: AccessRules,
    overheard: Option<Arc<Mutex<Vec<u8>>>>,
) -> Result<Agent> {
    let identity = Identity::load(data)?.context("no identity")?;
    let settings = Settings {
        traces: Traces::default(),
        identity: IdentityCell::new(identity),
        clock: Clock::system(0),
        dialler: tasuki_proto::dial::Dialler::default(),
        contacts: load_relays(data)?,
        relays: RelayChoice::Names([relay.clone()].into()),
        periods: Periods::default(),
        paths: paths::Config::default(),
        port_mapping: false,
        listen: (Ipv6Addr::UNSPECIFIED, 0).into(),
        kept_contacts: tokio::sync::watch::Sender::default(),
        kept_epoch: tokio::sync::watch::Sender::default(),
        overheard,
    };
    // Nobody here serves what the other side opens.
    let (sessions, mut incoming) = mpsc::channel::<Session>(1);
    tokio::spawn(async move { while incoming.recv().await.is_some() {} });
    let agent = driver::start(settings, Upper { access: Arc::new(access), incoming: sessions })?;
    wait_state(&agent, "logged-in").await?;
    Ok(agent)
}

/// Waits until the agent says that it is in this state.
///
/// # Errors
/// When it is not in time, or gone.
pub async fn wait_state(agent: &Agent, state: &str) -> Result<()> {
    let begun = Instant::now();
    while agent.status().await?.state != state {
        ensure!(begun.elapsed() < ATTACHED, "not {state} after {ATTACHED:?}");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// A runtime of one thread, whose sockets are in a namespace where one is given.
///
/// # Errors
/// When no thread can be had.
pub fn runtime(namespace: Option<&Namespace>) -> Result<Runtime> {
    let make =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    // Its threads are in the namespace of the thread that makes it.
    Ok(match namespace {
        Some(namespace) => namespace.enter(make)?,
        None => make()?,
    })
}

/// Rules that open one service to everybody.
pub fn open(service: &ServiceName) -> AccessRules {
    AccessRules {
        exposed: BTreeSet::from([service.clone()]),
        allowed: BTreeMap::from([(service.clone(), Allowed::Everybody)]),
    }
}
