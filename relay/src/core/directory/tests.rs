use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Instant;

use bytes::Bytes;
use tasuki_proto::attest::{Attestation, Presence};
use tasuki_proto::identity::{KeyFingerprint, NodeKey, PublicKey};
use tasuki_proto::record::RecordKind;
use tasuki_proto::rows::{
    self, AccountRow, AttachmentRole, AttachmentRow, RelayAccountRow, RelayRow, RevocationRow,
};
use tasuki_proto::view::{TerminalFilter, TerminalState, TerminalView};
use tasuki_proto::{Incarnation, LoginEpoch, MeshId, RelayId, RelayName, TerminalId, limits};

use super::{Directory, Lookup, Output};
use crate::core::LinkId;
use crate::core::gossip::testing::{Origins, signer};
use crate::core::gossip::{self, Config, Gossip, Input, Write};

const MESH: MeshId = MeshId([1; 16]);
const LINK: LinkId = LinkId(1);

fn relay(name: &str) -> RelayId {
    RelayId::of(&MESH, &RelayName::new(name).unwrap())
}

fn terminal(name: &str) -> TerminalId {
    TerminalId::new(name).unwrap()
}

/// The key of every terminal.
static KEY: LazyLock<NodeKey> = LazyLock::new(|| NodeKey::generate().unwrap());

/// The directory of relay r1, and the table that it hears of.
struct Setup {
    gossip: Gossip,
    directory: Directory,
    now: Instant,
    origins: Origins,
    /// The time of the last row.
    wall_ms: u64,
}

impl Setup {
    fn new() -> Setup {
        #[allow(clippy::disallowed_methods, reason = "only differences are used")]
        let now = Instant::now();
        let me = relay("r1");
        let config = Config::new(me, Incarnation(1), MESH, signer(me), [0; 2]);
        let mut setup = Setup {
            gossip: Gossip::new(config, now),
            directory: Directory::new(me, MESH, [4, 5]),
            now,
            origins: Origins::new(MESH),
            wall_ms: 0,
        };
        let authority = signer(RelayId::AUTHORITY).public();
        setup.handle(Input::AuthorityKey(Incarnation(1), authority));
        setup.handle(Input::LinkUp(LINK, relay("r2")));
        setup.directory.set_reachable(&BTreeSet::from([relay("r2")]));
        setup
    }

    fn handle(&mut self, input: Input) {
        self.gossip.handle(input, self.now);
        while let Some(output) = self.gossip.poll_output() {
            if let gossip::Output::Changed { old, new } = output {
                let table = self.gossip.table();
                self.directory.handle_change(old.as_ref(), new.as_ref(), table);
            }
        }
    }

    /// A row arrives; `None` is a tombstone.
    fn arrives(&mut self, origin: RelayId, kind: RecordKind, key: &[u8], payload: Option<&[u8]>) {
        self.wall_ms += 1;
        if origin != RelayId::AUTHORITY {
            self.handle(Input::RelayKey(origin, Some(signer(origin).public())));
        }
        let known = self.gossip.table().watermark(origin);
        let row = (kind, key, payload);
        for message in self.origins.write(origin, row, self.wall_ms, known, self.now) {
            self.handle(Input::Message(LINK, message));
        }
    }

    fn account(&mut self, name: &str, kind: &str) {
        self.account_with(name, kind, Some(PublicKey(KEY.public())));
    }

    fn account_with(&mut self, name: &str, kind: &str, key: Option<PublicKey>) {
        let row = AccountRow {
            kind: kind.to_owned(),
            attributes: Default::default(),
            groups: Vec::new(),
            key,
            registered_ms: 1,
        };
        let payload = rows::payload(&row);
        self.arrives(RelayId::AUTHORITY, RecordKind::ACCOUNT, name.as_bytes(), Some(&payload));
    }

    fn relay_row(&mut self, at: &str, says: &str) {
        let row = RelayRow {
            name: RelayName::new(says).unwrap(),
            addresses: vec![format!("{at}:4433")],
            registrar: false,
            software: "1".to_owned(),
        };
        self.arrives(relay(at), RecordKind::RELAY, b"", Some(&rows::payload(&row)));
    }

