//! `become-registrar`: gives this relay the registrar's role, with the root key.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use tasuki_proto::identity::{Clock, Identity, Root};

use super::{Global, keep_owner};
use crate::config::layers;
use crate::io::http::LocalSocket;
use crate::io::registrar::Registrar;
use crate::io::store::Store;

/// Makes this relay the registrar, with the root key, when the registrar is gone for good. The relay must be stopped; it
/// must have been linked with others not long ago, since what it does not know is lost.
#[derive(Debug, Args)]
#[command(after_help = "Example: tasuki-relay become-registrar --root /media/usb/root.pem")]
pub(super) struct TakeArgs {
    /// The root key that 'init' made; it is read and not kept
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
}

pub(super) async fn take(global: &Global, args: TakeArgs) -> anyhow::Result<()> {
    let (data, _) = layers(global.layer(), global.config.as_deref())?;
    let identity = load(&data)?;
    if identity.is_registrar() {
        anyhow::bail!("already-registrar: {}: this relay has the role already", data.display());
    }
    let root = Root::read(&args.root)?.with_context(|| {
        format!("no-root: {}: give the root.pem that 'init' made", args.root.display())
    })?;
    // Held until the end: no relay runs on this directory meanwhile.
    let _stopped = LocalSocket::bind(&data.join("relay.sock"))?;
    let store = Store::open(&data)?;
    let now = Clock::system(store.clock_mark().await?).now_secs();
    let (identity, term) = Registrar::take_over(&data, &store, &identity, &root, now).await?;
    // Last: with it the role is this relay's.
    identity.save(&data)?;
    keep_owner(&data)?;
    let name = identity.name().as_str();
    if global.json {
        println!("{}", json!({ "registrar": name, "mesh": identity.mesh(), "term": term.0 }));
        return Ok(());
    }
    println!("relay {name} is the registrar of mesh {}, of term {}", identity.mesh(), term.0);
    println!(
        "start it: the other relays hear of it by themselves. Tokens of the old registrar are void"
    );
    println!(
        "once it runs: tasuki-relay revoke OLD --relay, unless OLD is to come back as an ordinary relay"
    );
    Ok(())
}

fn load(data: &Path) -> anyhow::Result<Identity> {
    Identity::load(data)?.with_context(|| {
        format!("no-identity: {}: it is for a relay that has joined the mesh", data.display())
    })
}
