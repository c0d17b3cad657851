//! Handing a task over with a message of type `task_handoff`: what the sender asks for, and where it is (agrenting.md R127).
//!
//! A handoff has no work of its own: a task is created with it, and once it was accepted its state is that of the task.

use serde::{Deserialize, Serialize};

use crate::agent::{check_capabilities, text_forms};
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, MessageId, TaskId};
use crate::json::{Json, read_object};
use crate::limits::Limits;
use crate::message::Verdict;
use crate::money::Amount;
use crate::task::{Task, TaskRequest, TaskStatus, TaskView};
use crate::time::Timestamp;

/// Where a handoff is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HandoffState {
    /// The recipient has not said anything.
    Pending,
    /// The recipient does it.
    Accepted,
    /// The recipient does not want it; final.
    Declined,
    /// Done; final.
    Completed,
    /// Given up by the recipient, or withdrawn or given to another by the sender; final.
    Failed,
}

text_forms!(HandoffState {
    Pending = "pending",
    Accepted = "accepted",
    Declined = "declined",
    Completed = "completed",
    Failed = "failed",
});

/// Why a handoff is over that nobody had answered when its message was (7 days, R122).
pub const NOT_ANSWERED: &str = "not answered in time";

/// What a recipient says of a handoff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It does it.
    Accept,
    /// It does not want it, and why.
    Decline(Option<String>),
}

impl Answer {
    /// No.
    ///
    /// # Errors
    /// The reason is longer than it may be, or has control characters.
    pub fn decline(reason: Option<String>, limits: &Limits) -> Result<Self, Refusal> {
        match Verdict::rejected(reason, limits)? {
            Verdict::Rejected(reason) => Ok(Self::Decline(reason)),
            Verdict::Acknowledged => Ok(Self::Decline(None)),
        }
    }
}

/// A handoff as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handoff {
    /// The message it came with.
    pub message: MessageId,
    /// The task that was created with it.
    pub task: TaskId,
    /// The task it is a part of.
    pub parent: Option<TaskId>,
    /// Who hands over, and pays.
    pub from: AgentId,
    /// Who is to do it.
    pub to: AgentId,
    /// Whatever the recipient has to know, as it was written.
    pub context: Option<Json>,
    /// What the recipient had to be able to do.
    pub required_capabilities: Vec<String>,
    /// What is held for it.
    pub price: Option<Amount>,
    /// When it was sent.
    pub created_at: Timestamp,
    /// When the recipient accepted.
    pub accepted_at: Option<Timestamp>,
    /// When the recipient declined.
    pub declined_at: Option<Timestamp>,
    /// Why.
    pub reason: Option<String>,
}

impl Handoff {
    /// Where it is, by its task: what ended that in any way has ended this.
    #[must_use]
    pub fn state(&self, task: &Task) -> HandoffState {
        match task.status {
            TaskStatus::Completed if task.provider == self.to => HandoffState::Completed,
            _ if self.declined_at.is_some() => HandoffState::Declined,
            TaskStatus::Failed | TaskStatus::Cancelled => HandoffState::Failed,
            // It was given to another.
            _ if task.provider != self.to => HandoffState::Failed,
            _ if self.accepted_at.is_some() => HandoffState::Accepted,
            _ => HandoffState::Pending,
        }
    }

    /// The handoff after the recipient has said something of it; nothing when it has said that before.
    ///
    /// # Errors
    /// `handoff_not_active` with the state: it has said something else, or the task has ended.
    pub fn answered(&self, answer: &Answer, task: &Task, now: Timestamp) -> Result<Option<Self>, Refusal> {
        let said_before = match answer {
            Answer::Accept => self.accepted_at.is_some(),
            Answer::Decline(_) => self.declined_at.is_some(),
        };
        if said_before {
            return Ok(None);
        }
        self.must_be(HandoffState::Pending, task)?;
        Ok(Some(match answer {
            Answer::Accept => Self { accepted_at: Some(now), ..self.clone() },
            Answer::Decline(reason) => {
                Self { declined_at: Some(now), reason: reason.clone(), ..self.clone() }
            }
        }))
    }

    /// Whether it is in a state.
    ///
    /// # Errors
    /// `handoff_not_active` with the one it is in.
    pub fn must_be(&self, wanted: HandoffState, task: &Task) -> Result<(), Refusal> {
        let state = self.state(task);
        if state == wanted {
            return Ok(());
        }
        Err(Refusal::wrong_status(ErrorCode::HandoffNotActive, state.as_str()))
    }

