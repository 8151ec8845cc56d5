//! What every store must do. Another kind of store passes the same.

use std::path::Path;

use tasuki_proto::identity::{KeyFingerprint, NodeName, TokenFor, TokenId, TokenSecret};
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::{
    Incarnation, RefusalCode, RelayId, RelayName, ServiceName, SessionId, TerminalId,
};

use super::*;

fn terminal(name: &str) -> TerminalId {
    TerminalId::new(name).unwrap()
}

fn record(key: &str, incarnation: u64, sequence: u64) -> Record {
    Record::new(&Draft {
        origin: RelayId::AUTHORITY,
        kind: RecordKind::ACCOUNT,
        key: key.as_bytes(),
        version: Version { incarnation: Incarnation(incarnation), sequence },
        wall_ms: 1,
        scope: 0,
        lifetime_secs: 0,
        tombstone: false,
        payload: b"",
    })
}

fn session(nonce: u64, ended_ms: u64) -> FinishedSession {
    FinishedSession {
        id: SessionId { edge: RelayId(u64::MAX - 1), nonce },
        caller: terminal("a"),
        callee: terminal("b"),
        service: ServiceName::new("ssh").unwrap(),
        started_ms: ended_ms.saturating_sub(5),
        ended_ms,
        code: RefusalCode::EndedByCaller,
        route: ["r1", "r2"].iter().map(|name| RelayName::new(name).unwrap()).collect(),
        counters: Counters {
            bytes_to_callee: 1,
            packets_to_callee: 2,
            bytes_to_caller: 3,
            packets_to_caller: 4,
        },
    }
}

fn open(dir: &Path) -> Store {
    Store::open(dir).unwrap()
}

#[tokio::test]
async fn the_incarnation_grows_with_every_start() {
    let dir = tempfile::tempdir().unwrap();
    for expected in 1..4 {
        let store = open(dir.path());
        assert_eq!(store.begin_incarnation().await.unwrap(), Incarnation(expected));
    }
    let store = open(dir.path());
    assert_eq!(store.raise_incarnation(Incarnation(100)).await.unwrap(), Incarnation(100));
    assert_eq!(store.raise_incarnation(Incarnation(7)).await.unwrap(), Incarnation(100));
    drop(store);
    assert_eq!(open(dir.path()).begin_incarnation().await.unwrap(), Incarnation(101));
}

#[tokio::test]
async fn the_clocks_mark_never_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(store.clock_mark().await.unwrap(), 0);
    assert_eq!(store.raise_clock_mark(50).await.unwrap(), 50);
    assert_eq!(store.raise_clock_mark(40).await.unwrap(), 50);
    drop(store);
    assert_eq!(open(dir.path()).clock_mark().await.unwrap(), 50);
}

#[tokio::test]
async fn a_record_replaces_only_an_older_one_and_comes_back_verbatim() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (old, new) = (record("t1", 1, 9), record("t1", 2, 1));
    let other = record("t2", 1, 10);
    store.put_records(vec![new.clone(), old, other.clone()], None).await.unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.records().await.unwrap(), [other, new.clone()]);
    let again = new.clone();
    let put = store.run(move |rows| rows.put_record(&again)).await;
    assert!(!put.unwrap(), "the same version is not newer");
    let found = store.run(|rows| rows.record(RecordKind::ACCOUNT, b"t1")).await;
    assert_eq!(found.unwrap(), Some(new));
    let none = store.run(|rows| rows.record(RecordKind::REVOCATION, b"t1")).await;
    assert_eq!(none.unwrap(), None);
}

#[tokio::test]
async fn a_task_that_fails_is_undone_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bad = store.run(|rows| {
        rows.next(Mark::AuthoritySequence)?;
        Err::<(), _>(StoreError::Unsound("meta"))
    });
    let good = store.run(|rows| rows.next(Mark::Incarnation));
    let (bad, good) = tokio::join!(bad, good);
    assert!(bad.is_err());
    assert_eq!(good.unwrap(), 1);
    assert_eq!(store.run(|rows| rows.mark(Mark::AuthoritySequence)).await.unwrap(), 0);
    assert_eq!(store.run(|rows| rows.mark(Mark::Incarnation)).await.unwrap(), 1);
}

