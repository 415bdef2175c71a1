//! The kernel side as the agent sees it: what there is, what is used of it, and its records.

pub mod attach;
pub mod features;
pub mod layout;
pub mod listeners;
mod names;
pub mod plan;
pub mod source;
