//! Durable state: accounts, tokens, revocations, versions, finished sessions (issue: SQLite, one writer).
