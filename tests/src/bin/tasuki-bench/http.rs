//! The status endpoint of one relay whose table has many terminals: a page, a search, and how many requests it answers.
//!
//! The core and the HTTP service are the relay's own, in this process; clients come over TCP on loopback, one request at
//! a time on each connection. What the core does for one answer is what a call has to wait for at most.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_proto::identity::Signer;
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::rows::{self, AccountRow};
use tasuki_proto::{Incarnation, MeshId, MeshName, Refusal, RefusalCode, RelayId, RelayName};
use tasuki_relay::core::links::LinkChoice;
use tasuki_relay::core::{Config, Input, Output, Relay};
use tasuki_relay::io::http::{
    Admin, AdminCall, AdminToken, Node, Revoker, Security, Service, serve_tcp,
};
use tasuki_tests::lab::bins::workspace;
use tasuki_tests::lab::process;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::Options;
use crate::report::Report;
use crate::rounds::percentile;

#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// Terminals in the table.
    #[arg(long, default_value_t = 100_000)]
    terminals: u32,
    /// Connections that ask at once, for the number of requests per second.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Search in the console too: needs node, chromium and `npm ci --prefix tests/console`.
    #[arg(long)]
    browser: bool,
}

const MESH: MeshId = MeshId([5; 16]);
/// Requests of each kind that are timed by themselves.
const TIMED: usize = 200;
/// For all of the browser's searches.
const BROWSER: Duration = Duration::from_secs(120);
/// Questions that wait for the core.
const QUESTIONS: usize = 64;

struct Nobody;

impl Revoker for Nobody {
    fn revoke(&self, _: Node) -> futures::Revoked<'_> {
        Box::pin(async { Err(Refusal::from(RefusalCode::NotRegistrar)) })
    }
}

mod futures {
    use std::pin::Pin;

    pub(super) type Revoked<'a> =
        Pin<Box<dyn Future<Output = Result<(), tasuki_proto::Refusal>> + Send + 'a>>;
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let relay = filled(flags.terminals)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (slowest, address) = runtime.block_on(serve(relay))?;
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut client = Client::connect(address)?;
    // The first look at each account checks its signature.
    let begun = Instant::now();
    client.get("/api/v1/terminals?q=no-such-terminal")?;
    let first = begun.elapsed();
    let page = |rng: &mut StdRng| {
        let after = name(rng.random_range(0..flags.terminals));
        format!("/api/v1/terminals?limit=100&after={after}")
    };
    let search = |rng: &mut StdRng| {
        format!("/api/v1/terminals?limit=100&q={:04}", rng.random_range(0..10_000))
    };
    let pages = time(&mut client, || page(&mut rng))?;
    let mut rng = StdRng::seed_from_u64(options.seed);
    let searches = time(&mut client, || search(&mut rng))?;
    slowest.reset();
    let time = Duration::from_secs(options.secs.unwrap_or(5));
    let answered = std::thread::scope(|scope| -> Result<u64> {
        let clients: Vec<_> = (0..flags.clients as u64)
            .map(|n| {
                let mut rng = StdRng::seed_from_u64(options.seed ^ n << 8);
                scope.spawn(move || -> Result<u64> {
                    let mut client = Client::connect(address)?;
                    let (begun, mut count) = (Instant::now(), 0);
                    while begun.elapsed() < time {
                        client.get(&page(&mut rng))?;
                        count += 1;
                    }
                    Ok(count)
                })
            })
            .collect();
        let counts = clients.into_iter().map(|one| one.join().map_err(|_| anyhow!("a client"))?);
        counts.sum()
    })?;
    let report = Report::default()
        .with("terminals", f64::from(flags.terminals))
        .with("first_search_ms", first.as_secs_f64() * 1e3)
        .with("page_of_100_p50_ms", percentile(&pages, 0.5))
        .with("page_of_100_p99_ms", percentile(&pages, 0.99))
        .with("search_p50_ms", percentile(&searches, 0.5))
        .with("search_p99_ms", percentile(&searches, 0.99))
        .with("pages_per_s", answered as f64 / time.as_secs_f64())
        .with("core_answer_max_ms", slowest.get().as_secs_f64() * 1e3);
    if flags.browser { searched_in_console(report, address) } else { Ok(report) }
}

/// Adds what searches in a browser took.
fn searched_in_console(report: Report, address: SocketAddr) -> Result<Report> {
    let mut command = Command::new("node");
    command.current_dir(workspace().join("tests/console"));
    let done = process::run(command.args(["search.mjs", &format!("http://{address}/")]), BROWSER);
    ensure!(done.code == 0, "the browser: {}\n{}", done.text(), done.stderr);
    let text = done.text();
    let figures: BTreeMap<String, f64> =
        serde_json::from_str(text.lines().last().unwrap_or_default()).context("no figures")?;
    Ok(figures
        .iter()
        .fold(report, |report, (name, value)| report.with(&format!("console_{name}"), *value)))
}

