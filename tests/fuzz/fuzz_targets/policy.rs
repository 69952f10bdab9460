#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| writ_fuzz::policy(bytes));
