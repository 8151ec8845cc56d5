//! Round trips of 64 bytes over one TCP connection through each side (P4, P3); with `--load`, while one bulk stream
//! runs beside them, and with UDP forwarding and `ping` measured then too.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Options;
use crate::bench::{Bench, Flags as Common};
use crate::bulk::RATE;
use crate::report::Report;
use crate::rounds::{Figures, percentile};
use crate::side::{Side, connect, echo};
use crate::site::{Site, iperf};

/// Datagrams a second, and how long the last may still take.
const DATAGRAMS_PER_SECOND: u32 = 500;
const DATAGRAM_WAIT: Duration = Duration::from_secs(1);
const DATAGRAM_BYTES: usize = 64;
/// Seconds that the bulk stream runs before and behind what is measured beside it.
const MARGIN: u64 = 1;

#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    common: Common,
    /// With one bulk stream beside it, through the same tunnel.
    #[arg(long)]
    load: bool,
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let time = Duration::from_secs(options.secs.unwrap_or(5));
    let mut bench = Bench::start(&flags.common, flags.load)?;
    let (mut figures, mut rounds) = (Figures::default(), 0);
    for round in flags.common.rounds.iter() {
        bench.round(round, |site, side| {
            if flags.load {
                return under_load(site, side, time, &mut |name, value| {
                    figures.put(round, &side.name, name, value);
                });
            }
            let times = echoes(site, side, time)?;
            let (p50, p99) = (us(&times, 0.5), us(&times, 0.99));
            figures.put(round, &side.name, "p50_us", p50);
            figures.put(round, &side.name, "p99_us", p99);
            eprintln!("round {round} {:<18} p50 {p50:.0} us, p99 {p99:.0} us", side.name);
            Ok(())
        });
        if flags.load {
            pings(&bench, round, time, &mut figures)?;
        }
        rounds = round + 1;
    }
    let ours = bench.ours();
    let mut report = figures.report(bench.finish(rounds)?);
    report = figures.report_ratios(report, &ours, "p50_us", "p50");
    report = figures.report_ratios(report, &ours, "p99_us", "p99");
    Ok(report)
}

