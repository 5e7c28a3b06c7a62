//! The little that the server reads of a submission: which step it is.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// A step as its endpoint submits it.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// As it was sent, without blanks around it.
    text: String,
    fields: Map<String, Value>,
}

impl Step {
    /// Reads a step; the error says what is missing.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(body).map_err(|_| "the step is not UTF-8".to_owned())?.trim();
        let value = serde_json::from_str(text).map_err(|error| format!("the step is not JSON: {error}"))?;
        let Value::Object(fields) = value else {
            return Err("the step is not a JSON object".to_owned());
        };
        let step = Self { text: text.to_owned(), fields };
        if step.number("stepId").is_none() {
            return Err("the step has no stepId, a number from 0 on".to_owned());
        }
        Ok(step)
    }

    /// A field that is a whole number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.fields.get(name).and_then(Value::as_u64)
    }

    /// A field that has a value.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// The number of the step that a plan is for; `None`: it is no plan.
    pub fn target(&self) -> Option<u64> {
        self.number("targetStep").filter(|target| *target > 0 && self.id() == 0)
    }

    /// The step's number in program order, from 1 on; 0 is a plan.
    pub fn id(&self) -> u64 {
        self.number("stepId").unwrap_or_default()
    }

    /// Text of a field.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(Value::as_str)
    }

    /// By this a repeated submission of the step is recognised: its number, and the number of the step that a plan is for.
    pub fn key(&self) -> String {
        format!("step:{}:{}", self.id(), self.number("targetStep").unwrap_or_default())
    }

    /// The step as it was sent.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The step as JSON text with fields added behind those that were sent.
    pub fn with(&self, fields: &[(&str, Value)]) -> String {
        let mut text = self.text.strip_suffix('}').unwrap_or(&self.text).to_owned();
        for (name, value) in fields {
            write!(text, ",\"{name}\":{value}").expect("a text takes any text");
        }
        text.push('}');
        text
    }
}

/// By this a repeated call is recognised.
pub fn call_key(step_id: &str) -> String {
    format!("call:{step_id}")
}

/// By this a third party's answer is recognised that comes twice.
pub fn call_result_key(step_id: &str) -> String {
    format!("result:{step_id}")
}

/// By this a repeated wait is recognised, and its end.
pub fn wait_key(step_id: u64) -> String {
    format!("wait:{step_id}")
}

/// By this a repeated invocation is recognised, and its end.
pub fn invoke_key(step_id: u64) -> String {
    format!("invoke:{step_id}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_are_read_leniently() {
        let step = |json: Value| Step::parse(json.to_string().as_bytes()).map(|step| step.key());
        assert_eq!(step(json!({"stepId": 3, "stepName": "a", "out": null})), Ok("step:3:0".to_owned()));
        assert_eq!(step(json!({"stepId": 3, "targetStep": null})), Ok("step:3:0".to_owned()));
        assert_eq!(step(json!({"stepId": 0, "targetStep": 2, "unknown": []})), Ok("step:0:2".to_owned()));
        for bad in [json!([]), json!({}), json!({"stepId": "1"}), json!({"stepId": -1})] {
            assert!(step(bad.clone()).is_err(), "{bad}");
        }
        assert!(Step::parse(b"\xff").is_err());
    }

    #[test]
    fn fields_are_added_behind_those_that_were_sent() {
        let step = Step::parse(br#" {"stepId":5,"stepType":"Wait","b":1,"a":2} "#).unwrap();
        assert_eq!(
            step.with(&[("out", json!("x\"")), ("waitTimeout", json!(true))]),
            r#"{"stepId":5,"stepType":"Wait","b":1,"a":2,"out":"x\"","waitTimeout":true}"#
        );
    }
}
