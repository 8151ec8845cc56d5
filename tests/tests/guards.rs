//! What a relayed packet may cost, in figures that do not depend on the machine's speed: allocations, system calls,
//! instructions. A change that makes the data plane dearer fails here, not in a timed run.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use quinn::udp::EcnCodepoint;
use tasuki_proto::Label;
use tasuki_proto::frame::{self, FrameKind, NeighbourKey};
use tasuki_proto::net::CidClass;
use tasuki_relay::switch::{Address, Batch, Drops, Entry, Forwarder, Neighbour, Sink, Table};
use tasuki_tests::lab::process::run;
use tasuki_tests::lab::programs::Iperf;
use tasuki_tests::lab::{MeshSpec, RelaySpec, TerminalSpec};

/// The length of a frame on an Ethernet.
const FRAME: usize = 1_452;
/// What the kernel joins at most.
const JOINED: usize = 45;
/// Labels that take turns, so that no look-up is the same as the one before.
const LABELS: u64 = 64;

/// Counts what leaves the switch, and keeps challenges.
#[derive(Default)]
struct Out {
    frames: usize,
    challenges: Vec<(Address, Vec<u8>)>,
}

impl Sink for Out {
    fn forward(
        &mut self,
        _: &Arc<Neighbour>,
        _: Address,
        _: Option<EcnCodepoint>,
        frames: &[u8],
        stride: usize,
    ) {
        self.frames += frames.len().div_ceil(stride);
    }

    fn reply(&mut self, to: Address, frame: &[u8]) {
        self.challenges.push((to, frame.to_vec()));
    }

    fn moved(&mut self, _: &Arc<Neighbour>, _: Address) {}

    fn own(&mut self, _: CidClass, _: Address, _: Option<EcnCodepoint>, _: &[u8]) {}
}

fn label(n: u64) -> Label {
    Label::new(n).unwrap()
}

fn address(port: u16) -> Address {
    Address { remote: ([127, 0, 0, 1], port).into(), local: None }
}

/// A switch between two neighbours that have proven their addresses, with [`LABELS`] labels one way.
fn switch() -> Forwarder {
    let table = Arc::new(Table::default());
    let forwarder = Forwarder::new(table.clone(), Arc::new(Drops::default()), &[9; 32]);
    // The token bucket is asked each time, and says yes.
    table.pace.set(Some(u32::MAX));
    let key = |n: u16| NeighbourKey::new(&[n as u8; 32]);
    let [from, to] = [1_u16, 2].map(|n| {
        let neighbour = Arc::new(Neighbour::new(label(1_000 + u64::from(n)), key(n), address(n)));
        table.add_neighbour(neighbour.clone());
        neighbour
    });
    for n in 1..=LABELS {
        let entry = Entry {
            from: from.clone(),
            to: to.clone(),
            label_out: label(10_000 + n),
            counters: Arc::default(),
            to_callee: true,
        };
        table.install(label(n), entry);
    }
    let mut out = Out::default();
    forwarder.challenge_hints(1, &mut out);
    for (to, challenge) in std::mem::take(&mut out.challenges) {
        let (cookie, _) = frame::parse_proof(&challenge).unwrap();
        let (_, handle) = frame::parse(&challenge).unwrap();
        let mut echo = frame::echo(handle, cookie, &key(to.remote.port()));
        let stride = echo.len();
        let mut batch = Batch { source: to, ecn: None, bytes: &mut echo, stride };
        forwarder.handle(&mut batch, 2, &mut out);
    }
    forwarder
}

/// A batch as the kernel joins it: `frames` of one label.
fn batch_of(number: u64, frames: usize) -> Vec<u8> {
    let one = [&frame::head(FrameKind::Data, label(number))[..], &[7; FRAME - frame::HEAD]];
    one.concat().repeat(frames)
}

/// Forwards `rounds` joined batches and as many single frames; returns how many frames left.
fn forward(forwarder: &Forwarder, batches: &mut [Vec<u8>], rounds: usize) -> usize {
    let mut out = Out::default();
    for round in 0..rounds {
        let count = batches.len();
        let bytes = &mut batches[round % count];
        let number = label(1 + (round as u64) % LABELS);
        for datagram in bytes.chunks_mut(FRAME) {
            frame::relabel(datagram, number);
        }
        let mut batch = Batch { source: address(1), ecn: None, bytes, stride: FRAME };
        forwarder.handle(&mut batch, 3, &mut out);
    }
    out.frames
}

