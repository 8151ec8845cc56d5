//! `send`: files to another terminal's inbox, several streams for one file, checked by hash, resumed.
//!
//! The verb reads the files itself, by its user's rights; the daemon only carries bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use bytes::BytesMut;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use ring::digest;
use rustix::fs::OFlags;
use tasuki_proto::codec::Envelope;
use tasuki_proto::session::{
    Answer, Begin, Closing, Finish, INBOX, Offer, Part, segment, segments,
};
use tasuki_proto::text::{escape, shown};
use tasuki_proto::{Refusal, RefusalCode, ServiceName, limits};

use super::VerbContext;
use crate::core::transfer::{Destination, Hash, root, to_hash};
use crate::io::ipc::client::{Client, ClientError, DataWriter, Reply};
use crate::io::ipc::{DATA_BYTES, Request};

/// Streams of one file at once: one stream's window is bounded.
const STREAMS: usize = 6;
/// How often a file is offered whose size changes while it is sent.
const TRIES: u64 = 4;
/// How often what changed in a file is sent again.
const ROUNDS: u32 = 4;

/// Arguments of `send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// The files, and last the terminal with an optional folder below its inbox
    #[arg(value_names = ["FILE", "TARGET:[DIR]"], num_args = 2.., required = true)]
    words: Vec<String>,
    /// Replace files of the same name
    #[arg(long)]
    overwrite: bool,
}

/// Sends the files one after the other. One that cannot be sent does not keep the others back.
pub(crate) fn run(
    context: &VerbContext,
    args: &SendArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let Some((last, files)) = args.words.split_last() else { bail!("no files") };
    let to: Destination = last
        .parse()
        .map_err(|error| anyhow::Error::from(crate::config::ConfigErrors(vec![error])))?;
    let mut session = context.client()?;
    let service = ServiceName::new(INBOX)?;
    let result = session.get(&Request::Session { target: to.target.clone(), service })?;
    let id = result["session"].as_str().unwrap_or_default().to_owned();
    let (mut sent, mut failed) = (Vec::new(), Vec::new());
    for (number, file) in files.iter().enumerate() {
        let shown = escape(file);
        let bar = ProgressBar::new(0).with_style(bar_style()).with_message(shown.to_string());
        let result = Upload::open(&session, &id, number as u64, Path::new(file), bar.clone())
            .and_then(|mut upload| upload.run(&to.folder, args.overwrite))
            .with_context(|| format!("{shown} was not sent"))
            .map_err(code_first);
        match result {
            Ok((path, bytes)) => {
                if !context.json {
                    let (target, path) = (&to.target, escape(&path));
                    writeln!(out, "{shown}: {bytes} bytes, verified -> {target}:{path}")?;
                }
                sent.push(serde_json::json!({ "file": file, "path": path, "bytes": bytes }));
            }
            Err(error) => {
                bar.finish_and_clear();
                sent.push(serde_json::json!({ "file": file, "error": format!("{error:#}") }));
                failed.push(error);
            }
        }
    }
    if context.json && (files.len() > 1 || failed.is_empty()) {
        super::table::json(out, &sent)?;
    }
    match failed.len() {
        0 => return Ok(()),
        1 => return Err(failed.remove(0)),
        _ => {}
    }
    for error in &failed {
        eprintln!("error: {}", escape(&format!("{error:#}")));
    }
    bail!("not-all-sent: {} of {} files: see above", failed.len(), files.len())
}

/// The line for people begins with the code, so the context goes behind it.
fn code_first(error: anyhow::Error) -> anyhow::Error {
    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    match chain.split_first() {
        Some((context, rest)) if !rest.is_empty() => {
            anyhow::anyhow!("{} ({context})", rest.join(": "))
        }
        _ => error,
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// One file on its way.
struct Upload<'a> {
    client: &'a Client,
    session: &'a str,
    /// The number of its next transfer in the session.
    number: u64,
    path: &'a Path,
    name: String,
    file: File,
    size: u64,
    mode: u32,
    bar: ProgressBar,
}

/// What shows that a file was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Why a segment was not sent.
enum Stop {
    /// The file is shorter than it was.
    Shorter,
    /// It cannot be read.
    Unreadable(io::Error),
    /// The other side, or the way there.
    Failed(ClientError),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Stop::Failed(error)
    }
}

/// A stream of the session, through the daemon.
struct Stream {
    client: Client,
    writer: DataWriter,
    received: BytesMut,
}

