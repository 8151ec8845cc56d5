//! `send`: files to another terminal's inbox, several streams for one file, checked by hash, resumed.
//!
//! The verb reads the files itself, by its user's rights; the daemon only carries bytes.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};
use bytes::BytesMut;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use ring::digest;
use tasuki_proto::codec::Envelope;
use tasuki_proto::session::{
    Answer, Begin, Closing, Finish, INBOX, Offer, Part, segment, segments,
};
use tasuki_proto::{Refusal, RefusalCode, ServiceName, limits};

use super::VerbContext;
use crate::core::transfer::{Destination, Hash, root, to_hash};
use crate::io::ipc::client::{Client, ClientError, DataWriter, Reply};
use crate::io::ipc::{DATA_BYTES, Request};

/// Streams of one file at once: one stream's window is bounded.
const STREAMS: u32 = 6;

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

/// Sends the files one after the other.
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
    let mut sent = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let bar = ProgressBar::new(0).with_style(bar_style()).with_message(file.clone());
        let upload = Upload::open(&session, &id, number as u64, Path::new(file), bar)?;
        let (path, bytes) = upload
            .run(&to.folder, args.overwrite)
            .with_context(|| format!("{file} was not sent"))
            .map_err(code_first)?;
        if !context.json {
            writeln!(out, "{file}: {bytes} bytes, verified -> {}:{path}", to.target)?;
        }
        sent.push(serde_json::json!({ "file": file, "path": path, "bytes": bytes }));
    }
    if context.json {
        serde_json::to_writer_pretty(&mut *out, &sent)?;
        writeln!(out)?;
    }
    Ok(())
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
    number: u64,
    name: String,
    file: File,
    size: u64,
    mode: u32,
    bar: ProgressBar,
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
        number: u64,
        path: &Path,
        bar: ProgressBar,
    ) -> anyhow::Result<Self> {
        let unreadable = |error: io::Error| {
            anyhow::anyhow!("cannot-read: {}: {error}: check its name and mode", path.display())
        };
        let file = File::open(path).map_err(unreadable)?;
        let data = file.metadata().map_err(unreadable)?;
        if !data.is_file() {
            bail!("cannot-read: {}: not a plain file: pack folders first", path.display());
        }
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        let Some(name) = name.to_str().map(str::to_owned) else {
            bail!("bad-file-name: {}: names are sent as UTF-8: rename it", path.display());
        };
        let (size, mode) = (data.len(), data.mode());
        bar.set_length(size);
        Ok(Self { client, session, number, name, file, size, mode, bar })
    }

    /// Sends it; gives its path below the inbox and its size.
    fn run(&self, folder: &str, overwrite: bool) -> anyhow::Result<(String, u64)> {
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
        let hashes = self.send_segments(&have.hashes)?;
        let finish = Closing::Finish(Finish { root: root(&hashes) });
        control.write(&finish.to_envelope().to_bytes())?;
        control.writer.end()?;
        let Answer::Stored(stored) = control.answer(limits::SESSION_MESSAGE_BYTES)? else {
            bail!("protocol-error: the other terminal's answer is not understood");
        };
        self.bar.finish_and_clear();
        Ok((tasuki_proto::text::shown(&stored.path, 4096), self.size))
    }

    /// Sends what the other side does not have, several segments at once; gives the hashes of all.
    fn send_segments(&self, have: &[Hash]) -> Result<Vec<Hash>, ClientError> {
        let count = segments(self.size);
        let next = AtomicU32::new(0);
        let hashes = Mutex::new(vec![[0; 32]; count as usize]);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(());
                }
                match self.send_segment(index, have.get(index as usize)) {
                    Ok(hash) => {
                        if let Ok(mut hashes) = hashes.lock() {
                            hashes[index as usize] = hash;
                        }
                    }
                    Err(error) => {
                        next.store(count, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..STREAMS.min(count)).map(|_| scope.spawn(work)).collect();
            let lost = || ClientError::Lost(io::Error::other("a thread failed"));
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| lost())?)
        })?;
        hashes.into_inner().map_err(|_| ClientError::Lost(io::Error::other("a thread failed")))
    }

    /// Hands a segment's bytes to `each` and gives their hash.
    fn read_segment(
        &self,
        index: u32,
        mut each: impl FnMut(&[u8]) -> Result<(), ClientError>,
    ) -> Result<Hash, ClientError> {
        let (mut at, mut left) = segment(self.size, index).unwrap_or((0, 0));
        let mut context = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; DATA_BYTES];
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(DATA_BYTES).min(DATA_BYTES);
            self.file.read_exact_at(&mut buffer[..step], at).map_err(|error| {
                let refusal = Refusal::new(RefusalCode::FileCorrupt, error.to_string());
                ClientError::Failed(refusal.into())
            })?;
            context.update(&buffer[..step]);
            each(&buffer[..step])?;
            at += step as u64;
            left -= step as u64;
        }
        Ok(to_hash(&context.finish()))
    }

    fn send_segment(&self, index: u32, have: Option<&Hash>) -> Result<Hash, ClientError> {
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
        stream.writer.end()?;
        stream.answer(limits::SESSION_ANSWER_BYTES)?;
        Ok(hash)
    }
}
