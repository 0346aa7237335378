#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backstay_hyperv::fuzz::xml(data));
