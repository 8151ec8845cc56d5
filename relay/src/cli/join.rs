//! `join`: makes a relay of an existing mesh.

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use tasuki_proto::RelayName;
use tasuki_proto::enrolment::{PendingKey, enrol, save_relays};
use tasuki_proto::identity::{Clock, NodeName, Role, Token, word_or_stdin};
use tasuki_proto::{Refusal, RefusalCode};

use super::{AddressArgs, Global, NO_NAME, refuse_in_use, write_admin_token};
use crate::config::{Layer, first_settings, layers};
use crate::io::store::Store;

/// Makes a relay of an existing mesh. The registrar, or any relay that reaches it, must be up.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: tasuki-relay join tk1... --name r2 --advertise r2.example.net:4433"
)]
pub(super) struct JoinArgs {
    /// What 'tasuki-relay token relay' printed; - reads it from standard input, so that other users of this machine do
    /// not see it
    token: String,
    /// This relay's name: a DNS label
    #[arg(long)]
    name: Option<RelayName>,
    #[command(flatten)]
    addresses: AddressArgs,
}

pub(super) async fn join(global: &Global, args: JoinArgs) -> anyhow::Result<()> {
    let flags = Layer { name: args.name, ..args.addresses.layer() };
    let (data, layer) = layers(flags.or(global.layer()), global.config.as_deref())?;
    refuse_in_use(&data)?;
    let name = layer.name.clone().ok_or(NO_NAME)?;
    let word = word_or_stdin(&args.token).context("bad-token: standard input")?;
    let token = Token::from_word(&word).map_err(|error| anyhow::anyhow!("bad-token: {error}"))?;
    if token.made_for.role() != Role::Relay {
        let detail = "it is for a terminal, see 'tasuki-agent enroll'";
        return Err(Refusal::new(RefusalCode::TokenKind, detail).into());
    }
    let settings = first_settings(Layer { mesh: Some(token.mesh.clone()), ..layer })?;
    let advertise = settings.advertise.clone().unwrap_or_default();

    let pending = PendingKey::load_or_make(&data)?;
    let node = NodeName::Relay(name.clone());
    let clock = Clock::system(0);
    let enrolled = enrol(&token, pending.key()?, &node, advertise.clone(), &clock).await?;
    Store::open(&data)?;
    save_relays(&data, &enrolled.relays)?;
    write_admin_token(&data)?;
    settings.save(&data)?;
    // Last: with it the directory is a relay's.
    enrolled.identity.save(&data)?;
    pending.forget();

    let mesh = &token.mesh;
    if global.json {
        println!("{}", json!({ "mesh": mesh, "relay": name, "advertise": advertise }));
    } else {
        println!("relay {name} has joined mesh {mesh}, reached at {}", advertise.join(", "));
        println!("start the relay with: tasuki-relay run --data {}", data.display());
    }
    Ok(())
}
