//! RFC 7239 `forwarded`, one header line a line of input: the walk finds the elements that the reference finds, and what a
//! proxy appends is read whatever stands to its left.
#![no_main]

#[path = "../../core/tests/reference/mod.rs"]
mod reference;

use idleguard_core::client_ip::address::parse_address;
use idleguard_core::client_ip::forwarded::{forwarded, joined};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let list = joined(lines.iter().copied());
    let elements: Vec<_> = list.iter().flat_map(|list| forwarded(list)).collect();
    assert_eq!(elements, reference::forwarded(&lines));

    let own = b", for=203.0.113.5;host=\"a,b\\\"\", for=\"[2001:db8::5]:_x\"";
    let same_line = [data, own].concat();
    for lines in [&[&same_line[..]][..], &[data, &own[2..]]] {
        let list = joined(lines.iter().copied()).expect("it is not blank");
        let mut elements = forwarded(&list);
        assert_eq!(elements.next(), Some(parse_address(b"2001:db8::5")));
        assert_eq!(elements.next(), Some(parse_address(b"203.0.113.5")));
    }
});