#[tokio::test]
async fn tokens_and_certificates_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = TokenId([1; 16]);
    let key = KeyFingerprint([2; 32]);
    let name = NodeName::Terminal(terminal("t1"));
    let issued = IssuedCertificate { not_before: 1, not_after: 9, chain: vec![vec![1], vec![2]] };
    let token = StoredToken {
        secret: TokenSecret::from_bytes([3; 32]),
        made_for: TokenFor::Terminal(terminal("t1")),
        expires_ms: 100,
        used_by: None,
    };
    let (name_, issued_) = (name.clone(), issued.clone());
    store
        .run(move |rows| {
            rows.put_token(&id, &token)?;
            rows.put_token(&TokenId([9; 16]), &StoredToken { made_for: TokenFor::Relay, ..token })?;
            rows.put_certificate(&key, &name_, &issued_)
        })
        .await
        .unwrap();
    drop(store);
    let store = open(dir.path());
    let found = store.run(move |rows| rows.token(&id)).await.unwrap().unwrap();
    assert_eq!(found.secret.as_bytes(), &[3; 32]);
    assert_eq!(found.made_for, TokenFor::Terminal(terminal("t1")));
    assert_eq!((found.expires_ms, found.used_by), (100, None));
    store
        .run(move |rows| -> Result<(), StoreError> {
            assert_eq!(rows.certificate(&key)?, Some(issued));
            assert_eq!(rows.keys_of(&name)?, [key]);
            assert_eq!(rows.keys_of(&NodeName::Terminal(terminal("t2")))?, []);
            rows.use_token(&id, &key)?;
            rows.drop_open_tokens(&terminal("t1"))?;
            assert_eq!(rows.token(&id)?.unwrap().used_by, Some(key), "a used one stays");
            assert_eq!(rows.count_tokens()?, 2);
            rows.forget_tokens(101)?;
            assert_eq!(rows.count_tokens()?, 0);
            Ok(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn the_ledger_is_read_in_pages_and_kept_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let sessions: Vec<_> = (0..10).map(|n| session(n, 1_000 + n)).collect();
    store.put_sessions(sessions.iter().rev().cloned().collect()).await.unwrap();
    // Reported again, as after a crash between the write and what depends on it.
    store.put_sessions(vec![sessions[3].clone()]).await.unwrap();
    let mut after = None;
    let mut found = Vec::new();
    loop {
        let page = store.sessions(after, 4).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        found.extend(page);
    }
    assert_eq!(found, sessions);
    assert_eq!(store.prune_sessions_to(0, 7).await.unwrap(), 3);
    assert_eq!(store.sessions(None, 99).await.unwrap(), sessions[3..]);
    let age = u64::try_from(limits::LEDGER_AGE.as_millis()).unwrap();
    assert_eq!(store.prune_sessions(1_008 + age).await.unwrap(), 5);
    assert_eq!(store.sessions(None, 99).await.unwrap(), sessions[8..]);
}

#[tokio::test]
async fn a_session_that_came_back_is_one_entry_of_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let first = session(1, 1_000);
    let mut second = session(1, 3_000);
    second.started_ms = first.ended_ms;
    store.put_sessions(vec![first.clone(), second.clone()]).await.unwrap();
    let [found] = &store.sessions(None, 9).await.unwrap()[..] else { panic!("not one") };
    assert_eq!((found.started_ms, found.ended_ms), (first.started_ms, second.ended_ms));
    let sum = first.counters.bytes_to_callee + second.counters.bytes_to_callee;
    assert_eq!(found.counters.bytes_to_callee, sum);
}

#[tokio::test]
async fn many_tasks_share_a_commit_and_each_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let tasks = (0..2_000).map(|_| store.run(|rows| rows.next(Mark::AuthoritySequence)));
    let mut numbers: Vec<u64> = futures_util::future::join_all(tasks)
        .await
        .into_iter()
        .collect::<Result<_, StoreError>>()
        .unwrap();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=2_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_store_of_later_software_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let connection = Connection::open(dir.path().join(FILE)).unwrap();
    connection.pragma_update(None, "user_version", VERSION + 1).unwrap();
    drop(connection);
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Newer(_))));
}

/// The child of the test below: says what it was acknowledged, until it is killed. Alone it does nothing.
#[tokio::test]
async fn child_that_is_killed() {
    let Ok(dir) = std::env::var("TASUKI_TEST_STORE") else { return };
    let store = open(Path::new(&dir));
    for sequence in 1.. {
        store.put_records(vec![record(&format!("t{sequence}"), 1, sequence)], None).await.unwrap();
        println!("acknowledged {sequence}");
    }
}

#[test]
fn nothing_acknowledged_is_missing_after_kill_9() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("io::store::tests::child_that_is_killed")
        .env("TASUKI_TEST_STORE", dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut acknowledged = 0;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut count = |line: std::io::Result<String>| {
        let line = line.unwrap_or_default();
        let number = line.rsplit_once("acknowledged ").and_then(|(_, n)| n.parse::<u64>().ok());
        acknowledged = number.unwrap_or(acknowledged);
        acknowledged
    };
    while let Some(line) = lines.next()
        && count(line) < 50
    {}
    child.kill().unwrap();
    child.wait().unwrap();
    // What it said before it died.
    for line in lines {
        count(line);
    }
    assert!(acknowledged >= 50, "the child wrote {acknowledged}");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let records = runtime.block_on(open(dir.path()).records()).unwrap();
    let missing = (1..=acknowledged)
        .find(|sequence| !records.iter().any(|record| record.version().sequence == *sequence));
    assert_eq!(missing, None, "of {acknowledged}");
}

/// Opened where nothing can be written, it can be read; what writes fails and says why; then it writes again.
#[tokio::test]
async fn a_store_that_takes_nothing_can_be_read_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path());
        store.raise_incarnation(Incarnation(41)).await.unwrap();
        store.raise_clock_mark(7).await.unwrap();
    }
    let path = dir.path().join(super::FILE);
    eventually_closed(&path);
    let connection = super::schema::open_unwritable(&path).unwrap();
    let health = super::Health::new(&path);
    health.failed(&StoreError::Io(std::io::ErrorKind::StorageFull.into()));
    assert!(
        health.trouble().is_some_and(|why| why.contains("relay.db") && why.contains("make room"))
    );
    connection.pragma_update(None, "query_only", true).unwrap();
    let opened = super::Opened { connection: Some(connection), unwritable: true };
    let store = Store::start(opened, health).unwrap();
    assert_eq!(store.clock_mark().await.unwrap(), 7);
    assert!(store.raise_clock_mark(8).await.is_err());
    assert!(store.health().trouble().is_some(), "to read proves nothing");
    let begun = store.begin_incarnation_anyhow(1_000).await.unwrap();
    assert_eq!(begun, Incarnation(41 + 1 + 1_000));
    // There is room again: tried after a while.
    let healed = async {
        while store.raise_incarnation(begun).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), healed).await.unwrap();
    assert_eq!(store.health().trouble(), None);
    assert!(store.begin_incarnation().await.unwrap() > begun);
}

/// The thread of a store that was dropped closes its file a moment later.
fn eventually_closed(path: &Path) {
    for _ in 0..200 {
        if !path.with_extension("db-wal").exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("the store stays open");
}
