//! The byte tables of `docs/FORMAT.md` are those of the code. Run with `STP_BLESS=1` to write them anew.

use std::path::Path;
use stp_format::layout::LAYOUTS;

#[test]
fn the_tables_in_the_docs_are_those_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/FORMAT.md");
    let found = std::fs::read_to_string(&path).unwrap();
    let mut wanted = found.clone();
    for layout in LAYOUTS {
        let (from, to) = (
            format!("<!-- layout {} -->\n", layout.name),
            format!("<!-- end {} -->", layout.name),
        );
        let start = wanted
            .find(&from)
            .unwrap_or_else(|| panic!("no table of {}", layout.name));
        let end = wanted
            .find(&to)
            .unwrap_or_else(|| panic!("no end of {}", layout.name));
        wanted.replace_range(start + from.len()..end, &layout.to_string());
    }
    if std::env::var_os("STP_BLESS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    } else {
        assert_eq!(
            found, wanted,
            "docs/FORMAT.md is not what the code says: STP_BLESS=1 rewrites it"
        );
    }
}
