//! `ping`: round trips with another terminal, end to end.

use std::io::Write;

use clap::Args;
use tasuki_proto::TerminalId;
use tasuki_proto::text::escape;

use super::VerbContext;
use crate::io::ipc::{PingNews, PingResult, Request};

/// Arguments of `ping`.
#[derive(Debug, Args)]
pub struct PingArgs {
    /// The terminal
    target: TerminalId,
    /// How many
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
}

/// Prints each round trip and a summary. Fails when nothing came back.
pub(crate) fn run(
    context: &VerbContext,
    args: PingArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let request = Request::Ping { target: args.target.clone(), count: args.count };
    let mut broken = Ok(());
    let result = context.client()?.ask(&request, |news: PingNews| {
        if context.json || broken.is_err() {
            return;
        }
        broken = match news.rtt_us {
            Some(rtt_us) => writeln!(
                out,
                "{}: {} in {:.3} ms, {}",
                args.target,
                news.sequence,
                rtt_us as f64 / 1000.0,
                escape(&news.path)
            ),
            None => writeln!(out, "{}: {} lost", args.target, news.sequence),
        };
    })?;
    broken?;
    let summary: PingResult = serde_json::from_value(result.clone())?;
    if context.json {
        super::table::json(out, &result)?;
    } else {
        let ms = |us: u64| us as f64 / 1000.0;
        let PingResult { sent, received, rtt_us, .. } = &summary;
        let path = escape(&summary.path);
        writeln!(
            out,
            "{received} of {sent} came back, {path}; ms: min {:.3}, p50 {:.3}, p99 {:.3}, max {:.3}",
            ms(rtt_us.min),
            ms(rtt_us.p50),
            ms(rtt_us.p99),
            ms(rtt_us.max)
        )?;
    }
    if summary.received == 0 {
        anyhow::bail!("no-answer: nothing came back from {}", args.target);
    }
    Ok(())
}
