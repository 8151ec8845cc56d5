//! NATs of every kind, relays and the ways between them in virtual time, around the cores of terminals that ship (D1).
//!
//! A run is a function of its seed. [`kind`] has the kinds of NAT and what each pair of them can have, the same table
//! that the laboratory of real namespaces is held against; [`Gateway`] is one NAT; [`World`] runs it all. What a
//! terminal's driver and socket do around [`tasuki_terminal::core::paths`] is written once more here, as is what relays do
//! for paths; the choice of addresses is the one that ships ([`tasuki_terminal::core::candidates`]).

mod check;
mod drain;
mod gateway;
pub mod kind;
mod mesh;
mod net;
mod terminal;
mod world;

pub use self::gateway::{Gateway, Habits};
pub use self::net::Line;
pub use self::world::World;
