use super::*;
use std::time::Duration;
use tasuki_proto::RelayId;

struct Side {
    calls: Calls,
    now: Instant,
    labels: u64,
}

fn id(nonce: u64) -> SessionId {
    SessionId { edge: RelayId(1), nonce }
}

fn name(word: &str) -> TerminalId {
    TerminalId::new(word).unwrap()
}

fn ssh() -> ServiceName {
    ServiceName::new("ssh").unwrap()
}

fn label(value: u64) -> Label {
    Label::new(value).unwrap()
}

#[allow(clippy::disallowed_methods, reason = "only the beginning of virtual time")]
fn side() -> Side {
    Side { calls: Calls::new(name("a")), now: Instant::now(), labels: 0 }
}

impl Side {
    fn feed(&mut self, input: Input) -> Vec<Output> {
        self.calls.handle(input, self.now);
        std::iter::from_fn(|| self.calls.poll_output()).collect()
    }

    fn call(&mut self, request: u64, session: u64, tie_break: Option<u64>) -> Vec<Output> {
        self.labels += 1;
        self.feed(Input::Call {
            request: RequestId(request),
            session: id(session),
            target: name("b"),
            service: ssh(),
            tie_break,
            label: label(self.labels),
        })
    }

    fn incoming(&mut self, session: u64, tie_break: Option<u64>) -> Vec<Output> {
        self.incoming_as(session, tie_break, Ok(()))
    }

    fn incoming_as(
        &mut self,
        session: u64,
        tie_break: Option<u64>,
        verdict: Result<(), Refusal>,
    ) -> Vec<Output> {
        self.labels += 1;
        let call = control::Incoming {
            session: id(session),
            caller: name("b"),
            service: ssh(),
            tie_break,
            label: label(1000 + session),
            caller_address: None,
            route: Vec::new(),
        };
        self.feed(Input::Incoming { call, verdict, label: label(self.labels) })
    }

    fn accepted(&mut self, session: u64) -> Vec<Output> {
        self.feed(Input::Accepted(control::Accepted {
            session: id(session),
            label: label(2000 + session),
            callee_address: None,
            route: Vec::new(),
        }))
    }

    fn refused(&mut self, session: u64, code: RefusalCode, winner: Option<u64>) -> Vec<Output> {
        self.feed(Input::CallRefused(control::CallRefused {
            session: id(session),
            refusal: code.into(),
            winner: winner.map(id),
        }))
    }

    fn wait(&mut self, by: Duration) -> Vec<Output> {
        self.now += by;
        self.feed(Input::Timeout)
    }
}

fn answer(request: u64, session: u64) -> Output {
    Output::Answer { request: RequestId(request), result: Ok(id(session)) }
}

fn failure(request: u64, code: RefusalCode) -> Output {
    Output::Answer { request: RequestId(request), result: Err(code.into()) }
}

fn end(session: u64, code: RefusalCode) -> Output {
    Output::Send(ToRelay::End(control::End { session: id(session), code }))
}

fn refuse(session: u64, code: RefusalCode, winner: Option<u64>) -> Output {
    Output::Send(ToRelay::Refuse(control::CallRefused {
        session: id(session),
        refusal: code.into(),
        winner: winner.map(id),
    }))
}

fn close(session: u64, label_in: u64, code: RefusalCode) -> Output {
    Output::Close { session: id(session), label_in: label(label_in), code }
}

fn redial(request: u64) -> Output {
    Output::Redial { request: RequestId(request), target: name("b"), service: ssh() }
}

#[test]
fn a_call_is_accepted_proven_and_ended_by_its_only_user() {
    let mut a = side();
    assert!(matches!(&a.call(1, 1, Some(5))[..], [Output::Send(ToRelay::Call(_))]));
    assert!(matches!(&a.accepted(1)[..], [Output::Open(Opened { outgoing: true, .. })]));
    assert_eq!(a.accepted(1), []);
    assert_eq!(a.feed(Input::Proven(id(1))), [answer(1, 1)]);
    assert_eq!(a.calls.poll_timeout(), None);
    let code = RefusalCode::EndedByCaller;
    assert_eq!(a.feed(Input::Done(RequestId(1))), [end(1, code), close(1, 1, code)]);
    assert_eq!(a.calls.requests() + a.calls.sessions().count(), 0);
}

#[test]
fn an_incoming_call_is_accepted_offered_and_ended_by_its_caller() {
    let mut a = side();
    assert!(matches!(
        &a.incoming(9, None)[..],
        [Output::Open(Opened { outgoing: false, .. }), Output::Send(ToRelay::Accept(_))]
    ));
    assert_eq!(a.feed(Input::Proven(id(9))), [Output::Offer(id(9))]);
    let code = RefusalCode::EndedByCaller;
    let ended = Input::Ended(control::End { session: id(9), code });
    assert_eq!(a.feed(ended), [close(9, 1, code)]);
}

