//! finrace sees the keep-alive FIN race in the kernel and explains it.
//!
//! `probe` gets records out of the kernel, [`finrace_logic`] decides what they mean, the other modules show
//! it. See ARCHITECTURE.md.

pub mod ask;
mod by_word;
pub mod check;
pub mod cli;
pub mod clock;
pub mod demo;
mod event_line;
pub mod http;
pub mod kube;
pub mod lost;
pub mod manual;
mod memory;
pub mod metrics;
pub mod output;
pub mod probe;
pub mod report;
pub mod scrape;
pub mod serve;
pub mod session;
pub mod usage;
pub mod watch;
pub mod who;
