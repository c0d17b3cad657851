//! Sockets, their topics, and the names of events.

use crate::ids::{AgentId, NegotiationId, PaymentChannelId, TaskId, TeamId, UserId};

/// Where a client connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mount {
    /// `/socket/agent`
    Agent,
    /// `/socket/hirer`
    Hirer,
    /// `/socket`
    Main,
    /// `/user_socket`
    User,
}

impl Mount {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Agent, Self::Hirer, Self::Main, Self::User];

    /// Path, without the transport's name.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Agent => "/socket/agent",
            Self::Hirer => "/socket/hirer",
            Self::Main => "/socket",
            Self::User => "/user_socket",
        }
    }

    /// The mount that a WebSocket request's path names; one trailing slash is accepted, and the bare `/user_socket` (C1).
    #[must_use]
    pub fn of_websocket_path(path: &str) -> Option<Self> {
        let path = path.strip_suffix('/').unwrap_or(path);
        if path == Self::User.path() {
            return Some(Self::User);
        }
        Self::at(path.strip_suffix("/websocket")?)
    }

    /// The mount that a long-poll request's path names; one trailing slash is accepted.
    #[must_use]
    pub fn of_longpoll_path(path: &str) -> Option<Self> {
        Self::at(path.strip_suffix('/').unwrap_or(path).strip_suffix("/longpoll")?)
    }

    fn at(path: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|candidate| candidate.path() == path)
    }
}

/// A topic that exists on a mount. `None` inside: the name is of that sort, but its id is none, so nobody may join it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// `agent:<id>`: an agent's own events, and its presence.
    Agent(Option<AgentId>),
    /// `hirer:<user id>`: a user's hirings.
    Hirer(Option<UserId>),
    /// `task_stream:<task id>`: a task's output.
    TaskStream(Option<TaskId>),
    /// `payment:<channel id>`: a payment channel.
    Payment(Option<PaymentChannelId>),
    /// `task:<task id>`: what a task's two agents send each other.
    Task(Option<TaskId>),
    /// `messages:<agent id>`: messages from other agents.
    Messages(Option<AgentId>),
    /// `negotiation:<id>`: what two agents offer each other.
    Negotiation(Option<NegotiationId>),
    /// `agents:discovery`: who is online.
    Discovery,
    /// `analytics:…`: figures.
    Analytics(AnalyticsScope),
    /// `team:<id>`: agents that work on something together.
    Team(Option<TeamId>),
}

/// Whose figures a topic shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnalyticsScope {
    /// `analytics:agent:<id>`: an agent's.
    Agent(Option<AgentId>),
    /// `analytics:user:<id>`: those of all agents of a user, together.
    User(Option<UserId>),
    /// `analytics:global`: those of all, together.
    Global,
}

impl AnalyticsScope {
    fn parse(name: &str) -> Option<Self> {
        if name == "global" {
            return Some(Self::Global);
        }
        match name.split_once(':')? {
            ("agent", id) => Some(Self::Agent(id.parse().ok())),
            ("user", id) => Some(Self::User(id.parse().ok())),
            _ => None,
        }
    }

    fn name(self) -> Option<String> {
        match self {
            Self::Agent(agent) => agent.map(|agent| format!("analytics:agent:{agent}")),
            Self::User(user) => user.map(|user| format!("analytics:user:{user}")),
            Self::Global => Some("analytics:global".to_owned()),
        }
    }
}

/// The topic everybody who is online is present on.
pub const DISCOVERY: &str = "agents:discovery";

/// Where agents are present that are online but not published, so that all nodes know: no client can join it.
pub const UNPUBLISHED: &str = "agents:unpublished";

impl Topic {
    /// Finds the topic by name; `None` when the mount has none such ("unmatched topic").
    #[must_use]
    pub fn parse(mount: Mount, name: &str) -> Option<Self> {
        if name == DISCOVERY {
            return (mount == Mount::Main).then_some(Self::Discovery);
        }
        let (sort, id) = name.split_once(':')?;
        match (mount, sort) {
            (Mount::Agent, "agent") => Some(Self::Agent(id.parse().ok())),
            (Mount::Hirer, "hirer") => Some(Self::Hirer(id.parse().ok())),
            (Mount::Main, "payment") => Some(Self::Payment(id.parse().ok())),
            (Mount::Agent | Mount::Hirer, "task_stream") => Some(Self::TaskStream(id.parse().ok())),
            (Mount::Main, "task") => Some(Self::Task(id.parse().ok())),
            (Mount::User | Mount::Main, "messages") => Some(Self::Messages(id.parse().ok())),
            (Mount::Main, "analytics") => AnalyticsScope::parse(id).map(Self::Analytics),
            (Mount::Main, "negotiation") => Some(Self::Negotiation(id.parse().ok())),
            (Mount::Main, "team") => Some(Self::Team(id.parse().ok())),
            _ => None,
        }
    }

