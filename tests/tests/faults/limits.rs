//! Limits of forwards: connections, flows, datagram sizes, connections of vanished machines.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::mesh::Terminal;
use tasuki_tests::lab::netns::Wan;
use tasuki_tests::lab::process::Process;
use tasuki_tests::lab::programs::UdpEcho;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually};

/// Connections of one forwarded port.
const CONNECTIONS: usize = 1_000;
/// Flows that one session serves.
const FLOWS: usize = 256;

/// A relay, and two terminals that do not meet directly; b offers this.
fn two(service: &str, url: &str) -> Mesh {
    two_with(TerminalSpec::new("b").relayed().offers(service, url))
}

fn two_with(b: TerminalSpec) -> Mesh {
    MeshSpec::line(&["r1"]).terminal(TerminalSpec::new("a").relayed()).terminal(b).start()
}

fn limits_of(terminal: &Terminal) -> Value {
    terminal.verb(&["status", "--json"]).ok().json()["limits"].clone()
}

/// Waits until a running program has said all of this.
fn wait_for_words(forward: &Process, words: &[&str]) {
    eventually(&format!("{words:?} of the forward"), SOON, || {
        let said = forward.output();
        if words.iter().all(|word| said.contains(word)) { Ok(()) } else { Err(said) }
    });
}

/// Waits until one line of a terminal's log has all of this.
fn wait_for_warning(terminal: &Terminal, words: &[&str]) {
    eventually(&format!("{words:?} in the log of {}", terminal.name()), SOON, || {
        let log = terminal.log_text();
        let is_it = |line: &str| line.contains("WARN") && words.iter().all(|w| line.contains(w));
        if log.lines().any(is_it) { Ok(()) } else { Err(log) }
    });
}

fn client(to: SocketAddr, wait: Duration) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(wait)).unwrap();
    socket
}

/// Sends payloads from one socket until one comes back.
fn wait_for_echo(to: SocketAddr) {
    let socket = client(to, Duration::from_millis(200));
    eventually("the first echo", SOON, || {
        socket.send(b"there?").map_err(|e| e.to_string())?;
        socket.recv(&mut [0; 16]).map_err(|e| e.to_string())
    });
}

/// Each query of a resolver leaves from a port of its own and gets one answer: many more than there are flows pass.
#[test]
fn queries_from_more_ports_than_there_are_flows_are_all_answered() {
    let service = UdpEcho::start_in(None);
    let mesh = two("dns", &format!("udp://{}", service.address()));
    let a = mesh.terminal("a");
    let (forward, address) = a.forward_udp("b/dns");
    wait_for_echo(address);
    let wait = Duration::from_secs(2);
    let lost = (0..FLOWS * 2 + 100)
        .filter(|number| {
            let socket = client(address, wait);
            socket.send(&number.to_be_bytes()).unwrap();
            socket.recv(&mut [0; 16]).is_err()
        })
        .count();
    // A loaded machine may lose one.
    assert!(lost <= 2, "{lost} lost: {}", forward.output());
    for terminal in [a, mesh.terminal("b")] {
        let limits = limits_of(terminal);
        assert_eq!(limits["udp_flows_refused"], 0, "{limits}");
    }
    assert!(limits_of(a)["udp_flows_made_room"].as_u64() > Some(FLOWS as u64));
    assert!(a.log_text().contains("FORWARDED_FLOWS"), "what made room is said");
}

/// Flows that nobody answered and that are in use make no room: the log, the verb and `status` say so.
#[test]
fn a_client_that_finds_no_flow_is_told_of() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mesh = two("dns", &format!("udp://{}", silent.local_addr().unwrap()));
    let a = mesh.terminal("a");
    let (forward, address) = a.forward_udp("b/dns");
    wait_for_words(&forward, &["connected"]);
    let clients: Vec<UdpSocket> =
        (0..FLOWS + 10).map(|_| client(address, Duration::from_millis(100))).collect();
    for socket in &clients {
        socket.send(b"hello").unwrap();
    }
    wait_for_words(&forward, &["limit reached: FORWARDED_FLOWS: "]);
    wait_for_warning(a, &["FORWARDED_FLOWS"]);
    assert!(limits_of(a)["udp_flows_refused"].as_u64() >= Some(10));
}

/// A UDP service that answers with as many bytes as it is asked for.
struct Sized {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sized {
    fn start() -> Sized {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((_, from)) = socket.recv_from(&mut buffer) else { continue };
                let size = u32::from_be_bytes(buffer[..4].try_into().unwrap());
                let _ = socket.send_to(&vec![7; size as usize], from);
            }
        });
        Sized { address, stop, thread: Some(thread) }
    }
}

