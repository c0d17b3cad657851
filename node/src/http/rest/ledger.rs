//! Money: what the operator credits, what users move between their own accounts, and what everybody has.

use http::HeaderMap;
use muster_actors::ledger::{Direction, Order, Posted};
use muster_actors::store::StoreError;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, LedgerEntryId, TaskId, UserId};
use muster_protocol::ledger::{Account, Audit, Balance, Delta, Entry, EntryKind, Totals};
use muster_protocol::money::Amount;
use muster_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Id, Operator, PageParams, Params, State};
use super::hirings::may_spend;
use super::tasks::visible;
use super::views::{Envelope, Refusals};
use crate::app::App;
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled, Refused};

/// What an agent or a user has.
#[derive(Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct BalanceView {
    /// In its own account.
    pub available: Amount,
    /// Held for it in tasks and payment channels.
    pub escrow: Amount,
    /// Both together.
    pub total: Amount,
    pub currency: String,
}

impl BalanceView {
    fn new(app: &App, balance: Balance) -> Self {
        let total = balance.available.micros().saturating_add(balance.escrow.micros());
        Self {
            available: balance.available,
            escrow: balance.escrow,
            total: Amount::from_micros(total).unwrap_or_default(),
            currency: app.core.ledger.settings.currency.clone(),
        }
    }
}

/// A movement of money, as the owner of one of its accounts sees it.
#[derive(Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct TransactionView {
    pub id: LedgerEntryId,
    pub kind: EntryKind,
    /// What it changed the account by: a decimal string, with a minus when it took something.
    #[schema(value_type = String)]
    pub amount: Delta,
    /// What whoever made it called it; the id of a task or of a payment channel.
    pub reference: Option<String>,
    pub at: Timestamp,
}

impl TransactionView {
    fn new(entry: &Entry, account: &Account) -> Self {
        Self {
            id: entry.id,
            kind: entry.kind,
            amount: entry.delta_of(account),
            reference: entry.reference.clone(),
            at: entry.at,
        }
    }
}

/// A movement, and what there is afterwards.
#[derive(Debug, Serialize, ToSchema)]
pub struct Moved {
    /// The movement.
    transaction: TransactionView,
    /// What the account has.
    balance: BalanceView,
    /// Whether it had been made before, under the same reference.
    duplicate: bool,
}

async fn moved(app: &App, account: Account, posted: Posted) -> Handled {
    let balance = app.core.ledger.balance(account).await?;
    let moved = Moved {
        transaction: TransactionView::new(&posted.entry, &account),
        balance: BalanceView::new(app, balance),
        duplicate: posted.is_duplicate,
    };
    if posted.is_duplicate { Answer::ok(&moved) } else { Answer::created(&moved) }
}

/// Whose account the operator changes, and by how much.
#[derive(Deserialize, ToSchema)]
pub struct Adjustment {
    /// An agent's account; this or `user_id`.
    #[serde(default)]
    agent_id: Option<AgentId>,
    /// A user's account; this or `agent_id`.
    #[serde(default)]
    user_id: Option<UserId>,
    /// More than nothing.
    amount: Amount,
    /// Names the movement: the same again changes nothing. The header `X-Idempotency-Key` stands in for it.
    #[serde(default)]
    reference: Option<String>,
}

fn order(amount: Amount, reference: Option<String>, headers: &HeaderMap) -> Order {
    let key = headers.get("x-idempotency-key").and_then(|value| value.to_str().ok());
    Order { amount, reference: reference.or_else(|| key.map(str::to_owned)) }
}

async fn adjust(app: &App, headers: &HeaderMap, request: Adjustment, direction: Direction) -> Handled {
    let account = match (request.agent_id, request.user_id) {
        (Some(agent), None) => Account::Agent(app.core.store.agent(agent).await?.id),
        (None, Some(user)) => Account::User(app.core.store.user(user).await?.id),
        _ => return Err(Refusal::invalid("either agent_id or user_id").into()),
    };
    let order = order(request.amount, request.reference, headers);
    moved(app, account, app.core.ledger.adjust(account, direction, order).await?).await
}

/// Puts money into the account of an agent or a user, as the operator.
#[utoipa::path(post, path = "/api/v1/admin/ledger/credit", request_body = Adjustment,
    responses((status = 201, body = Envelope<Moved>), (status = 200, body = Envelope<Moved>), Refusals))]
pub async fn credit(app: State, _: Operator, headers: HeaderMap, Body(request): Body<Adjustment>) -> Handled {
    adjust(&app, &headers, request, Direction::Credit).await
}

