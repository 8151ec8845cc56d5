use std::sync::LazyLock;

use tasuki_proto::identity::NodeKey;
use tasuki_proto::rows::AttachmentRole;

use super::*;

struct World {
    login: Login,
    now: Instant,
    instances: BTreeMap<ConnId, u64>,
}

const MESH: MeshId = MeshId([1; 16]);
const OWN: RelayId = RelayId(1);
const OTHER: RelayId = RelayId(2);

static KEY: LazyLock<NodeKey> = LazyLock::new(|| NodeKey::generate().unwrap());

fn public() -> PublicKey {
    PublicKey(KEY.public())
}

/// A log-in of the terminal `a` at another relay.
fn attested(epoch: u64, instance: u64) -> Attestation {
    signed(&KEY, "a", OTHER, epoch, instance, AttachmentRole::Primary)
}

fn signed(
    key: &NodeKey,
    terminal: &str,
    relay: RelayId,
    epoch: u64,
    instance: u64,
    role: AttachmentRole,
) -> Attestation {
    let presence = Presence { relay, epoch: LoginEpoch(epoch), instance, role };
    presence.sign(&MESH, &TerminalId::new(terminal).unwrap(), key)
}

fn known(epoch: u64, instance: u64) -> Known {
    Known { key: Some(public()), highest: Some(attested(epoch, instance)) }
}

impl World {
    #[allow(clippy::disallowed_methods)]
    fn new() -> Self {
        let name = RelayName::new("r1").unwrap();
        let login = Login::new(OWN, MESH, name, 3);
        Self { login, now: Instant::now(), instances: BTreeMap::new() }
    }

    fn give(&mut self, input: Input) -> Vec<Output> {
        self.login.handle(input, self.now, 1);
        std::iter::from_fn(|| self.login.poll_output()).collect()
    }

    fn connect(&mut self, conn: u64, terminal: &str) {
        let outputs = self.give(Input::Connected {
            conn: ConnId(conn),
            terminal: TerminalId::new(terminal).unwrap(),
            key: public().fingerprint(),
            address: "127.0.0.1:9".parse().unwrap(),
            handle: Label::new(5).unwrap(),
        });
        assert_eq!(outputs, []);
    }

    fn hello(&mut self, conn: u64, instance: u64, known: Known) -> Vec<Output> {
        self.instances.insert(ConnId(conn), instance);
        let hello = Hello { protocol: version::PROTOCOL, software: "test".to_owned(), instance };
        self.give(Input::Hello(ConnId(conn), hello, known))
    }

    fn login(&mut self, conn: u64, epoch: u64, known: Known) -> Vec<Output> {
        let login = self.message(conn, epoch, AttachmentRole::Primary);
        self.give(Input::Login(ConnId(conn), login, known))
    }

    /// A log-in that the terminal signed.
    fn message(&self, conn: u64, epoch: u64, role: AttachmentRole) -> LoginMessage {
        let conn = ConnId(conn);
        let terminal = self.login.connected(conn).unwrap().as_str();
        let instance = self.instances.get(&conn).copied().unwrap_or(0);
        let signature = signed(&KEY, terminal, OWN, epoch, instance, role).signature;
        LoginMessage { epoch: LoginEpoch(epoch), role, signature }
    }

    fn attach(&mut self, conn: u64, instance: u64, epoch: u64) -> Vec<Output> {
        self.connect(conn, "a");
        self.hello(conn, instance, known(epoch - 1, 0));
        self.login(conn, epoch, known(epoch - 1, 0))
    }
}

fn refused_with(outputs: &[Output]) -> Option<RefusalCode> {
    outputs.iter().find_map(|output| match output {
        Output::Send(_, ToTerminal::Refused(refused)) => Some(refused.refusal.code),
        _ => None,
    })
}

#[test]
fn a_log_in_writes_its_row_and_a_log_out_removes_it() {
    let mut world = World::new();
    let outputs = world.attach(1, 77, 4);
    assert!(matches!(&outputs[0], Output::Write(_, row) if row.epoch == LoginEpoch(4)));
    assert!(matches!(&outputs[2], Output::Attached(ConnId(1), _)));
    let outputs = world.give(Input::Logout(ConnId(1)));
    assert!(matches!(outputs[0], Output::Detached(_, _, RefusalCode::LoggedOut)));
    assert!(matches!(outputs[1], Output::Remove(_)));
    assert!(world.login.is_empty());
}