#[test]
fn no_packet_allocates() {
    const ROUNDS: usize = 1_000;
    let forwarder = switch();
    let mut batches = vec![batch_of(1, JOINED), batch_of(2, 1)];
    // The first look at a shared pointer makes room for its readers' bookkeeping, once a thread.
    assert_eq!(forward(&forwarder, &mut batches, 2), JOINED + 1);
    let mut frames = 0;
    let seen = allocation_counter::measure(|| frames = forward(&forwarder, &mut batches, ROUNDS));
    assert_eq!(frames, ROUNDS / 2 * (JOINED + 1), "all were forwarded");
    assert_eq!(seen.count_total, 0, "{seen:?}");
}

/// What a frame may cost in instructions: what was measured (3,834 and 407, in release builds 452 and 45, before the
/// token bucket; 4,316 and 417, 520 and 46 with it) and a quarter of the first.
const DEBUG_ALONE: i64 = 4_800;
const DEBUG_JOINED: i64 = 510;
const RELEASE_ALONE: i64 = 565;
const RELEASE_JOINED: i64 = 56;

/// How many batches of the sort `switch_for_callgrind` forwards.
const ROUNDS: &str = "TASUKI_GUARD_ROUNDS";
const FRAMES: &str = "TASUKI_GUARD_FRAMES";

/// What callgrind counts; by itself it only shows that all is forwarded.
#[test]
fn switch_for_callgrind() {
    let number = |name: &str, default: usize| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap())
    };
    let (rounds, frames) = (number(ROUNDS, 10), number(FRAMES, JOINED));
    let mut batches = vec![batch_of(1, frames)];
    assert_eq!(forward(&switch(), &mut batches, rounds), rounds * frames);
}

/// Instructions of a whole run under callgrind.
fn instructions(rounds: usize, frames: usize) -> i64 {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "switch_for_callgrind", "--test-threads=1"])
        .env(ROUNDS, rounds.to_string())
        .env(FRAMES, frames.to_string());
    let done = run(&mut command, Duration::from_secs(120));
    let text = format!("{}{}", done.stderr, done.text());
    let count = text.lines().find_map(|line| line.split_once("Collected :"));
    let (_, count) = count.unwrap_or_else(|| panic!("callgrind said: {text}"));
    count.trim().parse().unwrap()
}

/// The difference of two runs leaves nothing but the batches.
fn instructions_per_batch(frames: usize) -> i64 {
    const FEW: usize = 200;
    const MANY: usize = 1_200;
    (instructions(MANY, frames) - instructions(FEW, frames)) / (MANY - FEW) as i64
}

/// The switch's own work, without the kernel's: for a frame that comes alone, and for each of a joined batch.
#[test]
fn a_packet_costs_few_instructions() {
    let alone = instructions_per_batch(1);
    let joined = instructions_per_batch(JOINED) / JOINED as i64;
    println!("instructions: {alone} for a frame alone, {joined} for each of {JOINED} joined");
    let (most_alone, most_joined) = if cfg!(debug_assertions) {
        (DEBUG_ALONE, DEBUG_JOINED)
    } else {
        (RELEASE_ALONE, RELEASE_JOINED)
    };
    assert!(alone <= most_alone, "{alone} for a frame alone");
    assert!(joined <= most_joined, "{joined} for a frame of a joined batch");
}

/// Calls of `name` that strace counted.
fn calls(report: &str, name: &str) -> f64 {
    let line = report.lines().find(|line| line.split_whitespace().last() == Some(name));
    let count = line.and_then(|line| line.split_whitespace().nth(3));
    count.unwrap_or_else(|| panic!("no {name} in {report}")).parse().unwrap()
}

