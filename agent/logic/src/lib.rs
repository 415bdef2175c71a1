//! The decisions of finrace as plain functions over plain data: no I/O, no clock, no aya.

pub mod advice;
pub mod ends;
pub mod engine;
pub mod estimate;
pub mod event;
pub mod explain;
pub mod exposure;
pub mod gaps;
pub mod histogram;
pub mod join;
pub mod knobs;
pub mod latest;
pub mod merge;
pub mod model;
pub mod native;
pub mod numbers;
pub mod order;
pub mod owner;
pub mod peer;
pub mod protocol;
pub mod recent;
pub mod table;
pub mod tracker;
pub mod turn;
pub mod verdict;
pub mod window;
