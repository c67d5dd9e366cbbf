//! What a request asks of the server: query parameters in, a [`Behaviour`] out.
//!
//! Each is a query parameter (`?delay=200ms&status=503`) or a header (`x-echo-delay: 200ms`); the
//! query wins. A switch is on if it is empty, `1` or `true`.
//!
//! | Name | Meaning |
//! |---|---|
//! | `delay=200ms` | wait before the answer (`us`, `ms`, `s`, `m`) |
//! | `status=503` | answer with this status |
//! | `fail=0.3` | answer this share of requests with status 500 |
//! | `close=1` | end the TCP connection without an answer |
//! | `reset=1` | the same with a TCP reset; `reset=stream` resets only the HTTP/2 stream |
//! | `bytes=N` | answer with N bytes (byte i is `i % 251`) |
//! | `stream=N`, `interval=100ms` | answer with N pieces, so far apart, of unknown length |
//! | `cut=N` | break the body off after N bytes |
//! | `echo=1` | stream the request's body (and trailers) back as the answer |
//! | `digest=1` | SHA-256 of the request's body in the answer |
//! | `trailers=1` | trailer `x-echo-trailer: done` after the answer |
//! | `set-header=name:value` | add a header to the answer; may be repeated |

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Headers that ask for a behaviour start with this.
pub const HEADER_PREFIX: &str = "x-echo-";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Behaviour {
    /// Wait this long first.
    pub delay: Duration,
    /// Status of the answer.
    pub status: Option<StatusCode>,
    /// Share of requests that fail.
    pub fail: f64,
    /// How to end instead of answering.
    pub end: Option<End>,
    /// Answer with so many bytes.
    pub bytes: Option<u64>,
    /// Answer with so many pieces.
    pub stream: Option<u64>,
    /// Time between pieces.
    pub interval: Duration,
    /// Break the body off after so many bytes.
    pub cut: Option<u64>,
    /// Stream the body back.
    pub echo: bool,
    /// Digest of the body.
    pub digest: bool,
    /// Trailers after the body.
    pub trailers: bool,
    /// Headers to add.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// How to end a request without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Close the connection.
    Close,
    /// Reset the connection.
    Reset,
    /// Reset the HTTP/2 stream.
    ResetStream,
}

/// A behaviour was asked for in a way that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("weft-echo: {name}={value:?} is not understood: expected {expected}")]
pub struct BehaviourError {
    /// The parameter.
    pub name: String,
    /// Its value.
    pub value: String,
    /// What would have been.
    pub expected: &'static str,
}

