//! The mesh: relays, links, events in the order of virtual time.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_proto::codec::Envelope;
use tasuki_proto::gossip::{GossipMessage, Head};
use tasuki_proto::identity::{PublicKey, Signer};
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::rows::{self, AccountRow, LinkState, LinksRow, RelayRow};
use tasuki_proto::{Incarnation, MeshId, RelayId, RelayName, TerminalId, limits};
use tasuki_relay::core::LinkId;
use tasuki_relay::core::directory::{self, Directory};
use tasuki_relay::core::gossip::{Config, Gossip, Input, Output, Write};

use super::link::{Direction, LinkModel};
use super::node::{Clock, Node};
use super::observe::Observed;

/// How a mesh is made.
#[derive(Debug, Clone)]
pub struct MeshModel {
    /// Decides everything that is random.
    pub seed: u64,
    /// How many relays.
    pub relays: usize,
    /// Links, by index of relay.
    pub links: Vec<(usize, usize)>,
    /// Every link's one-way delay is drawn from here.
    pub delay: std::ops::Range<Duration>,
    /// As [`LinkModel::jitter`].
    pub jitter: Duration,
    /// As [`LinkModel::loss`].
    pub loss: f64,
    /// How long the end of a link takes to notice that the other one died.
    pub detect: Duration,
    /// Follow every change and check it against what was there.
    pub shadow: bool,
}

/// From a change of links to the routes that follow from it; further changes meanwhile cost nothing.
const ROUTES_AFTER: Duration = Duration::from_millis(100);
/// The term and key of the simulated authority.
const TERM: Incarnation = Incarnation(1);

#[derive(Debug)]
struct SimLink {
    ends: [usize; 2],
    model: LinkModel,
    /// Told to be up; it is, when both ends are.
    wanted: bool,
    up: bool,
    /// Counts the times it came up.
    generation: u64,
    ways: [Direction; 2],
}

#[derive(Debug)]
enum Event {
    Deliver { to: usize, link: usize, generation: u64, bytes: Bytes },
    Taken { from: usize, link: usize, generation: u64 },
    Resend { link: usize, way: usize, generation: u64 },
    Lost { at: usize, link: usize, generation: u64 },
    Wake { node: usize, life: u64 },
    Routes { node: usize, life: u64 },
}

/// The key of a relay, by its index.
fn signer(node: usize) -> Signer {
    let mut seed = [1; 32];
    seed[..8].copy_from_slice(&(node as u64).to_be_bytes());
    Signer::from_seed(&seed)
}

/// Signatures that one thread remembers to have checked.
const CHECKS: usize = 1_000_000;

/// Checks each head once, however many relays of the simulation do so.
fn check_once(head: &Head, mesh: &MeshId, key: &PublicKey) -> bool {
    thread_local! {
        static CHECKED: RefCell<HashMap<([u8; Head::BYTES], PublicKey), bool>> = RefCell::default();
    }
    CHECKED.with_borrow_mut(|checked| {
        if checked.len() == CHECKS {
            checked.clear();
        }
        *checked.entry((head.to_bytes(), *key)).or_insert_with(|| head.is_signed_by(mesh, key))
    })
}

/// A running mesh.
pub struct Mesh {
    seed: u64,
    now: Duration,
    rng: StdRng,
    mesh: MeshId,
    authority: Signer,
    /// The last sequence of the authority.
    signed: u64,
    nodes: Vec<Node>,
    links: Vec<SimLink>,
    events: BTreeMap<(Duration, u64), Event>,
    event_count: u64,
    detect: Duration,
    /// What changes the configuration of relays that start from here on.
    pub tune: fn(&mut Config),
    /// What the run shows; begins anew with [`Mesh::observe`].
    pub observed: Observed,
    /// Links that a relay's gossip cut: (relay, peer).
    pub cuts: Vec<(usize, usize)>,
}