/// Frames stay together from the terminal that sends them through the relay: a send for about forty.
#[test]
fn a_megabyte_costs_a_relay_few_system_calls() {
    if !tasuki_tests::lab::have("strace", "system calls of a relay") {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let iperf = Iperf::start(&site.path().join("iperf.log"), None);
    let service = format!("tcp://{}", iperf.address());
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]))
        .terminal(TerminalSpec::new("b").relayed().at(&["r1"]).offers("iperf", &service))
        .start();
    let (_forward, address) = mesh.terminal("a").forward("b/iperf");
    // The session has found its packets' size, and its window.
    Iperf::measure(address, 1, None);
    let carried = || -> u64 {
        let sessions = mesh.relay("r1").sessions().unwrap();
        sessions.iter().filter_map(|session| session["bytes_to_callee"].as_u64()).sum()
    };
    let report = site.path().join("calls");
    let before = carried();
    let mut strace = trace(mesh.relay("r1").pid().unwrap(), &report);
    Iperf::measure(address, 3, None);
    strace.signal(tasuki_tests::lab::process::Signal::Interrupt);
    strace.wait(Duration::from_secs(10));
    let megabytes = (carried() - before) as f64 / 1e6;
    let text = std::fs::read_to_string(&report).unwrap();
    let [sends, receives] = ["sendmsg", "recvmmsg"].map(|name| calls(&text, name) / megabytes);
    println!("{megabytes:.0} MB; for each {sends:.1} sends, {receives:.1} receives");
    assert!(megabytes > 10.0, "only {megabytes} MB");
    assert!(sends < 60.0, "{sends} sends a megabyte");
    assert!(receives < 60.0, "{receives} receives a megabyte");
}

fn trace(pid: u32, report: &Path) -> tasuki_tests::lab::process::Process {
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-e", "trace=sendmsg,recvmmsg", "-o"]).arg(report);
    command.args(["-p", &pid.to_string()]);
    tasuki_tests::lab::process::Process::spawn(
        "strace",
        &mut command,
        &report.with_extension("log"),
    )
}

/// The name of a thread, how nice it is, and its scheduling policy (proc(5), `stat`).
fn scheduling(stat: &Path) -> Option<(String, i64, i64)> {
    let text = std::fs::read_to_string(stat).ok()?;
    let (head, rest) = text.rsplit_once(") ")?;
    let name = head.split_once('(')?.1.to_owned();
    // The state is the third field, how nice it is the nineteenth, the policy the 41st.
    let field = |number: usize| rest.split(' ').nth(number - 3)?.parse().ok();
    Some((name, field(19)?, field(41)?))
}

fn threads_of(pid: u32) -> Vec<(String, i64, i64)> {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .filter_map(|task| scheduling(&task.unwrap().path().join("stat")))
        .collect()
}

/// `SCHED_BATCH` and `SCHED_OTHER` (sched(7)).
const BATCH: i64 = 3;
const OTHER: i64 = 0;

/// The threads of a relay's switch come before its other ones (ADR 34), which are as nice as the relay was started. Who moves
/// packets takes no processor away from a thread that runs.
#[test]
fn packets_come_before_control() {
    let mesh = MeshSpec::new().relay(RelaySpec::new("r1")).terminal(TerminalSpec::new("a")).start();
    let (_, own, _) = scheduling(Path::new("/proc/thread-self/stat")).unwrap();
    let threads = threads_of(mesh.relay("r1").pid().unwrap());
    let (packets, others): (Vec<_>, Vec<_>) =
        threads.into_iter().partition(|(name, ..)| name.starts_with("switch-"));
    // Without the right to it they stay.
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let ahead = if is_root { (own - 7).max(-20) } else { own };
    let first = |thread: &(String, i64, i64)| (thread.1, thread.2) == (ahead, BATCH);
    let then = |thread: &(String, i64, i64)| (thread.1, thread.2) == (own, OTHER);
    assert!(!packets.is_empty() && packets.iter().all(first), "{packets:?}");
    assert!(others.len() > 1 && others.iter().all(then), "{others:?}");
    // An agent's threads move packets too.
    let agent = threads_of(mesh.terminal("a").pid().unwrap());
    let workers: Vec<_> = agent.iter().filter(|(name, ..)| name.starts_with("tokio")).collect();
    assert!(!workers.is_empty() && workers.iter().all(|thread| thread.2 == BATCH), "{agent:?}");
}
