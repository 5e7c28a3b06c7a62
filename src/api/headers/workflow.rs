//! The headers that say what a message is to a workflow run.

use super::HeaderError;
use super::config::read_with;
use super::fields::{Family, Field};
use crate::domain::excerpt::Excerpt;
use crate::domain::run::Features;
use crate::domain::run::submission::{Action, Submission};

/// Whether a field makes its message one of a workflow run.
pub(in crate::api) fn is_of_workflow(name: &str) -> bool {
    name.eq_ignore_ascii_case("upstash-workflow-runid")
}

/// What the fields say of a run; `None`: the message belongs to none.
pub(super) fn read(family: &Family<'_>, fields: &[Field<'_>]) -> Result<Option<Submission>, HeaderError> {
    let Some(run_id) = family.get("workflow-runid") else { return Ok(None) };
    let is_true = |name| family.get(name).is_some_and(|field| field.value.eq_ignore_ascii_case("true"));
    let action = if is_true("workflow-trigger-by-sdk") {
        Action::BeginBySdk
    } else if is_true("workflow-invoke") {
        Action::Invoke
    } else if is_true("workflow-init") {
        Action::Begin
    } else {
        read_with(family, "workflow-calltype", read_call_type)?.unwrap_or(Action::Step)
    };
    let mut features = Features::parse(family.get("feature-set").map_or("", |field| &*field.value));
    // Python's says that it can, and can't.
    features.lazy_fetch &= fields.iter().any(|field| {
        field.name == "upstash-telemetry-sdk"
            && field.value.to_ascii_lowercase().contains("@upstash/workflow")
    });
    let created_at = family.get("workflow-createdat").and_then(|field| field.value.parse().ok());
    Ok(Some(Submission {
        run_id: run_id.value.to_string(),
        url: family.get("workflow-url").map(|field| field.value.to_string()),
        action,
        features,
        created_at: created_at.filter(|ms| *ms > 0),
    }))
}

fn read_call_type(text: &str) -> Result<Action, String> {
    match text.to_ascii_lowercase().as_str() {
        "step" => Ok(Action::Step),
        "tocallback" => Ok(Action::Call),
        _ => Err(format!("{:?} is unknown; allowed are step and toCallback", Excerpt(text))),
    }
}
