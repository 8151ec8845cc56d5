//! For tests of other cores: origins that write and sign rows, and tell them as a link would.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use tasuki_proto::gossip::{GossipMessage, Want};
use tasuki_proto::identity::Signer;
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::{Incarnation, MeshId, RelayId};

use super::{Config, Gossip, Input, Output, Write};
use crate::core::LinkId;

const LINK: LinkId = LinkId(1);

/// The key of an origin, made from its id.
pub(crate) fn signer(of: RelayId) -> Signer {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&of.0.to_be_bytes());
    Signer::from_seed(&seed)
}

/// The relays that write rows, and the registrar under the authority's id.
#[derive(Debug)]
pub(crate) struct Origins {
    mesh: MeshId,
    by_id: BTreeMap<RelayId, Gossip>,
}

impl Origins {
    pub(crate) fn new(mesh: MeshId) -> Origins {
        Origins { mesh, by_id: BTreeMap::new() }
    }

    /// An origin writes a row, or a tombstone that lasts an hour; what it tells a relay that has everything up to
    /// `known`.
    pub(crate) fn write(
        &mut self,
        origin: RelayId,
        (kind, key, payload): (RecordKind, &[u8], Option<&[u8]>),
        wall_ms: u64,
        known: Version,
        now: Instant,
    ) -> Vec<GossipMessage> {
        let mesh = self.mesh;
        let source = self.by_id.entry(origin).or_insert_with(|| {
            let config = Config::new(origin, Incarnation(1), mesh, signer(origin), [0; 2]);
            let mut source = Gossip::new(config, now);
            if origin == RelayId::AUTHORITY {
                source.handle(Input::Issuer(Incarnation(1), signer(origin)), now);
            }
            source
        });
        if origin == RelayId::AUTHORITY {
            let sequence = source.table().watermark(origin).sequence + 1;
            let record = Record::new(&Draft {
                origin,
                kind,
                key,
                version: Version { incarnation: Incarnation(1), sequence },
                wall_ms,
                scope: 0,
                lifetime_secs: 0,
                tombstone: payload.is_none(),
                payload: payload.unwrap_or_default(),
            });
            source.handle(Input::Authority(record), now);
        } else {
            let write = Write {
                kind,
                key: Bytes::copy_from_slice(key),
                payload: payload.map(Bytes::copy_from_slice),
                lifetime_secs: if payload.is_none() { 3600 } else { 0 },
                wall_ms,
                scope: 0,
            };
            source.handle(Input::Write(write), now);
        }
        let Version { incarnation, sequence: watermark } = known;
        let want = Want { origin, incarnation, watermark };
        source.handle(Input::LinkUp(LINK, RelayId(1)), now);
        source.handle(Input::Message(LINK, GossipMessage::Want(want)), now);
        let told = std::iter::from_fn(|| source.poll_output())
            .filter_map(|output| match output {
                Output::Send(_, message @ GossipMessage::Rows(_)) => Some(message),
                _ => None,
            })
            .collect();
        source.handle(Input::LinkDown(LINK), now);
        told
    }
}
