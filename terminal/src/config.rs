//! What a user can set: flags, the TOML file, and what `enroll` left in the data directory.
