//! The inbox: files that other terminals send, checked by hash, resumed where they stopped.
//!
//! An unfinished file lies in a hidden folder beside the finished ones, so that giving it its name is one step.
//! A finished file is never replaced unless its own sender says so, and never compared with what another one sends.
//! What does not fit is refused before a byte is sent; unfinished files are bounded and make room (`core::inbox`).

mod disk;
mod ledger;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use ring::digest;
use serde::Serialize;
use tasuki_proto::advice;
use tasuki_proto::codec::Envelope;
use tasuki_proto::session::{Answer, Closing, Have, Offer, Opened, Part, Stored, segment};
use tasuki_proto::{Refusal, RefusalCode, TerminalId, limits};

use self::disk::{Folder, taken, write_sparse};
use self::ledger::Ledger;
use super::pipe;
use crate::core::inbox::{Held, Quota, Rest, Wish, make_room};
use crate::core::transfer::{
    Hash, Incoming, PARTIAL_FOLDER, RECEIVED_FOLDER, file_mode, inbox_path, partial_name,
    sender_of_partial, to_hash,
};

/// Bytes that are hashed and written at once.
const BATCH: usize = 1024 * 1024;

/// The inbox of a terminal.
#[derive(Debug)]
pub(crate) struct Inbox {
    path: PathBuf,
    quota: Quota,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Transfers under way, by the names of their unfinished files.
    running: HashMap<String, Running>,
    /// Read when it is first needed.
    ledger: Option<Ledger>,
}

/// A transfer under way.
#[derive(Debug)]
struct Running {
    sender: TerminalId,
    size: u64,
    /// Bytes that are still going to be written.
    left: Arc<AtomicU64>,
}

/// What the inbox holds, for its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct InboxView {
    /// Files that were received and are still there, as far as is known.
    received: usize,
    /// Their bytes.
    received_bytes: u64,
    /// Unfinished files, those on their way included.
    unfinished: usize,
    /// Bytes that they take on the disk.
    unfinished_bytes: u64,
}

/// The files that one session's peer is sending, by its numbers.
#[derive(Debug, Default)]
pub(crate) struct Transfers(Mutex<HashMap<u64, Arc<Receiving>>>);

#[derive(Debug)]
struct Receiving {
    file: File,
    size: u64,
    /// The file is there already: nothing may be written, but it may prove to be the same.
    is_there: bool,
    state: Mutex<Incoming>,
    /// The disk took no more.
    is_full: AtomicBool,
    /// Keeps the unfinished file for as long as anything may write to it.
    claim: Claim,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let lost = |_| Refusal::new(RefusalCode::InboxFailed, "task failed");
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

/// An unfinished file that nobody else may write to; freed when dropped.
#[derive(Debug)]
struct Claim {
    inbox: Arc<Inbox>,
    name: String,
    left: Arc<AtomicU64>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.inbox.state).running.remove(&self.name);
    }
}

/// A transfer in its session's table; taken out when dropped.
struct Entered<'a> {
    transfers: &'a Transfers,
    number: u64,
    receiving: Arc<Receiving>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        lock(&self.transfers.0).remove(&self.number);
    }
}

/// A segment on its way; one that does not arrive counts as missing.
struct Arriving<'a> {
    receiving: &'a Receiving,
    index: u32,
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        lock(&self.receiving.state).abort(self.index);
    }
}

/// An offered file that was let in.
struct LetIn {
    file: File,
    have: Vec<Hash>,
    is_there: bool,
    claim: Claim,
}

impl Inbox {
    pub(crate) fn new(path: PathBuf, quota: Quota) -> Arc<Self> {
        Arc::new(Self { path, quota, state: Mutex::default() })
    }

    /// What it holds; nothing where it was never used.
    pub(crate) async fn view(self: &Arc<Self>) -> Option<InboxView> {
        let this = self.clone();
        blocking(move || this.look().map_err(|error| this.failed(&error))).await.ok().flatten()
    }

    fn look(&self) -> io::Result<Option<InboxView>> {
        if !self.path.is_dir() {
            return Ok(None);
        }
        let root = Folder::open(&self.path)?;
        let mut state = lock(&self.state);
        let (received, received_bytes) = self.ledger(&mut state, &root)?.total();
        let (mut unfinished, mut unfinished_bytes) = (0, 0_u64);
        if let Some(folder) = root.below(PARTIAL_FOLDER, false)? {
            for name in folder.names()? {
                if let Some(stat) = folder.stat(&name)? {
                    unfinished += 1;
                    unfinished_bytes = unfinished_bytes.saturating_add(taken(&stat));
                }
            }
        }
        Ok(Some(InboxView { received, received_bytes, unfinished, unfinished_bytes }))
    }

