//! A peer of a later version speaks to this one: a higher protocol, kinds and sections that nobody knows here, further
//! sections behind those that are known, codes of its own. What both know goes on (invariant 9).
//!
//! `tests/tests/golden.rs` pins this for each message, `tests/tests/hostile.rs` for a link; here a terminal logs in, calls
//! a real agent and is called by it. `tasuki-bench versions` does so with programs of another build.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use bytes::{BufMut, BytesMut};
use tasuki_proto::codec::{Envelope, SectionWriter};
use tasuki_proto::control::{Call, CallRefused, End, Hello, List, ToRelay, ToTerminal};
use tasuki_proto::id::{Label, LoginEpoch, SessionId, TerminalId};
use tasuki_proto::version::{Alpn, PROTOCOL};
use tasuki_proto::{Refusal, RefusalCode, RelayId, ServiceName};
use tasuki_tests::lab::process::Done;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, TerminalSpec, raw};

/// A code that no build knows.
const LATER: RefusalCode = RefusalCode::Other(60_001);

/// A message as a later version says it: with a section before what is known here, and one behind.
fn later(message: &ToRelay) -> Envelope {
    let known = message.to_envelope();
    let mut body = BytesMut::from(&SectionWriter::new().with(90, &"before").finish()[..]);
    body.put_slice(&known.body);
    body.put_slice(&SectionWriter::new().with(91, &(7_u64, "behind")).finish());
    Envelope { kind: known.kind, body: body.freeze() }
}

async fn hear(
    x: &mut raw::RawStream,
    what: &str,
    wanted: impl Fn(&ToTerminal) -> bool,
) -> ToTerminal {
    loop {
        let message = x.hear_relay().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        if wanted(&message) {
            return message;
        }
    }
}

/// Logs in as `x`, with everything that is unknown here between.
async fn log_in(mesh: &Mesh) -> (raw::RawStream, RelayId) {
    let (relay, data) = (mesh.relay("r1"), mesh.terminal("x").data());
    let mut x =
        raw::RawStream::connect(relay.listen(), "r1.relay.lab.tasuki", data, Alpn::Attachment)
            .await
            .unwrap();
    let hello = Hello { protocol: PROTOCOL + 6, software: "9.0.0".into(), instance: 1 };
    x.say(&later(&ToRelay::Hello(hello))).await.unwrap();
    let answer = hear(&mut x, "an answer to Hello", |_| true).await;
    let ToTerminal::Welcome(welcome) = answer else { panic!("{answer:?}") };
    assert_eq!(welcome.protocol, PROTOCOL, "the newest that both speak");
    x.say(&raw::unknown_message()).await.unwrap();
    let epoch = LoginEpoch(welcome.epoch().0 + 1);
    let login = raw::login(data, welcome.relay, epoch, raw::INSTANCE);
    x.say(&later(&ToRelay::Login(login))).await.unwrap();
    hear(&mut x, "logged in", |said| matches!(said, ToTerminal::LoggedIn(_))).await;
    (x, welcome.relay)
}

#[test]
fn a_terminal_of_a_later_version_logs_in_calls_and_is_called() {
    let echo = TcpService::echo(None);
    let mesh = MeshSpec::line(&["r1", "r2"])
        .terminal(
            TerminalSpec::new("a")
                .relayed()
                .at(&["r2"])
                .offers("echo", &format!("tcp://{}", echo.address())),
        )
        .terminal(TerminalSpec::new("x").relayed().at(&["r1"]).stays_off())
        .start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut x, edge) = log_in(&mesh).await;
        mesh.wait_state("x", "logged-in", SOON);

        let list = List { request: 5, filter: Default::default(), after: None, limit: 10 };
        x.say(&later(&ToRelay::List(list))).await.unwrap();
        let page = hear(&mut x, "a page", |said| matches!(said, ToTerminal::Page(_))).await;
        let ToTerminal::Page(page) = page else { panic!() };
        assert_eq!((page.request, page.items.len()), (5, 2), "{page:?}");

        // The agent takes the call: its answer comes back over both relays.
        let session = SessionId { edge, nonce: 77 };
        let (target, service) = (TerminalId::new("a").unwrap(), ServiceName::new("echo").unwrap());
        let label = Label::from_random(7);
        let call = Call { session, target, service, tie_break: Some(9), label };
        x.say(&later(&ToRelay::Call(call))).await.unwrap();
        let answer = hear(&mut x, "an answer to the call", |said| {
            matches!(said, ToTerminal::Accepted(_) | ToTerminal::CallRefused(_))
        })
        .await;
        assert!(matches!(&answer, ToTerminal::Accepted(a) if a.session == session), "{answer:?}");
        x.say(&raw::unknown_message()).await.unwrap();
        x.say(&later(&ToRelay::End(End { session, code: LATER }))).await.unwrap();
        tokio::task::block_in_place(|| mesh.wait_no_sessions(SOON));

        // The agent calls, and is refused with a code that it cannot know: it shows the number.
        let refused = std::thread::scope(|scope| {
            let dial = scope.spawn(|| mesh.terminal("a").verb(&["dial", "x/echo"]));
            let refuse = async {
                let said = hear(&mut x, "a call", |said| matches!(said, ToTerminal::Incoming(_)));
                let ToTerminal::Incoming(incoming) = said.await else { panic!() };
                let refusal = Refusal::new(LATER, "of a later version");
                let refused = CallRefused { session: incoming.session, refusal, winner: None };
                x.say(&later(&ToRelay::Refuse(refused))).await.unwrap();
            };
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(refuse);
                dial.join().unwrap()
            })
        });
        shows(&refused);
        x.say(
            &ToRelay::List(List { request: 6, filter: Default::default(), after: None, limit: 1 })
                .to_envelope(),
        )
        .await
        .unwrap();
        hear(&mut x, "a page", |said| matches!(said, ToTerminal::Page(_))).await;
    });
    assert!(mesh.terminal("a").is_running());
    mesh.wait_state("a", "logged-in", SOON);
}

fn shows(done: &Done) {
    assert_ne!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("60001"), "{}", done.stderr);
}
