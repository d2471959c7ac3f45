//! The library behind the command-line tool `idleguard`.
//!
//! | module | question it answers |
//! | --- | --- |
//! | [`document`], [`path`] | what does a configuration file say, where, and how is it changed without losing a comment? |
//! | [`kind`] | is it a bootstrap, and if not, what is it? |
//! | [`bootstrap`] | where in it are the listeners, connection managers, clusters, and idleguard? |
//! | [`inject`] | how does idleguard get into it, and out again? |
//! | [`check`] | what is wrong with it? |
//! | [`scout`] | what is a far end's idle timeout, asked from a terminal? |
//! | [`recommend`] | which `idle_timeout` should each cluster have, by what was measured? |
//! | [`schema`], [`reference`], [`explain`] | what may stand in the plugin configuration, and what is it called elsewhere? |

pub mod bootstrap;
pub mod check;
pub mod document;
pub mod explain;
pub mod inject;
pub mod kind;
pub mod path;
pub mod recommend;
pub mod reference;
pub mod schema;
pub mod scout;