    fn ledger<'a>(&self, state: &'a mut State, root: &Folder) -> io::Result<&'a mut Ledger> {
        if state.ledger.is_none() {
            let folder = root.below(RECEIVED_FOLDER, true)?;
            let folder = folder.ok_or(ErrorKind::NotFound)?;
            state.ledger = Some(Ledger::load(&folder)?);
        }
        state.ledger.as_mut().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn failed(&self, error: &io::Error) -> Refusal {
        let (path, advice) = (self.path.display(), advice::file(error));
        tracing::warn!(%path, %error, "the inbox could not be used: {advice}");
        if is_full(error) {
            Refusal::new(RefusalCode::InboxFull, "its disk is full")
        } else {
            Refusal::new(RefusalCode::InboxFailed, error.kind().to_string())
        }
    }

    /// Serves the control stream of one transfer.
    pub(crate) async fn serve_offer(
        self: &Arc<Self>,
        transfers: &Transfers,
        peer: &TerminalId,
        offer: Offer,
        mut send: SendStream,
        mut recv: RecvStream,
    ) {
        match self.receive(transfers, peer, &offer, &mut send, &mut recv).await {
            Ok(Some(path)) => {
                tracing::info!(%peer, path, bytes = offer.size, "file received");
                if pipe::say(&mut send, &Answer::Stored(Stored { path })).await.is_ok() {
                    let _ = send.finish();
                }
            }
            Ok(None) => {
                tracing::info!(%peer, name = offer.name, "file interrupted; a new try continues it");
                pipe::reset(&mut send, &mut recv);
            }
            Err(refusal) => {
                tracing::info!(%peer, %refusal, "file not received");
                pipe::refuse(&mut send, &mut recv, refusal).await;
            }
        }
    }

    /// The path below the inbox, or `None` when the sender left before the end.
    async fn receive(
        self: &Arc<Self>,
        transfers: &Transfers,
        peer: &TerminalId,
        offer: &Offer,
        send: &mut SendStream,
        recv: &mut RecvStream,
    ) -> Result<Option<String>, Refusal> {
        let parts = inbox_path(&offer.folder, &offer.name)?;
        let (this, sender, wanted, target) =
            (self.clone(), peer.clone(), offer.clone(), parts.clone());
        let LetIn { file, have, is_there, claim } =
            blocking(move || this.let_in(&sender, &wanted, &target)).await?;
        let size = offer.size;
        let state = Mutex::new(Incoming::new(size, &have));
        let is_full = AtomicBool::new(false);
        let receiving = Receiving { file, size, is_there, state, is_full, claim };
        let entered = transfers.enter(offer.transfer, receiving)?;
        let result = self.finish(&entered, peer, offer, &parts, have, send, recv).await;
        let is_full = |refusal: &Refusal| refusal.code == RefusalCode::InboxFull;
        if !is_there
            && (result.as_ref().is_err_and(is_full)
                || entered.receiving.is_full.load(Ordering::Relaxed))
        {
            // What does not fit helps nobody, and its room others.
            let (this, name) = (self.clone(), entered.receiving.claim.name.clone());
            let _ = blocking(move || this.drop_rest(&name).map_err(|e| this.failed(&e))).await;
        }
        result
    }

    /// Says what is there, waits for the end, and gives the file its name.
    #[allow(clippy::too_many_arguments, reason = "the two ends of a stream, and what it is about")]
    async fn finish(
        self: &Arc<Self>,
        entered: &Entered<'_>,
        peer: &TerminalId,
        offer: &Offer,
        parts: &[String],
        have: Vec<Hash>,
        send: &mut SendStream,
        recv: &mut RecvStream,
    ) -> Result<Option<String>, Refusal> {
        if pipe::say(send, &Answer::Have(Have { hashes: have })).await.is_err() {
            return Ok(None);
        }
        let envelope = match Envelope::read(recv, limits::SESSION_MESSAGE_BYTES).await {
            Ok(Some(envelope)) => envelope,
            _ => return Ok(None),
        };
        let Ok(Some(Closing::Finish(finish))) = Closing::from_envelope(&envelope) else {
            return Err(RefusalCode::BadRequest.into());
        };
        let receiving = entered.receiving.clone();
        lock(&receiving.state).seal(&finish.root)?;
        let path = parts.join("/");
        if receiving.is_there {
            return Ok(Some(path));
        }
        let (this, peer, offer, parts) =
            (self.clone(), peer.clone(), offer.clone(), parts.to_vec());
        blocking(move || this.publish(&receiving, &peer, &offer, &parts)).await?;
        Ok(Some(path))
    }

    /// Lets an offered file in: finds what is there of it, or makes room for it.
    fn let_in(
        self: &Arc<Self>,
        sender: &TerminalId,
        offer: &Offer,
        parts: &[String],
    ) -> Result<LetIn, Refusal> {
        let failed = |error: io::Error| self.failed(&error);
        let path = parts.join("/");
        let exists = || Refusal::new(RefusalCode::FileExists, path.clone());
        let (name, folders) =
            parts.split_last().ok_or_else(|| Refusal::from(RefusalCode::BadFileName))?;
        let root = Folder::open(&self.path).map_err(failed)?;
        let folder = root.walk(folders, false).map_err(failed)?;
        let there = folder.as_ref().map(|folder| folder.stat(name)).transpose().map_err(failed)?;
        let partial = partial_name(sender, offer).to_string_lossy().into_owned();
        let mut state = lock(&self.state);
        if state.running.contains_key(&partial) {
            return Err(Refusal::new(RefusalCode::Busy, "this file is being sent already"));
        }
        let ledger = self.ledger(&mut state, &root).map_err(failed)?;
        let mut replaces = 0;
        if let Some(stat) = there.flatten() {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let own = ledger.is_own(sender, &path, &stat);
            if !own || !offer.overwrite && size != offer.size {
                return Err(exists());
            }
            if !offer.overwrite {
                let claim = self.claim(&mut state, &partial, sender, 0, 0);
                drop(state);
                let folder = folder.ok_or_else(exists)?;
                let file = folder.read(name).map_err(failed)?;
                if file.metadata().map_err(failed)?.ino() != stat.st_ino {
                    return Err(exists());
                }
                let have = hash_segments(&file, size).map_err(failed)?;
                return Ok(LetIn { file, have, is_there: true, claim });
            }
            replaces = size;
        }
        if replaces == 0 && ledger.files_of(sender) >= limits::INBOX_FILES_PER_SENDER {
            return Err(Refusal::new(RefusalCode::InboxFull, "too many files of one sender"));
        }
        let partials = root.below(PARTIAL_FOLDER, true).map_err(failed)?.ok_or_else(exists)?;
        let mut wish = Wish {
            sender: sender.clone(),
            size: offer.size,
            rest: partial.clone(),
            there: 0,
            replaces,
        };
        if let Some(stat) = partials.stat(&partial).map_err(failed)? {
            wish.there = taken(&stat).min(offer.size);
        }
        self.make_room(&mut state, &root, &partials, &wish)?;
        let need = wish.size - wish.there;
        let claim = self.claim(&mut state, &partial, sender, offer.size, need);
        drop(state);
        let file = partials.write(&partial).map_err(failed)?;
        let have = hash_segments(&file, offer.size).map_err(failed)?;
        Ok(LetIn { file, have, is_there: false, claim })
    }

    fn claim(
        self: &Arc<Self>,
        state: &mut State,
        name: &str,
        sender: &TerminalId,
        size: u64,
        left: u64,
    ) -> Claim {
        let left = Arc::new(AtomicU64::new(left));
        let running = Running { sender: sender.clone(), size, left: left.clone() };
        state.running.insert(name.to_owned(), running);
        Claim { inbox: self.clone(), name: name.to_owned(), left }
    }

    /// Removes what has to go so that the file fits.
    fn make_room(
        &self,
        state: &mut State,
        root: &Folder,
        partials: &Folder,
        wish: &Wish,
    ) -> Result<(), Refusal> {
        let failed = |error: io::Error| self.failed(&error);
        let rests = rests_in(partials, state).map_err(failed)?;
        let decide = |state: &State| {
            let space = partials.space().map_err(failed)?;
            make_room(wish, &held(state, &wish.sender, space), &self.quota, &rests)
        };
        let decided = match decide(state) {
            Err(refusal) if refusal.code == RefusalCode::InboxFull => {
                // Files that were taken out since then do not count.
                let kept = root.below(RECEIVED_FOLDER, true).map_err(failed)?;
                if let (Some(kept), Some(ledger)) = (kept, &mut state.ledger) {
                    ledger.look_again(root, &kept, Instant::now()).map_err(failed)?;
                }
                decide(state)
            }
            decided => decided,
        };
        for name in decided? {
            tracing::info!(name, "unfinished file removed to make room");
            partials.remove(&name).map_err(failed)?;
        }
        Ok(())
    }

    fn drop_rest(&self, name: &str) -> io::Result<()> {
        let root = Folder::open(&self.path)?;
        match root.below(PARTIAL_FOLDER, false)? {
            Some(folder) => folder.remove(name),
            None => Ok(()),
        }
    }

    /// Gives the finished file its name, and keeps who sent it.
    fn publish(
        &self,
        receiving: &Receiving,
        sender: &TerminalId,
        offer: &Offer,
        parts: &[String],
    ) -> Result<(), Refusal> {
        let Some((name, folders)) = parts.split_last() else {
            return Err(RefusalCode::BadFileName.into());
        };
        let path = parts.join("/");
        let store = || {
            receiving.file.set_len(offer.size)?;
            let mode = std::fs::Permissions::from_mode(file_mode(offer.mode));
            receiving.file.set_permissions(mode)?;
            receiving.file.sync_all()?;
            let root = Folder::open(&self.path)?;
            let folder = root.walk(folders, true)?.ok_or(ErrorKind::NotFound)?;
            let partials = root.below(PARTIAL_FOLDER, false)?.ok_or(ErrorKind::NotFound)?;
            let kept = root.below(RECEIVED_FOLDER, true)?.ok_or(ErrorKind::NotFound)?;
            let mut state = lock(&self.state);
            let ledger = self.ledger(&mut state, &root)?;
            if let Some(there) = folder.stat(name)?
                && !(offer.overwrite && ledger.is_own(sender, &path, &there))
            {
                return Err(ErrorKind::AlreadyExists.into());
            }
            partials.rename(&receiving.claim.name, &folder, name, offer.overwrite)?;
            folder.sync()?;
            if let Some(stat) = folder.stat(name)?
                && let Err(error) = ledger.put(&kept, sender, &path, &stat)
            {
                let (path, advice) = (self.path.display(), advice::file(&error));
                tracing::warn!(%path, %error, "who sent a file could not be kept: {advice}");
            }
            Ok(())
        };
        store().map_err(|error: io::Error| match error.kind() {
            ErrorKind::AlreadyExists => Refusal::new(RefusalCode::FileExists, path.clone()),
            _ => self.failed(&error),
        })
    }
}

