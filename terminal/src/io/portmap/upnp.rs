//! UPnP-IGD, by the gateway that is asked for the other protocols too.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, GatewayIpVersion, PortMappingProtocol, SearchOptions};

type Gateway = igd_next::aio::Gateway<Tokio>;

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
    /// Asks this gateway and no other one. It has to take mappings that end by themselves: one that was made for nobody,
    /// since the wish was withdrawn meanwhile, does so.
    pub(super) async fn make(
        gateway: Ipv4Addr,
        client: SocketAddrV4,
        lifetime: u32,
    ) -> Result<Upnp, String> {
        let gateway = search(gateway, *client.ip()).await?;
        add(gateway, client, lifetime).await
    }

    pub(super) async fn renew(&mut self) -> Result<(), String> {
        add_port(&self.gateway, self.external.port(), self.client, self.lifetime)
            .await
            .map_err(|error| error.to_string())?;
        let ip = self.gateway.get_external_ip().await.map_err(|error| error.to_string())?;
        self.external.set_ip(ip);
        Ok(())
    }

    pub(super) async fn give_back(self) {
        let port = self.external.port();
        let removed = self.gateway.remove_port(PortMappingProtocol::UDP, port).await;
        if let Err(error) = removed {
            tracing::debug!(%error, "a mapping was not taken back");
        }
    }

    pub(super) fn external(&self) -> SocketAddr {
        self.external
    }
}

async fn search(ip: Ipv4Addr, client: Ipv4Addr) -> Result<Gateway, String> {
    let mut options = SearchOptions::default();
    options.bind_addr = (client, 0).into();
    options.broadcast_address = (ip, SSDP_PORT).into();
    options.timeout = Some(SEARCH);
    options.single_search_timeout = Some(SEARCH);
    options.gateway_ip_version = GatewayIpVersion::V4;
    let gateway = search_gateway(options).await.map_err(|error| error.to_string())?;
    if gateway.addr.ip() != ip {
        return Err(format!("{} is not the gateway", gateway.addr.ip()));
    }
    Ok(gateway)
}

async fn add(gateway: Gateway, client: SocketAddrV4, lifetime: u32) -> Result<Upnp, String> {
    let ip = gateway.get_external_ip().await.map_err(|error| error.to_string())?;
    let port = match add_port(&gateway, client.port(), client, lifetime).await {
        Ok(()) => client.port(),
        Err(AddPortError::PortInUse) => gateway
            .add_any_port(PortMappingProtocol::UDP, client.into(), lifetime, DESCRIPTION)
            .await
            .map_err(|error| error.to_string())?,
        Err(error) => return Err(error.to_string()),
    };
    Ok(Upnp { gateway, client, external: (ip, port).into(), lifetime })
}

async fn add_port(
    gateway: &Gateway,
    external: u16,
    client: SocketAddrV4,
    lifetime: u32,
) -> Result<(), AddPortError> {
    let udp = PortMappingProtocol::UDP;
    gateway.add_port(udp, external, client.into(), lifetime, DESCRIPTION).await
}
