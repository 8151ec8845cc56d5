//! Log-in: attachments, epochs, supersede, log-out (architecture 6; C1 to C3, C5, C11).
//!
//! A connection is `Connected` after its handshake, `Greeted` after Hello and Welcome, `LoggedIn` after Login.
//! Only the last writes a row, and only that may last: who does not log in within [`limits::LOGIN_TIMEOUT`] is cut.
//! Which attachment of a terminal is current is decided by the terminal's log-in
//! epoch, never by comparing relays: a log-in with a lower epoch than the highest known is refused with
//! `superseded`, a higher one takes the place of what is attached here at once, and a higher one seen elsewhere
//! in the table cuts what is attached here.
//!
//! An epoch names the set of attachments that stand together. A terminal that loses one of two logs in again on the
//! other, on the same connection, with the next epoch: that voids the row of the lost one everywhere, and where its
//! relay still takes it for alive, cuts it. Sessions outlive what the same process replaces: it goes on elsewhere
//! (`route-lost`); what another process replaces ends (`superseded`).
//!
//! The terminal signs each log-in ([`tasuki_proto::attest`]). The signature is checked against the key of its account,
//! which must be the key that it proved, and stands in its row: whoever is told that another process took over gets that
//! one's words and need not believe this relay.

mod newcomers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tasuki_proto::attest::{Attestation, Presence};
use tasuki_proto::control::{
    Hello, LoggedIn, Login as LoginMessage, Refused, Seen, ToTerminal, Welcome,
};
use tasuki_proto::identity::{KeyFingerprint, PublicKey};
use tasuki_proto::rows::AttachmentRow;
use tasuki_proto::{
    Label, LoginEpoch, MeshId, Refusal, RefusalCode, RelayId, RelayName, TerminalId, limits,
    version,
};

use super::ConnId;
use super::bucket::Bucket;
use super::wiring::rounded;
use newcomers::Newcomers;

/// A change of the number of sessions between other values than 0 and 1, and of the address, is written at most this often.
const COUNT_PERIOD: Duration = Duration::from_secs(1);

/// What the table says of a terminal that wants to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    /// The key in its account; `None` while the account is not in the table, or its token not used.
    pub key: Option<PublicKey>,
    /// The highest log-in among its rows whose signatures hold.
    pub highest: Option<Attestation>,
}

/// What happens to attachments.
#[derive(Debug)]
pub enum Input {
    /// A terminal proved its identity.
    Connected {
        /// Its connection.
        conn: ConnId,
        /// Who it is.
        terminal: TerminalId,
        /// With which key.
        key: KeyFingerprint,
        /// From where, canonical.
        address: SocketAddr,
        /// The handle of challenges to it.
        handle: Label,
    },
    /// Its first message.
    Hello(ConnId, Hello, Known),
    /// Its second; later, that its epoch or role changes.
    Login(ConnId, LoginMessage, Known),
    /// It logs out.
    Logout(ConnId),
    /// Its connection is gone.
    Closed(ConnId),
    /// It proved to be at another address.
    Moved(ConnId, SocketAddr),
    /// It is in this many sessions over this relay.
    Communicating(ConnId, u32),
    /// The table holds a row of it at another relay, and its signature holds.
    Elsewhere(TerminalId, Attestation),
    /// Its key was revoked.
    Revoked(KeyFingerprint),
    /// An operator cuts it.
    Kick(TerminalId),
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Say it.
    Send(ConnId, ToTerminal),
    /// Cut the connection, after what was said has gone out.
    Close(ConnId, RefusalCode),
    /// The terminal is logged in: it may call, be called and list.
    Attached(ConnId, TerminalId),
    /// It was logged in and is not any more. Its sessions hear the code: with `route-lost` its process goes on over
    /// another attachment.
    Detached(ConnId, TerminalId, RefusalCode),
    /// Write its row.
    Write(TerminalId, AttachmentRow),
    /// Its row is gone.
    Remove(TerminalId),
}

#[derive(Debug)]
struct Attachment {
    terminal: TerminalId,
    key: KeyFingerprint,
    address: SocketAddr,
    handle: Label,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Connected,
    Greeted {
        instance: u64,
    },
    /// `changes`: of its epoch or role that it may still make; `tells`: first and last sessions told at once.
    LoggedIn {
        row: AttachmentRow,
        written: u32,
        write_after: Instant,
        changes: Bucket,
        tells: Bucket,
    },
}

