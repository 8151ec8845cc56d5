//! QUIC connections over a line in virtual time: what a congestion controller makes of delay, loss and a short queue.
//!
//! The connections are quinn's, the controllers those that ship; sockets and clock are not. All flows share one
//! bottleneck in the direction of the data; acknowledgements have the same delay and no limit. The outcome depends on the
//! [`Line`] and its seed alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::congestion::{ControllerFactory, CubicConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event, ServerConfig, StreamEvent, StreamId, TransportConfig,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustls::pki_types::PrivateKeyDer;
use tasuki_proto::Label;
use tasuki_terminal::io::congestion::CurrentPath;
use tasuki_terminal::io::socket::Path;
use tasuki_terminal::io::transport::session_transport;

/// Heads of IP, UDP and frame around each packet.
const HEADS: usize = 56;
/// The packets of an Ethernet.
const PACKET: u16 = 1_444;
/// What a flow writes at once.
static BLOCK: [u8; 64 * 1024] = [0; 64 * 1024];

/// Which controller a flow has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// The one of sessions.
    Ours,
    /// quinn's Cubic (RFC 8312), which stands for the TCP of others.
    Cubic,
}

/// What is between the two ends of all flows.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// Bits per second in the direction of the data.
    pub rate: u64,
    /// The round trip of an empty line.
    pub rtt: Duration,
    /// Bytes that wait for the rate; beyond: dropped.
    pub queue: u64,
    /// The share of packets lost by chance, each way.
    pub loss: f64,
    /// Decides which.
    pub seed: u64,
}

/// What became of a flow, from the end of the first `warm` part on.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Received, bits per second.
    pub rate: f64,
    /// Received, in each second from the beginning.
    pub seconds: Vec<f64>,
    /// The share of its packets that were lost.
    pub lost: f64,
    /// The round trip in the end, as its sender sees it.
    pub rtt: Duration,
    /// Why its connection ended, if it did.
    pub ended: Option<String>,
}

/// One end of a flow.
struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    stream: Option<StreamId>,
    timeout: Option<Instant>,
    /// The path that it sends on.
    path: CurrentPath,
    received: u64,
    ended: Option<String>,
}

struct World {
    now: Instant,
    line: Line,
    rng: SmallRng,
    free_at: Instant,
    arrivals: BTreeMap<(Instant, u64), (usize, BytesMut)>,
    count: u64,
    /// By flow: sender, receiver.
    ends: Vec<[End; 2]>,
}

fn address(flow: usize, end: usize) -> SocketAddr {
    ([10, 0, flow as u8, end as u8 + 1], 4433).into()
}

fn transport(
    path: &CurrentPath,
    control: Control,
    now: Instant,
    to: SocketAddr,
) -> Arc<TransportConfig> {
    let label = Label::new(1).unwrap();
    path.switch(Path { to, label_in: label, label_out: label }, now);
    let mut transport = session_transport(path, PACKET);
    if control == Control::Cubic {
        let cubic: Arc<dyn ControllerFactory + Send + Sync> = Arc::new(CubicConfig::default());
        transport.congestion_controller_factory(cubic);
    }
    Arc::new(transport)
}

impl World {
    /// Sends what the end has to say.
    fn transmit(&mut self, flow: usize, end: usize) {
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            let Some((_, connection)) = &mut self.ends[flow][end].connection else { return };
            let Some(transmit) = connection.poll_transmit(self.now, 8, &mut buffer) else { return };
            let segment = transmit.segment_size.unwrap_or(transmit.size);
            for packet in buffer[..transmit.size].chunks(segment) {
                self.offer(flow, end, packet);
            }
        }
    }

    fn offer(&mut self, flow: usize, end: usize, packet: &[u8]) {
        if self.rng.random_bool(self.line.loss) {
            return;
        }
        let mut at = self.now;
        if end == 0 {
            let bits =
                |bytes: u64| Duration::from_secs_f64(bytes as f64 * 8.0 / self.line.rate as f64);
            let begins = self.free_at.max(self.now);
            if begins.saturating_duration_since(self.now) > bits(self.line.queue) {
                return;
            }
            self.free_at = begins + bits((packet.len() + HEADS) as u64);
            at = self.free_at;
        }
        self.count += 1;
        let to = flow * 2 + (1 - end);
        self.arrivals.insert((at + self.line.rtt / 2, self.count), (to, packet.into()));
    }

    fn arrive(&mut self, to: usize, packet: BytesMut) {
        let (flow, end) = (to / 2, to % 2);
        let from = address(flow, 1 - end);
        let here = &mut self.ends[flow][end];
        let mut answer = Vec::new();
        match here.endpoint.handle(self.now, from, None, None, packet, &mut answer) {
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut here.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = here.endpoint.accept(incoming, self.now, &mut answer, None);
                here.connection = accepted.ok();
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    /// Everything that an end has to do now.
    fn step(&mut self, flow: usize, end: usize) {
        let here = &mut self.ends[flow][end];
        let Some((handle, connection)) = &mut here.connection else { return };
        if connection.poll_timeout().is_some_and(|at| at <= self.now) {
            connection.handle_timeout(self.now);
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = here.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        while let Some(event) = connection.poll() {
            match event {
                Event::Connected if end == 0 => here.stream = connection.streams().open(Dir::Uni),
                Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                    here.stream = connection.streams().accept(Dir::Uni);
                }
                Event::ConnectionLost { reason } => here.ended = Some(reason.to_string()),
                _ => {}
            }
        }
        match here.stream {
            Some(stream) if end == 0 => {
                while connection.send_stream(stream).write(&BLOCK).is_ok_and(|n| n > 0) {}
            }
            Some(stream) => {
                let mut stream = connection.recv_stream(stream);
                if let Ok(mut chunks) = stream.read(true) {
                    while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                        here.received += chunk.bytes.len() as u64;
                    }
                    let _ = chunks.finalize();
                }
            }
            None => {}
        }
        self.transmit(flow, end);
        let here = &mut self.ends[flow][end];
        here.timeout = here.connection.as_mut().and_then(|(_, c)| c.poll_timeout());
    }

    fn next(&self) -> Option<Instant> {
        let timers = self.ends.iter().flatten().filter_map(|end| end.timeout);
        self.arrivals.keys().next().map(|(at, _)| *at).into_iter().chain(timers).min()
    }

    /// Lets everything happen that happens before `until`.
    fn run(&mut self, until: Instant) {
        while let Some(at) = self.next().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let mut touched = Vec::new();
            while let Some(entry) = self.arrivals.first_entry().filter(|e| e.key().0 <= self.now) {
                let (to, packet) = entry.remove();
                self.arrive(to, packet);
                touched.push(to);
            }
            for to in 0..self.ends.len() * 2 {
                let due = self.ends[to / 2][to % 2].timeout.is_some_and(|at| at <= self.now);
                if due || touched.contains(&to) {
                    self.step(to / 2, to % 2);
                }
            }
        }
        self.now = until;
    }
}

