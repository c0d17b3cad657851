//! Teams: agents that work on something together (agrenting.md R129). A team's record, what its members may do, and the
//! votes they take. A pure function of record, command and time; `actors/` carries it, the store keeps it.

use serde::{Deserialize, Serialize};

mod command;
mod tally;

pub use self::command::{
    Action, Choice, Command, EscalationRequest, KnowledgeRequest, Severity, VoteRequest,
};
use self::tally::VoteView;
use crate::agent::text_forms;
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, EntryId, TeamId, VoteId};
use crate::json::Json;
use crate::limits::Limits;
use crate::time::Timestamp;

/// A team.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// Id.
    pub id: TeamId,
    /// What it is called.
    pub name: String,
    /// Who made it, and says who belongs to it; always a member.
    pub owner: AgentId,
    /// Who belongs to it, in the order in which they came.
    pub members: Vec<AgentId>,
    /// The votes that are open, oldest first.
    pub votes: Vec<Vote>,
    /// What it kept last.
    pub last_entry: Option<EntryId>,
    /// Creation.
    pub created_at: Timestamp,
    /// How often it has changed: what the store compares.
    pub version: u64,
}

/// A vote that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// Id.
    pub id: VoteId,
    /// What is asked.
    pub question: String,
    /// What there is to choose from.
    pub options: Vec<String>,
    /// Who asked.
    pub opened_by: AgentId,
    /// Since when.
    pub opened_at: Timestamp,
    /// Until when.
    pub closes_at: Timestamp,
    /// Who chose which, by its place among the options.
    pub ballots: Vec<(AgentId, usize)>,
}

/// What a team keeps, one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Id; sorts by the order in which the team took them, whatever the clocks of its nodes say.
    pub id: EntryId,
    /// Of which sort.
    pub kind: EntryKind,
    /// Whose.
    pub author: AgentId,
    /// What it says, as members are told.
    pub body: Json,
    /// Since when.
    pub inserted_at: Timestamp,
}

/// Sorts of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TeamEntryKind)]
pub enum EntryKind {
    /// Said to everybody.
    Message,
    /// What all should know.
    Knowledge,
    /// Something a member cannot settle.
    Escalation,
    /// How a vote ended.
    Vote,
}

text_forms!(EntryKind {
    Message = "message",
    Knowledge = "knowledge",
    Escalation = "escalation",
    Vote = "vote",
});

/// What is stored, and told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The team as it is from now on.
    pub team: Team,
    /// What it keeps of that.
    pub entries: Vec<Entry>,
    /// What its members are told: event and payload.
    pub told: Vec<(Told, Json)>,
}

/// Events that members are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Somebody said something.
    Message,
    /// Something is asked.
    VoteOpened,
    /// Somebody has answered; not what.
    VoteCast,
    /// How a vote ended.
    VoteClosed,
    /// Something all should know.
    KnowledgeAdded,
    /// Somebody needs help.
    Escalated,
    /// Somebody was taken in.
    MemberAdded,
    /// Somebody is out.
    MemberRemoved,
}

/// Options of a vote at most, and at least two.
pub const OPTIONS_MAX: usize = 20;
/// A vote's time when it does not say, in seconds: a day.
pub const VOTE_PERIOD_S: u32 = 86_400;
/// A vote's time at most, in seconds: 30 days.
pub const VOTE_PERIOD_S_MAX: u32 = 30 * 86_400;

/// A change, or none, and the answer to whoever asked.
pub type Decided = (Option<Change>, Result<Json, Refusal>);

impl Team {
    /// A new team: its owner, and whom it begins with.
    ///
    /// # Errors
    /// A name that does not fit, or more members than there may be.
    pub fn new(
        (id, name): (TeamId, String),
        owner: AgentId,
        others: &[AgentId],
        now: Timestamp,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        check_text(&name, "name", limits.name_chars_max)?;
        let mut members = vec![owner];
        for agent in others {
            if !members.contains(agent) {
                members.push(*agent);
            }
        }
        if members.len() > limits.team_members_max {
            return Err(ErrorCode::LimitReached.into());
        }
        Ok(Self {
            id,
            name,
            owner,
            members,
            votes: Vec::new(),
            last_entry: None,
            created_at: now,
            version: 1,
        })
    }

    /// Whether an agent belongs to it.
    #[must_use]
    pub fn has(&self, agent: AgentId) -> bool {
        self.members.contains(&agent)
    }

    /// When the first of its votes ends.
    #[must_use]
    pub fn due_at(&self) -> Option<Timestamp> {
        self.votes.iter().map(|vote| vote.closes_at).min()
    }

