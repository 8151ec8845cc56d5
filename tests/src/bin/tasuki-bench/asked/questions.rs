//! Questions to the status endpoint, so many a second.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Named;
use crate::http::Client;
use crate::rounds::percentile;

/// Connections that ask, each its share.
const CLIENTS: u32 = 4;

/// Who asks, and how much.
#[derive(Debug, Clone, Copy)]
pub(super) struct Questions {
    pub(super) api: SocketAddr,
    /// Requests a second.
    pub(super) rate: u32,
    /// Terminals in the table.
    pub(super) terminals: usize,
    pub(super) seed: u64,
}

impl Questions {
    /// Asks until it is over; how many answers came, and how long they took.
    pub(super) fn ask(self, over: &AtomicBool) -> Result<Named> {
        let (mut answers, mut per_s) = (Vec::new(), 0.0);
        std::thread::scope(|scope| -> Result<()> {
            let clients: Vec<_> =
                (0..CLIENTS).map(|n| scope.spawn(move || self.ask_one(n, over))).collect();
            for client in clients {
                let (times, elapsed) = client.join().map_err(|_| anyhow!("a client"))??;
                per_s += times.len() as f64 / elapsed.as_secs_f64();
                answers.extend(times);
            }
            Ok(())
        })?;
        answers.sort_by(f64::total_cmp);
        Ok(vec![
            ("requests_per_s", per_s),
            ("answer_p50_ms", percentile(&answers, 0.5)),
            ("answer_p99_ms", percentile(&answers, 0.99)),
        ])
    }

    /// One connection's share; how long each answer took, ms, and how long it asked.
    fn ask_one(self, client: u32, over: &AtomicBool) -> Result<(Vec<f64>, Duration)> {
        let rate = f64::from(self.rate) / f64::from(CLIENTS);
        let mut rng = StdRng::seed_from_u64(self.seed ^ u64::from(client));
        let mut client = Client::connect(self.api)?;
        let (begun, mut times) = (Instant::now(), Vec::new());
        while !over.load(Ordering::Relaxed) {
            let due = Duration::from_secs_f64(times.len() as f64 / rate);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            let number = rng.random_range(0..self.terminals);
            let path = match times.len() % 2 {
                0 => format!("/api/v1/terminals?limit=100&after=bench{number}"),
                _ => format!("/api/v1/terminals?limit=100&q={:04}", number % 10_000),
            };
            let sent = Instant::now();
            client.get(&path)?;
            times.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        Ok((times, begun.elapsed()))
    }
}
