//! The one place that names bincode, and the shape that lets two versions live in one mesh.
//!
//! A **message** is an envelope: kind (u16), length (u32), body. A reader skips a kind that it does not know.
//! A **body** (and a record's payload) is a list of sections: id (u8), length (u32), bincode bytes. A reader
//! skips a section that it does not know, and takes the default for one that is missing. All numbers of the
//! envelope are big endian. bincode itself cannot skip a field, so a section, once published, never changes
//! shape; what comes later gets a section of its own.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Why bytes could not be read. It carries no text from the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early, or bytes are left over.
    #[error("wrong length")]
    Length,
    /// A value is outside of what its type allows.
    #[error("malformed value")]
    Malformed,
    /// A section that must be there is not.
    #[error("a mandatory section is missing")]
    Missing,
    /// Larger than the limit that applies.
    #[error("larger than allowed")]
    TooLarge,
}

fn config<const LIMIT: usize>() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<LIMIT>()
}

/// `value` as bincode bytes.
///
/// # Panics
/// Never for the types of this crate: their encoding cannot fail.
#[allow(clippy::expect_used)]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, config::<{ usize::MAX }>())
        .expect("our own types can be encoded")
}

/// The value that `bytes` hold, all of them. What they claim to become is bounded by how many they are, so that a few
/// bytes cannot make much be allocated.
///
/// # Errors
/// [`DecodeError`] when the bytes do not hold exactly one value of this type.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    const SMALL: usize = 4 * 1024;
    const MEDIUM: usize = 64 * 1024;
    const LARGE: usize = crate::limits::DECODE_BYTES;
    let decoded = match bytes.len() {
        0..SMALL => bincode::serde::decode_from_slice(bytes, config::<{ 64 * SMALL }>()),
        SMALL..MEDIUM => bincode::serde::decode_from_slice(bytes, config::<{ 32 * MEDIUM }>()),
        _ => bincode::serde::decode_from_slice(bytes, config::<LARGE>()),
    };
    let (value, used) = decoded.map_err(|_| DecodeError::Malformed)?;
    if used == bytes.len() { Ok(value) } else { Err(DecodeError::Length) }
}

/// The value that `bytes` begin with: the first field of a struct is one. It may claim to become at most 64 KiB.
///
/// # Errors
/// [`DecodeError`] when the bytes do not begin with a value of this type.
pub fn leading<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let decoded = bincode::serde::decode_from_slice(bytes, config::<{ 64 * 1024 }>());
    decoded.map(|(value, _)| value).map_err(|_| DecodeError::Malformed)
}

/// Writes a body, section by section.
#[derive(Debug, Default)]
pub struct SectionWriter(BytesMut);

impl SectionWriter {
    /// An empty body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `value` as section `id`.
    #[must_use]
    pub fn with<T: Serialize>(self, id: u8, value: &T) -> Self {
        self.with_bytes(id, &encode(value))
    }

    /// Appends raw bytes as section `id`.
    #[must_use]
    pub fn with_bytes(mut self, id: u8, bytes: &[u8]) -> Self {
        self.0.put_u8(id);
        self.0.put_u32(bytes.len() as u32);
        self.0.put_slice(bytes);
        self
    }

    /// The body.
    pub fn finish(self) -> Bytes {
        self.0.freeze()
    }
}

/// Finds section `id` in a body. Where an id stands twice, the first counts.
///
/// # Errors
/// [`DecodeError::Length`] when the body's sections do not fill it exactly.
pub fn section(body: &[u8], id: u8) -> Result<Option<&[u8]>, DecodeError> {
    let mut rest = body;
    let mut found = None;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at_checked(5).ok_or(DecodeError::Length)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (bytes, tail) = tail.split_at_checked(length).ok_or(DecodeError::Length)?;
        if head[0] == id && found.is_none() {
            found = Some(bytes);
        }
        rest = tail;
    }
    Ok(found)
}

/// Decodes section `id`, which must be there.
///
/// # Errors
/// [`DecodeError`] when it is missing or malformed.
pub fn required<T: DeserializeOwned>(body: &[u8], id: u8) -> Result<T, DecodeError> {
    decode(section(body, id)?.ok_or(DecodeError::Missing)?)
}

/// Decodes section `id`, or takes the default where it is missing.
///
/// # Errors
/// [`DecodeError`] when it is there and malformed.
pub fn optional<T: DeserializeOwned + Default>(body: &[u8], id: u8) -> Result<T, DecodeError> {
    section(body, id)?.map_or_else(|| Ok(T::default()), decode)
}

/// A message as it stands on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Which message; unknown ones are skipped.
    pub kind: u16,
    /// Sections.
    pub body: Bytes,
}

impl Envelope {
    /// The length of an envelope's head in bytes.
    pub const HEAD: usize = 6;

