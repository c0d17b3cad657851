//! The tools of an agent. Each is a thin way to what REST and channels do too.

use std::borrow::Cow;
use std::sync::Arc;

use muster_actors::store::{PageRequest, TaskFilter};
use muster_protocol::account::Scope;
use muster_protocol::hiring::failure;
use muster_protocol::ids::{HiringId, TaskId};
use muster_protocol::json::{Json, read_object};
use muster_protocol::task::{ChunkRequest, Ending};
use parking_lot::Mutex;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
    InitializeRequestParams, InitializeResult, ListToolsResult, PaginatedRequestParams, ServerCapabilities,
    ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Value, json};

use super::arguments::{Failure, HiringFailure, ListTasks, Message, OfHiring, OfTask, Output, id};
use super::sessions::{Opened, Session};
use crate::app::App;
use crate::auth::Caller;
use crate::http::answer::Refused;
use crate::http::rest::streams::emit;
use crate::http::rest::tasks::{Role, in_role, visible};

/// The tools, for one session or, without sessions, for one request.
pub struct AgentTools {
    app: Arc<App>,
    session: Mutex<Option<Arc<Session>>>,
}

/// How long clients may keep the list of tools: it changes with the program only.
const TOOLS_TTL_MS: u64 = 3_600_000;

/// A tool: name, description, schema of its arguments, whether it changes something.
struct Entry {
    name: &'static str,
    description: &'static str,
    arguments: fn() -> Value,
    changes: bool,
}

const TASK_ID: &str = "Id of the task.";

const TOOLS: &[Entry] = &[
    Entry {
        name: "task_emit_chunk",
        description: "Emit one chunk of a task's output to whoever follows it. You must be the task's provider. \
                      Returns the chunk's seq once it is safely stored. The same idempotency_key is the same chunk.",
        arguments: || {
            json!({
                "type": "object",
                "required": ["task_id", "content"],
                "properties": {
                    "task_id": { "type": "string", "description": TASK_ID },
                    "content": { "type": "string", "description": "Text of the chunk, not empty." },
                    "kind": { "type": "string", "enum": ["chat", "artifact"], "default": "artifact",
                        "description": "chat: part of the conversation; artifact: part of the result." },
                    "metadata": { "type": "object" },
                    "idempotency_key": { "type": "string", "description": "Name of the chunk, for retries." },
                },
            })
        },
        changes: true,
    },
    Entry {
        name: "list_my_tasks",
        description: "List the tasks you are to do, newest first.",
        arguments: || {
            json!({
                "type": "object",
                "properties": {
                    "status": { "type": "string",
                        "enum": ["pending", "in_progress", "completed", "failed", "cancelled"] },
                    "limit": { "type": "integer", "minimum": 1, "maximum": 100, "default": 20 },
                },
            })
        },
        changes: false,
    },
    Entry {
        name: "get_task",
        description: "Show a task, with its input.",
        arguments: || task_arguments(&json!({})),
        changes: false,
    },
    Entry {
        name: "complete_task",
        description: "Complete a task with its output. This ends its stream.",
        arguments: || task_arguments(&json!({ "output": { "description": "Any JSON value." } })),
        changes: true,
    },
    Entry {
        name: "fail_task",
        description: "Give a task up. This ends its stream with an error.",
        arguments: || {
            task_arguments(&json!({ "reason": { "type": "string", "description": "Why, in a sentence." } }))
        },
        changes: true,
    },
    Entry {
        name: "submit_hiring_result",
        description: "Hand in the result of a hiring.",
        arguments: || hiring_arguments(&json!({ "output": { "description": "Any JSON value." } })),
        changes: true,
    },
    Entry {
        name: "report_hiring_failure",
        description: "Report that a hiring cannot be done.",
        arguments: || {
            hiring_arguments(&json!({
                "reason": { "type": "string", "enum": ["timeout", "capability_mismatch", "agent_unresponsive", "other"] },
                "message": { "type": "string" },
            }))
        },
        changes: true,
    },
    Entry {
        name: "add_hiring_message",
        description: "Write a message to the hirer.",
        arguments: || hiring_arguments(&json!({ "content": { "type": "string" } })),
        changes: true,
    },
];

