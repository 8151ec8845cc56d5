//! Every verb against a daemon over its socket, on a fake mesh.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdUnixStream;

use tasuki_proto::session::{INBOX, Offer, Part, segment};
use tokio::net::TcpListener;

use super::*;
use crate::cli::dial;
use crate::core::transfer::to_hash;
use crate::io::ipc::client::{Client, ClientError, Reply};
use crate::io::testing::{DEADLINE, Mesh, Node, service, terminal, until};

/// Two terminals, `a` with a daemon on its socket.
struct Lab {
    mesh: Mesh,
    a: Node,
    b: Node,
    daemon: tokio::task::JoinHandle<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.daemon.abort();
    }
}

impl Lab {
    fn new(config_of_b: &str) -> Self {
        let mesh = Mesh::new();
        let (a, b) = (mesh.node("a", ""), mesh.node("b", config_of_b));
        let listener = IpcListener::bind(a.data(), false).unwrap();
        let daemon = tokio::spawn(listener.serve(a.agent.clone(), a.services.clone()));
        Self { mesh, a, b, daemon }
    }

    fn client(&self) -> Client {
        Client::connect(&[self.a.data().to_path_buf()]).unwrap()
    }

    /// Runs the command line as `a`'s user would, and gives what it printed.
    async fn verb(&self, line: &str) -> anyhow::Result<String> {
        let words = format!("tasuki-agent --data {} {line}", self.a.data().display());
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        blocking(move || crate::cli::run_line(&words)).await
    }

    async fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.verb(&format!("{line} --json")).await.unwrap()).unwrap()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::time::timeout(DEADLINE, tokio::task::spawn_blocking(work)).await.unwrap().unwrap()
}

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