#[test]
fn a_new_log_in_takes_the_place_of_the_old_at_once() {
    let mut world = World::new();
    world.attach(1, 77, 4);
    let outputs = world.attach(2, 78, 5);
    assert_eq!(refused_with(&outputs), Some(RefusalCode::Superseded));
    assert!(outputs.contains(&Output::Close(ConnId(1), RefusalCode::Superseded)));
    assert_eq!(world.login.conn_of(&TerminalId::new("a").unwrap()), Some(ConnId(2)));
    // The old connection's end does not touch the new row.
    assert_eq!(world.give(Input::Closed(ConnId(1))), []);
    assert_eq!(world.login.len(), 1);
}

#[test]
fn an_older_log_in_is_refused() {
    let mut world = World::new();
    world.connect(1, "a");
    world.hello(1, 77, known(9, 5));
    assert_eq!(refused_with(&world.login(1, 8, known(9, 5))), Some(RefusalCode::Superseded));
}

#[test]
fn the_same_epoch_is_for_the_same_process_only() {
    let mut world = World::new();
    world.connect(1, "a");
    world.hello(1, 77, known(9, 77));
    assert_eq!(refused_with(&world.login(1, 9, known(9, 77))), None);
    world.connect(2, "a");
    world.hello(2, 78, known(9, 77));
    assert_eq!(refused_with(&world.login(2, 9, known(9, 77))), Some(RefusalCode::Superseded));
}

#[test]
fn a_newer_log_in_elsewhere_cuts_this_one() {
    let mut world = World::new();
    world.attach(1, 77, 4);
    let id = TerminalId::new("a").unwrap();
    assert_eq!(world.give(Input::Elsewhere(id.clone(), attested(4, 77))), []);
    assert_eq!(world.give(Input::Elsewhere(id.clone(), attested(3, 99))), []);
    let outputs = world.give(Input::Elsewhere(id, attested(5, 1)));
    assert_eq!(refused_with(&outputs), Some(RefusalCode::Superseded));
}

#[test]
fn too_old_unknown_revoked_and_draining_are_refused_by_code() {
    let mut world = World::new();
    world.connect(1, "a");
    let hello = Hello { protocol: 0, software: "old".to_owned(), instance: 1 };
    let outputs = world.give(Input::Hello(ConnId(1), hello, known(0, 0)));
    assert_eq!(refused_with(&outputs), Some(RefusalCode::ProtocolTooOld));

    world.connect(2, "b");
    let unknown = Known { key: None, highest: None };
    assert_eq!(refused_with(&world.hello(2, 1, unknown)), Some(RefusalCode::NotYetKnown));

    world.attach(3, 1, 1);
    assert_eq!(
        refused_with(&world.give(Input::Revoked(public().fingerprint()))),
        Some(RefusalCode::Revoked)
    );
    assert!(world.login.is_empty());

    world.login.set_draining(true);
    world.connect(4, "d");
    assert_eq!(refused_with(&world.hello(4, 1, known(0, 0))), Some(RefusalCode::Draining));
}

#[test]
fn messages_out_of_order_are_protocol_errors() {
    let mut world = World::new();
    world.connect(1, "a");
    assert_eq!(refused_with(&world.login(1, 1, known(0, 0))), Some(RefusalCode::ProtocolError));
    world.connect(2, "b");
    world.hello(2, 1, known(0, 0));
    assert_eq!(refused_with(&world.hello(2, 1, known(0, 0))), Some(RefusalCode::ProtocolError));
    world.connect(3, "c");
    world.hello(3, 1, known(0, 0));
    assert_eq!(
        refused_with(&world.login(3, u64::MAX, known(0, 0))),
        Some(RefusalCode::ProtocolError)
    );
}

#[test]
fn counts_go_out_at_once_between_0_and_1_and_else_once_a_second() {
    let mut world = World::new();
    world.attach(1, 1, 1);
    let count = |world: &mut World, n| world.give(Input::Communicating(ConnId(1), n)).len();
    assert_eq!(count(&mut world, 1), 1);
    assert_eq!(count(&mut world, 2), 0);
    assert_eq!(count(&mut world, 3), 0);
    let due = world.login.poll_timeout().unwrap();
    world.now = due;
    world.login.handle_timeout(due);
    assert!(matches!(world.login.poll_output(), Some(Output::Write(_, row)) if row.sessions == 3));
    assert_eq!(world.login.poll_timeout(), None);
    assert_eq!(count(&mut world, 0), 1);
}

fn row_of(outputs: &[Output]) -> Option<&AttachmentRow> {
    outputs.iter().find_map(|output| match output {
        Output::Write(_, row) => Some(row),
        _ => None,
    })
}

