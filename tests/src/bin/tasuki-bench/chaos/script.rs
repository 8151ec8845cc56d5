//! What is done to whom, as the seed decides.

use std::fmt;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::Names;

/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Strike {
    /// kill -9.
    Kill,
    /// SIGSTOP.
    Hang,
    /// SIGTERM: a relay drains and ends, an agent logs out and ends.
    Terminate,
    /// A relay drains until it has ended.
    DrainAndEnd,
    /// A relay drains and is told to stay after all.
    DrainAndStay,
    /// A relay hears nothing of half of the nodes.
    Partition,
}

impl Strike {
    /// Its name in the log and among the figures.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Strike::Kill => "kill",
            Strike::Hang => "hang",
            Strike::Terminate => "terminate",
            Strike::DrainAndEnd => "drain_and_end",
            Strike::DrainAndStay => "drain_and_stay",
            Strike::Partition => "partition",
        }
    }

    /// Whether an agent that this happens to lives on, with its sessions.
    pub(super) const fn leaves_alive(self) -> bool {
        matches!(self, Strike::Hang)
    }
}

/// Something that happens to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blow {
    /// Whom it hits.
    pub(super) node: String,
    /// What it is.
    pub(super) strike: Strike,
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.strike.name(), self.node)
    }
}

/// Up to two blows at once, at different nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Round {
    /// What happens, in this order.
    pub(super) blows: Vec<Blow>,
    /// Until it is mended.
    pub(super) lasts: Duration,
    /// From when all is mended to the next round.
    pub(super) calm: Duration,
}

/// The next round of a script.
pub(super) fn next(rng: &mut StdRng, names: &Names, partitions: bool) -> Round {
    let mut blows: Vec<Blow> = Vec::new();
    for _ in 0..rng.random_range(1..=2) {
        let blow = blow(rng, names, partitions);
        if blows.iter().all(|other| other.node != blow.node) {
            blows.push(blow);
        }
    }
    Round {
        blows,
        lasts: Duration::from_millis(rng.random_range(200..5_000)),
        calm: Duration::from_millis(rng.random_range(500..3_000)),
    }
}

fn blow(rng: &mut StdRng, names: &Names, partitions: bool) -> Blow {
    let (nodes, strikes) = if rng.random_bool(0.7) {
        const RELAY: [Strike; 6] = [
            Strike::Kill,
            Strike::Hang,
            Strike::Terminate,
            Strike::DrainAndEnd,
            Strike::DrainAndStay,
            Strike::Partition,
        ];
        (&names.relays, if partitions { &RELAY[..] } else { &RELAY[..5] })
    } else {
        (&names.terminals, &[Strike::Kill, Strike::Hang, Strike::Terminate][..])
    };
    let node = nodes[rng.random_range(0..nodes.len())].clone();
    Blow { node, strike: strikes[rng.random_range(0..strikes.len())] }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_seed_is_a_script_and_everything_happens() {
        let names = Names::new(5, 20);
        let script = |seed, partitions| -> Vec<Round> {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..200).map(|_| next(&mut rng, &names, partitions)).collect()
        };
        assert_eq!(script(1, false), script(1, false));
        assert_ne!(script(1, false), script(2, false));
        let kinds = |partitions| -> BTreeSet<Strike> {
            script(3, partitions).iter().flat_map(|r| &r.blows).map(|b| b.strike).collect()
        };
        assert_eq!((kinds(false).len(), kinds(true).len()), (5, 6));
        for round in script(4, true) {
            let nodes: BTreeSet<&str> = round.blows.iter().map(|b| b.node.as_str()).collect();
            assert!(!nodes.is_empty() && nodes.len() == round.blows.len());
            let relay = |strike| !matches!(strike, Strike::Kill | Strike::Hang | Strike::Terminate);
            assert!(round.blows.iter().all(|b| !relay(b.strike) || b.node.starts_with('r')));
        }
    }
}
