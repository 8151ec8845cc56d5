//! `enroll`: makes this machine a terminal of a mesh.

use std::path::Path;

use tasuki_proto::enrolment::{PendingKey, enrol, save_relays};
use tasuki_proto::identity::{Clock, Identity, NodeName, Token, TokenFor};
use tasuki_proto::{Refusal, RefusalCode, TerminalId};

/// Enrols with the word that `tasuki-relay token terminal NAME` printed, and leaves identity and relays in the
/// data directory. The registrar, or any relay that reaches it, must be up. Gives the terminal's id.
///
/// # Errors
/// One line: `code: what: what to do`.
pub async fn enroll(data: &Path, token: &str) -> anyhow::Result<TerminalId> {
    if data.join(Identity::FILE).exists() {
        anyhow::bail!(
            "data-in-use: {}: it belongs to a terminal already: give another --data, or remove it",
            data.display()
        );
    }
    let token = Token::from_word(token).map_err(|error| anyhow::anyhow!("bad-token: {error}"))?;
    let TokenFor::Terminal(id) = token.made_for.clone() else {
        let detail = "it is for a relay, see 'tasuki-relay join'";
        return Err(Refusal::new(RefusalCode::TokenKind, detail).into());
    };
    let pending = PendingKey::load_or_make(data)?;
    let name = NodeName::Terminal(id.clone());
    let enrolled = enrol(&token, pending.key()?, &name, Vec::new(), &Clock::system(0)).await?;
    save_relays(data, &enrolled.relays)?;
    // Last: with it the directory is a terminal's.
    enrolled.identity.save(data)?;
    pending.forget();
    Ok(id)
}
