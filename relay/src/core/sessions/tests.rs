use std::collections::BTreeSet;

use super::*;
use crate::core::admin::SessionState;

const LINE: usize = 3;

/// Three relays in a line, the caller's connection at the first and the callee's at the last. Link `n` joins
/// relay `n` and relay `n + 1`. Messages travel in order and at once.
struct World {
    relays: Vec<Sessions>,
    now: Instant,
    installed: Vec<BTreeSet<Label>>,
    to_terminals: Vec<(usize, ToTerminal)>,
    finished: Vec<(usize, Finished)>,
}

const CALLER: ConnId = ConnId(1);
const CALLEE: ConnId = ConnId(2);

fn name(text: &str) -> TerminalId {
    TerminalId::new(text).unwrap()
}

fn hop(session: SessionId, generation: u32) -> HopId {
    HopId { session, generation: Generation(generation) }
}

fn id(nonce: u64) -> SessionId {
    SessionId { edge: RelayId(1), nonce }
}

impl World {
    #[allow(clippy::disallowed_methods)]
    fn new() -> Self {
        Self {
            relays: (0..LINE)
                .map(|n| Sessions::new(RelayId(n as u64 + 1), 5_000, [n as u8; 32]))
                .collect(),
            now: Instant::now(),
            installed: vec![BTreeSet::new(); LINE],
            to_terminals: Vec::new(),
            finished: Vec::new(),
        }
    }

    fn next_of(relay: usize) -> Neighbour {
        if relay + 1 == LINE {
            Neighbour::Terminal(CALLEE)
        } else {
            Neighbour::Link(LinkId(relay as u64))
        }
    }

    fn give(&mut self, relay: usize, input: Input) {
        let mut queue = VecDeque::from([(relay, input)]);
        while let Some((at, input)) = queue.pop_front() {
            self.relays[at].handle(input, self.now, 5);
            self.drain(at, &mut queue);
        }
    }

    fn drain(&mut self, at: usize, queue: &mut VecDeque<(usize, Input)>) {
        while let Some(output) = self.relays[at].poll_output() {
            match output {
                Output::ToTerminal(_, message) | Output::OfferTerminal(_, _, message) => {
                    self.to_terminals.push((at, message));
                }
                Output::Install(forwarding) => assert!(self.installed[at].insert(forwarding.label)),
                Output::Remove(label) => assert!(self.installed[at].remove(&label)),
                Output::Communicating(..) => {}
                Output::Finished(finished) => self.finished.push((at, *finished)),
                Output::ToPeer(link, message) | Output::OfferPeer(link, _, message) => {
                    let to = if link.0 as usize == at { at + 1 } else { at - 1 };
                    let from = Neighbour::Link(link);
                    let input = match message {
                        ToPeer::Call(call) => {
                            Input::Routed { from: link, call, next: Ok(Self::next_of(to)) }
                        }
                        ToPeer::Accept(accept) => Input::Accept {
                            from,
                            hop: hop(accept.session, 0),
                            label: accept.label,
                            address: accept.callee_address,
                        },
                        ToPeer::Resume(resume) => {
                            Input::RoutedResume { from: link, resume, next: Ok(Self::next_of(to)) }
                        }
                        ToPeer::Resumed(resumed) => Input::Accept {
                            from,
                            hop: hop(resumed.session, resumed.generation.0),
                            label: resumed.label,
                            address: None,
                        },
                        ToPeer::EndPath(end) => Input::EndPath { from, end },
                        ToPeer::Refuse(refused) => Input::Refuse { from, refused },
                        ToPeer::End(end) => Input::End { from, end },
                        ToPeer::Hello(_)
                        | ToPeer::TryAddress(_)
                        | ToPeer::Tried(_)
                        | ToPeer::Twin(_) => {
                            unreachable!()
                        }
                    };
                    queue.push_back((to, input));
                }
            }
        }
    }

    fn call(&mut self, session: SessionId) {
        self.call_with(session, "b", Ok(Self::place()));
    }

