//! `shm-demo daemon` and `shm-demo client`: that clients of a socket and those who map the
//! segment stand in one queue, that nothing is lost whoever is killed, and what a daemon
//! has to do besides.

#[path = "../kit/mod.rs"]
mod kit;

mod clients;
mod command;
mod death;
mod hostile;
mod operation;
mod service;
mod support;
