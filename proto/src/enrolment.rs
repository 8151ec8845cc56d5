//! Newcomers, and renewal of certificates (architecture 3).
