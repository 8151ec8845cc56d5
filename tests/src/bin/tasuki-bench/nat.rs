//! Every ordered pair of kinds of NAT: which path a call takes, what was expected, and how soon it was direct
//! (D1, D2). A call has `--secs`, or as long as the interfaces say, to become direct.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tasuki_tests::lab::netns::nat::{NatKind, Outcome};
use tasuki_tests::lab::pairs::{Pairs, Went};
use tasuki_tests::lab::paths::DIRECT_WITHIN;

use crate::Options;
use crate::procs::caught;
use crate::report::Report;
use crate::rounds::percentile;

/// All pairs are called within this time, or the measurement has failed.
const ALL: Duration = Duration::from_secs(540);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// Kinds of NAT; all when none is named.
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    kinds: Vec<NatKind>,
}

fn kind(name: &str) -> Result<NatKind> {
    let Some(kind) = NatKind::ALL.into_iter().find(|kind| kind.name() == name) else {
        bail!("one of {}", NatKind::ALL.map(NatKind::name).join(", "));
    };
    Ok(kind)
}

/// One call.
#[derive(Debug)]
struct Call {
    from: NatKind,
    to: NatKind,
    went: Result<Went, String>,
}

impl Call {
    fn is_as_expected(&self) -> bool {
        match (&self.went, self.from.expected(self.to)) {
            // Openers win every race.
            (Ok(Went::Direct(_)), Outcome::Direct | Outcome::Race)
            | (Ok(Went::Relayed), Outcome::Relayed) => true,
            (Ok(_) | Err(_), _) => false,
        }
    }

    /// What stands in the table; with what was expected where that is something else.
    fn cell(&self) -> String {
        let went = match &self.went {
            Ok(Went::Direct(took)) => format!("{:.1} s", took.as_secs_f64()),
            Ok(Went::Relayed) => "relayed".to_owned(),
            Err(_) => "failed".to_owned(),
        };
        match self.from.expected(self.to) {
            _ if !self.is_as_expected() => format!("{went} (!)"),
            Outcome::Race => format!("{went} (race)"),
            Outcome::Direct | Outcome::Relayed => went,
        }
    }
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let limit = options.secs.map_or(DIRECT_WITHIN, Duration::from_secs);
    let mut kinds = flags.kinds.clone();
    if kinds.is_empty() {
        kinds.extend(NatKind::ALL);
    }
    let pairs = Pairs::start("the matrix of NATs", &kinds).context("needs root, ip and nft")?;
    let begun = Instant::now();
    let mut calls = Vec::new();
    for &from in &kinds {
        for &to in &kinds {
            let went = if begun.elapsed() < ALL {
                let called = caught(|| Ok(pairs.call(from, to, limit)));
                called.unwrap_or_else(|error| Err(format!("{error:#}")))
            } else {
                Err(format!("not called within {ALL:?}"))
            };
            let call = Call { from, to, went };
            if !call.is_as_expected() {
                let (expected, went) = (from.expected(to), &call.went);
                eprintln!(
                    "FAILED: {} calls {}: {went:?}, not {expected:?}",
                    from.name(),
                    to.name()
                );
            }
            calls.push(call);
        }
        eprintln!("{} has called", from.name());
    }
    for line in table(&kinds, &calls) {
        println!("{line}");
    }
    Ok(report(&calls))
}

/// Callers down, callees across.
fn table(kinds: &[NatKind], calls: &[Call]) -> Vec<String> {
    let head = std::iter::once("caller \\ callee".to_owned());
    let head = head.chain(kinds.iter().map(|kind| kind.name().to_owned()));
    let rows = calls.chunks(kinds.len()).zip(kinds).map(|(row, kind)| {
        let name = std::iter::once(kind.name().to_owned());
        name.chain(row.iter().map(Call::cell)).collect::<Vec<_>>()
    });
    let rows: Vec<Vec<String>> = std::iter::once(head.collect()).chain(rows).collect();
    let width = rows.iter().flatten().map(|cell| cell.chars().count()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().map(|cell| format!("{cell:<width$}")).collect();
        cells.join(" | ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn report(calls: &[Call]) -> Report {
    let mut times: Vec<f64> = calls
        .iter()
        .filter_map(|call| match call.went {
            Ok(Went::Direct(took)) => Some(took.as_secs_f64() * 1000.0),
            Ok(Went::Relayed) | Err(_) => None,
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let count =
        |test: &dyn Fn(&Call) -> bool| calls.iter().filter(|call| test(call)).count() as f64;
    let race = |call: &Call| call.from.expected(call.to) == Outcome::Race;
    let direct = |call: &Call| matches!(call.went, Ok(Went::Direct(_)));
    let mut report = Report::default()
        .with("pairs", calls.len() as f64)
        .with("direct", times.len() as f64)
        .with("relayed", count(&|call| call.went == Ok(Went::Relayed)))
        .with("failed", count(&|call| call.went.is_err()))
        .with("races", count(&race))
        .with("races_direct", count(&|call| race(call) && direct(call)));
    if let Some(max) = times.last() {
        report = report
            .with("direct_p50_ms", percentile(&times, 0.5))
            .with("direct_p99_ms", percentile(&times, 0.99))
            .with("direct_max_ms", *max);
    }
    let wrong: Vec<String> = calls
        .iter()
        .filter(|call| !call.is_as_expected())
        .map(|call| format!("{}:{}", call.from.name(), call.to.name()))
        .collect();
    let report = report.with("unexpected", wrong.len() as f64);
    if wrong.is_empty() {
        report
    } else {
        report.failed(format!("other than expected: {}", wrong.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_what_was_not_expected() {
        let kinds = [NatKind::Public, NatKind::Symmetric];
        let call = |from, to, went| Call { from, to, went };
        let direct = Ok(Went::Direct(Duration::from_millis(240)));
        let calls = [
            call(kinds[0], kinds[0], direct.clone()),
            call(kinds[0], kinds[1], Ok(Went::Relayed)),
            call(kinds[1], kinds[0], Err("no session".to_owned())),
            call(kinds[1], kinds[1], Ok(Went::Relayed)),
        ];
        let lines = table(&kinds, &calls);
        let cells = |line: &str| -> Vec<String> {
            line.split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        assert_eq!(cells(&lines[0])[1..], ["public", "symmetric"]);
        assert_eq!(cells(&lines[1]), ["public", "0.2 s", "relayed (!)"]);
        assert_eq!(cells(&lines[2]), ["symmetric", "failed (!)", "relayed"]);
        let failure = report(&calls).failure().map(str::to_owned);
        assert_eq!(
            failure.as_deref(),
            Some("other than expected: public:symmetric symmetric:public")
        );
        assert_eq!(report(&[call(kinds[0], kinds[0], direct)]).failure(), None);
        let race = call(NatKind::Masquerade, NatKind::Masquerade, Ok(Went::Relayed));
        assert!(!race.is_as_expected() && race.cell() == "relayed (!)");
    }
}