/// Takes money out of the account of an agent or a user, as the operator.
#[utoipa::path(post, path = "/api/v1/admin/ledger/debit", request_body = Adjustment,
    responses((status = 201, body = Envelope<Moved>), (status = 200, body = Envelope<Moved>), Refusals))]
pub async fn debit(app: State, _: Operator, headers: HeaderMap, Body(request): Body<Adjustment>) -> Handled {
    adjust(&app, &headers, request, Direction::Debit).await
}

/// Adds the whole ledger up, as the operator.
#[utoipa::path(get, path = "/api/v1/admin/ledger/audit", responses((status = 200, body = Envelope<Audit>), Refusals))]
pub async fn audit(app: State, _: Operator) -> Handled {
    Answer::ok(&app.core.store.audit().await?)
}

/// Where the money is that belongs to no agent and no user.
#[derive(Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct TotalsView {
    /// What the platform has kept of payments, and was not withdrawn yet.
    pub fees: Amount,
    /// What went out less what came in: a decimal string, with a minus while there is money here.
    #[schema(value_type = String)]
    pub external: Delta,
    /// What all accounts hold together: always `0`.
    #[schema(value_type = String)]
    pub sum: Delta,
    pub currency: String,
}

/// Shows what the platform has earned, and what came in from outside, as the operator.
#[utoipa::path(get, path = "/api/v1/admin/ledger", responses((status = 200, body = Envelope<TotalsView>), Refusals))]
pub async fn totals(app: State, _: Operator) -> Handled {
    let Totals { fees, external, sum } = app.core.store.ledger_totals().await?;
    let currency = app.core.ledger.settings.currency.clone();
    Answer::ok(&TotalsView { fees, external, sum, currency })
}

/// What the platform has earned, to take out.
#[derive(Deserialize, ToSchema)]
pub struct FeeWithdrawal {
    /// More than nothing.
    amount: Amount,
    /// Names the movement: the same again changes nothing. The header `X-Idempotency-Key` stands in for it.
    #[serde(default)]
    reference: Option<String>,
}

/// Takes platform fees out, as the operator.
#[utoipa::path(post, path = "/api/v1/admin/ledger/fees/withdraw", request_body = FeeWithdrawal,
    responses((status = 201, body = Envelope<Moved>), (status = 200, body = Envelope<Moved>), Refusals))]
pub async fn withdraw_fees(
    app: State,
    _: Operator,
    headers: HeaderMap,
    Body(request): Body<FeeWithdrawal>,
) -> Handled {
    let order = order(request.amount, request.reference, &headers);
    let posted = app.core.ledger.adjust(Account::Fees, Direction::Debit, order).await?;
    moved(&app, Account::Fees, posted).await
}

/// Money to move between two accounts of one user.
#[derive(Deserialize, ToSchema)]
pub struct NewTransfer {
    /// The id of the user, or of an agent the user owns.
    from: String,
    /// The same.
    to: String,
    /// More than nothing.
    amount: Amount,
    /// Names the movement: the same again changes nothing. The header `X-Idempotency-Key` stands in for it.
    #[serde(default)]
    reference: Option<String>,
}

/// The field that names what money is taken from.
const FROM: &str = "from";

/// The account of that name, if it is the user's.
async fn own_account(app: &App, user: UserId, field: &'static str, name: &str) -> Result<Account, Refused> {
    if name.parse() == Ok(user) {
        return Ok(Account::User(user));
    }
    // Somebody else's agent and one that does not exist give the same answer.
    let none =
        || Refused(Refusal::field(ErrorCode::NotFound, field, "your own id, or that of an agent of yours"));
    let agent: AgentId = name.parse().map_err(|_| none())?;
    match app.core.store.agent(agent).await {
        // What a stopped agent has stays where it is, for the operator to decide (R23).
        Ok(agent) if agent.owner == Some(user) && field == FROM => Ok(Account::Agent(may_spend(agent)?.id)),
        Ok(agent) if agent.owner == Some(user) => Ok(Account::Agent(agent.id)),
        Ok(_) | Err(StoreError::NotFound) => Err(none()),
        Err(error) => Err(error.into()),
    }
}

/// Moves money between a user's own account and those of the agents the user owns. Agents cannot.
#[utoipa::path(post, path = "/api/v1/ledger/transfer", request_body = NewTransfer,
    responses((status = 201, body = Envelope<Moved>), (status = 200, body = Envelope<Moved>), Refusals))]
