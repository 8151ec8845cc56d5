//! Enrolment, renewal and revocation: served where the registrar role is, passed on elsewhere.