impl Mesh {
    /// Makes a mesh whose relays are all down.
    pub fn new(model: &MeshModel) -> Mesh {
        let mut rng = StdRng::seed_from_u64(model.seed);
        let mesh = MeshId(rng.random());
        // A virtual clock needs an Instant to begin with; only differences are used.
        let base = Instant::now();
        let nodes = (0..model.relays)
            .map(|index| {
                let name = RelayName::new(&format!("r{index}")).expect("a name");
                Node {
                    id: RelayId::of(&mesh, &name),
                    name,
                    clock: Clock {
                        base: base + Duration::from_secs(rng.random_range(0..100_000)),
                        drift_ppm: rng.random_range(-500..500),
                        wall_ms: rng.random_range(-86_400_000..86_400_000),
                    },
                    cores: None,
                    life: 0,
                    routes_pending: false,
                    wake_at: None,
                    shadow: model.shadow.then(BTreeMap::new),
                    incarnation: Incarnation(0),
                    disk: BTreeMap::new(),
                    disk_head: None,
                }
            })
            .collect();
        let links = model
            .links
            .iter()
            .map(|(a, b)| SimLink {
                ends: [*a, *b],
                model: LinkModel {
                    delay: rng.random_range(model.delay.clone()),
                    jitter: model.jitter,
                    loss: model.loss,
                    bandwidth: 0,
                },
                wanted: true,
                up: false,
                generation: 0,
                ways: Default::default(),
            })
            .collect();
        Mesh {
            seed: model.seed,
            now: Duration::ZERO,
            mesh,
            authority: Signer::from_seed(&[7; 32]),
            signed: 0,
            rng,
            nodes,
            links,
            events: BTreeMap::new(),
            event_count: 0,
            detect: model.detect,
            tune: |_| {},
            observed: Observed::new(model.relays),
            cuts: Vec::new(),
        }
    }

