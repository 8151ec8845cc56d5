use std::path::Path;

use tasuki_proto::session::segments;

use super::*;
use crate::core::transfer::root;

const MB: u64 = 1024 * 1024;

fn peer(name: &str) -> TerminalId {
    TerminalId::new(name).unwrap()
}

fn offer(folder: &str, name: &str, size: u64) -> Offer {
    Offer {
        transfer: 1,
        folder: folder.into(),
        name: name.into(),
        size,
        mode: 0o755,
        overwrite: false,
    }
}

fn inbox(dir: &Path) -> Arc<Inbox> {
    Inbox::new(dir.join("inbox"), Quota::default())
}

fn let_in(inbox: &Arc<Inbox>, sender: &str, offer: &Offer) -> Result<LetIn, Refusal> {
    let parts = inbox_path(&offer.folder, &offer.name)?;
    inbox.let_in(&peer(sender), offer, &parts)
}

fn receiving(size: u64, it: LetIn) -> Receiving {
    let state = Mutex::new(Incoming::new(size, &it.have));
    let (file, is_there, claim) = (it.file, it.is_there, it.claim);
    Receiving { file, size, is_there, state, is_full: AtomicBool::new(false), claim }
}

fn hash(data: &[u8]) -> Hash {
    to_hash(&digest::digest(&digest::SHA256, data))
}

/// Receives a file of one segment, as `receive` does.
fn receive(
    inbox: &Arc<Inbox>,
    sender: &str,
    offer: &Offer,
    data: &[u8],
) -> Result<PathBuf, Refusal> {
    let parts = inbox_path(&offer.folder, &offer.name)?;
    let it = let_in(inbox, sender, offer)?;
    let is_there = it.is_there;
    let receiving = receiving(offer.size, it);
    if !is_there {
        lock(&receiving.state).begin(0)?;
        receiving.write(data, 0)?;
        lock(&receiving.state).complete(0, hash(data))?;
    }
    lock(&receiving.state).seal(&root(&[hash(data)]))?;
    if !is_there {
        inbox.publish(&receiving, &peer(sender), offer, &parts)?;
    }
    Ok(parts.iter().fold(inbox.path.clone(), |path, part| path.join(part)))
}

#[test]
fn nobody_learns_of_the_files_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = inbox(dir.path());
    let it = offer("in", "a", 6);
    let path = receive(&inbox, "p", &it, b"secret").unwrap();
    // The same size and even the same bytes: for its sender it is there, for others there is a file of that name.
    assert!(let_in(&inbox, "p", &it).unwrap().is_there);
    assert_eq!(let_in(&inbox, "p", &it).unwrap().have, [hash(b"secret")]);
    for sender in ["q", "pp"] {
        let refusal = let_in(&inbox, sender, &it).map(|it| it.have).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::FileExists);
        let replacing = Offer { overwrite: true, ..it.clone() };
        let refusal = receive(&inbox, sender, &replacing, b"forged").unwrap_err();
        assert_eq!(refusal.code, RefusalCode::FileExists);
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"secret");
    // What was changed here is not its sender's any more.
    std::fs::write(&path, "edited").unwrap();
    assert_eq!(
        let_in(&inbox, "p", &it).map(|it| it.have).unwrap_err().code,
        RefusalCode::FileExists
    );
    // Nor what lay there before.
    std::fs::write(inbox.path.join("own"), "own!").unwrap();
    let own = Offer { overwrite: true, ..offer("", "own", 4) };
    assert!(receive(&inbox, "p", &own, b"gone").is_err());
    assert_eq!(std::fs::read(inbox.path.join("own")).unwrap(), b"own!");
}

#[test]
fn a_sender_replaces_its_own_file_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = offer("", "a", 3);
    receive(&inbox(dir.path()), "p", &first, b"one").unwrap();
    let again = inbox(dir.path());
    assert!(let_in(&again, "p", &first).unwrap().is_there);
    let second = Offer { overwrite: true, size: 5, ..first };
    let path = receive(&again, "p", &second, b"other").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"other");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644, "not executable");
}

