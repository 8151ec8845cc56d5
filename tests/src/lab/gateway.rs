//! A router that maps ports when it is asked: NAT-PMP, PCP or UPnP-IGD, as far as an agent needs it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::netns::Namespace;

/// Its address inside.
const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// The port of NAT-PMP and PCP, and those of UPnP.
const ASK_PORT: u16 = 5351;
const SSDP_PORT: u16 = 1900;
const HTTP_PORT: u16 = 5000;
/// The first outer port that is given.
const FIRST_PORT: u16 = 40_000;
/// How often its threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(100);
const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";

/// What it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// RFC 6886; it knows no PCP.
    NatPmp,
    /// RFC 6887.
    Pcp,
    /// UPnP-IGD, and neither of the others.
    Upnp,
}

#[derive(Debug)]
struct State {
    router: Namespace,
    outer: Ipv4Addr,
    lifetime: u32,
    /// The machine's address and port by outer port.
    inner_by_port: BTreeMap<u16, SocketAddrV4>,
    granted: usize,
}

/// The answering part of a router; it ends when this is dropped, and what it mapped stays.
#[derive(Debug)]
pub struct Gateway {
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gateway {
    /// Lets a router of [`super::netns::nat`] answer: it is at `outer` outside, or says so, and grants mappings for
    /// `lifetime` seconds.
    ///
    /// # Panics
    /// When something listens there already.
    pub fn start(router: &Namespace, speaks: Speaks, outer: Ipv4Addr, lifetime: u32) -> Gateway {
        let state = Arc::new(Mutex::new(State {
            router: router.clone(),
            outer,
            lifetime,
            inner_by_port: BTreeMap::new(),
            granted: 0,
        }));
        let mut gateway =
            Gateway { state: state.clone(), ended: Arc::default(), threads: Vec::new() };
        match speaks {
            Speaks::NatPmp => {
                gateway.answer(ASK_PORT, move |asked, _| natpmp(&mut lock(&state), asked));
            }
            Speaks::Pcp => gateway.answer(ASK_PORT, move |asked, _| pcp(&mut lock(&state), asked)),
            Speaks::Upnp => {
                gateway.answer(SSDP_PORT, |asked, _| ssdp(asked));
                gateway.serve(state);
            }
        }
        gateway
    }

    /// The mappings that it holds: the machine's address and port by outer port.
    pub fn mappings(&self) -> BTreeMap<u16, SocketAddrV4> {
        lock(&self.state).inner_by_port.clone()
    }

    /// How often it granted one, renewals included.
    pub fn granted(&self) -> usize {
        lock(&self.state).granted
    }

    fn answer(
        &mut self,
        port: u16,
        mut act: impl FnMut(&[u8], SocketAddr) -> Option<Vec<u8>> + Send + 'static,
    ) {
        let router = lock(&self.state).router.clone();
        let socket = router.enter(|| UdpSocket::bind((INSIDE, port))).expect("a free port");
        socket.set_read_timeout(Some(LOOK)).expect("a time-out");
        let ended = self.ended.clone();
        self.threads.push(std::thread::spawn(move || {
            let mut asked = [0; 1500];
            while !ended.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut asked) else { continue };
                if let Some(answer) = act(&asked[..length], from) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        }));
    }

    fn serve(&mut self, state: Arc<Mutex<State>>) {
        let router = lock(&self.state).router.clone();
        let listener = router.enter(|| TcpListener::bind((INSIDE, HTTP_PORT))).expect("a port");
        listener.set_nonblocking(true).expect("a mode");
        let ended = self.ended.clone();
        self.threads.push(std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => drop(http(stream, &state)),
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        }));
    }
}

impl State {
    /// Maps for a machine; the same outer port as long as it has one.
    fn map(&mut self, inner: SocketAddrV4) -> u16 {
        let known = self.inner_by_port.iter().find(|(_, known)| **known == inner);
        let port =
            known.map_or_else(|| FIRST_PORT + self.inner_by_port.len() as u16, |(port, _)| *port);
        self.map_at(port, inner);
        port
    }

    fn map_at(&mut self, port: u16, inner: SocketAddrV4) {
        self.inner_by_port.insert(port, inner);
        self.granted += 1;
        self.write();
    }

    fn unmap(&mut self, inner: SocketAddrV4) {
        self.inner_by_port.retain(|_, known| *known != inner);
        self.write();
    }

    fn write(&self) {
        let rule = |(port, inner): (&u16, &SocketAddrV4)| {
            format!("iifname \"wan0\" udp dport {port} dnat to {inner};\n")
        };
        let rules: String = self.inner_by_port.iter().map(rule).collect();
        self.router.nft(&format!(
            "table ip mapped {{}}
             delete table ip mapped
             table ip mapped {{
               chain in {{ type nat hook prerouting priority dstnat - 10; {rules} }}
             }}"
        ));
    }
}

fn number(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]))
}

/// Section 3 of RFC 6886. One machine is behind such a router here, at .10.
fn natpmp(state: &mut State, asked: &[u8]) -> Option<Vec<u8>> {
    let inner = |port| SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 10), port);
    match asked {
        [0, 0] => {
            let mut answer = vec![0, 128, 0, 0, 0, 0, 0, 1];
            answer.extend(state.outer.octets());
            Some(answer)
        }
        [0, 1, ..] if asked.len() == 12 => {
            let port = number(asked, 4);
            let (mut given, mut lifetime) = (0, 0);
            if asked[8..] == [0; 4] {
                state.unmap(inner(port));
            } else {
                given = state.map(inner(port));
                lifetime = state.lifetime;
            }
            let mut answer = vec![0, 129, 0, 0, 0, 0, 0, 1];
            answer.extend(port.to_be_bytes());
            answer.extend(given.to_be_bytes());
            answer.extend(lifetime.to_be_bytes());
            Some(answer)
        }
        // Another version: it has no other one.
        [version, ..] if *version != 0 => Some(vec![0, 128, 0, 1, 0, 0, 0, 1]),
        _ => None,
    }
}

