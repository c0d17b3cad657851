//! Hirings: a user's order to an agent, carried out as a task. A hiring has no state of its own: it is where its task is.

use serde::{Deserialize, Serialize};

use crate::agent::text_forms;
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, HiringId, TaskId, UserId};
use crate::json::Json;
use crate::limits::Limits;
use crate::money::Amount;
use crate::task::{TaskRequest, TaskStatus};
use crate::time::Timestamp;

/// Where a hiring is in its life: the words the hirer sees for the state of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HiringStatus {
    /// The agent has not begun.
    Queued,
    /// It has.
    InProgress,
    /// Done.
    Completed,
    /// Given up, or the agent was not there.
    Failed,
    /// Withdrawn by the hirer.
    Cancelled,
}

text_forms!(HiringStatus {
    Queued = "queued",
    InProgress = "in_progress",
    Completed = "completed",
    Failed = "failed",
    Cancelled = "cancelled",
});

impl From<TaskStatus> for HiringStatus {
    fn from(status: TaskStatus) -> Self {
        match status {
            TaskStatus::Pending => Self::Queued,
            TaskStatus::InProgress => Self::InProgress,
            TaskStatus::Completed => Self::Completed,
            TaskStatus::Failed => Self::Failed,
            TaskStatus::Cancelled => Self::Cancelled,
        }
    }
}

impl HiringStatus {
    /// The state its task is in.
    #[must_use]
    pub const fn task_status(self) -> TaskStatus {
        match self {
            Self::Queued => TaskStatus::Pending,
            Self::InProgress => TaskStatus::InProgress,
            Self::Completed => TaskStatus::Completed,
            Self::Failed => TaskStatus::Failed,
            Self::Cancelled => TaskStatus::Cancelled,
        }
    }

    /// Whether the hirer may try again.
    ///
    /// # Errors
    /// [`ErrorCode::HiringNotActive`]: only a failed or cancelled hiring is retried.
    pub fn check_retry(self) -> Result<(), Refusal> {
        match self {
            Self::Failed | Self::Cancelled => Ok(()),
            _ => Err(Refusal::wrong_status(ErrorCode::HiringNotActive, self.as_str())),
        }
    }
}

/// A hiring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hiring {
    /// Id.
    pub id: HiringId,
    /// The user who hires; none when an agent without an owner does.
    pub user: Option<UserId>,
    /// The agent in whose name: the task's client.
    pub client: AgentId,
    /// The agent that is hired.
    pub agent: AgentId,
    /// Its DID.
    pub agent_did: String,
    /// The task that carries it out; a retry makes a new one.
    pub task: TaskId,
    /// Where that task is.
    pub status: HiringStatus,
    /// Creation.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
}

impl Hiring {
    /// What clients see (R32).
    #[must_use]
    pub fn view(&self) -> HiringView<'_> {
        HiringView {
            id: self.id,
            status: self.status,
            agent_id: self.agent,
            agent_did: &self.agent_did,
            client_agent_id: self.client,
            task_id: self.task,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// A hiring as clients see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct HiringView<'a> {
    pub id: HiringId,
    pub status: HiringStatus,
    pub agent_id: AgentId,
    pub agent_did: &'a str,
    pub client_agent_id: AgentId,
    pub task_id: TaskId,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What a hiring is made with.
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
pub struct HireRequest {
    /// What is asked; the agent's first capability when absent.
    #[serde(default)]
    pub capability: Option<String>,
    /// Given to the agent.
    #[serde(default)]
    pub input: Option<Json>,
    /// What the hirer would pay at most.
    #[serde(default)]
    pub max_price: Option<Amount>,
    /// What the hirer pays; the agent's base price when absent.
    #[serde(default)]
    pub price: Option<Amount>,
    /// The hirer's agent in whose name this is, when the credential does not say.
    #[serde(default)]
    pub client_agent_id: Option<AgentId>,
    /// Whether to wait for an agent that is offline (R143).
    #[serde(default)]
    pub queue: bool,
}

impl HireRequest {
    /// The task it becomes.
    #[must_use]
    pub fn task(self, provider: AgentId, capability_default: &str) -> TaskRequest {
        TaskRequest {
            provider_agent_id: provider,
            capability: self.capability.unwrap_or_else(|| capability_default.to_owned()),
            input: self.input,
            max_price: self.max_price,
            price: self.price,
            external_client: None,
        }
    }
}

/// Why an agent could not do what it was hired for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// It took too long.
    Timeout,
    /// It cannot do this.
    CapabilityMismatch,
    /// It was not there.
    AgentUnresponsive,
    /// Another reason.
    Other,
}

text_forms!(FailureReason {
    Timeout = "timeout",
    CapabilityMismatch = "capability_mismatch",
    AgentUnresponsive = "agent_unresponsive",
    Other = "other",
});

/// The error document of a failed hiring's task.
///
/// # Errors
/// The message is too long.
pub fn failure(reason: FailureReason, message: Option<&str>, limits: &Limits) -> Result<Json, Refusal> {
    if let Some(message) = message {
        crate::task::check_note(message, limits)?;
    }
    Ok(Json::of(&match message {
        Some(message) => serde_json::json!({"type": reason.as_str(), "message": message}),
        None => serde_json::json!({"type": reason.as_str()}),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hiring_is_where_its_task_is() {
        for status in [TaskStatus::Pending, TaskStatus::InProgress, TaskStatus::Completed, TaskStatus::Failed]
        {
            assert_eq!(HiringStatus::from(status).task_status(), status);
        }
        assert!(HiringStatus::Failed.check_retry().is_ok());
        assert_eq!(HiringStatus::Completed.check_retry().unwrap_err().code, ErrorCode::HiringNotActive);
    }
}
