//! `weft route lint` as a program: arguments, standard input, exit codes; and the manifests and
//! documents of this repository. Needs neither root nor a cluster.

#![allow(clippy::unwrap_used, reason = "a failed test is what they are for")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

struct Output {
    out: String,
    err: String,
    code: i32,
}

/// Runs `weft route lint` in a folder.
fn lint_in(folder: &Path, args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["route", "lint"])
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A run that reads no standard input may have ended.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    Output {
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code().unwrap(),
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: other}
spec: {ports: [{name: grpc, port: 80}]}
";

fn route(kind: &str, name: &str, parent: &str, rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  parentRefs: [{parent}]\n  rules: [{rule}]\n"
    )
}

const AT_A: &str = "{group: '', kind: Service, name: a}";
const TO_A: &str = "{backendRefs: [{name: a, port: 80}]}";

#[test]
fn the_exit_code_and_the_count_say_how_the_routes_are() {
    let bad = "{matches: [{path: {type: RegularExpression, value: '/['}}], backendRefs: [{name: a, port: 80}]}";
    let gateway = "{name: gateway}";
    let nobody = "{backendRefs: [{name: nobody, port: 80}]}";
    let abroad = "{backendRefs: [{name: b, namespace: other, port: 80}]}";
    let conflict = [
        route("HTTPRoute", "h", AT_A, TO_A),
        route("GRPCRoute", "g", AT_A, TO_A),
    ]
    .join("---\n");
    let cases = [
        (
            "a good route",
            route("HTTPRoute", "r", AT_A, TO_A),
            0,
            "routes: 1 fine, 0 with problems",
        ),
        (
            "a GRPCRoute",
            route("GRPCRoute", "r", AT_A, TO_A),
            0,
            "ResolvedRefs      True",
        ),
        (
            "a backend of another namespace",
            route("HTTPRoute", "r", AT_A, abroad),
            0,
            "all backendRefs resolve",
        ),
        (
            "a route of a Gateway",
            route("HTTPRoute", "r", gateway, TO_A),
            0,
            "routes: 0 fine, 0 with problems, 1 not of a Service",
        ),
        (
            "a bad regular expression",
            route("HTTPRoute", "r", AT_A, bad),
            1,
            "error: unclosed character class",
        ),
        (
            "a missing backend",
            route("HTTPRoute", "r", AT_A, nobody),
            1,
            "Service shop/nobody does not exist",
        ),
        (
            "two kinds on one port",
            conflict,
            1,
            "GRPCRoute shop/g takes precedence on port 80",
        ),
        (
            "malformed YAML",
            "kind: [\n".into(),
            2,
            "✗ routes.yaml: is neither YAML nor JSON",
        ),
    ];
    for (what, routes, code, expected) in cases {
        let folder = folder(&[("services.yaml", SERVICES), ("routes.yaml", &routes)]);
        let output = lint_in(folder.path(), &["services.yaml", "routes.yaml"], "");
        let Output {
            out,
            err,
            code: found,
        } = output;
        assert_eq!(found, code, "{what}: {out}{err}");
        assert!(out.contains(expected), "{what}: {out}{err}");
    }
}

#[test]
fn files_folders_and_standard_input_are_one_cluster() {
    let folder = folder(&[
        ("cluster/services.yaml", SERVICES),
        ("cluster/README.txt", "no manifest"),
        (
            "grpc.json",
            r#"{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute",
            "metadata": {"name": "g", "namespace": "other"},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "b"}],
                     "rules": [{"backendRefs": [{"name": "b", "port": 80}]}]}}"#,
        ),
    ]);
    let stdin = route("HTTPRoute", "r", AT_A, TO_A);
    let output = lint_in(folder.path(), &["-", "cluster", "grpc.json"], &stdin);
    assert_eq!(output.code, 0, "{}{}", output.out, output.err);
    assert!(
        output
            .out
            .contains("HTTPRoute shop/r at Service shop/a  (stdin)"),
        "{}",
        output.out
    );
    assert!(
        output.out.ends_with("\nroutes: 2 fine, 0 with problems\n"),
        "{}",
        output.out
    );
}

#[test]
fn json_is_for_programs_with_the_same_exit_codes() {
    let stdin = route("HTTPRoute", "r", AT_A, TO_A);
    let folder = folder(&[]);
    let output = lint_in(folder.path(), &["-", "--output", "json"], &stdin);
    assert_eq!(output.code, 1, "{}{}", output.out, output.err);
    let report: Value = serde_json::from_str(&output.out).unwrap();
    let first = &report["routes"][0]["parents"][0]["conditions"][0];
    assert_eq!(first["type"], "Accepted");
    assert_eq!(first["status"], "False");
    assert_eq!(first["reason"], "NoMatchingParent");

    let assumed = lint_in(
        folder.path(),
        &["-", "-o", "json", "--assume-services"],
        &stdin,
    );
    assert_eq!(assumed.code, 0, "{}{}", assumed.out, assumed.err);
    let report: Value = serde_json::from_str(&assumed.out).unwrap();
    assert_eq!(report["notes"][0], "assumed: Service shop/a with port 80");
}

