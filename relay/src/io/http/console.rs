//! The console: the files of `relay/console/`, embedded in the program (ADR 27).
//!
//! They hold nothing of the mesh and are the same for everybody, so no token guards them; what the page shows it
//! reads from the API. Nothing is built: what is in the folder is what the browser gets.

use std::sync::LazyLock;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use data_encoding::HEXLOWER;
use ring::digest;

/// What the page may do: load its own files, talk to its own relay, and nothing else; no script or style in markup,
/// no frame around it.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
     frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
);
/// A browser keeps the files and asks each time whether they are still the same, so that a page never mixes those of
/// two versions.
const KEEP_AND_ASK: HeaderValue = HeaderValue::from_static("no-cache");
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// One embedded file.
struct File {
    /// Where it is served.
    path: &'static str,
    kind: &'static str,
    body: &'static [u8],
}

macro_rules! files {
    ($($kind:ident $name:literal),+ $(,)?) => {&[$(File {
        path: concat!("/console/", $name),
        kind: $kind,
        body: include_bytes!(concat!("../../../console/", $name)),
    }),+]};
}

const INDEX: File =
    File { path: "/", kind: HTML, body: include_bytes!("../../../console/index.html") };

const FILES: &[File] = files![
    CSS "style.css",
    SVG "icon.svg",
    SCRIPT "actions.js",
    SCRIPT "api.js",
    SCRIPT "app.js",
    SCRIPT "dialogs.js",
    SCRIPT "dom.js",
    SCRIPT "events.js",
    SCRIPT "format.js",
    SCRIPT "icons.js",
    SCRIPT "layout.js",
    SCRIPT "list.js",
    SCRIPT "parts.js",
    SCRIPT "rates.js",
    SCRIPT "store.js",
    SCRIPT "table.js",
    SCRIPT "theme.js",
    SCRIPT "views/explain.js",
    SCRIPT "views/map.js",
    SCRIPT "views/relay.js",
    SCRIPT "views/session.js",
    SCRIPT "views/sessions.js",
    SCRIPT "views/terminal.js",
    SCRIPT "views/terminals.js",
];

/// Every file of the console, the page at `/`.
fn all() -> impl Iterator<Item = &'static File> {
    std::iter::once(&INDEX).chain(FILES)
}

/// The routes of the console.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    static TAGS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| all().map(tag).collect());
    all().zip(TAGS.iter()).fold(Router::new(), |router, (file, tag)| {
        router.route(
            file.path,
            get(move |headers: HeaderMap| async move { serve(file, tag, &headers) }),
        )
    })
}

/// Strong: another content has another tag (RFC 9110, section 8.8.3).
fn tag(file: &'static File) -> HeaderValue {
    let hash = digest::digest(&digest::SHA256, file.body);
    let hash = HEXLOWER.encode(&hash.as_ref()[..12]);
    HeaderValue::try_from(format!("\"{hash}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

fn serve(file: &'static File, tag: &'static HeaderValue, headers: &HeaderMap) -> Response {
    let common = [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, KEEP_AND_ASK)];
    if is_known(headers, tag) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    let own = [
        (header::CONTENT_TYPE, HeaderValue::from_static(file.kind)),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, NO_REFERRER),
    ];
    (common, own, file.body).into_response()
}

/// Whether the client has this very content (RFC 9110, section 13.1.2).
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|one| {
            let one = one.trim();
            one == "*" || one.strip_prefix("W/").unwrap_or(one).as_bytes() == tag.as_bytes()
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn text(file: &File) -> &str {
        std::str::from_utf8(file.body).unwrap()
    }

    /// Names of `relay/console/`, below `folder`.
    fn names(folder: &Path, before: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{before}{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_dir() {
                found.extend(names(&path, &format!("{name}/")));
            } else {
                found.insert(name);
            }
        }
        found
    }

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("console");
        let mut expected = names(&folder, "/console/");
        assert!(expected.remove("/console/index.html"));
        let served: BTreeSet<String> = FILES.iter().map(|file| file.path.to_owned()).collect();
        assert_eq!(served, expected);
    }

    /// So that the page does not load its files one behind the other.
    #[test]
    fn the_page_names_every_script() {
        for file in FILES.iter().filter(|file| file.kind == SCRIPT) {
            assert!(text(&INDEX).contains(&format!("\"{}\"", file.path)), "{}", file.path);
        }
    }

    /// What would make text of the relay into markup, or load something from elsewhere, stands nowhere.
    #[test]
    fn nothing_is_markup_or_from_elsewhere() {
        let banned = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "DOMParser",
            "eval(",
            "new Function",
            "style=\"",
            "https://",
            "@import",
            "url(",
        ];
        for file in all() {
            for word in banned {
                assert!(!text(file).contains(word), "{}: {word}", file.path);
            }
            let elsewhere = text(file).replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("http://"), "{}", file.path);
        }
    }

    #[test]
    fn a_client_with_the_content_is_sent_none() {
        static TAG: HeaderValue = HeaderValue::from_static("\"abc\"");
        let asked = |value: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(value));
            }
            serve(&INDEX, &TAG, &headers).status()
        };
        for known in ["\"abc\"", "W/\"abc\"", "\"x\", \"abc\"", "*"] {
            assert_eq!(asked(Some(known)), StatusCode::NOT_MODIFIED, "{known}");
        }
        for other in [None, Some("\"x\""), Some("abc"), Some("")] {
            assert_eq!(asked(other), StatusCode::OK, "{other:?}");
        }
    }
}
