//! The snapshot: the configuration in force flows into a file, and out of it when a proxy starts
//! while the controller is away. A memory-backed volume holds it; nobody but the proxy reads it.
//!
//! The file: [`MAGIC`], a checksum of what follows, then one length-delimited delta response
//! per type. It is replaced by rename, so it is whole or not there; the checksum finds what else
//! may have happened to it.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use prost::Message;
use prost_types::Any;
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use weft_api::discovery::{DeltaDiscoveryResponse, Resource as XdsResource};

use crate::{
    files,
    state::{Delta, Kind, Resource, State},
};

const MAGIC: &[u8] = b"weft-snapshot-1\n";
/// Changes are gathered for this long: saving costs in proportion to the whole configuration,
/// and what is lost by a crash meanwhile is sent again by the controller.
const SETTLE: Duration = Duration::from_secs(2);

/// Where the snapshot is.
#[derive(Clone, Debug)]
pub struct Snapshot {
    directory: PathBuf,
}

/// Why a snapshot was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is none, or it cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not what was written.
    #[error("it is damaged ({0})")]
    Damaged(&'static str),
}

impl Snapshot {
    /// In this directory, which is made (for this user alone) if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(directory: impl Into<PathBuf>) -> io::Result<Self> {
        let directory = directory.into();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        files::clear(&directory);
        Ok(Self { directory })
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.directory.join("config.snapshot")
    }

    /// Applies the snapshot. False: there is none to use, which is no reason not to start.
    pub fn load(&self, state: &State) -> bool {
        let path = self.path();
        match read(&path) {
            Ok(deltas) => {
                let mut count = 0;
                for delta in deltas {
                    count += delta.updated.len();
                    for refused in state.apply(delta) {
                        tracing::warn!("in the snapshot {}: {refused}", path.display());
                    }
                }
                tracing::info!("{count} resources from the snapshot {}", path.display());
                true
            }
            Err(SnapshotError::Io(e)) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => {
                tracing::warn!("the snapshot {} is ignored: {e}", path.display());
                false
            }
        }
    }

    /// Writes what is in force now.
    ///
    /// # Errors
    /// The file cannot be written; the last snapshot is untouched.
    pub fn save(&self, state: &State) -> io::Result<()> {
        let mut body = Vec::new();
        for kind in Kind::ALL {
            let response = DeltaDiscoveryResponse {
                type_url: kind.type_url().to_owned(),
                resources: state
                    .resources(kind)
                    .into_iter()
                    .map(to_xds(kind))
                    .collect(),
                ..DeltaDiscoveryResponse::default()
            };
            response
                .encode_length_delimited(&mut body)
                .map_err(io::Error::other)?;
        }
        let sum = checksum(&body).to_be_bytes();
        files::replace(&self.path(), &[MAGIC, &sum, &body]).map(|_| ())
    }

    /// Saves after changes, and at the end, as soon as the configuration is whole.
    pub(super) async fn keep(
        &self,
        state: Arc<State>,
        mut synced: watch::Receiver<bool>,
        shutdown: &CancellationToken,
    ) {
        let mut generation = state.subscribe();
        let mut failing = false;
        // What is there to save is saved, even if it came with the end.
        tokio::select! {
            biased;
            // An error: no stream will ever be.
            synced = synced.wait_for(|synced| *synced) => if synced.is_err() {
                return;
            },
            () = shutdown.cancelled() => return,
        }
        // The first one at once: a proxy that crashes young needs it as well.
        let mut settle = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                changed = generation.changed() => if changed.is_err() {
                    return;
                },
                () = shutdown.cancelled() => return,
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = time::sleep(std::mem::replace(&mut settle, SETTLE)) => {}
            }
            generation.mark_unchanged();
            let (this, state) = (self.clone(), Arc::clone(&state));
            let saved = tokio::task::spawn_blocking(move || this.save(&state)).await;
            match saved.map_err(io::Error::other).flatten() {
                Ok(()) => failing = false,
                Err(e) if !failing => {
                    failing = true;
                    let path = self.path();
                    tracing::warn!("the snapshot {} cannot be written: {e}", path.display());
                }
                Err(_) => {}
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<Delta>, SnapshotError> {
    let file = fs::read(path)?;
    let rest = file
        .strip_prefix(MAGIC)
        .ok_or(SnapshotError::Damaged("unknown format"))?;
    let (sum, mut body) = rest
        .split_first_chunk::<8>()
        .ok_or(SnapshotError::Damaged("cut short"))?;
    if u64::from_be_bytes(*sum) != checksum(body) {
        return Err(SnapshotError::Damaged("wrong checksum"));
    }
    let mut deltas = Vec::new();
    while !body.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut body)
            .map_err(|_| SnapshotError::Damaged("not decodable"))?;
        let kind = Kind::from_type_url(&response.type_url)
            .ok_or(SnapshotError::Damaged("unknown type"))?;
        deltas.push(Delta {
            kind,
            updated: response.resources.into_iter().map(from_xds).collect(),
            removed: Vec::new(),
        });
    }
    Ok(deltas)
}

fn to_xds(kind: Kind) -> impl Fn(Resource) -> XdsResource {
    move |resource| XdsResource {
        name: resource.name,
        version: resource.version,
        resource: Some(Any {
            type_url: kind.type_url().to_owned(),
            value: resource.body.into(),
        }),
    }
}

pub(super) fn from_xds(resource: XdsResource) -> Resource {
    Resource {
        name: resource.name,
        version: resource.version,
        body: resource.resource.unwrap_or_default().value.into(),
    }
}

/// FNV-1a, 64 bits: against accidents, not against people.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
