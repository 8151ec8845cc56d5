//! Calls and sessions: labels installed hop by hop, ends, refusals (architecture 7, C7 to C10).
