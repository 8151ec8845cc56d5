//! Names with several addresses, slow look-ups, and renewal over them.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::netns::{Namespace, Wan};
use tasuki_tests::lab::process::{Done, Process, run};
use tasuki_tests::lab::{eventually, have, left_out};

/// What a person waits for without wondering, on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);
/// The relay's name in hosts files and name servers.
const NAME: &str = "relay.example";
const DAY: u64 = 86_400;
/// Addresses at which nobody answers: the first one is the relay's own, behind a filter.
const DEAD: [&str; 3] = ["2001:db8::1", "2001:db8::66", "203.0.113.66"];

/// Files that a namespace sees in the place of those in `/etc`; they go away with this.
struct Etc(PathBuf);

impl Etc {
    fn of(host: &Namespace) -> Self {
        let folder = Path::new("/etc/netns").join(host.name());
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }

    /// Has the relay's name lead to these addresses.
    fn hosts(&self, addresses: &[&str]) {
        let line = |address: &&str| format!("{address} {NAME}\n");
        self.write("hosts", &addresses.iter().map(line).collect::<String>());
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A machine with a relay or a terminal on it.
struct Machine {
    name: &'static str,
    host: Namespace,
    etc: Etc,
    data: PathBuf,
    log: PathBuf,
    program: &'static Path,
    process: Option<Process>,
}

impl Machine {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(self.program);
        command.arg("--data").arg(&self.data).args(arguments);
        command
    }

    fn verb(&self, arguments: &[&str]) -> Done {
        run(&mut self.command(arguments), LIMIT)
    }

    fn start(&mut self, arguments: &[&str]) {
        let mut command = self.command(&["run", "--log", "info"]);
        command.args(arguments);
        self.process = Some(Process::spawn(self.name, &mut command, &self.log));
    }

    /// Starts it `days` later than it is.
    fn start_late(&mut self, days: u64, clock: &Path, arguments: &[&str]) {
        let mut command = self.command(&["run", "--log", "info"]);
        command
            .args(arguments)
            .env("LD_PRELOAD", clock)
            .env("CLOCK_OFFSET", (days * DAY).to_string());
        self.process = Some(Process::spawn(self.name, &mut command, &self.log));
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn status(&self) -> Result<Value, String> {
        let done = self.verb(&["status", "--json"]);
        match done.code {
            0 => Ok(done.json()),
            _ => Err(done.stderr),
        }
    }

    /// Waits until `field` of the status is as it should be.
    fn wait(&self, what: &str, limit: Duration, is: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("{}: {what}", self.name), limit, || {
            let status = self.status()?;
            if is(&status) { Ok(status) } else { Err(format!("{status}\n{}", self.log())) }
        })
    }

    fn wait_logged_in(&self, limit: Duration) {
        self.wait("logged in", limit, |status| status["state"] == "logged-in");
    }
}

/// The machines of one test; fields are dropped in this order.
struct Lab {
    machines: Vec<Machine>,
    wan: Wan,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new(what: &str) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("tsk").tempdir().unwrap();
        Some(Self { machines: Vec::new(), wan: Wan::new(what)?, folder })
    }

    fn machine(&mut self, name: &'static str, octet: u8, program: &'static Path) -> Machine {
        let host = self.wan.dual_host(name, octet);
        let path = |end: &str| self.folder.path().join(format!("{name}{end}"));
        let etc = Etc::of(&host);
        etc.hosts(&["203.0.113.1"]);
        Machine { name, host, etc, data: path(""), log: path(".log"), program, process: None }
    }

    /// The first relay, known to everybody by its name alone. IPv6 does not get through to it.
    fn registrar(&mut self) -> Machine {
        let relay = self.machine("r1", 1, &Bins::find().relay);
        relay.host.nft(
            "table ip6 filter {\n chain in {\n type filter hook input priority 0\n \
             udp dport 4433 drop\n }\n}\n",
        );
        let advertise = format!("{NAME}:4433");
        relay.verb(&["init", "--name", "r1", "--mesh", "m", "--advertise", &advertise]).ok();
        relay
    }

    fn terminal(&mut self, name: &'static str, octet: u8) -> Machine {
        self.machine(name, octet, &Bins::find().agent)
    }
}

fn token(registrar: &Machine, arguments: &[&str]) -> String {
    eventually("a token", LIMIT, || {
        let done = registrar.verb(&[&["token"], arguments].concat());
        if done.code == 0 { Ok(done.text()) } else { Err(format!("{done:?}")) }
    })
}

/// A library that sets the wall clock of a program on by `CLOCK_OFFSET` seconds.
fn clock(folder: &Path) -> Option<PathBuf> {
    const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *at) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, at);
  const char *offset = getenv("CLOCK_OFFSET");
  if (clock == CLOCK_REALTIME && offset) at->tv_sec += atol(offset);
  return result;
}
"#;
    if !have("cc", "a machine with a later date") {
        return None;
    }
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    fs::write(&source, SOURCE).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    run(&mut cc, LIMIT).ok();
    Some(library)
}

