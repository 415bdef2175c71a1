//! The kernel side as the agent sees it: what it offers, what of that is used, and its records.

pub mod attach;
pub mod btf;
pub mod cgroups;
mod config;
pub mod features;
pub mod layout;
pub mod listeners;
pub mod losses;
mod mapping;
pub mod names;
pub mod plan;
pub mod rights;
pub mod skips;
pub mod source;
pub mod trials;
mod verifier;