fn task_arguments(more: &Value) -> Value {
    with_id("task_id", TASK_ID, more)
}

fn hiring_arguments(more: &Value) -> Value {
    with_id("hiring_id", "Id of the hiring.", more)
}

fn with_id(name: &str, description: &str, more: &Value) -> Value {
    let mut properties = more.as_object().cloned().unwrap_or_default();
    properties.insert(name.into(), json!({ "type": "string", "description": description }));
    json!({ "type": "object", "required": [name], "properties": properties })
}

fn tool(entry: &Entry) -> Tool {
    let schema = (entry.arguments)().as_object().cloned().unwrap_or_default();
    let annotations = rmcp::model::ToolAnnotations::new().read_only(!entry.changes);
    Tool::new(entry.name, entry.description, Arc::new(schema)).with_annotations(annotations)
}

/// A handler's outcome.
type Outcome = Result<Json, Refused>;

impl AgentTools {
    /// Without a session yet.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        Self { app, session: Mutex::default() }
    }

    /// Who calls: the caller of this very request, who must be the one whose session it is.
    fn caller(&self, context: &RequestContext<RoleServer>) -> Result<Caller, ErrorData> {
        let parts = context.extensions.get::<http::request::Parts>();
        let caller = parts.and_then(|parts| parts.extensions.get::<Caller>()).cloned();
        let caller = caller.ok_or_else(|| ErrorData::internal_error("no caller", None))?;
        let session_agent = self.session.lock().as_ref().map(|session| session.agent);
        if session_agent.is_some_and(|agent| caller.principal.agent != Some(agent)) {
            return Err(ErrorData::invalid_params("this session is another agent's", None));
        }
        Ok(caller)
    }

    async fn call(&self, name: &str, caller: &Caller, arguments: &str) -> Option<Outcome> {
        let outcome = match name {
            "task_emit_chunk" => self.emit_chunk(caller, arguments).await,
            "list_my_tasks" => self.list_tasks(caller, arguments).await,
            "get_task" => self.show_task(caller, arguments).await,
            "complete_task" => self.complete(caller, arguments).await,
            "fail_task" => self.fail(caller, arguments).await,
            "submit_hiring_result" => self.hiring_result(caller, arguments).await,
            "report_hiring_failure" => self.hiring_failure(caller, arguments).await,
            "add_hiring_message" => self.hiring_message(caller, arguments).await,
            _ => return None,
        };
        Some(outcome)
    }

    async fn emit_chunk(&self, caller: &Caller, arguments: &str) -> Outcome {
        let chunk: ChunkRequest = read_object(arguments)?;
        let task = chunk.task()?;
        let seq = emit(&self.app, caller, task, (chunk, None)).await?;
        Ok(Json::of(&json!({ "seq": seq })))
    }

    async fn list_tasks(&self, caller: &Caller, arguments: &str) -> Outcome {
        caller.principal.require(Scope::Read)?;
        let ListTasks { status, limit } = read_object(arguments)?;
        let limits = &self.app.config.limits;
        let limit = limit.unwrap_or(limits.page_items_default).clamp(1, limits.page_items_max);
        let filter = TaskFilter { status, provider: caller.principal.agent, ..TaskFilter::default() };
        let page = self.app.core.store.tasks(filter, PageRequest { limit, after: None }).await?;
        let tasks: Vec<_> = page.items.iter().map(|task| task.view()).collect();
        Ok(Json::of(&json!({ "tasks": tasks, "total": page.total })))
    }

    async fn show_task(&self, caller: &Caller, arguments: &str) -> Outcome {
        caller.principal.require(Scope::Read)?;
        let (task, _) = visible(&self.app, caller, id::<OfTask, _>(arguments)?).await?;
        Ok(Json::of(&task.view()))
    }

    async fn complete(&self, caller: &Caller, arguments: &str) -> Outcome {
        let Output { output } = read_object(arguments)?;
        self.end_task(
            caller,
            id::<OfTask, _>(arguments)?,
            Ending::completed(output.unwrap_or_else(Json::null)),
        )
        .await
    }

    async fn fail(&self, caller: &Caller, arguments: &str) -> Outcome {
        let Failure { reason } = read_object(arguments)?;
        let error = match reason {
            Some(reason) => json!({ "type": "failed", "message": reason }),
            None => json!({ "type": "failed" }),
        };
        self.end_task(caller, id::<OfTask, _>(arguments)?, Ending::failed(Json::of(&error))).await
    }

    async fn end_task(&self, caller: &Caller, task: TaskId, ending: Ending) -> Outcome {
        caller.principal.require(Scope::Write)?;
        let provider = in_role(&self.app, caller, task, Role::Provider).await?.provider;
        let by = (caller.principal.agent, Some(provider));
        let task = self.app.core.tasks.finish(task, ending, by).await?;
        Ok(Json::of(&task.view()))
    }

    async fn hiring_task(&self, arguments: &str) -> Result<TaskId, Refused> {
        let hiring: HiringId = id::<OfHiring, _>(arguments)?;
        Ok(self.app.core.store.hiring(hiring).await?.task)
    }

    async fn hiring_result(&self, caller: &Caller, arguments: &str) -> Outcome {
        let Output { output } = read_object(arguments)?;
        let task = self.hiring_task(arguments).await?;
        self.end_task(caller, task, Ending::completed(output.unwrap_or_else(Json::null))).await
    }

    async fn hiring_failure(&self, caller: &Caller, arguments: &str) -> Outcome {
        let HiringFailure { reason, message } = read_object(arguments)?;
        let document = failure(reason, message.as_deref(), &self.app.config.limits)?;
        let task = self.hiring_task(arguments).await?;
        self.end_task(caller, task, Ending::failed(document)).await
    }

    async fn hiring_message(&self, caller: &Caller, arguments: &str) -> Outcome {
        caller.principal.require(Scope::Write)?;
        let Message { content } = read_object(arguments)?;
        let task = self.hiring_task(arguments).await?;
        let (task, _) = visible(&self.app, caller, task).await?;
        let from = (caller.principal.agent, None);
        let note = self.app.core.tasks.add_note(&task, from, content).await?;
        Ok(Json::of(&note))
    }
}

