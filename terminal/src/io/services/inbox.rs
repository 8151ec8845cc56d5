//! The inbox: files that other terminals send, checked by hash, resumed where they stopped.
//!
//! An unfinished file lies in a hidden folder beside the finished ones, so that giving it its name is one step.
//! A finished file is never replaced unless the sender says so.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use ring::digest;
use tasuki_proto::codec::Envelope;
use tasuki_proto::session::{Answer, Closing, Have, Offer, Opened, Part, Stored, segment};
use tasuki_proto::{Refusal, RefusalCode, TerminalId, limits};

use super::pipe;
use crate::core::transfer::{
    Hash, Incoming, PARTIAL_FOLDER, file_mode, inbox_path, partial_name, to_hash,
};

/// Bytes that are hashed and written at once.
const BATCH: usize = 1024 * 1024;

/// The inbox of a terminal.
#[derive(Debug)]
pub(crate) struct Inbox {
    folder: PathBuf,
    /// Unfinished files that a transfer is writing to.
    busy: Mutex<HashSet<PathBuf>>,
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
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: &io::Error) -> Refusal {
    tracing::warn!(%error, "the inbox cannot be written");
    Refusal::new(RefusalCode::InboxFailed, error.kind().to_string())
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let lost = |_| Refusal::new(RefusalCode::InboxFailed, "task failed");
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

/// An unfinished file that nobody else may write to; freed when dropped.
struct Claim<'a> {
    inbox: &'a Inbox,
    path: PathBuf,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.inbox.busy).remove(&self.path);
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

impl Inbox {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, busy: Mutex::default() }
    }

    /// Serves the control stream of one transfer.
    pub(crate) async fn serve_offer(
        &self,
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
        &self,
        transfers: &Transfers,
        peer: &TerminalId,
        offer: &Offer,
        send: &mut SendStream,
        recv: &mut RecvStream,
    ) -> Result<Option<String>, Refusal> {
        let parts = inbox_path(&offer.folder, &offer.name)?;
        let claim = self.claim(partial_name(peer, offer))?;
        let (folder, partial) = (self.folder.clone(), claim.path.clone());
        let (target, size, overwrite) = (parts.clone(), offer.size, offer.overwrite);
        let (file, have, is_there) =
            blocking(move || prepare(&folder, &target, &partial, size, overwrite)).await?;
        let state = Mutex::new(Incoming::new(size, &have));
        let receiving = Receiving { file, size, is_there, state };
        let entered = transfers.enter(offer.transfer, receiving)?;
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
        lock(&entered.receiving.state).check(&finish.root)?;
        if is_there {
            return Ok(Some(parts.join("/")));
        }
        let receiving = entered.receiving.clone();
        let (folder, partial) = (self.folder.clone(), claim.path.clone());
        let (target, mode) = (parts.clone(), file_mode(offer.mode));
        blocking(move || {
            publish(&receiving.file, &folder, &target, &partial, mode, size, overwrite)
        })
        .await?;
        Ok(Some(parts.join("/")))
    }

    fn claim(&self, name: PathBuf) -> Result<Claim<'_>, Refusal> {
        let path = self.folder.join(PARTIAL_FOLDER).join(name);
        if lock(&self.busy).insert(path.clone()) {
            Ok(Claim { inbox: self, path })
        } else {
            Err(Refusal::new(RefusalCode::Busy, "this file is being sent already"))
        }
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
        (context, at) = blocking(move || {
            let mut at = at;
            for chunk in &batch {
                context.update(chunk);
                receiving.file.write_all_at(chunk, at).map_err(|error| failed(&error))?;
                at += chunk.len() as u64;
            }
            Ok((context, at))
        })
        .await?;
    }
    let mut announced: Hash = [0; 32];
    recv.read_exact(&mut announced).await.map_err(|_| short())?;
    let hash = to_hash(&context.finish());
    if hash != announced {
        return Err(RefusalCode::FileCorrupt.into());
    }
    lock(&receiving.state).complete(index, hash)
}

/// Makes `path` below `base`, folder by folder, and follows no link on the way.
fn make_folders(base: &Path, parts: &[String]) -> io::Result<PathBuf> {
    let mut path = base.to_path_buf();
    for part in parts {
        path.push(part);
        match std::fs::symlink_metadata(&path) {
            Ok(data) if data.is_dir() => {}
            Ok(_) => return Err(ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                std::fs::DirBuilder::new().mode(0o700).create(&path)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(path)
}

/// Opens the unfinished file and hashes what an earlier try left of it; or the file itself (and says so), where one
/// of that name and size is there and may not be replaced: sent again, it costs no bytes.
fn prepare(
    inbox: &Path,
    parts: &[String],
    partial: &Path,
    size: u64,
    overwrite: bool,
) -> Result<(File, Vec<Hash>, bool), Refusal> {
    let target: PathBuf = parts.iter().fold(inbox.to_path_buf(), |path, part| path.join(part));
    if !overwrite && let Ok(there) = std::fs::symlink_metadata(&target) {
        if !there.is_file() || there.len() != size {
            return Err(Refusal::new(RefusalCode::FileExists, parts.join("/")));
        }
        let same = || {
            let file = File::open(&target)?;
            let have = hash_segments(&file, size)?;
            Ok((file, have, true))
        };
        return same().map_err(|error: io::Error| failed(&error));
    }
    let open = || {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(inbox)?;
        let folder = make_folders(inbox, &[PARTIAL_FOLDER.to_owned()])?;
        forget_old(&folder);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(partial)?;
        let have = hash_segments(&file, size)?;
        Ok((file, have, false))
    };
    open().map_err(|error| failed(&error))
}

/// Removes what interrupted transfers left behind long ago.
fn forget_old(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|data| data.modified()).ok();
        let age = age.and_then(|modified| modified.elapsed().ok());
        if age.is_some_and(|age| age > limits::PARTIAL_FILE_LIFE) {
            let _ = std::fs::remove_file(entry.path());
        }
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

/// Gives the finished file its name.
fn publish(
    file: &File,
    inbox: &Path,
    parts: &[String],
    partial: &Path,
    mode: u32,
    size: u64,
    overwrite: bool,
) -> Result<(), Refusal> {
    let Some((name, folders)) = parts.split_last() else {
        return Err(RefusalCode::BadFileName.into());
    };
    let store = || {
        file.set_len(size)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        let target = make_folders(inbox, folders)?.join(name);
        if overwrite {
            std::fs::rename(partial, &target)
        } else {
            // Unlike a rename, a link never replaces what came to be there in the meantime.
            std::fs::hard_link(partial, &target)?;
            std::fs::remove_file(partial)
        }
    };
    store().map_err(|error: io::Error| match error.kind() {
        ErrorKind::AlreadyExists => Refusal::new(RefusalCode::FileExists, parts.join("/")),
        _ => failed(&error),
    })
}
