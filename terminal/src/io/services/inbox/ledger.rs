//! Who sent which finished file: a sender may compare, continue and replace its own files only, and has a quota.
//!
//! One file for each sender in a hidden folder of the inbox, a line of JSON for each file that was received. A file that
//! was changed, moved or removed here is nobody's any more.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};
use tasuki_proto::TerminalId;

use super::disk::{Folder, is_file};

/// How often the files of one sender are looked at again when its quota is used up.
const LOOK: Duration = Duration::from_secs(10);

/// A file as it was when it was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    path: String,
    size: u64,
    inode: u64,
    modified: (i64, i64),
}

impl Entry {
    fn of(path: &str, stat: &Stat) -> Self {
        Self {
            path: path.to_owned(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            inode: stat.st_ino,
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
        }
    }
}

/// The finished files of one sender.
#[derive(Debug, Default)]
struct Sent {
    files: BTreeMap<String, Entry>,
    bytes: u64,
    looked: Option<Instant>,
}

impl Sent {
    fn put(&mut self, entry: Entry) {
        self.bytes = self.bytes.saturating_add(entry.size);
        if let Some(old) = self.files.insert(entry.path.clone(), entry) {
            self.bytes = self.bytes.saturating_sub(old.size);
        }
    }
}

/// All senders.
#[derive(Debug, Default)]
pub(super) struct Ledger(HashMap<TerminalId, Sent>);

impl Ledger {
    /// Reads what was kept. What cannot be understood belongs to nobody.
    pub(super) fn load(folder: &Folder) -> io::Result<Self> {
        let mut ledger = Self::default();
        for name in folder.names()? {
            let Ok(sender) = TerminalId::new(&name) else { continue };
            let mut text = Vec::new();
            folder.read(&name)?.read_to_end(&mut text)?;
            let text = String::from_utf8_lossy(&text);
            let (mut sent, mut lines) = (Sent::default(), 0);
            for line in text.lines() {
                lines += 1;
                if let Ok(entry) = serde_json::from_str::<Entry>(line) {
                    sent.put(entry);
                }
            }
            if lines > 64 + 2 * sent.files.len() {
                rewrite(folder, &sender, &sent)?;
            }
            ledger.0.insert(sender, sent);
        }
        Ok(ledger)
    }

    /// Whether the file that stands at `path` is the one that `sender` sent.
    pub(super) fn is_own(&self, sender: &TerminalId, path: &str, stat: &Stat) -> bool {
        let entry = self.0.get(sender).and_then(|sent| sent.files.get(path));
        is_file(stat) && entry == Some(&Entry::of(path, stat))
    }

    /// Bytes of a sender's files.
    pub(super) fn bytes_of(&self, sender: &TerminalId) -> u64 {
        self.0.get(sender).map_or(0, |sent| sent.bytes)
    }

    /// How many files of a sender there are.
    pub(super) fn files_of(&self, sender: &TerminalId) -> usize {
        self.0.get(sender).map_or(0, |sent| sent.files.len())
    }

    /// Files of all senders, and their bytes.
    pub(super) fn total(&self) -> (usize, u64) {
        let sum = |(files, bytes): (usize, u64), sent: &Sent| {
            (files + sent.files.len(), bytes.saturating_add(sent.bytes))
        };
        self.0.values().fold((0, 0), sum)
    }

    /// Keeps that `sender` sent the file that stands at `path` now.
    pub(super) fn put(
        &mut self,
        folder: &Folder,
        sender: &TerminalId,
        path: &str,
        stat: &Stat,
    ) -> io::Result<()> {
        let entry = Entry::of(path, stat);
        let line = line_of(&entry)?;
        self.0.entry(sender.clone()).or_default().put(entry);
        folder.append(sender.as_str())?.write_all(line.as_bytes())
    }

    /// Looks which files are still there, since a quota is used up. Not more than every few seconds: the sender asks.
    pub(super) fn look_again(
        &mut self,
        inbox: &Folder,
        folder: &Folder,
        now: Instant,
    ) -> io::Result<()> {
        for (sender, sent) in &mut self.0 {
            if sent.looked.is_some_and(|looked| now.saturating_duration_since(looked) < LOOK) {
                continue;
            }
            sent.looked = Some(now);
            let before = sent.files.len();
            sent.files.retain(|path, entry| stands(inbox, path, entry));
            sent.bytes = sent.files.values().map(|entry| entry.size).sum();
            if sent.files.len() < before {
                rewrite(folder, sender, sent)?;
            }
        }
        Ok(())
    }
}

fn stands(inbox: &Folder, path: &str, entry: &Entry) -> bool {
    let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    let Some(name) = parts.pop() else { return false };
    let folder = inbox.walk(&parts, false).ok().flatten();
    let stat = folder.and_then(|folder| folder.stat(&name).ok().flatten());
    stat.is_some_and(|stat| Entry::of(path, &stat) == *entry)
}

fn line_of(entry: &Entry) -> io::Result<String> {
    Ok(serde_json::to_string(entry)? + "\n")
}

fn rewrite(folder: &Folder, sender: &TerminalId, sent: &Sent) -> io::Result<()> {
    let lines: io::Result<String> = sent.files.values().map(line_of).collect();
    // No terminal has a dot in its name.
    let temporary = format!("{sender}.tmp");
    let mut file = folder.write(&temporary)?;
    file.set_len(0)?;
    file.write_all(lines?.as_bytes())?;
    file.sync_all()?;
    folder.rename(&temporary, folder, sender.as_str(), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_senders_until_it_is_changed_here() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = Folder::open(dir.path()).unwrap();
        let kept = inbox.below(".received", true).unwrap().unwrap();
        let [a, b] = ["a", "b"].map(|name| TerminalId::new(name).unwrap());
        let mut ledger = Ledger::load(&kept).unwrap();
        for name in ["x", "y"] {
            std::fs::write(dir.path().join(name), name.repeat(10)).unwrap();
            ledger.put(&kept, &a, name, &inbox.stat(name).unwrap().unwrap()).unwrap();
        }
        for ledger in [&ledger, &Ledger::load(&kept).unwrap()] {
            let stat = inbox.stat("x").unwrap().unwrap();
            assert!(ledger.is_own(&a, "x", &stat) && !ledger.is_own(&b, "x", &stat));
            assert!(!ledger.is_own(&a, "y", &stat));
            assert_eq!((ledger.bytes_of(&a), ledger.total()), (20, (2, 20)));
        }
        std::fs::write(dir.path().join("x"), "changed").unwrap();
        std::fs::remove_file(dir.path().join("y")).unwrap();
        assert!(!ledger.is_own(&a, "x", &inbox.stat("x").unwrap().unwrap()));
        let now = Instant::now();
        ledger.look_again(&inbox, &kept, now).unwrap();
        assert_eq!(ledger.total(), (0, 0));
        assert_eq!(Ledger::load(&kept).unwrap().total(), (0, 0));
    }

    #[test]
    fn what_is_damaged_belongs_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Folder::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("a"), "{\"path\":\"x\",\"si\n\u{0}\n").unwrap();
        std::fs::write(dir.path().join("Not-A-Terminal"), "x").unwrap();
        assert_eq!(Ledger::load(&kept).unwrap().total(), (0, 0));
    }
}
