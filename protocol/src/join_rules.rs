//! Who may connect where, and who may join what. The one place where a join is authorised.

use crate::account::{CredentialKind, Principal, Scope};
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, UserId};
use crate::task::TaskParties;
use crate::topic::{AnalyticsScope, Mount, Topic};

/// Whether a credential of this kind opens this socket (R24, R30, R57, R109).
#[must_use]
pub fn may_connect(mount: Mount, principal: &Principal) -> bool {
    let kind_fits = match (mount, principal.kind) {
        (Mount::Agent, kind) => kind == CredentialKind::AgentKey,
        (Mount::Hirer, kind) => kind == CredentialKind::UserToken,
        (Mount::Main, _) => true,
        // An agent's session, or its owner's token.
        (Mount::User, kind) => kind != CredentialKind::AgentKey && principal.agent.is_some(),
    };
    kind_fits && principal.scopes.allows(Scope::Connect)
}

/// Whether a principal may join a topic. `task` is the task a stream belongs to, if there is one.
///
/// # Errors
/// `unauthorized`, and nothing else: somebody else's topic and one that does not exist give the same answer (R35).
pub fn may_join(principal: &Principal, topic: Topic, task: Option<&TaskParties>) -> Result<(), Refusal> {
    let allowed = match topic {
        // R25, R110: only the own id.
        Topic::Agent(id) | Topic::Messages(id) => id.is_some() && id == principal.agent,
        // R31: only the own id.
        Topic::Hirer(id) => id.is_some() && id == principal.user,
        Topic::TaskStream(_) => task.is_some_and(|task| may_read_stream(principal, task)),
        Topic::Discovery => true,
        // R80: its two agents only, which its record says: see `may_join_between`.
        Topic::Negotiation(id) => id.is_some() && principal.agent.is_some(),
        // R93: the same.
        Topic::Payment(id) => id.is_some() && principal.agent.is_some(),
        // R129: members only, which its record says.
        Topic::Team(id) => id.is_some() && principal.agent.is_some(),
        // What it takes to know is asked with `may_see_figures`.
        Topic::Analytics(_) => false,
    };
    if allowed { Ok(()) } else { Err(ErrorCode::Unauthorized.into()) }
}

/// Whether a principal may see figures (R101): an agent's are for itself and its owner, a user's for the user and their
/// agents, those of all for anybody. `owner` is who owns the agent that it turns on: the one whose figures they are, or,
/// for a user's, the one that asks.
///
/// # Errors
/// `unauthorized`, for what does not exist too (R35).
pub fn may_see_figures(
    principal: &Principal,
    scope: AnalyticsScope,
    owner: Option<UserId>,
) -> Result<(), Refusal> {
    let is_owner = |owner: Option<UserId>| owner.is_some() && owner == principal.user;
    let allowed = match scope {
        AnalyticsScope::Agent(agent) => agent.is_some() && (agent == principal.agent || is_owner(owner)),
        AnalyticsScope::User(user) => {
            is_owner(user) || user.is_some() && principal.agent.is_some() && owner == user
        }
        AnalyticsScope::Global => true,
    };
    if allowed { Ok(()) } else { Err(ErrorCode::Unauthorized.into()) }
}

/// Whether a principal may join what is between two agents, such as a negotiation (R80): as one of them. `agents` are the
/// two, if there is such a thing.
///
/// # Errors
/// `unauthorized`, for what does not exist too (R35).
pub fn may_join_between(principal: &Principal, agents: Option<[AgentId; 2]>) -> Result<(), Refusal> {
    match (principal.agent, agents) {
        (Some(agent), Some(agents)) if agents.contains(&agent) => Ok(()),
        _ => Err(ErrorCode::Unauthorized.into()),
    }
}

/// Whether a principal may read a task's stream: as provider or client agent (R29), or as the user who owns the client
/// (R34).
#[must_use]
pub fn may_read_stream(principal: &Principal, task: &TaskParties) -> bool {
    let as_agent = principal.agent.is_some_and(|agent| agent == task.provider || agent == task.client);
    let as_owner = principal.user.is_some() && principal.user == task.client_owner;
    as_agent || as_owner
}