    fn call_with(&mut self, session: SessionId, target: &str, place: Result<Place, Refusal>) {
        let call = control::Call {
            session,
            target: name(target),
            service: ServiceName::new("ssh").unwrap(),
            tie_break: Some(1),
            label: Label::new(100).unwrap(),
        };
        let address = "127.0.0.1:1".parse().unwrap();
        self.give(0, Input::Call { from: CALLER, caller: name("a"), address, call, place });
    }

    fn accept(&mut self, session: SessionId) {
        let from = Neighbour::Terminal(CALLEE);
        let label = Label::new(200).unwrap();
        self.give(LINE - 1, Input::Accept { from, hop: hop(session, 0), label, address: None });
    }

    fn place() -> Place {
        Place {
            route: vec![RelayId(1), RelayId(2), RelayId(3)],
            names: ["r1", "r2", "r3"].map(|n| RelayName::new(n).unwrap()).to_vec(),
            next: Self::next_of(0),
        }
    }

    fn resume(&mut self, session: SessionId, generation: u32, caller: &str) {
        let resume = control::Resume {
            session,
            generation: Generation(generation),
            target: name("b"),
            service: ServiceName::new("ssh").unwrap(),
            label: Label::new(101).unwrap(),
            avoid: Vec::new(),
        };
        let caller = name(caller);
        self.give(0, Input::Resume { from: CALLER, caller, resume, place: Ok(Self::place()) });
    }

    fn take_path(&mut self, session: SessionId, generation: u32) {
        let from = Neighbour::Terminal(CALLEE);
        let (label, hop) = (Label::new(201).unwrap(), hop(session, generation));
        self.give(LINE - 1, Input::Accept { from, hop, label, address: None });
    }

    fn assert_gone(&self) {
        assert!(self.relays.iter().all(Sessions::is_empty));
        assert!(self.installed.iter().all(BTreeSet::is_empty), "a label is left");
        assert!(self.relays.iter().all(|r| r.deadlines.is_empty()));
        assert!(self.relays.iter().all(|r| r.hops_by_neighbour.is_empty()));
        for relay in &self.relays {
            assert!(relay.session_by_id.is_empty());
            assert!(relay.budget.is_empty(), "something is charged to somebody");
            assert!(relay.terminals.values().all(|t| t.calling == 0 && t.active.is_empty()));
        }
    }

    fn last_to(&self, relay: usize) -> &ToTerminal {
        &self.to_terminals.iter().rev().find(|(at, _)| *at == relay).unwrap().1
    }
}

#[test]
fn a_call_over_three_relays_installs_two_labels_at_each() {
    let mut world = World::new();
    world.call(id(1));
    assert!(matches!(world.last_to(2), ToTerminal::Incoming(call) if call.caller == name("a")));
    assert!(world.installed.iter().all(BTreeSet::is_empty), "no label before the answer");
    world.accept(id(1));
    assert!(
        matches!(world.last_to(0), ToTerminal::Accepted(accepted) if accepted.route.len() == 3)
    );
    assert!(world.installed.iter().all(|labels| labels.len() == 2));
}

#[test]
fn either_side_ends_it_everywhere() {
    for from_caller in [true, false] {
        let mut world = World::new();
        world.call(id(1));
        world.accept(id(1));
        let (relay, conn, other) =
            if from_caller { (0, CALLER, LINE - 1) } else { (LINE - 1, CALLEE, 0) };
        let end = End { session: id(1), code: RefusalCode::EndedByCaller };
        world.give(relay, Input::End { from: Neighbour::Terminal(conn), end: end.clone() });
        assert_eq!(world.last_to(other), &ToTerminal::Ended(end));
        assert_eq!(world.finished.iter().filter(|(_, f)| f.edge).count(), 2);
        world.assert_gone();
    }
}

