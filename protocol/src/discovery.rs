//! Finding agents: the query, and the order of the answer (agrenting.md R62, R56).

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::agent::{Agent, AgentStatus};
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::AgentId;
use crate::json::{Json, read_object};
use crate::money::Amount;
use crate::presence::Facts;

/// Whether an agent can be reached, as it says of itself while it is online (R63).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Connected and free.
    Online,
    /// Not connected.
    #[default]
    Offline,
    /// Connected, with as much work as it takes.
    Busy,
    /// Connected, nobody there.
    Away,
}

/// Which availability a query wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AvailabilityFilter {
    /// Any.
    #[default]
    Any,
    /// This one.
    Online,
    /// This one.
    Offline,
    /// This one.
    Busy,
    /// This one.
    Away,
    /// Any but offline.
    #[serde(skip)]
    Connected,
}

impl AvailabilityFilter {
    /// Whether an availability passes.
    #[must_use]
    pub fn admits(self, availability: Availability) -> bool {
        match self {
            Self::Any => true,
            Self::Online => availability == Availability::Online,
            Self::Offline => availability == Availability::Offline,
            Self::Busy => availability == Availability::Busy,
            Self::Away => availability == Availability::Away,
            Self::Connected => availability != Availability::Offline,
        }
    }
}

/// Order of found agents; those online always come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SortBy {
    /// Best first, then cheapest.
    #[default]
    Reputation,
    /// Cheapest first.
    Price,
    /// By name.
    Name,
}

/// Filters of `discover`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filters {
    /// Availability.
    #[serde(default)]
    pub status: AvailabilityFilter,
    /// Reputation from which.
    #[serde(default)]
    pub min_reputation: Option<f64>,
    /// Base price from which.
    #[serde(default)]
    pub min_price: Option<Amount>,
    /// Base price up to which.
    #[serde(default)]
    pub max_price: Option<Amount>,
}

/// A question for agents.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Query {
    /// What they must be able to do; all when absent.
    #[serde(default)]
    pub capability: Option<String>,
    /// Further conditions.
    #[serde(default)]
    pub filters: Option<Filters>,
    /// The order of the answer.
    #[serde(skip)]
    pub sort_by: SortBy,
}

impl Query {
    /// Reads a `discover` payload.
    ///
    /// # Errors
    /// A field of another type, an unknown filter, a reputation that is no number.
    pub fn parse(payload: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        struct Shape<'a> {
            #[serde(borrow, default)]
            filters: Option<&'a RawValue>,
        }
        let query = read_object(payload)?;
        // Filters are named: a list, which derived readers would take value by value, is none.
        match serde_json::from_str(payload) {
            Ok(Shape { filters: Some(filters) }) if filters.get().starts_with('[') => {
                Err(Refusal::field(ErrorCode::InvalidPayload, "filters", "expected an object"))
            }
            _ => Ok(query),
        }
    }

    /// Whether an agent belongs in the answer, its availability aside.
    #[must_use]
    pub fn matches(&self, agent: &Agent) -> bool {
        agent.status.is_discoverable() && self.fits(&agent.capabilities, agent.reputation(), agent.base_price)
    }

    /// The same for an agent that is published, by what presence says of it.
    #[must_use]
    pub fn matches_facts(&self, facts: &Facts) -> bool {
        self.fits(&facts.capabilities, facts.reputation, facts.base_price)
    }

    fn fits(&self, capabilities: &[String], reputation: f64, base_price: Amount) -> bool {
        let filters = self.filters.clone().unwrap_or_default();
        self.capability.as_ref().is_none_or(|wanted| capabilities.contains(wanted))
            && filters.min_reputation.is_none_or(|min| reputation >= min)
            && filters.min_price.is_none_or(|min| base_price >= min)
            && filters.max_price.is_none_or(|max| base_price <= max)
    }

    /// The availability it wants.
    #[must_use]
    pub fn availability(&self) -> AvailabilityFilter {
        self.filters.as_ref().map_or(AvailabilityFilter::Any, |filters| filters.status)
    }
}

/// An agent in an answer.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Found {
    /// Id.
    pub id: AgentId,
    /// DID.
    pub did: String,
    /// Name.
    pub name: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Availability: `online`, `offline`, `busy` or `away`.
    pub status: Availability,
    /// 0 to 5.
    pub reputation: f64,
    /// What it asks.
    pub base_price: Amount,
    /// Whether it is connected, and does not say that it is offline.
    pub online: bool,
}