    /// The one name of it; none when its id is none.
    #[must_use]
    pub fn name(self) -> Option<String> {
        match self {
            Self::Agent(id) => id.map(agent_topic),
            Self::Hirer(id) => id.map(hirer_topic),
            Self::TaskStream(id) => id.map(task_stream_topic),
            Self::Task(id) => id.map(task_topic),
            Self::Messages(id) => id.map(messages_topic),
            Self::Discovery => Some(DISCOVERY.to_owned()),
            Self::Analytics(scope) => scope.name(),
            Self::Negotiation(id) => id.map(negotiation_topic),
            Self::Payment(id) => id.map(payment_topic),
            Self::Team(id) => id.map(team_topic),
        }
    }
}

/// What stands between a topic and the name of a part of it. No topic that a client can join has it.
const PART: char = '#';

/// A part of a topic: those who joined the topic and subscribe to the part are told what the others need not hear. They
/// see the topic's name.
#[must_use]
pub fn part(topic: &str, name: &str) -> String {
    format!("{topic}{PART}{name}")
}

/// The name that clients know a topic by.
#[must_use]
pub fn without_part(topic: &str) -> &str {
    topic.split_once(PART).map_or(topic, |(topic, _)| topic)
}

/// The topic of an agent's own events.
#[must_use]
pub fn agent_topic(agent: AgentId) -> String {
    format!("agent:{agent}")
}

/// The topic of a user's hirings.
#[must_use]
pub fn hirer_topic(user: UserId) -> String {
    format!("hirer:{user}")
}

/// The topic of an agent's messages.
#[must_use]
pub fn messages_topic(agent: AgentId) -> String {
    format!("messages:{agent}")
}

/// The topic of a task's output.
#[must_use]
pub fn task_stream_topic(task: TaskId) -> String {
    format!("task_stream:{task}")
}

/// The topic of a payment channel.
#[must_use]
pub fn payment_topic(channel: PaymentChannelId) -> String {
    format!("payment:{channel}")
}
/// The topic of what a task's two agents send each other.
#[must_use]
pub fn task_topic(task: TaskId) -> String {
    format!("task:{task}")
}

/// Where nodes tell each other what happens on the channel of a task: no client can join it.
#[must_use]
pub fn task_channel_topic(task: TaskId) -> String {
    format!("task_channel:{task}")
}

/// The topic of a negotiation.
#[must_use]
pub fn negotiation_topic(negotiation: NegotiationId) -> String {
    format!("negotiation:{negotiation}")
}

/// The topic of a team.
#[must_use]
pub fn team_topic(team: TeamId) -> String {
    format!("team:{team}")
}

/// What one member's joins of a team can be closed by; no client can join it.
#[must_use]
pub fn team_member_topic(team: TeamId, agent: AgentId) -> String {
    format!("team:{team}:{agent}")
}