#[test]
fn a_refusal_travels_back_and_leaves_nothing() {
    let mut world = World::new();
    world.call(id(1));
    let refused = CallRefused {
        session: id(1),
        refusal: RefusalCode::CallerNotAllowed.into(),
        winner: Some(id(9)),
    };
    let from = Neighbour::Terminal(CALLEE);
    world.give(LINE - 1, Input::Refuse { from, refused: refused.clone() });
    assert_eq!(world.last_to(0), &ToTerminal::CallRefused(refused));
    world.assert_gone();
}

#[test]
fn an_unknown_target_is_refused_at_once_without_another_relay() {
    let mut world = World::new();
    world.call_with(id(1), "b", Err(RefusalCode::UnknownTarget.into()));
    assert!(matches!(world.last_to(0),
        ToTerminal::CallRefused(r) if r.refusal.code == RefusalCode::UnknownTarget));
    world.assert_gone();
}

#[test]
fn nobody_calls_himself_or_with_a_foreign_session_id() {
    for (session, target, code) in [
        (id(1), "a", RefusalCode::SelfCall),
        (SessionId { edge: RelayId(2), nonce: 1 }, "b", RefusalCode::BadRequest),
    ] {
        let mut world = World::new();
        let place = Place { route: vec![RelayId(1)], names: vec![], next: World::next_of(0) };
        world.call_with(session, target, Ok(place));
        assert!(matches!(world.last_to(0),
            ToTerminal::CallRefused(r) if r.refusal.code == code));
        world.assert_gone();
    }
}

#[test]
fn a_withdrawn_call_stops_ringing_and_a_late_answer_is_dropped() {
    let mut world = World::new();
    world.call(id(1));
    let end = End { session: id(1), code: RefusalCode::CallWithdrawn };
    world.give(0, Input::End { from: Neighbour::Terminal(CALLER), end });
    assert!(matches!(world.last_to(2), ToTerminal::Ended(_)));
    world.accept(id(1));
    world.assert_gone();
}

#[test]
fn silence_is_no_answer_for_the_caller_and_withdrawn_for_the_callee() {
    let mut world = World::new();
    world.call(id(1));
    let due = world.relays[0].poll_timeout().unwrap();
    world.relays[0].handle_timeout(due, 5);
    let mut queue = VecDeque::new();
    world.drain(0, &mut queue);
    for (at, input) in queue {
        world.give(at, input);
    }
    assert!(matches!(world.last_to(0),
        ToTerminal::CallRefused(r) if r.refusal.code == RefusalCode::NoAnswer));
    assert!(matches!(world.last_to(2),
        ToTerminal::Ended(e) if e.code == RefusalCode::CallWithdrawn));
    world.assert_gone();
}

#[test]
fn a_lost_link_ends_calls_and_the_paths_of_sessions() {
    for accepted in [true, false] {
        let mut world = World::new();
        world.call(id(1));
        if accepted {
            world.accept(id(1));
        }
        for relay in [0, 1] {
            let link = Neighbour::Link(LinkId(0));
            world.give(relay, Input::Lost(link, RefusalCode::RouteLost));
        }
        let lost = RefusalCode::RouteLost;
        let path = PathEnd { session: id(1), generation: Generation(0), code: lost };
        if accepted {
            assert_eq!(world.last_to(0), &ToTerminal::PathEnded(path.clone()));
            assert_eq!(world.last_to(2), &ToTerminal::PathEnded(path));
        } else {
            assert!(matches!(world.last_to(0),
                ToTerminal::CallRefused(r) if r.refusal.code == lost));
            assert!(matches!(world.last_to(2), ToTerminal::Ended(e) if e.code == lost));
        }
        world.assert_gone();
    }
}