#[test]
fn the_rules_refuse_with_their_code() {
    let mut a = side();
    let code = RefusalCode::CallerNotAllowed;
    assert_eq!(
        a.incoming_as(9, None, Err(code.into())),
        [Output::Free(label(1)), refuse(9, code, None)]
    );
    assert_eq!(
        a.incoming(9, None),
        [Output::Free(label(2))],
        "a repeated call is not decided anew"
    );
}

#[test]
fn nobody_calls_himself() {
    let mut a = side();
    a.calls.me = name("b");
    assert_eq!(a.call(1, 1, None), [Output::Free(label(1)), failure(1, RefusalCode::SelfCall)]);
    assert_eq!(
        a.incoming(2, None),
        [Output::Free(label(2)), refuse(2, RefusalCode::SelfCall, None)]
    );
}

#[test]
fn an_unanswered_call_and_an_unproven_peer_time_out() {
    let mut a = side();
    a.call(1, 1, None);
    assert_eq!(a.wait(limits::CALL_TIMEOUT - Duration::from_millis(1)), []);
    let code = RefusalCode::NoAnswer;
    assert_eq!(
        a.wait(Duration::from_millis(1)),
        [end(1, code), Output::Free(label(1)), failure(1, code)]
    );
    a.incoming(2, None);
    let code = RefusalCode::PeerNotProven;
    assert_eq!(a.wait(limits::PROOF_TIMEOUT), [end(2, code), close(2, 2, code)]);
}

#[test]
fn the_larger_of_two_calls_becomes_the_session() {
    // Ours is larger.
    let mut a = side();
    a.call(1, 1, Some(7));
    let merged = RefusalCode::Merged;
    assert_eq!(a.incoming(2, Some(6)), [Output::Free(label(2)), refuse(2, merged, Some(1))]);
    // Theirs is larger: ours ends at once and its request gets theirs.
    let mut a = side();
    a.call(1, 1, Some(7));
    let outputs = a.incoming(2, Some(8));
    assert!(outputs.contains(&end(1, merged)) && outputs.contains(&Output::Free(label(1))));
    assert_eq!(a.refused(1, merged, Some(2)), []);
    assert_eq!(
        a.feed(Input::Proven(id(2))),
        [answer(1, 2), Output::Use { session: id(2), using: true }, Output::Offer(id(2))]
    );
}

#[test]
fn equal_tie_breaks_compare_names_and_a_missing_one_loses() {
    let merged = RefusalCode::Merged;
    for (ours, theirs) in [(None, None), (Some(3), Some(3)), (None, Some(0))] {
        let mut a = side();
        a.call(1, 1, ours);
        assert!(a.incoming(2, theirs).contains(&end(1, merged)), "{ours:?} {theirs:?}");
    }
    let mut a = side();
    a.call(1, 1, Some(0));
    assert!(a.incoming(2, None).contains(&refuse(2, merged, Some(1))));
}

#[test]
fn a_larger_call_that_the_rules_refuse_leaves_ours_alone() {
    let mut a = side();
    a.call(1, 1, Some(1));
    let code = RefusalCode::ServiceNotExposed;
    let outputs = a.incoming_as(2, Some(2), Err(code.into()));
    assert_eq!(outputs, [Output::Free(label(2)), refuse(2, code, None)]);
    assert!(matches!(&a.accepted(1)[..], [Output::Open(_)]));
    // The peer, which did not know, refused ours in favour of its own: it is called afresh.
    let mut a = side();
    a.call(1, 1, Some(1));
    a.incoming_as(2, Some(2), Err(code.into()));
    let outputs = a.refused(1, RefusalCode::Merged, Some(2));
    assert_eq!(outputs, [Output::Free(label(1)), redial(1)]);
    assert!(matches!(&a.call(1, 3, Some(1))[..], [Output::Send(ToRelay::Call(_))]));
}

#[test]
fn a_winner_that_is_still_under_way_is_awaited() {
    let mut a = side();
    a.call(1, 1, Some(1));
    assert_eq!(a.refused(1, RefusalCode::Merged, Some(2)), [Output::Free(label(1))]);
    a.incoming(2, Some(2));
    assert!(a.feed(Input::Proven(id(2))).contains(&answer(1, 2)));
    // It never comes.
    let mut a = side();
    a.call(1, 1, Some(1));
    a.refused(1, RefusalCode::Merged, Some(2));
    assert_eq!(a.wait(limits::CALL_TIMEOUT), [failure(1, RefusalCode::NoAnswer)]);
    // It came and went.
    let mut a = side();
    a.call(1, 1, Some(1));
    a.refused(1, RefusalCode::Merged, Some(2));
    a.incoming(2, Some(2));
    let code = RefusalCode::RouteLost;
    let ended = Input::Ended(control::End { session: id(2), code });
    assert_eq!(a.feed(ended), [close(2, 2, code), redial(1)]);
}