/// Names of events. What they carry stands in [`crate::catalog`].
#[allow(missing_docs, reason = "each is described in the catalog, which is compared with the code in a test")]
pub mod event {
    pub const STREAM_CHUNK: &str = "stream.chunk";
    pub const STREAM_DONE: &str = "stream.done";
    pub const STREAM_ERROR: &str = "stream.error";
    pub const TASK_STREAM_CHUNK: &str = "task.stream_chunk";
    pub const HIRING_CREATED: &str = "hiring.created";
    pub const HIRING_COMPLETED: &str = "hiring.completed";
    pub const HIRING_FAILED: &str = "hiring.failed";
    pub const HIRING_CANCELLED: &str = "hiring.cancelled";
    pub const TASK_CREATED: &str = "task.created";
    pub const TASK_CANCELLED: &str = "task.cancelled";
    pub const TASK_COMPLETED: &str = "task.completed";
    pub const TASK_FAILED: &str = "task.failed";
    pub const TASK_SUBMITTED: &str = "task.submitted";
    pub const NEW_MESSAGE: &str = "new_message";
    pub const SEND_MESSAGE: &str = "send_message";
    pub const ACKNOWLEDGE: &str = "acknowledge";
    pub const MESSAGE_STATUS: &str = "message_status";
    pub const HANDOFF_UPDATED: &str = "handoff_updated";
    pub const DISCOVER: &str = "discover";
    pub const ANNOUNCE: &str = "announce";
    pub const UPDATE_METADATA: &str = "update_metadata";
    pub const AGENT_UPDATED: &str = "agent_updated";
    pub const INPUT_STREAM: &str = "input_stream";
    pub const INPUT_COMPLETE: &str = "input_complete";
    pub const OUTPUT_STREAM: &str = "output_stream";
    pub const OUTPUT_COMPLETE: &str = "output_complete";
    pub const PROGRESS: &str = "progress";
    pub const CHECKPOINT: &str = "checkpoint";
    pub const COMPLETE: &str = "complete";
    pub const ERROR: &str = "error";
    pub const CANCEL: &str = "cancel";
    pub const CHANNEL_TASK_COMPLETED: &str = "task_completed";
    pub const CHANNEL_TASK_FAILED: &str = "task_failed";
    pub const CHANNEL_TASK_CANCELLED: &str = "task_cancelled";
    pub const REQUEST_METRICS: &str = "request_metrics";
    pub const REQUEST_TIME_SERIES: &str = "request_time_series";
    pub const REQUEST_REVENUE: &str = "request_revenue";
    pub const REQUEST_HEATMAP: &str = "request_heatmap";
    pub const SUBSCRIBE_ALERTS: &str = "subscribe_alerts";
    pub const ALERT: &str = "alert";
    pub const GLOBAL_STATS: &str = "global_stats";
    pub const WEBHOOK_DISABLED: &str = "webhook.disabled";
    pub const PROPOSE_TRANSFER: &str = "propose_transfer";
    pub const ACKNOWLEDGE_TRANSFER: &str = "acknowledge_transfer";
    pub const REJECT_TRANSFER: &str = "reject_transfer";
    pub const DISPUTE: &str = "dispute";
    pub const CLOSE: &str = "close";
    pub const CHANNEL_OPENED: &str = "channel_opened";
    pub const TRANSFER_PROPOSED: &str = "transfer_proposed";
    pub const TRANSFER_COMPLETE: &str = "transfer_complete";
    pub const TRANSFER_REJECTED: &str = "transfer_rejected";
    pub const DISPUTE_OPENED: &str = "dispute_opened";
    pub const CHANNEL_CLOSED: &str = "channel_closed";
    pub const OFFER: &str = "offer";
    pub const ACCEPT: &str = "accept";
    pub const REJECT: &str = "reject";
    pub const NEGOTIATION_STARTED: &str = "negotiation_started";
    pub const NEGOTIATION_COMPLETE: &str = "negotiation_complete";
    pub const NEGOTIATION_REJECTED: &str = "negotiation_rejected";
    pub const NEGOTIATION_EXPIRED: &str = "negotiation_expired";
    pub const TEAM_JOINED: &str = "team.joined";
    pub const TEAM_ESCALATED: &str = "team.escalated";
    pub const TEAM_MESSAGE: &str = "team_message";
    pub const VOTE_OPEN: &str = "vote_open";
    pub const VOTE_OPENED: &str = "vote_opened";
    pub const VOTE_CAST: &str = "vote_cast";
    pub const VOTE_CLOSED: &str = "vote_closed";
    pub const KNOWLEDGE_ADD: &str = "knowledge_add";
    pub const KNOWLEDGE_ADDED: &str = "knowledge_added";
    pub const ESCALATE: &str = "escalate";
    pub const ESCALATED: &str = "escalated";
    pub const MEMBER_ADDED: &str = "member_added";
    pub const MEMBER_REMOVED: &str = "member_removed";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn paths_name_mounts() {
        for mount in Mount::ALL {
            assert_eq!(Mount::of_websocket_path(&format!("{}/websocket", mount.path())), Some(*mount));
            assert_eq!(Mount::of_websocket_path(&format!("{}/websocket/", mount.path())), Some(*mount));
            assert_eq!(Mount::of_longpoll_path(&format!("{}/longpoll", mount.path())), Some(*mount));
            assert_eq!(Mount::of_longpoll_path(&format!("{}/longpoll/", mount.path())), Some(*mount));
        }
        assert_eq!(Mount::of_websocket_path("/user_socket"), Some(Mount::User));
        for path in ["/socket", "/socket/other/websocket", "/websocket", "/socket/websocket/x", "/"] {
            assert_eq!(Mount::of_websocket_path(path), None, "{path}");
            assert_eq!(Mount::of_longpoll_path(&path.replace("websocket", "longpoll")), None, "{path}");
        }
    }

