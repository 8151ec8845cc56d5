//! A mesh in virtual time.