    fn attached(&mut self, at: &str, name: &str, role: AttachmentRole, epoch: u64, sessions: u32) {
        let payload = attachment((at, name), role, epoch, sessions);
        self.arrives(relay(at), RecordKind::ATTACHMENT, name.as_bytes(), Some(&payload));
    }

    /// A relay claims an attachment that the terminal signed for another one.
    fn forged(&mut self, at: &str, name: &str, epoch: u64) {
        let payload = attachment(("elsewhere", name), AttachmentRole::Primary, epoch, 0);
        self.arrives(relay(at), RecordKind::ATTACHMENT, name.as_bytes(), Some(&payload));
    }

    fn lookup(&mut self, name: &str) -> Lookup {
        self.directory.lookup(self.gossip.table(), &terminal(name))
    }

    fn state(&mut self, name: &str) -> TerminalState {
        self.directory.terminal_view(self.gossip.table(), &terminal(name)).unwrap().state
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.directory.poll_output()).collect()
    }
}

fn attested(at: &str, name: &str, role: AttachmentRole, epoch: u64) -> Attestation {
    let presence = Presence { relay: relay(at), epoch: LoginEpoch(epoch), instance: 5, role };
    presence.sign(&MESH, &terminal(name), &KEY)
}

fn attachment((at, name): (&str, &str), role: AttachmentRole, epoch: u64, sessions: u32) -> Bytes {
    rows::payload(&AttachmentRow {
        role,
        epoch: LoginEpoch(epoch),
        instance: 5,
        address: SocketAddr::from(([192, 0, 2, 1], 4000)),
        since_ms: 3,
        sessions,
        signature: attested(at, name, role, epoch).signature,
    })
}

#[test]
fn a_terminal_is_unknown_logged_out_attached_unreachable() {
    let mut setup = Setup::new();
    assert_eq!(setup.lookup("a"), Lookup::NotYetKnown, "an empty table knows nothing");
    setup.account("b", "plc");
    assert_eq!(setup.lookup("a"), Lookup::Unknown);
    setup.attached("r2", "a", AttachmentRole::Primary, 1, 0);
    assert_eq!(setup.lookup("a"), Lookup::NotYetKnown, "its account is on its way");
    setup.account("a", "plc");
    let Lookup::At(location) = setup.lookup("a") else { panic!() };
    assert_eq!((location.relay, location.epoch), (relay("r2"), LoginEpoch(1)));
    assert_eq!(setup.state("a"), TerminalState::LoggedIn);
    setup.attached("r2", "a", AttachmentRole::Primary, 1, 2);
    assert_eq!(setup.state("a"), TerminalState::InCommunication);
    setup.directory.set_reachable(&BTreeSet::new());
    assert_eq!(setup.lookup("a"), Lookup::Unreachable);
    assert_eq!(setup.state("a"), TerminalState::Unreachable);
    setup.directory.set_reachable(&BTreeSet::from([relay("r2")]));
    setup.arrives(relay("r2"), RecordKind::ATTACHMENT, b"a", None);
    assert_eq!(setup.lookup("a"), Lookup::LoggedOut);
    assert_eq!(setup.state("a"), TerminalState::LoggedOut);
}

#[test]
fn the_highest_login_at_a_reachable_relay_is_current_and_its_primary_first() {
    let mut setup = Setup::new();
    setup.directory.set_reachable(&BTreeSet::from([relay("r2"), relay("r3")]));
    setup.account("a", "plc");
    setup.attached("r2", "a", AttachmentRole::Standby, 4, 0);
    setup.attached("r3", "a", AttachmentRole::Primary, 4, 0);
    setup.attached("r4", "a", AttachmentRole::Primary, 9, 0);
    let table = setup.gossip.table();
    let found = setup.directory.locations(table, &terminal("a"));
    let relays: Vec<RelayId> = found.iter().map(|location| location.relay).collect();
    assert_eq!(relays, [relay("r3"), relay("r2")]);
    let highest = setup.directory.highest_login(table, &terminal("a"));
    let expected = attested("r4", "a", AttachmentRole::Primary, 9);
    assert_eq!(highest, Some(expected), "also at relays that cannot be reached");
    let Lookup::At(location) = setup.lookup("a") else { panic!() };
    assert_eq!(location.relay, relay("r3"));
}

