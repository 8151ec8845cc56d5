//! Looks names up, connects, and tells the cores how it went.
#![allow(clippy::disallowed_methods, reason = "this room acts: it reads the clock")]

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::future::{AbortHandle, Abortable, Aborted, BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot, watch};

use super::memory::{Memory, Standing};
use super::race::{ANSWER_DELAY, Input, Manner, Output, Place, Race, TryId, alternate};
use crate::limits;

/// What a look-up gives: addresses, or why there are none.
pub type Answer = Result<Vec<IpAddr>, String>;
type Resolve = dyn Fn(String) -> BoxFuture<'static, Answer> + Send + Sync;

/// Dials names, and remembers what it found. Clones share the memory; a program has one.
#[derive(Clone)]
pub struct Dialler(Arc<Shared>);

struct Shared {
    memory: Mutex<Memory>,
    /// Look-ups under way, by name.
    flights: Mutex<HashMap<String, watch::Receiver<Option<Answer>>>>,
    slots: Semaphore,
    resolve: Box<Resolve>,
}

impl fmt::Debug for Dialler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dialler").field(&self.lock()).finish()
    }
}

impl Default for Dialler {
    fn default() -> Self {
        Self::with_resolver(|name| ask_system(name).boxed())
    }
}

/// Asks the system's resolver on a thread of its own: unlike a thread of the runtime, it keeps no program from ending.
async fn ask_system(name: String) -> Answer {
    let (tell, answer) = oneshot::channel();
    let look_up = move || {
        let found = (name.as_str(), 0).to_socket_addrs();
        let found = found.map(|all| all.map(|one| one.ip().to_canonical()).collect());
        let _ = tell.send(found.map_err(|error| error.to_string()));
    };
    let thread = std::thread::Builder::new().name("look-up".to_owned()).spawn(look_up);
    thread.map_err(|error| error.to_string())?;
    answer.await.unwrap_or_else(|_| Err("the look-up broke off".to_owned()))
}