fn told_to_sessions(outputs: &[Output]) -> Option<RefusalCode> {
    outputs.iter().find_map(|output| match output {
        Output::Detached(_, _, code) => Some(*code),
        _ => None,
    })
}

#[test]
fn a_standing_attachment_changes_its_epoch_and_role() {
    let mut world = World::new();
    world.attach(1, 77, 4);
    let login = world.message(1, 5, AttachmentRole::Standby);
    let outputs = world.give(Input::Login(ConnId(1), login.clone(), known(4, 77)));
    let row = row_of(&outputs).unwrap();
    assert_eq!((row.epoch, row.role), (LoginEpoch(5), AttachmentRole::Standby));
    let logged_in = || Output::Send(ConnId(1), ToTerminal::LoggedIn(LoggedIn {}));
    assert_eq!(outputs[1..], [logged_in()], "it was attached already");
    // Said twice, it writes nothing.
    let outputs = world.give(Input::Login(ConnId(1), login, known(5, 77)));
    assert_eq!(outputs, [logged_in()]);
    // The connection counts as it did.
    assert_eq!(world.login.conn_of(&TerminalId::new("a").unwrap()), Some(ConnId(1)));
}

#[test]
fn an_epoch_never_goes_back() {
    let mut world = World::new();
    world.attach(1, 77, 4);
    let outputs = world.login(1, 3, known(4, 77));
    assert_eq!(refused_with(&outputs), Some(RefusalCode::Superseded));
    assert_eq!(told_to_sessions(&outputs), Some(RefusalCode::RouteLost));
    // Another process took over meanwhile.
    world.attach(2, 77, 6);
    let outputs = world.login(2, 6, known(6, 99));
    assert_eq!(refused_with(&outputs), Some(RefusalCode::Superseded));
    assert_eq!(told_to_sessions(&outputs), Some(RefusalCode::Superseded));
    assert!(world.login.is_empty());
}

#[test]
fn who_changes_his_role_all_the_time_is_cut() {
    let mut world = World::new();
    world.attach(1, 77, 4);
    for epoch in 5..5 + u64::from(limits::ROLE_CHANGES_AT_ONCE) {
        assert_eq!(refused_with(&world.login(1, epoch, known(epoch - 1, 77))), None);
    }
    world.now += Duration::from_secs(1);
    for epoch in 30..30 + u64::from(limits::ROLE_CHANGES_PER_SECOND) {
        assert_eq!(refused_with(&world.login(1, epoch, known(epoch - 1, 77))), None);
    }
    let outputs = world.login(1, 99, known(98, 77));
    assert_eq!(refused_with(&outputs), Some(RefusalCode::ProtocolError));
    assert!(world.login.is_empty());
}

#[test]
fn sessions_outlive_what_the_same_process_replaces() {
    let id = TerminalId::new("a").unwrap();
    // By another connection here.
    let mut world = World::new();
    world.attach(1, 77, 4);
    let outputs = world.attach(2, 77, 5);
    assert_eq!(refused_with(&outputs), Some(RefusalCode::Superseded));
    assert_eq!(told_to_sessions(&outputs), Some(RefusalCode::RouteLost));
    // By an attachment elsewhere, which only the same epoch leaves alone.
    assert_eq!(world.give(Input::Elsewhere(id.clone(), attested(5, 77))), []);
    let outputs = world.give(Input::Elsewhere(id.clone(), attested(6, 77)));
    assert_eq!(refused_with(&outputs), Some(RefusalCode::Superseded));
    assert_eq!(told_to_sessions(&outputs), Some(RefusalCode::RouteLost));
    // Another process ends them.
    world.attach(3, 77, 7);
    let outputs = world.give(Input::Elsewhere(id, attested(8, 99)));
    assert_eq!(told_to_sessions(&outputs), Some(RefusalCode::Superseded));
}

#[test]
fn welcome_tells_how_many_are_attached() {
    let mut world = World::new();
    world.attach(1, 77, 4);
    world.connect(2, "b");
    let outputs = world.hello(2, 5, known(0, 0));
    assert!(
        matches!(&outputs[..], [Output::Send(_, ToTerminal::Welcome(welcome))] if welcome.terminals == 1)
    );
}

/// Lets time pass until the log-in has something to do.
fn wait(world: &mut World) -> Vec<Output> {
    world.now = world.login.poll_timeout().unwrap();
    world.login.handle_timeout(world.now);
    std::iter::from_fn(|| world.login.poll_output()).collect()
}

