//! The event stream.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::*;

/// A watcher, and what it was sent.
struct Watch {
    stream: TcpStream,
    text: String,
    events: VecDeque<(String, String, Value)>,
    comments: usize,
}

impl Watch {
    async fn start(endpoint: &Endpoint, query: &str, head: &str) -> Self {
        Self::over(endpoint.tcp().await, query, head).await
    }

    async fn over(mut stream: TcpStream, query: &str, head: &str) -> Self {
        let request =
            format!("GET /api/v1/events{query} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut watch = Self { stream, text: String::new(), events: VecDeque::new(), comments: 0 };
        while !watch.text.contains("\r\n\r\n") {
            assert!(watch.read().await, "ends early: {}", watch.text);
        }
        let (head, rest) = watch.text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{}", watch.text);
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        assert!(head.contains("cache-control: no-store"), "{head}");
        watch.text = rest.to_owned();
        watch
    }

    /// Reads once; `false` at the end.
    async fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let read = timeout(DEADLINE, self.stream.read(&mut bytes)).await.expect("in time");
        let read = read.unwrap_or(0);
        self.text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        read > 0
    }

    /// The next event: its id, its name and its data.
    async fn next(&mut self) -> (String, String, Value) {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            self.parse();
            if self.events.is_empty() {
                assert!(self.read().await, "the stream ended: {}", self.text);
            }
        }
    }

    /// Takes whole events out of the chunks (RFC 9112, section 7.1) that have arrived.
    fn parse(&mut self) {
        while let Some((size, rest)) = self.text.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            if rest.len() < size + 2 {
                return;
            }
            let (chunk, rest) = rest.split_at(size);
            for event in chunk.split_terminator("\n\n") {
                if event == ":" {
                    self.comments += 1;
                    continue;
                }
                let mut lines = event.splitn(3, '\n');
                let mut field = |name| lines.next().unwrap().strip_prefix(name).unwrap();
                let (id, event, data) = (field("id: "), field("event: "), field("data: "));
                let data = serde_json::from_str(data).unwrap();
                self.events.push_back((id.to_owned(), event.to_owned(), data));
            }
            self.text = rest[2..].to_owned();
        }
    }

    /// The next event, which has to have this name.
    async fn expect(&mut self, name: &str) -> (String, Value) {
        let (id, event, data) = self.next().await;
        assert_eq!(event, name, "{data}");
        (id, data)
    }
}

fn terminal_row(number: usize) -> ChangedRow {
    ChangedRow::Terminal(Box::new(terminal(number)))
}

#[tokio::test]
async fn events_carry_whole_rows_with_their_numbers() {
    let endpoint = Endpoint::start(World { terminals: 2, ..World::default() }).await;
    let mut watch = Watch::start(&endpoint, "", "").await;
    let (id, hello) = watch.expect("hello").await;
    assert_eq!((id.as_str(), hello), ("3-0", json!({"relay": "r1", "incarnation": 3, "seq": 0})));
    endpoint.world.change([
        terminal_row(1),
        ChangedRow::Relay(Box::new(relay_view("r1", "cc"))),
        ChangedRow::Session(Box::new(session(1))),
        ChangedRow::Gone(RowKind::Session, session_id(2).to_string()),
    ]);
    let (id, row) = watch.expect("terminal").await;
    assert_eq!(id, "3-1");
    assert_eq!(row, endpoint.get("/api/v1/terminals/t0001").await.json());
    let (id, row) = watch.expect("relay").await;
    assert_eq!((id.as_str(), &row["name"]), ("3-2", &json!("r1")));
    let (_, row) = watch.expect("session").await;
    assert_eq!(row["id"], json!(session_id(1).to_string()));
    let (id, gone) = watch.expect("gone").await;
    assert_eq!(id, "3-4");
    assert_eq!(gone, json!({"kind": "session", "id": session_id(2).to_string()}));
    drop(watch);
    endpoint.stop().await;
}

