use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tasuki_proto::attest::Presence;
use tasuki_proto::identity::{KeyFingerprint, NodeKey, PublicKey};
use tasuki_proto::record::{RecordKind, Version};
use tasuki_proto::rows::{
    self, AccountRow, AttachmentRole, AttachmentRow, LinkState, LinksRow, LoadRow, RelayAccountRow,
    RelayRow,
};
use tasuki_proto::{Incarnation, LoginEpoch, MeshId, MeshName, RelayId, RelayName, TerminalId};

use crate::core::admin::{AdminReply, AdminRequest, Changed, ChangedRow, RowKind};
use crate::core::gossip::testing::{Origins, signer};
use crate::core::links::LinkChoice;
use crate::core::{Config, Input, LinkId, Output, Relay};

const MESH: MeshId = MeshId([1; 16]);
const LINK: LinkId = LinkId(1);

/// The key of every terminal.
static KEY: LazyLock<NodeKey> = LazyLock::new(|| NodeKey::generate().unwrap());

fn name(word: &str) -> RelayName {
    RelayName::new(word).unwrap()
}

fn id(word: &str) -> RelayId {
    RelayId::of(&MESH, &name(word))
}

fn terminal(word: &str) -> TerminalId {
    TerminalId::new(word).unwrap()
}

/// Relay r1, and what r2 tells it over their link.
struct World {
    relay: Relay,
    now: Instant,
    wall_ms: u64,
    origins: Origins,
    sequences: BTreeMap<RelayId, u64>,
}

impl World {
    fn new() -> Self {
        #[allow(clippy::disallowed_methods, reason = "only differences are used")]
        let now = Instant::now();
        let config = Config {
            name: name("r1"),
            mesh: MeshName::new("m").unwrap(),
            mesh_id: MESH,
            addresses: vec!["r1:4433".to_owned()],
            registrar: true,
            incarnation: Incarnation(7),
            authority: (Incarnation(1), signer(RelayId::AUTHORITY).public()),
            signer: signer(id("r1")),
            links: LinkChoice::Auto,
            terminals: 10,
            sessions: 10,
            seed: [1; 32],
            started_ms: 1,
        };
        let relay = Relay::new(config, now);
        let origins = Origins::new(MESH);
        let mut world = Self { relay, now, wall_ms: 1000, origins, sequences: BTreeMap::new() };
        world.give(Input::LinkUp {
            link: LINK,
            name: name("r2"),
            key: KeyFingerprint([2; 32]),
            dialled_here: true,
            incarnation: Incarnation(1),
            instance: 1,
            address: "192.0.2.2:4433".parse().unwrap(),
        });
        let row = RelayRow {
            name: name("r2"),
            addresses: vec!["r2:4433".to_owned()],
            registrar: false,
            software: "1".to_owned(),
        };
        let account = RelayAccountRow {
            key: signer(id("r2")).public(),
            addresses: row.addresses.clone(),
            registrar: false,
            registered_ms: 1,
        };
        let payload = rows::payload(&account);
        world.arrives(RelayId::AUTHORITY, RecordKind::RELAY_ACCOUNT, b"r2", Some(&payload));
        world.arrives(id("r2"), RecordKind::RELAY, b"", Some(&rows::payload(&row)));
        let links = LinksRow { links: vec![LinkState { peer: id("r1"), rtt_us: 1000 }] };
        world.arrives(id("r2"), RecordKind::LINKS, b"", Some(&rows::payload(&links)));
        // A link counts when it has been stable for some time.
        for _ in 0..60 {
            world.now += Duration::from_secs(1);
            world.give(Input::Timeout);
        }
        world
    }

    fn give(&mut self, input: Input) {
        self.relay.handle(input, self.now, self.wall_ms);
        while self.relay.poll_output().is_some() {}
    }

    fn ask(&mut self, request: AdminRequest) -> AdminReply {
        self.relay.handle(Input::Admin(1, request), self.now, self.wall_ms);
        let mut reply = None;
        while let Some(output) = self.relay.poll_output() {
            if let Output::Reply(1, answer) = output {
                reply = Some(*answer);
            }
        }
        reply.expect("an answer")
    }

