//! What the registrar decides, each within one transaction of the store.

use std::sync::Arc;
use std::time::Duration;

use tasuki_proto::codec;
use tasuki_proto::control::RelayContact;
use tasuki_proto::enrolment::{Certified, Enrol, Newcomer, Renew, verify_renewal};
use tasuki_proto::identity::{
    CertificateFacts, IdentityError, Issuer, KeyFingerprint, LEAF_LIFE_SECS, NodeKey, NodeName,
    PublicKey, Token, TokenFor,
};
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::rows::{self, AccountRow, RelayAccountRow, RevocationRow};
use tasuki_proto::{Refusal, RefusalCode, RelayId, RelayName, TerminalId, limits};

use super::super::store::{IssuedCertificate, Mark, Rows, StoreError, StoredToken};
use super::{TokenOrder, check_addresses};

/// How long a token that ended is remembered, so that its holder hears why it does not work.
const TOKEN_MEMORY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Why a decision came to nothing; the transaction is undone.
#[derive(Debug)]
pub(super) enum Denial {
    Refused(Refusal),
    Store(StoreError),
    Identity(IdentityError),
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<RefusalCode> for Denial {
    fn from(code: RefusalCode) -> Self {
        Self::Refused(code.into())
    }
}

impl From<StoreError> for Denial {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<IdentityError> for Denial {
    fn from(error: IdentityError) -> Self {
        Self::Identity(error)
    }
}

/// The issuer at a moment.
pub(super) struct Authority {
    pub(super) issuer: Arc<Issuer>,
    /// For certificates.
    pub(super) now_secs: u64,
    /// For people, and for the life of tokens.
    pub(super) wall_ms: u64,
}

impl Authority {
    /// Signs a certificate and keeps it as the newest of its key.
    pub(super) fn issue(
        &self,
        rows: &Rows<'_>,
        name: &NodeName,
        public_key: &[u8; 32],
        registrar: bool,
    ) -> Result<IssuedCertificate, Denial> {
        if self.issuer.not_after() <= self.now_secs {
            let detail = "the issuer's own; the registrar needs the root key to renew it";
            return Err(Refusal::new(RefusalCode::CertificateExpired, detail).into());
        }
        let chain =
            self.issuer.certify(name, public_key, registrar, self.now_secs, LEAF_LIFE_SECS)?;
        let facts = chain.first().map(CertificateFacts::read).transpose()?;
        let facts = facts.ok_or(RefusalCode::BadCertificate)?;
        let certificate = IssuedCertificate {
            not_before: facts.not_before,
            not_after: facts.not_after,
            chain: chain.iter().map(|c| c.to_vec()).collect(),
        };
        rows.put_certificate(&facts.key(), name, &certificate)?;
        Ok(certificate)
    }

    /// Signs a record with the authority's next version and keeps it.
    pub(super) fn put(
        &self,
        rows: &Rows<'_>,
        kind: RecordKind,
        key: &[u8],
        payload: Option<bytes::Bytes>,
    ) -> Result<Record, Denial> {
        let sequence = rows.next(Mark::AuthoritySequence)?;
        let record = Record::signed(
            &Draft {
                origin: RelayId::AUTHORITY,
                kind,
                key,
                version: Version { incarnation: self.issuer.term(), sequence },
                wall_ms: self.wall_ms,
                scope: 0,
                lifetime_secs: 0,
                tombstone: payload.is_none(),
                payload: payload.as_deref().unwrap_or_default(),
            },
            &self.issuer.mesh_id(),
            self.issuer.key().signer(),
        );
        rows.put_record(&record)?;
        Ok(record)
    }

    fn row<T: serde::de::DeserializeOwned>(
        rows: &Rows<'_>,
        kind: RecordKind,
        key: &[u8],
    ) -> Result<Option<T>, Denial> {
        let record = rows.record(kind, key)?.filter(|record| !record.is_tombstone());
        let row = record.map(|record| rows::read(record.payload())).transpose();
        Ok(row.map_err(|_| StoreError::Unsound("records"))?)
    }

    fn account(rows: &Rows<'_>, id: &TerminalId) -> Result<Option<AccountRow>, Denial> {
        Self::row(rows, RecordKind::ACCOUNT, id.as_str().as_bytes())
    }

    /// The account of a relay.
    pub(super) fn relay(
        &self,
        rows: &Rows<'_>,
        name: &RelayName,
    ) -> Result<Option<RelayAccountRow>, Denial> {
        Self::row(rows, RecordKind::RELAY_ACCOUNT, name.as_str().as_bytes())
    }

