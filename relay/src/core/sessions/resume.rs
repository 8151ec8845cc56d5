//! Further paths of running sessions (architecture 5): asked for by the caller, taken by the callee.

use std::time::Instant;

use tasuki_proto::control::{self, PathEnd, ToTerminal};
use tasuki_proto::mesh::{RoutedResume, ToPeer};
use tasuki_proto::{Generation, Refusal, RefusalCode, TerminalId, limits};

use super::{Ending, HopId, Neighbour, Output, Place, Sessions};
use crate::core::{ConnId, LinkId};

impl Sessions {
    pub(super) fn handle_resume(
        &mut self,
        from: ConnId,
        caller: TerminalId,
        resume: control::Resume,
        place: Result<Place, Refusal>,
        now: Instant,
        wall_ms: u64,
    ) {
        let id = HopId { session: resume.session, generation: resume.generation };
        let prev = Neighbour::Terminal(from);
        let may_ask = self.terminals.entry(from).or_default().may_ask(now);
        let checked = if may_ask { Ok(()) } else { Err(RefusalCode::Busy.into()) };
        let checked =
            checked.and_then(|()| self.admit_path(id, &caller, &resume.target)).and(place);
        let place = match checked {
            Ok(place) => place,
            Err(refusal) => return self.tell_end(prev, id, refusal.code, false),
        };
        let routed = RoutedResume {
            session: resume.session,
            generation: resume.generation,
            route: place.route,
            names: place.names,
            caller,
            target: resume.target,
            service: resume.service,
            label: resume.label,
        };
        self.pass_path_on(prev, place.next, routed, now, wall_ms);
    }

    pub(super) fn handle_routed_resume(
        &mut self,
        from: LinkId,
        resume: RoutedResume,
        next: Result<Neighbour, Refusal>,
        now: Instant,
        wall_ms: u64,
    ) {
        let id = HopId { session: resume.session, generation: resume.generation };
        let prev = Neighbour::Link(from);
        match self.admit_path(id, &resume.caller, &resume.target).and(next) {
            Ok(next) => self.pass_path_on(prev, next, resume, now, wall_ms),
            Err(refusal) => self.tell_end(prev, id, refusal.code, false),
        }
    }

    /// A path for a session that this relay knows is for the same terminals. Of others it cannot know whether they
    /// run: their callee does.
    fn admit_path(
        &self,
        id: HopId,
        caller: &TerminalId,
        target: &TerminalId,
    ) -> Result<(), Refusal> {
        let fits = match self.session_by_id.get(&id.session) {
            Some(session) => session.caller == *caller && session.callee == *target,
            None if self.session_by_id.len() >= self.most => {
                return Err(RefusalCode::Busy.into());
            }
            None => caller != target,
        };
        if !fits || id.generation == Generation::CALL || self.hop_by_id.contains_key(&id) {
            return Err(RefusalCode::BadRequest.into());
        }
        if self.hops_of(id.session).count() >= limits::PATHS_PER_SESSION {
            return Err(RefusalCode::Busy.into());
        }
        Ok(())
    }

    /// Makes the hop and tells the next neighbour.
    fn pass_path_on(
        &mut self,
        prev: Neighbour,
        next: Neighbour,
        resume: RoutedResume,
        now: Instant,
        wall_ms: u64,
    ) {
        let id = HopId { session: resume.session, generation: resume.generation };
        let who = (&resume.caller, &resume.target, &resume.service);
        let label =
            self.add_hop(id, (prev, next), (resume.label, &resume.names), who, now, wall_ms);
        self.outputs.push_back(match next {
            Neighbour::Link(link) => {
                Output::ToPeer(link, ToPeer::Resume(RoutedResume { label, ..resume }))
            }
            Neighbour::Terminal(conn) => Output::ToTerminal(
                conn,
                ToTerminal::Resuming(control::Resuming {
                    session: resume.session,
                    generation: resume.generation,
                    caller: resume.caller,
                    label,
                    route: resume.names,
                }),
            ),
        });
    }

    /// Only a path's own neighbours end it; the callee's refusal is an end too.
    pub(super) fn handle_end_path(&mut self, from: Neighbour, end: &PathEnd, wall_ms: u64) {
        let id = HopId { session: end.session, generation: end.generation };
        let Some(hop) = self.hop_by_id.get(&id) else { return };
        if hop.prev != from && hop.next != from {
            return;
        }
        // A call that was not answered is refused or withdrawn, not a path that is given up.
        if id.generation == Generation::CALL && !hop.is_active() {
            return;
        }
        let ending = Ending { code: end.code, session: false, told: Some(from), refused: None };
        self.remove(id, ending, wall_ms);
    }
}
