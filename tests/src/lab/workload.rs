//! The main job: real programs over sessions, all at once, correct by hash or content.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::have;
use super::mesh::{Mesh, TerminalSpec};
use super::netns::Namespace;
use super::process::run;
use super::programs::{
    Iperf, Sshd, UdpEcho, WebServer, command_in, hash_file, random_file, udp_rounds,
};

/// For each of the transfers, with debug builds that share two cores.
const LIMIT: Duration = Duration::from_secs(180);
const UDP_ROUNDS: u32 = 1000;
const IPERF_SECONDS: u32 = 3;

/// sshd, a web server, iperf3 and a UDP echo, beside a terminal that exposes them.
#[derive(Debug)]
pub struct Workload {
    folder: TempDir,
    sshd: Option<Sshd>,
    web: Option<WebServer>,
    iperf: Option<Iperf>,
    udp: UdpEcho,
    file: PathBuf,
}

impl Workload {
    /// Starts the programs, in a namespace or here, with a file of `size` random bytes to carry.
    ///
    /// # Panics
    /// When one that is installed does not come up.
    pub fn start(namespace: Option<&Namespace>, size: usize) -> Workload {
        let folder = tempfile::Builder::new().prefix("tskw").tempdir().expect("a folder");
        let at = folder.path();
        let file = at.join("payload.bin");
        random_file(&file, size, 42);
        let installed = |programs: &[&str], what: &str| programs.iter().all(|p| have(p, what));
        let sshd = installed(&["sshd", "scp", "ssh-keygen"], "scp over a session")
            .then(|| Sshd::start(&at.join("ssh"), namespace));
        let web = installed(&["python3", "curl"], "curl over a session")
            .then(|| WebServer::start(at, &at.join("web.log"), namespace));
        let iperf = installed(&["iperf3"], "iperf3 over a session")
            .then(|| Iperf::start(&at.join("iperf.log"), namespace));
        let udp = UdpEcho::start_in(namespace);
        Workload { folder, sshd, web, iperf, udp, file }
    }

    /// `terminal` with all of it exposed to everybody, and open for files.
    pub fn exposed_by(&self, mut terminal: TerminalSpec) -> TerminalSpec {
        let tcp = [
            ("ssh", self.sshd.as_ref().map(Sshd::address)),
            ("http", self.web.as_ref().map(WebServer::address)),
            ("iperf", self.iperf.as_ref().map(Iperf::address)),
        ];
        for (service, address) in tcp {
            if let Some(address) = address {
                terminal = terminal.offers(service, &format!("tcp://{address}"));
            }
        }
        terminal
            .offers("udp-echo", &format!("udp://{}", self.udp.address()))
            .flags(&["--allow", "inbox=*"])
    }

    /// Carries everything from `caller` to `callee` over `mesh`, in five sessions at once, and prints how fast.
    ///
    /// # Panics
    /// When anything arrives otherwise than it was sent.
    pub fn run(&self, mesh: &Mesh, caller: &str, callee: &str) {
        let want = hash_file(&self.file);
        let want = want.as_str();
        std::thread::scope(|scope| {
            scope.spawn(|| self.scp(mesh, caller, callee, want));
            scope.spawn(|| self.curl(mesh, caller, callee, want));
            scope.spawn(|| self.iperf(mesh, caller, callee));
            scope.spawn(|| self.udp(mesh, caller, callee));
            scope.spawn(|| self.send(mesh, caller, callee, want));
        });
    }

    fn report(&self, what: &str, start: Instant) {
        let (size, took) = (self.size(), start.elapsed());
        println!(
            "{what}: {size} bytes in {took:.1?}, {:.2} Gbit/s",
            size as f64 * 8e-9 / took.as_secs_f64()
        );
    }

    fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.len())
    }

    fn scp(&self, mesh: &Mesh, caller: &str, callee: &str, want: &str) {
        let Some(sshd) = &self.sshd else { return };
        let terminal = mesh.terminal(caller);
        let mut scp = command_in(terminal.namespace(), "scp");
        let agent = super::bins::Bins::find().agent.display();
        let proxy =
            format!("ProxyCommand={agent} --data {} dial %h/ssh", terminal.data().display());
        scp.args(sshd.client_options(callee)).args(["-o", &proxy]);
        let landed = self.folder.path().join("by-scp");
        let start = Instant::now();
        run(scp.arg(&self.file).arg(format!("{callee}:{}", landed.display())), LIMIT).ok();
        assert_eq!(hash_file(&landed), want, "scp");
        self.report("scp", start);
    }

    fn curl(&self, mesh: &Mesh, caller: &str, callee: &str, want: &str) {
        if self.web.is_none() {
            return;
        }
        let terminal = mesh.terminal(caller);
        let (_forward, address) = terminal.forward(&format!("{callee}/http"));
        let landed = self.folder.path().join("by-curl");
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        let mut curl: Command = command_in(terminal.namespace(), "curl");
        curl.args(["-sSf", "--noproxy", "*", "-o"]).arg(&landed);
        let start = Instant::now();
        run(curl.arg(format!("http://{address}/{name}")), LIMIT).ok();
        assert_eq!(hash_file(&landed), want, "curl");
        self.report("curl", start);
    }

    fn iperf(&self, mesh: &Mesh, caller: &str, callee: &str) {
        if self.iperf.is_none() {
            return;
        }
        let terminal = mesh.terminal(caller);
        let (_forward, address) = terminal.forward(&format!("{callee}/iperf"));
        let rate = Iperf::measure(address, IPERF_SECONDS, terminal.namespace());
        println!("iperf3: {rate:.2} Gbit/s");
        assert!(rate > 0.0);
    }

    fn udp(&self, mesh: &Mesh, caller: &str, callee: &str) {
        let terminal = mesh.terminal(caller);
        let (_forward, address) = terminal.forward_udp(&format!("{callee}/udp-echo"));
        let again = udp_rounds(address, UDP_ROUNDS, 1000, terminal.namespace(), LIMIT);
        println!("udp: {UDP_ROUNDS} round trips, {again} sent twice");
        assert!(again <= UDP_ROUNDS / 10, "{again} of {UDP_ROUNDS} datagrams were lost");
    }

    fn send(&self, mesh: &Mesh, caller: &str, callee: &str, want: &str) {
        let start = Instant::now();
        let file = self.file.to_str().expect("our own path");
        mesh.terminal(caller).verb_within(&["send", file, &format!("{callee}:")], LIMIT).ok();
        self.report("send", start);
        let name = self.file.file_name().and_then(|n| n.to_str()).expect("our own name");
        let landed = find_file(mesh.terminal(callee).data(), name).expect("a file in the inbox");
        assert_eq!(hash_file(&landed), want, "send");
    }
}

/// The file of that name in a folder or below it.
pub fn find_file(folder: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder).ok()?.filter_map(Result::ok).find_map(|entry| {
        let path = entry.path();
        match entry.file_type().ok()? {
            kind if kind.is_dir() => find_file(&path, name),
            kind if kind.is_file() && entry.file_name() == name => Some(path),
            _ => None,
        }
    })
}
