//! Keeps diagrams in the docs correct: tests redraw them from the code and compare the result with the docs.

pub fn module_doc(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line))).collect()
}

/// Asserts that the module doc of `source` contains `picture`, line for line. On failure, the panic message shows the
/// picture ready to paste.
#[track_caller]
pub fn assert_in_module_doc(source: &str, picture: &str) {
    let lines: Vec<&str> = picture.lines().map(str::trim_end).collect();
    let is_present = module_doc(source).contains(&format!("\n{}\n", lines.join("\n")));
    let shown: String = lines.iter().map(|line| format!("//! {line}\n")).collect();
    assert!(is_present, "the picture in the module doc should be:\n{shown}");
}

pub fn format_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_module_doc_must_contain_the_picture() {
    let source = "//! Words.\n//!\n//! a -> b\n//! b -> c\n//!\nfn code() {}\n//! d -> e\n";
    assert_in_module_doc(source, "a -> b  \nb -> c");
    for missing in ["a -> c", "a -> b\nb -> d", "a -> b\nb -", "-> b\nb -> c", "d -> e", "fn code() {}"] {
        assert!(std::panic::catch_unwind(|| assert_in_module_doc(source, missing)).is_err(), "{missing}");
    }
}