#[test]
fn a_second_path_has_labels_of_its_own_and_ends_by_itself() {
    let mut world = World::new();
    world.call(id(1));
    world.accept(id(1));
    world.resume(id(1), 1, "a");
    assert!(matches!(world.last_to(2), ToTerminal::Resuming(r) if r.generation == Generation(1)));
    assert!(world.installed.iter().all(|labels| labels.len() == 2), "none before the answer");
    world.take_path(id(1), 1);
    assert!(matches!(world.last_to(0), ToTerminal::Resumed(r) if r.generation == Generation(1)));
    assert!(world.installed.iter().all(|labels| labels.len() == 4));
    assert!(world.relays.iter().all(|r| r.len() == 1), "one session");
    let counted = world.relays[0].terminals[&CALLER].active();
    assert_eq!(counted, 1, "in communication with one");

    let end = PathEnd { session: id(1), generation: Generation(0), code: RefusalCode::Moved };
    world.give(0, Input::EndPath { from: Neighbour::Terminal(CALLER), end: end.clone() });
    assert_eq!(world.last_to(2), &ToTerminal::PathEnded(end));
    assert!(world.installed.iter().all(|labels| labels.len() == 2));
    assert!(world.relays.iter().all(|r| r.len() == 1), "it goes on");

    let end = End { session: id(1), code: RefusalCode::EndedByCaller };
    world.give(0, Input::End { from: Neighbour::Terminal(CALLER), end });
    assert!(matches!(world.last_to(2), ToTerminal::Ended(_)));
    world.assert_gone();
}

#[test]
fn the_end_of_a_session_ends_all_its_paths() {
    for code in [RefusalCode::LoggedOut, RefusalCode::Revoked, RefusalCode::Kicked] {
        let mut world = World::new();
        world.call(id(1));
        world.accept(id(1));
        world.resume(id(1), 1, "a");
        world.take_path(id(1), 1);
        // One that was never answered.
        world.resume(id(1), 2, "a");
        world.give(0, Input::Lost(Neighbour::Terminal(CALLER), code));
        assert!(matches!(world.last_to(2), ToTerminal::Ended(e) if e.code == code));
        world.assert_gone();
    }
}

/// What its attachment ended with is the target's own affair: the caller is told what it means for the call.
#[test]
fn a_caller_hears_what_became_of_the_target_that_its_call_rang_at() {
    for (code, heard) in [
        (RefusalCode::Superseded, RefusalCode::PeerLost),
        (RefusalCode::LoggedOut, RefusalCode::TargetLoggedOut),
        (RefusalCode::Kicked, RefusalCode::TargetLoggedOut),
        (RefusalCode::Revoked, RefusalCode::UnknownTarget),
        (RefusalCode::PeerLost, RefusalCode::PeerLost),
    ] {
        let mut world = World::new();
        world.call(id(1));
        world.give(2, Input::Lost(Neighbour::Terminal(CALLEE), code));
        let ToTerminal::CallRefused(refused) = world.last_to(0) else { panic!("{code}") };
        assert_eq!(refused.refusal.code, heard);
        world.assert_gone();
    }
}

/// As when its agent was killed and started again: nobody at the other end has to stop an agent.
#[test]
fn whose_peer_logged_in_anew_hears_that_it_was_lost() {
    let mut world = World::new();
    world.call(id(1));
    world.accept(id(1));
    world.give(2, Input::Lost(Neighbour::Terminal(CALLEE), RefusalCode::Superseded));
    assert!(matches!(world.last_to(0), ToTerminal::Ended(e) if e.code == RefusalCode::PeerLost));
    world.assert_gone();
}

#[test]
fn a_session_comes_back_after_its_last_path() {
    let mut world = World::new();
    world.call(id(1));
    world.accept(id(1));
    world.give(0, Input::Lost(Neighbour::Terminal(CALLER), RefusalCode::PeerLost));
    assert!(matches!(world.last_to(2), ToTerminal::PathEnded(_)));
    world.assert_gone();
    world.resume(id(1), 1, "a");
    world.take_path(id(1), 1);
    let (page, _) = world.relays[1].page(None, None, 9);
    assert_eq!(page.iter().map(|v| v.state).collect::<Vec<_>>(), [SessionState::Active]);
}

