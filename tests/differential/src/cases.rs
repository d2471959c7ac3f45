//! The table.

mod http1;
mod http2;
mod servers;
mod tunnels;

use crate::case::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    [http1::all(), tunnels::all(), http2::all(), servers::all()].into_iter().flatten().collect()
}