#[test]
fn links_on_the_way_are_not_followed() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let inbox = inbox(dir.path());
    std::fs::create_dir(&inbox.path).unwrap();
    std::fs::write(outside.path().join("f"), "secret").unwrap();
    std::os::unix::fs::symlink(outside.path(), inbox.path.join("way")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("f"), inbox.path.join("file")).unwrap();
    let way = [("way", "f"), ("way/x", "f"), ("way", "new")];
    let ways = way.map(|way| (way, RefusalCode::InboxFailed));
    for ((folder, name), code) in [&ways[..], &[(("", "file"), RefusalCode::FileExists)]].concat() {
        for overwrite in [false, true] {
            let it = Offer { overwrite, ..offer(folder, name, 6) };
            let refusal = receive(&inbox, "p", &it, b"secret").unwrap_err();
            assert_eq!(refusal.code, code, "{folder}/{name}");
        }
    }
    assert_eq!(std::fs::read(outside.path().join("f")).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn a_link_that_appears_meanwhile_is_not_followed() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let inbox = inbox(dir.path());
    let it = offer("way", "f", 1);
    let receiving = receiving(1, let_in(&inbox, "p", &it).unwrap());
    std::os::unix::fs::symlink(outside.path(), inbox.path.join("way")).unwrap();
    let parts = ["way".to_owned(), "f".to_owned()];
    let refusal = inbox.publish(&receiving, &peer("p"), &it, &parts).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::InboxFailed);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = Inbox::new(dir.path().join("inbox"), Quota { total: 3 * MB, per_sender: 2 * MB });
    for size in [u64::MAX, 1 << 50, 2 * MB + 1] {
        let refusal = let_in(&inbox, "p", &offer("", "a", size)).map(|it| it.have).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InboxFull, "{size}");
    }
    assert_eq!(inbox.look().unwrap().unwrap().unfinished, 0);
    // What is on its way counts as what has come.
    let one = let_in(&inbox, "p", &offer("", "a", 2 * MB)).unwrap();
    assert!(let_in(&inbox, "p", &offer("", "b", 1)).is_err());
    let other = let_in(&inbox, "q", &offer("", "b", MB)).unwrap();
    assert!(let_in(&inbox, "r", &offer("", "c", 1)).is_err());
    assert_eq!(inbox.look().unwrap().unwrap().unfinished, 2);
    drop((one, other));
    // And when it was interrupted it makes room for its sender at once, for others later.
    assert!(let_in(&inbox, "p", &offer("", "c", 2 * MB)).is_ok());
}

#[test]
fn a_quota_is_free_again_when_the_files_are_taken_out() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = Inbox::new(dir.path().join("inbox"), Quota { total: 9, per_sender: 5 });
    let path = receive(&inbox, "p", &offer("", "a", 4), b"aaaa").unwrap();
    assert_eq!(inbox.look().unwrap().unwrap().received_bytes, 4);
    let moved = dir.path().join("moved");
    std::fs::rename(path, &moved).unwrap();
    receive(&inbox, "p", &offer("", "b", 4), b"bbbb").unwrap();
}

#[test]
fn one_transfer_at_a_time_writes_to_a_rest() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = inbox(dir.path());
    let it = offer("", "a", 2 * MB);
    assert_eq!(segments(it.size), 2);
    let first = receiving(it.size, let_in(&inbox, "p", &it).unwrap());
    assert_eq!(let_in(&inbox, "p", &it).map(|it| it.have).unwrap_err().code, RefusalCode::Busy);
    first.write(&vec![7; MB as usize], 0).unwrap();
    drop(first);
    let second = let_in(&inbox, "p", &it).unwrap();
    assert_eq!(second.have, [hash(&vec![7; MB as usize])], "it goes on where it stopped");
}