    /// All there is to know, for its parties.
    #[must_use]
    pub fn view<'a>(&'a self, task: &'a Task) -> HandoffView<'a> {
        HandoffView {
            id: self.message,
            state: self.state(task),
            from_agent_id: self.from,
            to_agent_id: self.to,
            task: task.view(),
            context: self.context.as_ref(),
            required_capabilities: &self.required_capabilities,
            price: self.price,
            parent_task_id: self.parent,
            reason: self.reason.as_deref(),
            created_at: self.created_at,
            accepted_at: self.accepted_at,
            declined_at: self.declined_at,
        }
    }

    /// What both are told when it changes.
    #[must_use]
    pub fn update(&self, task: &Task) -> Json {
        #[derive(Serialize)]
        struct Update<'a> {
            id: MessageId,
            state: HandoffState,
            task_id: TaskId,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'a str>,
        }
        let (state, reason) = (self.state(task), self.reason.as_deref());
        Json::of(&Update { id: self.message, state, task_id: self.task, reason })
    }
}

/// A handoff as its parties see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct HandoffView<'a> {
    /// Id of the message.
    pub id: MessageId,
    pub state: HandoffState,
    pub from_agent_id: AgentId,
    pub to_agent_id: AgentId,
    /// The task that was created with it.
    pub task: TaskView<'a>,
    /// As the sender wrote it.
    pub context: Option<&'a Json>,
    pub required_capabilities: &'a [String],
    pub price: Option<Amount>,
    /// The task it is a part of.
    pub parent_task_id: Option<TaskId>,
    /// Why it was declined.
    pub reason: Option<&'a str>,
    pub created_at: Timestamp,
    pub accepted_at: Option<Timestamp>,
    pub declined_at: Option<Timestamp>,
}

/// The payload of a message of type `task_handoff`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct HandoffRequest {
    /// A task of the sender's, whose capability and input are handed over where `task` is absent.
    #[serde(default)]
    pub task_id: Option<TaskId>,
    /// What is to be done.
    #[serde(default)]
    pub task: Option<HandoffTask>,
    /// Whatever the recipient has to know.
    #[serde(default)]
    pub context: Option<Json>,
    /// What the recipient must be able to do.
    #[serde(default)]
    required_capabilities: Option<Vec<String>>,
    /// What the sender pays: held until the task ends.
    #[serde(default)]
    pub price: Option<Amount>,
    /// The task this is a part of; `task_id` when absent.
    #[serde(default)]
    parent_task_id: Option<TaskId>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct HandoffTask {
    /// What is asked of the recipient.
    pub capability: String,
    /// Given to the recipient.
    #[serde(default)]
    pub input: Option<Json>,
    /// What the sender would pay at most.
    #[serde(default)]
    pub max_price: Option<Amount>,
}

/// Names a field as the sender of the message sees it.
fn in_payload(refusal: Refusal) -> Refusal {
    let Some(field) = refusal.field else { return refusal };
    Refusal { field: Some(format!("payload.{field}").into()), ..refusal }
}

impl HandoffRequest {
    /// Reads the payload of a message that [`crate::message::kinds`] has checked.
    ///
    /// # Errors
    /// A field that does not fit.
    pub fn read(payload: &Json, limits: &Limits) -> Result<Self, Refusal> {
        let request: Self = read_object(payload.as_str()).map_err(in_payload)?;
        if request.task.is_none() && request.task_id.is_none() {
            return Err(Refusal::field(ErrorCode::InvalidPayload, "payload", "task_id or task"));
        }
        check_capabilities(request.required_capabilities(), limits)
            .map_err(|refusal| Refusal { field: Some("payload.required_capabilities".into()), ..refusal })?;
        Ok(request)
    }

    /// What the recipient must be able to do.
    #[must_use]
    pub fn required_capabilities(&self) -> &[String] {
        self.required_capabilities.as_deref().unwrap_or_default()
    }

    /// The task it is a part of.
    #[must_use]
    pub fn parent(&self) -> Option<TaskId> {
        self.parent_task_id.or(self.task_id)
    }

    /// The sender's tasks that it speaks of, with the fields that name them.
    pub fn tasks(&self) -> impl Iterator<Item = (&'static str, TaskId)> {
        let named = [("payload.task_id", self.task_id), ("payload.parent_task_id", self.parent_task_id)];
        named.into_iter().filter_map(|(field, id)| Some((field, id?)))
    }