/// The unfinished files that no transfer writes to; those of long ago are removed.
fn rests_in(folder: &Folder, state: &State) -> io::Result<Vec<Rest>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut rests = Vec::new();
    for name in folder.names()? {
        if state.running.contains_key(&name) {
            continue;
        }
        let Some(stat) = folder.stat(&name)? else { continue };
        let written = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        let age = now.saturating_sub(written);
        if age > limits::PARTIAL_FILE_LIFE && folder.remove(&name).is_ok() {
            continue;
        }
        let sender = sender_of_partial(&name);
        rests.push(Rest { name, sender, bytes: taken(&stat), age });
    }
    Ok(rests)
}

fn held(state: &State, sender: &TerminalId, space: disk::Space) -> Held {
    let running = || state.running.values();
    let of_sender = || running().filter(|one| one.sender == *sender);
    let ledger = state.ledger.as_ref();
    let finished = ledger.map_or(0, |ledger| ledger.total().1);
    let finished_of_sender = ledger.map_or(0, |ledger| ledger.bytes_of(sender));
    let add = |sum: u64, bytes: u64| sum.saturating_add(bytes);
    Held {
        free: space.free,
        disk: space.total,
        promised: running().map(|one| one.left.load(Ordering::Relaxed)).fold(0, add),
        running: running().count(),
        running_of_sender: of_sender().count(),
        total: running().map(|one| one.size).fold(finished, add),
        of_sender: of_sender().map(|one| one.size).fold(finished_of_sender, add),
    }
}

