//! The page on troubles names each refusal, as the programs say it.

use tasuki_proto::RefusalCode;
use tasuki_tests::lab::bins::workspace;

#[test]
fn each_refusal_stands_in_the_page_on_troubles() {
    let page = std::fs::read_to_string(workspace().join("docs/troubleshooting.md")).unwrap();
    let row = |code: &RefusalCode| format!("| `{}` | {} |", code.word(), code.advice());
    let missing: Vec<String> =
        RefusalCode::ALL.iter().map(row).filter(|row| !page.contains(row)).collect();
    assert!(
        missing.is_empty(),
        "docs/troubleshooting.md needs these rows:\n{}",
        missing.join("\n")
    );
}
