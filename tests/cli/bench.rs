//! `bench`: it measures, prints its table, and leaves nothing.

use crate::harness::{fine, json, run};

#[test]
fn the_table_has_a_line_for_each_load() {
    let printed = fine(&["bench", "--seconds", "0.1"]);
    for sign in ["SHMHEAP", "MALLOC", "RATIO", "64 B, allocated", "10,000 blocks", "2,000 live blocks", "another process"] {
        assert!(printed.contains(sign), "{sign}: {printed}");
    }
    assert!(printed.contains("scripts/bench.sh"), "it says where there is more: {printed}");
}

#[test]
fn what_was_measured_is_told_as_json() {
    let told = json(&["bench", "--for", "100ms"]);
    let rows = told["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 4);
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"));
        let (ours, theirs) = (number("shmheap_ns"), number("malloc_ns"));
        assert!(ours > 0.0 && theirs > 0.0 && (number("ratio") - ours / theirs).abs() < 0.01, "{row}");
    }
    assert!(told["rounds"].as_u64() >= Some(3), "{told}");
}

#[test]
fn a_time_that_is_none_is_refused() {
    assert_eq!(run(&["bench", "--seconds", "long"]).code, 2);
}
