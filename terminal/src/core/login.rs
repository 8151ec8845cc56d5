//! Which relay to attach to, when to try again (architecture 6).