#[test]
fn a_path_is_refused_where_it_does_not_fit() {
    let refused = |world: &World, generation, code| {
        let end = PathEnd { session: id(1), generation: Generation(generation), code };
        assert_eq!(world.last_to(0), &ToTerminal::PathEnded(end));
    };
    let mut world = World::new();
    world.call(id(1));
    world.accept(id(1));
    world.resume(id(1), 1, "m");
    refused(&world, 1, RefusalCode::BadRequest);
    world.resume(id(1), 0, "a");
    refused(&world, 0, RefusalCode::BadRequest);
    for generation in 1..limits::PATHS_PER_SESSION as u32 {
        world.resume(id(1), generation, "a");
        world.take_path(id(1), generation);
    }
    world.resume(id(1), 3, "a");
    refused(&world, 3, RefusalCode::BadRequest);
    world.resume(id(1), 9, "a");
    refused(&world, 9, RefusalCode::Busy);
    // The callee's refusal travels back.
    let mut world = World::new();
    world.resume(id(1), 1, "a");
    let code = RefusalCode::UnknownSession;
    let end = PathEnd { session: id(1), generation: Generation(1), code };
    world.give(LINE - 1, Input::EndPath { from: Neighbour::Terminal(CALLEE), end });
    refused(&world, 1, code);
    world.assert_gone();
}

#[test]
fn a_path_without_an_answer_is_given_up_and_the_session_goes_on() {
    let mut world = World::new();
    world.call(id(1));
    world.accept(id(1));
    world.resume(id(1), 1, "a");
    let due = world.relays[1].poll_timeout().unwrap();
    world.relays[1].handle_timeout(due, 5);
    let mut queue = VecDeque::new();
    world.drain(1, &mut queue);
    for (at, input) in queue {
        world.give(at, input);
    }
    assert!(
        matches!(world.last_to(0), ToTerminal::PathEnded(e) if e.code == RefusalCode::NoAnswer)
    );
    assert!(world.relays.iter().all(|r| r.len() == 1 && r.deadlines.is_empty()));
    assert!(world.installed.iter().all(|labels| labels.len() == 2));
}

#[test]
fn what_is_not_his_nobody_answers_or_ends() {
    let mut world = World::new();
    world.call(id(1));
    let stranger = Neighbour::Terminal(ConnId(99));
    let end = End { session: id(1), code: RefusalCode::EndedByCallee };
    let label = Label::new(3).unwrap();
    world.give(2, Input::End { from: stranger, end: end.clone() });
    world.give(2, Input::Accept { from: stranger, hop: hop(id(1), 0), label, address: None });
    // The caller cannot accept its own call.
    let caller = Neighbour::Terminal(CALLER);
    world.give(0, Input::Accept { from: caller, hop: hop(id(1), 0), label, address: None });
    assert!(world.relays.iter().all(|r| r.len() == 1));
    assert!(world.installed.iter().all(BTreeSet::is_empty));
    world.accept(id(1));
    world.give(1, Input::End { from: stranger, end });
    assert!(world.relays.iter().all(|r| r.len() == 1));
}

#[test]
fn a_second_call_with_the_same_id_is_refused_and_the_first_goes_on() {
    let mut world = World::new();
    world.call(id(1));
    world.call(id(1));
    assert!(matches!(world.last_to(0),
        ToTerminal::CallRefused(r) if r.refusal.code == RefusalCode::BadRequest));
    world.accept(id(1));
    assert!(world.relays.iter().all(|r| r.len() == 1));
}

#[test]
fn a_terminal_at_its_limit_is_busy() {
    let mut world = World::new();
    for nonce in 0..=limits::SESSIONS_PER_TERMINAL as u64 {
        world.call(id(nonce));
    }
    assert!(matches!(world.last_to(0),
        ToTerminal::CallRefused(r) if r.refusal.code == RefusalCode::Busy));
    world.give(0, Input::Lost(Neighbour::Terminal(CALLER), RefusalCode::PeerLost));
    world.assert_gone();
}

