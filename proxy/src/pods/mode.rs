//! Whether a pod demands mutual TLS, as it changes. In flows the mode of the moment; out flows when
//! plaintext that is open has had its time.
//!
//! Who switches strict on wants an end to plaintext; who has a connection open should not lose it
//! for a client that is only slow to join. So what is open may go on for the drain time, and is
//! reset then; what is new is refused at once.

use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(super) struct Mode(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    strict: bool,
    /// Cancelled once plaintext that is open has to end.
    end: CancellationToken,
    /// Cancelled if the pod is permissive again before.
    relented: CancellationToken,
}

impl Mode {
    pub(super) fn new(strict: bool) -> Self {
        Self(Mutex::new(Inner {
            strict,
            end: CancellationToken::new(),
            relented: CancellationToken::new(),
        }))
    }

    /// Cancelled when a plaintext connection has to end. To be asked for before it is decided
    /// whether the connection is let in.
    pub(super) fn end_of_plaintext(&self) -> CancellationToken {
        self.0.lock().end.clone()
    }

    /// The pod's mode is this now; what is open may go on for `time` if it no longer may be.
    pub(super) fn set(&self, strict: bool, time: Duration) {
        let mut mode = self.0.lock();
        if std::mem::replace(&mut mode.strict, strict) == strict {
            return;
        }
        if strict {
            let (end, relented) = (mode.end.clone(), mode.relented.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(time) => end.cancel(),
                    () = relented.cancelled() => {}
                }
            });
        } else {
            std::mem::take(&mut mode.relented).cancel();
            if mode.end.is_cancelled() {
                mode.end = CancellationToken::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn plaintext_that_is_open_ends_at_the_end_of_the_time_unless_the_pod_relents() {
        let mode = Mode::new(false);
        let open = mode.end_of_plaintext();
        mode.set(true, TIME);
        // As often as the configuration changes.
        mode.set(true, TIME);
        tokio::time::sleep(TIME / 2).await;
        mode.set(false, TIME);
        tokio::time::sleep(2 * TIME).await;
        assert!(!open.is_cancelled());

        mode.set(true, TIME);
        tokio::time::sleep(TIME - Duration::from_millis(1)).await;
        assert!(!open.is_cancelled());
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(open.is_cancelled());

        mode.set(false, TIME);
        assert!(!mode.end_of_plaintext().is_cancelled());
    }
}
