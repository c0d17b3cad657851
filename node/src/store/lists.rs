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
struct Side {
    /// The column that names who it belongs to.
    column: &'static str,
    /// The agent, or the user: the column has its id.
    whose: String,
    /// What has it, as rows of `own_id`.
    own: String,
    /// Whether `whose` is a user, and the column names agents of it.
    is_through_agents: bool,
    /// What else must hold.
    but: String,
}

impl Side {
    fn of(column: &'static str, (table, whose): (&str, &str), but: String) -> Self {
        let own = format!("(SELECT id AS own_id FROM {table} WHERE id = {whose}) AS own");
        Self { column, whose: whose.to_owned(), own, is_through_agents: false, but }
    }

    fn of_agents(column: &'static str, user: &str, but: String) -> Self {
        let own = format!("(SELECT id AS own_id FROM agents WHERE owner = {user}) AS own");
        Self { column, whose: user.to_owned(), own, is_through_agents: true, but }
    }
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

    /// Rows must name the agent there.
    fn role(&mut self, column: &'static str, agent: Option<AgentId>) {
        if self.sides.is_empty() {
            let Some(agent) = agent else { return };
            let agent = self.value(Value::Id(*agent.as_bytes()));
            return self.sides.push(Side::of(column, ("agents", &agent), String::new()));
        }
        self.is(column, agent.map(|agent| Value::Id(*agent.as_bytes())));
    }

    /// Rows must name the agent on one of two sides.
    fn party(&mut self, [one, other]: [&'static str; 2], agent: Option<AgentId>) {
        let Some(agent) = agent else { return };
        let agent = self.value(Value::Id(*agent.as_bytes()));
        if !self.sides.is_empty() {
            return self.and(&format!("({one} = {agent} OR {other} = {agent})"));
        }
        self.sides.push(Side::of(one, ("agents", &agent), String::new()));
        self.sides.push(Side::of(other, ("agents", &agent), format!(" AND {one} <> {agent}")));
    }

    /// Rows must be the user's own, or name an agent of the user.
    fn user(&mut self, own: &'static str, agent: &'static str, user: Option<UserId>) {
        let Some(user) = user else { return };
        let user = self.value(Value::Id(*user.as_bytes()));
        if !self.sides.is_empty() {
            let of_user = format!("IN (SELECT id FROM agents WHERE owner = {user})");
            return self.and(&format!("({own} = {user} OR {agent} {of_user})"));
        }
        self.sides.push(Side::of(own, ("users", &user), String::new()));
        self.sides.push(Side::of_agents(agent, &user, format!(" AND {own} IS DISTINCT FROM {user}")));
    }

    /// Rows must name an agent of the user on one of two sides.
    fn user_of_either(&mut self, [one, other]: [&'static str; 2], user: Option<UserId>) {
        let Some(user) = user else { return };
        let user = self.value(Value::Id(*user.as_bytes()));
        let of_user = format!("IN (SELECT id FROM agents WHERE owner = {user})");
        if !self.sides.is_empty() {
            return self.and(&format!("({one} {of_user} OR {other} {of_user})"));
        }
        let is_first =
            format!("SELECT 1 FROM agents AS first WHERE first.id = {one} AND first.owner = {user}");
        self.sides.push(Side::of_agents(one, &user, String::new()));
        self.sides.push(Side::of_agents(other, &user, format!(" AND NOT EXISTS ({is_first})")));
    }

    fn and(&mut self, condition: &str) {
        self.conditions.push_str(&format!(" AND {condition}"));
    }

    /// The rows of a side: all there are, if it is counted, otherwise of each agent the `newest`.
    fn rows(&self, table: &str, columns: &str, side: &Side, newest: Option<&str>) -> String {
        let Side { column, whose, own, is_through_agents, but } = side;
        let conditions = &self.conditions;
        let counted = format!(" LIMIT {COUNTED_MAX}");
        match (self.dialect, is_through_agents, newest) {
            // Agent by agent. The planner does not see which agent it is: it would go through the whole table for one that
            // has a great part of it, and never find what is long ago.
            (Dialect::Postgres, ..) => format!(
                "SELECT side.* FROM {own} CROSS JOIN LATERAL (SELECT {columns} FROM {table}
                 WHERE {column} = own_id{but}{conditions}{newest}) AS side",
                newest = newest.unwrap_or(&counted)
            ),
            (Dialect::Sqlite, false, _) => format!(
                "SELECT * FROM (SELECT {columns} FROM {table} WHERE {column} = {whose}{but}{conditions}{newest}) AS side",
                newest = newest.unwrap_or(&counted)
            ),
            (Dialect::Sqlite, true, None) => {
                format!("SELECT {columns} FROM {own} CROSS JOIN {table} WHERE {column} = own_id{but}{conditions}")
            }
            // Without LATERAL: which rows first, agent by agent.
            (Dialect::Sqlite, true, Some(newest)) => format!(
                "SELECT {columns} FROM {table} WHERE id IN (SELECT picked.id FROM {own} CROSS JOIN {table} AS picked
                 WHERE picked.id IN (SELECT id FROM {table} WHERE {column} = own_id{but}{conditions}{newest}))"
            ),
        }
    }

    /// The statements, for a table with a primary key `id`; `order` is one of the columns.
    fn build(self, table: &str, columns: &str, order: &str) -> List {
        let count = self.values.len();
        let [after, rows, skipped] = [1, 2, 3].map(|nth| self.mark(count + nth));
        let most = format!("CAST({rows} AS bigint) + CAST({skipped} AS bigint)");
        let newest = format!(" AND {order} < {after} ORDER BY {order} DESC LIMIT {most}");
        let all = |columns: &str, newest: Option<&str>| {
            let rows = |side: &Side| self.rows(table, columns, side, newest);
            let sides: Vec<String> = self.sides.iter().map(rows).collect();
            sides.join(" UNION ALL ")
        };
        let (counted, listed) = if self.sides.is_empty() {
            let of_table =
                |columns: &str| format!("SELECT {columns} FROM {table} WHERE true{}", self.conditions);
            (of_table(order), format!("SELECT * FROM ({}{newest}) AS listed", of_table(columns)))
        } else {
            (all(order, None), all(columns, Some(&newest)))
        };
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
    list.is("status", filter.status.map(|status| Value::Text(TaskStatus::as_str(status))));
    list.role("provider", filter.provider);
    list.role("client", filter.client);
    // Whoever is named in a role is a party.
    let is_named = [filter.provider, filter.client].contains(&filter.agent);
    list.party(["client", "provider"], filter.agent.filter(|_| !is_named));
    list.user("client_owner", "provider", filter.user);
    list.build("tasks", TASK_COLUMNS, "id")
}

/// Hirings, with the columns that the store names.
pub fn hirings(dialect: Dialect, columns: &str, user: &'static str, filter: &HiringFilter) -> List {
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

#[cfg(test)]
mod tests;
