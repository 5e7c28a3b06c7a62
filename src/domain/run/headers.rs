//! Headers of deliveries in a run, beside those that every delivery has.

use super::super::message::{Headers, Message};
use super::{Kind, Run};

/// Whether a header that a submission forwards is left out. Some SDKs send back every header that they received, those of
/// the connection and the server's own among them.
pub fn is_dropped(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    if name == "upstash-label" || name.starts_with("upstash-workflow-") {
        return false;
    }
    name.starts_with("upstash-")
        || matches!(
            name.as_str(),
            "host"
                | "content-length"
                | "content-type"
                | "connection"
                | "keep-alive"
                | "transfer-encoding"
                | "te"
                | "upgrade"
                | "expect"
                | "accept-encoding"
        )
}

/// The forwarded headers that are kept for one message.
pub fn forwarded(headers: &Headers) -> Headers {
    Headers(headers.0.iter().filter(|(name, _)| !is_dropped(name)).cloned().collect())
}

/// The trigger's forwarded headers that every delivery has: users' own.
pub fn persisted(headers: &Headers) -> Headers {
    let is_own = |name: &str| !is_dropped(name) && !name.to_ascii_lowercase().starts_with("upstash-");
    Headers(headers.0.iter().filter(|(name, _)| is_own(name)).cloned().collect())
}

/// The headers of a message to a run's endpoint: what its trigger has named, over these its own, and over all of them what
/// the server says.
pub fn of_delivery(run: &Run, message: &Message) -> Headers {
    let kind = message.run.as_ref().map(|part| part.kind);
    let mut headers = Headers::new();
    if kind != Some(Kind::FailureCallback) {
        headers.0.extend(run.trigger.headers.0.iter().cloned());
    }
    for (name, _) in message.headers.iter() {
        headers.remove(name);
    }
    headers.0.extend(message.headers.0.iter().cloned());
    let mut set = |name: &str, value: String| {
        headers.remove(name);
        headers.append(name, value);
    };
    set("Content-Type", "application/json".to_owned());
    set("Upstash-Workflow-RunId", run.id.clone());
    set("Upstash-Workflow-CreatedAt", run.created_at.as_millis().to_string());
    set("Upstash-Workflow-Url", run.url.clone());
    if !run.labels.is_empty() {
        set("Upstash-Label", run.labels.join(","));
    }
    // The configuration in effect, for SDKs that show it to the function.
    set("Upstash-Max-Retries", message.max_retries.to_string());
    if let Some(delay) = &message.options.retry_delay {
        set("Upstash-Retry-Delay", delay.clone());
    }
    if let Some(flow) = &message.options.flow_control {
        set("Upstash-Flow-Control-Key", flow.key.clone());
        set("Upstash-Flow-Control-Value", flow.to_string());
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sdks_send_back_is_dropped() {
        for dropped in
            ["Host", "content-length", "Upstash-Signature", "upstash-message-id", "Accept-Encoding"]
        {
            assert!(is_dropped(dropped), "{dropped}");
        }
        for kept in ["X-Tenant", "Authorization", "Upstash-Label", "Upstash-Workflow-Invoke-Count"] {
            assert!(!is_dropped(kept), "{kept}");
        }
        let mut headers = Headers::new();
        for name in ["X-Tenant", "Upstash-Label", "Upstash-Workflow-Sdk-Version", "Content-Length"] {
            headers.append(name, "1");
        }
        let names = |headers: &Headers| headers.0.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&persisted(&headers)), ["X-Tenant"]);
        assert_eq!(names(&forwarded(&headers)).len(), 3);
    }
}