/// Refusals since the start.
#[derive(Debug, Default)]
struct Refusals {
    full: u64,
    late: u64,
    crowded: u64,
    unproven: u64,
}

/// The terminals connected to this relay.
#[derive(Debug)]
pub struct Login {
    own: RelayId,
    mesh: MeshId,
    name: RelayName,
    most: usize,
    draining: bool,
    /// Another process with this relay's identity is linked in its place.
    given_way: bool,
    attachments: BTreeMap<ConnId, Attachment>,
    newcomers: Newcomers,
    refusals: Refusals,
    /// At most one logged-in connection a terminal.
    conns: BTreeMap<TerminalId, ConnId>,
    /// Counts that wait to be written.
    due: BTreeSet<(Instant, ConnId)>,
    outputs: VecDeque<Output>,
}

impl Login {
    /// Nobody is connected; at most `most` terminals may be logged in.
    pub fn new(own: RelayId, mesh: MeshId, name: RelayName, most: usize) -> Self {
        Self {
            own,
            mesh,
            name,
            most,
            draining: false,
            given_way: false,
            attachments: BTreeMap::new(),
            newcomers: Newcomers::default(),
            refusals: Refusals::default(),
            conns: BTreeMap::new(),
            due: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes what happened. `wall_ms` is for people: ms since 1970.
    pub fn handle(&mut self, input: Input, now: Instant, wall_ms: u64) {
        match input {
            Input::Connected { conn, terminal, key, address, handle } => {
                let crowd = self.newcomers.add(conn, &terminal, now);
                let phase = Phase::Connected;
                self.attachments.insert(conn, Attachment { terminal, key, address, handle, phase });
                if let Some(oldest) = crowd {
                    self.refusals.crowded += 1;
                    self.cut(oldest, RefusalCode::Overloaded, RefusalCode::Overloaded);
                }
            }
            Input::Hello(conn, hello, known) => self.handle_hello(conn, &hello, known),
            Input::Login(conn, login, known) => {
                self.handle_login(conn, &login, known, now, wall_ms)
            }
            Input::Logout(conn) => {
                self.detach(conn, RefusalCode::LoggedOut);
                self.outputs.push_back(Output::Close(conn, RefusalCode::LoggedOut));
            }
            Input::Closed(conn) => {
                self.detach(conn, RefusalCode::PeerLost);
                if let Some(gone) = self.attachments.remove(&conn) {
                    self.newcomers.remove(conn, &gone.terminal);
                }
            }
            Input::Moved(conn, address) => self.handle_moved(conn, address, now),
            Input::Communicating(conn, sessions) => self.handle_count(conn, sessions, now),
            Input::Elsewhere(terminal, there) => self.handle_elsewhere(&terminal, there),
            Input::Revoked(key) => {
                let hit: Vec<ConnId> = self
                    .attachments
                    .iter()
                    .filter(|(_, a)| a.key == key)
                    .map(|(c, _)| *c)
                    .collect();
                for conn in hit {
                    self.cut(conn, RefusalCode::Revoked, RefusalCode::Revoked);
                }
            }
            Input::Kick(terminal) => {
                if let Some(&conn) = self.conns.get(&terminal) {
                    self.cut(conn, RefusalCode::Kicked, RefusalCode::Kicked);
                }
            }
        }
    }

    /// Writes counts that waited, and cuts who did not log in.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((conn, late)) = self.newcomers.first()
            && late <= now
        {
            self.refusals.late += 1;
            self.cut(conn, RefusalCode::Silent, RefusalCode::Silent);
        }
        while let Some(&(due, conn)) = self.due.first()
            && due <= now
        {
            self.due.remove(&(due, conn));
            // The row was written meanwhile: it waits its time again.
            if let Some(Phase::LoggedIn { write_after, .. }) =
                self.attachments.get(&conn).map(|attachment| &attachment.phase)
                && *write_after > now
            {
                self.due.insert((*write_after, conn));
                continue;
            }
            if self.tell_move(conn, now) {
                continue;
            }
            let Some(attachment) = self.attachments.get_mut(&conn) else { continue };
            if let Phase::LoggedIn { row, written, write_after, .. } = &mut attachment.phase
                && row.sessions != *written
            {
                *written = row.sessions;
                *write_after = now + COUNT_PERIOD;
                let output = Output::Write(attachment.terminal.clone(), row.clone());
                self.outputs.push_back(output);
            }
        }
    }

    /// When [`Login::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.due.first().map(|&(due, _)| due);
        due.into_iter().chain(self.newcomers.first().map(|(_, late)| late)).min()
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// How many terminals may be logged in from here on; those that are stay.
    pub fn set_most(&mut self, most: usize) {
        self.most = most;
    }

    /// Takes no new terminals, or takes them again.
    pub fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// Another process with this relay's identity is linked in its place, or is not any more: nobody could reach who is
    /// attached here, so all are sent elsewhere.
    pub fn set_given_way(&mut self, given_way: bool) {
        let begins = given_way && !self.given_way;
        self.given_way = given_way;
        if begins {
            for conn in self.logged_in().collect::<Vec<_>>() {
                self.cut(conn, RefusalCode::Draining, RefusalCode::RouteLost);
            }
        }
    }

    /// Whether new terminals are refused.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Refusals since the start, by the reason under which operators see them.
    pub fn refused(&self) -> [(&'static str, u64); 4] {
        let Refusals { full, late, crowded, unproven } = self.refusals;
        [
            ("terminals-full", full),
            ("login-too-long", late),
            ("logins-of-terminal", crowded),
            ("login-unproven", unproven),
        ]
    }

    /// How many terminals are logged in here.
    pub fn len(&self) -> usize {
        self.conns.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    /// The connection of a terminal that is logged in here.
    pub fn conn_of(&self, terminal: &TerminalId) -> Option<ConnId> {
        self.conns.get(terminal).copied()
    }

    /// The terminal that is logged in on `conn`, and its address as seen here.
    pub fn terminal_of(&self, conn: ConnId) -> Option<(&TerminalId, SocketAddr)> {
        let attachment = self.attachments.get(&conn)?;
        matches!(attachment.phase, Phase::LoggedIn { .. })
            .then_some((&attachment.terminal, attachment.address))
    }

    /// Who is connected on `conn`, logged in or not.
    pub fn connected(&self, conn: ConnId) -> Option<&TerminalId> {
        self.attachments.get(&conn).map(|attachment| &attachment.terminal)
    }

    /// The connections of all terminals that are logged in here.
    pub fn logged_in(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.conns.values().copied()
    }

    fn handle_hello(&mut self, conn: ConnId, hello: &Hello, known: Known) {
        let Some(attachment) = self.attachments.get_mut(&conn) else { return };
        if !matches!(attachment.phase, Phase::Connected) {
            self.refuse(conn, RefusalCode::ProtocolError.into(), 0);
            return;
        }
        if hello.protocol < version::PROTOCOL_MIN {
            let detail = format!(
                "{} speaks protocol {}, at least {} is needed",
                hello.software.chars().take(40).collect::<String>(),
                hello.protocol,
                version::PROTOCOL_MIN
            );
            self.refuse(conn, Refusal::new(RefusalCode::ProtocolTooOld, detail), 0);
        } else if self.draining || self.given_way {
            self.refuse(conn, RefusalCode::Draining.into(), 0);
        } else if self.conns.len() >= self.most {
            self.refusals.full += 1;
            self.refuse(conn, RefusalCode::Overloaded.into(), 5_000);
        } else if known.key.is_none_or(|key| key.fingerprint() != attachment.key) {
            // The certificate is valid and not revoked, so the account exists with this key: its row has not arrived here.
            self.refuse(conn, RefusalCode::NotYetKnown.into(), 200);
        } else {
            attachment.phase = Phase::Greeted { instance: hello.instance };
            let welcome = Welcome {
                protocol: hello.protocol.min(version::PROTOCOL),
                software: version::SOFTWARE.to_owned(),
                relay: self.own,
                name: self.name.clone(),
                highest: known.highest,
                address: attachment.address,
                handle: attachment.handle,
                terminals: rounded(self.conns.len()),
            };
            self.outputs.push_back(Output::Send(conn, ToTerminal::Welcome(welcome)));
        }
    }

    fn handle_login(
        &mut self,
        conn: ConnId,
        login: &LoginMessage,
        known: Known,
        now: Instant,
        wall_ms: u64,
    ) {
        let Some(attachment) = self.attachments.get(&conn) else { return };
        let (instance, own) = match &attachment.phase {
            Phase::Connected => {
                self.refuse(conn, RefusalCode::ProtocolError.into(), 0);
                return;
            }
            Phase::Greeted { instance } => (*instance, LoginEpoch::default()),
            Phase::LoggedIn { row, .. } => (row.instance, row.epoch),
        };
        let presence = Presence { relay: self.own, epoch: login.epoch, instance, role: login.role };
        let attestation = Attestation { presence, signature: login.signature };
        // A terminal cannot jump far ahead, else it could never be superseded.
        let epoch = known.highest.map(|highest| highest.presence.epoch).unwrap_or_default();
        if login.epoch.0 > epoch.0.max(own.0).saturating_add(limits::EPOCH_JUMP) {
            self.cut(conn, RefusalCode::ProtocolError, RefusalCode::ProtocolError);
            return;
        }
        let is_signed = known.key.is_some_and(|key| {
            let terminal = attachment.terminal.as_str().as_bytes();
            key.fingerprint() == attachment.key
                && attestation.is_signed_by(&self.mesh, terminal, &key)
        });
        if !is_signed {
            self.refusals.unproven += 1;
            self.detach(conn, RefusalCode::PeerNotProven);
            self.refuse(conn, Refusal::new(RefusalCode::PeerNotProven, "the log-in"), 0);
            return;
        }
        if let Some(highest) = known.highest
            && (login.epoch < epoch
                || (login.epoch == epoch && highest.presence.instance != instance))
        {
            self.supersede(conn, highest);
            return;
        }
        if let Phase::LoggedIn { row, .. } = &attachment.phase {
            if login.epoch < own {
                let own = row.attestation(self.own);
                self.supersede(conn, own);
            } else {
                self.change_role(conn, login, now);
            }
            return;
        }
        let (terminal, address) = (attachment.terminal.clone(), attachment.address);
        // A new log-in never waits for the old one.
        if let Some(&old) = self.conns.get(&terminal) {
            self.supersede(old, attestation);
        }
        let row = AttachmentRow {
            role: login.role,
            epoch: login.epoch,
            instance,
            address,
            since_ms: wall_ms,
            sessions: 0,
            signature: login.signature,
        };
        if let Some(attachment) = self.attachments.get_mut(&conn) {
            let changes = Bucket::full(limits::ROLE_CHANGES_AT_ONCE, now);
            let row = row.clone();
            let tells = Bucket::full(limits::COUNTS_AT_ONCE, now);
            attachment.phase =
                Phase::LoggedIn { row, written: 0, write_after: now, changes, tells };
        }
        self.newcomers.remove(conn, &terminal);
        self.conns.insert(terminal.clone(), conn);
        self.outputs.push_back(Output::Write(terminal.clone(), row));
        self.outputs.push_back(Output::Send(conn, ToTerminal::LoggedIn(LoggedIn {})));
        self.outputs.push_back(Output::Attached(conn, terminal));
    }

    /// A terminal that is logged in says its epoch and role anew.
    fn change_role(&mut self, conn: ConnId, login: &LoginMessage, now: Instant) {
        let Some(attachment) = self.attachments.get_mut(&conn) else { return };
        let Phase::LoggedIn { row, written, changes, .. } = &mut attachment.phase else { return };
        let (rate, burst) = (limits::ROLE_CHANGES_PER_SECOND, limits::ROLE_CHANGES_AT_ONCE);
        if !changes.take(rate, burst, now) {
            self.cut(conn, RefusalCode::ProtocolError, RefusalCode::ProtocolError);
            return;
        }
        if (row.epoch, row.role) != (login.epoch, login.role) {
            (row.epoch, row.role, row.signature) = (login.epoch, login.role, login.signature);
            *written = row.sessions;
            let output = Output::Write(attachment.terminal.clone(), row.clone());
            self.outputs.push_back(output);
        }
        self.outputs.push_back(Output::Send(conn, ToTerminal::LoggedIn(LoggedIn {})));
    }

    /// A move is told at once, unless the terminal moves more often than [`COUNT_PERIOD`]: then the last one is told when
    /// that is over, so that one terminal cannot make all relays of the mesh busy with its row.
    fn handle_moved(&mut self, conn: ConnId, address: SocketAddr, now: Instant) {
        let Some(attachment) = self.attachments.get_mut(&conn) else { return };
        attachment.address = address;
        let Phase::LoggedIn { row, write_after, .. } = &attachment.phase else { return };
        if row.address == address {
            return;
        }
        if *write_after <= now {
            self.tell_move(conn, now);
        } else {
            self.due.insert((*write_after, conn));
        }
    }

    /// Writes the row with the address that the terminal is at; whether it was at another one.
    fn tell_move(&mut self, conn: ConnId, now: Instant) -> bool {
        let Some(attachment) = self.attachments.get_mut(&conn) else { return false };
        let address = attachment.address;
        let Phase::LoggedIn { row, written, write_after, .. } = &mut attachment.phase else {
            return false;
        };
        if row.address == address {
            return false;
        }
        row.address = address;
        *written = row.sessions;
        *write_after = now + COUNT_PERIOD;
        let output = Output::Write(attachment.terminal.clone(), row.clone());
        self.outputs.push_back(output);
        // Its peers are to try this one.
        self.outputs.push_back(Output::Send(conn, ToTerminal::Seen(Seen { address })));
        true
    }

    fn handle_count(&mut self, conn: ConnId, sessions: u32, now: Instant) {
        let Some(attachment) = self.attachments.get_mut(&conn) else { return };
        let Phase::LoggedIn { row, written, write_after, tells, .. } = &mut attachment.phase else {
            return;
        };
        row.sessions = sessions;
        let begins_or_ends = (sessions == 0) != (*written == 0);
        if sessions == *written {
            return;
        }
        let at_once =
            begins_or_ends && tells.take(limits::COUNTS_PER_SECOND, limits::COUNTS_AT_ONCE, now);
        if at_once || *write_after <= now {
            *written = sessions;
            *write_after = now + COUNT_PERIOD;
            let output = Output::Write(attachment.terminal.clone(), row.clone());
            self.outputs.push_back(output);
        } else {
            self.due.insert((*write_after, conn));
        }
    }

    fn handle_elsewhere(&mut self, terminal: &TerminalId, there: Attestation) {
        let Some(&conn) = self.conns.get(terminal) else { return };
        let Some(Phase::LoggedIn { row, .. }) = self.attachments.get(&conn).map(|a| &a.phase)
        else {
            return;
        };
        // Equal epochs of two processes: the larger instance wins, at every relay alike.
        let said = (there.presence.epoch, there.presence.instance);
        if said > (row.epoch, row.instance) {
            self.supersede(conn, there);
        }
    }

    fn refuse(&mut self, conn: ConnId, refusal: Refusal, retry_after_ms: u32) {
        self.say_refused(conn, Refused { refusal, retry_after_ms, by: None });
    }

    fn say_refused(&mut self, conn: ConnId, refused: Refused) {
        let code = refused.refusal.code;
        if let Some(attachment) = self.attachments.get(&conn) {
            self.newcomers.remove(conn, &attachment.terminal);
        }
        self.outputs.push_back(Output::Send(conn, ToTerminal::Refused(refused)));
        self.outputs.push_back(Output::Close(conn, code));
    }

    /// Cuts a connection for a newer log-in, and shows that log-in to it.
    fn supersede(&mut self, conn: ConnId, by: Attestation) {
        let same = self.attachments.get(&conn).is_some_and(|attachment| match &attachment.phase {
            Phase::LoggedIn { row, .. } => row.instance == by.presence.instance,
            _ => false,
        });
        self.detach(conn, if same { RefusalCode::RouteLost } else { RefusalCode::Superseded });
        let refusal = RefusalCode::Superseded.into();
        self.say_refused(conn, Refused { refusal, retry_after_ms: 0, by: Some(by) });
    }

    /// Cuts a connection with `code`; what it carried hears `sessions`.
    fn cut(&mut self, conn: ConnId, code: RefusalCode, sessions: RefusalCode) {
        self.detach(conn, sessions);
        self.refuse(conn, code.into(), 0);
    }

    /// Takes a logged-in terminal out of the table; its connection may still be open.
    fn detach(&mut self, conn: ConnId, code: RefusalCode) {
        let Some(attachment) = self.attachments.get_mut(&conn) else { return };
        if !matches!(attachment.phase, Phase::LoggedIn { .. }) {
            return;
        }
        attachment.phase = Phase::Connected;
        let terminal = attachment.terminal.clone();
        if self.conns.get(&terminal) == Some(&conn) {
            self.conns.remove(&terminal);
        }
        self.outputs.push_back(Output::Detached(conn, terminal.clone(), code));
        self.outputs.push_back(Output::Remove(terminal));
    }
}

#[cfg(test)]
mod tests;