#[test]
fn wrong_usage_and_files_that_are_not_there_are_2() {
    let folder = folder(&[]);
    let none = lint_in(folder.path(), &[], "");
    assert_eq!(none.code, 2, "{}", none.err);
    let missing = lint_in(folder.path(), &["nothing.yaml"], "");
    assert_eq!(missing.code, 2, "{}", missing.err);
    assert!(
        missing.err.starts_with("weft: nothing.yaml: "),
        "{}",
        missing.err
    );
    let help = lint_in(folder.path(), &["--help"], "");
    assert_eq!(help.code, 0);
    assert!(
        help.out.contains("weft route lint manifests/"),
        "{}",
        help.out
    );
}

#[test]
fn the_manifests_of_the_demo_and_the_tests_are_clean() {
    let demo = [
        "canary-90-10.yaml",
        "canary-50-50.yaml",
        "canary-header.yaml",
    ];
    let demo = demo.map(|canary| format!("cli/demo/{canary}"));
    let shop = "cli/demo/shop.yaml";
    let cases = demo
        .iter()
        .map(|canary| (vec![shop, "cli/demo/plain.yaml", canary], "routes: 1 fine"));
    let tests = [
        "shop.yaml",
        "lives.yaml",
        "probes.yaml",
        "rogue.yaml",
        "tenants.yaml",
    ]
    .map(|name| format!("tests/lab/manifests/{name}"));
    let tests = tests.iter().map(|file| (vec![file.as_str()], "routes: "));
    for (args, expected) in cases.chain(tests) {
        let output = lint_in(&repository(), &args, "");
        assert_eq!(output.code, 0, "{args:?}: {}{}", output.out, output.err);
        assert!(output.out.contains(expected), "{args:?}: {}", output.out);
    }
}

/// The conditions that the compiler decides; what speaks of proxies is not lint's.
const COMPILED: [&str; 3] = ["Accepted", "ResolvedRefs", "PartiallyInvalid"];

#[test]
fn lint_says_of_the_case_tables_routes_what_their_status_says_in_a_lab() {
    let mut compared = 0;
    for entry in fs::read_dir(repository().join("tests/cases")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let table: Value = serde_yaml_ng::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": table["manifests"]});
        let args = ["tests/lab/manifests/shop.yaml", "-", "-o", "json"];
        let output = lint_in(&repository(), &args, &list.to_string());
        let report: Value = serde_json::from_str(&output.out).unwrap();
        let routes = report["routes"].as_array().unwrap();
        for wanted in table["statuses"].as_array().into_iter().flatten() {
            let text = |field: &str| wanted[field].as_str().unwrap_or_default();
            if !text("kind").ends_with("route") || !COMPILED.contains(&text("type")) {
                continue;
            }
            let found = routes
                .iter()
                .filter(|route| {
                    let kind = route["kind"].as_str().unwrap().to_lowercase();
                    kind == text("kind")
                        && route["namespace"] == wanted["namespace"]
                        && route["name"] == wanted["name"]
                })
                .flat_map(|route| route["parents"].as_array().unwrap())
                .flat_map(|parent| parent["conditions"].as_array().unwrap());
            let fits = |condition: &&Value| {
                condition["type"] == wanted["type"]
                    && condition["status"] == wanted["status"]
                    && (wanted["reason"].is_null() || condition["reason"] == wanted["reason"])
                    && condition["message"]
                        .as_str()
                        .unwrap()
                        .contains(text("mentions"))
            };
            let found: Vec<&Value> = found.collect();
            assert!(
                found.iter().any(fits),
                "{}: {wanted}: {found:#?}{}",
                path.display(),
                output.err
            );
            compared += 1;
        }
    }
    assert!(compared >= 7, "{compared} statuses were compared");
}

/// The fenced blocks of a language below a heading of a document.
fn blocks(document: &str, heading: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join(document)).unwrap();
    let section = text.split(&format!("\n{heading}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut blocks = section.split("\n```");
    blocks.next();
    blocks
        .step_by(2)
        .filter_map(|block| {
            let (found, body) = block.split_once('\n')?;
            (found == language).then(|| format!("{body}\n"))
        })
        .collect()
}

#[test]
fn the_readmes_canary_is_clean() {
    let canary = blocks("README.md", "## A canary in twenty lines", "yaml");
    let folder = folder(&[]);
    let output = lint_in(folder.path(), &["--assume-services", "-"], &canary[0]);
    assert_eq!(output.code, 0, "{}{}", output.out, output.err);
    assert!(output.out.contains("routes: 1 fine"), "{}", output.out);
}

#[test]
fn what_the_documentation_shows_is_what_it_says() {
    const SECTION: &str = "## Before it is applied: `weft route lint`";
    let routes = blocks("docs/routes.md", SECTION, "yaml");
    let sessions = blocks("docs/routes.md", SECTION, "");
    let folder = folder(&[("routes.yaml", &routes[0])]);
    assert!(!sessions.is_empty());
    for session in sessions {
        let (command, expected) = session.split_once('\n').unwrap();
        let args = command.strip_prefix("$ weft route lint ").unwrap();
        let args: Vec<&str> = args.split(' ').collect();
        let output = lint_in(folder.path(), &args, "");
        assert_eq!(output.out, expected, "{command}{}", output.err);
    }
}
