//! What this terminal exposes, and to whom: closed by default.

use std::collections::{BTreeMap, BTreeSet};

use tasuki_proto::session::{INBOX, PING};
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
///
/// Two services are the agent's own and need no exposing: `inbox` is there as soon as a rule opens it; `ping` is
/// open to every terminal of the mesh unless a rule narrows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessRules {
    /// Exposed services.
    pub exposed: BTreeSet<ServiceName>,
    /// Who may use them.
    pub allowed: BTreeMap<ServiceName, Allowed>,
}

impl AccessRules {
    /// Whether `peer` may use `service`. Asked for each call and again for each stream.
    ///
    /// # Errors
    /// `service-not-exposed` or `caller-not-allowed`.
    pub fn check(&self, peer: &TerminalId, service: &ServiceName) -> Result<(), Refusal> {
        let rule = self.allowed.get(service);
        let exposed = match service.as_str() {
            PING => return Self::check_rule(rule.unwrap_or(&Allowed::Everybody), peer, service),
            INBOX => rule.is_some(),
            _ => self.exposed.contains(service),
        };
        match rule {
            _ if !exposed => Err(Refusal::new(RefusalCode::ServiceNotExposed, service.as_str())),
            Some(rule) => Self::check_rule(rule, peer, service),
            None => Err(Refusal::new(RefusalCode::CallerNotAllowed, service.as_str())),
        }
    }

    fn check_rule(rule: &Allowed, peer: &TerminalId, service: &ServiceName) -> Result<(), Refusal> {
        match rule {
            Allowed::Everybody => Ok(()),
            Allowed::Terminals(list) if list.contains(peer) => Ok(()),
            Allowed::Terminals(_) => {
                Err(Refusal::new(RefusalCode::CallerNotAllowed, service.as_str()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terminal(name: &str) -> TerminalId {
        TerminalId::new(name).unwrap()
    }

    fn service(name: &str) -> ServiceName {
        ServiceName::new(name).unwrap()
    }

    fn verdict(rules: &AccessRules, peer: &str, name: &str) -> Option<RefusalCode> {
        rules.check(&terminal(peer), &service(name)).err().map(|refusal| refusal.code)
    }

    #[test]
    fn nothing_but_ping_is_open_by_default() {
        let rules = AccessRules::default();
        assert_eq!(verdict(&rules, "a", "ssh"), Some(RefusalCode::ServiceNotExposed));
        assert_eq!(verdict(&rules, "a", "inbox"), Some(RefusalCode::ServiceNotExposed));
        assert_eq!(verdict(&rules, "a", "ping"), None);
    }

    #[test]
    fn a_service_needs_exposing_and_a_rule() {
        let only_a = Allowed::Terminals([terminal("a")].into());
        let mut rules =
            AccessRules { exposed: [service("ssh"), service("http")].into(), ..Default::default() };
        assert_eq!(verdict(&rules, "a", "ssh"), Some(RefusalCode::CallerNotAllowed));
        rules.allowed.insert(service("ssh"), only_a.clone());
        rules.allowed.insert(service("http"), Allowed::Everybody);
        rules.allowed.insert(service("vnc"), Allowed::Everybody);
        rules.allowed.insert(service("inbox"), only_a.clone());
        rules.allowed.insert(service("ping"), only_a);
        assert_eq!(verdict(&rules, "a", "ssh"), None);
        assert_eq!(verdict(&rules, "b", "ssh"), Some(RefusalCode::CallerNotAllowed));
        assert_eq!(verdict(&rules, "b", "http"), None);
        assert_eq!(verdict(&rules, "b", "vnc"), Some(RefusalCode::ServiceNotExposed));
        assert_eq!(verdict(&rules, "a", "inbox"), None);
        assert_eq!(verdict(&rules, "b", "inbox"), Some(RefusalCode::CallerNotAllowed));
        assert_eq!(verdict(&rules, "b", "ping"), Some(RefusalCode::CallerNotAllowed));
    }
}