    fn changed(&mut self, after: Option<u64>) -> Changed {
        match self.ask(AdminRequest::Changes(after)) {
            AdminReply::Changes(changed) => *changed,
            other => panic!("{other:?}"),
        }
    }

    /// A row arrives; `None` is a tombstone.
    fn arrives(&mut self, origin: RelayId, kind: RecordKind, key: &[u8], payload: Option<&[u8]>) {
        let sequence = self.sequences.entry(origin).or_default();
        let known = Version { incarnation: Incarnation(1), sequence: *sequence };
        *sequence += 1;
        let wall_ms = 2000 + *sequence;
        let row = (kind, key, payload);
        for message in self.origins.write(origin, row, wall_ms, known, self.now) {
            self.give(Input::Gossip(LINK, message));
        }
    }

    fn account(&mut self, terminal: &str, kind: &str) {
        let row = AccountRow {
            kind: kind.to_owned(),
            attributes: BTreeMap::new(),
            groups: vec![],
            key: Some(PublicKey(KEY.public())),
            registered_ms: 1,
        };
        let payload = rows::payload(&row);
        let kind = RecordKind::ACCOUNT;
        self.arrives(RelayId::AUTHORITY, kind, terminal.as_bytes(), Some(&payload));
    }

    fn attached(&mut self, terminal: &str, role: AttachmentRole, sessions: u32) {
        let presence = Presence { relay: id("r2"), epoch: LoginEpoch(1), instance: 1, role };
        let signed = presence.sign(&MESH, &TerminalId::new(terminal).unwrap(), &KEY);
        let row = AttachmentRow {
            role,
            epoch: LoginEpoch(1),
            instance: 1,
            address: "192.0.2.1:1".parse().unwrap(),
            since_ms: 1,
            sessions,
            signature: signed.signature,
        };
        let payload = rows::payload(&row);
        self.arrives(id("r2"), RecordKind::ATTACHMENT, terminal.as_bytes(), Some(&payload));
    }

