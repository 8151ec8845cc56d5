//! Doors open to strangers: enrolment, the status endpoint, packets that nobody asked for.