#[tokio::test]
async fn a_watcher_gets_the_kinds_it_asked_for() {
    let endpoint = Endpoint::start(World::default()).await;
    let mut relays = Watch::start(&endpoint, "?types=relay", "").await;
    let mut both = Watch::start(&endpoint, "?types=session,terminal", "").await;
    relays.expect("hello").await;
    both.expect("hello").await;
    endpoint.world.change([
        terminal_row(1),
        ChangedRow::Relay(Box::new(relay_view("r1", "cc"))),
        ChangedRow::Gone(RowKind::Terminal, "t0009".to_owned()),
        ChangedRow::Gone(RowKind::Relay, "dd".to_owned()),
    ]);
    relays.expect("relay").await;
    assert_eq!(relays.expect("gone").await.1["id"], "dd");
    both.expect("terminal").await;
    assert_eq!(both.expect("gone").await.1["id"], "t0009");
    for bad in ["?types=", "?types=relay,x", "?type=relay", "?types=relay&types=relay"] {
        let path = format!("/api/v1/events{bad}");
        endpoint.get(&path).await.problem(400, "bad-request");
    }
    drop((relays, both));
    endpoint.stop().await;
}

#[tokio::test]
async fn a_watcher_that_comes_back_goes_on_where_it_stood() {
    let endpoint = Endpoint::start(World::default()).await;
    endpoint.world.change((0..10).map(terminal_row));
    let mut watch = Watch::start(&endpoint, "", "Last-Event-ID: 3-7\r\n").await;
    assert_eq!(watch.expect("hello").await.0, "3-10");
    for seq in [8, 9, 10] {
        assert_eq!(watch.expect("terminal").await.0, format!("3-{seq}"));
    }
    endpoint.world.change([terminal_row(1)]);
    assert_eq!(watch.expect("terminal").await.0, "3-11", "and nothing twice");

    // From another life, from the future, forgotten, nonsense: all of it is said.
    endpoint.world.news.lock().unwrap().1 = 5;
    for unknown in ["2-7", "2-99", "3-99", "3-4", "x", "3-99999999999999999999"] {
        let head = format!("Last-Event-ID: {unknown}\r\n");
        let mut watch = Watch::start(&endpoint, "", &head).await;
        watch.expect("hello").await;
        let (id, data) = watch.expect("resync").await;
        assert!(id.starts_with("3-") && data["why"].is_string(), "{unknown}: {id} {data}");
    }
    drop(watch);
    endpoint.stop().await;
}

#[tokio::test]
async fn too_much_at_once_is_a_resync() {
    let endpoint = Endpoint::start(World::default()).await;
    let mut watch = Watch::start(&endpoint, "", "").await;
    watch.expect("hello").await;
    *endpoint.world.news.lock().unwrap() = (vec![], 1000);
    assert_eq!(watch.expect("resync").await.0, "3-1000");
    endpoint.world.change([terminal_row(1)]);
    assert_eq!(watch.expect("terminal").await.0, "3-1001");
    drop(watch);
    endpoint.stop().await;
}

#[tokio::test]
async fn only_so_many_watch_and_nobody_asks_for_nobody() {
    let endpoint = Endpoint::start(World::default()).await;
    let mut watchers = Vec::new();
    for _ in 0..limits::HTTP_WATCHERS {
        watchers.push(Watch::start(&endpoint, "", "").await);
    }
    endpoint.get("/api/v1/events").await.problem(503, "too-many-watchers");
    endpoint.world.change([terminal_row(1)]);
    for watch in &mut watchers {
        watch.expect("hello").await;
        watch.expect("terminal").await;
    }
    drop(watchers);
    // Their places are free once the task has seen that they are gone, and the core is left alone.
    let begun = Instant::now();
    loop {
        let before = endpoint.world.asked.load(Ordering::Relaxed);
        // One after the other: a machine that stands still takes one of them, not all.
        for _ in 0..3 {
            tokio::time::sleep(limits::HTTP_EVENT_PERIOD).await;
        }
        if endpoint.world.asked.load(Ordering::Relaxed) == before {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "the core is still asked");
    }
    Watch::start(&endpoint, "", "").await.expect("hello").await;
    endpoint.stop().await;
}