#[test]
fn a_terminal_with_two_attachments_is_shown_with_both() {
    let mut setup = Setup::new();
    setup.directory.set_reachable(&BTreeSet::from([relay("r2"), relay("r3")]));
    for name in ["r2", "r3"] {
        setup.relay_row(name, name);
    }
    setup.account("a", "plc");
    setup.attached("r3", "a", AttachmentRole::Primary, 2, 2);
    setup.attached("r2", "a", AttachmentRole::Standby, 2, 3);
    let view = setup.directory.terminal_view(setup.gossip.table(), &terminal("a")).unwrap();
    let shown: Vec<_> = view.attachments.iter().map(|a| (a.relay.as_str(), a.role)).collect();
    assert_eq!(shown, [("r2", AttachmentRole::Standby), ("r3", AttachmentRole::Primary)]);
    assert_eq!(view.sessions, 3, "each session has a way over both");
    assert_eq!(view.state, TerminalState::InCommunication);
    // The one that says the next epoch voids the other.
    setup.attached("r2", "a", AttachmentRole::Primary, 3, 1);
    let view = setup.directory.terminal_view(setup.gossip.table(), &terminal("a")).unwrap();
    assert_eq!((view.attachments.len(), view.sessions), (1, 1));
}

#[test]
fn a_newer_login_elsewhere_is_told() {
    let mut setup = Setup::new();
    setup.handle(Input::Write(Write {
        kind: RecordKind::ATTACHMENT,
        key: Bytes::from_static(b"a"),
        payload: Some(attachment(("r1", "a"), AttachmentRole::Primary, 3, 0)),
        lifetime_secs: 0,
        wall_ms: 1,
        scope: 0,
    }));
    setup.account("a", "plc");
    setup.attached("r2", "a", AttachmentRole::Standby, 3, 0);
    setup.forged("r2", "a", 7);
    setup.attached("r2", "a", AttachmentRole::Primary, 4 + limits::EPOCH_JUMP, 0);
    assert_eq!(setup.outputs(), [], "nor is a forged one or one far ahead");
    setup.attached("r2", "a", AttachmentRole::Primary, 4, 0);
    let there = attested("r2", "a", AttachmentRole::Primary, 4);
    let newer = Output::NewerLogin { terminal: terminal("a"), there };
    assert_eq!(setup.outputs(), std::slice::from_ref(&newer));
    // Another machine enrolled in its place, and logs in elsewhere before its account arrives here.
    setup.account_with("a", "plc", Some(PublicKey([9; 32])));
    setup.attached("r2", "a", AttachmentRole::Primary, 4, 1);
    assert_eq!(setup.outputs(), []);
    setup.account("a", "plc");
    assert_eq!(setup.outputs(), [newer]);
}

#[test]
fn relays_are_known_from_accounts_and_by_their_proven_name() {
    let mut setup = Setup::new();
    let account = RelayAccountRow {
        key: PublicKey([1; 32]),
        addresses: vec!["old:1".to_owned()],
        registrar: true,
        registered_ms: 8,
    };
    let payload = rows::payload(&account);
    setup.arrives(RelayId::AUTHORITY, RecordKind::RELAY_ACCOUNT, b"r2", Some(&payload));
    assert_eq!(setup.directory.contacts()[0].addresses, ["old:1"]);
    let key = Some(PublicKey([1; 32]));
    assert_eq!(setup.outputs(), [Output::ContactsChanged, Output::RelayKey(relay("r2"), key)]);
    setup.relay_row("r2", "r2");
    setup.relay_row("r3", "r2");
    let views = setup.directory.relays();
    assert_eq!(views.len(), 1, "a name that the id does not prove is not shown: {views:?}");
    assert_eq!(views[0].addresses, ["r2:4433"]);
    assert!(views[0].registrar && views[0].reachable);
    assert_eq!(setup.directory.name_of(relay("r3")), None);
}