/// Whether a principal may emit chunks of a task, complete it or give it up: only its provider (R26).
///
/// # Errors
/// `unauthorized`, for unknown tasks too (R35).
pub fn may_emit(principal: &Principal, task: Option<&TaskParties>) -> Result<(), Refusal> {
    principal.require(Scope::Write)?;
    match (principal.agent, task) {
        (Some(agent), Some(task)) if agent == task.provider => Ok(()),
        _ => Err(ErrorCode::Unauthorized.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Scopes;
    use crate::ids::{CredentialId, NegotiationId, PaymentChannelId, TaskId, UserId};
    use crate::time::Timestamp;

    fn agent_id(n: u8) -> AgentId {
        AgentId::new(Timestamp::from_unix_ms(1), [n; 10])
    }

    fn user_id(n: u8) -> UserId {
        UserId::new(Timestamp::from_unix_ms(1), [n; 10])
    }

    fn principal(kind: CredentialKind, agent: Option<u8>, user: Option<u8>) -> Principal {
        Principal {
            credential: CredentialId::new(Timestamp::from_unix_ms(1), [9; 10]),
            kind,
            agent: agent.map(agent_id),
            user: user.map(user_id),
            scopes: Scopes::ALL,
            expires_at: None,
            as_of: 0,
        }
    }

    #[test]
    fn each_socket_takes_its_kind_of_credential() {
        use CredentialKind::*;
        for (mount, agent_key, user_token, session) in [
            (Mount::Agent, true, false, false),
            (Mount::Hirer, false, true, false),
            (Mount::Main, true, true, true),
            (Mount::User, false, false, true),
        ] {
            assert_eq!(may_connect(mount, &principal(AgentKey, Some(1), None)), agent_key, "{mount:?}");
            assert_eq!(may_connect(mount, &principal(UserToken, None, Some(1))), user_token, "{mount:?}");
            assert_eq!(may_connect(mount, &principal(Session, Some(1), None)), session, "{mount:?}");
            let reader =
                Principal { scopes: Scopes::of(&[Scope::Read]), ..principal(AgentKey, Some(1), None) };
            assert!(!may_connect(mount, &reader), "{mount:?} without the connect scope");
        }
    }

    #[test]
    fn own_topics_only() {
        let agent = principal(CredentialKind::AgentKey, Some(1), None);
        let user = principal(CredentialKind::UserToken, None, Some(1));
        let refused = Err(Refusal::new(ErrorCode::Unauthorized));
        assert_eq!(may_join(&agent, Topic::Agent(Some(agent_id(1))), None), Ok(()));
        assert_eq!(may_join(&agent, Topic::Agent(Some(agent_id(2))), None), refused);
        assert_eq!(may_join(&agent, Topic::Agent(None), None), refused);
        assert_eq!(may_join(&user, Topic::Agent(None), None), refused);
        assert_eq!(may_join(&user, Topic::Hirer(Some(user_id(1))), None), Ok(()));
        assert_eq!(may_join(&user, Topic::Hirer(Some(user_id(2))), None), refused);
        assert_eq!(may_join(&agent, Topic::Hirer(None), None), refused);
        assert_eq!(may_join(&agent, Topic::Discovery, None), Ok(()));
    }

    /// R110: an agent's messages are for itself, and for its owner who acts as it.
    #[test]
    fn messages_are_for_the_agent_alone() {
        let session = principal(CredentialKind::Session, Some(1), None);
        let owner = principal(CredentialKind::UserToken, Some(1), Some(1));
        let user = principal(CredentialKind::UserToken, None, Some(1));
        let refused = Err(Refusal::new(ErrorCode::Unauthorized));
        for who in [&session, &owner] {
            assert_eq!(may_join(who, Topic::Messages(Some(agent_id(1))), None), Ok(()));
            assert_eq!(may_join(who, Topic::Messages(Some(agent_id(2))), None), refused);
            assert_eq!(may_join(who, Topic::Messages(None), None), refused);
        }
        assert_eq!(may_join(&user, Topic::Messages(Some(agent_id(1))), None), refused);
        assert_eq!(may_join(&user, Topic::Messages(None), None), refused);
    }

    /// R101
    #[test]
    fn figures_are_for_the_agent_and_its_owner() {
        let agent = |n| principal(CredentialKind::AgentKey, Some(n), None);
        let user = |n| principal(CredentialKind::UserToken, None, Some(n));
        let of_agent = AnalyticsScope::Agent(Some(agent_id(1)));
        let of_user = AnalyticsScope::User(Some(user_id(1)));
        let may = |who: Principal, scope, owner: Option<u8>| {
            may_see_figures(&who, scope, owner.map(user_id)).is_ok()
        };
        assert!(
            may(agent(1), of_agent, None)
                && may(agent(1), of_agent, Some(1))
                && may(user(1), of_agent, Some(1))
        );
        assert!(!may(agent(2), of_agent, Some(1)), "not even another agent of the same owner");
        assert!(!may(user(2), of_agent, Some(1)) && !may(user(1), of_agent, None), "another's, and nobody's");
        assert!(may(user(1), of_user, None) && may(agent(1), of_user, Some(1)));
        assert!(
            !may(user(2), of_user, None) && !may(agent(1), of_user, Some(2)) && !may(agent(1), of_user, None)
        );
        for nothing in [AnalyticsScope::Agent(None), AnalyticsScope::User(None)] {
            assert!(
                !may(agent(1), nothing, None)
                    && !may(user(1), nothing, None)
                    && !may(user(1), nothing, Some(1))
            );
        }
        assert!(may(agent(1), AnalyticsScope::Global, None) && may(user(1), AnalyticsScope::Global, None));
        let joined = may_join(&agent(1), Topic::Analytics(of_agent), None);
        assert_eq!(joined, Err(Refusal::new(ErrorCode::Unauthorized)), "asked elsewhere");
    }

    #[test]
    fn what_is_between_two_is_for_the_two() {
        let agent = |n| principal(CredentialKind::AgentKey, Some(n), None);
        let owner = || principal(CredentialKind::UserToken, None, Some(1));
        let acting = principal(CredentialKind::UserToken, Some(2), Some(1));
        let two = Some([agent_id(1), agent_id(2)]);
        let refused = Err(Refusal::new(ErrorCode::Unauthorized));
        for (who, joins) in
            [(agent(1), true), (agent(2), true), (agent(3), false), (owner(), false), (acting, true)]
        {
            assert_eq!(may_join_between(&who, two).is_ok(), joins, "{who:?}");
            assert_eq!(may_join_between(&who, None), refused, "unknown");
        }
        let topic = Topic::Negotiation(Some(NegotiationId::new(Timestamp::from_unix_ms(1), [0; 10])));
        assert_eq!(may_join(&owner(), topic, None), refused);
        assert_eq!(may_join(&agent(1), Topic::Negotiation(None), None), refused);
        let channel = PaymentChannelId::new(Timestamp::from_unix_ms(1), [0; 10]);
        assert_eq!(may_join(&agent(1), Topic::Payment(Some(channel)), None), Ok(()));
        assert_eq!(may_join(&agent(1), Topic::Payment(None), None), refused);
        let user = principal(CredentialKind::UserToken, None, Some(1));
        assert_eq!(may_join(&user, Topic::Payment(Some(channel)), None), refused);
    }

    #[test]
    fn streams_are_for_their_parties() {
        let task = TaskParties { client: agent_id(1), client_owner: Some(user_id(1)), provider: agent_id(2) };
        let unowned = TaskParties { client_owner: None, ..task };
        let topic = Topic::TaskStream(Some(TaskId::new(Timestamp::from_unix_ms(1), [0; 10])));
        let agent = |n| principal(CredentialKind::AgentKey, Some(n), None);
        let user = |n| principal(CredentialKind::UserToken, None, Some(n));
        let refused = Err(Refusal::new(ErrorCode::Unauthorized));
        for (who, joins) in
            [(agent(1), true), (agent(2), true), (agent(3), false), (user(1), true), (user(2), false)]
        {
            assert_eq!(may_join(&who, topic, Some(&task)).is_ok(), joins, "{who:?}");
            assert_eq!(may_join(&who, topic, None), refused, "unknown task");
        }
        assert_eq!(may_join(&user(1), topic, Some(&unowned)), refused);
        for (who, emits) in [(agent(1), false), (agent(2), true), (agent(3), false), (user(1), false)] {
            assert_eq!(may_emit(&who, Some(&task)).is_ok(), emits, "{who:?}");
        }
        assert_eq!(may_emit(&agent(2), None), refused);
        let reader = Principal { scopes: Scopes::of(&[Scope::Connect, Scope::Read]), ..agent(2) };
        assert_eq!(may_emit(&reader, Some(&task)).unwrap_err().code, ErrorCode::Forbidden);
    }
}