#[tokio::test]
async fn a_stream_outlives_the_times_of_requests_and_connections() {
    let endpoint = Endpoint::start_within(World::default(), short()).await;
    let mut watch = Watch::start(&endpoint, "", "").await;
    watch.expect("hello").await;
    let bounds = short();
    tokio::time::sleep(bounds.connection + bounds.grace + bounds.request).await;
    endpoint.world.change([terminal_row(1)]);
    watch.expect("terminal").await;
    endpoint.stop().await;
    while watch.read().await {}
}

#[tokio::test]
async fn a_watcher_that_never_reads_is_cut() {
    let endpoint = Endpoint::start_within(World::default(), short()).await;
    let mut deaf = endpoint.tcp().await;
    deaf.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    // The only connection is taken until the deaf one is cut. More than any buffer holds is on its way to it.
    let mut large = terminal(1);
    large.attributes.insert("x".to_owned(), "x".repeat(16 * 1024));
    let changing = endpoint.world.clone();
    let changes = tokio::spawn(async move {
        loop {
            changing.change((0..16).map(|_| ChangedRow::Terminal(Box::new(large.clone()))));
            tokio::time::sleep(limits::HTTP_EVENT_PERIOD / 10).await;
        }
    });
    assert_eq!(endpoint.get("/healthz").await.status, 200);
    changes.abort();
    drop(deaf);
    endpoint.stop().await;
}

#[tokio::test]
async fn a_slow_watcher_misses_events_and_is_told_when_it_reads() {
    let endpoint = Endpoint::start(World::default()).await;
    // Little fits into the kernel on its side.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut slow = Watch::over(socket.connect(endpoint.address).await.unwrap(), "", "").await;
    let mut healthy = Watch::start(&endpoint, "", "").await;
    let mut large = terminal(1);
    large.attributes.insert("x".to_owned(), "x".repeat(64 * 1024));
    // 8 MiB: more than the kernel's buffers and the watcher's own take.
    let rounds = 16 * 8;
    healthy.expect("hello").await;
    for _ in 0..rounds / 8 {
        endpoint.world.change((0..8).map(|_| ChangedRow::Terminal(Box::new(large.clone()))));
        for _ in 0..8 {
            healthy.expect("terminal").await;
        }
    }
    slow.expect("hello").await;
    let mut seen = 0;
    while slow.next().await.1 != "resync" {
        seen += 1;
        assert!(seen < rounds, "nothing was left out");
    }
    endpoint.world.change([terminal_row(7)]);
    assert_eq!(slow.expect("terminal").await.1["id"], "t0007", "in order again");
    drop((slow, healthy));
    endpoint.stop().await;
}

#[tokio::test]
async fn a_silent_stream_carries_comments() {
    let endpoint = Endpoint::start(World::default()).await;
    let mut watch = Watch::start(&endpoint, "", "").await;
    watch.expect("hello").await;
    assert_eq!(watch.comments, 0);
    while watch.comments == 0 {
        assert!(watch.read().await);
        watch.parse();
    }
    drop(watch);
    endpoint.stop().await;
}

#[tokio::test]
async fn counts_and_histories() {
    let endpoint = Endpoint::start(World { terminals: 2, ..World::default() }).await;
    let summary = json!({
        "terminals": {"total": 2, "logged-out": 0, "logged-in": 1, "in-communication": 0, "unreachable": 1},
        "types": {"camera": 2},
        "relays": {"total": 3, "reachable": 2, "draining": 1},
    });
    assert_eq!(endpoint.get("/api/v1/summary").await.json(), summary);
    let history = endpoint.get("/api/v1/terminals/t0001/history").await.json();
    let event = |at| json!({"at": at, "what": "logged-in", "detail": "at r1 as primary"});
    assert_eq!(history, json!({"items": [event(2), event(1)], "next": null}));
    let history = endpoint.get("/api/v1/relays/r1/history").await.json();
    assert_eq!(history, json!({"items": [], "next": null}));
    endpoint.get("/api/v1/terminals/nobody/history").await.problem(404, "unknown-target");
    endpoint.get("/api/v1/relays/nobody/history").await.problem(404, "unknown-relay");
    endpoint.get("/api/v1/summary?x=1").await.problem(400, "bad-request");
    endpoint.get("/api/v1/relays/r1/history?limit=1").await.problem(400, "bad-request");
    endpoint.stop().await;
}