    /// What members see of it.
    #[must_use]
    pub fn view(&self) -> Json {
        #[derive(Serialize)]
        struct View<'a> {
            id: TeamId,
            name: &'a str,
            owner_agent_id: AgentId,
            members: &'a [AgentId],
            votes: Vec<VoteView<'a>>,
            created_at: Timestamp,
        }
        Json::of(&View {
            id: self.id,
            name: &self.name,
            owner_agent_id: self.owner,
            members: &self.members,
            votes: self.votes.iter().map(Vote::view).collect(),
            created_at: self.created_at,
        })
    }

    /// What a command does.
    pub fn decide(&self, command: &Command, now: Timestamp, limits: &Limits) -> Decided {
        let mut change = Change { team: self.clone(), entries: Vec::new(), told: Vec::new() };
        // A vote whose time is over takes nothing more, whether or not the sweep has come by.
        change.close_votes(now);
        let answer = change.apply(command, now, limits);
        let has_changed = change.team != *self || !change.entries.is_empty() || !change.told.is_empty();
        change.team.version += 1;
        (has_changed.then_some(change), answer.map(|answer| answer.unwrap_or_else(Json::empty_object)))
    }
}

impl Change {
    /// `None`: there is nothing to do.
    fn apply(&mut self, command: &Command, now: Timestamp, limits: &Limits) -> Result<Option<Json>, Refusal> {
        match command {
            Command::Due => Ok(None),
            Command::Add { by, agent } => self.add(*by, *agent, limits),
            Command::Remove { by, agent } => self.remove(*by, *agent),
            Command::Act { by, entry, action } => {
                if !self.team.has(*by) {
                    return Err(ErrorCode::Unauthorized.into());
                }
                self.act((*by, *entry), action, now, limits)
            }
        }
    }

    fn add(&mut self, by: AgentId, agent: AgentId, limits: &Limits) -> Result<Option<Json>, Refusal> {
        if by != self.team.owner {
            return Err(ErrorCode::Forbidden.into());
        }
        if self.team.has(agent) {
            return Ok(Some(self.team.view()));
        }
        if self.team.members.len() >= limits.team_members_max {
            return Err(ErrorCode::LimitReached.into());
        }
        self.team.members.push(agent);
        self.tell(Told::MemberAdded, &serde_json::json!({ "agent_id": agent }));
        Ok(Some(self.team.view()))
    }

    /// Its ballots stay: what was chosen by a member counts.
    fn remove(&mut self, by: AgentId, agent: AgentId) -> Result<Option<Json>, Refusal> {
        if by != self.team.owner && by != agent {
            return Err(ErrorCode::Forbidden.into());
        }
        if agent == self.team.owner {
            return Err(Refusal::field(ErrorCode::InvalidPayload, "agent_id", "the owner of a team stays"));
        }
        if !self.team.has(agent) {
            return Err(ErrorCode::NotFound.into());
        }
        self.team.members.retain(|member| *member != agent);
        self.tell(Told::MemberRemoved, &serde_json::json!({ "agent_id": agent }));
        Ok(Some(self.team.view()))
    }

    fn act(
        &mut self,
        (by, id): (AgentId, EntryId),
        action: &Action,
        now: Timestamp,
        limits: &Limits,
    ) -> Result<Option<Json>, Refusal> {
        let id = self.next_entry(id);
        let answer = Json::of(&serde_json::json!({ "id": id, "inserted_at": now }));
        match action {
            Action::Say(content) => {
                check_size(content, "content", limits)?;
                self.keep((id, EntryKind::Message, by), Told::Message, now, &Said { content });
            }
            Action::AddKnowledge(request) => {
                check_text(&request.topic, "topic", limits.name_chars_max)?;
                check_size(&request.content, "content", limits)?;
                let said = Known { topic: &request.topic, content: &request.content };
                self.keep((id, EntryKind::Knowledge, by), Told::KnowledgeAdded, now, &said);
            }
            Action::Escalate(request) => {
                check_text(&request.reason, "reason", limits.note_chars_max)?;
                if let Some(details) = &request.details {
                    check_size(details, "details", limits)?;
                }
                let (reason, details) = (&request.reason, request.details.as_ref());
                let said = Escalated { reason, severity: request.severity, details };
                self.keep((id, EntryKind::Escalation, by), Told::Escalated, now, &said);
            }
            Action::OpenVote(vote, request) => return self.open_vote(by, *vote, request, now, limits),
            Action::Cast(vote, choice) => return self.cast(by, *vote, choice),
        }
        Ok(Some(answer))
    }