    #[test]
    fn nobody_joins_what_is_for_nodes_alone() {
        assert!(Mount::ALL.iter().all(|mount| Topic::parse(*mount, UNPUBLISHED).is_none()));
        assert!(Mount::ALL.iter().any(|mount| Topic::parse(*mount, DISCOVERY).is_some()));
    }

    #[test]
    fn each_mount_has_its_topics() {
        let agent = AgentId::new(Timestamp::from_unix_ms(1), [0; 10]);
        let name = agent_topic(agent);
        assert_eq!(Topic::parse(Mount::Agent, &name), Some(Topic::Agent(Some(agent))));
        assert_eq!(Topic::parse(Mount::Agent, "agent:nobody"), Some(Topic::Agent(None)));
        for mount in [Mount::Hirer, Mount::Main, Mount::User] {
            assert_eq!(Topic::parse(mount, &name), None);
        }
        assert_eq!(Topic::parse(Mount::Main, DISCOVERY), Some(Topic::Discovery));
        assert_eq!(Topic::parse(Mount::Agent, DISCOVERY), None);
        let name = messages_topic(agent);
        for mount in [Mount::Main, Mount::User] {
            assert_eq!(Topic::parse(mount, &name), Some(Topic::Messages(Some(agent))));
            assert_eq!(Topic::parse(mount, "messages:1"), Some(Topic::Messages(None)));
        }
        assert!([Mount::Agent, Mount::Hirer].iter().all(|mount| Topic::parse(*mount, &name).is_none()));
        assert_eq!(Topic::parse(Mount::User, DISCOVERY), None);
        for name in ["task_channel:1", "analytics:", "analytics:x", "", "agent", "phoenix"] {
            assert_eq!(Topic::parse(Mount::Main, name), None, "{name}");
        }
        for scope in [
            AnalyticsScope::Global,
            AnalyticsScope::Agent(Some(agent)),
            AnalyticsScope::User(Some(UserId::new(Timestamp::from_unix_ms(1), [0; 10]))),
        ] {
            let name = Topic::Analytics(scope).name().unwrap();
            assert_eq!(Topic::parse(Mount::Main, &name), Some(Topic::Analytics(scope)));
            assert_eq!(Topic::parse(Mount::Agent, &name), None);
        }
        assert_eq!(
            Topic::parse(Mount::Main, "analytics:agent:x"),
            Some(Topic::Analytics(AnalyticsScope::Agent(None)))
        );
        let channel = PaymentChannelId::new(Timestamp::from_unix_ms(1), [0; 10]);
        let name = payment_topic(channel);
        assert_eq!(Topic::parse(Mount::Main, &name), Some(Topic::Payment(Some(channel))));
        assert_eq!(Topic::parse(Mount::Agent, &name), None);
        let side = part(&name, &agent.to_string());
        assert_eq!(Topic::parse(Mount::Main, &side), Some(Topic::Payment(None)), "nobody joins a side");
        assert_eq!(Topic::parse(Mount::Hirer, "task_stream:"), Some(Topic::TaskStream(None)));
        assert_eq!(Topic::parse(Mount::Main, "task:1"), Some(Topic::Task(None)));
        assert_eq!(Topic::parse(Mount::Agent, "task:1"), None);
        let id = NegotiationId::new(Timestamp::from_unix_ms(1), [0; 10]);
        let name = negotiation_topic(id);
        assert_eq!(Topic::parse(Mount::Main, &name), Some(Topic::Negotiation(Some(id))));
        assert_eq!(Topic::parse(Mount::Agent, &name), None);
        assert_eq!(Topic::parse(Mount::Main, "negotiation:1"), Some(Topic::Negotiation(None)));
    }

    #[test]
    fn parts_of_a_topic_are_joined_by_nobody_and_shown_as_the_topic() {
        let name = negotiation_topic(NegotiationId::new(Timestamp::from_unix_ms(1), [0; 10]));
        let client = part(&name, "client");
        assert_eq!((without_part(&client), without_part(&name)), (&*name, &*name));
        assert_eq!(Topic::parse(Mount::Main, &client), Some(Topic::Negotiation(None)));
        assert!(Mount::ALL.iter().all(|mount| Topic::parse(*mount, &part(DISCOVERY, "x")).is_none()));
    }
}