fn result(outcome: Outcome) -> CallToolResult {
    let (json, failed) = match outcome {
        Ok(json) => (json, false),
        Err(Refused(refusal)) => (refusal.response(), true),
    };
    let content = vec![ContentBlock::text(json.as_str())];
    let mut result = if failed { CallToolResult::error(content) } else { CallToolResult::success(content) };
    result.structured_content = json.parse().ok();
    result
}

impl ServerHandler for AgentTools {
    fn get_info(&self) -> ServerConfig {
        let mut info = ServerConfig::new(ServerCapabilities::builder().enable_tools().build());
        info.server_info = Implementation::new("muster", env!("CARGO_PKG_VERSION"));
        info.instructions = Some(
            "Work on the tasks you were given: list_my_tasks, emit output as you go with task_emit_chunk, then \
             complete_task or fail_task."
                .into(),
        );
        info
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        let caller = self.caller(&context)?;
        let session = Session::open(&self.app, &caller).await;
        let parts = context.extensions.get::<http::request::Parts>();
        if let (Some(session), Some(opened)) =
            (&session, parts.and_then(|parts| parts.extensions.get::<Opened>()))
        {
            let _once = opened.0.set(session.clone());
        }
        *self.session.lock() = session;
        context.peer.set_peer_info(request.clone());
        self.negotiate_initialize(&request)
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = TOOLS.iter().map(tool).collect();
        Ok(ListToolsResult::with_all_items(tools)
            .with_ttl_ms(TOOLS_TTL_MS)
            .with_cache_scope(CacheScope::Public))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        TOOLS.iter().find(|entry| entry.name == name).map(tool)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let caller = self.caller(&context)?;
        let arguments = Json::of(&request.arguments.unwrap_or_default());
        let outcome = self.call(&request.name, &caller, arguments.as_str()).await;
        let unknown =
            || ErrorData::invalid_params(Cow::Owned(format!("unknown tool {}", request.name)), None);
        Ok(result(outcome.ok_or_else(unknown)?).into())
    }
}