impl Stream {
    fn open(client: &Client, session: &str, begin: &Begin) -> Result<Self, ClientError> {
        let mut client = client.again()?;
        client.get(&Request::Stream { session: session.to_owned() })?;
        let mut writer = client.data_writer()?;
        writer.write(&begin.to_bytes())?;
        Ok(Self { client, writer, received: BytesMut::new() })
    }

    /// The next answer; a refusal is an error.
    fn answer(&mut self, limit: usize) -> Result<Answer, ClientError> {
        let refused = |refusal: Refusal| ClientError::Failed(refusal.into());
        loop {
            match Envelope::take(&mut self.received, limit) {
                Ok(Some(envelope)) => match Answer::from_peer(&envelope) {
                    Ok(Answer::Refused(refusal)) | Err(refusal) => return Err(refused(refusal)),
                    Ok(answer) => return Ok(answer),
                },
                Ok(None) => {}
                Err(_) => return Err(refused(RefusalCode::ProtocolError.into())),
            }
            match self.client.hear()? {
                Reply::Data(bytes) => self.received.extend_from_slice(&bytes),
                Reply::End => return Err(refused(RefusalCode::PeerLost.into())),
                Reply::Event(_) | Reply::Result(_) => {}
            }
        }
    }

    /// Writes; where the other side refused meanwhile, its refusal is the error.
    fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        match self.writer.write(bytes) {
            Ok(()) => Ok(()),
            Err(error) => Err(match self.answer(limits::SESSION_ANSWER_BYTES) {
                Err(refusal @ ClientError::Failed(_)) => refusal,
                _ => error.into(),
            }),
        }
    }
}

impl<'a> Upload<'a> {
    fn open(
        client: &'a Client,
        session: &'a str,
        place: u64,
        path: &'a Path,
        bar: ProgressBar,
    ) -> anyhow::Result<Self> {
        // A pipe would wait for its other end.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        let file = options.open(path).map_err(|error| unreadable(path, &error))?;
        let data = file.metadata().map_err(|error| unreadable(path, &error))?;
        if !data.is_file() {
            bail!("cannot-read: {}: not a plain file: pack folders first", path.display());
        }
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        let Some(name) = name.to_str().map(str::to_owned) else {
            bail!("bad-file-name: {}: names are sent as UTF-8: rename it", path.display());
        };
        let (size, mode, number) = (data.len(), data.mode(), place * TRIES);
        Ok(Self { client, session, number, path, name, file, size, mode, bar })
    }

    /// Sends it as it is at one moment; gives its path below the inbox and its size.
    ///
    /// # Errors
    /// `file-changed` when it did not keep still for long enough.
    fn run(&mut self, folder: &str, overwrite: bool) -> anyhow::Result<(String, u64)> {
        for _ in 0..TRIES {
            self.size = self.stamp()?.size;
            self.bar.set_length(self.size);
            self.bar.set_position(0);
            let path = self.send(folder, overwrite)?;
            self.number += 1;
            if let Some(path) = path {
                self.bar.finish_and_clear();
                return Ok((path, self.size));
            }
        }
        Err(self.keeps_changing())
    }

    fn keeps_changing(&self) -> anyhow::Error {
        let path = self.path.display().to_string();
        Refusal::new(RefusalCode::FileChanged, path).into()
    }

    /// Sends what the file holds; its path below the inbox, or `None` when it has another size meanwhile.
    fn send(&self, folder: &str, overwrite: bool) -> anyhow::Result<Option<String>> {
        let offer = Offer {
            transfer: self.number,
            folder: folder.to_owned(),
            name: self.name.clone(),
            size: self.size,
            mode: self.mode & 0o777,
            overwrite,
        };
        let mut control = Stream::open(self.client, self.session, &Begin::Offer(offer))?;
        let Answer::Have(have) = control.answer(limits::SESSION_HAVE_BYTES)? else {
            bail!("protocol-error: the other terminal's answer is not understood");
        };
        let Some(hashes) = self.send_one_state(&have.hashes)? else { return Ok(None) };
        let finish = Closing::Finish(Finish { root: root(&hashes) });
        control.write(&finish.to_envelope().to_bytes())?;
        control.writer.end()?;
        let Answer::Stored(stored) = control.answer(limits::SESSION_MESSAGE_BYTES)? else {
            bail!("protocol-error: the other terminal's answer is not understood");
        };
        Ok(Some(shown(&stored.path, 4096)))
    }

