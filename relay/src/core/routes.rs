//! Shortest paths over live links (architecture 5).
