//! Carries TCP over iroh through one relay and nothing else: IP transports are cleared, nothing is looked up, and no
//! server but the given relay is contacted.
//!
//! ```text
//! iroh-peer serve RELAY_URL BULK_ADDRESS ECHO_ADDRESS             prints its endpoint id
//! iroh-peer forward RELAY_URL ENDPOINT_ID BULK_PORT ECHO_PORT     listens on 127.0.0.1
//! ```
//!
//! All TCP connections of one `forward` share one connection of iroh, a bidirectional stream each. A stream begins
//! with one byte: which of the two services it is for.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use iroh::endpoint::{Connection, NetReportConfig, RecvStream, SendStream, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, RelayUrl};
use tokio::io::{AsyncWriteExt, BufReader, copy_buf};
use tokio::net::{TcpListener, TcpStream};

const ALPN: &[u8] = b"tasuki-bench/1";
const BUFFER: usize = 64 * 1024;
const ONLINE: Duration = Duration::from_secs(15);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", relay, bulk, echo] => serve(relay.parse()?, [bulk.parse()?, echo.parse()?]).await,
        ["forward", relay, peer, bulk, echo] => {
            forward(relay.parse()?, peer.parse()?, [bulk.parse()?, echo.parse()?]).await
        }
        _ => bail!("serve RELAY_URL BULK ECHO | forward RELAY_URL ENDPOINT_ID BULK_PORT ECHO_PORT"),
    }
}

/// An endpoint that knows one way only: the relay.
async fn endpoint(relay: RelayUrl) -> Result<Endpoint> {
    let mut report = NetReportConfig::minimal();
    // Asks the given relay how far it is, without which it is not used.
    report.https_probes = true;
    let endpoint = Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::custom([relay]))
        .clear_ip_transports()
        .clear_address_lookup()
        .net_report_config(report)
        .alpns(vec![ALPN.to_vec()])
        .bind()
        .await
        .map_err(|error| anyhow!("{error:#}"))?;
    tokio::time::timeout(ONLINE, endpoint.online()).await.context("the relay does not answer")?;
    Ok(endpoint)
}

async fn serve(relay: RelayUrl, services: [SocketAddr; 2]) -> Result<()> {
    let endpoint = endpoint(relay).await?;
    println!("{}", endpoint.id());
    std::io::stdout().flush()?;
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((send, mut recv)) = connection.accept_bi().await {
                tokio::spawn(async move {
                    let mut service = [0];
                    recv.read_exact(&mut service).await.map_err(|e| anyhow!("{e}"))?;
                    let address = services.get(usize::from(service[0])).context("no service")?;
                    splice(TcpStream::connect(address).await?, send, recv).await
                });
            }
        });
    }
    Ok(())
}

async fn forward(relay: RelayUrl, peer: EndpointId, ports: [u16; 2]) -> Result<()> {
    let endpoint = endpoint(relay.clone()).await?;
    let to = EndpointAddr::new(peer).with_relay_url(relay);
    let connection = endpoint.connect(to, ALPN).await.map_err(|error| anyhow!("{error:#}"))?;
    let [bulk, echo] = ports.map(|port| listen(port, &connection));
    tokio::try_join!(bulk(0), echo(1))?;
    Ok(())
}

fn listen(port: u16, connection: &Connection) -> impl FnOnce(u8) -> Listening {
    let connection = connection.clone();
    move |service| {
        Box::pin(async move {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
            loop {
                let (stream, _) = listener.accept().await?;
                let (mut send, recv) =
                    connection.open_bi().await.map_err(|error| anyhow!("{error}"))?;
                tokio::spawn(async move {
                    send.write_all(&[service]).await.map_err(|error| anyhow!("{error}"))?;
                    splice(stream, send, recv).await
                });
            }
        })
    }
}

type Listening = std::pin::Pin<Box<dyn Future<Output = Result<()>>>>;

/// Both directions, each to its own end.
async fn splice(mut stream: TcpStream, mut send: SendStream, recv: RecvStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let (from_tcp, mut to_tcp) = stream.split();
    let (mut from_tcp, mut from_peer) =
        (BufReader::with_capacity(BUFFER, from_tcp), BufReader::with_capacity(BUFFER, recv));
    let out = async {
        copy_buf(&mut from_tcp, &mut send).await?;
        send.shutdown().await
    };
    let back = async {
        copy_buf(&mut from_peer, &mut to_tcp).await?;
        to_tcp.shutdown().await
    };
    tokio::try_join!(out, back)?;
    Ok(())
}