impl Transfers {
    fn enter(&self, number: u64, receiving: Receiving) -> Result<Entered<'_>, Refusal> {
        let mut transfers = lock(&self.0);
        if transfers.len() >= limits::TRANSFERS_PER_SESSION {
            return Err(Refusal::new(RefusalCode::Busy, "files at once"));
        }
        if transfers.contains_key(&number) {
            return Err(Refusal::new(RefusalCode::BadRequest, "transfer number"));
        }
        let receiving = Arc::new(receiving);
        transfers.insert(number, receiving.clone());
        drop(transfers);
        Ok(Entered { transfers: self, number, receiving })
    }

    /// Serves the stream of one segment.
    pub(crate) async fn serve_part(&self, part: Part, mut send: SendStream, mut recv: RecvStream) {
        let receiving = lock(&self.0).get(&part.transfer).cloned();
        let result = match receiving {
            Some(receiving) => receive_part(&receiving, part.index, &mut recv).await,
            None => Err(Refusal::new(RefusalCode::BadRequest, "no such transfer")),
        };
        match result {
            Ok(()) => {
                if pipe::say(&mut send, &Answer::Opened(Opened {})).await.is_ok() {
                    let _ = send.finish();
                }
            }
            Err(refusal) => pipe::refuse(&mut send, &mut recv, refusal).await,
        }
    }
}

