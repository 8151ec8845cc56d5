//! Who is who: keys, certificates, tokens, and the one function that decides who a peer is (architecture 3).
//!
//! | file | holds |
//! |---|---|
//! | `name` | roles and names, and how they stand in a certificate |
//! | `key` | key pairs and fingerprints |
//! | `certificate` | what a certificate says, and whether a chain leads to a root |
//! | `authority` | root and issuer: the keys that sign certificates |
//! | `node` | [`Identity`]: what a node keeps on disk; [`IdentityCell`]: the current one, shared |
//! | `tls` | TLS 1.3 configurations made from an [`IdentityCell`] |
//! | `peer` | [`identify_peer`], the one place that decides who the peer is |
//! | `token` | what an operator hands to a newcomer |
//! | `clock` | the time that certificates are checked against |
//!
//! Every key is Ed25519: `ring`, `rustls` and `rcgen` all do it, signatures are deterministic (a poor random
//! generator cannot leak a key), and the issuer's key signs records as well, in the same 64 bytes.

mod authority;
mod certificate;
mod clock;
mod files;
mod key;
mod name;
mod node;
mod peer;
mod tls;
mod token;

#[cfg(test)]
mod tests;

pub use authority::{Issuer, LEAF_LIFE_SECS, Root};
pub use certificate::{CertificateFacts, verify_chain_when_valid};
pub use clock::Clock;
pub use files::{make_private_dir, write_private};
pub use key::{KeyFingerprint, NodeKey, PublicKey, Signer};
pub use name::{NodeName, Role};
pub use node::{Identity, IdentityCell, RenewalTrouble, locked_out};
pub(crate) use peer::connection_chain;
pub use peer::{
    Ours, Peer, connection_alpn, connection_authority, connection_refusal, identify_connection,
    identify_peer,
};
pub use tls::{
    TlsError, client_config, newcomer_config, quinn_client_config, quinn_newcomer_config,
    quinn_server_config, server_config, shown_certificate, web_server_config,
};
pub use token::{Token, TokenError, TokenFor, TokenId, TokenSecret, word_or_stdin};

/// Why an identity could not be read, written or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("{path}: {source}: {}", crate::advice::file(source))]
    File {
        /// Which one.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file or a certificate is not what it should be.
    #[error("{0}")]
    Unsound(&'static str),
    /// A key or certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
}
