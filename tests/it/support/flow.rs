//! A workflow's endpoint, played by a test: deliveries come to a receiver, and steps are submitted as the SDKs do.

use serde_json::{Value, json};

use super::{Receiver, Reply, Server, eventually};

/// An answer as the SDKs' handlers give it.
pub(crate) fn handled() -> Reply {
    Reply::ok().header("Upstash-Workflow-Sdk-Version", "1").body("{}")
}

/// An endpoint, and the runs that it takes part in.
pub(crate) struct Flow<'a> {
    server: &'a Server,
    pub(crate) receiver: Receiver,
}

impl<'a> Flow<'a> {
    pub(crate) async fn start(server: &'a Server) -> Self {
        let receiver = Receiver::start().await;
        receiver.script("/flow", [handled()]);
        Self { server, receiver }
    }

    pub(crate) fn url(&self) -> String {
        self.receiver.url("/flow")
    }

    pub(crate) fn headers(&self, run: &str, init: bool) -> Value {
        json!({
            "upstash-workflow-runid": run,
            "upstash-workflow-init": init.to_string(),
            "upstash-workflow-url": self.url(),
            "upstash-workflow-sdk-version": "1",
            "upstash-feature-set": "LazyFetch,InitialBody,WF_DetectTrigger,WF_TriggerOnConfig",
            "upstash-forward-upstash-workflow-sdk-version": "1",
            "upstash-method": "POST",
            "content-type": "application/json",
        })
    }

    /// Begins a run, with more headers.
    pub(crate) async fn trigger(&self, run: &str, more: Value, payload: &str) -> String {
        let mut headers = self.headers(run, true);
        let fields = headers.as_object_mut().unwrap();
        fields.insert("upstash-retries".to_owned(), "0".into());
        fields.extend(more.as_object().unwrap().clone());
        self.submit(json!([{"destination": self.url(), "headers": headers, "body": payload}])).await[0]
            .clone()
    }

    /// Submits steps; the ids of their messages.
    pub(crate) async fn steps(&self, run: &str, steps: impl IntoIterator<Item = Value>) -> Vec<String> {
        let item = |step: Value| json!({"destination": self.url(), "headers": self.headers(run, false), "body": step.to_string()});
        self.submit(steps.into_iter().map(item).collect()).await
    }

    pub(crate) async fn submit(&self, items: Value) -> Vec<String> {
        let call = self.server.call("POST", "/v2/batch").body(items.to_string()).send().await.json(200);
        let id = |item: &Value| item["messageId"].as_str().unwrap_or_else(|| panic!("{item}")).to_owned();
        call.as_array().expect("an array").iter().map(id).collect()
    }

    pub(crate) async fn finish(&self, run: &str, result: &str) {
        let target = format!("/v2/workflows/runs/{run}?cancel=false");
        self.server.call("DELETE", &target).body(result).send().await.json(200);
    }

    /// The log of a run as soon as it looks like this.
    pub(crate) async fn logged(&self, run: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("{run}: {what}"), async || {
            let page = self.server.get_json(&format!("/v2/workflows/logs?workflowRunId={run}")).await;
            let run = page["runs"].get(0)?.clone();
            is_so(&run).then_some(run)
        })
        .await
    }

    /// The log of a run in that state.
    pub(crate) async fn in_state(&self, run: &str, state: &str) -> Value {
        self.logged(run, state, |run| run["workflowState"] == state).await
    }

    /// The dead letter of a run that has failed.
    pub(crate) async fn letter(&self, run: &str) -> Value {
        self.in_state(run, "RUN_FAILED").await;
        let letters = self.server.list(&format!("/v2/workflows/dlq?workflowRunId={run}"), "messages").await;
        assert_eq!(letters.len(), 1, "{letters:?}");
        letters[0].clone()
    }

    /// The ids of the entries in the next delivery.
    pub(crate) async fn next_log(&self) -> (String, Vec<Value>) {
        let delivery = self.receiver.next_on("/flow").await;
        let entries = delivery.json().as_array().expect("an array").clone();
        let own = delivery.message_id().to_owned();
        assert_eq!(entries.last().expect("an entry")["messageId"], own, "a delivery ends with its own entry");
        (delivery.header("upstash-workflow-runid").expect("a run").to_owned(), entries)
    }
}

pub(crate) fn ran(id: u64, out: &str) -> Value {
    json!({"stepId": id, "stepName": format!("s{id}"), "stepType": "Run", "out": out, "concurrent": 1})
}

/// Types of the groups and states of the steps of a run, in words.
pub(crate) fn words(run: &Value) -> Vec<String> {
    let groups = run["steps"].as_array().expect("groups").iter();
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let words = groups.map(|group| {
        let steps = group["steps"].as_array().expect("steps").iter();
        let steps = steps.map(|step| format!("{} {}", text(&step["stepName"]), text(&step["state"])));
        format!("{}: {}", text(&group["type"]), steps.collect::<Vec<_>>().join(", "))
    });
    words.collect()
}

/// A failing endpoint with a failure function elsewhere.
pub(crate) fn failing(flow: &Flow<'_>, labels: &str) -> Value {
    json!({
        "upstash-label": labels,
        "upstash-failure-callback": flow.receiver.url("/failure"),
        "upstash-failure-callback-retries": "0",
        "upstash-failure-callback-forward-upstash-workflow-is-failure": "true",
    })
}
