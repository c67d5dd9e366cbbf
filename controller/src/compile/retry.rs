//! `rules[].retry` of HTTPRoutes (GEP-1731).
//!
//! Flows in: the field, undecoded. Flows out: what the proxy does, with the standard's defaults in
//! place; none if the route asks for no retries.

use serde::Deserialize;
use serde_json::Value;
use weft_api::config::Retry;

use super::{durations, objects::read};

/// Retries if the route does not say how many.
const ATTEMPTS: u32 = 1;
/// Before the first retry, if the route does not say: longer than most hiccups of a node, shorter than
/// anybody notices.
const BACKOFF_MS: u64 = 25;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    codes: Vec<u32>,
    attempts: Option<u32>,
    backoff: Option<String>,
}

/// Reads the field; an error says what is wrong with which part of it.
pub(super) fn read_retry(value: &Value) -> Result<Option<Retry>, String> {
    if value.is_null() {
        return Ok(None);
    }
    let raw: Raw = read(value)?;
    if let Some(code) = raw.codes.iter().find(|code| !(400..=599).contains(*code)) {
        return Err(format!(
            "codes: {code} is no status of an error; take 400 to 599"
        ));
    }
    let backoff = raw.backoff.as_deref().map(durations::milliseconds);
    let backoff_ms = backoff
        .transpose()
        .map_err(|error| format!("backoff: {error}"))?;
    let attempts = raw.attempts.unwrap_or(ATTEMPTS);
    let mut codes = raw.codes;
    codes.sort_unstable();
    codes.dedup();
    Ok((attempts > 0).then_some(Retry {
        codes,
        attempts,
        backoff_ms: backoff_ms.unwrap_or(BACKOFF_MS),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_said_is_the_standards_default() {
        let some = |codes: &[u32], attempts, backoff_ms| {
            Some(Retry {
                codes: codes.into(),
                attempts,
                backoff_ms,
            })
        };
        let cases = [
            (json!(null), None),
            (json!({}), some(&[], 1, 25)),
            (json!({"attempts": 0, "codes": [500]}), None),
            (json!({"codes": [504, 500, 504]}), some(&[500, 504], 1, 25)),
            (json!({"attempts": 3, "backoff": "1s"}), some(&[], 3, 1000)),
            (json!({"backoff": "0s"}), some(&[], 1, 0)),
            (json!({"attempts": null, "backoff": null}), some(&[], 1, 25)),
        ];
        for (value, expected) in cases {
            assert_eq!(read_retry(&value), Ok(expected), "{value}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        for (value, word) in [
            (json!({"codes": [200]}), "codes: 200"),
            (json!({"codes": [600]}), "codes: 600"),
            (json!({"codes": "500"}), "expected a sequence"),
            (json!({"attempts": -1}), "-1"),
            (json!({"backoff": "soon"}), "backoff: `soon`"),
            (json!({"jitter": "1s"}), "jitter"),
            (json!([]), "retry"),
        ] {
            let error = read_retry(&value).expect_err("it can't be done");
            assert!(error.contains(word) || word == "retry", "{value}: {error}");
        }
    }
}