impl Dialler {
    /// A dialler that looks names up with `resolve`.
    pub fn with_resolver(
        resolve: impl Fn(String) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared {
            memory: Mutex::default(),
            flights: Mutex::default(),
            slots: Semaphore::new(limits::LOOKUPS_AT_ONCE),
            resolve: Box::new(resolve),
        }))
    }

    /// Starts to dial `places`, the preferred ones first. `connect` makes one try.
    pub fn dial<'a, T, E, F>(
        &self,
        places: Vec<Place>,
        manner: Manner,
        connect: impl Fn(usize, SocketAddr) -> F + Send + 'a,
    ) -> Dialling<'a, T, E>
    where
        F: Future<Output = Result<T, E>> + Send + 'a,
    {
        let now = Instant::now();
        let race = {
            let memory = self.lock();
            Race::new(&places, manner, |address| memory.standing(address, now), now)
        };
        Dialling {
            dialler: self.clone(),
            places,
            manner,
            race,
            connect: Box::new(move |place, address| connect(place, address).boxed()),
            open: HashMap::new(),
            tries: FuturesUnordered::new(),
            look_ups: FuturesUnordered::new(),
            failures: Vec::new(),
        }
    }

    /// Connects to the TCP service at `place`.
    ///
    /// # Errors
    /// When no address answers.
    pub async fn tcp(&self, place: Place) -> Result<TcpStream, Unreached> {
        let mut dialling =
            self.dial(vec![place], Manner::SERVICE, |_, address| TcpStream::connect(address));
        if let Some((_, stream)) = dialling.next().await {
            return Ok(stream);
        }
        let any = |wanted: fn(&Problem<std::io::Error>) -> bool| {
            dialling.failures().iter().any(|failure| wanted(&failure.problem))
        };
        let brief = match () {
            () if any(|problem| matches!(problem, Problem::Silent)) => "no answer",
            () if any(|problem| matches!(problem, Problem::Failed(_))) => "",
            () => "its name does not resolve",
        };
        let os_error =
            dialling.failures().iter().rev().find_map(|failure| match &failure.problem {
                Problem::Failed(error) => error.raw_os_error(),
                _ => None,
            });
        Err(Unreached { why: dialling.summary(), brief, os_error })
    }

    /// The addresses of a place, those that should be tried first at the front; from an earlier look-up when this one
    /// fails, or takes longer than [`ANSWER_DELAY`].
    ///
    /// # Errors
    /// Why there are none.
    pub async fn addresses(
        &self,
        place: &Place,
        manner: Manner,
    ) -> Result<Vec<SocketAddr>, String> {
        if let Some(address) = place.address() {
            return Ok(vec![address]);
        }
        let remembered = || self.lock().remembered(&place.host, manner.keep, Instant::now());
        let patience = if remembered().is_empty() { manner.look_up } else { ANSWER_DELAY };
        let (found, error) = match tokio::time::timeout(patience, self.look_up(&place.host)).await {
            Ok(Ok(found)) => (found, String::new()),
            Ok(Err(error)) => (remembered(), error),
            Err(_) => (remembered(), Problem::<String>::SlowLookUp.to_string()),
        };
        let now = Instant::now();
        let mut ranked = alternate(self.ranked(&found, place.port, now));
        ranked.sort_by_key(|(_, standing)| *standing);
        if ranked.is_empty() {
            Err(error)
        } else {
            Ok(ranked.into_iter().map(|one| one.0).collect())
        }
    }

    /// Notes how a try at `address` ended that this dialler did not make itself.
    pub fn note(&self, address: SocketAddr, worked: bool) {
        self.lock().tried(address, worked, Instant::now());
    }

    /// The answer for `name`: one look-up a name at a time, which everybody who asks waits for. It ends on its own, also
    /// when nobody waits any longer, and leaves its answer in the memory.
    fn look_up(&self, name: &str) -> impl Future<Output = Answer> + Send + use<> {
        let mut answer = self.flight(name);
        async move {
            match answer.wait_for(Option::is_some).await {
                Ok(answer) => answer.clone().unwrap_or_else(|| Err(String::new())),
                Err(_) => Err("the look-up broke off".to_owned()),
            }
        }
    }

    fn flight(&self, name: &str) -> watch::Receiver<Option<Answer>> {
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // A look-up that broke off leaves a closed channel: another one takes its place.
        if let Some(answer) = flights.get(name)
            && answer.has_changed().is_ok()
        {
            return answer.clone();
        }
        let (tell, answer) = watch::channel(None);
        flights.insert(name.to_owned(), answer.clone());
        drop(flights);
        let (this, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            let slot = this.0.slots.acquire().await;
            let found = (this.0.resolve)(name.clone()).await;
            drop(slot);
            if let Ok(found) = &found {
                this.lock().answered(&name, found.clone(), Instant::now());
            }
            let mut flights = this.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.remove(&name);
            tell.send_replace(Some(found));
        });
        answer
    }

    fn ranked(&self, found: &[IpAddr], port: u16, now: Instant) -> Vec<(SocketAddr, Standing)> {
        let memory = self.lock();
        let rank = |ip: &IpAddr| {
            let address = SocketAddr::new(ip.to_canonical(), port);
            (address, memory.standing(address, now))
        };
        found.iter().take(limits::ADDRESSES_PER_NAME).map(rank).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A TCP service that was not reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unreached {
    /// What happened at each address, in one line.
    pub why: String,
    /// The same without addresses; empty when the service refused.
    pub brief: &'static str,
    /// The error number of the system for the last try that failed.
    pub os_error: Option<i32>,
}

/// What went wrong with one name or address.
#[derive(Debug)]
pub enum Problem<E> {
    /// The name could not be looked up.
    LookUp(String),
    /// The look-up takes longer than [`Manner::look_up`]; its answer serves the next dial.
    SlowLookUp,
    /// The address did not answer within [`Manner::each`].
    Silent,
    /// The try failed.
    Failed(E),
}

impl<E: fmt::Display> fmt::Display for Problem<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::LookUp(why) => write!(f, "the name does not resolve: {why}"),
            Problem::SlowLookUp => f.write_str("the name server takes long"),
            Problem::Silent => f.write_str("no answer"),
            Problem::Failed(error) => error.fmt(f),
        }
    }
}

/// One failure of a dial.
#[derive(Debug)]
pub struct Failure<E> {
    /// Which place.
    pub place: usize,
    /// Where, once the name was looked up.
    pub address: Option<SocketAddr>,
    /// What happened.
    pub problem: Problem<E>,
}

type Connect<'a, T, E> = dyn Fn(usize, SocketAddr) -> BoxFuture<'a, Result<T, E>> + Send + 'a;
type Try<'a, T, E> = BoxFuture<'a, (TryId, Result<Result<T, E>, Aborted>)>;

/// A dial under way; dropping it ends its tries, and leaves its look-ups to themselves.
pub struct Dialling<'a, T, E> {
    dialler: Dialler,
    places: Vec<Place>,
    manner: Manner,
    race: Race,
    connect: Box<Connect<'a, T, E>>,
    open: HashMap<TryId, Open>,
    tries: FuturesUnordered<Try<'a, T, E>>,
    look_ups: FuturesUnordered<BoxFuture<'static, (usize, Answer)>>,
    failures: Vec<Failure<E>>,
}

struct Open {
    place: usize,
    address: SocketAddr,
    begun: Instant,
    abort: AbortHandle,
}

impl<T, E> fmt::Debug for Dialling<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialling").field("places", &self.places).finish_non_exhaustive()
    }
}