#[test]
fn a_name_with_dead_addresses_serves_for_everything_that_is_dialled() {
    let Some(mut lab) = Lab::new("names with dead addresses") else { return };
    let mut r1 = lab.registrar();
    let (mut a, mut b) = (lab.terminal("a", 10), lab.terminal("b", 12));
    let mut r2 = lab.machine("r2", 2, &Bins::find().relay);
    let addresses = [&DEAD[..], &["203.0.113.1"]].concat();
    for machine in [&a, &b, &r2] {
        machine.etc.hosts(&addresses);
    }
    r1.start(&[]);

    let begun = Instant::now();
    a.verb(&["enroll", &token(&r1, &["terminal", "a"])]).ok();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "enrolled after {took:?}");
    b.verb(&["enroll", &token(&r1, &["terminal", "b"])]).ok();
    let join = ["join", &token(&r1, &["relay"]), "--name", "r2", "--advertise", "203.0.113.2:4433"];
    r2.verb(&join).ok();

    r2.start(&[]);
    r2.wait("linked", LIMIT, |status| status["links"][0]["relay"] == "r1");
    // The self-test: r2 knocks at all addresses of the name, and one of them is the relay's.
    r1.wait("reached from outside", LIMIT, |status| {
        status["reachable_from_outside"][0]["reachable"] == "yes"
    });

    // A service whose name has dead addresses too.
    b.etc.write(
        "hosts",
        &[&DEAD[1..], &["203.0.113.12"]]
            .concat()
            .iter()
            .map(|address| format!("{address} service.example\n"))
            .chain(addresses.iter().map(|address| format!("{address} {NAME}\n")))
            .collect::<String>(),
    );
    let (tcp, udp) = b.host.enter(|| {
        let at = |port| (Ipv4Addr::new(203, 0, 113, 12), port);
        (TcpListener::bind(at(7001)).unwrap(), UdpSocket::bind(at(7002)).unwrap())
    });
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = tcp.accept().unwrap();
        stream.write_all(b"here").unwrap();
    });
    udp.set_read_timeout(Some(LIMIT)).unwrap();
    let echoing = std::thread::spawn(move || {
        let mut packet = [0; 64];
        let (length, from) = udp.recv_from(&mut packet).unwrap();
        udp.send_to(&packet[..length], from).unwrap();
    });
    let exposed = ["t=tcp://service.example:7001", "u=udp://service.example:7002"];
    b.start(&["--expose", exposed[0], "--expose", exposed[1], "--allow", "t=*", "--allow", "u=*"]);
    a.start(&[]);
    a.wait_logged_in(LIMIT);
    b.wait_logged_in(LIMIT);
    let done = run(&mut a.command(&["dial", "b/t"]), LIMIT);
    assert_eq!(done.stdout, b"here", "{done:?}\n{}", b.log());
    serving.join().unwrap();

    let mut forward = a.command(&["forward", "udp:127.0.0.1:7999", "b/u"]);
    let _forward = Process::spawn("forward", &mut forward, &lab.folder.path().join("forward.log"));
    let client = a.host.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    eventually("an answer over UDP", LIMIT, || {
        let _ = client.send_to(b"ping", "127.0.0.1:7999");
        let mut packet = [0; 64];
        client.recv(&mut packet).map_err(|error| error.to_string())
    });
    echoing.join().unwrap();
    lab.machines.extend([a, b, r2, r1]);
}

