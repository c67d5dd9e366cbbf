//! Sending a request again because its route asks for it (GEP-1731). In flow the rule's retries and
//! what came of each try; out flows the answer that counts.
//!
//! Tried again are: a response with one of the rule's codes, whatever the method, for the route
//! names it; a request that nobody took; and, only if its method is idempotent, one whose connection
//! broke before a response or whose time for one try (`backendRequest`) was over, for a backend may
//! have acted upon it. Between two tries passes at least the rule's backoff, doubled each time, and
//! a random part of it more. A rule's time for the request (`request`) covers them all.

use std::time::Duration;

use http::Method;
use tokio::time;
use weft_api::config;

use super::{
    attempt::{Answer, Outgoing},
    exchange::Exchange,
    plan::Plan,
    reply::Failure,
    session::Session,
};

/// The longest wait, unless the rule's own is longer.
const LONGEST: Duration = Duration::from_secs(10);

/// A rule's retries.
#[derive(Debug, PartialEq)]
pub struct Retry {
    codes: Box<[u16]>,
    attempts: u32,
    backoff: Duration,
}

/// Whether a request that failed may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It would fail the same way, or nobody has asked for it.
    Never,
    /// Nobody has processed it.
    Always,
    /// A backend may have acted upon it.
    IfIdempotent,
}

impl Retry {
    /// From the table; an error says what is wrong.
    pub(super) fn compile(from: &config::Retry) -> Result<Self, String> {
        let code = |code: &u32| {
            u16::try_from(*code)
                .ok()
                .filter(|code| (400..=599).contains(code))
                .ok_or_else(|| format!("{code} is no status to retry on"))
        };
        Ok(Self {
            codes: from.codes.iter().map(code).collect::<Result<_, _>>()?,
            attempts: from.attempts,
            backoff: Duration::from_millis(from.backoff_ms),
        })
    }

    /// Why what came of a try makes for another one.
    fn reason(&self, came: &Result<Box<Answer>, Failure>, method: &Method) -> Option<&'static str> {
        match came {
            Ok(answer) => self
                .codes
                .contains(&answer.head.status.as_u16())
                .then_some("status"),
            Err(failure) => {
                let again = match failure.again {
                    Again::Never => false,
                    Again::Always => true,
                    Again::IfIdempotent => method.is_idempotent(),
                };
                again.then_some(failure.label)
            }
        }
    }

    /// The wait before the retry of this number, from 0 on. `random`: 0 to 1.
    fn wait(&self, number: u32, random: f64) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << number.min(20));
        let bounded = doubled.min(LONGEST.max(self.backoff));
        bounded + (bounded / 2).mul_f64(random)
    }
}

impl Session {
    /// Sends a request as often as its rule says, or once.
    pub(super) async fn deliver(
        &self,
        plan: &Plan<'_>,
        outgoing: Outgoing,
        exchange: &mut Exchange,
    ) -> Result<Box<Answer>, Failure> {
        let Some(retry) = plan.rule.and_then(|rule| rule.retry.as_ref()) else {
            return self.send(plan, outgoing, exchange, &[]).await;
        };
        let Outgoing {
            head,
            body,
            mut expects_continue,
        } = outgoing;
        let (mut body, replay) = body.into_replay(self.pod.limits.replay);
        let mut avoid = Vec::new();
        let mut number = 0;
        loop {
            let outgoing = Outgoing {
                head: head.clone(),
                body,
                expects_continue: std::mem::take(&mut expects_continue),
            };
            let came = self.send(plan, outgoing, exchange, &avoid).await;
            let again = retry
                .reason(&came, &head.method)
                .filter(|_| number < retry.attempts)
                .and_then(|reason| Some((reason, replay.copy()?)));
            let Some((reason, copy)) = again else {
                replay.release();
                return came;
            };
            drop(came);
            avoid.extend(exchange.retried(reason));
            time::sleep(retry.wait(number, rand::random())).await;
            body = copy;
            number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_from_the_backoff_on_and_are_bounded() {
        let wait = |backoff_ms, number, random| {
            let retry = Retry {
                codes: [].into(),
                attempts: u32::MAX,
                backoff: Duration::from_millis(backoff_ms),
            };
            u64::try_from(retry.wait(number, random).as_millis()).expect("small")
        };
        for (backoff, number, random, expected) in [
            (25, 0, 0.0, 25),
            (25, 0, 1.0, 37),
            (25, 3, 0.0, 200),
            (25, 30, 0.0, 10_000),
            (25, u32::MAX, 1.0, 15_000),
            (60_000, 0, 0.0, 60_000),
            (60_000, 9, 0.0, 60_000),
            (0, 7, 1.0, 0),
        ] {
            assert_eq!(
                wait(backoff, number, random),
                expected,
                "{backoff} {number}"
            );
        }
    }

    #[test]
    fn a_failure_makes_for_another_try_if_that_can_do_no_harm() {
        let retry = Retry {
            codes: [503].into(),
            attempts: 1,
            backoff: Duration::ZERO,
        };
        for (again, get, post) in [
            (Again::Never, false, false),
            (Again::IfIdempotent, true, false),
            (Again::Always, true, true),
        ] {
            let failure = || {
                let status = http::StatusCode::SERVICE_UNAVAILABLE;
                Err(Failure::new(status, "it", "failed").again(again))
            };
            let reason = |method| retry.reason(&failure(), &method).is_some();
            assert_eq!((reason(Method::GET), reason(Method::POST)), (get, post));
        }
    }
}