impl Behaviour {
    /// Reads headers, then the query. Parameters of other names are left alone.
    pub fn parse(query: Option<&str>, headers: &HeaderMap) -> Result<Self, BehaviourError> {
        let mut behaviour = Self::default();
        for (name, value) in headers {
            if let Some(name) = name.as_str().strip_prefix(HEADER_PREFIX) {
                behaviour.set(name, &String::from_utf8_lossy(value.as_bytes()))?;
            }
        }
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            behaviour.set(&percent_decode(name), &percent_decode(value))?;
        }
        Ok(behaviour)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), BehaviourError> {
        let wrong = |expected| BehaviourError {
            name: name.into(),
            value: value.into(),
            expected,
        };
        let number = || value.parse().map_err(|_| wrong("a whole number"));
        let time = || parse_duration(value).ok_or_else(|| wrong("a time such as 200ms or 1.5s"));
        let switch = || switch(value).ok_or_else(|| wrong("1 or 0"));
        match name {
            "delay" => self.delay = time()?,
            "interval" => self.interval = time()?,
            "status" => {
                let status = value
                    .parse()
                    .ok()
                    .filter(|status| (200..=599).contains(status));
                let status = status.and_then(|status| StatusCode::from_u16(status).ok());
                self.status = Some(status.ok_or_else(|| wrong("a status from 200 to 599"))?);
            }
            "fail" => {
                let rate = value.parse().ok().filter(|rate| (0.0..=1.0).contains(rate));
                self.fail = rate.ok_or_else(|| wrong("a rate from 0 to 1"))?;
            }
            "close" => self.end = switch()?.then_some(End::Close),
            "reset" if value == "stream" => self.end = Some(End::ResetStream),
            "reset" => self.end = switch()?.then_some(End::Reset),
            "bytes" => self.bytes = Some(number()?),
            "stream" => self.stream = Some(number()?),
            "cut" => self.cut = Some(number()?),
            "echo" => self.echo = switch()?,
            "digest" => self.digest = switch()?,
            "trailers" => self.trailers = switch()?,
            "set-header" => {
                let header = value.split_once(':').and_then(|(name, value)| {
                    Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
                });
                self.headers
                    .push(header.ok_or_else(|| wrong("name:value"))?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// A time with its unit: `250us`, `20ms`, `1.5s`, `2m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let factor = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * factor).ok()
}

/// One parameter of a query, decoded.
pub(crate) fn query_parameter(query: &str, wanted: &str) -> Option<String> {
    let mut pairs = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs
        .find(|(name, _)| *name == wanted)
        .map(|(_, value)| percent_decode(value))
}

/// Whether a switch's value means on.
pub(crate) fn switch(value: &str) -> Option<bool> {
    match value {
        "" | "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        rest = if code.is_some() { &tail[2..] } else { tail };
        out.push(code.unwrap_or(if first == b'+' { b' ' } else { first }));
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn from_query(query: &str) -> Result<Behaviour, BehaviourError> {
        Behaviour::parse(Some(query), &HeaderMap::new())
    }

    #[test]
    fn every_parameter_is_read_from_the_query() {
        let found = from_query(
            "delay=200ms&status=503&fail=0.25&reset&bytes=10&stream=3&interval=1.5s&cut=4\
             &echo=1&digest=true&trailers&set-header=x-a%3Ab&set-header=x-c:+d&other=1",
        )
        .unwrap();
        assert_eq!(
            found,
            Behaviour {
                delay: Duration::from_millis(200),
                status: Some(StatusCode::SERVICE_UNAVAILABLE),
                fail: 0.25,
                end: Some(End::Reset),
                bytes: Some(10),
                stream: Some(3),
                interval: Duration::from_millis(1500),
                cut: Some(4),
                echo: true,
                digest: true,
                trailers: true,
                headers: vec![
                    (
                        HeaderName::from_static("x-a"),
                        HeaderValue::from_static("b")
                    ),
                    (
                        HeaderName::from_static("x-c"),
                        HeaderValue::from_static("d")
                    ),
                ],
            }
        );
    }

    #[test]
    fn the_query_wins_over_headers() {
        let mut headers = HeaderMap::new();
        headers.insert("x-echo-status", HeaderValue::from_static("404"));
        headers.insert("x-echo-delay", HeaderValue::from_static("1s"));
        let found = Behaviour::parse(Some("status=200"), &headers).unwrap();
        assert_eq!(found.status, Some(StatusCode::OK));
        assert_eq!(found.delay, Duration::from_secs(1));
    }

    #[test]
    fn nonsense_is_refused_with_the_name_of_the_parameter() {
        for query in [
            "delay=200",
            "delay=-1s",
            "delay=1h",
            "status=99",
            "status=101",
            "fail=1.5",
            "fail=x",
            "close=maybe",
            "bytes=-1",
            "bytes=",
            "stream=a",
            "set-header=x",
            "set-header=%00:x",
        ] {
            let error = from_query(query).unwrap_err();
            assert!(query.starts_with(&error.name), "{query}: {error}");
        }
    }

    #[test]
    fn broken_percent_signs_stay_as_they_are() {
        assert_eq!(percent_decode("a%2Fb%zz%2"), "a/b%zz%2");
        assert_eq!(percent_decode("%"), "%");
        assert_eq!(query_parameter("a=1&b=%20x", "b").as_deref(), Some(" x"));
    }
}
