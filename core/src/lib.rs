//! What idleguard decides, without a host, a clock or chance: bytes, headers and timestamps come in as arguments, decisions go
//! out as values. The filter (`idleguard`) calls Envoy; the command-line tool and the tests use the same code.
//!
//! | module | question it answers |
//! | --- | --- |
//! | [`timeout`] | how long is idle too long, and which lane follows? |
//! | [`watch`] | how old is this connection? |
//! | [`client_ip`] | who is the client, and which headers does the application get? |
//! | [`plugin`] | what did the operator write, and what is wrong with it? |
//! | [`config`] | one JSON object of the configuration, key by key |
//! | [`header_map`], [`metrics`], [`time`] | the host's headers, read in place; every metric once; durations and timestamps |

pub mod client_ip;
pub mod config;
pub mod header_map;
pub mod metrics;
pub mod plugin;
pub mod time;
pub mod timeout;
pub mod watch;
