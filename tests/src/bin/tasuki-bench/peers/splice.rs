//! A yardstick: TCP connections handed on by a program that does nothing else, on one thread, as an agent does. What takes
//! two TCP connections for one can hardly be faster.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tokio::net::{TcpListener, TcpStream};

use crate::helper::{self, Helper};
use crate::side::Side;
use crate::site::{Services, Site};
use tasuki_tests::lab::programs::free_address;
use tasuki_tests::lab::wait::SOON;

/// Where it listens, and where it leads to.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    listen: SocketAddr,
    to: SocketAddr,
}

/// The helper: until nobody is there any more to end it.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let to = flags.to;
    let listener = runtime.block_on(TcpListener::bind(flags.listen))?;
    runtime.spawn(async move {
        while let Ok((caller, _)) = listener.accept().await {
            tokio::spawn(hand_on(caller, to));
        }
    });
    helper::answer(&serde_json::json!({}))?;
    while helper::command()?.is_some() {}
    runtime.shutdown_background();
    Ok(())
}

async fn hand_on(mut caller: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut callee = TcpStream::connect(to).await?;
    caller.set_nodelay(true)?;
    callee.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut caller, &mut callee).await.map(|_| ())
}

/// In front of the echo and of iperf3.
pub(super) fn start(site: &Site, services: &Services) -> Result<Side> {
    ensure!(site.caller.is_none(), "on loopback only");
    let mut helpers = Vec::new();
    let mut front = |name: &str, to: SocketAddr| -> Result<SocketAddr> {
        let listen = free_address();
        let log = site.path(&format!("splice-{name}.log"));
        let mut helper = Helper::start("splice", [listen.to_string(), to.to_string()], None, &log)?;
        helper.hear(SOON)?;
        helpers.push(helper);
        Ok(listen)
    };
    let (bulk, echo) = (front("bulk", services.bulk)?, front("echo", services.echo)?);
    Ok(Side {
        name: "splice".into(),
        bulk,
        echo,
        udp: None,
        terminals: None,
        relays: Vec::new(),
        ends: Vec::new(),
        _keep: vec![Box::new(std::sync::Mutex::new(helpers))],
    })
}