#[test]
fn a_certificate_is_renewed_over_the_address_that_works_and_a_failure_is_shown() {
    let Some(mut lab) = Lab::new("renewal over a name with dead addresses") else { return };
    let Some(clock) = clock(lab.folder.path()) else { return };
    let mut r1 = lab.registrar();
    let mut r2 = lab.machine("r2", 2, &Bins::find().relay);
    let (mut a, mut b) = (lab.terminal("a", 10), lab.terminal("b", 12));
    r1.start(&[]);
    for terminal in [&a, &b] {
        terminal.verb(&["enroll", &token(&r1, &["terminal", terminal.name])]).ok();
    }
    r2.verb(&["join", &token(&r1, &["relay"]), "--name", "r2", "--advertise", "203.0.113.2:4433"])
        .ok();
    r1.process = None;

    // Day 24 of 30, and nobody answers: the terminal and the relay say so, and for how long they last.
    for machine in [&a, &b, &r2] {
        machine.etc.hosts(&[&DEAD[..], &["203.0.113.1"]].concat());
    }
    a.start_late(24, &clock, &[]);
    r2.start_late(24, &clock, &[]);
    // Day 31: locked out, and it says why.
    b.start_late(31, &clock, &[]);
    let status =
        a.wait("a failed renewal", LIMIT, |status| status["renewal"]["tries"].as_u64() >= Some(1));
    let why = status["renewal"]["why"].as_str().unwrap();
    assert!(why.contains("no relay could be reached") && why.contains("203.0.113.1"), "{why}");
    let text = a.verb(&["status"]).ok().text();
    assert!(text.contains("renewals fail for"), "{text}");
    let status =
        b.wait("locked out", LIMIT, |status| status["renewal"]["tries"].as_u64() >= Some(1));
    let why = status["why"].as_str().unwrap_or_default();
    assert!(why.starts_with("certificate-expired: this node's certificate ended"), "{status}");
    assert!(why.contains("no relay could be reached"), "{status}");
    r2.wait("a failed renewal", LIMIT, |status| status["renewal"]["tries"].as_u64() >= Some(1));
    let text = r2.verb(&["status"]).ok().text();
    assert!(text.contains("renewals fail for"), "{text}");
    let findings = r2.verb(&["check", "--json"]).json();
    let renewal = findings.as_array().unwrap().iter().find(|one| one["check"] == "renewal");
    assert_eq!(renewal.unwrap()["level"], "warning", "{findings}");
    let metrics = r2.host.enter(|| {
        let mut stream = std::net::TcpStream::connect("127.0.0.1:8433").unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    assert!(metrics.contains("\ntasuki_certificate_renewal_failing 1\n"), "{metrics}");

    // The relay is back: whoever was due is renewed over the one address that works, also who was locked out.
    r1.start_late(24, &clock, &[]);
    for machine in [&a, &r2] {
        machine.wait("renewed", LIMIT, |status| status["renewal"].is_null());
        assert!(machine.log().contains("was renewed"), "{}", machine.log());
    }
    a.wait_logged_in(LIMIT);
    r1.process = None;
    r1.start_late(31, &clock, &[]);
    b.wait_logged_in(LIMIT);
    assert!(b.status().unwrap()["renewal"].is_null());
    lab.machines.extend([a, b, r2, r1]);
}

/// Two name servers on one machine: the first is dead, the second answers while it is told to.
struct NameServers {
    answers: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _dead: UdpSocket,
}

impl NameServers {
    fn start(host: &Namespace, dead: Ipv4Addr, alive: Ipv4Addr, address: Ipv4Addr) -> Self {
        let (silent, socket) = host.enter(|| {
            (UdpSocket::bind((dead, 53)).unwrap(), UdpSocket::bind((alive, 53)).unwrap())
        });
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (answers, stop) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (answering, stopping) = (answers.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut query = [0; 1500];
            while !stopping.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
                if answering.load(Ordering::Relaxed)
                    && let Some(answer) = answer(&query[..length], address)
                {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { answers, stop, thread: Some(thread), _dead: silent }
    }
}

impl Drop for NameServers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The answer to a DNS query (RFC 1035, section 4): `address` for type A, none for others.
fn answer(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let name = query.get(12..)?.iter().position(|byte| *byte == 0)?;
    let question = query.get(12..12 + name + 5)?;
    let is_a = question[name + 1..name + 3] == [0, 1];
    let mut out = query[..2].to_vec();
    // Response, recursion available; one question, as many answers as there are.
    out.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    out.extend(question);
    if is_a {
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        out.extend(address.octets());
    }
    Some(out)
}

#[test]
fn a_slow_name_server_costs_time_and_nothing_else_and_the_last_answer_is_kept() {
    let Some(mut lab) = Lab::new("slow look-ups") else { return };
    let mut r1 = lab.registrar();
    let mut a = lab.terminal("a", 10);
    let d = lab.wan.host("d", 53);
    d.ip(&["addr", "add", "203.0.113.54/24", "dev", "eth0"]);
    let at = |octet| Ipv4Addr::new(203, 0, 113, octet);
    let servers = NameServers::start(&d, at(54), at(53), at(1));
    a.etc.write("hosts", "127.0.0.1 localhost\n");
    a.etc.write("nsswitch.conf", "hosts: files dns\n");
    // glibc waits five seconds for the first one.
    a.etc.write("resolv.conf", "nameserver 203.0.113.54\nnameserver 203.0.113.53\n");
    let resolved = run(a.host.command("getent").args(["ahosts", NAME]), LIMIT);
    if resolved.code != 0 {
        return left_out(
            "slow look-ups: this machine's resolver does not ask the test's name server",
        );
    }
    r1.start(&[]);
    let begun = Instant::now();
    a.verb(&["enroll", &token(&r1, &["terminal", "a"])]).ok();
    println!("enrolled after {:?}", begun.elapsed());
    let begun = Instant::now();
    a.start(&["--keep-alive", "1", "--idle", "3"]);
    a.wait_logged_in(LIMIT);
    println!("attached after {:?}", begun.elapsed());

    // No name server answers any longer, and the relay restarts: the last answer serves.
    servers.answers.store(false, Ordering::Relaxed);
    r1.process = None;
    a.wait("lost", LIMIT, |status| status["state"] == "connecting");
    r1.start(&[]);
    a.wait_logged_in(LIMIT);
    let relay: IpAddr = at(1).into();
    println!("attached again to {relay} without a name server");
    lab.machines.extend([a, r1]);
}
