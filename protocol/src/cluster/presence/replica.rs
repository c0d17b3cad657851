//! What a node knows of another's entries.

use std::collections::VecDeque;

use super::state::{Change, State, entry_bytes};
use super::{Bounds, Message, NodeKey, Outcome, Rest, Run, Tell, wire};

/// A peer's entries, as they were at one of its versions.
#[derive(Debug)]
pub(super) struct Replica {
    node: NodeKey,
    origin: u16,
    state: State,
    gathering: Option<Gathering>,
    /// Whether something was asked for, and not answered in full yet.
    asked: bool,
    /// Whether an answer has come since the last digest of this node.
    progressed: bool,
    /// Whether the entries are not what they must be at their version: only all of them help.
    diverged: bool,
    /// Whether some entries were refused: then there is nothing to compare.
    incomplete: bool,
    /// Events that wait for a version, oldest first.
    tells: VecDeque<Tell>,
    tells_bytes: usize,
}

/// All entries at a version, as far as they have come.
#[derive(Debug)]
struct Gathering {
    version: u64,
    hash: u64,
    /// Entries so far, those refused too.
    at: u64,
    state: State,
    incomplete: bool,
}

/// Runs of changes and pieces, as they come.
struct Part {
    count: u64,
    rest: Rest,
    run: Run,
}

impl Replica {
    pub fn new(node: NodeKey, origin: u16) -> Self {
        Self {
            state: State::new(node.incarnation),
            node,
            origin,
            gathering: None,
            asked: false,
            progressed: false,
            diverged: false,
            incomplete: false,
            tells: VecDeque::new(),
            tells_bytes: 0,
        }
    }

    pub fn node(&self) -> &NodeKey {
        &self.node
    }

