//! Tests of the choices.

mod ewma;
mod health;
mod load;
mod p2c;
mod weighted;
