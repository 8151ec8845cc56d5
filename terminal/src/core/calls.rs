//! Calls as the terminal sees them, glare included (D3, D4): a pure table of states.
