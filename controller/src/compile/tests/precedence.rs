//! The order of matches, against the standard's text read literally: of all matches that fit a request,
//! strike out step by step those that yield, and one is left.

use proptest::prelude::*;
use regex::Regex;
use serde_json::{Value, json};
use weft_api::config::{HttpMatch, path_match, route_table::Table, value_match};
use weft_source::Object;

use super::{Compiled, compile, lines, object, route};

#[derive(Clone, Debug)]
struct Match {
    path: Option<(&'static str, &'static str)>,
    method: Option<&'static str>,
    headers: Vec<&'static str>,
    params: Vec<&'static str>,
}

#[derive(Clone, Debug)]
struct Route {
    name: String,
    created: Option<&'static str>,
    rules: Vec<Vec<Match>>,
}

#[derive(Clone, Debug)]
struct Request {
    path: &'static str,
    method: &'static str,
    headers: Vec<&'static str>,
    params: Vec<&'static str>,
}

/// A match, and where it stands.
#[derive(Clone, Debug)]
struct Found<'a> {
    route: &'a Route,
    rule: usize,
    entry: usize,
    found: &'a Match,
}

impl Match {
    fn fits(&self, request: &Request) -> bool {
        let path = match self.path {
            None => true,
            Some(("Exact", path)) => request.path == path,
            Some(("RegularExpression", path)) => matches_whole(path, request.path),
            Some((_, prefix)) => {
                let prefix: Vec<_> = prefix.split('/').filter(|s| !s.is_empty()).collect();
                let path: Vec<_> = request.path.split('/').filter(|s| !s.is_empty()).collect();
                path.starts_with(&prefix)
            }
        };
        path && self.method.is_none_or(|method| method == request.method)
            && self
                .headers
                .iter()
                .all(|name| request.headers.contains(name))
            && self.params.iter().all(|name| request.params.contains(name))
    }

    /// Characters of the prefix; a trailing slash says nothing.
    fn prefix_length(&self) -> usize {
        let prefix = self.path.map_or("/", |(_, prefix)| prefix);
        prefix.trim_end_matches('/').len().max(1)
    }

    fn is(&self, type_: &str) -> bool {
        self.path.is_some_and(|(found, _)| found == type_)
    }

    fn json(&self) -> Value {
        let values = |names: &[&str]| -> Vec<Value> {
            names
                .iter()
                .map(|name| json!({"name": name, "value": "1"}))
                .collect()
        };
        let mut entry =
            json!({"headers": values(&self.headers), "queryParams": values(&self.params)});
        if let Some((type_, value)) = self.path {
            entry["path"] = json!({"type": type_, "value": value});
        }
        if let Some(method) = self.method {
            entry["method"] = json!(method);
        }
        entry
    }
}

impl Route {
    fn object(&self) -> Object {
        let rule = |matches: &Vec<Match>| {
            let matches: Vec<_> = matches.iter().map(Match::json).collect();
            json!({"matches": matches, "backendRefs": [{"name": "v1", "port": 80}]})
        };
        let rules: Vec<_> = self.rules.iter().map(rule).collect();
        let mut metadata = json!({"namespace": "shop", "name": self.name});
        if let Some(created) = self.created {
            metadata["creationTimestamp"] = json!(created);
        }
        object(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata,
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "checkout", "port": 80}], "rules": rules},
        }))
    }
}

/// The standard's text, line by line.
fn winner(routes: &[Route], request: &Request) -> Option<(String, usize)> {
    let mut left: Vec<Found<'_>> = Vec::new();
    for route in routes {
        for (rule, matches) in route.rules.iter().enumerate() {
            for (entry, found) in matches.iter().enumerate() {
                if found.fits(request) {
                    left.push(Found {
                        route,
                        rule,
                        entry,
                        found,
                    });
                }
            }
        }
    }
    // "Exact" path match; then, weft's choice, "RegularExpression"; then the longest prefix.
    if left.iter().any(|it| it.found.is("Exact")) {
        left.retain(|it| it.found.is("Exact"));
    } else if left.iter().any(|it| it.found.is("RegularExpression")) {
        left.retain(|it| it.found.is("RegularExpression"));
    } else {
        keep_most(&mut left, |it| it.found.prefix_length());
    }
    // Method match; largest number of header matches; of query param matches.
    keep_most(&mut left, |it| it.found.method.map_or(0, |_| 1));
    keep_most(&mut left, |it| it.found.headers.len());
    keep_most(&mut left, |it| it.found.params.len());
    // The oldest route. (Objects without a date get the oldest there is.)
    let age = |it: &Found<'_>| it.route.created.unwrap_or("1970-01-01T00:00:00Z");
    let oldest = left.iter().map(age).min()?;
    left.retain(|it| age(it) == oldest);
    // The first in alphabetical order by {namespace}/{name}; the first rule; the first match.
    let first = left.iter().map(|it| it.route.name.clone()).min()?;
    left.retain(|it| it.route.name == first);
    left.sort_by_key(|it| (it.rule, it.entry));
    left.first().map(|it| (it.route.name.clone(), it.rule))
}

fn keep_most<'a>(left: &mut Vec<Found<'a>>, count: impl Fn(&Found<'a>) -> usize) {
    let most = left.iter().map(&count).max().unwrap_or_default();
    left.retain(|it| count(it) == most);
}

