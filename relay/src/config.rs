//! What an operator can set: flags, the TOML file, and what `init` or `join` left in the data directory.
