//! The registrar: on the relay whose certificate carries the role, and nowhere else (architecture 3).
//!
//! It hands out tokens, certifies newcomers, renews certificates, revokes keys, and signs the authority's records
//! of all that. What decides is in `decide`, in one transaction of the store each: to check a token and to consume
//! it is one step. New records go to the core's gossip in the order of their versions.

mod decide;
mod local;
mod service;
mod takeover;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use tasuki_proto::codec::Envelope;
use tasuki_proto::enrolment::{FromRegistrar, ToRegistrar};
use tasuki_proto::identity::{
    Clock, Identity, IdentityCell, IdentityError, Issuer, NodeName, PublicKey, Root, Signer, Token,
    TokenFor,
};
use tasuki_proto::record::Record;
use tasuki_proto::{Refusal, RefusalCode, RelayName, limits};
use tokio::sync::{Mutex, mpsc};
use zeroize::Zeroizing;

use super::store::{Rows, Store, StoreError};
use decide::{Authority, Denial};

pub use local::{local_routes, refusing_routes};
pub use service::{EnrolmentService, Gate};

/// How often the authority says how far it is, so that withheld revocations show.
const HEARTBEAT: Duration = Duration::from_secs(60);
const DAY_SECS: u64 = 24 * 60 * 60;
/// A token's life where none is given.
pub const TOKEN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest life of a token.
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Why the registrar could not start.
#[derive(Debug, thiserror::Error)]
pub enum RegistrarError {
    /// Keys or certificates.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// The store.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The certificate carries the role, but the issuer's key is not there.
    #[error(
        "this relay's certificate carries the registrar role, but {0} is missing in its data directory"
    )]
    NoIssuer(&'static str),
    /// It said no to itself.
    #[error("{0}")]
    Refused(#[from] Refusal),
}

/// What a token is made for, and the account that comes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOrder {
    /// Whom.
    pub made_for: TokenFor,
    /// A terminal's type, for people and filters.
    pub kind: String,
    /// A terminal's attributes.
    pub attributes: BTreeMap<String, String>,
    /// A terminal's groups.
    pub groups: Vec<String>,
    /// How long it can be used.
    pub life: Duration,
}

