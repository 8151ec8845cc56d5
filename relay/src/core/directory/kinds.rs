//! The types of terminals, each kept once, with how many terminals have it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tasuki_proto::limits;

#[derive(Debug, Default)]
pub(super) struct Kinds {
    terminals_by_kind: BTreeMap<Arc<str>, u64>,
}

impl Kinds {
    /// One more terminal of this type. What is longer than a type can be is no type.
    pub(super) fn take(&mut self, kind: &str) -> Arc<str> {
        let kind = if kind.len() <= limits::ATTRIBUTE_BYTES { kind } else { "" };
        let shared = match self.terminals_by_kind.get_key_value(kind) {
            Some((shared, _)) => shared.clone(),
            None => Arc::from(kind),
        };
        *self.terminals_by_kind.entry(shared.clone()).or_default() += 1;
        shared
    }

    /// One less.
    pub(super) fn give_back(&mut self, kind: &str) {
        if let Some(terminals) = self.terminals_by_kind.get_mut(kind) {
            *terminals -= 1;
            if *terminals == 0 {
                self.terminals_by_kind.remove(kind);
            }
        }
    }

    /// Whether a terminal has this type.
    pub(super) fn contains(&self, kind: &str) -> bool {
        self.terminals_by_kind.contains_key(kind)
    }

    /// Every type and how many terminals have it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.terminals_by_kind.iter().map(|(kind, terminals)| (kind.as_ref(), *terminals))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_goes_with_its_last_terminal() {
        let mut kinds = Kinds::default();
        let (one, other) = (kinds.take("camera"), kinds.take("camera"));
        assert!(Arc::ptr_eq(&one, &other), "kept once");
        kinds.take(&"x".repeat(limits::ATTRIBUTE_BYTES + 1));
        assert_eq!(kinds.iter().collect::<Vec<_>>(), [("", 1), ("camera", 2)]);
        kinds.give_back("camera");
        kinds.give_back("");
        assert!(kinds.contains("camera") && !kinds.contains(""));
        kinds.give_back("camera");
        kinds.give_back("printer");
        assert_eq!(kinds.iter().count(), 0);
    }
}
