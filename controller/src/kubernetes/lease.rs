//! Leader election by a Lease.
//!
//! As Kubernetes' own components do it: who holds the Lease renews it; who does not takes it once it
//! has not been renewed for as long as it lasts, by the watcher's own clock, so that clocks need not
//! agree. Every change names the version that it builds upon: of two who take it at the same time one
//! is refused. (kube-leader-election was tried: it does neither.)

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, Error, api::PostParams};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Place;
use crate::leadership::Announcer;

/// How long a Lease lasts that is not renewed: how long status stands still after a crash.
pub const DURATION: Duration = Duration::from_secs(15);

/// How often it is renewed, or looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// This replica as a candidate.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    replica: String,
    /// The version of another's Lease, and since when it has been that.
    observed: Option<(String, Instant)>,
}

impl Candidate {
    /// Stands for the Lease at `place`, under the name `replica`, which no other candidate has.
    pub fn new(client: Client, place: &Place, replica: &str) -> Self {
        Self {
            api: Api::namespaced(client, &place.namespace),
            name: place.name.clone(),
            replica: replica.to_owned(),
            observed: None,
        }
    }

    /// Takes part until `shutdown`; then gives the Lease back, so that another need not wait.
    pub async fn run(mut self, announcer: Announcer, shutdown: CancellationToken) {
        let mut leads = false;
        loop {
            let asked = Instant::now();
            match timeout(PATIENCE, self.attempt()).await {
                Ok(Ok(true)) => {
                    // Others count from when they saw the renewal, which is later than this.
                    announcer.leads(asked + DURATION);
                    if !leads {
                        tracing::info!(lease = self.name, "this replica leads: it writes status");
                    }
                    leads = true;
                }
                Ok(Ok(false)) => {
                    announcer.follows();
                    if leads {
                        tracing::info!(lease = self.name, "another replica leads");
                    }
                    leads = false;
                }
                // What is held is held until it ends.
                Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "leader election"),
                Err(_) => tracing::warn!(lease = self.name, "leader election: no answer"),
            }
            tokio::select! {
                () = sleep(PERIOD) => {}
                () = shutdown.cancelled() => break,
            }
        }
        announcer.follows();
        if leads && let Ok(Err(error)) = timeout(PATIENCE, self.give_back()).await {
            tracing::info!(lease = self.name, %error, "the lease was not given back; it ends by itself");
        }
    }

    /// Renews or takes the Lease if it is ours to have. Returns whether this replica leads.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.name.clone());
            lease.spec = Some(self.taken(None));
            let created = self.api.create(&PostParams::default(), &lease).await;
            return refused_if_conflict(created);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let new = if holder == self.replica {
            LeaseSpec {
                renew_time: Some(now()),
                ..spec
            }
        } else if holder.is_empty() || self.has_expired(&lease, &spec) {
            self.taken(Some(&spec))
        } else {
            return Ok(false);
        };
        lease.spec = Some(new);
        self.replace(&lease).await
    }

    /// Whether another's Lease has not been renewed for as long as it lasts.
    fn has_expired(&mut self, lease: &Lease, spec: &LeaseSpec) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let lasts = spec
            .lease_duration_seconds
            .and_then(|s| u64::try_from(s).ok());
        let lasts = lasts.map_or(DURATION, Duration::from_secs);
        match &self.observed {
            Some((observed, since)) if *observed == version => since.elapsed() > lasts,
            _ => {
                self.observed = Some((version, Instant::now()));
                false
            }
        }
    }

    fn taken(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let transitions = before.map(|spec| spec.lease_transitions.unwrap_or_default() + 1);
        LeaseSpec {
            acquire_time: Some(now()),
            renew_time: Some(now()),
            holder_identity: Some(self.replica.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            lease_transitions: Some(transitions.unwrap_or_default()),
            ..LeaseSpec::default()
        }
    }

    async fn give_back(&self) -> kube::Result<()> {
        let mut lease = self.api.get(&self.name).await?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_ref() == Some(&self.replica) {
            spec.holder_identity = None;
            self.replace(&lease).await?;
        }
        Ok(())
    }

    /// Under the condition that nobody has changed it since it was read.
    async fn replace(&self, lease: &Lease) -> kube::Result<bool> {
        let params = PostParams::default();
        refused_if_conflict(self.api.replace(&self.name, &params, lease).await)
    }
}

fn refused_if_conflict(result: kube::Result<Lease>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
