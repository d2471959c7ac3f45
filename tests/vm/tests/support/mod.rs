//! What the tests of a host that misbehaves share.
#![allow(dead_code)] // each test is a crate of its own, and needs a part

use std::path::Path;

use idleguard_vm_tests::Filter;

/// The built filter, or `None` (said, or a failure, see `IDLEGUARD_NO_SKIP`).
pub fn filter() -> Option<Filter> {
    let wasm = std::env::var_os("IDLEGUARD_WASM")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../idleguard.wasm"), Into::into);
    if !wasm.is_file() {
        assert!(std::env::var_os("IDLEGUARD_NO_SKIP").is_none(), "no filter: `make build` makes it");
        eprintln!("skipped: no filter: `make build` makes it");
        return None;
    }
    Some(Filter::load(wasm).expect("a filter"))
}

/// A small generator of random numbers (SplitMix64): the same seed, the same sequence.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    pub fn bytes(&mut self, longest: u64) -> Vec<u8> {
        (0..self.below(longest + 1)).map(|_| self.next() as u8).collect()
    }
}
