//! `top`: the mesh at a glance, in a terminal, until somebody has seen enough.

mod feed;
mod model;
#[cfg(test)]
mod tests;
mod view;

use std::future::pending;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt, StreamExt};
use ratatui::DefaultTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use self::feed::Events;
use self::model::{Act, Answers, Key, Model};
use super::query::text::Look;
use super::{Global, Usage, local};

/// The relay is asked this long after its last answer,
const PERIOD: Duration = Duration::from_secs(1);
/// or after a change, but not sooner than this after its last answer.
const SOONEST: Duration = Duration::from_millis(250);

/// A stream of changes that ended is opened again after this.
const REOPEN: Duration = Duration::from_secs(5);

const NO_JSON: Usage =
    Usage("top: it has no --json: use 'status', 'relays', 'terminals' or 'sessions'");

/// Shows the mesh until a key or a signal ends it.
///
/// # Errors
/// When standard output is no terminal, or the relay does not answer at the start.
pub(super) async fn run(global: &Global) -> Result<()> {
    if global.json {
        return Err(NO_JSON.into());
    }
    if !std::io::stdout().is_terminal() {
        bail!(
            "no-terminal: standard output is no terminal: use 'status', 'relays', 'terminals' or 'sessions', with \
             --json for programs"
        );
    }
    let socket = local::socket(global).await;
    let model = Model::new();
    let first = feed::ask(&socket, model.wants()).await?;
    let look = Look::of_stdout();
    let _restored = Restored;
    let terminal = ratatui::try_init().context("the terminal cannot be set up")?;
    Screen { socket: &socket, model, look, terminal, start: Instant::now() }.run(first).await
}

/// Gives the terminal back as it was, however the screen ends. A panic does so before it writes its message.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Err(error) = ratatui::try_restore() {
            tracing::warn!(%error, "the terminal is not as it was: `reset` helps");
        }
    }
}

struct Screen<'a> {
    socket: &'a Path,
    model: Model,
    look: Look,
    terminal: DefaultTerminal,
    start: Instant,
}

impl Screen<'_> {
    async fn run(mut self, first: Answers) -> Result<()> {
        let mut keys = EventStream::new();
        let [mut hangup, mut terminate, mut interrupt] =
            [SignalKind::hangup(), SignalKind::terminate(), SignalKind::interrupt()].map(signal);
        let signals = (hangup.as_mut(), terminate.as_mut(), interrupt.as_mut());
        let (Ok(hangup), Ok(terminate), Ok(interrupt)) = signals else {
            bail!("this process cannot wait for signals: use 'status'");
        };
        self.model.handle_answers(first, Duration::ZERO);
        let (mut asking, mut opening, mut events) = (None, Some(self.open()), None);
        let mut answered = self.start;
        let (mut due, mut open_at) = (answered + PERIOD, answered);
        loop {
            self.draw()?;
            tokio::select! {
                _ = hangup.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                event = keys.next() => match event {
                    None => return Ok(()),
                    Some(event) => match self.handle_event(&event.context("no keys can be read")?) {
                        Act::Quit => return Ok(()),
                        Act::Ask => asking = Some(self.ask()),
                        Act::Show => {}
                    },
                },
                answer = of(&mut asking) => {
                    asking = None;
                    answered = Instant::now();
                    due = answered + PERIOD;
                    match answer {
                        Ok(answers) => self.model.handle_answers(answers, answered - self.start),
                        Err(error) => self.model.handle_loss(&format!("{error:#}")),
                    }
                    if events.is_none() && opening.is_none() && answered >= open_at {
                        opening = Some(self.open());
                    }
                }
                () = sleep_until(due), if asking.is_none() => asking = Some(self.ask()),
                opened = of(&mut opening) => {
                    opening = None;
                    open_at = Instant::now() + REOPEN;
                    events = opened.ok();
                    self.model.live = events.is_some();
                }
                news = next(&mut events) => match news {
                    Some(0) => {}
                    Some(changes) => {
                        self.model.handle_changes(changes);
                        due = due.min(answered + SOONEST);
                    }
                    None => {
                        events = None;
                        self.model.live = false;
                    }
                },
            }
        }
    }

    fn ask(&self) -> LocalBoxFuture<'static, Result<Answers>> {
        let (socket, wants) = (self.socket.to_owned(), self.model.wants());
        async move { feed::ask(&socket, wants).await }.boxed_local()
    }

    fn open(&self) -> LocalBoxFuture<'static, Result<Events>> {
        let socket = self.socket.to_owned();
        async move { Events::open(&socket).await }.boxed_local()
    }

    fn draw(&mut self) -> Result<()> {
        let Self { model, terminal, .. } = self;
        let look = Look { colour: self.look.colour, ..Look::plain() };
        let draw = |frame: &mut ratatui::Frame<'_>| {
            model.set_room(view::room(frame.area().height));
            view::draw(model, look, frame);
        };
        terminal.draw(draw).context("the terminal cannot be written to")?;
        Ok(())
    }

    fn handle_event(&mut self, event: &Event) -> Act {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => {
                key_of(*key).map_or(Act::Show, |key| self.model.handle_key(key))
            }
            // Whatever else happens to a terminal (its size, above all): it is drawn anew.
            _ => Act::Show,
        }
    }
}

/// The future's value; never, where there is none.
async fn of<T>(future: &mut Option<LocalBoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn next(events: &mut Option<Events>) -> Option<usize> {
    match events {
        Some(events) => events.next().await,
        None => pending().await,
    }
}

/// What a key means; `None`: nothing.
fn key_of(key: KeyEvent) -> Option<Key> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c') if control => Key::Interrupt,
        KeyCode::Char(_) if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => {
            return None;
        }
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}