/// Runs a flow for each of `controls`, each begun a second after the one before, for so many seconds after the last.
/// Rates are those after `warm` seconds.
pub fn run(line: Line, controls: &[Control], warm: u64, seconds: u64) -> Vec<Flow> {
    let now = Instant::now();
    // Signatures of Ed25519 have one length, so that a handshake's packets have too.
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut about = rcgen::CertificateParams::new(vec!["peer".to_owned()]).unwrap();
    about.serial_number = Some(1_u64.into());
    let certificate = about.self_signed(&key).unwrap().der().clone();
    let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let client = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
    let server = ServerConfig::with_single_cert(vec![certificate], secret).unwrap();
    let rng = SmallRng::seed_from_u64(line.seed);
    let mut world = World {
        now,
        line,
        rng,
        free_at: now,
        arrivals: BTreeMap::new(),
        count: 0,
        ends: Vec::new(),
    };
    let mut seconds_of: Vec<Vec<f64>> = vec![Vec::new(); controls.len()];
    let mut before = vec![(0, 0, 0); controls.len()];
    for second in 0..seconds + controls.len() as u64 {
        if let Some(&control) = controls.get(second as usize) {
            let flow = second as usize;
            let ends = [0, 1].map(|end| {
                let (path, to) = (CurrentPath::default(), address(flow, 1 - end));
                let mut server = server.clone();
                server.transport_config(transport(&path, control, world.now, to));
                let server = (end == 1).then(|| Arc::new(server));
                let seed =
                    SmallRng::seed_from_u64(line.seed ^ ((flow as u64) << 8 | end as u64)).random();
                let config = Arc::new(EndpointConfig::default());
                let endpoint = Endpoint::new(config, server, true, Some(seed));
                let (connection, stream, timeout, ended) = (None, None, None, None);
                End { endpoint, connection, stream, timeout, path, received: 0, ended }
            });
            world.ends.push(ends);
            let mut client = client.clone();
            let sender = &mut world.ends[flow][0];
            let to = address(flow, 1);
            client.transport_config(transport(&sender.path, control, world.now, to));
            let dialled = sender.endpoint.connect(world.now, client, address(flow, 1), "peer");
            sender.connection = dialled.ok();
            world.step(flow, 0);
        }
        world.run(now + Duration::from_secs(second + 1));
        for (flow, [sender, receiver]) in world.ends.iter().enumerate() {
            let known: f64 = seconds_of[flow].iter().sum();
            seconds_of[flow].push(receiver.received as f64 * 8.0 - known);
            if second + 1 == warm
                && let Some((_, connection)) = &sender.connection
            {
                let path = connection.stats().path;
                before[flow] = (receiver.received, path.sent_packets, path.lost_packets);
            }
        }
    }
    let total = seconds + controls.len() as u64;
    let ends = world.ends.iter().zip(seconds_of).zip(before);
    ends.map(|(([sender, receiver], seconds), (received, sent, lost))| {
        let path = sender.connection.as_ref().unwrap().1.stats().path;
        Flow {
            rate: (receiver.received - received) as f64 * 8.0 / (total - warm) as f64,
            seconds,
            lost: (path.lost_packets - lost) as f64 / (path.sent_packets - sent).max(1) as f64,
            rtt: path.rtt,
            ended: sender.ended.clone().or_else(|| receiver.ended.clone()),
        }
    })
    .collect()
}