#[test]
fn fresh_calls_are_counted_and_end() {
    let mut a = side();
    for round in 0..=u64::from(limits::REDIALS) {
        a.call(1, 10 + round, None);
        let lied = a.refused(10 + round, RefusalCode::Merged, Some(10 + round));
        let last = round == u64::from(limits::REDIALS);
        let then = if last { failure(1, RefusalCode::NoAnswer) } else { redial(1) };
        assert_eq!(lied[1..], [then]);
    }
    assert_eq!(a.calls.requests(), 0);
}

#[test]
fn a_merge_of_a_merge_leads_to_the_session() {
    // Two calls of ours and one of theirs between them: 1 > 2 (theirs) > 3.
    let mut a = side();
    a.call(1, 1, Some(9));
    a.call(3, 3, Some(1));
    assert!(a.incoming(2, Some(5)).contains(&refuse(2, RefusalCode::Merged, Some(1))));
    assert_eq!(a.refused(3, RefusalCode::Merged, Some(2)), [Output::Free(label(2))]);
    a.accepted(1);
    let outputs = a.feed(Input::Proven(id(1)));
    assert_eq!(outputs, [answer(1, 1), answer(3, 1), Output::Offer(id(1))]);
}

#[test]
fn a_shared_session_ends_with_its_last_user() {
    let shared = || {
        let mut a = side();
        a.call(1, 1, Some(7));
        a.incoming(2, Some(6));
        a.accepted(1);
        assert_eq!(a.feed(Input::Proven(id(1))), [answer(1, 1), Output::Offer(id(1))]);
        a
    };
    let using = |using| Input::PeerUse { session: id(1), using };
    let code = RefusalCode::EndedByCaller;
    // Ours is done first.
    let mut a = shared();
    assert_eq!(a.feed(Input::Done(RequestId(1))), [Output::Use { session: id(1), using: false }]);
    assert_eq!(a.feed(using(true)), []);
    assert_eq!(a.feed(using(false)), [end(1, code), close(1, 1, code)]);
    // Theirs is done first.
    let mut a = shared();
    assert_eq!(a.feed(using(false)), []);
    assert_eq!(a.feed(Input::Done(RequestId(1))), [end(1, code), close(1, 1, code)]);
}

#[test]
fn a_call_that_the_peer_waits_for_goes_on_without_its_own_user() {
    let mut a = side();
    a.call(1, 1, Some(7));
    a.incoming(2, Some(6));
    assert_eq!(a.feed(Input::Done(RequestId(1))), []);
    a.accepted(1);
    let told = Output::Use { session: id(1), using: false };
    assert_eq!(a.feed(Input::Proven(id(1))), [told, Output::Offer(id(1))]);
}

#[test]
fn a_withdrawn_call_is_told_and_frees_its_label() {
    let mut a = side();
    a.call(1, 1, None);
    assert_eq!(
        a.feed(Input::Done(RequestId(1))),
        [end(1, RefusalCode::CallWithdrawn), Output::Free(label(1))]
    );
    assert_eq!(a.accepted(1), [end(1, RefusalCode::UnknownSession)], "its answer crossed");
}

#[test]
fn a_lost_attachment_ends_everything() {
    let mut a = side();
    a.call(1, 1, Some(9));
    a.call(2, 2, Some(1));
    a.refused(2, RefusalCode::Merged, Some(77));
    a.incoming(3, Some(5));
    a.call(4, 4, None);
    a.accepted(4);
    let code = RefusalCode::RouteLost;
    let outputs = a.feed(Input::Detached(code));
    assert_eq!(
        outputs,
        [
            Output::Free(label(1)),
            failure(1, code),
            close(4, 4, code),
            failure(4, code),
            failure(2, code),
        ]
    );
    assert_eq!(a.calls.poll_timeout(), None);
    assert_eq!(a.calls.requests() + a.calls.sessions().count(), 0);
}

#[test]
fn the_number_of_sessions_is_limited_both_ways() {
    let mut a = side();
    for n in 0..limits::SESSIONS_PER_TERMINAL as u64 {
        a.call(n, n, None);
    }
    let outputs = a.call(5000, 5000, None);
    assert_eq!(outputs[1..], [failure(5000, RefusalCode::Busy)]);
    a.calls.calling_by_peer.clear();
    assert_eq!(a.incoming(6000, None)[1..], [refuse(6000, RefusalCode::Busy, None)]);
}

#[test]
fn a_long_detail_from_a_peer_is_cut() {
    let mut a = side();
    a.call(1, 1, None);
    let outputs = a.feed(Input::CallRefused(control::CallRefused {
        session: id(1),
        refusal: Refusal::new(RefusalCode::TargetRefused, "ä".repeat(100_000)),
        winner: None,
    }));
    let [_, Output::Answer { result: Err(refusal), .. }] = &outputs[..] else { panic!() };
    assert_eq!(refusal.detail.chars().count(), limits::REFUSAL_DETAIL);
}