async fn exposing() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = format!(
        "[expose]\necho = \"tcp://127.0.0.1:{port}\"\nshut = \"tcp://127.0.0.1:{port}\"\n\
         [allow]\necho = \"*\"\ninbox = \"a\"\n"
    );
    (listener, config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_commands() {
    let lab = Lab::new("");
    let ls = lab.json("ls").await;
    assert_eq!(ls.as_array().unwrap().len(), 2);
    let mut fields = keys(&ls[0]);
    fields.sort_unstable();
    let wanted = ["attachments", "attributes", "id", "sessions", "state", "type", "updated_at"];
    assert_eq!(fields, wanted);
    assert_eq!(lab.json("ls b").await.as_array().unwrap().len(), 1);
    assert_eq!(lab.json("status").await["id"], "a");
    assert_eq!(lab.json("sessions").await[0]["state"], "active");
    let mut fields = lab.json("paths").await;
    let row = fields[0].take();
    let mut fields = keys(&row);
    fields.sort_unstable();
    let wanted = [
        "loss",
        "path",
        "peer",
        "relayed_paths",
        "relays",
        "rtt_us",
        "service",
        "session",
        "since",
        "why",
    ];
    assert_eq!(fields, wanted);
    for verb in ["status", "ls", "sessions", "paths"] {
        let text = lab.verb(verb).await.unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.is_empty());
    }
    lab.verb("logout").await.unwrap();
    lab.verb("login").await.unwrap();
    let error = lab.verb("end xyz").await.unwrap_err().to_string();
    assert!(error.starts_with("unknown-session: xyz: "), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_counts_and_measures() {
    let lab = Lab::new("");
    let result = lab.json("ping b -c 3").await;
    assert_eq!((&result["target"], &result["sent"]), (&"b".into(), &3.into()));
    assert_eq!(result["received"], 3);
    assert_eq!(result["path"], "relayed");
    let rtt = &result["rtt_us"];
    assert!(rtt["min"].as_u64().unwrap() > 0 && rtt["min"].as_u64() <= rtt["max"].as_u64());
    assert!(lab.verb("ping b -c 1").await.unwrap().contains("1 of 1 came back"));
    until("its session ended", || lab.mesh.live() == 0).await;
    let error = lab.verb("ping c").await.unwrap_err().to_string();
    assert!(error.starts_with("unknown-target: c: "), "{error}");
}

/// A reader that stays open and silent until the test is over.
fn held_open() -> (StdUnixStream, StdUnixStream) {
    StdUnixStream::pair().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_dial_ends_at_once_while_its_input_stays_open() {
    let (_listener, config) = exposing().await;
    let lab = Lab::new(&config);
    for (place, word) in [
        ("b/absent", "service-not-exposed"),
        ("b/shut", "caller-not-allowed"),
        ("c/echo", "unknown-target"),
    ] {
        let (input, holder) = held_open();
        let (client, place) = (lab.client(), place.parse().unwrap());
        let error = blocking(move || dial::carry(client, place, input, Vec::new())).await;
        assert!(error.unwrap_err().to_string().starts_with(word));
        drop(holder);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dial_carries_bytes_and_each_end_by_itself() {
    let (listener, config) = exposing().await;
    let lab = Lab::new(&config);
    // The service ends first; what the client says afterwards still arrives.
    let (input, mut stdin) = held_open();
    let (sink, mut stdout) = held_open();
    let (client, place) = (lab.client(), "b/echo".parse().unwrap());
    let verb = tokio::task::spawn_blocking(move || dial::carry(client, place, input, sink));
    let (mut server, _) = tokio::time::timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
    server.write_all(b"hello").await.unwrap();
    server.shutdown().await.unwrap();
    let heard = blocking(move || {
        let mut heard = String::new();
        stdout.read_to_string(&mut heard).map(|_| heard)
    });
    assert_eq!(heard.await.unwrap(), "hello");
    let all: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7) as u8).collect();
    let sent = all.clone();
    blocking(move || stdin.write_all(&sent).unwrap()).await;
    let mut heard = Vec::new();
    tokio::time::timeout(DEADLINE, server.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert!(heard == all);
    tokio::time::timeout(DEADLINE, verb).await.unwrap().unwrap().unwrap();
    until("its session ended", || lab.mesh.live() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_whose_reader_has_enough_blames_its_output() {
    let (listener, config) = exposing().await;
    let lab = Lab::new(&config);
    let (input, holder) = held_open();
    let (sink, stdout) = held_open();
    drop(stdout);
    let (client, place) = (lab.client(), "b/echo".parse().unwrap());
    let verb = tokio::task::spawn_blocking(move || dial::carry(client, place, input, sink));
    let (mut server, _) = tokio::time::timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
    server.write_all(b"hello").await.unwrap();
    let error = tokio::time::timeout(DEADLINE, verb).await.unwrap().unwrap().unwrap_err();
    let ClientError::Output(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    // As the end of the process.
    drop(holder);
    until("its session ended", || lab.mesh.live() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_whose_verb_was_killed_resets_the_service() {
    let (listener, config) = exposing().await;
    let lab = Lab::new(&config);
    let mut client = lab.client();
    client.send(&Request::Dial { target: terminal("b"), service: service("echo") }).unwrap();
    client.data_writer().unwrap().write(b"x").unwrap();
    let (mut server, _) = tokio::time::timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
    server.read_u8().await.unwrap();
    drop(client);
    let error = tokio::time::timeout(DEADLINE, server.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    until("its session ended", || lab.mesh.live() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forward_lives_as_long_as_its_verb() {
    let (listener, config) = exposing().await;
    let lab = Lab::new(&config);
    let mut client = lab.client();
    let request = |name: &str, listen: SocketAddr| Request::Forward {
        udp: false,
        listen,
        target: terminal("b"),
        service: service(name),
    };
    use std::net::SocketAddr;
    client.send(&request("echo", "127.0.0.1:0".parse().unwrap())).unwrap();
    let (client, news) = blocking(move || {
        let news = client.hear();
        (client, news)
    })
    .await;
    let Ok(Reply::Event(news)) = news else { panic!("{news:?}") };
    let ForwardNews::Listening { address } = serde_json::from_value(news).unwrap() else {
        panic!("does not listen")
    };
    let mut local = tokio::net::TcpStream::connect(address).await.unwrap();
    local.write_all(b"x").await.unwrap();
    let (mut server, _) = tokio::time::timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'x');

    let taken = lab.client().get(&request("echo", address)).unwrap_err().to_string();
    assert!(taken.starts_with("cannot-listen: cannot listen on 127.0.0.1:"), "{taken}");
    drop(client);
    until("its session ended", || lab.mesh.live() == 0).await;
    until("the port is closed", || std::net::TcpStream::connect(address).is_err()).await;
    let mut hopeless = lab.client();
    let refused = request("absent", "127.0.0.1:0".parse().unwrap());
    let error = blocking(move || hopeless.get(&refused).unwrap_err().to_string()).await;
    assert!(error.starts_with("service-not-exposed: absent: "), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_land_in_the_inbox_whole_and_are_not_replaced() {
    let lab = Lab::new("[allow]\ninbox = \"a\"\n");
    let source = lab.a.data().join("big.bin");
    let content: Vec<u8> = (0..13_000_000_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    std::fs::write(&source, &content).unwrap();
    let empty = lab.a.data().join("empty");
    std::fs::write(&empty, b"").unwrap();
    let line = format!("send {} {} b:in/here", source.display(), empty.display());
    let text = lab.verb(&line).await.unwrap();
    assert!(text.contains("13000000 bytes, verified -> b:in/here/big.bin"), "{text}");
    let landed = lab.b.inbox().join("in/here/big.bin");
    assert!(std::fs::read(&landed).unwrap() == content);
    assert_eq!(std::fs::read(lab.b.inbox().join("in/here/empty")).unwrap(), b"");
    let left = std::fs::read_dir(lab.b.inbox().join(".partial")).unwrap().count();
    assert_eq!(left, 0);

    std::fs::write(&source, b"other").unwrap();
    let error = lab.verb(&line).await.unwrap_err().to_string();
    assert!(error.starts_with("file-exists: in/here/big.bin: "), "{error}");
    assert!(std::fs::read(&landed).unwrap() == content);
    lab.verb(&format!("{line} --overwrite")).await.unwrap();
    assert_eq!(std::fs::read(&landed).unwrap(), b"other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_file_continues_where_it_stopped() {
    let lab = Lab::new("[allow]\ninbox = \"a\"\n");
    let content: Vec<u8> = (0..13_000_000_u32).map(|n| (n ^ (n >> 7)) as u8).collect();
    let source = lab.a.data().join("big.bin");
    std::fs::write(&source, &content).unwrap();
    let size = content.len() as u64;
    // By hand: one whole segment, half of the next, then the session is cut.
    let offer = |transfer| {
        Begin::Offer(Offer {
            transfer,
            folder: String::new(),
            name: "big.bin".into(),
            size,
            mode: 0o644,
            overwrite: false,
        })
    };
    let session = lab.a.agent.call(terminal("b"), service(INBOX)).await.unwrap();
    let (_control, have) = offered(&session, &offer(1)).await;
    assert_eq!(have, Some(Vec::new()));
    for (index, whole) in [(0, true), (1, false)] {
        let (start, length) = segment(size, index).unwrap();
        let bytes = &content[start as usize..(start + length) as usize];
        let begin = Begin::Part(Part { transfer: 1, index });
        let (mut send, mut recv) = pipe::open(&session.connection, &begin).await.unwrap();
        if whole {
            send.write_all(bytes).await.unwrap();
            let hash = to_hash(&ring::digest::digest(&ring::digest::SHA256, bytes));
            send.write_all(&hash).await.unwrap();
            pipe::read_opened(&mut recv).await.unwrap();
        } else {
            send.write_all(&bytes[..bytes.len() / 2]).await.unwrap();
        }
    }
    lab.mesh.cut();
    drop(session);
    // What was written stays, and a new offer says so, once the old transfer is over.
    let session = lab.a.agent.call(terminal("b"), service(INBOX)).await.unwrap();
    let start = std::time::Instant::now();
    let have = loop {
        assert!(start.elapsed() < DEADLINE);
        if let (_, Some(have)) = offered(&session, &offer(2)).await {
            break have;
        }
    };
    let first = &content[..segment(size, 0).unwrap().1 as usize];
    assert_eq!(have[0], to_hash(&ring::digest::digest(&ring::digest::SHA256, first)));
    lab.mesh.cut();
    drop(session);
    let line = format!("send {} b:", source.display());
    let start = std::time::Instant::now();
    while let Err(error) = lab.verb(&line).await {
        assert!(error.to_string().starts_with("busy: ") && start.elapsed() < DEADLINE, "{error}");
    }
    assert!(std::fs::read(lab.b.inbox().join("big.bin")).unwrap() == content);
}

type Control = (SendStream, RecvStream);

/// Offers a file; its control stream, and what the receiver has of it, or `None` while it is still busy with it.
async fn offered(session: &Session, offer: &Begin) -> (Control, Option<Vec<[u8; 32]>>) {
    let (send, mut recv) = pipe::open(&session.connection, offer).await.unwrap();
    let have = match pipe::read_answer(&mut recv, limits::SESSION_HAVE_BYTES).await {
        Ok(tasuki_proto::session::Answer::Have(have)) => Some(have.hashes),
        Err(Broken::Refused(refusal)) if refusal.code == RefusalCode::Busy => None,
        other => panic!("{other:?}"),
    };
    ((send, recv), have)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_leave_the_inbox_are_refused() {
    let lab = Lab::new("[allow]\ninbox = \"a\"\n");
    let session = lab.a.agent.call(terminal("b"), service(INBOX)).await.unwrap();
    let offer = |folder: &str, name: &str| {
        Begin::Offer(Offer {
            transfer: 1,
            folder: folder.into(),
            name: name.into(),
            size: 1,
            mode: 0o644,
            overwrite: true,
        })
    };
    let code = async |begin: &Begin| {
        let (_send, mut recv) = pipe::open(&session.connection, begin).await.unwrap();
        match pipe::read_answer(&mut recv, limits::SESSION_HAVE_BYTES).await {
            Err(Broken::Refused(refusal)) => Some(refusal.code),
            _ => None,
        }
    };
    for (folder, name) in [("..", "x"), ("", "../x"), ("/tmp", "x"), ("", ".ssh"), ("a/..", "x")] {
        assert_eq!(code(&offer(folder, name)).await, Some(RefusalCode::BadFileName));
    }
    // A link in the inbox is not followed either.
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(lab.b.inbox()).unwrap();
    std::os::unix::fs::symlink(outside.path(), lab.b.inbox().join("link")).unwrap();
    let source = lab.a.data().join("x");
    std::fs::write(&source, b"x").unwrap();
    let error = lab.verb(&format!("send {} b:link", source.display())).await.unwrap_err();
    assert!(error.to_string().starts_with("inbox-failed: "), "{error}");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_daemon_per_data_directory_and_dead_sockets_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(socket_path(folder.path()), b"").unwrap();
    let first = IpcListener::bind(folder.path(), false).unwrap();
    let mode = std::fs::metadata(socket_path(folder.path())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let second = IpcListener::bind(folder.path(), false).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::ResourceBusy);
    drop(first);
    let refused = Client::connect(&[folder.path().to_path_buf()]).unwrap_err();
    assert!(matches!(refused, ClientError::NotRunning(_)));
    assert!(IpcListener::bind(folder.path(), false).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_on_the_socket_harms_nothing() {
    let lab = Lab::new("");
    for bytes in [&b"\xff\xff\xff\xff\xff\xff\xff"[..], b"\0\x01\0\0\0\x02{]", b"\0\x01"] {
        let mut raw = StdUnixStream::connect(socket_path(lab.a.data())).unwrap();
        raw.write_all(bytes).unwrap();
    }
    assert_eq!(lab.json("status").await["id"], "a");
}