    pub fn origin(&self) -> u16 {
        self.origin
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its end, as changes.
    pub fn into_removals(self) -> impl Iterator<Item = Change> {
        let ids: Vec<_> = self.state.iter().map(|(id, _)| id.clone()).collect();
        ids.into_iter().map(|id| Change { id, meta: None })
    }

    /// What was asked for a second ago, and nothing came of it, may be asked for again.
    pub fn second_passed(&mut self) {
        self.asked &= std::mem::take(&mut self.progressed);
    }

    pub fn receive(&mut self, message: Message, bounds: &Bounds, out: &mut Outcome) {
        match message {
            Message::Changes { from, count, rest, run } => {
                self.changes(from, Part { count, rest, run }, bounds, out);
            }
            Message::Digest { version, hash } => self.digest((version, hash), bounds, out),
            Message::Piece { version, hash, at, count, rest, run } => {
                self.piece((version, hash, at), Part { count, rest, run }, bounds, out);
            }
            Message::Tell(tell) => {
                self.tell(tell, bounds, out);
                return;
            }
            Message::Wanted { .. } | Message::WholeWanted { .. } => return,
        }
        self.release_tells(out);
    }

    /// Asks for what follows, or is missing.
    pub fn ask(&mut self, out: &mut Outcome) {
        self.asked = true;
        let wanted = match &self.gathering {
            Some(gathering) => Message::WholeWanted { version: gathering.version, at: gathering.at },
            None if self.diverged => Message::WholeWanted { version: self.state.version(), at: 0 },
            None => Message::Wanted { after: self.state.version() },
        };
        match wanted {
            Message::Wanted { .. } => out.counts.asked_for_changes += 1,
            _ => out.counts.asked_for_all += 1,
        }
        out.messages.push((self.node.clone(), wanted));
    }

    fn ask_unless_asked(&mut self, out: &mut Outcome) {
        if !self.asked {
            self.ask(out);
        }
    }

    fn changes(&mut self, from: u64, part: Part, bounds: &Bounds, out: &mut Outcome) {
        let version = self.state.version();
        if from.checked_add(part.count).is_none() {
            out.counts.malformed += 1;
            return;
        }
        if self.diverged {
            return;
        }
        if from > version {
            self.ask_unless_asked(out);
            return;
        }
        let known = version - from;
        if known < part.count {
            let Ok(changes) = wire::read(&part.run, part.count, self.origin, bounds) else {
                out.counts.malformed += 1;
                return;
            };
            let known = usize::try_from(known).unwrap_or(usize::MAX);
            for change in changes.into_iter().skip(known) {
                self.apply(change, bounds, out);
            }
            self.progressed = true;
            if self.gathering.as_ref().is_some_and(|gathering| gathering.version <= self.state.version()) {
                self.gathering = None;
            }
        }
        match part.rest {
            Rest::Ask if self.asked => self.ask(out),
            Rest::Nothing if self.gathering.is_none() => self.asked = false,
            _ => {}
        }
    }

    fn apply(&mut self, change: Change, bounds: &Bounds, out: &mut Outcome) {
        let known = self.state.get(&change.id);
        if change.meta.is_none() && known.is_none() {
            // One that was refused.
            self.state.skip();
            return;
        }
        let fits = change.meta.as_ref().is_none_or(|meta| {
            let freed = known.map_or(0, |known| entry_bytes(&change.id, known));
            self.state.len() < bounds.entries_max + usize::from(known.is_some())
                && self.state.bytes() - freed + entry_bytes(&change.id, meta) <= bounds.entries_bytes_max
        });
        if fits {
            out.changes.push(change.clone());
            self.state.apply(change);
            return;
        }
        self.incomplete = true;
        out.counts.entries_refused += 1;
        if known.is_some() {
            let gone = Change { id: change.id, meta: None };
            out.changes.push(gone.clone());
            self.state.apply(gone);
        } else {
            self.state.skip();
        }
    }

    fn digest(&mut self, (version, hash): (u64, u64), bounds: &Bounds, out: &mut Outcome) {
        let has_room = self.state.len() < bounds.entries_max - bounds.entries_max / 10
            && self.state.bytes() < bounds.entries_bytes_max - bounds.entries_bytes_max / 10;
        if self.incomplete && has_room {
            // There is room again for those that were refused.
            self.diverged = true;
            self.ask_unless_asked(out);
        } else if version > self.state.version() {
            self.ask_unless_asked(out);
        } else if version == self.state.version() && !self.incomplete {
            if hash == self.state.hash() {
                self.asked = false;
                self.diverged = false;
                self.gathering = None;
            } else {
                if !std::mem::replace(&mut self.diverged, true) {
                    out.counts.diverged += 1;
                }
                self.ask_unless_asked(out);
            }
        }
    }

    fn piece(
        &mut self,
        (version, hash, at): (u64, u64, u64),
        part: Part,
        bounds: &Bounds,
        out: &mut Outcome,
    ) {
        if version < self.state.version() || (version == self.state.version() && !self.diverged) {
            return;
        }
        if self.gathering.as_ref().is_none_or(|gathering| gathering.version < version) && at == 0 {
            let state = State::new(self.node.incarnation);
            self.gathering = Some(Gathering { version, hash, at: 0, state, incomplete: false });
        }
        let expected = |gathering: &&mut Gathering| gathering.version == version && gathering.at == at;
        let Some(gathering) = self.gathering.as_mut().filter(expected) else { return };
        let Ok(entries) = wire::read(&part.run, part.count, self.origin, bounds) else {
            out.counts.malformed += 1;
            return;
        };
        for Change { id, meta } in entries {
            let Some(mut meta) = meta else { continue };
            // What is known already is kept once.
            if let Some(known) = self.state.get(&id).filter(|known| known.phx_ref == meta.phx_ref) {
                meta = known.clone();
            }
            if gathering.state.len() < bounds.entries_max
                && gathering.state.bytes() + entry_bytes(&id, &meta) <= bounds.entries_bytes_max
            {
                gathering.state.put(id, meta);
            } else {
                gathering.incomplete = true;
                out.counts.entries_refused += 1;
            }
        }
        gathering.at += part.count;
        self.progressed = true;
        match part.rest {
            Rest::Nothing => self.take_effect(out),
            Rest::Coming => {}
            Rest::Ask => self.ask(out),
        }
    }

    /// All entries have come.
    fn take_effect(&mut self, out: &mut Outcome) {
        let Some(Gathering { version, hash, mut state, incomplete, .. }) = self.gathering.take() else {
            return;
        };
        if !incomplete && state.hash() != hash {
            out.counts.malformed += 1;
            self.asked = false;
            return;
        }
        state.set_version(version);
        // Where they differ at one version, the writer is right.
        out.changes.extend(if self.diverged { self.state.replace(state) } else { self.state.merge(state) });
        self.diverged = false;
        self.incomplete = incomplete;
        // What was pushed meanwhile continued none that was known.
        self.ask(out);
    }

    fn tell(&mut self, tell: Tell, bounds: &Bounds, out: &mut Outcome) {
        let names = [&tell.topic, &tell.key, &tell.event];
        if names.iter().any(|name| name.is_empty() || name.len() > bounds.name_bytes_max) {
            out.counts.malformed += 1;
        } else if tell.after <= self.state.version() {
            out.tells.push(tell);
        } else if self.tells_bytes + tell.bytes() > bounds.tells_bytes_max {
            out.counts.tells_refused += 1;
        } else {
            self.tells_bytes += tell.bytes();
            self.tells.push_back(tell);
        }
    }

    fn release_tells(&mut self, out: &mut Outcome) {
        while let Some(tell) = self.tells.pop_front_if(|tell| tell.after <= self.state.version()) {
            self.tells_bytes -= tell.bytes();
            out.tells.push(tell);
        }
    }
}
