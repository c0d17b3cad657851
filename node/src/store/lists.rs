//! Filtered lists, newest first, as both stores ask for them. Only the filters that a request has stand in its statements,
//! so that each goes along an index in the order of the list, however long a history is; and totals stop at [`COUNTED_MAX`].

use muster_actors::store::{COUNTED_MAX, HiringFilter, NegotiationFilter, TaskFilter};
use muster_protocol::ids::{AgentId, UserId};
use muster_protocol::negotiation::Status;
use muster_protocol::payment_channel::ChannelStatus;
use muster_protocol::task::TaskStatus;

use super::sql::{NEGOTIATION_COLUMNS, TASK_COLUMNS};

/// Where statements of the two stores differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Of the embedded store.
    Sqlite,
    /// Of PostgreSQL.
    Postgres,
}

/// What a filter compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// An id.
    Id([u8; 16]),
    /// A state.
    Text(&'static str),
}

/// The statements of a list.
#[derive(Debug)]
pub struct List {
    /// Counts it; its parameters are `values`.
    pub counting: String,
    /// Reads a page; its parameters are `values`, the id it goes on below, how many rows, and how many of the newest it
    /// leaves out.
    pub listing: String,
    /// Of both statements.
    pub values: Vec<Value>,
}

/// One of the ways by which a row belongs to a list; no row by two of them.
enum Side {
    /// By itself.
    Own(String),
    /// As that of an agent of this user: the column that names the agent, the user, and what else must hold.
    OfUser { agent: &'static str, user: String, but: String },
}

/// The agents of a user, by a name that no other table has.
fn agents_of(user: &str) -> String {
    format!("(SELECT id AS own_id FROM agents WHERE owner = {user}) AS own")
}

/// Puts a list together.
struct Builder {
    dialect: Dialect,
    values: Vec<Value>,
    conditions: String,
    sides: Vec<Side>,
}

impl Builder {
    const fn new(dialect: Dialect) -> Self {
        Self { dialect, values: Vec::new(), conditions: String::new(), sides: Vec::new() }
    }

    fn mark(&self, place: usize) -> String {
        match self.dialect {
            Dialect::Sqlite => format!("?{place}"),
            Dialect::Postgres => format!("${place}"),
        }
    }

    fn value(&mut self, value: Value) -> String {
        self.values.push(value);
        self.mark(self.values.len())
    }

    /// Rows must have that value, if one is asked for.
    fn is(&mut self, column: &str, value: Option<Value>) {
        if let Some(value) = value {
            let value = self.value(value);
            self.conditions.push_str(&format!(" AND {column} = {value}"));
        }
    }

    /// Rows must name the agent on one of two sides.
    fn party(&mut self, [one, other]: [&'static str; 2], agent: Option<AgentId>) {
        let Some(agent) = agent else { return };
        let agent = self.value(Value::Id(*agent.as_bytes()));
        self.sides.push(Side::Own(format!("{one} = {agent}")));
        self.sides.push(Side::Own(format!("{other} = {agent} AND {one} <> {agent}")));
    }

    /// Rows must be the user's own, or name an agent of the user.
    fn user(&mut self, own: &str, agent: &'static str, user: Option<UserId>) {
        let Some(user) = user else { return };
        let user = self.value(Value::Id(*user.as_bytes()));
        if !self.sides.is_empty() {
            let both =
                format!(" AND ({own} = {user} OR {agent} IN (SELECT id FROM agents WHERE owner = {user}))");
            return self.conditions.push_str(&both);
        }
        self.sides.push(Side::Own(format!("{own} = {user}")));
        let but = format!(" AND {own} IS DISTINCT FROM {user}");
        self.sides.push(Side::OfUser { agent, user, but });
    }

    /// Rows must name an agent of the user on one of two sides.
    fn user_of_either(&mut self, [one, other]: [&'static str; 2], user: Option<UserId>) {
        let Some(user) = user else { return };
        let user = self.value(Value::Id(*user.as_bytes()));
        if !self.sides.is_empty() {
            let of_user = format!("IN (SELECT id FROM agents WHERE owner = {user})");
            return self.conditions.push_str(&format!(" AND ({one} {of_user} OR {other} {of_user})"));
        }
        let but = format!(
            " AND NOT EXISTS (SELECT 1 FROM agents AS first WHERE first.id = {one} AND first.owner = {user})"
        );
        self.sides.push(Side::OfUser { agent: one, user: user.clone(), but: String::new() });
        self.sides.push(Side::OfUser { agent: other, user, but });
    }

    /// Counts a side, up to what is counted.
    fn counted(&self, table: &str, order: &str, side: &Side) -> String {
        let conditions = &self.conditions;
        match side {
            Side::Own(own) => format!("SELECT {order} FROM {table} WHERE {own}{conditions}"),
            Side::OfUser { agent, user, but } if self.dialect == Dialect::Postgres => format!(
                "SELECT side.{order} FROM {own} CROSS JOIN LATERAL (SELECT {order} FROM {table}
                 WHERE {agent} = own_id{but}{conditions} LIMIT {COUNTED_MAX}) AS side",
                own = agents_of(user)
            ),
            Side::OfUser { agent, user, but } => format!(
                "SELECT {order} FROM {own} CROSS JOIN {table} WHERE {agent} = own_id{but}{conditions}",
                own = agents_of(user)
            ),
        }
    }

    /// The rows of a side: of each agent at most `most`, the newest below `after`.
    fn listed(&self, table: &str, columns: &str, side: &Side, newest: &str) -> String {
        let conditions = &self.conditions;
        match side {
            Side::Own(own) => format!(
                "SELECT * FROM (SELECT {columns} FROM {table} WHERE {own}{conditions}{newest}) AS side"
            ),
            Side::OfUser { agent, user, but } if self.dialect == Dialect::Postgres => format!(
                "SELECT side.* FROM {own} CROSS JOIN LATERAL (SELECT {columns} FROM {table}
                 WHERE {agent} = own_id{but}{conditions}{newest}) AS side",
                own = agents_of(user)
            ),
            // Without LATERAL: which rows first, agent by agent.
            Side::OfUser { agent, user, but } => format!(
                "SELECT {columns} FROM {table} WHERE id IN (SELECT picked.id FROM {own} CROSS JOIN {table} AS picked
                 WHERE picked.id IN (SELECT id FROM {table} WHERE {agent} = own_id{but}{conditions}{newest}))",
                own = agents_of(user)
            ),
        }
    }

