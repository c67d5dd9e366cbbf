//! The proxy's transport between real network namespaces: applications of the test dial and
//! listen in pods, redirected as the agent would, and one proxy serves all of the pods.

mod floods;
mod handover;
mod l4;
mod limits;
mod mesh;
mod net;
mod refusals;
mod routes;
mod tunnels;
mod upgrade;