    fn is_revoked(rows: &Rows<'_>, key: &KeyFingerprint) -> Result<bool, Denial> {
        Ok(rows.record(RecordKind::REVOCATION, &key.0)?.is_some())
    }

    fn put_account(
        &self,
        rows: &Rows<'_>,
        id: &TerminalId,
        account: &AccountRow,
    ) -> Result<Record, Denial> {
        self.put(rows, RecordKind::ACCOUNT, id.as_str().as_bytes(), Some(rows::payload(account)))
    }

    /// Writes the account of a relay.
    pub(super) fn put_relay(
        &self,
        rows: &Rows<'_>,
        name: &RelayName,
        key: PublicKey,
        addresses: Vec<String>,
        registrar: bool,
    ) -> Result<Record, Denial> {
        check_addresses(&addresses)?;
        let before = self.relay(rows, name)?;
        let registered_ms = before.map_or(self.wall_ms, |row| row.registered_ms);
        let row = RelayAccountRow { key, addresses, registrar, registered_ms };
        let payload = rows::payload(&row);
        self.put(rows, RecordKind::RELAY_ACCOUNT, name.as_str().as_bytes(), Some(payload))
    }

    /// # Errors
    /// `name-taken` when a node of the other role, or another sound key, has the name.
    fn check_name(
        &self,
        rows: &Rows<'_>,
        name: &NodeName,
        key: Option<&KeyFingerprint>,
    ) -> Result<(), Denial> {
        let taken = |what: &str| -> Result<(), Denial> {
            let detail = format!("{name} ({what})");
            Err(Refusal::new(RefusalCode::NameTaken, detail).into())
        };
        let holder = match name {
            NodeName::Terminal(id) => {
                let relay = RelayName::new(id.as_str()).map_err(|_| RefusalCode::BadRequest)?;
                if self.relay(rows, &relay)?.is_some() {
                    return taken("a relay has it");
                }
                Self::account(rows, id)?.and_then(|account| account.key)
            }
            NodeName::Relay(relay) => {
                let id = TerminalId::new(relay.as_str()).map_err(|_| RefusalCode::BadRequest)?;
                if Self::account(rows, &id)?.is_some() {
                    return taken("a terminal has it");
                }
                self.relay(rows, relay)?.map(|row| row.key)
            }
        };
        match holder.map(|holder| holder.fingerprint()) {
            Some(holder) if Some(&holder) != key && !Self::is_revoked(rows, &holder)? => {
                taken("revoke it first to put another machine in its place")
            }
            _ => Ok(()),
        }
    }

    /// Makes a token; for a terminal also its account.
    pub(super) fn make_token(
        &self,
        rows: &Rows<'_>,
        order: &TokenOrder,
        life: Duration,
        out: &mut Vec<Record>,
    ) -> Result<Token, Denial> {
        let memory = u64::try_from(TOKEN_MEMORY.as_millis()).unwrap_or(u64::MAX);
        rows.forget_tokens(self.wall_ms.saturating_sub(memory))?;
        if rows.count_tokens()? >= limits::OPEN_TOKENS {
            return Err(Refusal::new(RefusalCode::Overloaded, "too many tokens").into());
        }
        if let TokenFor::Terminal(id) = &order.made_for {
            check_attributes(order)?;
            self.check_name(rows, &NodeName::Terminal(id.clone()), None)?;
            rows.drop_open_tokens(id)?;
            let before = Self::account(rows, id)?;
            let account = AccountRow {
                kind: order.kind.clone(),
                attributes: order.attributes.clone(),
                groups: order.groups.clone(),
                key: None,
                registered_ms: before.map_or(self.wall_ms, |account| account.registered_ms),
            };
            out.push(self.put_account(rows, id, &account)?);
        }
        let mesh = self.issuer.mesh().clone();
        let relays = self.relays_for_tokens(rows)?;
        let root = self.issuer.root_fingerprint();
        let token = Token::generate(root, mesh, order.made_for.clone(), relays)?;
        let life = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
        let stored = StoredToken {
            secret: token.secret.clone(),
            made_for: order.made_for.clone(),
            expires_ms: self.wall_ms.saturating_add(life),
            used_by: None,
        };
        rows.put_token(&token.id, &stored)?;
        Ok(token)
    }

