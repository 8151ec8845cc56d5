//! Attacks on the shipped programs by members of the mesh that an enemy runs, and by strangers: none may succeed, and the
//! honest mesh beside them loses nothing. `docs/security.md` names these tests.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

mod doors;
mod floods;
mod logins;
mod paths;
mod relays;
mod sessions;