impl Found {
    /// An agent with its availability.
    #[must_use]
    pub fn new(agent: &Agent, availability: Availability) -> Self {
        Self {
            id: agent.id,
            did: agent.did.clone(),
            name: agent.name.clone(),
            capabilities: agent.capabilities.clone(),
            status: availability,
            reputation: agent.reputation(),
            base_price: agent.base_price,
            online: availability != Availability::Offline,
        }
    }

    /// A published agent that is connected, by what presence says of it.
    #[must_use]
    pub fn connected(
        id: AgentId,
        (name, did): (&str, &str),
        availability: Availability,
        facts: &Facts,
    ) -> Self {
        Self {
            id,
            did: did.to_owned(),
            name: name.to_owned(),
            capabilities: facts.capabilities.clone(),
            status: availability,
            reputation: facts.reputation,
            base_price: facts.base_price,
            online: availability != Availability::Offline,
        }
    }

    /// The order of an answer: online first, then as asked for, then by id.
    #[must_use]
    pub fn order(&self, other: &Self, by: SortBy) -> Ordering {
        let price = || self.base_price.cmp(&other.base_price);
        other
            .online
            .cmp(&self.online)
            .then_with(|| match by {
                SortBy::Reputation => other.reputation.total_cmp(&self.reputation).then_with(price),
                SortBy::Price => price(),
                SortBy::Name => self.name.cmp(&other.name),
            })
            .then_with(|| self.id.cmp(&other.id))
    }
}

/// What presence says of an agent (R53).
#[derive(Debug, Serialize)]
pub struct PresenceFields<'a> {
    /// What it can do.
    pub capabilities: &'a [String],
    /// 0 to 5.
    pub reputation: f64,
    /// What it asks.
    pub base_price: Amount,
    /// When this connection came online, ISO-8601.
    pub online_at: crate::time::Timestamp,
    /// `online`, or what it says of itself: `busy`, `away`, `offline`.
    pub status: Availability,
    /// Name.
    pub name: &'a str,
    /// DID.
    pub did: &'a str,
    /// What it says of itself.
    pub metadata: &'a Json,
}

/// How much of presence a join of `agents:discovery` asks for: telling everybody about everybody costs the square of the
/// fleet, and most want to know of few.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum View {
    /// Everybody, as Phoenix clients expect.
    #[default]
    Full,
    /// Nobody.
    Nobody,
    /// Those who fit.
    Some(ViewFilter),
}

/// Whom a view shows.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewFilter {
    /// What they must be able to do.
    #[serde(default)]
    pub capability: Option<String>,
    /// Reputation from which.
    #[serde(default)]
    pub min_reputation: Option<f64>,
    /// Base price up to which.
    #[serde(default)]
    pub max_price: Option<Amount>,
}

impl View {
    /// Reads `presence` of a join's payload: absent, `null` or `"full"`, `"none"`, or an object of conditions.
    ///
    /// # Errors
    /// It is something else, or has a condition that is not known.
    pub fn parse(payload: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        struct Payload {
            #[serde(default)]
            presence: Option<Json>,
        }
        // Whatever is no object asks for nothing: Phoenix takes any payload at a join.
        if !payload.trim_start().starts_with('{') {
            return Ok(Self::Full);
        }
        let Payload { presence: Some(presence) } = read_object(payload)? else {
            return Ok(Self::Full);
        };
        match presence.as_str() {
            "\"full\"" => Ok(Self::Full),
            "\"none\"" => Ok(Self::Nobody),
            object if object.starts_with('{') => read_object(object).map(Self::Some),
            _ => {
                let message = "\"full\", \"none\", or an object of conditions";
                Err(Refusal::field(ErrorCode::InvalidPayload, "presence", message))
            }
        }
    }

    /// Whether it shows an agent.
    #[must_use]
    pub fn shows(&self, facts: &Facts) -> bool {
        match self {
            Self::Full => true,
            Self::Nobody => false,
            Self::Some(filter) => {
                filter.capability.as_ref().is_none_or(|wanted| facts.capabilities.contains(wanted))
                    && filter.min_reputation.is_none_or(|min| facts.reputation >= min)
                    && filter.max_price.is_none_or(|max| facts.base_price <= max)
            }
        }
    }
}

