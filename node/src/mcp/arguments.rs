//! What each tool is given. A chunk's arguments are those of REST and channels.

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::hiring::FailureReason;
use muster_protocol::json::{Json, read_object};
use muster_protocol::task::TaskStatus;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Of `list_my_tasks`.
#[derive(Deserialize)]
pub struct ListTasks {
    /// Those in this state only.
    #[serde(default)]
    pub status: Option<TaskStatus>,
    /// Tasks at most; brought within bounds.
    #[serde(default)]
    pub limit: Option<usize>,
}

/// Of `complete_task` and `submit_hiring_result`.
#[derive(Deserialize)]
pub struct Output {
    /// The result.
    #[serde(default)]
    pub output: Option<Json>,
}

/// Of `fail_task`.
#[derive(Deserialize)]
pub struct Failure {
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Of `report_hiring_failure`.
#[derive(Deserialize)]
pub struct HiringFailure {
    /// Why.
    pub reason: FailureReason,
    /// For people.
    #[serde(default)]
    pub message: Option<String>,
}

/// Of `add_hiring_message`.
#[derive(Deserialize)]
pub struct Message {
    /// Text.
    pub content: String,
}

/// Which field names the id.
pub trait IdField: DeserializeOwned {
    /// The id as it came.
    fn text(self) -> String;
}

/// A task's id.
#[derive(Deserialize)]
pub struct OfTask {
    task_id: String,
}

/// A hiring's id.
#[derive(Deserialize)]
pub struct OfHiring {
    hiring_id: String,
}

impl IdField for OfTask {
    fn text(self) -> String {
        self.task_id
    }
}

impl IdField for OfHiring {
    fn text(self) -> String {
        self.hiring_id
    }
}

/// An id among the arguments.
///
/// # Errors
/// The field is missing or no string; one that is no id names nothing, which is `not_found`.
pub fn id<F: IdField, T: std::str::FromStr>(arguments: &str) -> Result<T, Refusal> {
    let text = read_object::<F>(arguments)?.text();
    text.parse().map_err(|_| Refusal::new(ErrorCode::NotFound))
}
