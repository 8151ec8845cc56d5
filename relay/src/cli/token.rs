//! `token`: makes a one-time token.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tasuki_proto::TerminalId;

use super::{Global, local};

/// Whom the token is for.
#[derive(Debug, Subcommand)]
pub(super) enum TokenVerb {
    /// For a relay; it chooses its name when it joins
    #[command(after_help = "Example: tasuki-relay token relay")]
    Relay(TokenArgs),
    /// For a terminal; registers it
    #[command(
        after_help = "Example: tasuki-relay token terminal plant7 --type plc --attr site=osaka --group plants"
    )]
    Terminal(TerminalArgs),
}

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// How long it can be used: a number and s, m, h or d
    #[arg(long, default_value = "24h", value_parser = duration)]
    ttl: Duration,
}

#[derive(Debug, Args)]
pub(super) struct TerminalArgs {
    /// The terminal's id: the name others call it by, a DNS label
    name: TerminalId,
    /// What it is: user, printer, camera, plc, ...
    #[arg(long = "type", value_name = "TYPE", default_value = "user")]
    kind: String,
    /// An attribute; may be repeated
    #[arg(long = "attr", value_name = "KEY=VALUE", value_parser = attribute)]
    attributes: Vec<(String, String)>,
    /// A group it belongs to; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    #[command(flatten)]
    token: TokenArgs,
}

pub(super) fn duration(word: &str) -> Result<Duration, String> {
    let bad = || format!("'{word}' is not a number and s, m, h or d, for example 24h");
    let (number, unit) = word.split_at(word.len() - word.chars().last().map_or(0, char::len_utf8));
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(unit).filter(|secs| *secs > 0).map(Duration::from_secs).ok_or_else(bad)
}

fn attribute(word: &str) -> Result<(String, String), String> {
    match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("'{word}' is not KEY=VALUE")),
    }
}

pub(super) async fn token(global: &Global, verb: TokenVerb) -> anyhow::Result<()> {
    let order = match verb {
        TokenVerb::Relay(args) => json!({ "ttl_s": args.ttl.as_secs() }),
        TokenVerb::Terminal(args) => json!({
            "terminal": args.name,
            "type": args.kind,
            "attributes": args.attributes.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            "groups": args.groups,
            "ttl_s": args.token.ttl.as_secs(),
        }),
    };
    let socket = local::socket(global);
    let (status, body) = local::call(&socket, "POST", "/local/v1/tokens", Some(order)).await?;
    let token = match (status, body["token"].as_str()) {
        (200, Some(token)) => token,
        _ => return Err(refused(status, &body)),
    };
    if global.json {
        println!("{}", json!({ "token": token }));
    } else {
        println!("{token}");
    }
    Ok(())
}

fn refused(status: u16, body: &Value) -> anyhow::Error {
    match (body["code"].as_str(), body["detail"].as_str()) {
        (Some(code), Some(detail)) => anyhow::anyhow!("{code}: {detail}"),
        _ => anyhow::anyhow!("the relay answered with status {status}: see its log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "h", "24", "1.5h", "-1h", "0s", "18446744073709551615d", "1\u{20ac}"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
