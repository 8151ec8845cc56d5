use std::net::SocketAddr;

use super::direct::{Seen, judge};
use super::*;

fn id(text: &str) -> TerminalId {
    TerminalId::new(text).unwrap()
}

fn seen(places: &[&str]) -> Seen {
    let places: Vec<SocketAddr> = places.iter().map(|place| place.parse().unwrap()).collect();
    Seen::of(&places)
}

fn judged(a: &[&str], b: &[&str]) -> (Possible, String) {
    let (one, other) = (id("a"), id("b"));
    let direct = judge([(&one, &seen(a)), (&other, &seen(b))]);
    let mirrored = judge([(&other, &seen(b)), (&one, &seen(a))]);
    assert_eq!(direct.possible, mirrored.possible, "both ends are judged alike");
    (direct.possible, direct.why)
}

#[test]
fn a_direct_path_is_judged_by_what_relays_see() {
    use Possible::{Likely, Unknown, Unlikely};
    let easy = ["198.51.100.1:7000", "198.51.100.1:7000"];
    let hard = ["203.0.113.9:7000", "203.0.113.9:7001"];
    let easy_too = ["192.0.2.4:5", "192.0.2.4:5"];
    let hard_too = ["192.0.2.5:5", "192.0.2.5:6"];
    assert_eq!(judged(&easy, &easy_too).0, Likely);
    assert_eq!(judged(&hard, &hard_too).0, Unlikely);
    let (possible, why) = judged(&easy, &hard);
    assert_eq!(possible, Unknown);
    assert!(why.starts_with("the NAT of b"), "{why}");
    assert_eq!(judged(&easy[..1], &easy_too).0, Unknown, "one relay cannot compare");
    assert_eq!(judged(&["192.0.2.1:1"], &["[2001:db8::1]:1"]).0, Unlikely, "no common family");
    assert_eq!(judged(&hard, &["203.0.113.9:9"]).0, Likely, "behind one NAT");
    assert_eq!(judged(&["127.0.0.1:1"], &["127.0.0.1:2"]).0, Likely);
    assert_eq!(judged(&["127.0.0.1:1"], &easy).0, Unlikely);
    // A dual stack has an address of each family, and may have the same port in both or not.
    assert_eq!(
        seen(&["192.0.2.1:1", "[2001:db8::1]:1"]),
        seen(&["[2001:db8::1]:2", "192.0.2.1:3"])
    );
    assert_eq!(seen(&["[::ffff:192.0.2.1]:1"]), seen(&["192.0.2.1:1"]));
}

#[test]
fn every_code_of_a_call_says_what_it_means_and_what_to_do() {
    let (caller, callee) = (id("laptop"), id("plant7"));
    let service = ServiceName::new("ssh").unwrap();
    let who = Who { caller: &caller, callee: &callee, service: Some(&service) };
    for &code in RefusalCode::ALL {
        let (why, advice) = who.about(code, Decider::Session);
        assert!(!why.is_empty(), "{code}");
        let nothing_to_do = matches!(
            code,
            RefusalCode::EndedByCaller
                | RefusalCode::EndedByCallee
                | RefusalCode::EndedByOperator
                | RefusalCode::LoggedOut
        );
        let is_of_a_call = (20..=35).contains(&code.value());
        assert!(!is_of_a_call || nothing_to_do || !advice.is_empty() || why.len() > 20, "{code}");
    }
    let (why, advice) = who.about(RefusalCode::CallerNotAllowed, Decider::Session);
    assert_eq!(why, "plant7 does not open ssh to laptop");
    assert_eq!(advice, "on plant7: run the agent with --allow ssh=laptop");
    let (why, _) = who.about(RefusalCode::TargetLoggedOut, Decider::Caller);
    assert!(why.starts_with("laptop is registered"), "{why}");
}
