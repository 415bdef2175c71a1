//! The decisions of finrace as plain functions over plain data: no I/O, no clock, no aya.

pub mod classify;
pub mod engine;
pub mod event;
pub mod idle;
pub mod join;
pub mod model;
pub mod peer;
pub mod recent;
pub mod table;
pub mod tracker;