fn name(number: u32) -> String {
    format!("plant-{:03}-{number:06}", number % 997)
}

/// A relay that knows so many accounts.
fn filled(terminals: u32) -> Result<Relay> {
    let authority = Signer::from_seed(&[5; 32]);
    let config = Config {
        name: RelayName::new("r1")?,
        mesh: MeshName::new("m")?,
        mesh_id: MESH,
        addresses: vec!["r1:4433".to_owned()],
        registrar: true,
        incarnation: Incarnation(1),
        authority: (Incarnation(1), authority.public()),
        signer: Signer::from_seed(&[6; 32]),
        links: LinkChoice::Auto,
        terminals: 10,
        sessions: 10,
        seed: [1; 32],
        started_ms: 1,
    };
    let now = Instant::now();
    let mut relay = Relay::new(config, now);
    let attributes = BTreeMap::from([("site".to_owned(), "north".to_owned())]);
    for number in 0..terminals {
        let kind = ["sensor", "camera", "gate"][number as usize % 3].to_owned();
        let row = AccountRow {
            kind,
            attributes: attributes.clone(),
            groups: vec![],
            key: None,
            registered_ms: 1,
        };
        let (name, payload) = (name(number), rows::payload(&row));
        let draft = Draft {
            origin: RelayId::AUTHORITY,
            kind: RecordKind::ACCOUNT,
            key: name.as_bytes(),
            version: Version { incarnation: Incarnation(1), sequence: u64::from(number) + 1 },
            wall_ms: 2_000,
            scope: 0,
            lifetime_secs: 0,
            tombstone: false,
            payload: &payload,
        };
        relay.handle(Input::Authority(Record::new(&draft)), now, 2_000);
        while relay.poll_output().is_some() {}
    }
    Ok(relay)
}

/// The longest time that the core took for an answer.
#[derive(Clone, Default)]
struct Slowest(Arc<std::sync::Mutex<Duration>>);

impl Slowest {
    fn get(&self) -> Duration {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn reset(&self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Duration::ZERO;
    }

    fn see(&self, took: Duration) {
        let mut longest = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *longest = took.max(*longest);
    }
}

async fn serve(relay: Relay) -> Result<(Slowest, SocketAddr)> {
    let (inbox, asked) = mpsc::channel(QUESTIONS);
    let slowest = Slowest::default();
    tokio::spawn(answer(relay, asked, slowest.clone()));
    let admin = Admin::new(inbox);
    let events = tasuki_relay::io::http::Events::start(admin.clone(), RelayName::new("r1")?);
    let token = AdminToken::new("a token that nobody uses")?;
    let service = Service { admin, events, token, revoker: Arc::new(Nobody), metrics: Vec::new() };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve_tcp(listener, service, Security::loopback(), std::future::pending()));
    Ok((slowest, address))
}

/// What a relay's driver does for operators, and nothing else.
async fn answer(mut relay: Relay, mut asked: mpsc::Receiver<AdminCall>, slowest: Slowest) {
    while let Some((request, reply)) = asked.recv().await {
        let begun = Instant::now();
        relay.handle(Input::Admin(1, request), begun, 2_000);
        let mut answer = None;
        while let Some(output) = relay.poll_output() {
            if let Output::Reply(1, found) = output {
                answer = Some(*found);
            }
        }
        slowest.see(begun.elapsed());
        if let Some(answer) = answer {
            let _ = reply.send(answer);
        }
    }
}

/// How long each of some requests took, ms, ascending.
fn time(client: &mut Client, mut path: impl FnMut() -> String) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(TIMED);
    for _ in 0..TIMED {
        let path = path();
        let begun = Instant::now();
        client.get(&path)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// One connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    body: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Client { stream: BufReader::new(stream), body: Vec::new() })
    }

    /// Asks and reads the whole answer, which has to be a success.
    pub(crate) fn get(&mut self, path: &str) -> Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut length) = (String::new(), None);
        self.stream.read_line(&mut line)?;
        ensure!(line.starts_with("HTTP/1.1 200"), "{path}: {line}");
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((field, value)) = line.trim_end().split_once(':') else { break };
            if field.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse::<usize>()?);
            }
        }
        self.body.resize(length.context("no length")?, 0);
        self.stream.read_exact(&mut self.body)?;
        Ok(())
    }
}