/// Whether others see an agent of that status in presence.
#[must_use]
pub fn is_shown(status: AgentStatus) -> bool {
    status.is_discoverable()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Registration;
    use crate::limits::Limits;
    use crate::time::Timestamp;

    fn agent(n: u8, price: &str, completed: u64) -> Agent {
        let json = format!(
            r#"{{"name":"A{n}","did":"did:x:{n}","capabilities":["code","c{n}"],"pricing_model":"fixed","base_price":{price}}}"#
        );
        let registration: Registration = serde_json::from_str(&json).unwrap();
        let id = AgentId::new(Timestamp::from_unix_ms(1), [n; 10]);
        let agent =
            registration.into_agent(id, None, Timestamp::from_unix_ms(1), &Limits::default()).unwrap();
        Agent { tasks_completed: completed, ..agent }
    }

    #[test]
    fn filters_and_order() {
        let agents = [agent(1, "5", 0), agent(2, "1", 0), agent(3, "1", 8), agent(4, "0.5", 0)];
        let online = [true, true, false, true];
        let ask = |query: &str| -> Vec<String> {
            let query = Query::parse(query).unwrap();
            let mut found: Vec<Found> = agents
                .iter()
                .zip(online)
                .filter(|(agent, _)| query.matches(agent))
                .map(|(agent, online)| {
                    Found::new(agent, if online { Availability::Online } else { Availability::Offline })
                })
                .filter(|found| query.availability().admits(found.status))
                .collect();
            found.sort_by(|a, b| a.order(b, SortBy::Reputation));
            found.into_iter().map(|found| found.name).collect()
        };
        assert_eq!(ask("{}"), ["A4", "A2", "A1", "A3"]);
        assert_eq!(ask(r#"{"capability":"c2"}"#), ["A2"]);
        assert_eq!(ask(r#"{"capability":"none"}"#), Vec::<String>::new());
        assert_eq!(ask(r#"{"filters":{"max_price":"1"}}"#), ["A4", "A2", "A3"]);
        assert_eq!(ask(r#"{"filters":{"min_price":1}}"#), ["A2", "A1", "A3"]);
        assert_eq!(ask(r#"{"filters":{"min_reputation":4,"status":"any"}}"#), ["A3"]);
        assert_eq!(ask(r#"{"filters":{"status":"online"}}"#), ["A4", "A2", "A1"]);
        assert_eq!(ask(r#"{"filters":{"status":"busy"}}"#), Vec::<String>::new());
        for bad in [
            r#"{"filters":{"status":"gone"}}"#,
            r#"{"filters":{"maxprice":1}}"#,
            r#"{"capability":1}"#,
            "[]",
            "7",
        ] {
            assert!(Query::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn views_are_read_and_show_whom_they_name() {
        let facts = |can: &str, reputation, price| Facts {
            capabilities: vec![can.to_owned()],
            reputation,
            base_price: Amount::parse(price).unwrap(),
        };
        let (coder, dear, poet) =
            (facts("code", 4.0, "1"), facts("code", 4.5, "9"), facts("rhyme", 2.5, "0"));
        for (payload, shown) in [
            ("{}", [true, true, true]),
            ("[]", [true, true, true]),
            (r#"["none"]"#, [true, true, true]),
            (r#"{"presence":null}"#, [true, true, true]),
            (r#"{"presence":"full"}"#, [true, true, true]),
            (r#"{"presence":"none"}"#, [false, false, false]),
            (r#"{"presence":{}}"#, [true, true, true]),
            (r#"{"presence":{"capability":"code"}}"#, [true, true, false]),
            (r#"{"presence":{"capability":"code","max_price":"5"}}"#, [true, false, false]),
            (r#"{"presence":{"min_reputation":4.2}}"#, [false, true, false]),
        ] {
            let view = View::parse(payload).unwrap();
            assert_eq!([&coder, &dear, &poet].map(|facts| view.shows(facts)), shown, "{payload}");
        }
        for payload in [
            r#"{"presence":"some"}"#,
            r#"{"presence":7}"#,
            r#"{"presence":"none","presence":"none"}"#,
            r#"{"presence":{"status":"online"}}"#,
            r#"{"presence":["code"]}"#,
        ] {
            assert_eq!(View::parse(payload).unwrap_err().code, ErrorCode::InvalidPayload, "{payload}");
        }
    }
}
