//! Which relays this one dials, and which connection of two stays (architecture 5).
