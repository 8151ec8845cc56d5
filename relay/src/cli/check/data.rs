//! The data directory: identity, clock, secrets, disk.
#![allow(clippy::disallowed_methods, reason = "the machine's clock is what is checked")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tasuki_proto::identity::{Clock, Identity, Root};

use super::{Finding, Level};
use crate::cli::query::lists::{self, count};
use crate::cli::query::text::{bytes, span};
use crate::io::store;

/// Files that nobody but the relay's user may read.
const SECRETS: [&str; 10] = [
    Identity::FILE,
    "node.toml",
    store::FILE,
    "relay.db-wal",
    "relay.db-shm",
    "endpoint.key",
    "admin.token",
    "relays.json",
    "issuer.pem",
    "root.pem",
];
/// Free bytes below which the disk is nearly full, and below which it is.
const LITTLE_ROOM: u64 = 1_000_000_000;
const NO_ROOM: u64 = 50_000_000;
/// A file that takes longer to reach the disk slows log-ins and calls down.
const SLOW_SYNC_MS: u128 = 200;
/// How far the clock may be behind, s.
const BEHIND: u64 = 300;

pub(super) fn checks(data: &Path) -> Vec<Finding> {
    let mut out = Vec::new();
    match Identity::load(data) {
        Ok(Some(identity)) => {
            out.push(certificate(identity.not_after(), identity.renew_at(), now_secs()));
            let mark = store::clock_mark_of(data).unwrap_or(0);
            let clock = Clock::system(mark);
            out.push(clock_is_right(now_secs(), clock.behind_secs(), identity.not_before()));
        }
        Ok(None) => out.push(Finding::new(
            "certificate",
            Level::Bad,
            format!("there is no relay in {}", data.display()),
            "use 'tasuki-relay init' or 'join' first, or give another --data",
        )),
        Err(error) => out.push(Finding::new(
            "certificate",
            Level::Bad,
            error.to_string(),
            "run this as the relay's user or with sudo; where the file is damaged, restore it or join again",
        )),
    }
    out.push(secrets(data));
    if data.join(Root::FILE).exists() {
        out.push(Finding::new(
            "root-key",
            Level::Warning,
            "root.pem is still in the data directory",
            "copy it to two offline media and remove it here: see 'The root key, offline' in docs/operations.md",
        ));
    }
    out.push(disk(data));
    out
}

pub(super) fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// By the end of a certificate, and the time at which it is renewed by itself, s since 1970.
pub(super) fn certificate(not_after: u64, renew_at: u64, now: u64) -> Finding {
    let name = "certificate";
    if now > not_after {
        let what = format!("it ended {} ago", span(now - not_after));
        let advice = "start the relay where it reaches the registrar: it is renewed by itself as long as the account \
                      stands; check the clock too";
        return Finding::new(name, Level::Bad, what, advice);
    }
    let left = span(not_after - now);
    // A day late is chance; more means that the registrar is not reached.
    if now > renew_at + 86_400 {
        let advice = "see whether the relay runs and reaches the registrar: 'tasuki-relay status', and its log";
        let what =
            format!("for another {left}; it should have been renewed {} ago", span(now - renew_at));
        return Finding::new(name, Level::Warning, what, advice);
    }
    Finding::ok(name, format!("for another {left}, renewed by itself before"))
}

/// By what the running relay says of its renewals; `now` in s since 1970.
pub(super) fn renewal(status: &Value, now: u64) -> Finding {
    let name = "renewal";
    let (renewal, until) = (&status["renewal"], count(&status["certificate_until"]));
    if renewal["since"].as_u64().is_none() {
        return Finding::ok(name, "no renewal of the certificate has failed");
    }
    // With less time than this somebody has to act now.
    const LITTLE_TIME: u64 = 3 * 86_400;
    let level = if until < now + LITTLE_TIME { Level::Bad } else { Level::Warning };
    let advice = "when the certificate ends, no relay and no terminal lets this relay in: see that it reaches the \
                  registrar (UDP, names, the registrar's own 'tasuki-relay check'); it is tried on by itself";
    Finding::new(name, level, lists::certificate(until, renewal, now), advice)
}

/// By the machine's clock, what it is known to be behind, and the begin of the certificate, all in s.
pub(super) fn clock_is_right(now: u64, behind: u64, not_before: u64) -> Finding {
    let advice = "set the clock, and let NTP keep it: timedatectl set-ntp true";
    if now < not_before {
        let what = format!("it is {} before the begin of the certificate", span(not_before - now));
        return Finding::new("clock", Level::Bad, what, advice);
    }
    if behind > BEHIND {
        let what = format!("it is {} behind a time that this relay has seen", span(behind));
        return Finding::new("clock", Level::Bad, what, advice);
    }
    Finding::ok("clock", "fits the certificate and what this relay has seen")
}

fn secrets(data: &Path) -> Finding {
    let name = "permissions";
    let Ok(folder) = std::fs::metadata(data) else {
        let what = format!("{} cannot be read", data.display());
        return Finding::new(name, Level::Bad, what, "run this as the relay's user, or with sudo");
    };
    let mut open = Vec::new();
    if folder.permissions().mode() & 0o077 != 0 {
        open.push(format!("chmod 700 {}", data.display()));
    }
    for file in SECRETS {
        let path = data.join(file);
        let Ok(found) = std::fs::metadata(&path) else { continue };
        if found.permissions().mode() & 0o077 != 0 {
            open.push(format!("chmod 600 {}", path.display()));
        }
        if found.uid() != folder.uid() {
            open.push(format!("chown --reference={} {}", data.display(), path.display()));
        }
    }
    if open.is_empty() {
        return Finding::ok(name, "the directory and its secrets are private");
    }
    let what =
        format!("{} of the files with secrets are open to others, or not the relay's", open.len());
    Finding::new(name, Level::Bad, what, open.join("; "))
}

fn disk(data: &Path) -> Finding {
    let name = "disk";
    let path = data.join(".check");
    let begun = Instant::now();
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(&[0; 4096]).and_then(|()| file.sync_all()))
        .and_then(|()| File::open(data)?.sync_all());
    let took = begun.elapsed().as_millis();
    let _ = std::fs::remove_file(&path);
    if let Err(error) = written {
        let advice =
            "see its permissions, whether it is full (df), and whether it is mounted read-only";
        return Finding::new(name, Level::Bad, format!("{}: {error}", data.display()), advice);
    }
    let free = rustix::fs::statvfs(data).map_or(u64::MAX, |found| found.f_bavail * found.f_frsize);
    room(free, took)
}

/// By free bytes, and the ms that a small file took to reach the disk.
pub(super) fn room(free: u64, took_ms: u128) -> Finding {
    let name = "disk";
    let what = format!("{} free, a small file is safe after {took_ms} ms", bytes(free));
    if free < NO_ROOM {
        Finding::new(
            name,
            Level::Bad,
            what,
            "make room: the relay cannot keep rows and sessions without",
        )
    } else if free < LITTLE_ROOM {
        Finding::new(name, Level::Warning, what, "make room: the ledger alone may take 100 MB")
    } else if took_ms > SLOW_SYNC_MS {
        let advice = "use a faster disk for --data: what is acknowledged waits for it";
        Finding::new(name, Level::Warning, what, advice)
    } else {
        Finding::ok(name, what)
    }
}
