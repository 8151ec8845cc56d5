//! What an operator hands to a newcomer: one word, good for one enrolment.
//!
//! ```text
//! tk1 BASE32( body, first 4 bytes of SHA-256(body) )        lower case, no padding
//! body: sections: 1 root fingerprint, 2 mesh name, 3 token id, 4 secret, 5 whom it is for, 6 relays
//! ```
//!
//! The **secret never travels**. The newcomer sends the token's id, its request, and an HMAC-SHA256 of the request
//! under the secret, so a relay that passes it on learns nothing it could use.

use std::fmt;

use ring::hmac;
use ring::rand::SecureRandom;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{IdentityError, KeyFingerprint, Role};
use crate::codec::{self, SectionWriter};
use crate::control::RelayContact;
use crate::id::{MeshId, MeshName, TerminalId};
use crate::limits;

const PREFIX: &str = "tk1";
const CHECK: usize = 4;
const DOMAIN: &[u8] = b"tasuki enrolment v1\0";

/// Which token. Not a secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenId(pub [u8; 16]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What proves that a request comes from the one who was handed the token. Its `Debug` shows nothing.
#[derive(Clone)]
pub struct TokenSecret(Zeroizing<[u8; 32]>);

impl TokenSecret {
    /// A secret from its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes, for the token and the registrar's store.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn context(&self, mesh: &MeshId, token: &TokenId, request: &[u8]) -> (hmac::Key, Vec<u8>) {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0[..]);
        (key, [DOMAIN, &mesh.0, &token.0, request].concat())
    }

    /// The proof for `request` (its exact bytes).
    pub fn prove(&self, mesh: &MeshId, token: &TokenId, request: &[u8]) -> [u8; 32] {
        let (key, message) = self.context(mesh, token, request);
        let mut proof = [0; 32];
        proof.copy_from_slice(hmac::sign(&key, &message).as_ref());
        proof
    }

    /// Whether `proof` is that for `request`; in constant time.
    pub fn is_proven(&self, mesh: &MeshId, token: &TokenId, request: &[u8], proof: &[u8]) -> bool {
        let (key, message) = self.context(mesh, token, request);
        hmac::verify(&key, &message, proof).is_ok()
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret")
    }
}

/// Whom a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenFor {
    /// A relay; it chooses its name.
    Relay,
    /// This terminal.
    Terminal(TerminalId),
}

impl TokenFor {
    /// Which kind of node.
    pub const fn role(&self) -> Role {
        match self {
            TokenFor::Relay => Role::Relay,
            TokenFor::Terminal(_) => Role::Terminal,
        }
    }
}

/// Why a word is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else.
    #[error("this is not a token; a token begins with 'tk1'")]
    NotAToken,
    /// Cut, or with a wrong character.
    #[error("the token is damaged; copy the whole word")]
    Damaged,
}

/// A token.
#[derive(Debug, Clone)]
pub struct Token {
    /// The key that everything in the mesh leads to.
    pub root: KeyFingerprint,
    /// The mesh's name.
    pub mesh: MeshName,
    /// Which token.
    pub id: TokenId,
    /// Never travels.
    pub secret: TokenSecret,
    /// Whom it is for.
    pub made_for: TokenFor,
    /// Relays to enrol through: at most [`limits::TOKEN_RELAYS`], the registrar first.
    pub relays: Vec<RelayContact>,
}

/// The word of a token as a command line gives it: itself, or what standard input holds where it is `-`. Other users of
/// the machine can see the words of a command line, and so a token in them.
///
/// # Errors
/// When standard input cannot be read, or holds more than a token.
pub fn word_or_stdin(word: &str) -> std::io::Result<String> {
    use std::io::Read as _;
    if word != "-" {
        return Ok(word.to_owned());
    }
    let mut text = String::new();
    let most = limits::TOKEN_CHARACTERS as u64 + 2;
    std::io::stdin().lock().take(most).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

impl Token {
    /// A token with a fresh id and secret. Of `relays` as many are taken as fit.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate(
        root: KeyFingerprint,
        mesh: MeshName,
        made_for: TokenFor,
        mut relays: Vec<RelayContact>,
    ) -> Result<Self, IdentityError> {
        let rng = ring::rand::SystemRandom::new();
        let unsound = |_| IdentityError::Unsound("the system has no randomness to give");
        let (mut id, mut secret) = ([0; 16], [0; 32]);
        rng.fill(&mut id).map_err(unsound)?;
        rng.fill(&mut secret).map_err(unsound)?;
        relays.truncate(limits::TOKEN_RELAYS);
        let secret = TokenSecret::from_bytes(secret);
        Ok(Self { root, mesh, id: TokenId(id), secret, made_for, relays })
    }

    /// The token as one word that begins with a letter.
    pub fn to_word(&self) -> Zeroizing<String> {
        let body = SectionWriter::new()
            .with(1, &self.root)
            .with(2, &self.mesh)
            .with(3, &self.id)
            .with(4, self.secret.as_bytes())
            .with(5, &self.made_for)
            .with(6, &self.relays)
            .finish();
        let check = ring::digest::digest(&ring::digest::SHA256, &body);
        let bytes = Zeroizing::new([&body[..], &check.as_ref()[..CHECK]].concat());
        let base32 = Zeroizing::new(data_encoding::BASE32_NOPAD.encode(&bytes));
        Zeroizing::new(format!("{PREFIX}{}", base32.to_ascii_lowercase()))
    }

    /// Reads a token.
    ///
    /// # Errors
    /// [`TokenError`] for any word that [`Token::to_word`] did not make.
    pub fn from_word(word: &str) -> Result<Self, TokenError> {
        let base32 = word.trim().strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        if base32.len() > limits::TOKEN_CHARACTERS {
            return Err(TokenError::Damaged);
        }
        let bytes = data_encoding::BASE32_NOPAD_NOCASE
            .decode(base32.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| TokenError::Damaged)?;
        let (body, check) = bytes.split_last_chunk::<CHECK>().ok_or(TokenError::Damaged)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, body);
        if digest.as_ref()[..CHECK] != check[..] {
            return Err(TokenError::Damaged);
        }
        Self::from_body(body).map_err(|_| TokenError::Damaged)
    }

    fn from_body(body: &[u8]) -> Result<Self, codec::DecodeError> {
        let relays: Vec<RelayContact> = codec::required(body, 6)?;
        let too_many = |r: &RelayContact| r.addresses.len() > limits::RELAY_ADDRESSES;
        if relays.len() > limits::TOKEN_RELAYS || relays.iter().any(too_many) {
            return Err(codec::DecodeError::TooLarge);
        }
        Ok(Self {
            root: codec::required(body, 1)?,
            mesh: codec::required(body, 2)?,
            id: codec::required(body, 3)?,
            secret: TokenSecret::from_bytes(codec::required(body, 4)?),
            made_for: codec::required(body, 5)?,
            relays,
        })
    }
}
