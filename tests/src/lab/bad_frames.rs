//! A terminal that an enemy runs and that sends frames by hand, from the very address of its attachment.
//!
//! Its attachment goes through a hop of the test ([`Middle`]). The relay sees nothing but the hop's address, so frames
//! that the test sends from there are the terminal's own; the hop answers the relay's challenges.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls::quic::{ClientConnection, Suite, Version};
use tasuki_proto::RefusalCode;
use tasuki_proto::control::{Call, End, ToRelay, ToTerminal};
use tasuki_proto::frame::{self, FrameKind, NeighbourKey};
use tasuki_proto::id::{Label, RelayId, RelayName, ServiceName, SessionId, TerminalId};
use tasuki_proto::identity::Identity;
use tasuki_proto::version::Alpn;

use super::middle::Middle;
use super::raw::{self, RawStream};
use super::wait::{POLL, SOON};

/// The shortest datagram with a client's first packet (RFC 9000, section 14.1).
const FIRST_DATAGRAM: usize = 1_200;
/// The length of connection ids here.
const CID: usize = 8;
/// The length of packet numbers here.
const NUMBER: usize = 4;
/// The length of an authentication tag.
const TAG: usize = 16;
/// Frames that leave at once, and the pause behind them: what every socket on the way takes.
const AT_ONCE: (usize, Duration) = (16, Duration::from_millis(3));

/// The terminal.
#[derive(Debug)]
pub struct BadFrames {
    stream: RawStream,
    middle: Middle,
    edge: RelayId,
    next: u64,
    answered: Arc<AtomicU64>,
    /// The label of frames to the session that was called last, and how many came with it.
    heard: Arc<(AtomicU64, AtomicU64)>,
}

