//! Names with several addresses, slow look-ups, and renewal over them.
