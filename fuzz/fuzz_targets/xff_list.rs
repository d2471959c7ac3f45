//! `x-forwarded-for`, one header line a line of input: the walk finds the elements that the reference finds, and every
//! address that it finds is written canonically.
#![no_main]

#[path = "../../core/tests/reference/mod.rs"]
mod reference;

use idleguard_core::client_ip::address::{canonical, parse_address};
use idleguard_core::client_ip::forwarded::{joined, x_forwarded_for};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let list = joined(lines.iter().copied());
    let addresses: Vec<_> = list.iter().flat_map(|list| x_forwarded_for(list)).collect();
    assert_eq!(addresses, reference::x_forwarded_for(&lines));
    for address in addresses.into_iter().flatten() {
        let text = canonical(address);
        assert_eq!(text, reference::text(address));
        assert_eq!(parse_address(text.as_bytes()), Some(address));
    }
});