impl<'a, T: 'a, E: 'a> Dialling<'a, T, E> {
    /// The next connection, and the place it leads to; `None` when nothing is left to try. Asked again after a
    /// connection that turned out to be of no use, it goes on with the other addresses.
    pub async fn next(&mut self) -> Option<(usize, T)> {
        loop {
            while let Some(output) = self.race.poll_output() {
                self.perform(output);
            }
            if self.race.is_over() {
                return None;
            }
            let due = self.race.poll_timeout();
            tokio::select! {
                // What is there already counts before a deadline that passed while nobody asked.
                biased;
                Some((id, result)) = self.tries.next() => {
                    // An aborted try was accounted for when it was cancelled.
                    let Some(open) = self.open.remove(&id) else { continue };
                    let now = Instant::now();
                    self.race.handle(Input::Ended(id), now);
                    match result {
                        Ok(Ok(connection)) => {
                            self.dialler.lock().tried(open.address, true, now);
                            return Some((open.place, connection));
                        }
                        Ok(Err(error)) => self.failed(&open, Problem::Failed(error), now),
                        Err(Aborted) => self.failed(&open, Problem::Silent, now),
                    }
                }
                Some((place, answer)) = self.look_ups.next() => self.found(place, answer),
                () = sleep_until(due) => self.race.handle(Input::Timeout, Instant::now()),
            }
        }
    }

    /// What went wrong so far.
    pub fn failures(&self) -> &[Failure<E>] {
        &self.failures
    }

    /// Takes what went wrong so far.
    pub fn take_failures(&mut self) -> Vec<Failure<E>> {
        std::mem::take(&mut self.failures)
    }

    /// The place as it was given, with the address when its name has others.
    pub fn shown(&self, failure: &Failure<E>) -> String {
        let Some(place) = self.places.get(failure.place) else { return String::new() };
        let is_v6 = place.host.contains(':');
        let host = if is_v6 { format!("[{}]", place.host) } else { place.host.clone() };
        match failure.address {
            Some(address) if place.address().is_none() => {
                format!("{host}:{} ({})", place.port, address.ip())
            }
            _ => format!("{host}:{}", place.port),
        }
    }

    fn perform(&mut self, output: Output) {
        let now = Instant::now();
        match output {
            Output::LookUp(place) => {
                let Place { host, port, .. } = self.places[place].clone();
                let answer = self.dialler.look_up(&host);
                self.look_ups.push(async move { (place, answer.await) }.boxed());
                let earlier = self.dialler.lock().remembered(&host, self.manner.keep, now);
                let earlier = self.dialler.ranked(&earlier, port, now);
                self.race.handle(Input::Remembered(place, earlier), now);
            }
            Output::Start { id, place, address } => {
                let (abort, registration) = AbortHandle::new_pair();
                self.open.insert(id, Open { place, address, begun: now, abort });
                let attempt = Abortable::new((self.connect)(place, address), registration);
                self.tries.push(async move { (id, attempt.await) }.boxed());
            }
            Output::Cancel(id) => {
                if let Some(open) = self.open.remove(&id) {
                    open.abort.abort();
                    self.failed(&open, Problem::Silent, now);
                }
            }
            Output::NoAnswer(place) => {
                self.failures.push(Failure { place, address: None, problem: Problem::SlowLookUp });
            }
        }
    }

    fn found(&mut self, place: usize, answer: Answer) {
        let now = Instant::now();
        let found = match answer {
            Ok(found) => self.dialler.ranked(&found, self.places[place].port, now),
            Err(why) => {
                self.failures.push(Failure { place, address: None, problem: Problem::LookUp(why) });
                Vec::new()
            }
        };
        self.race.handle(Input::Found(place, found), now);
    }

    fn failed(&mut self, open: &Open, problem: Problem<E>, now: Instant) {
        self.dialler.lock().tried(open.address, false, now);
        let (place, address) = (open.place, Some(open.address));
        self.failures.push(Failure { place, address, problem });
    }
}

impl<'a, T: 'a, E: fmt::Display + 'a> Dialling<'a, T, E> {
    /// What went wrong, in one line; of many failures the first ones.
    pub fn summary(&self) -> String {
        const SHOWN: usize = 6;
        let shown = self.failures.iter().take(SHOWN);
        let mut lines: Vec<String> =
            shown.map(|failure| format!("{}: {}", self.shown(failure), failure.problem)).collect();
        match self.failures.len() {
            0 => lines.push("no address".to_owned()),
            all if all > SHOWN => lines.push(format!("and {} more", all - SHOWN)),
            _ => {}
        }
        lines.join("; ")
    }
}

impl<T, E> Drop for Dialling<'_, T, E> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut memory = self.dialler.0.memory.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever had time for an answer and gave none comes later the next time.
        for open in self.open.values() {
            if now.saturating_duration_since(open.begun) >= self.manner.stagger {
                memory.tried(open.address, false, now);
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
