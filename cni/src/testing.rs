//! What unit tests of several modules wait with.

use std::time::Duration;

/// Waits for a condition, with a bound that only a broken test reaches.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}