    /// Every relay that joined and has an address, ordered by name; whether it is the registrar.
    fn relays(rows: &Rows<'_>) -> Result<Vec<(bool, RelayContact)>, Denial> {
        let unsound = |_| StoreError::Unsound("records");
        let mut relays = Vec::new();
        for record in rows.records_of(RecordKind::RELAY_ACCOUNT)? {
            if record.is_tombstone() {
                continue;
            }
            let row: RelayAccountRow = rows::read(record.payload()).map_err(unsound)?;
            let name = String::from_utf8_lossy(record.key());
            let name = RelayName::new(&name).map_err(|_| StoreError::Unsound("records"))?;
            let contact = RelayContact { name, addresses: row.addresses, draining: false };
            relays.push((row.registrar, contact));
        }
        Ok(relays)
    }

    fn relays_for_tokens(&self, rows: &Rows<'_>) -> Result<Vec<RelayContact>, Denial> {
        let mut relays = Self::relays(rows)?;
        relays.sort_by_key(|(registrar, _)| !registrar);
        Ok(relays.into_iter().map(|(_, contact)| contact).collect())
    }

    /// The answer that carries a certificate: as many relays as fit.
    fn certified(&self, rows: &Rows<'_>, chain: Vec<Vec<u8>>) -> Result<Certified, Denial> {
        let root = self.issuer.root().to_vec();
        let mut room = limits::ENROLMENT_ANSWER_BYTES
            - (chain.iter().map(Vec::len).sum::<usize>() + root.len() + 1024);
        let mut relays = Vec::new();
        for (_, relay) in Self::relays(rows)? {
            match room.checked_sub(codec::encode(&relay).len()) {
                Some(left) => room = left,
                None => break,
            }
            relays.push(relay);
        }
        Ok(Certified { chain, root, relays })
    }

    /// Certifies a newcomer: checks the token and consumes it.
    pub(super) fn enrol(
        &self,
        rows: &Rows<'_>,
        enrol: &Enrol,
        out: &mut Vec<Record>,
    ) -> Result<Certified, Denial> {
        let token = rows.token(&enrol.token)?.ok_or(RefusalCode::TokenUnknown)?;
        let mesh = self.issuer.mesh_id();
        // Before anything else: only the holder of the token gets to the parsers below.
        if !token.secret.is_proven(&mesh, &enrol.token, &enrol.newcomer, &enrol.proof) {
            return Err(RefusalCode::TokenProof.into());
        }
        let newcomer: Newcomer =
            codec::decode(&enrol.newcomer).map_err(|_| RefusalCode::BadRequest)?;
        match (&token.made_for, &newcomer.name) {
            (TokenFor::Relay, NodeName::Relay(_)) => {}
            (TokenFor::Terminal(id), NodeName::Terminal(name)) if id == name => {}
            _ => {
                let detail = format!("for a {}", token.made_for.role());
                return Err(Refusal::new(RefusalCode::TokenKind, detail).into());
            }
        }
        let public_key =
            NodeKey::requested(&newcomer.signing_request).ok_or(RefusalCode::BadRequest)?;
        let public_key = PublicKey(public_key);
        let key = public_key.fingerprint();
        if Self::is_revoked(rows, &key)? {
            return Err(RefusalCode::Revoked.into());
        }
        if let Some(used_by) = token.used_by {
            // A repeated request, since the answer got lost: the same certificate.
            let before = rows.certificate(&key)?.filter(|_| used_by == key);
            let before = before.ok_or(RefusalCode::TokenUsed)?;
            if !rows.keys_of(&newcomer.name)?.contains(&key) {
                return Err(RefusalCode::TokenUsed.into());
            }
            return self.certified(rows, before.chain);
        }
        if token.expires_ms < self.wall_ms {
            return Err(RefusalCode::TokenExpired.into());
        }
        if rows.certificate(&key)?.is_some() {
            let detail =
                "the key belongs to a node of the mesh already; use an empty data directory";
            return Err(Refusal::new(RefusalCode::BadRequest, detail).into());
        }
        self.check_name(rows, &newcomer.name, Some(&key))?;
        let issued = self.issue(rows, &newcomer.name, &public_key.0, false)?;
        rows.use_token(&enrol.token, &key)?;
        out.push(match &newcomer.name {
            NodeName::Relay(name) => {
                self.put_relay(rows, name, public_key, newcomer.addresses, false)?
            }
            NodeName::Terminal(id) => {
                let account = Self::account(rows, id)?.ok_or(RefusalCode::UnknownTerminal)?;
                self.put_account(rows, id, &AccountRow { key: Some(public_key), ..account })?
            }
        });
        self.certified(rows, issued.chain)
    }

