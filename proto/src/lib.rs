//! What Tasuki's relays and terminals say to each other.
//!
//! Start with [`id`] (the names of things), [`frame`] (the data plane) and the three families of messages:
//! [`control`] (terminal and relay), [`mesh`] (relay and relay), [`session`] (terminal and terminal).
//! [`record`] is the unit of the connection-info table; [`rows`] is what its payloads hold.

pub mod advice;
pub mod attest;
pub mod codec;
pub mod control;
pub mod dial;
pub mod enrolment;
pub mod frame;
pub mod gossip;
pub mod id;
pub mod identity;
pub mod limits;
pub mod log;
pub mod mesh;
pub mod net;
pub mod path;
pub mod record;
pub mod refusal;
pub mod rows;
pub mod session;
pub mod text;
pub mod traces;
pub mod version;
pub mod view;

pub use id::{
    Generation, Incarnation, Label, LoginEpoch, MeshId, MeshName, NameError, RelayId, RelayName,
    ServiceName, SessionId, TerminalId,
};
pub use refusal::{Refusal, RefusalCode};
