//! Keeps the pictures of the documentation true: a test draws one anew, from the code, and that must stand in the doc.
//!
//! Only what a test can draw or measure is a picture here; everything else is said in words.

/// The module doc of a source: what stands behind its `//!`.
pub fn module_doc(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line))).collect()
}

/// Asserts that this picture stands in the module doc of `source`, line for line. If it does not, it is shown as it
/// should stand there, to be pasted.
#[track_caller]
pub fn assert_drawn(source: &str, picture: &str) {
    let lines: Vec<&str> = picture.lines().map(str::trim_end).collect();
    let stands_there = module_doc(source).contains(&format!("\n{}\n", lines.join("\n")));
    let shown: String = lines.iter().map(|line| format!("//! {line}\n")).collect();
    assert!(stands_there, "the picture in the module doc should be:\n{shown}");
}

/// Bytes as the pictures show them: `48 65 6c`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_picture_must_stand_in_the_module_doc() {
    let source = "//! Words.\n//!\n//! a -> b\n//! b -> c\n//!\nfn code() {}\n//! d -> e\n";
    assert_drawn(source, "a -> b  \nb -> c");
    for missing in ["a -> c", "a -> b\nb -> d", "a -> b\nb -", "-> b\nb -> c", "d -> e", "fn code() {}"] {
        assert!(std::panic::catch_unwind(|| assert_drawn(source, missing)).is_err(), "{missing}");
    }
}
