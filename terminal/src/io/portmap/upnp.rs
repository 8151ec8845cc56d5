//! UPnP-IGD. The library blocks, so each request has a thread of its own; one that nobody waits for any more ends by its
//! time-outs, and takes back what it made.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use igd_next::{AddPortError, Gateway, GatewayIpVersion, PortMappingProtocol, SearchOptions};
use tokio::sync::oneshot;

/// How long the gateway may take to say that it is there.
const SEARCH: Duration = Duration::from_secs(3);
/// The port that such gateways listen on.
const SSDP_PORT: u16 = 1900;
/// What the gateway shows of the mapping.
const DESCRIPTION: &str = "tasuki";

/// A mapping that was made.
#[derive(Debug, Clone)]
pub(super) struct Upnp {
    gateway: Gateway,
    client: SocketAddrV4,
    external: SocketAddr,
    lifetime: u32,
}

impl Upnp {
    /// Asks this gateway and no other one. It has to take mappings that end by themselves.
    pub(super) async fn make(
        gateway: Ipv4Addr,
        client: SocketAddrV4,
        lifetime: u32,
    ) -> Result<Upnp, String> {
        let (tell, told) = oneshot::channel();
        on_thread(move || {
            let made = search(gateway, *client.ip()).and_then(|gateway| {
                // Nobody may be left to want it.
                if tell.is_closed() { Err(String::new()) } else { add(gateway, client, lifetime) }
            });
            if let Err(Ok(unwanted)) = tell.send(made) {
                unwanted.remove();
            }
        })?;
        told.await.map_err(|error| error.to_string())?
    }

    pub(super) async fn renew(&mut self) -> Result<(), String> {
        let (tell, told) = oneshot::channel();
        let again = self.clone();
        on_thread(move || {
            let _ = tell.send(again.add_again());
        })?;
        let ip = told.await.map_err(|error| error.to_string())??;
        self.external.set_ip(ip);
        Ok(())
    }

    pub(super) async fn give_back(self) {
        let (tell, told) = oneshot::channel::<()>();
        let begun = on_thread(move || {
            self.remove();
            drop(tell);
        });
        if begun.is_ok() {
            let _ = told.await;
        }
    }

    pub(super) fn external(&self) -> SocketAddr {
        self.external
    }

    fn add_again(&self) -> Result<IpAddr, String> {
        add_port(&self.gateway, self.external.port(), self.client, self.lifetime)
            .map_err(|error| error.to_string())?;
        self.gateway.get_external_ip().map_err(|error| error.to_string())
    }

    fn remove(&self) {
        let removed = self.gateway.remove_port(PortMappingProtocol::UDP, self.external.port());
        if let Err(error) = removed {
            tracing::debug!(%error, "a mapping was not taken back");
        }
    }
}

fn on_thread(act: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = std::thread::Builder::new().name("upnp".to_owned());
    thread.spawn(act).map(drop).map_err(|error| error.to_string())
}

fn search(ip: Ipv4Addr, client: Ipv4Addr) -> Result<Gateway, String> {
    let mut options = SearchOptions::default();
    options.bind_addr = (client, 0).into();
    options.broadcast_address = (ip, SSDP_PORT).into();
    options.timeout = Some(SEARCH);
    options.single_search_timeout = Some(SEARCH);
    options.gateway_ip_version = GatewayIpVersion::V4;
    let gateway = igd_next::search_gateway(options).map_err(|error| error.to_string())?;
    if gateway.addr.ip() != ip {
        return Err(format!("{} is not the gateway", gateway.addr.ip()));
    }
    Ok(gateway)
}

fn add(gateway: Gateway, client: SocketAddrV4, lifetime: u32) -> Result<Upnp, String> {
    let ip = gateway.get_external_ip().map_err(|error| error.to_string())?;
    let port = match add_port(&gateway, client.port(), client, lifetime) {
        Ok(()) => client.port(),
        Err(AddPortError::PortInUse) => gateway
            .add_any_port(PortMappingProtocol::UDP, client.into(), lifetime, DESCRIPTION)
            .map_err(|error| error.to_string())?,
        Err(error) => return Err(error.to_string()),
    };
    Ok(Upnp { gateway, client, external: (ip, port).into(), lifetime })
}

fn add_port(
    gateway: &Gateway,
    external: u16,
    client: SocketAddrV4,
    lifetime: u32,
) -> Result<(), AddPortError> {
    gateway.add_port(PortMappingProtocol::UDP, external, client.into(), lifetime, DESCRIPTION)
}
