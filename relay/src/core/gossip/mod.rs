//! The table's replication: accept rule, cursors, eager and lazy links (architecture 4, C5, C6).
