#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| muster_fuzzing::json_values(data));