    fn open_vote(
        &mut self,
        by: AgentId,
        id: VoteId,
        request: &VoteRequest,
        now: Timestamp,
        limits: &Limits,
    ) -> Result<Option<Json>, Refusal> {
        check_text(&request.question, "question", limits.note_chars_max)?;
        let misfit = |field, message: String| Err(Refusal::field(ErrorCode::InvalidPayload, field, message));
        if !(2..=OPTIONS_MAX).contains(&request.options.len()) {
            return misfit("options", format!("from 2 to {OPTIONS_MAX}"));
        }
        for (place, option) in request.options.iter().enumerate() {
            check_text(option, "options", limits.name_chars_max)?;
            if request.options.iter().take(place).any(|before| before == option) {
                return misfit("options", "each once".into());
            }
        }
        let period_s = request.period_s.unwrap_or(VOTE_PERIOD_S);
        if !(1..=VOTE_PERIOD_S_MAX).contains(&period_s) {
            return misfit("period_s", format!("from 1 to {VOTE_PERIOD_S_MAX}"));
        }
        if self.team.votes.len() >= limits.team_open_votes_max {
            return Err(ErrorCode::LimitReached.into());
        }
        let vote = Vote {
            id,
            question: request.question.clone(),
            options: request.options.clone(),
            opened_by: by,
            opened_at: now,
            closes_at: now.plus_ms(i64::from(period_s) * 1_000),
            ballots: Vec::new(),
        };
        let view = Json::of(&vote.view());
        self.told.push((Told::VoteOpened, view.clone()));
        self.team.votes.push(vote);
        Ok(Some(view))
    }

    fn cast(&mut self, by: AgentId, id: VoteId, choice: &Choice) -> Result<Option<Json>, Refusal> {
        let Some(vote) = self.team.votes.iter_mut().find(|vote| vote.id == id) else {
            return Err(Refusal::field(
                ErrorCode::NotFound,
                "vote_id",
                "there is no such vote, or it is closed",
            ));
        };
        let place = match choice {
            Choice::Place(place) => Some(*place),
            Choice::Words(words) => vote.options.iter().position(|option| option == words),
        };
        let place = place.filter(|place| *place < vote.options.len()).ok_or_else(|| {
            Refusal::field(ErrorCode::InvalidPayload, "option", "one of the options, or its place from 0")
        })?;
        let is_new = match vote.ballots.iter_mut().find(|(agent, _)| *agent == by) {
            Some(ballot) if ballot.1 == place => return Ok(None),
            Some(ballot) => {
                ballot.1 = place;
                false
            }
            None => {
                vote.ballots.push((by, place));
                true
            }
        };
        let ballots = vote.ballots.len();
        if is_new {
            self.tell(
                Told::VoteCast,
                &serde_json::json!({ "vote_id": id, "agent_id": by, "ballots": ballots }),
            );
        }
        Ok(Some(Json::of(&serde_json::json!({ "vote_id": id, "option": place }))))
    }

    fn close_votes(&mut self, now: Timestamp) {
        let votes = std::mem::take(&mut self.team.votes);
        let (over, open): (Vec<_>, Vec<_>) = votes.into_iter().partition(|vote| vote.closes_at <= now);
        self.team.votes = open;
        for vote in over {
            let body = Json::of(&vote.result());
            self.told.push((Told::VoteClosed, body.clone()));
            let id = self.next_entry(EntryId::from_bytes(*vote.id.as_bytes()));
            let (kind, author) = (EntryKind::Vote, vote.opened_by);
            self.put(Entry { id, kind, author, body, inserted_at: vote.closes_at });
        }
    }

    /// The id wanted, or the next after what was kept last.
    fn next_entry(&self, wanted: EntryId) -> EntryId {
        self.team.last_entry.map_or(wanted, |last| wanted.max(last.successor()))
    }

    fn put(&mut self, entry: Entry) {
        self.team.last_entry = Some(entry.id);
        self.entries.push(entry);
    }

    fn keep(
        &mut self,
        (id, kind, author): (EntryId, EntryKind, AgentId),
        told: Told,
        now: Timestamp,
        content: &impl Serialize,
    ) {
        #[derive(Serialize)]
        struct Body<'a, T> {
            id: EntryId,
            from_agent_id: AgentId,
            inserted_at: Timestamp,
            #[serde(flatten)]
            content: &'a T,
        }
        let body = Json::of(&Body { id, from_agent_id: author, inserted_at: now, content });
        self.told.push((told, body.clone()));
        self.put(Entry { id, kind, author, body, inserted_at: now });
    }

    fn tell(&mut self, told: Told, payload: &impl Serialize) {
        self.told.push((told, Json::of(payload)));
    }
}

#[derive(Serialize)]
struct Said<'a> {
    content: &'a Json,
}

#[derive(Serialize)]
struct Known<'a> {
    topic: &'a str,
    content: &'a Json,
}

#[derive(Serialize)]
struct Escalated<'a> {
    reason: &'a str,
    severity: Severity,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a Json>,
}

fn check_text(text: &str, field: &'static str, chars_max: usize) -> Result<(), Refusal> {
    let chars = text.chars().count();
    if text.trim().is_empty() || chars > chars_max {
        return Err(Refusal::field(
            ErrorCode::InvalidPayload,
            field,
            format!("from 1 to {chars_max} characters"),
        ));
    }
    Ok(())
}

fn check_size(document: &Json, field: &'static str, limits: &Limits) -> Result<(), Refusal> {
    let bytes_max = limits.team_entry_bytes_max;
    if document.as_str().len() > bytes_max {
        return Err(Refusal::field(
            ErrorCode::InvalidPayload,
            field,
            format!("at most {bytes_max} bytes of JSON"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