    /// Whether the recipient can do what it must be able to.
    ///
    /// # Errors
    /// `capability_mismatch` with what is missing.
    pub fn check_recipient(&self, capabilities: &[String]) -> Result<(), Refusal> {
        let required = self.required_capabilities().iter();
        let missing: Vec<&String> = required.filter(|required| !capabilities.contains(required)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Refusal::new(ErrorCode::CapabilityMismatch).with("missing", &missing))
    }

    /// The new task: its content is `task`, or else that of the task it names. What the client of that one would pay at
    /// most is no business of the recipient's.
    ///
    /// # Errors
    /// A field that does not fit.
    pub fn new_task(
        &self,
        recipient: AgentId,
        named: Option<&Task>,
        limits: &Limits,
    ) -> Result<TaskRequest, Refusal> {
        let content = match (&self.task, named) {
            (Some(task), _) => task.clone(),
            (None, Some(named)) => HandoffTask {
                capability: named.capability.clone(),
                input: Some(named.input.clone()),
                max_price: None,
            },
            (None, None) => {
                return Err(Refusal::field(ErrorCode::InvalidPayload, "payload", "task_id or task"));
            }
        };
        let request = TaskRequest {
            provider_agent_id: recipient,
            capability: content.capability,
            input: content.input,
            max_price: content.max_price,
            price: self.price,
            external_client: None,
        };
        let in_task = |refusal: Refusal| match &refusal.field {
            Some(field) => Refusal { field: Some(format!("payload.task.{field}").into()), ..refusal },
            None => refusal,
        };
        request.check(limits).map_err(in_task)?;
        Ok(request)
    }