    /// Sends the segments until what was sent is one state of the file: after all of them were read, all of them are read
    /// again. When nothing differs, every segment held what was sent at the moment between the two readings. What
    /// differs is sent again. The times of the file alone do not tell: writes through a mapping need not change them,
    /// and two writes may have the same time.
    fn send_one_state(&self, have: &[Hash]) -> anyhow::Result<Option<Vec<Hash>>> {
        let all: Vec<u32> = (0..segments(self.size)).collect();
        let mut hashes = vec![[0; 32]; all.len()];
        let mut due = all.clone();
        for round in 0..ROUNDS {
            // Later the other side has what was sent before, and no more what it had at first.
            let have = |index: u32| have.get(index as usize).filter(|_| round == 0);
            let sent = self.each(&due, |index| self.send_segment(index, have(index)));
            let Some(sent) = self.unless_shorter(sent)? else { return Ok(None) };
            due.iter().zip(sent).for_each(|(index, hash)| hashes[*index as usize] = hash);
            let before = self.stamp()?;
            let read = self.each(&all, |index| self.read_segment(index, |_| Ok(())));
            let Some(read) = self.unless_shorter(read)? else { return Ok(None) };
            let after = self.stamp()?;
            if before.size != self.size || after.size != self.size {
                return Ok(None);
            }
            due =
                all.iter().copied().filter(|i| read[*i as usize] != hashes[*i as usize]).collect();
            if due.is_empty() && before == after {
                return Ok(Some(hashes));
            }
        }
        Err(self.keeps_changing())
    }

    fn stamp(&self) -> anyhow::Result<Stamp> {
        let data = self.file.metadata().map_err(|error| unreadable(self.path, &error))?;
        Ok(Stamp {
            size: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }

    /// `None` when the file became shorter.
    fn unless_shorter<T>(&self, result: Result<T, Stop>) -> anyhow::Result<Option<T>> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(Stop::Shorter) => Ok(None),
            Err(Stop::Unreadable(error)) => Err(unreadable(self.path, &error)),
            Err(Stop::Failed(error)) => Err(error.into()),
        }
    }

    /// Does `work` for several segments at once; gives their hashes in order.
    fn each(
        &self,
        due: &[u32],
        work: impl Fn(u32) -> Result<Hash, Stop> + Sync,
    ) -> Result<Vec<Hash>, Stop> {
        let next = AtomicUsize::new(0);
        let hashes = Mutex::new(vec![[0; 32]; due.len()]);
        let turns = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(index) = due.get(at) else { return Ok(()) };
                match work(*index) {
                    Ok(hash) => {
                        if let Ok(mut hashes) = hashes.lock() {
                            hashes[at] = hash;
                        }
                    }
                    Err(error) => {
                        next.store(due.len(), Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
        };
        let lost = || ClientError::Lost(io::Error::other("a thread failed"));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..STREAMS.min(due.len())).map(|_| scope.spawn(turns)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| lost())?)
        })?;
        hashes.into_inner().map_err(|_| lost().into())
    }

    /// Hands a segment's bytes to `each` and gives their hash.
    fn read_segment(
        &self,
        index: u32,
        mut each: impl FnMut(&[u8]) -> Result<(), ClientError>,
    ) -> Result<Hash, Stop> {
        let (mut at, mut left) = segment(self.size, index).unwrap_or((0, 0));
        let mut context = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; DATA_BYTES];
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(DATA_BYTES).min(DATA_BYTES);
            self.file.read_exact_at(&mut buffer[..step], at).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::UnexpectedEof => Stop::Shorter,
                    _ => Stop::Unreadable(error),
                }
            })?;
            context.update(&buffer[..step]);
            each(&buffer[..step])?;
            at += step as u64;
            left -= step as u64;
        }
        Ok(to_hash(&context.finish()))
    }

    fn send_segment(&self, index: u32, have: Option<&Hash>) -> Result<Hash, Stop> {
        let length = segment(self.size, index).map_or(0, |(_, length)| length);
        if let Some(theirs) = have {
            let ours = self.read_segment(index, |_| Ok(()))?;
            if ours == *theirs {
                self.bar.inc(length);
                return Ok(ours);
            }
        }
        let begin = Begin::Part(Part { transfer: self.number, index });
        let mut stream = Stream::open(self.client, self.session, &begin)?;
        let hash = self.read_segment(index, |bytes| {
            stream.write(bytes)?;
            self.bar.inc(bytes.len() as u64);
            Ok(())
        })?;
        stream.write(&hash)?;
        stream.writer.end().map_err(ClientError::from)?;
        stream.answer(limits::SESSION_ANSWER_BYTES)?;
        Ok(hash)
    }
}

fn unreadable(path: &Path, error: &io::Error) -> anyhow::Error {
    anyhow::anyhow!("cannot-read: {}: {error}: check its name and mode", path.display())
}
