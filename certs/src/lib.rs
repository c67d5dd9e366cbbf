//! Identity of workloads: SPIFFE ids, the CA that signs them, and the TLS that proves them.
//!
//! In go key pairs, CSRs, PEM and trust bundles; out come signed chains, [`svid::Svid`]s and rustls
//! configurations that refuse every peer whose identity is not exactly what was asked for, with a
//! [`verify::VerifyError`] that says why. Knows nothing of Kubernetes, opens no socket and reads no
//! clock: time is always a parameter (in a handshake, rustls supplies it).

pub mod bundle;
pub mod ca;
pub mod csr;
mod pem;
pub mod serving;
pub mod source;
pub mod spiffe;
pub mod svid;
pub mod tls;
pub mod verify;
mod x509;

pub use bundle::TrustBundle;
pub use ca::CertificateAuthority;
pub use source::{BundleCell, BundleSource, SvidCell, SvidSource};
pub use spiffe::SpiffeId;
pub use svid::Svid;
pub use verify::{VerifyError, reason_of};