    /// Renews a certificate, also one that has ended, as long as its account stands.
    pub(super) fn renew(&self, rows: &Rows<'_>, renew: &Renew) -> Result<Certified, Denial> {
        let (root, mesh) = (self.issuer.root(), self.issuer.mesh_id());
        let facts = verify_renewal(renew, root, &mesh, self.now_secs)?;
        if facts.mesh != *self.issuer.mesh() {
            return Err(RefusalCode::WrongMesh.into());
        }
        let key = facts.key();
        if Self::is_revoked(rows, &key)? {
            return Err(RefusalCode::Revoked.into());
        }
        let (holder, registrar) = match &facts.name {
            NodeName::Terminal(id) => {
                let account = Self::account(rows, id)?.ok_or(RefusalCode::UnknownTerminal)?;
                (account.key, false)
            }
            NodeName::Relay(name) => {
                let row = self.relay(rows, name)?.ok_or(RefusalCode::Revoked)?;
                (Some(row.key), row.registrar)
            }
        };
        if holder.map(|holder| holder.fingerprint()) != Some(key) {
            // Another machine enrolled in its place.
            return Err(RefusalCode::Revoked.into());
        }
        if let Some(fresh) = rows.certificate(&key)?.filter(|held| self.is_fresh(held)) {
            return self.certified(rows, fresh.chain);
        }
        let issued = self.issue(rows, &facts.name, &facts.public_key, registrar)?;
        self.certified(rows, issued.chain)
    }

    /// Whether most of a certificate's life is ahead: then it is given again, and a repeated request costs nothing.
    fn is_fresh(&self, held: &IssuedCertificate) -> bool {
        let life = held.not_after.saturating_sub(held.not_before);
        held.not_after.saturating_sub(self.now_secs) > life / 3 * 2
    }

    /// Revokes all keys of a node.
    pub(super) fn revoke(
        &self,
        rows: &Rows<'_>,
        name: &NodeName,
        out: &mut Vec<Record>,
    ) -> Result<usize, Denial> {
        let unknown = || Refusal::new(RefusalCode::UnknownTarget, name.as_str());
        let (account, held) = match name {
            NodeName::Terminal(id) => {
                let account = Self::account(rows, id)?.ok_or_else(unknown)?;
                let key = account.key;
                (Some(account), key)
            }
            NodeName::Relay(relay) => {
                (None, Some(self.relay(rows, relay)?.ok_or_else(unknown)?.key))
            }
        };
        let mut keys = rows.keys_of(name)?;
        // A restored store may know an account from other relays, and not that it certified the key.
        let unseen = held.map(|key| key.fingerprint()).filter(|key| !keys.contains(key));
        keys.extend(unseen);
        let mut revoked = 0;
        for key in keys {
            if Self::is_revoked(rows, &key)? {
                continue;
            }
            let row = RevocationRow { name: name.as_str().to_owned(), revoked_ms: self.wall_ms };
            let payload = rows::payload(&row);
            out.push(self.put(rows, RecordKind::REVOCATION, &key.0, Some(payload))?);
            revoked += 1;
        }
        match (name, account) {
            (NodeName::Terminal(id), Some(account)) => {
                rows.drop_open_tokens(id)?;
                let account = AccountRow { key: None, ..account };
                out.push(self.put_account(rows, id, &account)?);
            }
            _ => {
                let key = name.as_str().as_bytes();
                out.push(self.put(rows, RecordKind::RELAY_ACCOUNT, key, None)?);
            }
        }
        Ok(revoked)
    }

    /// Says how far the authority is: the record's own version.
    pub(super) fn heartbeat(&self, rows: &Rows<'_>, out: &mut Vec<Record>) -> Result<(), Denial> {
        out.push(self.put(rows, RecordKind::HEARTBEAT, b"", Some(bytes::Bytes::new()))?);
        Ok(())
    }
}

fn check_attributes(order: &TokenOrder) -> Result<(), Refusal> {
    let fits = |word: &str| word.len() <= limits::ATTRIBUTE_BYTES;
    let sound = order.attributes.len() <= limits::ATTRIBUTES
        && order.groups.len() <= limits::ATTRIBUTES
        && fits(&order.kind)
        && !order.kind.is_empty()
        && order.attributes.iter().all(|(key, value)| !key.is_empty() && fits(key) && fits(value))
        && order.groups.iter().all(|group| !group.is_empty() && fits(group));
    if sound {
        return Ok(());
    }
    let detail = format!(
        "at most {} attributes and groups of 1 to {} bytes each",
        limits::ATTRIBUTES,
        limits::ATTRIBUTE_BYTES
    );
    Err(Refusal::new(RefusalCode::BadRequest, detail))
}
