//! What is done to a team, and by its members in it.

use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, EntryId, VoteId};
use crate::json::Json;

/// How bad it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing works.
    Critical,
    /// Something does not work.
    #[default]
    Error,
    /// Something may not work soon.
    Warning,
    /// Nothing is wrong.
    Info,
}

/// What somebody wants to do. Ids are given with it: the decision itself draws none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The owner takes somebody in.
    Add {
        /// Who does it.
        by: AgentId,
        /// Whom.
        agent: AgentId,
    },
    /// The owner puts somebody out, or somebody leaves.
    Remove {
        /// Who does it.
        by: AgentId,
        /// Whom.
        agent: AgentId,
    },
    /// A member does something in the team.
    Act {
        /// Who does it.
        by: AgentId,
        /// For what comes of it.
        entry: EntryId,
        /// What.
        action: Action,
    },
    /// The time of a vote may be over.
    Due,
}

/// What a member does in a team: the events of its channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Says something.
    Say(Json),
    /// Asks something.
    OpenVote(VoteId, VoteRequest),
    /// Answers.
    Cast(VoteId, Choice),
    /// Adds to what all should know.
    AddKnowledge(KnowledgeRequest),
    /// Asks for help from above.
    Escalate(EscalationRequest),
}

/// A vote to open.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VoteRequest {
    /// What is asked.
    pub question: String,
    /// What there is to choose from.
    pub options: Vec<String>,
    /// For how long, in seconds; a day when it does not say.
    pub period_s: Option<u32>,
}

/// An option, by its place (from 0) or by its words.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Choice {
    /// Its place.
    Place(usize),
    /// Its words.
    Words(String),
}

/// Something all should know.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct KnowledgeRequest {
    /// What it is about.
    pub topic: String,
    /// What there is to know.
    pub content: Json,
}

/// Something a member cannot settle.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct EscalationRequest {
    /// What it is about.
    pub reason: String,
    /// How bad it is.
    #[serde(default)]
    pub severity: Severity,
    /// What else there is to say.
    pub details: Option<Json>,
}