impl BadFrames {
    /// Logs in as the terminal whose data directory this is, at the relay `name`.
    ///
    /// # Errors
    /// When it is refused, in words.
    ///
    /// # Panics
    /// When `data` holds no identity.
    pub async fn log_in((address, name): (SocketAddr, &str), data: &Path) -> Result<Self, String> {
        let identity = Identity::load(data).expect("a readable identity").expect("an identity");
        let relay = RelayName::new(name).expect("a name");
        let edge = RelayId::of(&identity.mesh_id(), &relay);
        let key: Arc<OnceLock<NeighbourKey>> = Arc::default();
        let (answered, heard) =
            (Arc::<AtomicU64>::default(), Arc::<(AtomicU64, AtomicU64)>::default());
        let (shared, answers, hears) = (key.clone(), answered.clone(), heard.clone());
        let middle = Middle::start(Ipv4Addr::LOCALHOST.into(), address, move |bytes, upstream| {
            if !bytes.first().copied().is_some_and(frame::is_frame) {
                return true;
            }
            match frame::parse(bytes) {
                Some((FrameKind::Challenge, handle)) => {
                    if let Some(((cookie, _), key)) = frame::parse_proof(bytes).zip(shared.get()) {
                        // The relay asks again where this gets lost.
                        let _ = upstream.send(&frame::echo(handle, cookie, key));
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Some((FrameKind::Data, label))
                    if label.get() == hears.0.load(Ordering::Relaxed) =>
                {
                    hears.1.fetch_add(1, Ordering::Relaxed);
                }
                _ => {}
            }
            false
        });
        let middle = middle.map_err(|error| error.to_string())?;
        let stream =
            raw::log_in(middle.address(), &format!("{name}.relay.lab.tasuki"), data).await?;
        let mut material = [0; 32];
        let exported = stream.connection.export_keying_material(
            &mut material,
            NeighbourKey::EXPORTER_LABEL,
            b"",
        );
        exported.map_err(|error| format!("{error:?}"))?;
        let _ = key.set(NeighbourKey::new(&material));
        Ok(Self { stream, middle, edge, next: rand::random(), answered, heard })
    }

    /// Frames of the session that was called last that came back.
    pub fn heard(&self) -> u64 {
        self.heard.1.load(Ordering::Relaxed)
    }

    /// Calls, and waits until the call is accepted; the label is that of frames to the other terminal.
    ///
    /// # Errors
    /// When it is refused or cut, in words.
    ///
    /// # Panics
    /// When a name is none.
    pub async fn call(
        &mut self,
        target: &str,
        service: &str,
    ) -> Result<(SessionId, Label), String> {
        self.next = self.next.wrapping_add(1);
        let asked = SessionId { edge: self.edge, nonce: self.next };
        let label = Label::from_random(rand::random());
        self.heard.0.store(label.get(), Ordering::Relaxed);
        self.heard.1.store(0, Ordering::Relaxed);
        let call = Call {
            session: asked,
            target: TerminalId::new(target).expect("a name"),
            service: ServiceName::new(service).expect("a name"),
            tie_break: None,
            label,
        };
        self.stream.say(&ToRelay::Call(call).to_envelope()).await?;
        loop {
            match self.stream.hear_relay().await? {
                ToTerminal::Accepted(told) if told.session == asked => {
                    return Ok((asked, told.label));
                }
                ToTerminal::CallRefused(told) if told.session == asked => {
                    return Err(told.refusal.to_string());
                }
                _ => {}
            }
        }
    }

    /// Ends a session.
    ///
    /// # Errors
    /// When it is cut, in words.
    pub async fn end(&mut self, session: SessionId) -> Result<(), String> {
        let end = End { session, code: RefusalCode::EndedByCaller };
        self.stream.say(&ToRelay::End(end).to_envelope()).await
    }

    /// Sends these packets of a session as frames with this label, at a pace that every socket on the way takes.
    ///
    /// # Errors
    /// When the relay takes no frames from here, in words.
    pub async fn send(
        &self,
        label: Label,
        packets: impl Iterator<Item = Vec<u8>>,
    ) -> Result<(), String> {
        let head = frame::head(FrameKind::Data, label);
        self.prove(&head).await?;
        for (n, packet) in (1..).zip(packets) {
            let sent = self.middle.upstream().send(&[&head[..], &packet].concat());
            sent.map_err(|error| error.to_string())?;
            if n % AT_ONCE.0 == 0 {
                tokio::time::sleep(AT_ONCE.1).await;
            }
        }
        Ok(())
    }

    /// A relay answers a frame from an address that is not proven with a challenge.
    async fn prove(&self, frame: &[u8]) -> Result<(), String> {
        let begun = Instant::now();
        while self.answered.load(Ordering::Relaxed) == 0 {
            if begun.elapsed() > SOON {
                return Err("the relay never asked for a proof".into());
            }
            let sent = self.middle.upstream().send(frame);
            sent.map_err(|error| error.to_string())?;
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

/// First packets of QUIC connections to a terminal (RFC 9000, section 17.2.2): each begins a connection of its own.
#[derive(Debug)]
pub struct FirstPackets {
    hello: Vec<u8>,
    source: [u8; CID],
}

fn suite() -> Suite {
    let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    suite.tls13().and_then(|suite| suite.quic_suite()).expect("a cipher for QUIC")
}

impl FirstPackets {
    /// All of them have one greeting in common, made at random.
    ///
    /// # Panics
    /// When TLS offers none.
    pub fn random() -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![Alpn::Session.wire().to_vec()];
        let source: [u8; CID] = rand::random();
        // The one transport parameter that a server insists on: the connection id of the first packet.
        let parameters = [&[0x0f, CID as u8][..], &source].concat();
        let name = "b.terminal.lab.tasuki".try_into().expect("a name");
        let config = Arc::new(config);
        let mut client =
            ClientConnection::new(config, Version::V1, name, parameters).expect("a client");
        let mut hello = Vec::new();
        client.write_hs(&mut hello);
        Self { hello, source }
    }

    /// One more.
    ///
    /// # Panics
    /// When it cannot be encrypted.
    pub fn packet(&self) -> Vec<u8> {
        let to: [u8; CID] = rand::random();
        let keys = suite().keys(&to, rustls::Side::Client, Version::V1).local;
        let two_bytes = |length: usize| (0x4000 | length as u16).to_be_bytes();
        // Long header, an Initial packet, with a packet number of four bytes; version 1.
        let mut header = vec![0xc0 | (NUMBER as u8 - 1), 0, 0, 0, 1];
        for id in [&to, &self.source] {
            header.push(CID as u8);
            header.extend_from_slice(id);
        }
        // No token; the length of all that follows.
        header.push(0);
        let rest = FIRST_DATAGRAM - header.len() - 2;
        header.extend_from_slice(&two_bytes(rest));
        let number_at = header.len();
        header.extend_from_slice(&[0; NUMBER]);
        // One CRYPTO frame from offset 0, and padding.
        let mut payload = vec![0x06, 0];
        payload.extend_from_slice(&two_bytes(self.hello.len()));
        payload.extend_from_slice(&self.hello);
        payload.resize(rest - NUMBER - TAG, 0);
        let tag = keys.packet.encrypt_in_place(0, &header, &mut payload).expect("a sound key");
        payload.extend_from_slice(tag.as_ref());
        let (first, number) = header.split_at_mut(number_at);
        let sample = &payload[..keys.header.sample_len()];
        keys.header.encrypt_in_place(sample, &mut first[0], number).expect("a sound key");
        [header, payload].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_reads_a_first_packet() {
        let packets = FirstPackets::random();
        let (one, other) = (packets.packet(), packets.packet());
        assert_eq!((one.len(), other.len()), (FIRST_DATAGRAM, FIRST_DATAGRAM));
        assert_ne!(one[6..6 + CID], other[6..6 + CID]);
        assert!(!frame::is_frame(one[0]));
        let to = &one[6..6 + CID];
        let keys = suite().keys(to, rustls::Side::Server, Version::V1).remote;
        let number_at = 5 + 2 * (1 + CID) + 1 + 2;
        let (header, payload) = one.split_at(number_at + NUMBER);
        let (mut header, mut payload) = (header.to_vec(), payload.to_vec());
        let (first, number) = header.split_at_mut(number_at);
        let sample = &payload[..keys.header.sample_len()];
        keys.header.decrypt_in_place(sample, &mut first[0], number).unwrap();
        let plain = keys.packet.decrypt_in_place(0, &header, &mut payload).unwrap();
        assert!(plain[4..].starts_with(&packets.hello));
    }
}
