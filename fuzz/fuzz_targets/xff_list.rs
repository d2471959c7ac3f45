//! `x-forwarded-for`, one header line a line of input: the walk finds the elements that splitting finds, and every
//! address that it finds is written canonically.
#![no_main]

#[path = "../../tests/reference/mod.rs"]
mod reference;

use idleguard::address::{canonical, parse_address};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let elements: Vec<_> = idleguard::forwarded::x_forwarded_for(lines.iter().copied()).collect();
    let addresses: Vec<_> = elements.iter().map(|element| element.map(|element| element.address())).collect();
    assert_eq!(addresses, reference::x_forwarded_for(&lines));
    for element in elements.into_iter().flatten() {
        let (address, text) = (element.address(), canonical(element.address()));
        assert!(element.text.is_none_or(|given| given == text.as_bytes()));
        assert_eq!(text, reference::text(address));
        assert_eq!(parse_address(text.as_bytes()), Some(address));
    }
});
