//! What the nodes of a cluster tell each other.
//!
//! Nodes speak over *sessions*, one for each pair of living processes: what one sends the other gets once and in order,
//! whichever transport carries it, or both sides learn that something may be missing. What rests on it is made so that
//! it comes right again from there.
//!
//! # Layout
//! * [`frame`]: what travels from one node to another, on every transport
//! * [`interest`]: which topics are wanted where
//! * [`membership`]: which nodes are up
//! * [`session`]: once and in order, between two processes
//! * [`owner`]: which node a task stream belongs to
//! * [`sight`]: whom each node hears
//! * [`presence`]: who is present on the other nodes
//! * [`stream`]: what its owner and the others say to each other
//! * [`usage`]: limits that hold for all nodes together

pub mod frame;
mod hash;
pub mod interest;
pub mod membership;
pub mod owner;
pub mod presence;
pub mod session;
pub mod sight;
pub mod stream;
pub mod usage;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::ids::{AgentId, CredentialId, MessageId, UserId};
use crate::json::{Json, as_bytes};

/// Names a process of a node: a node that starts again is another one, of a higher incarnation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeKey {
    /// The node's name, the same for all its lives.
    pub name: SmolStr,
    /// Which life: Unix milliseconds of its start. Where the clock went back it is lower than the last ([`membership`] says
    /// when such a process is let in).
    pub incarnation: u64,
}

impl std::fmt::Display for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.name, self.incarnation)
    }
}

/// A node that is up, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub key: NodeKey,
    /// Whether it is going away: it takes over nothing any more.
    pub draining: bool,
    /// Whether it has not been heard of for a while; nobody waits for it.
    pub suspect: bool,
    /// Whether all living nodes hear it, as far as they say.
    pub central: bool,
}

/// The nodes that are up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// All of them, this one too, by name.
    pub nodes: Vec<Member>,
    /// Whether this node has peers by its configuration and hears none of them: it claims nothing it does not hold
    /// already, for the others may have taken it over.
    pub isolated: bool,
}

/// One thing a node tells another. Travels as MessagePack with field names, so that a node passes over fields it does
/// not know yet, and over whole messages (they are delimited one by one).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// The sender has subscribers for these topics, or none any more.
    Interest(Interest),
    /// An [`Interest`] with this token has been noted: what is published here from now on reaches it.
    InterestNoted {
        /// Of the interest.
        token: u64,
    },
    /// Published at the sender, for subscribers at the receiver.
    Publish {
        /// Topic.
        topic: SmolStr,
        /// Event.
        event: SmolStr,
        /// Payload.
        #[serde(with = "as_bytes")]
        payload: Json,
    },
    /// Something changed in the store that nodes keep things of in memory.
    Notice(Notice),
    /// About the stream of a task.
    Stream(stream::StreamMessage),
    /// Who is present.
    Presence(presence::Message),
    /// What is used of limits that hold for the whole cluster.
    Usage(usage::Usage),
    /// What happened to messages of agents that have connections at the receiver.
    Mail(Mail),
}

/// See [`Message::Mail`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mail {
    /// There is something for these.
    pub news: Vec<AgentId>,
    /// Messages that are not pushed to these any more.
    pub settled: Vec<(AgentId, MessageId)>,
}

/// See [`Message::Interest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interest {
    /// Answered by [`Message::InterestNoted`], when not 0.
    pub token: u64,
    /// Whether these are all the sender wants, in place of what it said before.
    pub whole: bool,
    /// Wanted from now on.
    pub wanted: Vec<SmolStr>,
    /// Not wanted any more.
    pub unwanted: Vec<SmolStr>,
}

/// See [`Message::Notice`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// These credentials have ended.
    CredentialsEnded {
        /// Which.
        credentials: Vec<CredentialId>,
        /// Why, for those whose connections are closed.
        reason: SmolStr,
    },
    /// An agent was stopped: its connections end.
    AgentEnded {
        /// Which.
        agent: AgentId,
        /// Why.
        reason: SmolStr,
    },
    /// An agent's record has changed.
    AgentChanged {
        /// Which.
        agent: AgentId,
    },
    /// A block between two agents came or went.
    BlocksChanged {
        /// The two.
        agents: [AgentId; 2],
    },
    /// A client agent has come to belong to a user.
    Claimed {
        /// The agent.
        agent: AgentId,
        /// Its owner.
        owner: UserId,
    },
}

impl Message {
    /// As it travels.
    ///
    /// # Errors
    /// None for the types there are; the encoder's error is passed on rather than hidden.
    pub fn encode(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        rmp_serde::to_vec_named(self)
    }

    /// Reads what [`Self::encode`] gave, here or at another version.
    ///
    /// # Errors
    /// It is no message, or one this version does not know.
    pub fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        rmp_serde::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip_and_carry_payloads_untouched() {
        let payload = Json::from_trusted_bytes(r#"{"n":1e999,"s":"ü"}"#.as_bytes().to_vec().into());
        let message = Message::Publish { topic: "agent:1".into(), event: "new_message".into(), payload };
        assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);
        let notice = Message::Notice(Notice::BlocksChanged {
            agents: [AgentId::from_bytes([1; 16]), AgentId::from_bytes([2; 16])],
        });
        assert_eq!(Message::decode(&notice.encode().unwrap()).unwrap(), notice);
    }

    #[test]
    fn what_a_newer_node_adds_is_passed_over_and_what_is_unknown_is_an_error() {
        #[derive(Serialize)]
        enum Newer {
            InterestNoted { token: u64, more: &'static str },
            Unheard { of: u8 },
        }
        let known = rmp_serde::to_vec_named(&Newer::InterestNoted { token: 7, more: "x" }).unwrap();
        assert_eq!(Message::decode(&known).unwrap(), Message::InterestNoted { token: 7 });
        assert!(Message::decode(&rmp_serde::to_vec_named(&Newer::Unheard { of: 1 }).unwrap()).is_err());
    }

    #[test]
    fn a_payload_that_is_no_json_is_refused() {
        #[derive(Serialize)]
        enum Broken {
            Publish { topic: &'static str, event: &'static str, payload: &'static [u8] },
        }
        for payload in [&b"{"[..], b"", b"1 2", b"\xff"] {
            let bytes =
                rmp_serde::to_vec_named(&Broken::Publish { topic: "t", event: "e", payload }).unwrap();
            assert!(Message::decode(&bytes).is_err(), "{payload:?}");
        }
    }
}
