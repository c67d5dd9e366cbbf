//! Matching, by tables.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use weft_api::config::{
    HttpMatch, HttpRule, HttpTable, RouteRef, ValueMatch, path_match, value_match,
};

use super::harness::{exact, path, prefix};
use crate::http::{HttpRoutes, RequestHead, path::has_dot_segments};

fn table(matches: Vec<HttpMatch>) -> HttpTable {
    let route = Some(RouteRef {
        kind: "HTTPRoute".into(),
        namespace: "shop".into(),
        name: "route".into(),
        ..Default::default()
    });
    let rules = matches.iter().map(|_| HttpRule {
        route: route.clone(),
        ..Default::default()
    });
    HttpTable {
        rules: rules.collect(),
        matches: matches
            .into_iter()
            .enumerate()
            .map(|(rule, it)| HttpMatch {
                rule: rule as u32,
                ..it
            })
            .collect(),
    }
}

fn compile(matches: Vec<HttpMatch>) -> HttpRoutes {
    HttpRoutes::compile(&table(matches)).expect("it compiles")
}

/// The index of the rule that a request meets.
fn select(
    routes: &HttpRoutes,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Option<usize> {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            (name, HeaderValue::from_str(value).expect("a value"))
        })
        .collect();
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let selected = routes.select(&RequestHead {
        method: &method,
        path,
        query,
        authority: Some("checkout.shop"),
        headers: &headers,
    })?;
    let all = routes.rules();
    all.iter().position(|it| std::ptr::eq(it, selected.rule))
}

fn matches(condition: HttpMatch, target: &str) -> bool {
    select(&compile(vec![condition]), "GET", target, &[]).is_some()
}

fn regex(pattern: &str) -> HttpMatch {
    path(path_match::Kind::Regex(pattern.into()))
}

fn value(name: &str, kind: value_match::Kind) -> ValueMatch {
    ValueMatch {
        name: name.into(),
        kind: Some(kind),
    }
}

fn is(text: &str) -> value_match::Kind {
    value_match::Kind::Exact(text.into())
}

fn like(pattern: &str) -> value_match::Kind {
    value_match::Kind::Regex(pattern.into())
}

#[test]
fn a_path_prefix_matches_by_whole_segments() {
    for (of, target, expected) in [
        ("/", "/", true),
        ("/", "/anything", true),
        ("/abc", "/abc", true),
        ("/abc", "/abc/", true),
        ("/abc", "/abc/def", true),
        ("/abc", "/abcd", false),
        ("/abc", "/ab", false),
        ("/abc", "/ABC", false),
        ("/abc", "/abc?query", true),
        ("/abc", "/abc%2Fdef", false),
        ("/abc", "//abc", false),
        ("/abc/", "/abc", true),
        ("/abc/", "/abc/def", true),
        ("/a/b", "/a/b/c", true),
        ("/a/b", "/a/bc", false),
    ] {
        assert_eq!(matches(prefix(of), target), expected, "{of} {target}");
    }
}

#[test]
fn an_exact_path_matches_itself_only() {
    for (of, target, expected) in [
        ("/abc", "/abc", true),
        ("/abc", "/abc/", false),
        ("/abc", "/abc?a=b", true),
        ("/abc", "/Abc", false),
        ("/abc", "/%61bc", false),
        ("/", "/", true),
        ("/", "/a", false),
    ] {
        assert_eq!(matches(exact(of), target), expected, "{of} {target}");
    }
}

#[test]
fn a_regular_expression_matches_the_whole_path() {
    for (of, target, expected) in [
        ("/a.*", "/abc", true),
        ("/a.*", "/b/abc", false),
        ("b", "/abc", false),
        ("/a|/b", "/b", true),
        ("/a|/b", "/bc", false),
        ("/v[0-9]+/items", "/v12/items", true),
        ("/v[0-9]+/items", "/v12/items/3", false),
        (r"/\d+", "/42", true),
        ("(?i)/ABC", "/abc", true),
    ] {
        assert_eq!(matches(regex(of), target), expected, "{of} {target}");
    }
}

#[test]
fn what_cannot_be_compiled_is_named() {
    for (bad, names) in [
        (
            regex("/a("),
            "HTTPRoute shop/route rule 0: regular expression `/a(` of path",
        ),
        (regex("a)|(b"), "regular expression `a)|(b` of path"),
        (regex("(a{1000}){1000}"), "of path"),
        (
            HttpMatch {
                headers: vec![value("x-version", like("["))],
                ..Default::default()
            },
            "of header `x-version`",
        ),
        (
            HttpMatch {
                headers: vec![value("bad name", is("x"))],
                ..Default::default()
            },
            "`bad name` is not a header name",
        ),
        (
            HttpMatch {
                query_params: vec![ValueMatch {
                    name: "q".into(),
                    kind: None,
                }],
                ..Default::default()
            },
            "query parameter `q` has no kind",
        ),
    ] {
        let error = HttpRoutes::compile(&table(vec![bad])).expect_err("it must not compile");
        assert!(error.contains(names), "{error}");
    }
}

#[test]
fn a_match_of_a_rule_that_does_not_exist_is_an_error() {
    let mut table = table(vec![prefix("/")]);
    table.matches[0].rule = 7;
    assert!(HttpRoutes::compile(&table).is_err());
}