pub async fn transfer(
    app: State,
    caller: Caller,
    headers: HeaderMap,
    Body(request): Body<NewTransfer>,
) -> Handled {
    let user = caller.principal.user.ok_or(ErrorCode::Forbidden)?;
    let from = own_account(&app, user, FROM, &request.from).await?;
    let to = own_account(&app, user, "to", &request.to).await?;
    let order = order(request.amount, request.reference, &headers);
    moved(&app, from, app.core.ledger.transfer(user, (from, to), order).await?).await
}

/// Whose account.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfAgent {
    /// An agent the caller owns; otherwise the account of the agent the caller acts as, or of the user.
    agent_id: Option<AgentId>,
}

/// The account a caller asks for.
async fn account_of(app: &App, caller: &Caller, wanted: Option<AgentId>) -> Result<Account, Refused> {
    let principal = &caller.principal;
    match (wanted.or(principal.agent), principal.user) {
        (Some(agent), _) if principal.agent == Some(agent) => Ok(Account::Agent(agent)),
        (Some(agent), Some(user)) => match app.core.store.agent(agent).await {
            Ok(agent) if agent.owner == Some(user) => Ok(Account::Agent(agent.id)),
            Ok(_) | Err(StoreError::NotFound) => Err(ErrorCode::Forbidden.into()),
            Err(error) => Err(error.into()),
        },
        (None, Some(user)) => Ok(Account::User(user)),
        _ => Err(ErrorCode::Forbidden.into()),
    }
}

/// Shows what the calling agent or user has, and what is held for it.
#[utoipa::path(get, path = "/api/v1/ledger/balance", params(OfAgent),
    responses((status = 200, body = Envelope<BalanceView>), Refusals))]
pub async fn balance(app: State, caller: Caller, Params(of): Params<OfAgent>) -> Handled {
    let account = account_of(&app, &caller, of.agent_id).await?;
    Answer::ok(&BalanceView::new(&app, app.core.ledger.balance(account).await?))
}

/// Which movements.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// An agent the caller owns; otherwise the account of the agent the caller acts as, or of the user.
    agent_id: Option<AgentId>,
    /// Items at most.
    limit: Option<usize>,
    /// Where to go on.
    cursor: Option<String>,
}

/// Lists the movements of the calling agent's or user's account, newest first.
#[utoipa::path(get, path = "/api/v1/ledger/transactions", params(ListParams),
    responses((status = 200, body = Envelope<Vec<TransactionView>>), Refusals))]
pub async fn transactions(app: State, caller: Caller, Params(params): Params<ListParams>) -> Handled {
    let account = account_of(&app, &caller, params.agent_id).await?;
    let page = PageParams { limit: params.limit, cursor: params.cursor }.request(&app)?;
    let page = app.core.store.entries_of(account, page).await?;
    Answer::page(&page, |entry| TransactionView::new(entry, &account))
}

/// What was held, released or refunded for a task.
#[derive(Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct PaymentView {
    pub id: LedgerEntryId,
    pub kind: EntryKind,
    pub amount: Amount,
    /// The platform's part of it.
    pub fee: Amount,
    /// The client, when it was held.
    pub from_agent_id: Option<AgentId>,
    /// The provider or the client, when it was released or refunded.
    pub to_agent_id: Option<AgentId>,
    pub at: Timestamp,
}

impl PaymentView {
    fn new(entry: &Entry, escrow: &Account) -> Self {
        let size = |delta: Delta| Amount::from_micros(delta.0.saturating_abs()).unwrap_or_default();
        let agent = |takes: bool| {
            entry.postings.iter().find_map(|posting| match posting.account {
                Account::Agent(agent) if (posting.delta.0 > 0) == takes => Some(agent),
                _ => None,
            })
        };
        Self {
            id: entry.id,
            kind: entry.kind,
            amount: size(entry.delta_of(escrow)),
            fee: size(entry.delta_of(&Account::Fees)),
            from_agent_id: agent(false),
            to_agent_id: agent(true),
            at: entry.at,
        }
    }
}

/// Lists what was held, released or refunded for a task, newest first, for its parties.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/payments", params(("id" = TaskId, Path, description = "The task."), PageParams),
    responses((status = 200, body = Envelope<Vec<PaymentView>>), Refusals))]
pub async fn of_task(
    app: State,
    caller: Caller,
    Id(id): Id<TaskId>,
    Params(page): Params<PageParams>,
) -> Handled {
    let (task, _) = visible(&app, &caller, id).await?;
    let escrow = Account::Escrow { task: task.id, holder: task.client };
    let page = app.core.store.entries_of(escrow, page.request(&app)?).await?;
    Answer::page(&page, |entry| PaymentView::new(entry, &escrow))
}
