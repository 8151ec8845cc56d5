//! `init`: makes a mesh.

use clap::Args;
use serde_json::json;
use tasuki_proto::identity::{Clock, Root, make_private_dir};
use tasuki_proto::{MeshName, RelayName};

use super::{AddressArgs, Global, NO_NAME, refuse_in_use, write_admin_token};
use crate::config::{Layer, first_settings, layers};
use crate::io::registrar::Registrar;
use crate::io::store::Store;

/// Makes a mesh: the root key, the issuer, and this relay with the registrar role.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: tasuki-relay init --name r1 --mesh plants --advertise r1.example.net:4433"
)]
pub(super) struct InitArgs {
    /// This relay's name: a DNS label
    #[arg(long)]
    name: Option<RelayName>,
    /// The mesh's name: a DNS label [default: mesh]
    #[arg(long)]
    mesh: Option<MeshName>,
    #[command(flatten)]
    addresses: AddressArgs,
}

pub(super) async fn init(global: &Global, args: InitArgs) -> anyhow::Result<()> {
    let flags = Layer { name: args.name, mesh: args.mesh, ..args.addresses.layer() };
    let (data, layer) = layers(flags.or(global.layer()), global.config.as_deref())?;
    refuse_in_use(&data)?;
    let name = layer.name.clone().ok_or(NO_NAME)?;
    let mesh = match layer.mesh.clone() {
        Some(mesh) => mesh,
        None => MeshName::new("mesh")?,
    };
    let settings = first_settings(Layer { mesh: Some(mesh.clone()), ..layer })?;
    let advertise = settings.advertise.clone().unwrap_or_default();

    make_private_dir(&data)?;
    let store = Store::open(&data)?;
    let now = Clock::system(0).now_secs();
    let identity =
        Registrar::found(&data, &store, &mesh, name.clone(), advertise.clone(), now).await?;
    write_admin_token(&data)?;
    settings.save(&data)?;
    // Last: with it the directory is a relay's.
    identity.save(&data)?;

    let root = data.join(Root::FILE);
    if global.json {
        let made = json!({
            "mesh": mesh, "relay": name, "advertise": advertise, "root": root,
            "root_fingerprint": identity.root_fingerprint().to_string(),
        });
        println!("{made}");
    } else {
        println!(
            "mesh {mesh} is made, relay {name} is its registrar, reached at {}",
            advertise.join(", ")
        );
        println!(
            "the root key is {}: move it to offline storage, who has it is the mesh; it is needed again to renew \
             the issuer within a year, and to replace this relay",
            root.display()
        );
        println!("start the relay with: tasuki-relay run --data {}", data.display());
    }
    Ok(())
}
