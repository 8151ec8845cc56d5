//! The ledger: finished sessions, kept for a time and up to a number.

use rusqlite::{Row, params};
use tasuki_proto::{RefusalCode, RelayId, RelayName, ServiceName, SessionId, TerminalId, limits};

use super::{Rows, Store, StoreError};

/// What went through this relay, by direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes from caller to callee.
    pub bytes_to_callee: u64,
    /// Packets from caller to callee.
    pub packets_to_callee: u64,
    /// Bytes from callee to caller.
    pub bytes_to_caller: u64,
    /// Packets from callee to caller.
    pub packets_to_caller: u64,
}

/// A session that was refused, or accepted and ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedSession {
    /// Its id.
    pub id: SessionId,
    /// Who called.
    pub caller: TerminalId,
    /// Whom.
    pub callee: TerminalId,
    /// What for.
    pub service: ServiceName,
    /// When it was called, ms since 1970.
    pub started_ms: u64,
    /// When it was over, ms since 1970.
    pub ended_ms: u64,
    /// How it ended.
    pub code: RefusalCode,
    /// The relays on its way, from the caller's to the callee's.
    pub route: Vec<RelayName>,
    /// What it moved.
    pub counters: Counters,
}

fn id_bytes(id: SessionId) -> [u8; 16] {
    ((u128::from(id.edge.0) << 64) | u128::from(id.nonce)).to_be_bytes()
}

fn id_of(bytes: [u8; 16]) -> SessionId {
    let number = u128::from_be_bytes(bytes);
    SessionId { edge: RelayId((number >> 64) as u64), nonce: number as u64 }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsound<T, E>(result: Result<T, E>) -> Result<T, StoreError> {
    result.map_err(|_| StoreError::Unsound("sessions"))
}

fn session(row: &Row<'_>) -> Result<FinishedSession, StoreError> {
    let text = |column| row.get::<_, String>(column);
    let count = |column| row.get::<_, i64>(column).map(|n| u64::try_from(n).unwrap_or(0));
    let route = text(7)?;
    Ok(FinishedSession {
        id: id_of(row.get(0)?),
        caller: unsound(TerminalId::new(&text(1)?))?,
        callee: unsound(TerminalId::new(&text(2)?))?,
        service: unsound(ServiceName::new(&text(3)?))?,
        started_ms: count(4)?,
        ended_ms: count(5)?,
        code: RefusalCode::from_value(row.get(6)?),
        route: route
            .split(',')
            .filter(|name| !name.is_empty())
            .map(|name| unsound(RelayName::new(name)))
            .collect::<Result<_, _>>()?,
        counters: Counters {
            bytes_to_callee: count(8)?,
            packets_to_callee: count(9)?,
            bytes_to_caller: count(10)?,
            packets_to_caller: count(11)?,
        },
    })
}

impl Rows<'_> {
    fn put_session(&self, session: &FinishedSession) -> Result<(), StoreError> {
        let route: Vec<&str> = session.route.iter().map(RelayName::as_str).collect();
        self.connection
            .prepare_cached(
                "INSERT INTO sessions
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
                 ON CONFLICT (id) DO UPDATE SET
                   ended_ms = excluded.ended_ms, code = excluded.code, route = excluded.route,
                   bytes_to_callee = excluded.bytes_to_callee + iif(ended_ms <= excluded.started_ms, bytes_to_callee, 0),
                   packets_to_callee = excluded.packets_to_callee + iif(ended_ms <= excluded.started_ms, packets_to_callee, 0),
                   bytes_to_caller = excluded.bytes_to_caller + iif(ended_ms <= excluded.started_ms, bytes_to_caller, 0),
                   packets_to_caller = excluded.packets_to_caller + iif(ended_ms <= excluded.started_ms, packets_to_caller, 0)",
            )?
            .execute(params![
                id_bytes(session.id),
                session.caller.as_str(),
                session.callee.as_str(),
                session.service.as_str(),
                number(session.started_ms),
                number(session.ended_ms),
                session.code.value(),
                route.join(","),
                number(session.counters.bytes_to_callee),
                number(session.counters.packets_to_callee),
                number(session.counters.bytes_to_caller),
                number(session.counters.packets_to_caller),
            ])?;
        Ok(())
    }
}

impl Store {
    /// Writes sessions into the ledger. One that left this relay and came back is one entry, whose counters add up;
    /// one that is reported again stays as it is.
    ///
    /// # Errors
    /// The store's.
    pub async fn put_sessions(&self, sessions: Vec<FinishedSession>) -> Result<(), StoreError> {
        self.run(move |rows| sessions.iter().try_for_each(|s| rows.put_session(s))).await
    }

    /// A session, where the ledger has it.
    ///
    /// # Errors
    /// The store's.
    pub async fn session(&self, id: SessionId) -> Result<Option<FinishedSession>, StoreError> {
        self.run(move |rows| {
            let mut query =
                rows.connection.prepare_cached("SELECT * FROM sessions WHERE id = ?1")?;
            let mut found = query.query([id_bytes(id)])?;
            found.next()?.map(session).transpose()
        })
        .await
    }

    /// At most `limit` sessions behind `after`, in the order of ids.
    ///
    /// # Errors
    /// The store's.
    pub async fn sessions(
        &self,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<FinishedSession>, StoreError> {
        self.run(move |rows| {
            let after = after.map_or_else(Vec::new, |id| id_bytes(id).to_vec());
            let mut query = rows
                .connection
                .prepare_cached("SELECT * FROM sessions WHERE id > ?1 ORDER BY id LIMIT ?2")?;
            let mut found = query.query(params![after, number(limit as u64)])?;
            let mut page = Vec::new();
            while let Some(row) = found.next()? {
                page.push(session(row)?);
            }
            Ok(page)
        })
        .await
    }

    /// Removes what is older than [`limits::LEDGER_AGE`] at `now_ms`, and the oldest beyond
    /// [`limits::LEDGER_SESSIONS`]; gives how many. About once a minute is enough.
    ///
    /// # Errors
    /// The store's.
    pub async fn prune_sessions(&self, now_ms: u64) -> Result<usize, StoreError> {
        self.prune_sessions_to(now_ms, limits::LEDGER_SESSIONS).await
    }

    pub(super) async fn prune_sessions_to(
        &self,
        now_ms: u64,
        keep: u64,
    ) -> Result<usize, StoreError> {
        let age = u64::try_from(limits::LEDGER_AGE.as_millis()).unwrap_or(u64::MAX);
        self.run(move |rows| {
            let old = rows.connection.execute(
                "DELETE FROM sessions WHERE ended_ms < ?1",
                [number(now_ms.saturating_sub(age))],
            )?;
            let many = rows.connection.execute(
                "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions
                 ORDER BY ended_ms DESC, id LIMIT -1 OFFSET ?1)",
                [number(keep)],
            )?;
            Ok(old + many)
        })
        .await
    }
}
