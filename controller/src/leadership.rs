//! Whether this replica is the one that writes status, and until when that is certain.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// A replica's view of its own leadership. It ends by itself: nobody need tell a replica that is cut
/// off from the API that another has taken over.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Term>);

/// Tells [`Leadership`] what it is.
#[derive(Debug)]
pub struct Announcer(watch::Sender<Term>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Term {
    Follower,
    Until(Instant),
    Always,
}

impl Leadership {
    /// That of a replica which is the only one.
    pub fn always() -> Self {
        Self(watch::Sender::new(Term::Always).subscribe())
    }

    /// That of a replica which does not lead yet, and who announces that it does.
    pub fn follower() -> (Announcer, Self) {
        let sender = watch::Sender::new(Term::Follower);
        let receiver = sender.subscribe();
        (Announcer(sender), Self(receiver))
    }

    /// Whether this replica certainly leads for so long from now.
    pub fn holds_for(&self, time: Duration) -> bool {
        match *self.0.borrow() {
            Term::Follower => false,
            Term::Until(end) => Instant::now() + time < end,
            Term::Always => true,
        }
    }

    /// Waits until this replica leads.
    pub async fn acquired(&mut self) {
        while !self.holds_for(Duration::ZERO) {
            self.changed().await;
        }
    }

    /// Waits until this replica does not lead any more.
    pub async fn lost(&mut self) {
        loop {
            let term = *self.0.borrow_and_update();
            match term {
                Term::Follower => return,
                Term::Until(end) if end <= Instant::now() => return,
                Term::Until(end) => tokio::select! {
                    () = sleep_until(end) => {}
                    () = self.changed() => {}
                },
                Term::Always => self.changed().await,
            }
        }
    }

    async fn changed(&mut self) {
        // Who announces nothing any more leaves things as they are.
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Announcer {
    /// This replica leads, until then at the least.
    pub fn leads(&self, until: Instant) {
        self.0.send_replace(Term::Until(until));
    }

    /// Another replica leads, or none.
    pub fn follows(&self) {
        self.0.send_replace(Term::Follower);
    }
}
