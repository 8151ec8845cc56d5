//! Shapes of meshes: pairs of relays that have a link, each pair once, the smaller index first.

use std::collections::BTreeSet;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// A shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// 0 - 1 - 2 - ...
    Line,
    /// A line whose ends meet.
    Ring,
    /// Every relay with relay 0.
    Star,
    /// Every relay with every other.
    Full,
    /// Every relay with so many others, chosen at random (some may have one more).
    Regular(usize),
    /// A random tree, and so many further links.
    Tree(usize),
}

impl Topology {
    /// The links of a connected mesh of `relays` relays.
    pub fn links(self, relays: usize, rng: &mut StdRng) -> Vec<(usize, usize)> {
        let pairs: BTreeSet<(usize, usize)> = match self {
            Topology::Line => (1..relays).map(|i| (i - 1, i)).collect(),
            Topology::Ring => (0..relays).map(|i| ordered(i, (i + 1) % relays)).collect(),
            Topology::Star => (1..relays).map(|i| (0, i)).collect(),
            Topology::Full => (0..relays).flat_map(|i| (0..i).map(move |j| (j, i))).collect(),
            Topology::Regular(degree) => regular(relays, degree, rng),
            Topology::Tree(shortcuts) => tree(relays, shortcuts, rng),
        };
        pairs.into_iter().filter(|(a, b)| a != b).collect()
    }
}

fn ordered(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

/// A union of random rings: connected, every relay with about `degree` others.
fn regular(relays: usize, degree: usize, rng: &mut StdRng) -> BTreeSet<(usize, usize)> {
    let mut pairs = BTreeSet::new();
    let mut order: Vec<usize> = (0..relays).collect();
    for _ in 0..degree.div_ceil(2) {
        order.shuffle(rng);
        for i in 0..relays {
            pairs.insert(ordered(order[i], order[(i + 1) % relays]));
        }
    }
    pairs
}

fn tree(relays: usize, shortcuts: usize, rng: &mut StdRng) -> BTreeSet<(usize, usize)> {
    let mut pairs: BTreeSet<_> = (1..relays).map(|i| (rng.random_range(0..i), i)).collect();
    for _ in 0..shortcuts {
        pairs.insert(ordered(rng.random_range(0..relays), rng.random_range(0..relays)));
    }
    pairs
}