/// What a proxy does: the first match in the table that fits.
fn first_in_table(compiled: &Compiled, request: &Request) -> Option<(String, usize)> {
    let table = compiled.route_tables.get("shop/checkout/80")?;
    let Some(Table::Http(http)) = &table.table else {
        panic!("{table:?}")
    };
    let found = http.matches.iter().find(|found| fits(found, request))?;
    let route = http.rules[found.rule as usize]
        .route
        .as_ref()
        .expect("a rule names its route");
    Some((route.name.clone(), route.rule_index as usize))
}

fn fits(found: &HttpMatch, request: &Request) -> bool {
    let path = match found.path.as_ref().and_then(|path| path.kind.as_ref()) {
        None => true,
        Some(path_match::Kind::Exact(path)) => request.path == path,
        Some(path_match::Kind::Regex(path)) => matches_whole(path, request.path),
        Some(path_match::Kind::Prefix(prefix)) => {
            let rest = request.path.strip_prefix(prefix.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    };
    let one = value_match::Kind::Exact("1".into());
    path && (found.method.is_empty() || found.method == request.method)
        && found
            .headers
            .iter()
            .all(|h| h.kind.as_ref() == Some(&one) && request.headers.contains(&h.name.as_str()))
        && found
            .query_params
            .iter()
            .all(|q| q.kind.as_ref() == Some(&one) && request.params.contains(&q.name.as_str()))
}

fn matches_whole(expression: &str, text: &str) -> bool {
    Regex::new(&format!("^(?:{expression})$"))
        .expect("the test's expressions compile")
        .is_match(text)
}

fn some_of(names: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(names, 0..=names.len())
}

prop_compose! {
    fn a_match()(
        path in proptest::option::weighted(0.8, prop_oneof![
            proptest::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/c"]).prop_map(|p| ("PathPrefix", p)),
            proptest::sample::select(vec!["/a", "/a/b", "/a/", "/c"]).prop_map(|p| ("Exact", p)),
            proptest::sample::select(vec!["/a.*", "/.*", "/a/b"]).prop_map(|p| ("RegularExpression", p)),
        ]),
        method in proptest::option::of(proptest::sample::select(vec!["GET", "POST"])),
        headers in some_of(&["x", "y"]),
        params in some_of(&["p", "q"]),
    ) -> Match {
        Match { path, method, headers, params }
    }
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let dates = vec![
        "2026-01-02T00:00:00Z",
        "2026-01-01T00:00:00Z",
        "2025-12-31T23:59:59Z",
    ];
    let rules = proptest::collection::vec(proptest::collection::vec(a_match(), 1..3), 1..3);
    let route = (proptest::option::of(proptest::sample::select(dates)), rules);
    proptest::collection::vec(route, 1..5).prop_map(|routes| {
        let named = |(index, (created, rules))| Route {
            name: format!("r{index}"),
            created,
            rules,
        };
        routes.into_iter().enumerate().map(named).collect()
    })
}

prop_compose! {
    fn a_request()(
        path in proptest::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/c/d", "/ab", "/c"]),
        method in proptest::sample::select(vec!["GET", "POST", "PUT"]),
        headers in some_of(&["x", "y"]),
        params in some_of(&["p", "q"]),
    ) -> Request {
        Request { path, method, headers, params }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_first_match_of_a_table_is_the_one_that_the_text_chooses(
        routes in routes(),
        requests in proptest::collection::vec(a_request(), 8),
    ) {
        let compiled = compile(&routes.iter().map(Route::object).collect::<Vec<_>>());
        for request in requests {
            prop_assert_eq!(first_in_table(&compiled, &request), winner(&routes, &request), "{:?}", request);
        }
    }

    #[test]
    fn a_table_does_not_depend_on_the_order_in_which_its_routes_came(
        routes in routes().prop_flat_map(|routes| (Just(routes.clone()), Just(routes).prop_shuffle())),
    ) {
        let compiled = |routes: &[Route]| {
            compile(&routes.iter().map(Route::object).collect::<Vec<_>>())
        };
        prop_assert_eq!(compiled(&routes.0), compiled(&routes.1));
    }
}

#[test]
fn names_decide_between_routes_of_one_age_and_dates_are_compared_as_times() {
    let dated = |name: &str, date: &str| {
        route(
            "HTTPRoute",
            &format!("{{metadata: {{name: {name}, creationTimestamp: {date}}}, rules: [{{}}]}}"),
        )
    };
    let order = |routes: &[Object]| -> Vec<String> {
        let found = lines(&compile(routes), "shop/checkout/80");
        found
            .iter()
            .filter_map(|line| Some(line.split_once("shop/")?.1.split('[').next()?.to_owned()))
            .collect()
    };
    // 01:00 at +02:00 is before 00:00 at UTC.
    assert_eq!(
        order(&[
            dated("a", "2026-01-01T00:00:00Z"),
            dated("b", "2026-01-01T01:00:00+02:00")
        ]),
        ["b", "a"]
    );
    assert_eq!(
        order(&[
            dated("b", "2026-01-01T00:00:00Z"),
            dated("a", "2026-01-01T00:00:00Z")
        ]),
        ["a", "b"]
    );
    // No date that can be read: the youngest.
    assert_eq!(
        order(&[dated("a", "yesterday"), dated("b", "2026-01-01T00:00:00Z")]),
        ["b", "a"]
    );
}