#[test]
fn revocations_count_once_they_are_proven() {
    let mut setup = Setup::new();
    let row = RevocationRow { name: "a".to_owned(), revoked_ms: 1 };
    let payload = rows::payload(&row);
    let key = KeyFingerprint([8; 32]);
    setup.arrives(RelayId::AUTHORITY, RecordKind::REVOCATION, &key.0, Some(&payload));
    assert!(setup.directory.is_revoked(&key));
    assert_eq!(setup.outputs(), [Output::Revoked(key)]);
}

#[test]
fn lists_are_ordered_filtered_and_paged() {
    let mut setup = Setup::new();
    for number in 0..30 {
        let kind = if number % 2 == 0 { "plc" } else { "camera" };
        setup.account(&format!("t-{number:02}"), kind);
    }
    let filter = TerminalFilter { kind: Some("plc".to_owned()), ..TerminalFilter::default() };
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let table = setup.gossip.table();
        let (items, next) = setup.directory.list(table, &filter, after.as_ref(), 4);
        assert!(items.len() <= 4);
        seen.extend(items.into_iter().map(|view| view.id.to_string()));
        after = next;
        if after.is_none() {
            break;
        }
    }
    let expected: Vec<String> = (0..30).step_by(2).map(|n| format!("t-{n:02}")).collect();
    assert_eq!(seen, expected);
    let table = setup.gossip.table();
    let all = setup.directory.list(table, &TerminalFilter::default(), None, limits::PAGE);
    assert_eq!((all.0.len(), all.1), (30, None));
}

#[test]
fn a_search_pages_through_the_rows_of_a_list_that_contain_its_text() {
    let mut setup = Setup::new();
    for number in 0..300 {
        let name = format!("t-{number:03}");
        setup.account(&name, if number % 3 == 0 { "plc" } else { "camera" });
        if number % 2 == 0 {
            setup.attached("r2", &name, AttachmentRole::Primary, 1, 0);
        }
    }
    for number in (0..300).step_by(7) {
        let name = format!("t-{number:03}");
        setup.arrives(RelayId::AUTHORITY, RecordKind::ACCOUNT, name.as_bytes(), None);
    }
    let pages = |filter: &TerminalFilter, limit: usize| {
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let table = setup.gossip.table();
            let (items, next) = setup.directory.list(table, filter, after.as_ref(), limit);
            assert!(items.len() <= limit);
            seen.extend(items);
            after = next;
            if after.is_none() {
                return seen;
            }
        }
    };
    for kind in [None, Some("plc".to_owned())] {
        for state in [None, Some(TerminalState::LoggedIn)] {
            let mut filter = TerminalFilter { state, kind: kind.clone(), text: None };
            let all = pages(&filter, limits::PAGE);
            assert!(all.len() > 20);
            for (text, limit) in ["", "t-", "1", "22", "-2", "t-299", "T", "1\nt"]
                .into_iter()
                .flat_map(|text| [1, 7, limits::PAGE].map(|limit| (text, limit)))
            {
                let has_text = |view: &&TerminalView| view.id.as_str().contains(text);
                let expected: Vec<TerminalView> = all.iter().filter(has_text).cloned().collect();
                filter.text = Some(text.to_owned());
                assert_eq!(pages(&filter, limit), expected, "{filter:?}, {limit} at once");
            }
        }
    }
}