/// The registrar; clones share it.
#[derive(Debug, Clone)]
pub struct Registrar(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    data: PathBuf,
    cell: IdentityCell,
    store: Store,
    clock: Clock,
    issuer: RwLock<Arc<Issuer>>,
    /// When it was last said that the issuer ends, s since 1970.
    warned_at: AtomicU64,
    /// Where new records go, held while one is made: they leave in the order of their versions.
    records: Mutex<mpsc::Sender<Record>>,
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Registrar {
    /// Makes a mesh in the data directory `data`: root, issuer, and the first relay with the registrar role.
    ///
    /// # Errors
    /// When something cannot be made or written.
    pub async fn found(
        data: &Path,
        store: &Store,
        mesh: &tasuki_proto::MeshName,
        name: RelayName,
        addresses: Vec<String>,
        now_secs: u64,
    ) -> Result<Identity, RegistrarError> {
        let root = Root::generate(mesh, now_secs)?;
        let issuer = root.issuer(mesh, tasuki_proto::Incarnation(1), now_secs)?;
        root.save(data)?;
        issuer.save(data)?;
        let key = tasuki_proto::identity::NodeKey::generate()?;
        let public = key.public();
        let authority = Authority { issuer: Arc::new(issuer), now_secs, wall_ms: wall_ms() };
        let node = NodeName::Relay(name.clone());
        let chain = store
            .run(move |rows: &Rows<'_>| -> Result<_, Denial> {
                let issued = authority.issue(rows, &node, &public, true)?;
                authority.put_relay(rows, &name, PublicKey(public), addresses, true)?;
                Ok(issued.chain)
            })
            .await
            .map_err(refusal_of)?;
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        Ok(Identity::new(key, chain, root.certificate().clone())?)
    }

    /// Opens the registrar; `None` on a relay whose certificate does not carry the role. New records go to
    /// `records`; those of earlier starts are in the store.
    ///
    /// # Errors
    /// When the role is there and the issuer's key is not, or something cannot be read.
    pub async fn open(
        data: &Path,
        cell: IdentityCell,
        store: Store,
        clock: Clock,
        records: mpsc::Sender<Record>,
    ) -> Result<Option<Self>, RegistrarError> {
        let own = cell.get();
        if !own.is_registrar() {
            return Ok(None);
        }
        let issuer =
            Issuer::load(data, own.mesh())?.ok_or(RegistrarError::NoIssuer(Issuer::FILE))?;
        Ok(Some(Self(Arc::new(Inner {
            data: data.to_owned(),
            cell,
            store,
            clock,
            issuer: RwLock::new(Arc::new(issuer)),
            warned_at: AtomicU64::new(0),
            records: Mutex::new(records),
        }))))
    }

    /// The issuer's term, and what signs the heads of the authority's rows.
    pub fn issuer_signer(&self) -> (tasuki_proto::Incarnation, Signer) {
        let issuer = self.0.issuer.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        (issuer.term(), issuer.key().shared_signer())
    }

    fn authority(&self) -> Authority {
        let issuer = self.0.issuer.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Authority {
            issuer: Arc::clone(&issuer),
            now_secs: self.0.clock.now_secs(),
            wall_ms: wall_ms(),
        }
    }

    /// Decides in one transaction and passes on the records that came of it. Once begun it is finished, also when
    /// the caller does not wait.
    async fn decide<T: Send + 'static>(
        &self,
        decision: impl FnOnce(&Authority, &Rows<'_>, &mut Vec<Record>) -> Result<T, Denial>
        + Send
        + 'static,
    ) -> Result<T, Refusal> {
        if self.is_replaced() {
            let detail = "another relay took the role over; restart this one, it goes on as an ordinary relay";
            return Err(Refusal::new(RefusalCode::NotRegistrar, detail));
        }
        let this = self.clone();
        let work = tokio::spawn(async move {
            let out = this.0.records.lock().await;
            let authority = this.authority();
            let (value, records) = this
                .0
                .store
                .run(move |rows: &Rows<'_>| -> Result<_, Denial> {
                    let mut records = Vec::new();
                    let value = decision(&authority, rows, &mut records)?;
                    Ok((value, records))
                })
                .await
                .map_err(refusal_of)?;
            for record in records {
                // The core is gone only when the relay goes down; the store has the record.
                let _ = out.send(record).await;
            }
            Ok(value)
        });
        work.await.unwrap_or_else(|_| Err(RefusalCode::ShuttingDown.into()))
    }

    /// Whether a newer issuer than the one here certified this relay: the role is another's.
    fn is_replaced(&self) -> bool {
        self.0.cell.get().authority_key().0 > self.authority().issuer.term()
    }

    /// Answers a request as it came over an enrolment connection or a link.
    pub async fn answer(&self, request: Envelope) -> Envelope {
        let answer = match ToRegistrar::from_envelope(&request) {
            Ok(Some(ToRegistrar::Enrol(enrol))) => {
                self.decide(move |authority, rows, out| authority.enrol(rows, &enrol, out)).await
            }
            Ok(Some(ToRegistrar::Renew(renew))) => {
                self.decide(move |authority, rows, _| authority.renew(rows, &renew)).await
            }
            Ok(None) | Err(_) => Err(RefusalCode::BadRequest.into()),
        };
        match answer {
            Ok(certified) => FromRegistrar::Certified(certified),
            Err(refusal) => {
                tracing::info!(%refusal, "a request for a certificate is refused");
                FromRegistrar::Refused(refusal)
            }
        }
        .to_envelope()
    }

    /// Makes a token, and the account where it is for a terminal: from then on every relay shows it (C2).
    ///
    /// # Errors
    /// `name-taken`, `bad-request` (over a limit), `overloaded` (too many open tokens), `store-failed`.
    pub async fn make_token(&self, order: TokenOrder) -> Result<Zeroizing<String>, Refusal> {
        let life = order.life.min(TOKEN_LIFE_MAX);
        let token: Token = self
            .decide(move |authority, rows, out| authority.make_token(rows, &order, life, out))
            .await?;
        tracing::info!(token = %token.id, made_for = ?token.made_for, "a token was made");
        Ok(token.to_word())
    }

    /// Revokes every key of the node and its unused tokens; gives how many keys. A terminal's account stays, and a
    /// new token lets it enrol again; a relay is forgotten.
    ///
    /// # Errors
    /// `unknown-target`, `bad-request` (the registrar itself), `store-failed`.
    pub async fn revoke(&self, name: NodeName) -> Result<usize, Refusal> {
        if name == *self.0.cell.get().name() {
            let detail = "the registrar cannot revoke itself";
            return Err(Refusal::new(RefusalCode::BadRequest, detail));
        }
        let shown = name.clone();
        let revoked = self.decide(move |a, rows, out| a.revoke(rows, &name, out)).await?;
        tracing::info!(name = %shown, keys = revoked, "revoked");
        Ok(revoked)
    }

    /// [`Registrar::revoke`] by a name alone: names are unique over relays and terminals.
    ///
    /// # Errors
    /// As there.
    pub async fn revoke_name(&self, name: &str) -> Result<usize, Refusal> {
        let unknown =
            || Refusal::new(RefusalCode::UnknownTarget, name.chars().take(80).collect::<String>());
        let relay = NodeName::Relay(RelayName::new(name).map_err(|_| unknown())?);
        let terminal =
            NodeName::Terminal(tasuki_proto::TerminalId::new(name).map_err(|_| unknown())?);
        match self.revoke(terminal).await {
            Err(refusal) if refusal.code == RefusalCode::UnknownTarget => self.revoke(relay).await,
            result => result,
        }
    }

    /// Says which addresses this relay has: they go into tokens.
    ///
    /// # Errors
    /// `store-failed`.
    pub async fn advertise(&self, addresses: Vec<String>) -> Result<(), Refusal> {
        let own = self.0.cell.get();
        let Some(name) = own.relay_name().cloned() else { return Ok(()) };
        let key = PublicKey(own.key().public());
        self.decide(move |authority, rows, out| {
            if authority.relay(rows, &name)?.is_none_or(|row| row.addresses != addresses) {
                out.push(authority.put_relay(rows, &name, key, addresses, true)?);
            }
            Ok(())
        })
        .await
    }

    /// Heartbeats, its own renewal and the issuer's, until dropped.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.is_replaced() {
                tracing::warn!(
                    "another relay took over as registrar: this one is an ordinary relay from its next start on"
                );
                return;
            }
            self.tend().await;
        }
    }

    /// One round of [`Registrar::run`].
    async fn tend(&self) {
        if let Err(error) = self.renew_issuer() {
            tracing::error!(%error, "the issuer's certificate could not be renewed");
        }
        if let Err(error) = self.renew_own().await {
            tracing::error!(%error, "the registrar's own certificate could not be renewed");
            self.0.cell.renewal_failed(error.to_string(), self.0.clock.now_secs());
        }
        if let Err(refusal) = self.decide(|a, rows, out| a.heartbeat(rows, out)).await {
            tracing::error!(%refusal, "the authority's heartbeat failed");
        }
    }

    /// Certifies the issuer again when it nears its end and the root is at hand; else says what to do.
    fn renew_issuer(&self) -> Result<(), IdentityError> {
        let authority = self.authority();
        if !authority.issuer.wants_renewal(authority.now_secs) {
            return Ok(());
        }
        let Some(root) = Root::load(&self.0.data)? else {
            self.warn_of_end(&authority);
            return Ok(());
        };
        let renewed = root.renew(&authority.issuer, authority.now_secs)?;
        renewed.save(&self.0.data)?;
        let mut issuer = self.0.issuer.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *issuer = Arc::new(renewed);
        tracing::info!("the issuer's certificate was renewed; {} may be offline again", Root::FILE);
        Ok(())
    }

    /// Once a day.
    fn warn_of_end(&self, authority: &Authority) {
        let now = authority.now_secs;
        if now < self.0.warned_at.load(Ordering::Relaxed).saturating_add(DAY_SECS) {
            return;
        }
        self.0.warned_at.store(now, Ordering::Relaxed);
        let days = authority.issuer.not_after().saturating_sub(now) / DAY_SECS;
        tracing::warn!(
            days,
            "the issuer ends soon, and with it every certificate: put {} back into the data \
             directory for a few minutes",
            Root::FILE
        );
    }

    async fn renew_own(&self) -> Result<(), RegistrarError> {
        let own = self.0.cell.get();
        if self.0.clock.now_secs() < own.renew_at() {
            return Ok(());
        }
        let (name, public) = (own.name().clone(), own.key().public());
        let issued = self.decide(move |a, rows, _| a.issue(rows, &name, &public, true)).await?;
        let chain = issued.chain.into_iter().map(CertificateDer::from).collect();
        let renewed = own.renewed(chain)?;
        if let Err(error) = renewed.save(&self.0.data) {
            // It asks itself again at its next start.
            tracing::error!(%error, "the registrar's own certificate was renewed and could not be kept");
        }
        tracing::info!(until = renewed.not_after(), "the registrar's own certificate was renewed");
        self.0.cell.renew(renewed);
        Ok(())
    }
}

fn refusal_of(denial: Denial) -> Refusal {
    match denial {
        Denial::Refused(refusal) => refusal,
        Denial::Store(error) => {
            tracing::error!(%error, "the registrar's store failed");
            Refusal::new(RefusalCode::StoreFailed, error.to_string())
        }
        Denial::Identity(error) => {
            tracing::error!(%error, "the registrar could not make a certificate");
            RefusalCode::StoreFailed.into()
        }
    }
}

/// Whether `address` is `HOST:PORT`.
pub(crate) fn is_address(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let sound = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
    };
    sound && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// At most [`limits::RELAY_ADDRESSES`] addresses, each sound.
fn check_addresses(addresses: &[String]) -> Result<(), Refusal> {
    if addresses.len() <= limits::RELAY_ADDRESSES && addresses.iter().all(|a| is_address(a)) {
        return Ok(());
    }
    let detail = "a relay advertises at most 8 addresses, each HOST:PORT";
    Err(Refusal::new(RefusalCode::BadRequest, detail))
}
