//! Real servers behind the relay.

use crate::{
    case::Case,
    far_end::Kind,
    real::Real,
    script::{
        Do::{self, Data, ExpectEnd},
        Framing::{Length, Nothing},
    },
};

/// The rows.
pub(super) fn all() -> Vec<Case> {
    let each = |real: Real, name: &str| {
        let streams = vec![
            vec![Do::request("GET", Nothing), ExpectEnd],
            vec![Do::request("POST", Length(10_000)), Data(10_000), ExpectEnd],
            vec![Do::request("HEAD", Nothing), ExpectEnd],
        ];
        Case::new(name, &format!("{real:?}: GET, POST and HEAD on one connection"), vec![], vec![])
            .streams(streams)
            .far_end(Kind::Real(real))
    };
    vec![
        each(Real::Nginx, "nginx"),
        each(Real::Haproxy, "haproxy"),
        each(Real::Node, "node"),
        each(Real::Python, "python"),
    ]
}