#[test]
fn an_attachment_that_its_terminal_did_not_sign_is_as_good_as_absent() {
    let mut setup = Setup::new();
    setup.directory.set_reachable(&BTreeSet::from([relay("r2"), relay("r3")]));
    for name in ["r2", "r3"] {
        setup.relay_row(name, name);
    }
    setup.account("a", "plc");
    setup.forged("r3", "a", 90);
    assert_eq!(setup.lookup("a"), Lookup::LoggedOut);
    assert_eq!(setup.state("a"), TerminalState::LoggedOut);
    setup.attached("r2", "a", AttachmentRole::Primary, 4, 0);
    let Lookup::At(location) = setup.lookup("a") else { panic!() };
    assert_eq!((location.relay, location.epoch), (relay("r2"), LoginEpoch(4)));
    let (table, id) = (setup.gossip.table(), terminal("a"));
    assert_eq!(setup.directory.locations(table, &id), [location]);
    let highest = setup.directory.highest_login(table, &id).unwrap();
    assert_eq!(highest.presence.epoch, LoginEpoch(4));
    let view = setup.directory.terminal_view(setup.gossip.table(), &id).unwrap();
    assert_eq!(view.attachments.len(), 1);
    assert_eq!(setup.directory.forged_attachments(), 1, "checked once");
    // Its count changes, the signature does not.
    setup.arrives(relay("r3"), RecordKind::ATTACHMENT, b"a", None);
    setup.attached("r2", "a", AttachmentRole::Primary, 4, 2);
    assert_eq!(setup.directory.unchecked(setup.gossip.table(), &id), 0);
    assert_eq!(setup.state("a"), TerminalState::InCommunication);
    // Another machine enrolled in its place.
    setup.account_with("a", "plc", Some(PublicKey([9; 32])));
    assert_eq!(setup.lookup("a"), Lookup::LoggedOut);
    setup.account_with("a", "plc", None);
    assert_eq!(setup.lookup("a"), Lookup::LoggedOut);
}

#[test]
fn a_log_in_far_above_the_others_is_as_good_as_absent() {
    let mut setup = Setup::new();
    setup.directory.set_reachable(&BTreeSet::from([relay("r2"), relay("r3")]));
    setup.account("a", "plc");
    setup.attached("r2", "a", AttachmentRole::Primary, 4, 0);
    setup.attached("r3", "a", AttachmentRole::Primary, 5 + limits::EPOCH_JUMP, 0);
    let Lookup::At(location) = setup.lookup("a") else { panic!() };
    assert_eq!(location.relay, relay("r2"));
    setup.attached("r3", "a", AttachmentRole::Primary, 4 + limits::EPOCH_JUMP, 0);
    let Lookup::At(location) = setup.lookup("a") else { panic!() };
    assert_eq!(location.relay, relay("r3"));
    // Alone, nothing says that it is far.
    setup.arrives(relay("r2"), RecordKind::ATTACHMENT, b"a", None);
    setup.attached("r3", "a", AttachmentRole::Primary, limits::EPOCH_MOST, 0);
    assert!(matches!(setup.lookup("a"), Lookup::At(_)));
    setup.attached("r3", "a", AttachmentRole::Primary, limits::EPOCH_MOST + 1, 0);
    assert_eq!(setup.lookup("a"), Lookup::LoggedOut);
}

#[test]
fn lists_show_no_forged_attachment_and_check_few_signatures_a_page() {
    let mut setup = Setup::new();
    setup.relay_row("r2", "r2");
    for number in 0..200 {
        let name = format!("t-{number:03}");
        setup.account(&name, "plc");
        if number % 2 == 0 {
            setup.attached("r2", &name, AttachmentRole::Primary, 1, 0);
        } else {
            setup.forged("r2", &name, 1);
        }
    }
    let filter = TerminalFilter { state: Some(TerminalState::LoggedIn), ..Default::default() };
    let (mut after, mut seen, mut pages) = (None, 0, 0);
    loop {
        let before = setup.directory.forged_attachments();
        let table = setup.gossip.table();
        let (items, next) = setup.directory.list(table, &filter, after.as_ref(), limits::PAGE);
        assert!(setup.directory.forged_attachments() - before <= 33, "half of 64 and one");
        assert!(items.iter().all(|view| view.attachments.len() == 1));
        seen += items.len();
        pages += 1;
        after = next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, 100);
    assert!(pages > 3, "{pages}");
    let filter = TerminalFilter { state: Some(TerminalState::LoggedOut), ..Default::default() };
    let table = setup.gossip.table();
    let (items, _) = setup.directory.list(table, &filter, None, limits::PAGE);
    assert_eq!(items.len(), 100, "those with a forged attachment");
}