/// Writes one segment to its place while it arrives, and checks its hash.
async fn receive_part(
    receiving: &Arc<Receiving>,
    index: u32,
    recv: &mut RecvStream,
) -> Result<(), Refusal> {
    let (mut at, length) = segment(receiving.size, index)
        .ok_or_else(|| Refusal::new(RefusalCode::BadRequest, "no such segment"))?;
    if receiving.is_there {
        return Err(Refusal::new(RefusalCode::FileExists, "another file of that name"));
    }
    lock(&receiving.state).begin(index)?;
    let _arriving = Arriving { receiving, index };
    let short = || Refusal::new(RefusalCode::BadRequest, "segment cut short");
    let mut context = digest::Context::new(&digest::SHA256);
    let mut left = length;
    while left > 0 {
        let mut batch: Vec<Bytes> = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH && left > 0 {
            let most = usize::try_from(left).unwrap_or(BATCH).min(BATCH - bytes);
            let chunk = recv.read_chunk(most, true).await.map_err(|_| short())?;
            let chunk = chunk.ok_or_else(short)?.bytes;
            bytes += chunk.len();
            left -= chunk.len() as u64;
            batch.push(chunk);
        }
        let receiving = receiving.clone();
        context = blocking(move || {
            let data = batch.concat();
            context.update(&data);
            receiving.write(&data, at)?;
            Ok(context)
        })
        .await?;
        at += bytes as u64;
    }
    let mut announced: Hash = [0; 32];
    recv.read_exact(&mut announced).await.map_err(|_| short())?;
    let hash = to_hash(&context.finish());
    if hash != announced {
        return Err(RefusalCode::FileCorrupt.into());
    }
    lock(&receiving.state).complete(index, hash)
}

impl Receiving {
    fn write(&self, data: &[u8], at: u64) -> Result<(), Refusal> {
        write_sparse(&self.file, data, at).map_err(|error| {
            if is_full(&error) {
                self.is_full.store(true, Ordering::Relaxed);
            }
            self.claim.inbox.failed(&error)
        })?;
        let left = &self.claim.left;
        let less = |left: u64| Some(left.saturating_sub(data.len() as u64));
        let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        Ok(())
    }
}

/// The hash of every whole segment that `file` holds.
fn hash_segments(mut file: &File, size: u64) -> io::Result<Vec<Hash>> {
    let there = file.metadata()?.len().min(size);
    let mut hashes = Vec::new();
    let mut buffer = vec![0; if there > 0 { BATCH } else { 0 }];
    for index in 0.. {
        let Some((_, length)) =
            segment(size, index).filter(|(start, length)| start + length <= there)
        else {
            break;
        };
        let mut context = digest::Context::new(&digest::SHA256);
        let mut left = length;
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
            file.read_exact(&mut buffer[..step])?;
            context.update(&buffer[..step]);
            left -= step as u64;
        }
        hashes.push(to_hash(&context.finish()));
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests;
