//! Any bytes as a serialized `google.protobuf.Struct`: what is read is written as bytes that read the same, and the
//! configuration made of it is taken or refused.
#![no_main]

mod struct_writer;

use idleguard_core::config::protobuf_struct;
use idleguard_core::plugin::parse;
use libfuzzer_sys::fuzz_target;
use struct_writer::write_struct;

fuzz_target!(|data: &[u8]| {
    let _ = parse(data);
    if let Some(value) = protobuf_struct::parse(data) {
        let again = write_struct(&value);
        assert_eq!(protobuf_struct::parse(&again), Some(value));
    }
});