#[test]
fn who_does_not_log_in_is_cut_and_who_does_stays() {
    let mut world = World::new();
    let start = world.now;
    world.connect(1, "mute");
    world.connect(2, "half");
    world.hello(2, 1, known(0, 0));
    world.attach(3, 77, 4);
    let outputs = wait(&mut world);
    assert_eq!(world.now, start + limits::LOGIN_TIMEOUT);
    for conn in [1, 2] {
        let cut = Output::Close(ConnId(conn), RefusalCode::Silent);
        assert!(outputs.contains(&cut), "{conn}: {outputs:?}");
        world.give(Input::Closed(ConnId(conn)));
    }
    assert_eq!(world.login.poll_timeout(), None);
    assert_eq!((world.login.len(), world.login.refused()[1]), (1, ("login-too-long", 2)));
}

#[test]
fn a_terminal_has_few_connections_that_are_not_logged_in() {
    let mut world = World::new();
    world.attach(1, 77, 4);
    for conn in 2..2 + limits::LOGINS_PER_TERMINAL as u64 {
        world.connect(conn, "a");
    }
    world.connect(50, "b");
    let outputs = world.give(Input::Connected {
        conn: ConnId(60),
        terminal: TerminalId::new("a").unwrap(),
        key: public().fingerprint(),
        address: "127.0.0.1:9".parse().unwrap(),
        handle: Label::new(5).unwrap(),
    });
    // Neither the attachment nor another terminal makes room.
    assert_eq!(outputs[1..], [Output::Close(ConnId(2), RefusalCode::Overloaded)]);
    assert_eq!(world.login.refused()[2], ("logins-of-terminal", 1));
    // Who came last logs in as ever.
    world.hello(60, 78, known(4, 77));
    assert_eq!(refused_with(&world.login(60, 5, known(4, 77))), Some(RefusalCode::Superseded));
    assert_eq!(world.login.conn_of(&TerminalId::new("a").unwrap()), Some(ConnId(60)));
}

/// Its NAT gave it another port: the table shows it, and the terminal can offer it to its peers.
#[test]
fn a_terminal_hears_at_which_address_it_is_seen() {
    let mut world = World::new();
    world.attach(1, 1, 1);
    let address = "203.0.113.9:700".parse().unwrap();
    let outputs = world.give(Input::Moved(ConnId(1), address));
    let seen = Output::Send(ConnId(1), ToTerminal::Seen(Seen { address }));
    assert!(outputs.contains(&seen), "{outputs:?}");
    assert!(outputs.iter().any(|o| matches!(o, Output::Write(_, row) if row.address == address)));
    assert_eq!(world.give(Input::Moved(ConnId(1), address)), [], "said once");
}

#[test]
fn a_terminal_that_moves_or_calls_without_end_writes_its_row_at_a_bounded_rate() {
    let mut world = World::new();
    world.attach(1, 1, 1);
    let row_of = |outputs: &[Output]| {
        let rows = outputs.iter().filter(|output| matches!(output, Output::Write(..)));
        rows.count()
    };
    let (start, seconds) = (world.now, 10);
    let mut rows = 0;
    for ms in 0..1_000 * seconds {
        world.now = start + Duration::from_millis(ms);
        world.login.handle_timeout(world.now);
        let address = SocketAddr::from(([203, 0, 113, 9], 1_000 + (ms % 7) as u16));
        rows += row_of(&world.give(Input::Moved(ConnId(1), address)));
        rows += row_of(&world.give(Input::Communicating(ConnId(1), (ms % 2) as u32)));
    }
    let at_once = limits::COUNTS_AT_ONCE + limits::COUNTS_PER_SECOND * seconds as u32;
    let most = at_once as usize + 2 * seconds as usize + 2;
    assert!(rows <= most, "{rows} rows in {seconds} s");
    // The last word is told.
    let address = "203.0.113.9:700".parse().unwrap();
    world.give(Input::Moved(ConnId(1), address));
    while let Some(due) = world.login.poll_timeout() {
        world.login.handle_timeout(due);
    }
    let told: Vec<_> = std::iter::from_fn(|| world.login.poll_output()).collect();
    assert!(told.iter().any(|o| matches!(o, Output::Write(_, row) if row.address == address)));
}

fn proof(outputs: &[Output]) -> Option<Attestation> {
    outputs.iter().find_map(|output| match output {
        Output::Send(_, ToTerminal::Refused(refused)) => refused.by,
        _ => None,
    })
}