#[test]
fn headers_match_by_name_in_any_case_and_several_lines_are_one_list() {
    let condition = |kind| HttpMatch {
        headers: vec![value("x-color", kind)],
        ..Default::default()
    };
    for (kind, headers, expected) in [
        (is("blue"), vec![("X-Color", "blue")], true),
        (is("blue"), vec![("x-color", "Blue")], false),
        (is("blue"), vec![], false),
        (
            is("blue"),
            vec![("x-color", "blue"), ("x-color", "red")],
            false,
        ),
        (
            is("blue,red"),
            vec![("x-color", "blue"), ("x-color", "red")],
            true,
        ),
        (like("blue|red"), vec![("x-color", "red")], true),
        (like("blue|red"), vec![("x-color", "reddish")], false),
        (like("bl.*"), vec![("x-color", "black")], true),
        (
            value_match::Kind::Present(true),
            vec![("x-color", "")],
            true,
        ),
        (
            value_match::Kind::Present(true),
            vec![("x-colour", "")],
            false,
        ),
    ] {
        let routes = compile(vec![condition(kind.clone())]);
        let found = select(&routes, "GET", "/", &headers).is_some();
        assert_eq!(found, expected, "{kind:?} {headers:?}");
    }
}

#[test]
fn the_host_header_is_the_authority() {
    let condition = HttpMatch {
        headers: vec![value("host", is("checkout.shop"))],
        ..Default::default()
    };
    assert!(matches(condition, "/"));
}

#[test]
fn query_parameters_are_decoded_and_the_first_of_a_name_counts() {
    for (kind, target, expected) in [
        (is("whale"), "/?animal=whale", true),
        (is("whale"), "/?animal=whale&animal=dolphin", true),
        (is("whale"), "/?animal=dolphin&animal=whale", false),
        (is("whale"), "/?Animal=whale", false),
        (is("whale"), "/?color=blue&animal=whale", true),
        (is("whale"), "/?animal=whales", false),
        (is("blue whale"), "/?animal=blue+whale", true),
        (is("blue whale"), "/?animal=blue%20whale", true),
        (is("whale"), "/?anim%61l=wh%61le", true),
        (is("100%"), "/?animal=100%", true),
        (is(""), "/?animal", true),
        (is("a=b"), "/?animal=a=b", true),
        (is("whale"), "/", false),
        (like("w.*e"), "/?animal=whale", true),
        (like("w.*e"), "/?animal=a-whale", false),
    ] {
        let condition = HttpMatch {
            query_params: vec![value("animal", kind.clone())],
            ..Default::default()
        };
        assert_eq!(matches(condition, target), expected, "{kind:?} {target}");
    }
}

#[test]
fn all_conditions_of_a_match_must_hold_and_the_first_match_wins() {
    let both = HttpMatch {
        method: "POST".into(),
        headers: vec![value("x-canary", is("yes"))],
        ..prefix("/pay")
    };
    let routes = compile(vec![both, prefix("/pay"), prefix("/")]);
    let canary = [("x-canary", "yes")];
    assert_eq!(select(&routes, "POST", "/pay", &canary), Some(0));
    assert_eq!(select(&routes, "GET", "/pay", &canary), Some(1));
    assert_eq!(select(&routes, "POST", "/pay", &[]), Some(1));
    assert_eq!(select(&routes, "POST", "/other", &canary), Some(2));
}

#[test]
fn nothing_matches_an_empty_table() {
    assert_eq!(select(&compile(vec![]), "GET", "/", &[]), None);
}

#[test]
fn paths_that_a_backend_could_read_otherwise_are_found() {
    for (path, expected) in [
        ("/", false),
        ("/a/b", false),
        ("/.well-known/x", false),
        ("/a.b/c..d/...", false),
        ("/a/...", false),
        ("/a%20b", false),
        ("/a%2Fb", false),
        ("/100%", false),
        ("/a;b=c", false),
        ("/.", true),
        ("/..", true),
        ("/a/../b", true),
        ("/a/./b", true),
        ("/a/..", true),
        ("/a/%2e%2E/b", true),
        ("/a/.%2e/b", true),
        ("/a%2f..%2fb", true),
        ("/a%2F..", true),
        ("/a\\..\\b", true),
        ("/a%5c..%5cb", true),
        ("/a/..;x/b", true),
    ] {
        assert_eq!(has_dot_segments(path), expected, "{path}");
    }
}

proptest! {
    #[test]
    fn a_prefix_match_is_what_comparing_segments_says(
        of in "(/[ab]{1,2}){0,3}",
        path in "(/[ab]{0,2}){1,4}",
    ) {
        let segments = |text: &str| -> Vec<String> {
            text.split('/').skip(1).map(str::to_owned).collect()
        };
        let (want, have) = (segments(&of), segments(&path));
        let expected = have.len() >= want.len() && have[..want.len()] == want[..];
        let of = if of.is_empty() { "/" } else { &of };
        prop_assert_eq!(matches(prefix(of), &path), expected);
    }

    #[test]
    fn dot_segments_are_found_as_decoding_first_would_find_them(
        path in "(/|%2f|[.]|%2e|a){0,8}",
    ) {
        let path = format!("/{path}");
        let decoded = path.replace("%2f", "/").replace("%2e", ".");
        let expected = decoded.split('/').any(|it| matches!(it, "." | ".."));
        prop_assert_eq!(has_dot_segments(&path), expected);
    }
}
