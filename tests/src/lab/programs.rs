//! The applications that sessions carry: real ones where the machine has them, and small ones of our own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::netns::Namespace;
use super::process::{Process, STARTS, run, tail};
use super::wait::{SOON, eventually};

const TICK: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(20);

/// A port of loopback that is free for UDP and TCP at this moment, below the range of ephemeral ports, so that
/// nobody takes it by chance before it is used.
///
/// # Panics
/// When none of thousands is free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let start = u64::from(std::process::id()) * 97;
    let _no_copies = STARTS.write().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..12_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + ((start + step) % 12_000) as u16;
        let at = (Ipv4Addr::LOCALHOST, port);
        if UdpSocket::bind(at).is_ok() && TcpListener::bind(at).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// `127.0.0.1` with a free port.
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

/// `program`, in a namespace or not.
pub fn command_in(namespace: Option<&Namespace>, program: impl AsRef<std::ffi::OsStr>) -> Command {
    namespace.map_or_else(|| Command::new(&program), |n| n.command(&program))
}

/// Runs `action` in a namespace or here.
pub fn inside<T: Send>(namespace: Option<&Namespace>, action: impl FnOnce() -> T + Send) -> T {
    match namespace {
        Some(namespace) => namespace.enter(action),
        None => action(),
    }
}

/// Waits until something listens on a TCP port.
pub fn wait_for_listener(address: SocketAddr, namespace: Option<&Namespace>, log: &Path) {
    eventually(&format!("a listener on {address}"), SOON, || {
        inside(namespace, || TcpStream::connect_timeout(&address, TICK))
            .map(drop)
            .map_err(|e| format!("{e}\n{}", tail(log)))
    });
}

/// Waits until a socket is bound to `port` in the network of `process`: not by connecting, which would be a
/// connection, and not by binding, which would take the port away.
pub fn wait_until_bound(process: &Process, protocol: &str, port: u16) {
    eventually(&format!("{} listens", process.name()), SOON, || {
        let tables = [protocol.to_owned(), format!("{protocol}6")];
        let bound = tables.iter().any(|table| {
            let path = format!("/proc/{}/net/{table}", process.pid());
            // After a line's number stands the local address, port last; a TCP socket listens in state 0A.
            std::fs::read_to_string(path).unwrap_or_default().lines().skip(1).any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let here = words.get(1).is_some_and(|w| w.ends_with(&format!(":{port:04X}")));
                here && (protocol == "udp" || words.get(3) == Some(&"0A"))
            })
        });
        if bound { Ok(()) } else { Err(process.output()) }
    });
}

/// Writes a file of `size` random bytes from `seed`.
///
/// # Panics
/// When it cannot be written.
pub fn random_file(path: &Path, size: usize, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut file = std::fs::File::create(path).expect("a file in our own folder");
    let mut block = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        rng.fill_bytes(&mut block);
        let part = left.min(block.len());
        file.write_all(&block[..part]).expect("room on the disk");
        left -= part;
    }
}

/// The SHA-256 of a file in hex.
///
/// # Panics
/// When it cannot be read.
pub fn hash_file(path: &Path) -> String {
    let mut file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).expect("a readable file") {
            0 => break,
            n => context.update(&block[..n]),
        }
    }
    data_encoding::HEXLOWER.encode(context.finish().as_ref())
}

/// An OpenSSH server on loopback: own host key, own configuration, log-in by one key only.
#[derive(Debug)]
pub struct Sshd {
    folder: PathBuf,
    address: SocketAddr,
    process: Process,
}

