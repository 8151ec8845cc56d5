//! The registrar's role moves to another relay: a new issuer of the next term, made with the root
//! (docs/adr/0028-replacing-the-registrar.md).

use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use tasuki_proto::identity::{Identity, IdentityError, KeyFingerprint, NodeName, Root};
use tasuki_proto::record::{Record, RecordKind};
use tasuki_proto::rows::{self, AccountRow, RelayAccountRow};
use tasuki_proto::{Incarnation, RefusalCode, RelayName, TerminalId};

use super::decide::{Authority, Denial};
use super::{Registrar, RegistrarError, refusal_of, wall_ms};
use crate::io::store::{IssuedCertificate, Rows, Store, StoreError};

impl Registrar {
    /// Makes the relay with the data directory `data` the registrar: an issuer of a term above all that it knows of, every
    /// record of the authority that it holds signed anew, and a certificate with the role for its own key. Gives the
    /// identity to be saved; until then nothing counts, and it can be done again.
    ///
    /// What the relay does not hold is lost: it must have been linked with others not long ago.
    ///
    /// # Errors
    /// When `root` is that of another mesh, or something cannot be made or written.
    pub async fn take_over(
        data: &Path,
        store: &Store,
        identity: &Identity,
        root: &Root,
        now_secs: u64,
    ) -> Result<(Identity, Incarnation), RegistrarError> {
        if root.fingerprint() != identity.root_fingerprint() {
            return Err(IdentityError::Unsound("the root key is that of another mesh").into());
        }
        let name = identity
            .relay_name()
            .cloned()
            .ok_or(IdentityError::Unsound("only a relay can be the registrar"))?;
        let records = store.records().await?;
        let terms = records.iter().map(|record| record.version().incarnation.0);
        let highest = terms.max().unwrap_or(0).max(identity.authority_key().0.0);
        let term = Incarnation(highest.saturating_add(1));
        let issuer = root.issuer(identity.mesh(), term, now_secs)?;
        issuer.save(data)?;
        let authority = Authority { issuer: Arc::new(issuer), now_secs, wall_ms: wall_ms() };
        let public = identity.key().public();
        let chain = store
            .run(move |rows: &Rows<'_>| -> Result<_, Denial> {
                for record in &records {
                    authority.sign_anew(rows, record, &name)?;
                }
                let node = NodeName::Relay(name);
                Ok(authority.issue(rows, &node, &public, true)?.chain)
            })
            .await
            .map_err(refusal_of)?;
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        Ok((identity.renewed(chain)?, term))
    }
}

impl Authority {
    /// Signs a record of an earlier term, and keeps which key its account stands for: that is what a revocation needs.
    fn sign_anew(
        &self,
        rows: &Rows<'_>,
        record: &Record,
        registrar: &RelayName,
    ) -> Result<(), Denial> {
        let unsound = |_| StoreError::Unsound("records");
        let name = || String::from_utf8_lossy(record.key()).into_owned();
        let mut payload = None;
        if !record.is_tombstone() {
            payload = Some(bytes::Bytes::copy_from_slice(record.payload()));
            match record.kind() {
                RecordKind::ACCOUNT => {
                    let row: AccountRow = rows::read(record.payload()).map_err(unsound)?;
                    let id =
                        TerminalId::new(&name()).map_err(|_| StoreError::Unsound("records"))?;
                    if let Some(key) = row.key {
                        Self::remember(rows, &key.fingerprint(), &NodeName::Terminal(id))?;
                    }
                }
                RecordKind::RELAY_ACCOUNT => {
                    let mut row: RelayAccountRow = rows::read(record.payload()).map_err(unsound)?;
                    let relay = RelayName::new(&name()).map_err(|_| RefusalCode::BadRequest)?;
                    row.registrar = relay == *registrar;
                    Self::remember(rows, &row.key.fingerprint(), &NodeName::Relay(relay))?;
                    payload = Some(rows::payload(&row));
                }
                _ => {}
            }
        }
        self.put(rows, record.kind(), record.key(), payload)?;
        Ok(())
    }

    /// A key that an earlier issuer certified. Its certificate is not known here, so it counts as one that ended: the next
    /// renewal gets one of this issuer.
    fn remember(rows: &Rows<'_>, key: &KeyFingerprint, name: &NodeName) -> Result<(), Denial> {
        let ended = IssuedCertificate { not_before: 0, not_after: 0, chain: Vec::new() };
        Ok(rows.put_certificate(key, name, &ended)?)
    }
}
