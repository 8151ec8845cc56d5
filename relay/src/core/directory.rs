//! The table as calls and lists need it: who is where, in which state (C4, C7, C12).
