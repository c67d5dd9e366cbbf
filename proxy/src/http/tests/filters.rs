//! Filters, by tables.

use http::{HeaderMap, HeaderValue, Method};
use proptest::prelude::*;
use weft_api::config::{
    self, HeaderModifier, HeaderValue as Header, HttpFilter, http_filter::Kind, path_modifier,
};

use super::harness::filter;
use crate::http::{RequestHead, filter::Filters, path::PathModifier};

fn modifier(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderModifier {
    let headers = |all: &[(&str, &str)]| {
        let one = |(name, value): &(&str, &str)| Header {
            name: (*name).into(),
            value: (*value).into(),
        };
        all.iter().map(one).collect()
    };
    HeaderModifier {
        set: headers(set),
        add: headers(add),
        remove: remove.iter().map(|it| (*it).into()).collect(),
    }
}

fn compile(filters: &[HttpFilter]) -> Filters {
    Filters::compile(filters).expect("it compiles")
}

fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in all {
        map.append(*name, HeaderValue::from_static(value));
    }
    map
}

#[test]
fn headers_are_set_added_and_removed() {
    let filters = compile(&[filter(Kind::RequestHeaders(modifier(
        &[("X-Set", "new"), ("x-fresh", "1")],
        &[("x-add", "b")],
        &["x-gone", "x-never"],
    )))]);
    let mut map = headers(&[
        ("x-set", "old"),
        ("x-set", "older"),
        ("x-add", "a"),
        ("x-gone", "1"),
    ]);
    filters.request.apply(&mut map);
    let expected = [
        ("x-set", "new"),
        ("x-fresh", "1"),
        ("x-add", "a"),
        ("x-add", "b"),
    ];
    assert_eq!(map, headers(&expected));
}

#[test]
fn several_modifiers_apply_and_responses_have_their_own() {
    let filters = compile(&[
        filter(Kind::RequestHeaders(modifier(&[("x-a", "1")], &[], &[]))),
        filter(Kind::RequestHeaders(modifier(&[("x-b", "2")], &[], &[]))),
        filter(Kind::ResponseHeaders(modifier(&[("x-c", "3")], &[], &[]))),
    ]);
    let (mut request, mut response) = (HeaderMap::new(), HeaderMap::new());
    filters.request.apply(&mut request);
    filters.response.apply(&mut response);
    assert_eq!(request, headers(&[("x-a", "1"), ("x-b", "2")]));
    assert_eq!(response, headers(&[("x-c", "3")]));
}

#[test]
fn what_frames_a_message_is_not_modified() {
    let protected = [
        "connection",
        "Content-Length",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "proxy-connection",
    ];
    let set: Vec<_> = protected.iter().map(|name| (*name, "1")).collect();
    let filters = compile(&[filter(Kind::ResponseHeaders(modifier(
        &set, &set, &protected,
    )))]);
    let mut map = headers(&[("content-length", "5")]);
    filters.response.apply(&mut map);
    assert_eq!(map, headers(&[("content-length", "5")]));
}

#[test]
fn a_request_modifier_of_host_is_one_of_the_authority() {
    let filters = compile(&[filter(Kind::RequestHeaders(modifier(
        &[("Host", "other.example:81")],
        &[],
        &["host"],
    )))]);
    let host = filters.request.host().map(ToString::to_string);
    assert_eq!(host.as_deref(), Some("other.example:81"));
    let mut map = headers(&[("host", "checkout")]);
    filters.request.apply(&mut map);
    assert_eq!(
        map,
        headers(&[("host", "checkout")]),
        "only the authority is told"
    );
}

#[test]
fn filters_that_cannot_be_applied_do_not_compile() {
    for kind in [
        Some(Kind::RequestHeaders(modifier(
            &[("bad name", "1")],
            &[],
            &[],
        ))),
        Some(Kind::RequestHeaders(modifier(&[("x-a", "a\nb")], &[], &[]))),
        Some(Kind::RequestHeaders(modifier(&[("host", "a b")], &[], &[]))),
        Some(Kind::Rewrite(config::UrlRewrite {
            hostname: "a/b".into(),
            path: None,
        })),
        Some(Kind::Redirect(config::Redirect {
            status: 200,
            ..Default::default()
        })),
        Some(Kind::Redirect(config::Redirect {
            path: full("/a?b"),
            ..Default::default()
        })),
        None,
    ] {
        let filters = [HttpFilter { kind: kind.clone() }];
        assert!(Filters::compile(&filters).is_err(), "{kind:?}");
    }
}

fn full(path: &str) -> Option<config::PathModifier> {
    Some(config::PathModifier {
        kind: Some(path_modifier::Kind::ReplaceFullPath(path.into())),
    })
}

fn replace_prefix(path: &str) -> Option<config::PathModifier> {
    Some(config::PathModifier {
        kind: Some(path_modifier::Kind::ReplacePrefixMatch(path.into())),
    })
}

fn rewritten(path: &str, modifier: Option<config::PathModifier>, matched: &str) -> String {
    let filters = compile(&[filter(Kind::Rewrite(config::UrlRewrite {
        hostname: String::new(),
        path: modifier,
    }))]);
    let rewrite = filters.rewrite.expect("a rewrite");
    let modifier = rewrite.path.expect("of the path");
    modifier.apply(path, matched.trim_end_matches('/'))
}