#[test]
fn a_log_in_that_its_terminal_did_not_sign_is_refused() {
    let enemy = NodeKey::generate().unwrap();
    let role = AttachmentRole::Primary;
    let forged = [
        signed(&enemy, "a", OWN, 4, 77, role),
        signed(&KEY, "b", OWN, 4, 77, role),
        signed(&KEY, "a", OTHER, 4, 77, role),
        signed(&KEY, "a", OWN, 3, 77, role),
        signed(&KEY, "a", OWN, 4, 78, role),
        signed(&KEY, "a", OWN, 4, 77, AttachmentRole::Standby),
    ];
    for (n, forged) in forged.into_iter().enumerate() {
        let mut world = World::new();
        world.connect(1, "a");
        world.hello(1, 77, known(3, 0));
        let login = LoginMessage { epoch: LoginEpoch(4), role, signature: forged.signature };
        let outputs = world.give(Input::Login(ConnId(1), login.clone(), known(3, 0)));
        assert_eq!(refused_with(&outputs), Some(RefusalCode::PeerNotProven), "{n}");
        assert_eq!((world.login.len(), world.login.refused()[3].1), (0, 1));
        // Nor does one that stands change so.
        world.attach(2, 77, 4);
        let login = LoginMessage { epoch: LoginEpoch(5), ..login };
        let outputs = world.give(Input::Login(ConnId(2), login, known(4, 77)));
        assert_eq!(refused_with(&outputs), Some(RefusalCode::PeerNotProven), "{n}");
        assert!(world.login.is_empty());
    }
}

#[test]
fn the_row_and_the_welcome_carry_the_terminals_own_words() {
    let mut world = World::new();
    world.connect(1, "a");
    let outputs = world.hello(1, 77, known(3, 9));
    let shown = outputs.iter().find_map(|output| match output {
        Output::Send(_, ToTerminal::Welcome(welcome)) => welcome.highest,
        _ => None,
    });
    assert_eq!(shown, Some(attested(3, 9)));
    let outputs = world.login(1, 4, known(3, 9));
    let row = row_of(&outputs).unwrap();
    assert!(row.attestation(OWN).is_signed_by(&MESH, b"a", &public()));
    // A row whose count or address changes keeps them.
    let outputs = world.give(Input::Communicating(ConnId(1), 1));
    assert_eq!(row_of(&outputs).unwrap().attestation(OWN), row.attestation(OWN));
}

#[test]
fn who_is_superseded_is_shown_by_whom() {
    let mut world = World::new();
    world.connect(1, "a");
    world.hello(1, 77, known(9, 5));
    assert_eq!(proof(&world.login(1, 8, known(9, 5))), Some(attested(9, 5)));
    let mut world = World::new();
    world.attach(1, 77, 4);
    let by = proof(&world.attach(2, 78, 5)).unwrap();
    assert_eq!((by.presence.relay, by.presence.instance), (OWN, 78));
    assert!(by.is_signed_by(&MESH, b"a", &public()));
    let id = TerminalId::new("a").unwrap();
    let outputs = world.give(Input::Elsewhere(id, attested(6, 1)));
    assert_eq!(proof(&outputs), Some(attested(6, 1)));
}

#[test]
fn a_key_that_is_not_the_accounts_has_to_wait_for_its_account() {
    let mut world = World::new();
    world.connect(1, "a");
    let other = Known { key: Some(PublicKey([9; 32])), highest: None };
    assert_eq!(refused_with(&world.hello(1, 77, other)), Some(RefusalCode::NotYetKnown));
    world.connect(2, "a");
    world.hello(2, 77, known(3, 0));
    assert_eq!(refused_with(&world.login(2, 4, other)), Some(RefusalCode::PeerNotProven));
}

#[test]
fn who_is_attached_to_a_relay_that_gave_way_goes_elsewhere() {
    let mut world = World::new();
    world.attach(1, 77, 4);
    world.login.set_given_way(true);
    let outputs: Vec<Output> = std::iter::from_fn(|| world.login.poll_output()).collect();
    assert_eq!(refused_with(&outputs), Some(RefusalCode::Draining));
    assert_eq!(told_to_sessions(&outputs), Some(RefusalCode::RouteLost));
    world.connect(2, "a");
    assert_eq!(refused_with(&world.hello(2, 77, known(4, 77))), Some(RefusalCode::Draining));
    world.login.set_given_way(false);
    assert_eq!(refused_with(&world.attach(3, 77, 5)), None);
}
