//! A mesh in virtual time: the gossip and directory cores of many relays, joined by simulated links.
//!
//! Nothing here reads a clock: a run is a function of its seed, which a failing test prints. [`topology`] gives
//! shapes, [`link`] says how a link treats messages, [`Mesh`] runs them.

pub mod link;
mod mesh;
mod node;
mod observe;
pub mod topology;

pub use self::link::LinkModel;
pub use self::mesh::{Mesh, MeshModel};
pub use self::observe::Observed;
