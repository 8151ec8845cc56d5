//! `forward`: a local port that leads to another terminal's service, until Ctrl-C.

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use clap::Args;
use tasuki_proto::text::escape;
use tokio::signal::unix::{SignalKind, signal};

use super::{Place, VerbContext};
use crate::io::ipc::client::Client;
use crate::io::ipc::{ForwardNews, Request};

/// Arguments of `forward`.
#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// The local port: [tcp:|udp:]HOST:PORT
    #[arg(value_name = "[tcp:|udp:]LISTEN")]
    listen: Listen,
    /// Whose service, and which
    #[arg(value_name = "TARGET/SERVICE")]
    place: Place,
}

/// A local port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listen {
    udp: bool,
    address: SocketAddr,
}

impl FromStr for Listen {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let (udp, rest) = match (word.strip_prefix("udp:"), word.strip_prefix("tcp:")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => (false, word),
        };
        let address = rest.to_socket_addrs().ok().and_then(|mut all| all.next());
        let address = address.ok_or_else(|| format!("'{rest}' is not HOST:PORT"))?;
        Ok(Self { udp, address })
    }
}

/// Runs until Ctrl-C or SIGTERM, or until it cannot go on.
pub(crate) fn run(
    context: &VerbContext,
    args: &ForwardArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let request = Request::Forward {
        udp: args.listen.udp,
        listen: args.listen.address,
        target: args.place.target.clone(),
        service: args.place.service.clone(),
    };
    let mut client = context.client()?;
    client.send(&request)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (news, mut told) = tokio::sync::mpsc::channel(16);
    // The thread ends with the process: it waits for the daemon's next word.
    std::thread::spawn(move || follow(client, &news));
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                word = told.recv() => match word {
                    Some(Ok(news)) => tell(out, &args.place, &news)?,
                    Some(Err(error)) => return Err(error),
                    None => return Ok(()),
                }
            }
        }
    });
    runtime.shutdown_background();
    result
}

fn follow(mut client: Client, news: &tokio::sync::mpsc::Sender<anyhow::Result<ForwardNews>>) {
    loop {
        let word = match client.hear() {
            Ok(crate::io::ipc::client::Reply::Event(event)) => {
                serde_json::from_value(event).map_err(anyhow::Error::from)
            }
            Ok(_) => return,
            Err(error) => Err(error.into()),
        };
        let last = word.is_err();
        if news.blocking_send(word).is_err() || last {
            return;
        }
    }
}

/// The port goes to stdout, for scripts that let the system choose it; the rest is for people.
fn tell(out: &mut dyn Write, place: &Place, news: &ForwardNews) -> anyhow::Result<()> {
    let to = format!("{}/{}", place.target, place.service);
    match news {
        ForwardNews::Listening { address } => {
            writeln!(out, "listening on {address} for {to}")?;
            out.flush()?;
        }
        ForwardNews::Connected {} => eprintln!("connected to {to}"),
        ForwardNews::Waiting { why, retry_ms } => {
            eprintln!(
                "no session with {to}, next try in {:.1} s: {}",
                *retry_ms as f64 / 1000.0,
                escape(why)
            );
        }
        ForwardNews::Refused { why } => eprintln!("connection refused: {}", escape(why)),
        ForwardNews::Limit { why } => eprintln!("limit reached: {}", escape(why)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ports() {
        let tcp: Listen = "127.0.0.1:2222".parse().unwrap();
        assert_eq!((tcp.udp, tcp.address), (false, "127.0.0.1:2222".parse().unwrap()));
        assert_eq!("tcp:127.0.0.1:2222".parse(), Ok(tcp));
        assert!("udp:[::1]:53".parse::<Listen>().unwrap().udp);
        assert!("2222".parse::<Listen>().is_err());
    }
}