#[test]
fn a_path_that_makes_a_session_counts_as_a_call() {
    let mut world = World::new();
    for nonce in 0..4 * limits::SESSIONS_PER_TERMINAL as u64 {
        world.resume(id(nonce), 1, "a");
    }
    assert_eq!(world.relays[0].len(), limits::SESSIONS_PER_PAIR);
    assert!(matches!(world.last_to(0),
        ToTerminal::PathEnded(end) if end.code == RefusalCode::Busy));
    // A session that runs gets its further paths all the same.
    world.take_path(id(0), 1);
    world.now += Duration::from_secs(1);
    world.resume(id(0), 2, "a");
    assert!(matches!(world.last_to(2), ToTerminal::Resuming(path) if path.generation.0 == 2));
    world.give(0, Input::Lost(Neighbour::Terminal(CALLER), RefusalCode::LoggedOut));
    world.assert_gone();
}

#[test]
fn a_relay_that_begins_calls_is_held_to_its_rate_and_share() {
    let mut world = World::new();
    let routed = |n: u64| RoutedCall {
        session: id(n),
        route: vec![RelayId(1), RelayId(2), RelayId(3)],
        names: Vec::new(),
        caller: name(&format!("made-up-{n}")),
        target: name("b"),
        service: ServiceName::new("ssh").unwrap(),
        tie_break: None,
        label: Label::new(100).unwrap(),
        caller_address: None,
    };
    let (last, next) = (LINE - 1, Ok(Neighbour::Terminal(CALLEE)));
    for n in 0..100_000 {
        let input = Input::Routed { from: LinkId(1), call: routed(n), next: next.clone() };
        world.relays[last].handle(input, world.now, 5);
        while world.relays[last].poll_output().is_some() {}
    }
    let held = world.relays[last].len();
    assert!(held < limits::SESSIONS_PER_TERMINAL, "{held} calls ring at one terminal");
    let [rate, share, _] = world.relays[last].refused().map(|(_, count)| count);
    assert!(rate > 50_000 && share > 1_000, "{rate} over the rate, {share} over the share");
    // Somebody else still reaches the terminal.
    let call = RoutedCall { caller: name("honest"), ..routed(u64::MAX) };
    world.relays[last].handle(Input::Routed { from: LinkId(9), call, next }, world.now, 5);
    assert_eq!(world.relays[last].len(), held + 1);
    world.relays[last].handle(
        Input::Lost(Neighbour::Link(LinkId(1)), RefusalCode::RouteLost),
        world.now,
        5,
    );
    assert_eq!(world.relays[last].len(), 1);
}

#[test]
fn an_offer_without_room_is_refused_as_busy_and_tells_the_callee_nothing() {
    let mut world = World::new();
    world.call(id(1));
    let told = world.to_terminals.iter().filter(|(at, _)| *at == LINE - 1).count();
    world.give(LINE - 1, Input::NoRoom(hop(id(1), 0)));
    assert!(matches!(world.last_to(0),
        ToTerminal::CallRefused(r) if r.refusal.code == RefusalCode::Busy));
    assert_eq!(world.to_terminals.iter().filter(|(at, _)| *at == LINE - 1).count(), told);
    world.assert_gone();
    // A path: the session goes on over the other one.
    world.call(id(2));
    world.accept(id(2));
    world.resume(id(2), 1, "a");
    world.give(LINE - 1, Input::NoRoom(hop(id(2), 1)));
    assert!(matches!(world.last_to(0),
        ToTerminal::PathEnded(end) if end.code == RefusalCode::Busy));
    assert!(world.relays.iter().all(|relay| relay.len() == 1));
    // What was taken meanwhile is not undone.
    world.give(LINE - 1, Input::NoRoom(hop(id(2), 0)));
    assert!(world.relays.iter().all(|relay| relay.len() == 1));
}

#[test]
fn what_a_link_is_charged_with_moves_with_its_sessions() {
    let mut world = World::new();
    world.call(id(1));
    world.accept(id(1));
    let now = world.now;
    let moved = Input::Moved { from: Neighbour::Link(LinkId(1)), to: Neighbour::Link(LinkId(7)) };
    world.relays[LINE - 1].handle(moved, now, 5);
    let lost = Input::Lost(Neighbour::Link(LinkId(7)), RefusalCode::RouteLost);
    world.relays[LINE - 1].handle(lost, now, 5);
    assert!(world.relays[LINE - 1].is_empty() && world.relays[LINE - 1].budget.is_empty());
}

