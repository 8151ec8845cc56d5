//! The table as it is shown: to terminals that list it (C12), over the status endpoint, in the console.
//!
//! Nothing here depends on the relay that shows it, so equal tables give equal bytes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{RelayName, TerminalId};
use crate::rows::AttachmentRole;

/// The state of a terminal (C4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TerminalState {
    /// Registered, no attachment.
    LoggedOut,
    /// Attached, no session.
    LoggedIn,
    /// Attached, at least one session.
    InCommunication,
    /// Its relays cannot be reached.
    Unreachable,
}

/// One attachment of a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentView {
    /// To which relay.
    pub relay: RelayName,
    /// Primary or standby.
    pub role: AttachmentRole,
    /// Since when, ms since 1970 by the relay's clock.
    pub since: u64,
    /// The terminal's address as the relay sees it.
    pub address: SocketAddr,
}

/// One terminal of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalView {
    /// Its user id.
    pub id: TerminalId,
    /// user, printer, camera, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Attributes.
    pub attributes: BTreeMap<String, String>,
    /// What it does.
    pub state: TerminalState,
    /// Sessions in communication.
    pub sessions: u32,
    /// Its current attachments, ordered by relay name.
    pub attachments: Vec<AttachmentView>,
    /// When the row last changed, ms since 1970 by the clock of the relay that changed it.
    pub updated_at: u64,
}

/// Which terminals a list asks for. All given conditions must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TerminalFilter {
    /// In this state.
    pub state: Option<TerminalState>,
    /// Of this type.
    pub kind: Option<String>,
    /// Whose id contains this text.
    pub text: Option<String>,
}
