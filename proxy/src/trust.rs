//! Who is trusted. In flow the trust bundle's file, as it was at the start, and the roots that
//! the configuration names; out flows what counts now.

use std::sync::Arc;

use weft_certs::{BundleSource, TrustBundle};

use crate::state::State;

/// The configuration's roots once it is there; until then, the file's.
#[derive(Debug)]
pub struct MeshTrust {
    state: Arc<State>,
    file: Arc<TrustBundle>,
}

impl MeshTrust {
    /// Falls back to `file`.
    pub fn new(state: Arc<State>, file: TrustBundle) -> Self {
        Self {
            state,
            file: Arc::new(file),
        }
    }
}

impl BundleSource for MeshTrust {
    fn bundle(&self) -> Arc<TrustBundle> {
        let mesh = self.state.mesh();
        if mesh.trust_bundle.is_empty() {
            Arc::clone(&self.file)
        } else {
            Arc::clone(&mesh.trust_bundle)
        }
    }
}
