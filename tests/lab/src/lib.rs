//! A lab for tests: starts `weft lab` from the built binaries with a name of its own, talks to it
//! as a user would (through the command line), and takes it down when dropped.
//!
//! `WEFT_BIN_DIR` names the folder of the binaries (default: beside the test's own), `WEFT_PEER`
//! the independent HBONE peer.

mod capture;
mod family;
mod held;
mod lab;
mod traffic;
mod wire;

pub use capture::{Capture, Seen};
pub use family::Family;
pub use held::Held;
pub use lab::{Lab, Output, at, eventually};
pub use traffic::Traffic;
pub use wire::{
    Answer, ByteReport, Dialled, FloodReport, GrpcReport, HoldReport, LiveReport, LoadReport,
    Probed, Request,
};
