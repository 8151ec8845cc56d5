//! At the registrar: the tokens that were made, and the newest certificate of each key.

use rusqlite::{OptionalExtension, params};
use tasuki_proto::TerminalId;
use tasuki_proto::identity::{KeyFingerprint, NodeName, TokenFor, TokenId, TokenSecret};

use super::{Rows, StoreError};

/// A token as the registrar keeps it.
#[derive(Debug, Clone)]
pub struct StoredToken {
    /// What a proof is checked with.
    pub secret: TokenSecret,
    /// Whom it is for.
    pub made_for: TokenFor,
    /// Until when it can be used, ms since 1970.
    pub expires_ms: u64,
    /// The key that used it.
    pub used_by: Option<KeyFingerprint>,
}

/// The newest certificate of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// Valid from, s since 1970.
    pub not_before: u64,
    /// Valid until, s since 1970.
    pub not_after: u64,
    /// Leaf and issuer, DER.
    pub chain: Vec<Vec<u8>>,
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn fingerprint(bytes: [u8; 32]) -> KeyFingerprint {
    KeyFingerprint(bytes)
}

impl Rows<'_> {
    /// Keeps a token that was made.
    ///
    /// # Errors
    /// The store's.
    pub fn put_token(&self, id: &TokenId, token: &StoredToken) -> Result<(), StoreError> {
        let terminal = match &token.made_for {
            TokenFor::Relay => None,
            TokenFor::Terminal(id) => Some(id.as_str()),
        };
        self.connection
            .prepare_cached(
                "INSERT INTO tokens (id, secret, terminal, expires_ms) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![id.0, token.secret.as_bytes(), terminal, number(token.expires_ms)])?;
        Ok(())
    }

    /// The token with this id.
    ///
    /// # Errors
    /// The store's.
    pub fn token(&self, id: &TokenId) -> Result<Option<StoredToken>, StoreError> {
        let mut query = self.connection.prepare_cached(
            "SELECT secret, terminal, expires_ms, used_by FROM tokens WHERE id = ?1",
        )?;
        let found = query
            .query_row([&id.0[..]], |row| {
                let secret: [u8; 32] = row.get(0)?;
                let terminal: Option<String> = row.get(1)?;
                let expires_ms: i64 = row.get(2)?;
                let used_by: Option<[u8; 32]> = row.get(3)?;
                Ok((secret, terminal, expires_ms, used_by))
            })
            .optional()?;
        let Some((secret, terminal, expires_ms, used_by)) = found else { return Ok(None) };
        let made_for = match terminal {
            None => TokenFor::Relay,
            Some(name) => TokenFor::Terminal(
                TerminalId::new(&name).map_err(|_| StoreError::Unsound("tokens"))?,
            ),
        };
        Ok(Some(StoredToken {
            secret: TokenSecret::from_bytes(secret),
            made_for,
            expires_ms: u64::try_from(expires_ms).unwrap_or(0),
            used_by: used_by.map(fingerprint),
        }))
    }

    /// Marks a token as used by `key`.
    ///
    /// # Errors
    /// The store's.
    pub fn use_token(&self, id: &TokenId, key: &KeyFingerprint) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE tokens SET used_by = ?2 WHERE id = ?1")?
            .execute(params![id.0, key.0])?;
        Ok(())
    }

    /// Removes a terminal's tokens that nobody used.
    ///
    /// # Errors
    /// The store's.
    pub fn drop_open_tokens(&self, terminal: &TerminalId) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM tokens WHERE terminal = ?1 AND used_by IS NULL")?
            .execute([terminal.as_str()])?;
        Ok(())
    }

    /// Removes tokens that ended before `ms`.
    ///
    /// # Errors
    /// The store's.
    pub fn forget_tokens(&self, ms: u64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM tokens WHERE expires_ms < ?1")?
            .execute([number(ms)])?;
        Ok(())
    }

    /// How many tokens there are.
    ///
    /// # Errors
    /// The store's.
    pub fn count_tokens(&self) -> Result<u64, StoreError> {
        let mut query = self.connection.prepare_cached("SELECT count(*) FROM tokens")?;
        let count: i64 = query.query_row([], |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Keeps the newest certificate of `key`.
    ///
    /// # Errors
    /// The store's.
    pub fn put_certificate(
        &self,
        key: &KeyFingerprint,
        name: &NodeName,
        issued: &IssuedCertificate,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO certificates (key, name, not_before, not_after, chain)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                key.0,
                name.to_string(),
                number(issued.not_before),
                number(issued.not_after),
                tasuki_proto::codec::encode(&issued.chain),
            ])?;
        Ok(())
    }

    /// The newest certificate of `key`.
    ///
    /// # Errors
    /// The store's.
    pub fn certificate(
        &self,
        key: &KeyFingerprint,
    ) -> Result<Option<IssuedCertificate>, StoreError> {
        let mut query = self.connection.prepare_cached(
            "SELECT not_before, not_after, chain FROM certificates WHERE key = ?1",
        )?;
        let found = query
            .query_row([&key.0[..]], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?))
            })
            .optional()?;
        let Some((not_before, not_after, chain)) = found else { return Ok(None) };
        Ok(Some(IssuedCertificate {
            not_before: u64::try_from(not_before).unwrap_or(0),
            not_after: u64::try_from(not_after).unwrap_or(0),
            chain: tasuki_proto::codec::decode(&chain)
                .map_err(|_| StoreError::Unsound("certificates"))?,
        }))
    }

    /// The keys that were ever certified as `name`.
    ///
    /// # Errors
    /// The store's.
    pub fn keys_of(&self, name: &NodeName) -> Result<Vec<KeyFingerprint>, StoreError> {
        let mut query = self
            .connection
            .prepare_cached("SELECT key FROM certificates WHERE name = ?1 ORDER BY key")?;
        let found = query.query_map([name.to_string()], |row| row.get(0))?;
        found.map(|key| Ok(fingerprint(key?))).collect()
    }
}