impl Drop for Sized {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// WireGuard sends 1,452 bytes, an Ethernet carries 1,472, a resolver up to 4,096. What is larger is said with its size at
/// the end that drops it.
#[test]
fn large_udp_payloads_pass_or_are_told_of_with_their_size() {
    let (echo, sized) = (UdpEcho::start_in(None), Sized::start());
    let b = TerminalSpec::new("b")
        .relayed()
        .offers("wg", &format!("udp://{}", echo.address()))
        .offers("sized", &format!("udp://{}", sized.address));
    let mesh = two_with(b);
    let a = mesh.terminal("a");
    let (forward, address) = a.forward_udp("b/wg");
    wait_for_echo(address);
    let socket = client(address, Duration::from_millis(500));
    let mut buffer = [0; 65_536];
    for size in [148, 1_252, 1_398, 1_399, 1_400, 1_452, 1_472, 2_000, 4_096, 148] {
        let payload: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        eventually(&format!("{size} bytes"), SOON, || {
            socket.send(&payload).map_err(|e| e.to_string())?;
            let count = socket.recv(&mut buffer).map_err(|e| e.to_string())?;
            if buffer[..count] == payload { Ok(()) } else { Err(format!("{count} bytes")) }
        });
    }
    socket.send(&[1; 60_001]).unwrap();
    wait_for_words(&forward, &["limit reached: DATAGRAM_PIECES: ", "60001 bytes"]);
    wait_for_warning(a, &["DATAGRAM_PIECES", "bytes=60001"]);
    assert!(limits_of(a)["udp_too_large"].as_u64() >= Some(1));

    let (_forward, address) = a.forward_udp("b/sized");
    let socket = client(address, Duration::from_millis(500));
    eventually("an answer of 1,472 bytes", SOON, || {
        socket.send(&1_472_u32.to_be_bytes()).map_err(|e| e.to_string())?;
        match socket.recv(&mut buffer).map_err(|e| e.to_string())? {
            1_472 => Ok(()),
            other => Err(other.to_string()),
        }
    });
    socket.send(&60_002_u32.to_be_bytes()).unwrap();
    let b = mesh.terminal("b");
    wait_for_warning(b, &["DATAGRAM_PIECES", "bytes=60002"]);
    assert!(limits_of(b)["udp_too_large"].as_u64() >= Some(1));
    let shown = b.verb(&["status"]).ok().text();
    assert!(shown.contains("udp_too_large"), "{shown}");
}

/// A TCP service that greets each connection and keeps it.
struct Greeter {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Greeter {
    fn start() -> Greeter {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut kept = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        let _ = stream.write_all(b"hi");
                        kept.push(stream);
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Greeter { address, stop, thread: Some(thread) }
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn connect(to: SocketAddr, wait: Duration) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(wait)).unwrap();
    stream
}

/// Ends a connection at both ends: the service here does not end its direction by itself.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

fn is_greeted(stream: &mut TcpStream) -> bool {
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).is_ok() && &greeting == b"hi"
}

/// Connections beyond the limit wait, the user hears of it, and they are served when others end.
#[test]
fn a_connection_beyond_the_limit_waits_and_the_user_is_told() {
    tasuki_proto::net::allow_files();
    let service = Greeter::start();
    let mesh = two("s", &format!("tcp://{}", service.address));
    let a = mesh.terminal("a");
    let (forward, address) = a.forward("b/s");
    let mut open: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(address, SOON)).collect();
    let greeted = open.iter_mut().filter_map(|stream| is_greeted(stream).then_some(())).count();
    assert_eq!(greeted, CONNECTIONS, "{}", forward.output());
    let mut late: Vec<TcpStream> = (0..3).map(|_| connect(address, SOON)).collect();
    wait_for_words(&forward, &["limit reached: FORWARD_CONNECTIONS: 1000 "]);
    wait_for_warning(a, &["FORWARD_CONNECTIONS"]);
    eventually("three wait", SOON, || match limits_of(a)["connections_waited"].as_u64() {
        Some(3) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    open.drain(..3).for_each(reset);
    for stream in &mut late {
        assert!(is_greeted(stream), "{}", forward.output());
    }
    let limits = limits_of(mesh.terminal("b"));
    assert_eq!(limits["streams_refused"], 0, "{limits}");
}

/// A target whose agent has no open files left names that, at both ends.
#[test]
fn a_target_out_of_files_says_so_at_both_ends() {
    let service = Greeter::start();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("few-files");
    let agent = Bins::find().agent.display().to_string();
    std::fs::write(&program, format!("#!/bin/sh\nulimit -n 60\nexec '{agent}' \"$@\"\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let url = format!("tcp://{}", service.address);
    let mesh = two_with(TerminalSpec::new("b").relayed().program(&program).offers("s", &url));
    let (forward, address) = mesh.terminal("a").forward("b/s");
    let mut open: Vec<TcpStream> = (0..80).map(|_| connect(address, SOON)).collect();
    let greeted = open.iter_mut().filter_map(|stream| is_greeted(stream).then_some(())).count();
    assert!((1..60).contains(&greeted), "{greeted}");
    wait_for_words(&forward, &["connection refused: service-down: ", "RLIMIT_NOFILE"]);
    wait_for_warning(mesh.terminal("b"), &["RLIMIT_NOFILE"]);
    open.into_iter().for_each(reset);
    eventually("the count of the target", SOON, || {
        let done = mesh.terminal("b").verb(&["status", "--json"]);
        match serde_json::from_str::<Value>(&done.text()) {
            Ok(status) if status["limits"]["out_of_files"].as_u64() >= Some(20) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// A connection that is read until it ends, in a thread: how it ended, once it has.
fn watch(mut stream: TcpStream) -> Arc<Mutex<Option<String>>> {
    let ended = Arc::new(Mutex::new(None));
    let end = Arc::clone(&ended);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        let how = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break "closed".to_owned(),
                Ok(_) => {}
                Err(error) => break error.to_string(),
            }
        };
        *end.lock().unwrap() = Some(how);
    });
    ended
}

/// As [`watch`], while it is written to all the time.
fn watch_writing(mut stream: TcpStream) -> Arc<Mutex<Option<String>>> {
    let ended = Arc::new(Mutex::new(None));
    let end = Arc::clone(&ended);
    std::thread::spawn(move || {
        let how = loop {
            if let Err(error) = stream.write_all(&[7; 64 * 1024]) {
                break error.to_string();
            }
        };
        *end.lock().unwrap() = Some(how);
    });
    ended
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let accepted =
        eventually("a connection", SOON, || listener.accept().map_err(|e| e.to_string()));
    accepted.0.set_nonblocking(false).unwrap();
    accepted.0
}

/// A service's machine and a user's machine vanish without a word: both ends of their connections end.
#[test]
fn connections_of_machines_that_vanish_end() {
    const PORT: u16 = 7_100;
    let Some(wan) = Wan::new("TCP keep-alive") else { return };
    let [r, a, b, user, srv] =
        [("r1", 1), ("a", 10), ("b", 11), ("user", 20), ("srv", 21)].map(|(n, o)| wan.host(n, o));
    let terminal = |name: &str| TerminalSpec::new(name).relayed().flags(&["--tcp-keep-alive", "1"]);
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").on(&r, Wan::address(1)))
        .terminal(terminal("a").on(&a))
        .terminal(
            terminal("b")
                .on(&b)
                .offers("far", &format!("tcp://{}:{PORT}", Wan::address(21)))
                .offers("near", &format!("tcp://{}:{PORT}", Wan::address(11))),
        )
        .start();
    let listen = |address| TcpListener::bind((address, PORT)).unwrap();
    let far = srv.enter(|| listen(Wan::address(21)));
    let near = b.enter(|| listen(Wan::address(11)));
    let forward = |service: &str, port: u16| {
        let at = format!("0.0.0.0:{port}");
        let mut command = mesh.terminal("a").command();
        command.args(["forward", &at, &format!("b/{service}")]);
        let log = mesh.path(&format!("forward-{service}.log"));
        let process = Process::spawn(&format!("forward to {service}"), &mut command, &log);
        wait_for_words(&process, &["listening", "connected"]);
        process
    };
    let _forwards = [forward("far", 7_201), forward("near", 7_202)];
    let to = |port: u16| SocketAddr::from((Wan::address(10), port));
    // One from a machine that stays to one that vanishes, and one the other way round.
    let staying = a.enter(|| TcpStream::connect(to(7_201)).unwrap());
    let vanishing_end = accept(&far);
    let vanishing = user.enter(|| TcpStream::connect(to(7_202)).unwrap());
    let staying_end = accept(&near);
    for (mut from, mut to) in [(&staying, &vanishing_end), (&vanishing, &staying_end)] {
        from.write_all(b"hi").unwrap();
        to.set_read_timeout(Some(SOON)).unwrap();
        to.read_exact(&mut [0; 2]).unwrap();
        to.set_read_timeout(None).unwrap();
    }
    // And one with data under way, all the time.
    let mut reading = user.enter(|| TcpStream::connect(to(7_202)).unwrap());
    let writing_end = accept(&near);
    let ended = [watch(staying), watch(staying_end), watch_writing(writing_end)];
    reading.set_read_timeout(Some(SOON)).unwrap();
    reading.read_exact(&mut [0; 1_000_000]).unwrap();
    for gone in [&user, &srv] {
        gone.ip(&["link", "set", "eth0", "down"]);
    }
    let start = Instant::now();
    for (what, end) in ["user's", "silent service's", "busy service's"].into_iter().zip(&ended) {
        eventually(&format!("the end of the {what} connection"), Duration::from_secs(40), || {
            end.lock().unwrap().clone().ok_or_else(|| "it stands".to_owned())
        });
    }
    println!("all ended after {:?}", start.elapsed());
}