/// Sections 7 and 11 of RFC 6887.
fn pcp(state: &mut State, asked: &[u8]) -> Option<Vec<u8>> {
    if asked.len() != 60 || asked[..2] != [2, 1] {
        return None;
    }
    let address: [u8; 4] = asked[20..24].try_into().ok()?;
    let inner = SocketAddrV4::new(address.into(), number(asked, 40));
    let ends = asked[4..8] == [0; 4];
    let mut answer = asked.to_vec();
    answer[1] |= 0x80;
    answer[2..4].fill(0);
    answer[8..24].fill(0);
    if ends {
        state.unmap(inner);
    } else {
        let port = state.map(inner);
        answer[4..8].copy_from_slice(&state.lifetime.to_be_bytes());
        answer[42..44].copy_from_slice(&port.to_be_bytes());
        answer[44..60].copy_from_slice(&state.outer.to_ipv6_mapped().octets());
    }
    Some(answer)
}

fn ssdp(asked: &[u8]) -> Option<Vec<u8>> {
    let asked = String::from_utf8_lossy(asked);
    let location = format!("http://{INSIDE}:{HTTP_PORT}/device.xml");
    (asked.starts_with("M-SEARCH") && asked.contains("InternetGatewayDevice")).then(|| {
        format!(
            "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n\
             ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
             LOCATION: {location}\r\nEXT:\r\n\r\n"
        )
        .into_bytes()
    })
}

/// One request on one connection.
fn http(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let (mut asked, mut part) = (String::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut part)?;
        asked.push_str(&String::from_utf8_lossy(&part[..length]));
        let whole = asked.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let field = head.lines().filter_map(|line| line.split_once(':'));
            let mut lengths = field.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let wanted = lengths.next().and_then(|(_, value)| value.trim().parse().ok());
            body.len() >= wanted.unwrap_or(0_usize)
        });
        if whole || length == 0 {
            break;
        }
    }
    let body = match asked.split_whitespace().nth(1) {
        Some("/device.xml") => device(),
        Some("/service.xml") => service(),
        _ => soap(&mut lock(state), &asked),
    };
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\n";
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn device() -> String {
    let kind =
        |name: &str| format!("<deviceType>urn:schemas-upnp-org:device:{name}:1</deviceType>");
    format!(
        "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device>{}\
         <deviceList><device>{}<deviceList><device>{}<serviceList><service>\
         <serviceType>{SERVICE}</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>\
         <controlURL>/control</controlURL><eventSubURL>/event</eventSubURL>\
         <SCPDURL>/service.xml</SCPDURL></service></serviceList></device></deviceList></device>\
         </deviceList></device></root>",
        kind("InternetGatewayDevice"),
        kind("WANDevice"),
        kind("WANConnectionDevice")
    )
}

fn service() -> String {
    let argument =
        |name: &&str| format!("<argument><name>{name}</name><direction>in</direction></argument>");
    let action = |name: &str, arguments: &[&str]| {
        let list: String = arguments.iter().map(argument).collect();
        format!("<action><name>{name}</name><argumentList>{list}</argumentList></action>")
    };
    let key = ["NewRemoteHost", "NewExternalPort", "NewProtocol"];
    let rest = [
        "NewInternalPort",
        "NewInternalClient",
        "NewEnabled",
        "NewPortMappingDescription",
        "NewLeaseDuration",
    ];
    let actions = [
        action("GetExternalIPAddress", &["NewExternalIPAddress"]),
        action("AddPortMapping", &[&key[..], &rest[..]].concat()),
        action("DeletePortMapping", &key),
    ];
    format!(
        "<?xml version=\"1.0\"?><scpd xmlns=\"urn:schemas-upnp-org:service-1-0\"><actionList>{}\
         </actionList></scpd>",
        actions.concat()
    )
}

/// The text of an element of a request.
fn element<'a>(asked: &'a str, name: &str) -> &'a str {
    let begin =
        asked.find(&format!("<{name}")).and_then(|at| Some(at + asked[at..].find('>')? + 1));
    begin.map_or("", |at| asked[at..].split('<').next().unwrap_or(""))
}

fn soap(state: &mut State, asked: &str) -> String {
    let port = element(asked, "NewExternalPort").parse().unwrap_or(0);
    let (action, inside) = if asked.contains("#GetExternalIPAddress") {
        let ip = state.outer;
        let tag = "NewExternalIPAddress";
        ("GetExternalIPAddress", format!("<{tag}>{ip}</{tag}>"))
    } else if asked.contains("#AddPortMapping") {
        let client = element(asked, "NewInternalClient").parse();
        let inner = element(asked, "NewInternalPort").parse();
        if let (Ok(client), Ok(inner)) = (client, inner) {
            state.map_at(port, SocketAddrV4::new(client, inner));
        }
        ("AddPortMapping", String::new())
    } else {
        if let Some(inner) = state.inner_by_port.get(&port).copied() {
            state.unmap(inner);
        }
        ("DeletePortMapping", String::new())
    };
    format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\">\
         <s:Body><u:{action}Response xmlns:u=\"{SERVICE}\">{inside}</u:{action}Response></s:Body>\
         </s:Envelope>"
    )
}