    /// The handoff, as yet unanswered.
    #[must_use]
    pub fn handoff(
        self,
        message: MessageId,
        task: TaskId,
        (from, to): (AgentId, AgentId),
        now: Timestamp,
    ) -> Handoff {
        Handoff {
            message,
            task,
            parent: self.parent(),
            from,
            to,
            required_capabilities: self.required_capabilities.unwrap_or_default(),
            context: self.context,
            price: self.price,
            created_at: now,
            accepted_at: None,
            declined_at: None,
            reason: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::Payment;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    fn agent(n: u8) -> AgentId {
        AgentId::new(at(1), [n; 10])
    }

    fn task(status: TaskStatus, provider: AgentId) -> Task {
        Task {
            id: TaskId::new(at(1), [7; 10]),
            status,
            client: agent(1),
            client_owner: None,
            provider,
            capability: "code".into(),
            input: serde_json::from_str(r#"{ "a" : 1.0 }"#).unwrap(),
            output: None,
            error: None,
            max_price: Amount::parse("1").ok(),
            external_client: None,
            hiring: None,
            payment: Payment::default(),
            created_at: at(1),
            updated_at: at(1),
            ended_at: None,
            progress: None,
        }
    }

    fn read(payload: &str) -> Result<HandoffRequest, Refusal> {
        HandoffRequest::read(&serde_json::from_str(payload).unwrap(), &Limits::default())
    }

    fn handoff() -> Handoff {
        let request = read(r#"{"task":{"capability":"code"},"price":"2","context":{ "x" : 1e2 }}"#).unwrap();
        let task = TaskId::new(at(1), [7; 10]);
        request.handoff(MessageId::new(at(1), [1; 10]), task, (agent(1), agent(2)), at(1))
    }

    /// R127: its state is that of its task, once it was accepted or not.
    #[test]
    fn a_handoff_is_where_its_task_is() {
        use HandoffState::{Accepted, Completed, Declined, Failed, Pending};
        let open = handoff();
        let accepted = Handoff { accepted_at: Some(at(2)), ..open.clone() };
        let declined = Handoff { declined_at: Some(at(2)), ..open.clone() };
        for (status, states) in [
            (TaskStatus::Pending, [Pending, Accepted, Declined]),
            (TaskStatus::InProgress, [Pending, Accepted, Declined]),
            (TaskStatus::Completed, [Completed, Completed, Completed]),
            (TaskStatus::Failed, [Failed, Failed, Declined]),
            (TaskStatus::Cancelled, [Failed, Failed, Declined]),
        ] {
            let of = |handoff: &Handoff| handoff.state(&task(status, agent(2)));
            assert_eq!([of(&open), of(&accepted), of(&declined)], states, "{status:?}");
            let elsewhere = [&open, &accepted].map(|handoff| handoff.state(&task(status, agent(3))));
            assert_eq!(elsewhere, [Failed, Failed], "given to another: {status:?}");
        }
    }

    /// R127: an answer is given once; to say the same again changes nothing.
    #[test]
    fn an_answer_is_given_once() {
        let pending = task(TaskStatus::Pending, agent(2));
        let no = Answer::decline(Some("busy".into()), &Limits::default()).unwrap();
        let accepted = handoff().answered(&Answer::Accept, &pending, at(5)).unwrap().unwrap();
        assert_eq!((accepted.accepted_at, accepted.declined_at), (Some(at(5)), None));
        assert_eq!(accepted.answered(&Answer::Accept, &pending, at(6)), Ok(None));
        let refusal = accepted.answered(&no, &pending, at(6)).unwrap_err();
        assert_eq!((refusal.code, refusal.status), (ErrorCode::HandoffNotActive, Some("accepted")));
        let declined = handoff().answered(&no, &pending, at(5)).unwrap().unwrap();
        assert_eq!((declined.declined_at, declined.reason.as_deref()), (Some(at(5)), Some("busy")));
        assert_eq!(declined.answered(&Answer::Decline(None), &pending, at(6)), Ok(None));
        assert_eq!(declined.answered(&Answer::Accept, &pending, at(6)).unwrap_err().status, Some("declined"));
        let over = task(TaskStatus::Cancelled, agent(2));
        assert_eq!(handoff().answered(&Answer::Accept, &over, at(6)).unwrap_err().status, Some("failed"));
        assert_eq!(accepted.answered(&Answer::Accept, &over, at(6)), Ok(None), "it was said before");
        let long = Some("x".repeat(Limits::default().message_reason_chars_max + 1));
        assert!(Answer::decline(long, &Limits::default()).is_err());
    }

    /// R127: the context is what was written, byte for byte; the rest is read and checked.
    #[test]
    fn requests_are_read() {
        let id = TaskId::new(at(1), [7; 10]);
        let context = r#"{ "z":1.50,  "a":[1e400,"\u00e9"],"z":2 }"#;
        let request = read(&format!(
            r#"{{"task_id":"{id}","context":{context},"required_capabilities":["a","b","c"],"price":0.5}}"#
        ))
        .unwrap();
        assert_eq!(request.parent(), Some(id));
        assert_eq!(request.tasks().collect::<Vec<_>>(), [("payload.task_id", id)]);
        let refusal = request.check_recipient(&["b".into()]).unwrap_err();
        assert_eq!(refusal.response().as_str(), r#"{"reason":"capability_mismatch","missing":["a","c"]}"#);
        assert_eq!(request.check_recipient(&["c".into(), "b".into(), "a".into()]), Ok(()));
        let named = task(TaskStatus::InProgress, agent(1));
        let new = request.new_task(agent(2), Some(&named), &Limits::default()).unwrap();
        assert_eq!((new.capability.as_str(), new.input, new.max_price), ("code", Some(named.input), None));
        assert_eq!((new.price, new.provider_agent_id), (Amount::parse("0.5").ok(), agent(2)));
        let kept = request.handoff(MessageId::new(at(1), [1; 10]), id, (agent(1), agent(2)), at(1));
        assert_eq!(kept.context.unwrap().as_str(), context);

        let other = TaskId::new(at(1), [8; 10]);
        let both = read(&format!(
            r#"{{"task_id":"{id}","task":{{"capability":"write","max_price":"9"}},"parent_task_id":"{other}"}}"#
        ))
        .unwrap();
        assert_eq!((both.parent(), both.tasks().count()), (Some(other), 2));
        let new =
            both.new_task(agent(2), Some(&task(TaskStatus::Pending, agent(1))), &Limits::default()).unwrap();
        assert_eq!(
            (new.capability.as_str(), new.input, new.max_price),
            ("write", None, Amount::parse("9").ok())
        );

        for (payload, field) in [
            (r#"{"task_id":null,"task":null}"#, "payload"),
            (r#"{"task":{}}"#, "payload.task.capability"),
            (
                r#"{"task":{"capability":"a"},"required_capabilities":["a","a"]}"#,
                "payload.required_capabilities",
            ),
            (r#"{"task":{"capability":"a"},"price":"1","price":"2"}"#, "payload"),
        ] {
            let refusal = read(payload).unwrap_err();
            assert!(
                refusal.field.as_deref().is_none_or(|said| said.starts_with(field)),
                "{payload}: {refusal:?}"
            );
        }
        let blank = read(r#"{"task":{"capability":" "}}"#).unwrap();
        let refusal = blank.new_task(agent(2), None, &Limits::default()).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some("payload.task.capability"));
    }
}