    /// The statements, for a table with a primary key `id`; `order` is one of the columns.
    fn build(mut self, table: &str, columns: &str, order: &str) -> List {
        if self.sides.is_empty() {
            self.sides.push(Side::Own("true".into()));
        }
        let count = self.values.len();
        let [after, rows, skipped] = [1, 2, 3].map(|nth| self.mark(count + nth));
        let all =
            |of: &dyn Fn(&Side) -> String| self.sides.iter().map(of).collect::<Vec<_>>().join(" UNION ALL ");
        let counted = all(&|side| self.counted(table, order, side));
        let most = format!("CAST({rows} AS bigint) + CAST({skipped} AS bigint)");
        let newest = format!(" AND {order} < {after} ORDER BY {order} DESC LIMIT {most}");
        let listed = all(&|side| self.listed(table, columns, side, &newest));
        List {
            counting: format!(
                "SELECT count(*) FROM (SELECT 1 FROM ({counted}) AS sides LIMIT {COUNTED_MAX}) AS counted"
            ),
            listing: format!("{listed} ORDER BY {order} DESC LIMIT {rows} OFFSET {skipped}"),
            values: self.values,
        }
    }
}

/// Negotiations.
pub fn negotiations(dialect: Dialect, filter: &NegotiationFilter) -> List {
    let mut list = Builder::new(dialect);
    list.is("status", filter.status.map(|status| Value::Text(Status::as_str(status))));
    list.party(["client", "provider"], filter.agent);
    list.user_of_either(["client", "provider"], filter.user);
    list.build("negotiations", NEGOTIATION_COLUMNS, "listed_as")
}

/// Tasks.
pub fn tasks(dialect: Dialect, filter: &TaskFilter) -> List {
    let mut list = Builder::new(dialect);
    let id = |agent: AgentId| Value::Id(*agent.as_bytes());
    list.is("status", filter.status.map(|status| Value::Text(TaskStatus::as_str(status))));
    list.is("provider", filter.provider.map(id));
    list.is("client", filter.client.map(id));
    // Whoever is named in a role is a party.
    let is_named = filter.agent.is_some() && [filter.provider, filter.client].contains(&filter.agent);
    list.party(["client", "provider"], filter.agent.filter(|_| !is_named));
    list.user("client_owner", "provider", filter.user);
    list.build("tasks", TASK_COLUMNS, "id")
}

/// Hirings, with the columns that the store names.
pub fn hirings(dialect: Dialect, columns: &str, user: &str, filter: &HiringFilter) -> List {
    let mut list = Builder::new(dialect);
    list.is("status", filter.status.map(|status| Value::Text(status.task_status().as_str())));
    list.party(["client", "agent"], filter.agent);
    list.user(user, "agent", filter.user);
    list.build("hirings", columns, "id")
}

/// Payment channels of an agent, or in a state.
pub fn channels(dialect: Dialect, agent: Option<AgentId>, status: Option<ChannelStatus>) -> List {
    let mut list = Builder::new(dialect);
    list.is("status", status.map(|status| Value::Text(ChannelStatus::as_str(status))));
    list.party(["agent_a", "agent_b"], agent);
    list.build("payment_channels", "document, id", "id")
}
