//! Further paths of running sessions (architecture 5): asked for by the caller, taken by the callee.

use std::time::Instant;

use tasuki_proto::control::{self, PathEnd, ToTerminal};
use tasuki_proto::mesh::{RoutedResume, ToPeer};
use tasuki_proto::{Generation, Refusal, RefusalCode, TerminalId, limits};

use super::budget::{Asker, Charge};
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
        let asker = Asker::Terminal(caller.clone());
        let pair = (&caller, &resume.target);
        let checked = self.check_rate(&asker, pair, now).and(place);
        let checked = checked.and_then(|place| {
            self.admit_path(id, asker, place.next, pair).map(|charge| (place, charge))
        });
        let (place, charge) = match checked {
            Ok(checked) => checked,
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
        self.pass_path_on(prev, place.next, (routed, charge), now, wall_ms);
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
        let asker = Asker::Link(from);
        let pair = (&resume.caller, &resume.target);
        let checked = self.check_rate(&asker, pair, now).and(next);
        let checked = checked
            .and_then(|next| self.admit_path(id, asker, next, pair).map(|charge| (next, charge)));
        match checked {
            Ok((next, charge)) => self.pass_path_on(prev, next, (resume, charge), now, wall_ms),
            Err(refusal) => self.tell_end(prev, id, refusal.code, false),
        }
    }

    /// A path for a session that this relay knows is for the same terminals. Of others it cannot know whether they
    /// run: their callee does. Such a path makes a session here, so it is charged as a call is; returns to whom.
    fn admit_path(
        &mut self,
        id: HopId,
        asker: Asker,
        next: Neighbour,
        (caller, target): (&TerminalId, &TerminalId),
    ) -> Result<Option<Charge>, Refusal> {
        let known = self.session_by_id.get(&id.session);
        let fits = match known {
            Some(session) => session.caller == *caller && session.callee == *target,
            None => caller != target,
        };
        if !fits || id.generation == Generation::CALL || self.hop_by_id.contains_key(&id) {
            return Err(RefusalCode::BadRequest.into());
        }
        if known.is_some() {
            let room = self.hops_of(id.session).count() < limits::PATHS_PER_SESSION;
            return if room { Ok(None) } else { Err(RefusalCode::Busy.into()) };
        }
        let charge = Charge::new(asker, next, caller, target);
        self.check_room(&charge).map(|()| Some(charge))
    }

    /// Makes the hop and tells the next neighbour.
    fn pass_path_on(
        &mut self,
        prev: Neighbour,
        next: Neighbour,
        (resume, charge): (RoutedResume, Option<Charge>),
        now: Instant,
        wall_ms: u64,
    ) {
        let id = HopId { session: resume.session, generation: resume.generation };
        let asker = match prev {
            Neighbour::Terminal(_) => Asker::Terminal(resume.caller.clone()),
            Neighbour::Link(link) => Asker::Link(link),
        };
        let who = (&resume.service, charge);
        let label =
            self.add_hop(id, (prev, next), (resume.label, &resume.names), who, now, wall_ms);
        self.outputs.push_back(match next {
            Neighbour::Link(link) => {
                Output::OfferPeer(link, id, ToPeer::Resume(RoutedResume { label, ..resume }))
            }
            Neighbour::Terminal(conn) => Output::OfferTerminal(
                conn,
                (id, asker),
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
