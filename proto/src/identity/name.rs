//! Roles and names, and how they stand in a certificate: `NAME.ROLE.MESH.tasuki`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{MeshName, RelayName, TerminalId};

/// The last label of every identity.
const SUFFIX: &str = "tasuki";

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A public node that passes packets on.
    Relay,
    /// A machine that runs the agent.
    Terminal,
}

impl Role {
    /// The role as it stands in certificates and messages for people.
    pub const fn word(self) -> &'static str {
        match self {
            Role::Relay => "relay",
            Role::Terminal => "terminal",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A node by role and name: who a certificate says it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeName {
    /// A relay.
    Relay(RelayName),
    /// A terminal.
    Terminal(TerminalId),
}

impl NodeName {
    /// What it is.
    pub const fn role(&self) -> Role {
        match self {
            NodeName::Relay(_) => Role::Relay,
            NodeName::Terminal(_) => Role::Terminal,
        }
    }

    /// The name alone.
    pub fn as_str(&self) -> &str {
        match self {
            NodeName::Relay(name) => name.as_str(),
            NodeName::Terminal(id) => id.as_str(),
        }
    }

    /// The identity in `mesh` as a DNS name: what the certificate holds and what a client asks for.
    pub fn dns_name(&self, mesh: &MeshName) -> String {
        format!("{}.{}.{mesh}.{SUFFIX}", self.as_str(), self.role())
    }

    /// Reads an identity; `None` when `dns_name` is not one.
    pub fn from_dns_name(dns_name: &str) -> Option<(NodeName, MeshName)> {
        let mut labels = dns_name.split('.');
        let (name, role, mesh, suffix) =
            (labels.next()?, labels.next()?, labels.next()?, labels.next()?);
        if labels.next().is_some() || suffix != SUFFIX {
            return None;
        }
        let node = match role {
            "relay" => NodeName::Relay(RelayName::new(name).ok()?),
            "terminal" => NodeName::Terminal(TerminalId::new(name).ok()?),
            _ => return None,
        };
        Some((node, MeshName::new(mesh).ok()?))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role(), self.as_str())
    }
}

impl From<RelayName> for NodeName {
    fn from(name: RelayName) -> Self {
        NodeName::Relay(name)
    }
}

impl From<TerminalId> for NodeName {
    fn from(id: TerminalId) -> Self {
        NodeName::Terminal(id)
    }
}

/// The DNS subtree that holds every identity of `mesh`; issuers are constrained to it.
pub(super) fn subtree(mesh: &MeshName) -> String {
    format!("{mesh}.{SUFFIX}")
}