    /// The envelope as bytes.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(Self::HEAD + self.body.len());
        self.put(&mut out);
        out.freeze()
    }

    /// Appends the envelope to `out`.
    pub fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.kind);
        out.put_u32(self.body.len() as u32);
        out.put_slice(&self.body);
    }

    /// Takes one envelope off the front of `bytes`; `None` when it has not arrived whole.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] when its body is larger than `limit` bytes.
    pub fn take(bytes: &mut BytesMut, limit: usize) -> Result<Option<Envelope>, DecodeError> {
        let Some(head) = bytes.first_chunk::<{ Self::HEAD }>() else {
            return Ok(None);
        };
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let length = u32::from_be_bytes([head[2], head[3], head[4], head[5]]) as usize;
        if length > limit {
            return Err(DecodeError::TooLarge);
        }
        if bytes.len() < Self::HEAD + length {
            return Ok(None);
        }
        let mut whole = bytes.split_to(Self::HEAD + length).freeze();
        Ok(Some(Envelope { kind, body: whole.split_off(Self::HEAD) }))
    }

    /// Reads one envelope from a stream; `None` at its clean end. Not safe to cancel half-way.
    ///
    /// # Errors
    /// The stream's error, or `InvalidData` when the body is larger than `limit` bytes or the stream ends
    /// within the envelope.
    pub async fn read<R: AsyncRead + Unpin>(
        stream: &mut R,
        limit: usize,
    ) -> std::io::Result<Option<Envelope>> {
        let mut head = [0; Self::HEAD];
        let mut have = 0;
        while have < head.len() {
            match stream.read(&mut head[have..]).await? {
                0 if have == 0 => return Ok(None),
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => have += n,
            }
        }
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let length = u32::from_be_bytes([head[2], head[3], head[4], head[5]]) as usize;
        if length > limit {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                DecodeError::TooLarge,
            ));
        }
        // Memory follows what has arrived, not what was announced.
        let mut body = Vec::with_capacity(length.min(16 * 1024));
        stream.take(length as u64).read_to_end(&mut body).await?;
        if body.len() < length {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(Envelope { kind, body: body.into() }))
    }
}

/// A family of messages: each has a kind (u16) and one bincode struct in section 1; later additions to a
/// message get further sections. Decoding gives `Ok(None)` for a kind that is not known.
#[macro_export]
macro_rules! messages {
    ($(#[$doc:meta])* pub enum $family:ident { $($(#[$vdoc:meta])* $kind:literal => $name:ident($body:ty),)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $family { $($(#[$vdoc])* $name($body),)+ }

        impl $family {
            /// The message in its envelope.
            pub fn to_envelope(&self) -> $crate::codec::Envelope {
                match self {
                    $(Self::$name(body) => $crate::codec::Envelope {
                        kind: $kind,
                        body: $crate::codec::SectionWriter::new().with(1, body).finish(),
                    },)+
                }
            }

            /// The message in an envelope; `None` when its kind is not known here.
            ///
            /// # Errors
            /// [`DecodeError`]($crate::codec::DecodeError) when the kind is known and the body is not sound.
            pub fn from_envelope(
                envelope: &$crate::codec::Envelope,
            ) -> Result<Option<Self>, $crate::codec::DecodeError> {
                match envelope.kind {
                    $($kind => Ok(Some(Self::$name($crate::codec::required(&envelope.body, 1)?))),)+
                    _ => Ok(None),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_sections_are_skipped_and_missing_ones_default() {
        let body = SectionWriter::new().with(9, &"later").with(1, &7_u32).finish();
        assert_eq!(required::<u32>(&body, 1), Ok(7));
        assert_eq!(optional::<u64>(&body, 2), Ok(0));
        assert_eq!(required::<u32>(&body, 2), Err(DecodeError::Missing));
        assert_eq!(section(&body[..body.len() - 1], 1), Err(DecodeError::Length));
    }

    #[test]
    fn few_bytes_cannot_claim_much() {
        // A string of 1 MiB, of which one byte is there.
        let mut bytes = encode(&(1_u32 << 20));
        bytes.push(b'x');
        assert_eq!(decode::<String>(&bytes), Err(DecodeError::Malformed));
        let long = "x".repeat(100_000);
        assert_eq!(decode::<String>(&encode(&long)), Ok(long));
    }

    #[test]
    fn left_over_bytes_are_an_error() {
        assert_eq!(decode::<u8>(&[1, 2]), Err(DecodeError::Length));
    }

    #[tokio::test]
    async fn envelopes_are_read_whole_or_not_at_all() {
        let envelope = Envelope { kind: 7, body: Bytes::from_static(b"hello") };
        let bytes = envelope.to_bytes();
        let mut twice: Vec<u8> = bytes.to_vec();
        twice.extend_from_slice(&bytes);
        let mut stream = &twice[..];
        assert_eq!(Envelope::read(&mut stream, 5).await.unwrap(), Some(envelope.clone()));
        assert_eq!(Envelope::read(&mut stream, 5).await.unwrap(), Some(envelope.clone()));
        assert_eq!(Envelope::read(&mut stream, 5).await.unwrap(), None);
        assert!(Envelope::read(&mut &bytes[..], 4).await.is_err());
        assert!(Envelope::read(&mut &bytes[..9], 5).await.is_err());

        let mut buffer = BytesMut::from(&twice[..bytes.len() + 3]);
        assert_eq!(Envelope::take(&mut buffer, 5), Ok(Some(envelope)));
        assert_eq!(Envelope::take(&mut buffer, 5), Ok(None));
        assert_eq!(Envelope::take(&mut BytesMut::from(&bytes[..]), 4), Err(DecodeError::TooLarge));
    }
}
