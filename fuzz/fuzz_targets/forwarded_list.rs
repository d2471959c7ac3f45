//! RFC 7239 `forwarded`, one header line a line of input: the walk finds the elements that splitting finds, and what a
//! proxy appends is read whatever stands to its left.
#![no_main]

#[path = "../../tests/reference/mod.rs"]
mod reference;

use idleguard::address::parse_address;
use idleguard::forwarded::forwarded;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let elements: Vec<_> = forwarded(lines.iter().copied()).collect();
    assert_eq!(elements, reference::forwarded(&lines));

    let own = b", for=203.0.113.5;host=\"a,b\\\"\", for=\"[2001:db8::5]:_x\"";
    let same_line = [data, own].concat();
    for lines in [&[&same_line[..]][..], &[data, &own[2..]]] {
        let mut elements = forwarded(lines.iter().copied());
        assert_eq!(elements.next(), Some(parse_address(b"2001:db8::5")));
        assert_eq!(elements.next(), Some(parse_address(b"203.0.113.5")));
    }
});
