//! Real processes on loopback: what a user sees when things work, break, and are asked for nonsense.
mod bad_input;
mod config;
mod dashboard;
mod faults;
mod gateway;
mod graphs;
mod looking;
mod planning;
mod python;
mod serving;
mod shapes;
mod stall;
mod steering;
mod tokens;
mod triage;
mod tuning;
mod versions;