impl Sshd {
    /// Starts it; its files go to `folder`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(folder: &Path, namespace: Option<&Namespace>) -> Sshd {
        Self::start_at(free_address(), folder, namespace)
    }

    /// As [`Sshd::start`], on an address of one's own choice. Forwarded ports may listen on any address.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_at(address: SocketAddr, folder: &Path, namespace: Option<&Namespace>) -> Sshd {
        std::fs::create_dir_all(folder).expect("our own folder");
        for key in ["host_key", "user_key"] {
            let path = folder.join(key);
            run(
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path),
                LIMIT,
            )
            .ok();
        }
        let authorized = folder.join("authorized_keys");
        std::fs::copy(folder.join("user_key.pub"), &authorized).expect("our own file");
        std::fs::set_permissions(&authorized, PermissionsExt::from_mode(0o600)).expect("ours");
        let at = folder.display();
        let config = format!(
            "ListenAddress {address}\nHostKey {at}/host_key\nPidFile none\n\
             AuthorizedKeysFile {at}/authorized_keys\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PubkeyAuthentication yes\nPermitRootLogin prohibit-password\nUseDNS no\n\
             Subsystem sftp internal-sftp\nMaxStartups 100\n\
             GatewayPorts clientspecified\n"
        );
        let config_path = folder.join("sshd_config");
        std::fs::write(&config_path, config).expect("our own file");
        // Its privilege separation wants this folder of root's where it starts as root.
        let _ = std::fs::create_dir_all("/run/sshd");
        let log = folder.join("sshd.log");
        let sshd = ["/usr/sbin/sshd", "/usr/bin/sshd"];
        let program = sshd.into_iter().find(|p| Path::new(p).exists()).unwrap_or(sshd[0]);
        let mut command = command_in(namespace, program);
        command.args(["-D", "-e", "-f"]).arg(&config_path);
        let process = Process::spawn("sshd", &mut command, &log);
        wait_for_listener(address, namespace, &log);
        Sshd { folder: folder.to_owned(), address, process }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The id of the process that takes connections; each is served by children of it.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Options for ssh and scp that log in here as `host`, and trust nothing but this server's key.
    ///
    /// # Panics
    /// When the folder is gone.
    pub fn client_options(&self, host: &str) -> Vec<String> {
        let key = std::fs::read_to_string(self.folder.join("host_key.pub")).expect("our own file");
        let known = self.folder.join(format!("known_hosts_{host}"));
        std::fs::write(&known, format!("{host} {key}")).expect("our own file");
        let at = self.folder.display();
        [
            format!("IdentityFile={at}/user_key"),
            format!("UserKnownHostsFile={}", known.display()),
            "GlobalKnownHostsFile=/dev/null".into(),
            "StrictHostKeyChecking=yes".into(),
            "IdentitiesOnly=yes".into(),
            "BatchMode=yes".into(),
            "LogLevel=ERROR".into(),
            // Data that can be squeezed would hide what the tunnel carries.
            "Compression=no".into(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .chain(["-F".to_owned(), "none".to_owned()])
        .collect()
    }
}

/// Python's web server on loopback.
#[derive(Debug)]
pub struct WebServer {
    address: SocketAddr,
    _process: Process,
}

impl WebServer {
    /// Serves the files of `folder`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(folder: &Path, log: &Path, namespace: Option<&Namespace>) -> WebServer {
        let address = free_address();
        let mut command = command_in(namespace, "python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]).arg(folder);
        command.arg(address.port().to_string());
        let process = Process::spawn("http.server", &mut command, log);
        wait_for_listener(address, namespace, log);
        WebServer { address, _process: process }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// `iperf3 -s` on loopback.
#[derive(Debug)]
pub struct Iperf {
    address: SocketAddr,
    _process: Process,
}

impl Iperf {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(log: &Path, namespace: Option<&Namespace>) -> Iperf {
        let address = free_address();
        let mut command = command_in(namespace, "iperf3");
        command.args(["-s", "--forceflush", "-B", "127.0.0.1", "-p", &address.port().to_string()]);
        let process = Process::spawn("iperf3", &mut command, log);
        // Not probed by a connection: the server would take it for a test.
        eventually("iperf3", SOON, || {
            if process.output().contains("Server listening") { Ok(()) } else { Err(tail(log)) }
        });
        Iperf { address, _process: process }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs a client for `seconds` against `address`; Gbit/s as the receiver counted.
    ///
    /// # Panics
    /// When the client fails.
    pub fn measure(address: SocketAddr, seconds: u32, namespace: Option<&Namespace>) -> f64 {
        let (port, seconds_text) = (address.port().to_string(), seconds.to_string());
        let mut command = command_in(namespace, "iperf3");
        command.args(["-J", "-c", "127.0.0.1", "-p", &port, "-t", &seconds_text]);
        let limit = LIMIT + Duration::from_secs(u64::from(seconds));
        let report = eventually("iperf3 takes a client", limit, || {
            let done = run(&mut command, limit);
            // The server lets the client before go a moment after that client is gone.
            let busy =
                [&done.text(), &done.stderr].iter().any(|said| said.contains("server is busy"));
            if busy { Err(done.text()) } else { Ok(done.ok().json()) }
        });
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        rate.unwrap_or_else(|| panic!("no rate: {report}")) / 1e9
    }
}

/// Sends every datagram back.
#[derive(Debug)]
pub struct UdpEcho {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Listens on `address`.
    ///
    /// # Panics
    /// When it is taken.
    pub fn start(address: SocketAddr) -> UdpEcho {
        let socket = UdpSocket::bind(address).expect("a free port");
        socket.set_read_timeout(Some(TICK)).expect("a socket option");
        let address = socket.local_addr().expect("a bound socket");
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((n, from)) = socket.recv_from(&mut buffer) {
                    counter.fetch_add(1, Ordering::Relaxed);
                    let _ = socket.send_to(&buffer[..n], from);
                }
            }
        });
        UdpEcho { address, stop, count, thread: Some(thread) }
    }

    /// Listens on a free port of loopback, in a namespace or here.
    pub fn start_in(namespace: Option<&Namespace>) -> UdpEcho {
        let address = free_address();
        inside(namespace, || UdpEcho::start(address))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Datagrams heard.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A TCP server of our own; each connection gets a thread.
#[derive(Debug)]
pub struct TcpService {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TcpService {
    /// Listens on a free port of loopback, in a namespace or here, and hands each connection to `serve`.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(
        namespace: Option<&Namespace>,
        serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> TcpService {
        let address = free_address();
        let listener = inside(namespace, || TcpListener::bind(address)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket option");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serve = Arc::new(serve);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let serve = Arc::clone(&serve);
                        std::thread::spawn(move || {
                            let _ = stream.set_nonblocking(false);
                            let _ = serve(stream);
                        });
                    }
                    Err(_) => std::thread::sleep(TICK / 10),
                }
            }
        });
        TcpService { address, stop, thread: Some(thread) }
    }

    /// Sends back what comes, as it comes, and closes its side when the other side does.
    pub fn echo(namespace: Option<&Namespace>) -> TcpService {
        Self::start(namespace, |mut stream| {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.shutdown(std::net::Shutdown::Write),
                    n => stream.write_all(&buffer[..n])?,
                }
            }
        })
    }

    /// Reads everything to the end, and only then answers with the count and the SHA-256 of it.
    pub fn digest(namespace: Option<&Namespace>) -> TcpService {
        Self::start(namespace, |mut stream| {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            let hash = ring::digest::digest(&ring::digest::SHA256, &bytes);
            let hash = data_encoding::HEXLOWER.encode(hash.as_ref());
            write!(stream, "{} {hash}", bytes.len())
        })
    }

    /// Says `greeting` and closes its side at once; then counts what still comes to its end into the returned
    /// number, which is `u64::MAX` until then.
    pub fn talks_first(greeting: &'static [u8]) -> (TcpService, Arc<AtomicU64>) {
        let heard = Arc::new(AtomicU64::new(u64::MAX));
        let counter = Arc::clone(&heard);
        let service = Self::start(None, move |mut stream| {
            stream.write_all(greeting)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            counter.store(bytes.len() as u64, Ordering::SeqCst);
            Ok(())
        });
        (service, heard)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TcpService {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Sends `count` numbered datagrams of `size` bytes to `address`, each as soon as the last came back, again
/// when it did not within a moment; how many were sent twice.
///
/// # Panics
/// When an answer is not what was sent, or it takes longer than `limit`.
pub fn udp_rounds(
    address: SocketAddr,
    count: u32,
    size: usize,
    namespace: Option<&Namespace>,
    limit: Duration,
) -> u32 {
    let bind = (Ipv4Addr::LOCALHOST, 0);
    let socket = inside(namespace, || UdpSocket::bind(bind)).expect("a socket");
    socket.connect(address).expect("loopback");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket option");
    let start = Instant::now();
    let mut again = 0;
    let mut buffer = vec![0; 65_536];
    for number in 0..count {
        let mut datagram = vec![number as u8; size.max(4)];
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        let _ = socket.send(&datagram);
        loop {
            assert!(start.elapsed() < limit, "{number} of {count} datagrams in {limit:?}");
            match socket.recv(&mut buffer) {
                Ok(n) if buffer[..n] == datagram[..] => break,
                // A late answer to one that was sent twice.
                Ok(n) if n >= 4 && buffer[..4] < datagram[..4] => {}
                Ok(n) => panic!("datagram {number} came back as {n} other bytes"),
                Err(_) => {
                    again += 1;
                    let _ = socket.send(&datagram);
                }
            }
        }
    }
    again
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::have;

    #[test]
    fn a_bound_port_is_seen_without_touching_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let mut sleeper = Command::new("sleep");
        let process = Process::spawn("sleep", sleeper.arg("100"), &log);
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        wait_until_bound(&process, "tcp", tcp.local_addr().expect("bound").port());
        wait_until_bound(&process, "udp", udp.local_addr().expect("bound").port());
    }

    #[test]
    fn datagrams_come_back() {
        let echo = UdpEcho::start_in(None);
        // On a machine that stands still for a moment some are sent twice.
        let again = u64::from(udp_rounds(echo.address(), 100, 1000, None, LIMIT));
        let heard = echo.count();
        assert!((100..=100 + again).contains(&heard), "{heard}, {again} sent twice");
    }

    #[test]
    fn our_tcp_services_keep_half_closed_connections() {
        let digest = TcpService::digest(None);
        let mut stream = TcpStream::connect(digest.address()).unwrap();
        stream.write_all(b"abc").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");

        let (service, heard) = TcpService::talks_first(b"hello");
        let mut stream = TcpStream::connect(service.address()).unwrap();
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).unwrap();
        assert_eq!(greeting, "hello");
        stream.write_all(b"after the end").unwrap();
        drop(stream);
        eventually("the rest", LIMIT, || match heard.load(Ordering::SeqCst) {
            13 => Ok(()),
            other => Err(format!("{other}")),
        });
    }

    #[test]
    fn scp_reaches_the_real_sshd() {
        if !have("sshd", "scp in the laboratory") || !have("scp", "scp in the laboratory") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let sshd = Sshd::start(&folder.path().join("ssh"), None);
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        random_file(&from, 3_000_000, 1);
        let mut scp = Command::new("scp");
        scp.args(sshd.client_options("plant7")).arg("-o");
        scp.arg(format!("ProxyCommand=socat - TCP:{}", sshd.address()));
        scp.arg(&from).arg(format!("plant7:{}", to.display()));
        if have("socat", "scp in the laboratory") {
            run(&mut scp, LIMIT).ok();
            assert_eq!(hash_file(&from), hash_file(&to));
        }
    }

    #[test]
    fn the_real_programs_come_up() {
        let folder = tempfile::tempdir().unwrap();
        if have("python3", "the web server") {
            let web = WebServer::start(folder.path(), &folder.path().join("web.log"), None);
            assert!(TcpStream::connect(web.address()).is_ok());
        }
        if have("iperf3", "iperf3") {
            let iperf = Iperf::start(&folder.path().join("iperf.log"), None);
            assert!(Iperf::measure(iperf.address(), 1, None) > 0.0);
        }
    }
}