    fn history(&mut self, request: AdminRequest) -> Vec<String> {
        match self.ask(request) {
            AdminReply::History(items) => {
                assert!(items.is_sorted_by_key(|item| std::cmp::Reverse(item.at)), "{items:?}");
                items.into_iter().map(|item| format!("{} {}", item.what, item.detail)).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

/// What of each row is looked at here.
fn shown(changed: &Changed) -> Vec<String> {
    changed
        .rows
        .iter()
        .map(|(_, row)| match row {
            ChangedRow::Terminal(view) => format!("{} {:?}", view.id, view.state),
            ChangedRow::Relay(view) => format!("{} with {}", view.name, view.terminals),
            ChangedRow::Session(view) => view.id.clone(),
            ChangedRow::Gone(kind, name) => format!("{kind:?} {name} gone"),
        })
        .collect()
}

#[test]
fn watchers_are_told_of_each_row_once_and_as_it_is() {
    let mut world = World::new();
    let begun = world.changed(None);
    assert_eq!((begun.incarnation, begun.rows.len(), begun.missed), (7, 0, false));
    world.account("t1", "camera");
    world.attached("t1", AttachmentRole::Primary, 0);
    world.attached("t1", AttachmentRole::Primary, 2);
    let changed = world.changed(Some(begun.upto));
    assert_eq!(shown(&changed), ["r2 with 1", "t1 InCommunication"]);
    assert!(!changed.more && !changed.missed);
    assert_eq!(changed.upto, changed.rows.last().unwrap().0);
    assert_eq!(shown(&world.changed(Some(changed.upto))), [""; 0]);

    let load = LoadRow { draining: true, terminals: 1 };
    world.arrives(id("r2"), RecordKind::LOAD, b"", Some(&rows::payload(&load)));
    world.arrives(id("r2"), RecordKind::ATTACHMENT, b"t1", None);
    let later = world.changed(Some(changed.upto));
    assert!(shown(&later).contains(&"t1 LoggedOut".to_owned()), "{:?}", shown(&later));
    assert!(shown(&later).contains(&"r2 with 0".to_owned()), "{:?}", shown(&later));
    assert!(world.changed(Some(later.upto + 1)).missed, "from the future");
}

#[test]
fn a_relay_out_of_reach_changes_its_terminals() {
    let mut world = World::new();
    world.account("t1", "camera");
    world.account("t2", "camera");
    world.attached("t1", AttachmentRole::Primary, 0);
    let before = world.changed(None).upto;
    world.give(Input::LinkDown(LINK, None));
    let changed = shown(&world.changed(Some(before)));
    assert!(changed.contains(&"t1 Unreachable".to_owned()), "{changed:?}");
    assert!(changed.iter().any(|row| row.starts_with("r2 ")), "{changed:?}");
    assert!(!changed.iter().any(|row| row.starts_with("t2 ")), "{changed:?}");
    let AdminReply::Summary(summary, None) = world.ask(AdminRequest::Summary { after: None })
    else {
        panic!("no summary");
    };
    let counts = summary.terminals;
    assert_eq!((counts.total, counts.logged_out, counts.unreachable), (2, 1, 1));
    assert_eq!(summary.types, BTreeMap::from([("camera".to_owned(), 2)]));
    assert_eq!((summary.relays.total, summary.relays.reachable), (2, 1));
    let history = world.history(AdminRequest::RelayHistory(name("r2")));
    assert!(history.contains(&"unreachable ".to_owned()), "{history:?}");
}

#[test]
fn histories_tell_what_was_seen() {
    let mut world = World::new();
    world.account("t1", "camera");
    world.attached("t1", AttachmentRole::Standby, 0);
    world.attached("t1", AttachmentRole::Primary, 0);
    world.attached("t1", AttachmentRole::Primary, 1);
    world.attached("t1", AttachmentRole::Primary, 0);
    world.arrives(id("r2"), RecordKind::ATTACHMENT, b"t1", None);
    let mut history = world.history(AdminRequest::TerminalHistory(terminal("t1")));
    assert_eq!(history.pop().unwrap(), "registered ");
    let expected = [
        "logged-out from r2",
        "communication-ended no session over r2",
        "in-communication 1 session over r2",
        "role-changed primary at r2",
        "logged-in at r2 as standby",
    ];
    assert_eq!(history, expected);
    let history = world.history(AdminRequest::RelayHistory(name("r2")));
    assert!(history.contains(&"linked with r1".to_owned()), "{history:?}");
    assert!(history.contains(&"started ".to_owned()), "{history:?}");
    let reply = world.ask(AdminRequest::TerminalHistory(terminal("nobody")));
    assert!(matches!(reply, AdminReply::Refused(_)), "{reply:?}");
    let reply = world.ask(AdminRequest::RelayHistory(name("r9")));
    assert_eq!(reply, AdminReply::UnknownRelay(name("r9")));
}

#[test]
fn an_answer_is_bounded_and_the_next_goes_on() {
    let mut world = World::new();
    let begun = world.changed(None).upto;
    let terminals = tasuki_proto::limits::CHANGES_AT_ONCE + 10;
    for number in 0..terminals {
        world.account(&format!("t{number:04}"), "camera");
    }
    let (mut after, mut rows) = (begun, Vec::new());
    loop {
        let changed = world.changed(Some(after));
        assert!(changed.rows.len() <= tasuki_proto::limits::CHANGES_AT_ONCE);
        rows.extend(shown(&changed));
        after = changed.upto;
        if !changed.more {
            break;
        }
    }
    assert_eq!(rows.len(), terminals);
    assert!(rows.is_sorted() && rows.iter().all(|row| row.ends_with("LoggedOut")));
    let gone = ChangedRow::Gone(RowKind::Terminal, "t0000".to_owned());
    world.arrives(RelayId::AUTHORITY, RecordKind::ACCOUNT, b"t0000", None);
    assert_eq!(world.changed(Some(after)).rows, [(after + 1, gone)]);
    assert_eq!(world.changed(None).rows, []);
}
