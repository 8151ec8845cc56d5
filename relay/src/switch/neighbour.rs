//! A neighbour as the switch sees it: the addresses it has proven, and how an address is proven.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tasuki_proto::frame::{self, NeighbourKey};
use tasuki_proto::{Label, limits};

/// Both ends of a way to a neighbour, as the kernel writes them (IPv4 mapped on a dual-stack socket).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The neighbour's address and port.
    pub remote: SocketAddr,
    /// The local address; `None` where the kernel does not say.
    pub local: Option<IpAddr>,
}

/// Challenges to one neighbour go out at most this often, ms.
const CHALLENGE_PERIOD_MS: u64 = 20;
/// A cookie is good for this long at least, and for twice that at most, ms.
const COOKIE_PERIOD_MS: u64 = 10_000;
/// An address that a connection hinted at is challenged this often before only frames from it do so.
const HINT_TRIES: u64 = 60;

/// Challenges on their way that are answered at most, the latest ones.
const ECHOES: u32 = 4;

/// A terminal or relay next to this one.
#[derive(Debug)]
pub struct Neighbour {
    handle: Label,
    key: NeighbourKey,
    /// Proven addresses, the latest first, at most [`limits::NEIGHBOUR_ADDRESSES`].
    proven: ArcSwap<Vec<Address>>,
    /// Where its connection says it is: worth a challenge, never an address to send frames to.
    hint: ArcSwap<Address>,
    hint_tries: AtomicU64,
    challenged_ms: AtomicU64,
    /// Challenges that were not answered: each allows one echo, or a neighbour that repeats its echoes could move without
    /// end.
    echoes: AtomicU32,
    /// The way to it takes no segmented sends.
    one_by_one: AtomicBool,
}

impl Neighbour {
    /// A neighbour that has proven nothing. Both share `key`; our challenges carry `handle`.
    pub fn new(handle: Label, key: NeighbourKey, hint: Address) -> Self {
        Self {
            handle,
            key,
            proven: ArcSwap::default(),
            hint: ArcSwap::from_pointee(hint),
            hint_tries: AtomicU64::new(0),
            challenged_ms: AtomicU64::new(0),
            echoes: AtomicU32::new(0),
            one_by_one: AtomicBool::new(false),
        }
    }

    /// The handle of our challenges to it.
    pub fn handle(&self) -> Label {
        self.handle
    }

    /// Whether frames from `source` are its own.
    #[inline]
    pub(super) fn has_proven(&self, source: Address) -> bool {
        self.proven.load().contains(&source)
    }

    /// Whether `source` is where frames to it go.
    #[inline]
    pub(super) fn is_current(&self, source: Address) -> bool {
        self.proven.load().first() == Some(&source)
    }

    /// Where frames to it go: the address it has proven last.
    #[inline]
    pub fn current(&self) -> Option<Address> {
        self.proven.load().first().copied()
    }

    /// Whether it was elsewhere before.
    fn prove(&self, source: Address) -> bool {
        let before = self.current();
        self.proven.rcu(|addresses| {
            let mut next = Vec::with_capacity(limits::NEIGHBOUR_ADDRESSES);
            next.push(source);
            next.extend(addresses.iter().copied().filter(|&a| a != source));
            next.truncate(limits::NEIGHBOUR_ADDRESSES);
            next
        });
        self.one_by_one.store(false, Ordering::Relaxed);
        before.is_some_and(|before| before.remote != source.remote)
    }

    /// Its connection says that it is there. Whether that is news.
    pub(super) fn set_hint(&self, hint: Address) -> bool {
        let news = self.hint.load().remote != hint.remote;
        if news {
            self.hint.store(hint.into());
            self.hint_tries.store(0, Ordering::Relaxed);
        }
        news
    }

    /// The hinted address when it is due for a challenge.
    pub(super) fn due_hint(&self) -> Option<Address> {
        let hint = **self.hint.load();
        if self.proven.load().iter().any(|a| a.remote == hint.remote)
            || self.hint_tries.fetch_add(1, Ordering::Relaxed) >= HINT_TRIES
        {
            return None;
        }
        Some(hint)
    }

    /// A challenge for `source`, unless one went out a moment ago.
    pub(super) fn challenge(
        &self,
        source: Address,
        secret: &ring::hmac::Key,
        now_ms: u64,
    ) -> Option<[u8; frame::PROOF_FRAME]> {
        let last = self.challenged_ms.load(Ordering::Relaxed);
        if last != 0 && now_ms.saturating_sub(last) < CHALLENGE_PERIOD_MS {
            return None;
        }
        self.challenged_ms.store(now_ms.max(1), Ordering::Relaxed);
        let one_more = |echoes: u32| Some((echoes + 1).min(ECHOES));
        let _ = self.echoes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        Some(frame::challenge(self.handle, self.cookie(source, secret, now_ms / COOKIE_PERIOD_MS)))
    }

    /// Takes an echo, one for each challenge: whether it proves `source`, and then whether the neighbour was elsewhere before.
    pub(super) fn echoed(
        &self,
        source: Address,
        cookie: &[u8; 16],
        proof: &[u8; 16],
        secret: &ring::hmac::Key,
        now_ms: u64,
    ) -> Option<bool> {
        use subtle::ConstantTimeEq;
        if self.echoes.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let period = now_ms / COOKIE_PERIOD_MS;
        let ours = [period, period.saturating_sub(1)]
            .iter()
            .any(|&p| bool::from(self.cookie(source, secret, p).ct_eq(cookie)));
        let one_less = |echoes: u32| echoes.checked_sub(1);
        let proven = ours
            && self.key.verify(self.handle, cookie, proof)
            && self.echoes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok();
        proven.then(|| self.prove(source))
    }

    /// Binds a challenge to the neighbour's address, handle and time, so that nothing is remembered for it. The
    /// local address is left out: it becomes known only with the echo.
    fn cookie(&self, source: Address, secret: &ring::hmac::Key, period: u64) -> [u8; 16] {
        let mut context = ring::hmac::Context::with_key(secret);
        context.update(b"tasuki cookie v1\0");
        context.update(&self.handle.get().to_be_bytes());
        context.update(&period.to_be_bytes());
        context.update(&source.remote.port().to_be_bytes());
        match source.remote.ip() {
            IpAddr::V4(ip) => context.update(&ip.to_ipv6_mapped().octets()),
            IpAddr::V6(ip) => context.update(&ip.octets()),
        }
        let mut out = [0; 16];
        out.copy_from_slice(&context.sign().as_ref()[..16]);
        out
    }

    pub(super) fn sends_one_by_one(&self) -> bool {
        self.one_by_one.load(Ordering::Relaxed)
    }

    /// A segmented send to it failed: its way takes single datagrams only, until it proves another address.
    pub(super) fn set_one_by_one(&self) {
        self.one_by_one.store(true, Ordering::Relaxed);
    }
}
