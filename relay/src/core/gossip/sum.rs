//! A digest of a set of rows that follows each row that comes or goes.
//!
//! This is LtHash with 1,024 lanes of 16 bits over BLAKE3 (Bellare and Micciancio 1997; Lewi, Kim, Maykov and Weis
//! 2019, "Securing Update Propagation with Homomorphic Hashing", which puts these parameters at more than 200 bits of
//! security): each row is expanded to 2,048 bytes, and the sum of all of them, lane by lane, stands for the set. Two
//! different sets with one sum are as hard to find as a short vector in a lattice, also for the origin that writes the
//! rows.

/// Lanes of a sum.
const LANES: usize = 1024;
/// The domain of rows, so that no other use of the hash gives the same bytes.
const CONTEXT: &str = "tasuki row v1";

/// The sum of a set of rows.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Sum(Box<[u16; LANES]>);

impl Sum {
    /// The sum of no rows.
    pub(super) fn new() -> Sum {
        Sum(Box::new([0; LANES]))
    }

    /// Adds a row; about 2 µs.
    pub(super) fn add(&mut self, row: &[u8]) {
        for (lane, value) in self.0.iter_mut().zip(lanes(row)) {
            *lane = lane.wrapping_add(value);
        }
    }

    /// Takes a row out that was added.
    pub(super) fn remove(&mut self, row: &[u8]) {
        for (lane, value) in self.0.iter_mut().zip(lanes(row)) {
            *lane = lane.wrapping_sub(value);
        }
    }

    /// The digest of the set: BLAKE3 of all lanes, little endian.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut bytes = [0; LANES * 2];
        for (place, lane) in bytes.chunks_exact_mut(2).zip(self.0.iter()) {
            place.copy_from_slice(&lane.to_le_bytes());
        }
        *blake3::hash(&bytes).as_bytes()
    }
}

impl std::fmt::Debug for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sum({:02x?})", &self.digest()[..4])
    }
}

fn lanes(row: &[u8]) -> [u16; LANES] {
    let mut bytes = [0; LANES * 2];
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(row).finalize_xof().fill(&mut bytes);
    let mut lanes = [0; LANES];
    for (lane, pair) in lanes.iter_mut().zip(bytes.chunks_exact(2)) {
        *lane = u16::from_le_bytes([pair[0], pair[1]]);
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_digest_is_the_same_in_every_version() {
        let mut sum = Sum::new();
        for row in [&b"one"[..], b"two"] {
            sum.add(row);
        }
        let digest = data_encoding::HEXLOWER.encode(&sum.digest());
        assert_eq!(digest, "652a31374d28678100a0128a5e77955444b42cc2a1d16524a1634ffd848754bc");
    }

    proptest! {
        #[test]
        fn only_the_set_counts(rows in prop::collection::hash_set(prop::collection::vec(any::<u8>(), 0..40), 1..20),
                               extra in prop::collection::vec(any::<u8>(), 0..40)) {
            let rows: Vec<_> = rows.into_iter().filter(|row| *row != extra).collect();
            let mut forwards = Sum::new();
            rows.iter().for_each(|row| forwards.add(row));
            let mut backwards = Sum::new();
            backwards.add(&extra);
            rows.iter().rev().for_each(|row| backwards.add(row));
            prop_assert_ne!(forwards.digest(), backwards.digest());
            backwards.remove(&extra);
            prop_assert_eq!(forwards.digest(), backwards.digest());
            if let Some(first) = rows.first() {
                backwards.remove(first);
                prop_assert_ne!(forwards.digest(), backwards.digest());
                // The same row twice is another set.
                backwards.add(first);
                backwards.add(first);
                prop_assert_ne!(forwards.digest(), backwards.digest());
            }
        }
    }
}