#[test]
fn pages_hold_running_and_ended_in_order() {
    let mut world = World::new();
    for nonce in [3, 1, 2] {
        world.call(id(nonce));
    }
    world.accept(id(1));
    let end = End { session: id(2), code: RefusalCode::CallWithdrawn };
    world.give(0, Input::End { from: Neighbour::Terminal(CALLER), end });
    let (first, next) = world.relays[0].page(None, None, 2);
    assert_eq!(
        first.iter().map(|v| v.state).collect::<Vec<_>>(),
        [SessionState::Active, SessionState::Ended]
    );
    let (rest, end) = world.relays[0].page(None, next, 2);
    assert_eq!((rest.len(), end), (1, None));
    let (active, _) = world.relays[0].page(Some(SessionState::Active), None, 9);
    assert_eq!(active.len(), 1);
}

#[test]
fn sessions_move_with_a_link_that_is_replaced() {
    let mut world = World::new();
    world.call(id(1));
    world.accept(id(1));
    let (old, new) = (Neighbour::Link(LinkId(0)), Neighbour::Link(LinkId(7)));
    let now = world.now;
    world.relays[0].handle(Input::Moved { from: old, to: new }, now, 5);
    let installed: Vec<Forwarding> = std::iter::from_fn(|| world.relays[0].poll_output())
        .map(|output| match output {
            Output::Install(forwarding) => forwarding,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(installed.len(), 2);
    assert!(installed.iter().all(|f| world.installed[0].contains(&f.label)), "the same labels");
    assert!(installed.iter().all(|f| f.from == new || f.to == new));
    // What is said over the link that is gone counts for nothing.
    let end = End { session: id(1), code: RefusalCode::EndedByCallee };
    world.relays[0].handle(Input::End { from: old, end: end.clone() }, now, 5);
    assert_eq!(world.relays[0].len(), 1);
    world.relays[0].handle(Input::End { from: new, end }, now, 5);
    assert!(world.relays[0].is_empty());
}

#[test]
fn a_session_is_shown_as_its_own_terminals_say_that_its_data_goes() {
    let mut world = World::new();
    world.call(id(1));
    let tell = |world: &mut World, relay: usize, from: ConnId, news: PathNews| {
        let (nat, peer_nat) = (NatKind::EndpointIndependent, NatKind::None);
        let report = PathReport { session: id(1), news, nat, peer_nat };
        world.give(relay, Input::PathReport { from, report });
    };
    let shown = |world: &World, relay: usize| world.relays[relay].view(&id(1)).unwrap().path;
    tell(&mut world, 0, CALLER, PathNews::Direct);
    assert_eq!(shown(&world, 0), "relayed", "nobody accepted it yet");
    world.accept(id(1));
    tell(&mut world, 0, ConnId(77), PathNews::Direct);
    assert_eq!(shown(&world, 0), "relayed", "a stranger says nothing of it");
    tell(&mut world, 0, CALLER, PathNews::Direct);
    tell(&mut world, LINE - 1, CALLEE, PathNews::Direct);
    assert_eq!([0, 1, 2].map(|relay| shown(&world, relay)), ["direct", "relayed", "direct"]);
    tell(&mut world, 0, CALLER, PathNews::Relayed);
    assert_eq!(shown(&world, 0), "relayed");
    tell(&mut world, 0, CALLER, PathNews::NoDirect);
    let counts = |relay: usize| -> Vec<(PathNews, u64)> {
        world.relays[relay].direct().iter().map(|one| (one.news, one.count)).collect()
    };
    let all = [(PathNews::Direct, 1), (PathNews::Relayed, 1), (PathNews::NoDirect, 1)];
    assert_eq!(counts(0), all);
    assert_eq!(counts(LINE - 1), [], "the caller's word is counted, once");
}
