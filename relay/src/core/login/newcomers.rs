//! Who is connected and not logged in: not for long, and few connections of each terminal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tasuki_proto::{TerminalId, limits};

use super::ConnId;

/// Connections that are not logged in.
#[derive(Debug, Default)]
pub(super) struct Newcomers {
    /// Later connections have higher numbers, so the first is the first to be late.
    late_by_conn: BTreeMap<ConnId, Instant>,
    conns_by_terminal: BTreeMap<TerminalId, BTreeSet<ConnId>>,
}

impl Newcomers {
    /// Adds one; the one that makes room for it, where [`limits::LOGINS_PER_TERMINAL`] are there.
    pub(super) fn add(
        &mut self,
        conn: ConnId,
        terminal: &TerminalId,
        now: Instant,
    ) -> Option<ConnId> {
        self.late_by_conn.insert(conn, now + limits::LOGIN_TIMEOUT);
        let conns = self.conns_by_terminal.entry(terminal.clone()).or_default();
        conns.insert(conn);
        conns.first().copied().filter(|_| conns.len() > limits::LOGINS_PER_TERMINAL)
    }

    /// It is logged in, or about to be closed.
    pub(super) fn remove(&mut self, conn: ConnId, terminal: &TerminalId) {
        if self.late_by_conn.remove(&conn).is_none() {
            return;
        }
        if let Some(conns) = self.conns_by_terminal.get_mut(terminal) {
            conns.remove(&conn);
            if conns.is_empty() {
                self.conns_by_terminal.remove(terminal);
            }
        }
    }

    /// The one that took too long, or will at this time.
    pub(super) fn first(&self) -> Option<(ConnId, Instant)> {
        self.late_by_conn.first_key_value().map(|(&conn, &late)| (conn, late))
    }
}
