//! Checked load on a lab, and what is done to the lab meanwhile.
//!
//! [`record`] is what the client in a pod (`weft-chaos-client`) is told and what it says: every
//! answer is checked, every failure comes with its cause. [`load`] runs such clients in a lab's pods
//! and keeps what they said. [`inventory`] counts what the lab holds, before and after, so that a
//! leak shows. [`judge`] tells failures that a crash explains from those that nothing may explain.

pub mod inventory;
pub mod judge;
pub mod load;
pub mod mesh;
pub mod record;
pub mod stage;