    /// Starts every relay.
    pub fn start_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.boot(node, true);
        }
        self.settle_links();
    }

    /// The time since the beginning.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// How many relays there are.
    pub fn relays(&self) -> usize {
        self.nodes.len()
    }

    /// A relay's id.
    pub fn id(&self, node: usize) -> RelayId {
        self.nodes[node].id
    }

    /// The mesh's id.
    pub fn mesh_id(&self) -> MeshId {
        self.mesh
    }

    /// A random number of the run.
    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    /// The gossip core of a relay that is up.
    pub fn gossip(&self, node: usize) -> &Gossip {
        &self.nodes[node].cores.as_ref().expect("the relay is up").0
    }

    /// Both cores of a relay that is up.
    pub fn cores(&mut self, node: usize) -> (&mut Gossip, &mut Directory) {
        let (gossip, directory) = self.nodes[node].cores.as_mut().expect("the relay is up");
        (gossip, directory)
    }

    /// Whether a relay is up.
    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].cores.is_some()
    }

    /// Changes how links are, from here on: `change` gets each link's ends and model.
    pub fn set_links(&mut self, mut change: impl FnMut((usize, usize), &mut LinkModel)) {
        for link in &mut self.links {
            change((link.ends[0], link.ends[1]), &mut link.model);
        }
    }

    /// Observes anew from here on.
    pub fn observe(&mut self) {
        self.observed = Observed::new(self.nodes.len());
    }

    /// Starts a relay, with what an earlier life left on its disk or with an empty one.
    pub fn start(&mut self, node: usize, with_disk: bool) {
        self.boot(node, with_disk);
        self.settle_links();
    }

    fn boot(&mut self, node: usize, with_disk: bool) {
        let mesh = self.mesh;
        let now = self.now;
        let state = &mut self.nodes[node];
        if !with_disk {
            state.disk.clear();
            state.disk_head = None;
            state.incarnation = Incarnation(0);
        }
        state.incarnation.0 += 1;
        state.life += 1;
        state.wake_at = None;
        state.routes_pending = false;
        if let Some(shadow) = &mut state.shadow {
            shadow.clear();
        }
        let seed = [self.seed, node as u64];
        let mut config = Config::new(state.id, state.incarnation, mesh, signer(node), seed);
        config.check = check_once;
        (self.tune)(&mut config);
        let gossip = Gossip::new(config, state.clock.local(now));
        state.cores = Some((gossip, Directory::new(state.id, mesh, [1, node as u64])));
        let mut disk: Vec<Record> = state.disk.values().cloned().collect();
        disk.sort_by_key(Record::version);
        let row = RelayRow {
            name: state.name.clone(),
            addresses: vec![format!("{}.example:4433", state.name)],
            registrar: node == 0,
            software: "sim".to_owned(),
        };
        let disk_head = state.disk_head;
        self.input(node, Input::AuthorityKey(TERM, self.authority.public()));
        // What directories take from the accounts of relays.
        for other in 0..self.nodes.len() {
            let key = Some(signer(other).public());
            self.input(node, Input::RelayKey(self.nodes[other].id, key));
        }
        for record in disk {
            self.input(node, Input::Authority(record));
        }
        if node == 0 {
            self.input(node, Input::Issuer(TERM, self.authority.clone()));
        } else if let Some(head) = disk_head {
            self.input(node, Input::AuthorityHead(head));
        }
        self.write(node, RecordKind::RELAY, b"", Some(rows::payload(&row)), 0);
        self.update_links(node);
    }

    /// Kills a relay; its neighbours notice after a while.
    pub fn crash(&mut self, node: usize) {
        self.nodes[node].cores = None;
        for link in 0..self.links.len() {
            if self.links[link].up && self.links[link].ends.contains(&node) {
                self.take_down(link, self.detect);
            }
        }
    }

    /// Cuts or restores the links for which `wanted` says so.
    pub fn want_links(&mut self, wanted: impl Fn(usize, usize) -> bool) {
        for link in 0..self.links.len() {
            let [a, b] = self.links[link].ends;
            self.links[link].wanted = wanted(a, b);
            if self.links[link].up && !self.links[link].wanted {
                self.take_down(link, self.detect);
            }
        }
        self.settle_links();
    }

    /// Writes a row of a relay's own; without payload a tombstone.
    pub fn write(
        &mut self,
        node: usize,
        kind: RecordKind,
        key: &[u8],
        payload: Option<Bytes>,
        lifetime_secs: u32,
    ) {
        let write = Write {
            kind,
            key: Bytes::copy_from_slice(key),
            payload,
            lifetime_secs,
            wall_ms: self.nodes[node].clock.wall(self.now),
            scope: 0,
        };
        let id = self.nodes[node].id;
        let before = self.gossip(node).table().watermark(id);
        // Counted before the outputs go out, so that copies find their update.
        let local = self.nodes[node].clock.local(self.now);
        if let Some((gossip, _)) = &mut self.nodes[node].cores {
            gossip.handle(Input::Write(write), local);
        }
        let after = self.gossip(node).table().watermark(id);
        if after > before {
            self.observed.made(id, after, self.now);
        }
        self.drain(node);
    }

    /// Registers a terminal at the registrar, which is relay 0.
    pub fn register(&mut self, id: &TerminalId) {
        let account = AccountRow {
            kind: "plc".to_owned(),
            attributes: BTreeMap::new(),
            groups: Vec::new(),
            key: None,
            registered_ms: 1,
        };
        self.sign(RecordKind::ACCOUNT, id.as_str().as_bytes(), &rows::payload(&account));
    }

    /// Has the authority sign a row, which the registrar takes.
    pub fn sign(&mut self, kind: RecordKind, key: &[u8], payload: &[u8]) {
        self.signed += 1;
        let record = Record::new(&Draft {
            origin: RelayId::AUTHORITY,
            kind,
            key,
            version: Version { incarnation: TERM, sequence: self.signed },
            wall_ms: 1,
            scope: 0,
            lifetime_secs: 0,
            tombstone: false,
            payload,
        });
        self.input(0, Input::Authority(record.clone()));
        self.nodes[0].disk.insert((kind.0, key.to_vec()), record);
    }

    /// Hands an input to a relay and does what it wants.
    pub fn input(&mut self, node: usize, input: Input) {
        let local = self.nodes[node].clock.local(self.now);
        if let Some((gossip, _)) = &mut self.nodes[node].cores {
            gossip.handle(input, local);
            self.drain(node);
        }
    }

    /// Puts a message on the wire as if `from` had sent it to its neighbour `to`.
    pub fn forge(&mut self, from: usize, to: usize, message: &GossipMessage) {
        let ends = [from, to];
        let link = self.links.iter().position(|l| l.up && ends.iter().all(|e| l.ends.contains(e)));
        self.transmit(from, link.expect("the two have a link"), message);
    }

    /// Runs for so long.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.perform(event);
        }
        self.now = end;
    }

    /// Runs until all relays that are up hold the same table, and gives the time it took.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    pub fn run_until_equal(&mut self, limit: Duration) -> Duration {
        let start = self.now;
        while !self.tables_are_equal() {
            assert!(self.now - start < limit, "seed {}: tables differ after {limit:?}", self.seed);
            self.run(Duration::from_millis(10));
        }
        self.now - start
    }

    /// Whether all relays that are up hold the same rows.
    pub fn tables_are_equal(&self) -> bool {
        let mut tables =
            self.nodes.iter().filter_map(|node| node.cores.as_ref()).map(|(gossip, _)| {
                let table = gossip.table();
                (table.len(), table.hash())
            });
        let first = tables.next();
        tables.all(|table| Some(table) == first)
    }

    /// The longest of all shortest paths, one way, jitter left out.
    pub fn diameter(&self) -> Duration {
        (0..self.nodes.len()).map(|from| self.farthest(from)).max().unwrap_or_default()
    }

    fn farthest(&self, from: usize) -> Duration {
        let mut near: BTreeSet<(Duration, usize)> = BTreeSet::from([(Duration::ZERO, from)]);
        let mut done: BTreeMap<usize, Duration> = BTreeMap::new();
        while let Some((distance, node)) = near.pop_first() {
            if done.contains_key(&node) {
                continue;
            }
            done.insert(node, distance);
            for link in self.links.iter().filter(|link| link.up && link.ends.contains(&node)) {
                let other = if link.ends[0] == node { link.ends[1] } else { link.ends[0] };
                near.insert((distance + link.model.delay, other));
            }
        }
        done.values().copied().max().unwrap_or_default()
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.event_count += 1;
        self.events.insert((at, self.event_count), event);
    }

    fn link_id(&self, link: usize) -> LinkId {
        LinkId(((link as u64) << 32) | self.links[link].generation)
    }

    /// Brings up every link that should be.
    fn settle_links(&mut self) {
        let mut changed = BTreeSet::new();
        for index in 0..self.links.len() {
            let link = &mut self.links[index];
            let [a, b] = link.ends;
            if link.up
                || !link.wanted
                || self.nodes[a].cores.is_none()
                || self.nodes[b].cores.is_none()
            {
                continue;
            }
            link.up = true;
            link.generation += 1;
            link.ways = Default::default();
            let id = self.link_id(index);
            for (here, there) in [(a, b), (b, a)] {
                let peer = self.nodes[there].id;
                self.input(here, Input::LinkUp(id, peer));
                changed.insert(here);
            }
        }
        for node in changed {
            self.update_links(node);
        }
    }

    fn take_down(&mut self, link: usize, after: Duration) {
        self.links[link].up = false;
        let generation = self.links[link].generation;
        for at in self.links[link].ends {
            self.schedule(self.now + after, Event::Lost { at, link, generation });
        }
    }

    /// A relay writes which links it has.
    fn update_links(&mut self, node: usize) {
        let mut links: Vec<LinkState> = self
            .links
            .iter()
            .filter(|link| link.up && link.ends.contains(&node))
            .map(|link| {
                let other = if link.ends[0] == node { link.ends[1] } else { link.ends[0] };
                let rtt_us = (link.model.delay.as_micros() * 2) as u32;
                LinkState { peer: self.nodes[other].id, rtt_us }
            })
            .collect();
        links.sort_unstable();
        self.write(node, RecordKind::LINKS, b"", Some(rows::payload(&LinksRow { links })), 0);
    }

    fn perform(&mut self, event: Event) {
        let current = |mesh: &Mesh, link: usize, generation: u64| {
            mesh.links[link].up && mesh.links[link].generation == generation
        };
        match event {
            Event::Deliver { to, link, generation, bytes } => {
                if current(self, link, generation) {
                    self.deliver(to, link, bytes);
                }
            }
            Event::Taken { from, link, generation } => {
                if current(self, link, generation) {
                    self.input(from, Input::Sent(self.link_id(link)));
                }
            }
            Event::Resend { link, way, generation } => {
                if current(self, link, generation) {
                    let state = &mut self.links[link];
                    state.ways[way].resend(&state.model, self.now, &mut self.rng);
                    self.schedule_passage(link, way);
                }
            }
            Event::Lost { at, link, generation } => {
                let id = LinkId(((link as u64) << 32) | generation);
                if self.nodes[at].cores.is_some() {
                    self.input(at, Input::LinkDown(id));
                    self.update_links(at);
                }
            }
            Event::Wake { node, life } => {
                if self.nodes[node].life == life {
                    self.nodes[node].wake_at = None;
                    self.input(node, Input::Tick);
                }
            }
            Event::Routes { node, life } => {
                if self.nodes[node].life == life {
                    self.find_reachable(node);
                }
            }
        }
    }

    fn find_reachable(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        state.routes_pending = false;
        if let Some((_, directory)) = &mut state.cores {
            let reachable = reachable_from(state.id, directory);
            directory.set_reachable(&reachable);
            self.input(node, Input::Reachable(reachable));
        }
    }

    fn deliver(&mut self, to: usize, link: usize, bytes: Bytes) {
        self.observed.messages += 1;
        self.observed.bytes += bytes.len() as u64;
        let mut buffer = BytesMut::from(&bytes[..]);
        let envelope = Envelope::take(&mut buffer, limits::MESH_MESSAGE_BYTES);
        let envelope = envelope.expect("within the limit").expect("whole");
        let Ok(Some(message)) = GossipMessage::from_envelope(&envelope) else { return };
        let id = self.link_id(link);
        let GossipMessage::Rows(rows) = &message else {
            return self.input(to, Input::Message(id, message));
        };
        let origin = rows.head.origin;
        for record in rows.parse().unwrap_or_default() {
            self.observed.copy(to, origin, record.version());
        }
        let before = self.gossip(to).table().watermark(origin);
        self.input(to, Input::Message(id, message));
        let after = self.gossip(to).table().watermark(origin);
        if after > before {
            self.observed.knows(origin, before, after, self.now);
        }
    }

    fn transmit(&mut self, from: usize, link: usize, message: &GossipMessage) {
        let bytes = (message.stream(), message.to_envelope().to_bytes());
        let state = &mut self.links[link];
        let way = usize::from(state.ends[0] != from);
        let generation = state.generation;
        let taken = state.ways[way].send(&state.model, bytes, self.now, &mut self.rng);
        self.schedule(taken, Event::Taken { from, link, generation });
        self.schedule_passage(link, way);
    }

    /// Schedules what arrives over one direction of a link, and what is sent again.
    fn schedule_passage(&mut self, link: usize, way: usize) {
        let (to, generation) = (self.links[link].ends[1 - way], self.links[link].generation);
        while let Some((at, bytes)) = self.links[link].ways[way].next_arrival() {
            self.schedule(at, Event::Deliver { to, link, generation, bytes });
        }
        if let Some(at) = self.links[link].ways[way].next_resend() {
            self.schedule(at, Event::Resend { link, way, generation });
        }
    }

    /// Does what a relay wants, and wakes it when it wants to be.
    fn drain(&mut self, node: usize) {
        let mut reach = false;
        let mut sends = VecDeque::new();
        while let Some((gossip, directory)) = &mut self.nodes[node].cores {
            let Some(output) = gossip.poll_output() else { break };
            match output {
                Output::Send(link, message) => sends.push_back((link, message)),
                Output::Changed { old, new } => {
                    directory.handle_change(old.as_ref(), new.as_ref(), gossip.table());
                    self.nodes[node].follow(old.as_ref(), new.as_ref());
                }
                Output::Verified(record) => {
                    let key = (record.kind().0, record.key().to_vec());
                    self.nodes[node].disk.insert(key, record);
                }
                Output::AuthorityHead(head) => self.nodes[node].disk_head = Some(head),
                Output::OwnIncarnation(incarnation) => self.nodes[node].incarnation = incarnation,
                // Every node of the simulation has the key.
                Output::UnknownTerm(_) => {}
                Output::Cut(link, _) => {
                    let link = (link.0 >> 32) as usize;
                    if self.links[link].up {
                        let [a, b] = self.links[link].ends;
                        self.cuts.push(if a == node { (a, b) } else { (b, a) });
                        self.links[link].wanted = false;
                        self.take_down(link, Duration::ZERO);
                    }
                }
            }
        }
        for (id, message) in sends {
            let link = (id.0 >> 32) as usize;
            if self.links[link].up && self.link_id(link) == id {
                self.transmit(node, link, &message);
            }
        }
        let Some((_, directory)) = &mut self.nodes[node].cores else { return };
        while let Some(output) = directory.poll_output() {
            reach |= matches!(output, directory::Output::LinksChanged(_));
        }
        if reach && !self.nodes[node].routes_pending {
            self.nodes[node].routes_pending = true;
            let life = self.nodes[node].life;
            self.schedule(self.now + ROUTES_AFTER, Event::Routes { node, life });
        }
        self.schedule_wake(node);
    }

    fn schedule_wake(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        let Some((gossip, _)) = &state.cores else { return };
        let Some(at) = gossip.poll_timeout() else { return };
        let at = state.clock.global(at).max(self.now);
        if state.wake_at.is_none_or(|planned| at < planned) {
            state.wake_at = Some(at);
            let life = state.life;
            self.schedule(at, Event::Wake { node, life });
        }
    }
}

/// The relays to which links lead that both ends say they have.
fn reachable_from(start: RelayId, directory: &Directory) -> BTreeSet<RelayId> {
    let links: BTreeSet<(RelayId, RelayId)> = directory
        .links()
        .flat_map(|(id, row)| row.links.iter().map(move |link| (id, link.peer)))
        .collect();
    let mut reached = BTreeSet::from([start]);
    let mut next = VecDeque::from([start]);
    while let Some(here) = next.pop_front() {
        for (_, peer) in links.range((here, RelayId(0))..=(here, RelayId(u64::MAX))) {
            if links.contains(&(*peer, here)) && reached.insert(*peer) {
                next.push_back(*peer);
            }
        }
    }
    reached
}
