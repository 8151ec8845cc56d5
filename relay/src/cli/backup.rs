//! `backup` and `restore`: a relay's data directory as a folder that can be kept.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use tasuki_proto::identity::{Identity, Issuer, make_private_dir, write_private};

use super::{Global, keep_owner, refuse_in_use};
use crate::config::layers;
use crate::io::store::{Mark, Rows, Store, StoreError};

/// What a back-up holds besides the store. Not the root key, which belongs offline, and not the socket.
const FILES: [&str; 6] =
    ["node.toml", "endpoint.key", "admin.token", "relays.json", Issuer::FILE, Identity::FILE];
/// How far a restored registrar's numbers move on: what it signed after the back-up was made lies below, whatever that
/// was. A 65,536th of what the others believe at once (`limits::VERSION_JUMP`).
const SEQUENCES_AFTER_RESTORE: u64 = 1 << 24;

/// Copies everything that the relay needs to live again into a new folder, also while it runs. The folder is as secret as
/// the data directory. The root key is not copied.
#[derive(Debug, Args)]
#[command(after_help = "Example: tasuki-relay backup /backup/relay1-monday")]
pub(super) struct BackupArgs {
    /// The folder to be made (0700)
    folder: PathBuf,
}

/// Makes a data directory of a back-up. The relay that it was taken from must not run again.
#[derive(Debug, Args)]
#[command(after_help = "Example: tasuki-relay restore /backup/relay1-monday")]
pub(super) struct RestoreArgs {
    /// What 'backup' made
    folder: PathBuf,
}

pub(super) fn backup(global: &Global, args: &BackupArgs) -> anyhow::Result<()> {
    let (data, _) = layers(global.layer(), global.config.as_deref())?;
    let identity = identity(&data)?;
    let folder = &args.folder;
    DirBuilder::new().mode(0o700).create(folder).with_context(|| {
        format!("{}: the folder is made by this command: choose a new one", folder.display())
    })?;
    Store::copy(&data, folder)?;
    let copied = copy_files(&data, folder)?;
    let name = identity.name().as_str();
    if global.json {
        println!("{}", json!({ "relay": name, "folder": folder, "files": copied }));
    } else {
        println!(
            "relay {name} is in {}, which is as secret as {}",
            folder.display(),
            data.display()
        );
        println!("the root key is not in it: it has its own place offline");
    }
    Ok(())
}

pub(super) async fn restore(global: &Global, args: &RestoreArgs) -> anyhow::Result<()> {
    let (data, _) = layers(global.layer(), global.config.as_deref())?;
    refuse_in_use(&data)?;
    let identity = identity(&args.folder)?;
    make_private_dir(&data)?;
    Store::copy(&args.folder, &data)?;
    if identity.is_registrar() {
        let store = Store::open(&data)?;
        let moved = |rows: &Rows<'_>| -> Result<u64, StoreError> {
            let at = rows.mark(Mark::AuthoritySequence)?;
            rows.raise(Mark::AuthoritySequence, at.saturating_add(SEQUENCES_AFTER_RESTORE))
        };
        store.run(moved).await?;
    }
    copy_files(&args.folder, &data)?;
    keep_owner(&data)?;
    let name = identity.name().as_str();
    if global.json {
        println!("{}", json!({ "relay": name, "data": data }));
    } else {
        println!("relay {name} is restored in {}: never run it in two places", data.display());
        println!("start the relay with: tasuki-relay run --data {}", data.display());
    }
    Ok(())
}

fn identity(folder: &Path) -> anyhow::Result<Identity> {
    let identity = Identity::load(folder)?
        .with_context(|| format!("no-identity: {}: there is no relay in it", folder.display()))?;
    identity
        .relay_name()
        .with_context(|| format!("wrong-role: {}: it belongs to a terminal", folder.display()))?;
    Ok(identity)
}

/// Copies those that are there (0600), the identity last; which they were.
fn copy_files(from: &Path, to: &Path) -> anyhow::Result<Vec<&'static str>> {
    let mut copied = Vec::new();
    for file in FILES {
        match std::fs::read(from.join(file)) {
            Ok(bytes) => {
                write_private(&to.join(file), &zeroize::Zeroizing::new(bytes))?;
                copied.push(file);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(from.join(file).display().to_string()),
        }
    }
    Ok(copied)
}