#[test]
fn prefixes_are_replaced_as_the_standards_table_says() {
    for (path, matched, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar", "/", "/xyz", "/xyz/foo/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/foo//bar", "/foo", "/xyz", "/xyz//bar"),
    ] {
        let new = rewritten(path, replace_prefix(replacement), matched);
        assert_eq!(new, expected, "{path} {matched} {replacement}");
    }
}

#[test]
fn a_full_path_is_replaced_whatever_it_was() {
    for (replacement, expected) in [
        ("/new", "/new"),
        ("/new/", "/new/"),
        ("", "/"),
        ("new", "/new"),
    ] {
        assert_eq!(rewritten("/old/path", full(replacement), ""), expected);
    }
}

#[test]
fn a_location_is_built_as_the_standard_says() {
    let redirect = |scheme: &str, hostname: &str, port: u32| config::Redirect {
        scheme: scheme.into(),
        hostname: hostname.into(),
        port,
        ..Default::default()
    };
    let same = redirect("", "", 0);
    let with_path = |path| config::Redirect {
        path,
        ..Default::default()
    };
    for (from, authority, target, service_port, expected) in [
        // Neither scheme nor port: the listener's port, left out if it is the scheme's.
        (same.clone(), "checkout", "/a", 80, "http://checkout/a"),
        (
            same.clone(),
            "checkout",
            "/a",
            8080,
            "http://checkout:8080/a",
        ),
        (
            same.clone(),
            "checkout:8080",
            "/a",
            8080,
            "http://checkout:8080/a",
        ),
        (same.clone(), "checkout:9999", "/a", 80, "http://checkout/a"),
        (same.clone(), "[fd00::1]:80", "/a", 80, "http://[fd00::1]/a"),
        (
            same.clone(),
            "checkout",
            "/a?b=c&d",
            80,
            "http://checkout/a?b=c&d",
        ),
        // A scheme brings its own port.
        (
            redirect("https", "", 0),
            "checkout",
            "/a",
            8080,
            "https://checkout/a",
        ),
        (
            redirect("http", "", 0),
            "checkout",
            "/a",
            8080,
            "http://checkout/a",
        ),
        (
            redirect("ftp", "", 0),
            "checkout",
            "/a",
            8080,
            "ftp://checkout:8080/a",
        ),
        // A port is taken, and left out if the scheme implies it.
        (
            redirect("https", "", 8443),
            "checkout",
            "/a",
            80,
            "https://checkout:8443/a",
        ),
        (
            redirect("https", "", 443),
            "checkout",
            "/a",
            80,
            "https://checkout/a",
        ),
        (
            redirect("https", "", 80),
            "checkout",
            "/a",
            80,
            "https://checkout:80/a",
        ),
        (
            redirect("", "", 80),
            "checkout",
            "/a",
            8080,
            "http://checkout/a",
        ),
        (
            redirect("", "", 443),
            "checkout",
            "/a",
            80,
            "http://checkout:443/a",
        ),
        (
            redirect("", "example.org", 0),
            "checkout",
            "/a",
            80,
            "http://example.org/a",
        ),
        (
            redirect("", "example.org", 8081),
            "checkout",
            "/a",
            80,
            "http://example.org:8081/a",
        ),
        // Paths; the query stays.
        (
            with_path(full("/new")),
            "checkout",
            "/old?q=1",
            80,
            "http://checkout/new?q=1",
        ),
        (
            with_path(replace_prefix("/new")),
            "checkout",
            "/old/x",
            80,
            "http://checkout/new/x",
        ),
        (
            with_path(replace_prefix("/")),
            "checkout",
            "/old",
            80,
            "http://checkout/",
        ),
        // Without an authority there is none to point to.
        (same, "", "/a?b", 80, "/a?b"),
    ] {
        let filters = compile(&[filter(Kind::Redirect(from.clone()))]);
        let redirect = filters.redirect.expect("a redirect");
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let request = RequestHead {
            method: &Method::GET,
            path,
            query,
            authority: (!authority.is_empty()).then_some(authority),
            headers: &HeaderMap::new(),
        };
        let location = redirect.location(&request, "/old", service_port);
        let location = location.expect("a location");
        assert_eq!(location, expected, "{from:?}");
        assert_eq!(redirect.status, 302);
    }
}

proptest! {
    #[test]
    fn a_replaced_prefix_leaves_the_rest_and_never_makes_two_slashes(
        matched in "(/[a-c]{1,3}){0,3}",
        rest in "(/[a-c]{1,3}){0,3}",
        replacement in "(/[x-z]{1,3}){0,3}/?",
    ) {
        let path = if matched.is_empty() && rest.is_empty() {
            "/".to_owned()
        } else {
            format!("{matched}{rest}")
        };
        let modifier = PathModifier::Prefix(replacement.trim_end_matches('/').into());
        let new = modifier.apply(&path, &matched);
        prop_assert!(new.starts_with('/'));
        prop_assert!(!new.contains("//"));
        prop_assert!(new.ends_with(&rest));
        prop_assert!(new.starts_with(replacement.trim_end_matches('/')));
    }
}