/// Times of echoes, one after the other over one connection; ns, sorted.
fn echoes(site: &Site, side: &Side, time: Duration) -> Result<Vec<u64>> {
    let mut stream = site.at_caller(|| connect(side.echo)).context("no connection")?;
    let mut times = Vec::with_capacity(200_000);
    // The first finds cold caches and a session that may have been idle.
    for _ in 0..100 {
        echo(&mut stream)?;
    }
    let begun = Instant::now();
    while begun.elapsed() < time {
        let sent = Instant::now();
        echo(&mut stream).with_context(|| format!("echo {}", times.len()))?;
        times.push(sent.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    Ok(times)
}

fn us(sorted: &[u64], share: f64) -> f64 {
    percentile(sorted, share) as f64 / 1000.0
}

/// Echoes and datagrams while iperf3 fills the tunnel.
fn under_load(
    site: &Site,
    side: &Side,
    time: Duration,
    put: &mut dyn FnMut(&str, f64),
) -> Result<()> {
    let moved = |seconds| iperf(site, side.bulk, seconds);
    let (rate, times, flow) = std::thread::scope(|scope| -> Result<_> {
        let total = time.as_secs() * (1 + u64::from(side.udp.is_some())) + 2 * MARGIN;
        let bulk = scope.spawn(move || moved(total));
        std::thread::sleep(Duration::from_secs(MARGIN));
        let times = echoes(site, side, time);
        let flow = side.udp.map(|address| datagrams(site, address, time)).transpose();
        let moved = bulk.join().map_err(|_| anyhow::anyhow!("iperf3 failed"))??;
        Ok((moved.bits_per_second / 1e9, times?, flow?))
    })?;
    let (p50, p99) = (us(&times, 0.5), us(&times, 0.99));
    put(RATE, rate);
    put("p50_us", p50);
    put("p99_us", p99);
    eprint!("{:<18} {rate:.2} Gbit/s beside it; p50 {p50:.0} us, p99 {p99:.0} us", side.name);
    if let Some(flow) = flow {
        put("udp_loss_percent", flow.loss_percent);
        put("udp_p50_us", us(&flow.times, 0.5));
        put("udp_p99_us", us(&flow.times, 0.99));
        eprint!(
            "; UDP loss {:.2} %, p50 {:.0} us, p99 {:.0} us",
            flow.loss_percent,
            us(&flow.times, 0.5),
            us(&flow.times, 0.99)
        );
    }
    eprintln!();
    Ok(())
}

/// What became of datagrams.
struct Flow {
    loss_percent: f64,
    /// ns, sorted.
    times: Vec<u64>,
}

/// Numbered datagrams at an even pace to an echo; each carries when it was sent.
fn datagrams(site: &Site, address: SocketAddr, time: Duration) -> Result<Flow> {
    let socket = site.at_caller(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))?;
    socket.connect(address)?;
    let receiving = socket.try_clone()?;
    receiving.set_read_timeout(Some(DATAGRAM_WAIT))?;
    let begun = Instant::now();
    let sent = (time.as_secs_f64() * f64::from(DATAGRAMS_PER_SECOND)) as u32;
    let gap = Duration::from_secs(1) / DATAGRAMS_PER_SECOND;
    let receiver = std::thread::spawn(move || {
        let (mut times, mut buffer) = (Vec::new(), [0; 2048]);
        while times.len() < sent as usize && begun.elapsed() < time + 2 * DATAGRAM_WAIT {
            let Ok(count) = receiving.recv(&mut buffer) else {
                // Nothing for a while: at the end that is the end; before, the next may still come.
                if begun.elapsed() > time + DATAGRAM_WAIT {
                    break;
                }
                continue;
            };
            let Some(stamp) = buffer[..count].first_chunk::<8>() else { continue };
            let stamp = u64::from_be_bytes(*stamp);
            times.push((begun.elapsed().as_nanos() as u64).saturating_sub(stamp));
        }
        times.sort_unstable();
        times
    });
    for number in 0..sent {
        let due = begun + gap * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut datagram = [0; DATAGRAM_BYTES];
        datagram[..8].copy_from_slice(&(begun.elapsed().as_nanos() as u64).to_be_bytes());
        // A full socket loses it, and that counts.
        let _ = socket.send(&datagram);
    }
    let times = receiver.join().map_err(|_| anyhow::anyhow!("the receiver failed"))?;
    let lost = f64::from(sent) - times.len() as f64;
    Ok(Flow { loss_percent: 100.0 * lost / f64::from(sent.max(1)), times })
}

/// `tasuki-agent ping` on each of our sides while iperf3 fills the tunnel.
fn pings(bench: &Bench, round: usize, time: Duration, figures: &mut Figures) -> Result<()> {
    for side in &bench.ours.sides {
        let Some((caller, callee)) = &side.terminals else { continue };
        // ping sends one a second, or as fast as answers come: bounded either way.
        let count = time.as_secs().clamp(2, 20).to_string();
        let result = std::thread::scope(|scope| -> Result<Value> {
            let bulk = scope.spawn(|| iperf(&bench.site, side.bulk, time.as_secs() + 2 * MARGIN));
            std::thread::sleep(Duration::from_secs(MARGIN));
            let terminal = bench.ours.mesh.terminal(caller);
            let done = terminal.verb_within(
                &["ping", callee, "-c", &count, "--json"],
                3 * time + DATAGRAM_WAIT * 30,
            );
            bulk.join().map_err(|_| anyhow::anyhow!("iperf3 failed"))??;
            serde_json::from_slice(&done.stdout).with_context(|| format!("ping: {}", done.stderr))
        })?;
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let (sent, received) = (number(&result["sent"]), number(&result["received"]));
        let loss = 100.0 * (sent - received) / sent.max(1.0);
        let p50 = number(&result["rtt_us"]["p50"]);
        figures.put(round, &side.name, "ping_loss_percent", loss);
        figures.put(round, &side.name, "ping_p50_us", p50);
        figures.put(round, &side.name, "ping_max_us", number(&result["rtt_us"]["max"]));
        eprintln!("{:<18} ping under load: {received} of {sent}, p50 {p50:.0} us", side.name);
    }
    Ok(())
}
