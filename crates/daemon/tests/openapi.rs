//! The committed OpenAPI document is the one the code makes: a change of the API shows in the diff.

use std::path::Path;

#[test]
fn the_committed_document_is_current() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let made = backstay_daemon::openapi_json();
    if std::env::var_os("BACKSTAY_UPDATE_OPENAPI").is_some() {
        std::fs::write(&file, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == made,
        "docs/openapi.json is not what the code makes: run `BACKSTAY_UPDATE_OPENAPI=1 cargo test -p backstay-daemon \
         --test openapi` and look at the difference"
    );
}
