//! What an operation would do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A plan: nothing is left to decide, nothing has been done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// What was asked, as tasks name it: `vm.create`.
    pub operation: String,
    /// The steps in order.
    pub steps: Vec<PlanStep>,
    /// What the user should know before it is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanStep {
    /// A verb: `create`, `write`, `switch`, `delete`, `start` …
    pub action: String,
    /// What it is done to: a path or a name.
    pub object: String,
    /// Details for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Plan {
    /// An empty plan for `operation`.
    #[must_use]
    pub fn new(operation: impl Into<String>) -> Self {
        Self { operation: operation.into(), steps: Vec::new(), warnings: Vec::new() }
    }

    /// Adds a step.
    pub fn step(&mut self, action: &str, object: impl ToString, detail: impl Into<String>) {
        self.steps.push(PlanStep {
            action: action.into(),
            object: object.to_string(),
            detail: detail.into(),
        });
    }
}
