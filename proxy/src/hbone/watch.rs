//! Watches over a tunnel. In flow what the peer sends and when the tunnel is used; out flow pings,
//! and the word that the tunnel is to end: because nobody uses it, or because its peer is gone.
//!
//! A peer that vanishes says nothing, so it is asked: every `ping-interval` while there are streams,
//! and at once when the tunnel is used after [`QUIET`] without a word from the peer, so that a
//! request does not wait for the next round in a tunnel that leads nowhere. Idle tunnels are left
//! to TCP's keepalives.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::Usage;
use crate::settings::Settings;

/// Silence after which a tunnel's next use asks for a sign of life. Below the time that a request
/// may hang without anybody noticing, and well above what a busy tunnel is ever silent.
const QUIET: Duration = Duration::from_secs(2);

/// Why a tunnel is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing came through it for long.
    Idle,
    /// The peer no longer answers.
    Dead,
}

/// Signs of life, and the wish for one.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// Grows with what is heard of the peer.
    heard: AtomicU64,
    /// The next use is to be told.
    armed: AtomicBool,
    used: Notify,
}

impl Signs {
    /// The peer sent something.
    pub(super) fn heard(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// Something is sent to the peer.
    pub(super) fn used(&self) {
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Relaxed) {
            self.used.notify_one();
        }
    }

    fn count(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Whether the tunnel is used within `limit`.
    async fn used_within(&self, limit: Duration) -> bool {
        self.armed.store(true, Ordering::Relaxed);
        let used = timeout(limit, self.used.notified()).await.is_ok();
        self.armed.store(false, Ordering::Relaxed);
        used
    }
}

/// Returns when the tunnel is to end.
pub(super) async fn watch(mut pings: PingPong, usage: &Usage, settings: &Settings) -> End {
    let every = settings.ping_interval.min(settings.idle);
    let quiet = QUIET.min(every / 2);
    loop {
        let heard = usage.signs.count();
        sleep(quiet).await;
        let used = usage.signs.used_within(every - quiet).await;
        if usage.close_if_idle(settings.idle) {
            return End::Idle;
        }
        let silent = usage.signs.count() == heard;
        if if used {
            !silent
        } else {
            usage.open_streams() == 0
        } {
            continue;
        }
        if !answers(&mut pings, &usage.signs, settings.ping_timeout).await {
            usage.close();
            return End::Dead;
        }
    }
}

/// Whether the peer gives a sign of life within `limit`. Any will do: on a full tunnel the pong
/// waits behind what was sent before.
async fn answers(pings: &mut PingPong, signs: &Signs, limit: Duration) -> bool {
    if pings.send_ping(Ping::opaque()).is_err() {
        return false;
    }
    loop {
        let heard = signs.count();
        match timeout(limit, poll_fn(|cx| pings.poll_pong(cx))).await {
            Ok(pong) => return pong.is_ok(),
            Err(_) if signs.count() != heard => {}
            Err(_) => return false,
        }
    }
}
