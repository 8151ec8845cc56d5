//! What this terminal exposes, and to whom: closed by default.

use std::collections::{BTreeMap, BTreeSet};

use tasuki_proto::{Refusal, RefusalCode, ServiceName, TerminalId};

/// Who may use a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// Every terminal of the mesh.
    Everybody,
    /// These.
    Terminals(BTreeSet<TerminalId>),
}

/// The rules of one terminal. A service that is exposed and not in `allowed` is open to nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessRules {
    /// Exposed services.
    pub exposed: BTreeSet<ServiceName>,
    /// Who may use them.
    pub allowed: BTreeMap<ServiceName, Allowed>,
}

impl AccessRules {
    /// Whether `peer` may use `service`.
    ///
    /// # Errors
    /// `service-not-exposed` or `caller-not-allowed`.
    pub fn check(&self, peer: &TerminalId, service: &ServiceName) -> Result<(), Refusal> {
        if !self.exposed.contains(service) {
            return Err(Refusal::new(RefusalCode::ServiceNotExposed, service.as_str()));
        }
        match self.allowed.get(service) {
            Some(Allowed::Everybody) => Ok(()),
            Some(Allowed::Terminals(list)) if list.contains(peer) => Ok(()),
            _ => Err(Refusal::new(RefusalCode::CallerNotAllowed, service.as_str())),
        }
    }
}
