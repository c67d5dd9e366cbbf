//! Manifests as users write them. In: files, folders, or texts. Out: objects with where they came
//! from, and per document that can't be used an error that names file, document and field.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use weft_source::{ObjectKey, folder::parse_with_origins};

/// A text of documents and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Text {
    pub(crate) origin: String,
    pub(crate) text: String,
}

/// A document that can be used.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) file: String,
    /// The file and the document in it.
    pub(crate) origin: String,
    pub(crate) key: ObjectKey,
    pub(crate) value: Value,
}

/// A document that can't be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Invalid {
    /// The file (or other origin) that holds it.
    pub(crate) file: String,
    /// Names file, document and field.
    pub(crate) message: String,
}

/// What texts hold.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Parsed {
    pub(crate) documents: Vec<Document>,
    pub(crate) errors: Vec<Invalid>,
}

/// Reads files, and folders with everything in them that ends in .yaml, .yml or .json; `-` is
/// standard input.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Text>, String> {
    let mut texts = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            let text = io::read_to_string(io::stdin()).map_err(|e| format!("stdin: {e}"))?;
            texts.push(Text {
                origin: "stdin".into(),
                text,
            });
            continue;
        }
        let say = |error: io::Error| format!("{}: {error}", path.display());
        if fs::metadata(path).map_err(say)?.is_dir() {
            let mut files = Vec::new();
            collect(path, &mut files).map_err(say)?;
            files.sort();
            for file in files {
                texts.push(read_file(&file)?);
            }
        } else {
            texts.push(read_file(path)?);
        }
    }
    Ok(texts)
}

fn read_file(path: &Path) -> Result<Text, String> {
    let origin = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| format!("{origin}: {error}"))?;
    Ok(Text { origin, text })
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().and_then(|e| e.to_str());
        if hidden {
            continue;
        } else if path.is_dir() {
            collect(&path, files)?;
        } else if matches!(extension, Some("yaml" | "yml" | "json")) {
            files.push(path);
        }
    }
    Ok(())
}

/// Reads the documents of texts, each alone. What the API server or the lab would refuse is an error.
pub(crate) fn parse(texts: &[Text]) -> Parsed {
    parse_with(texts, |key, value| {
        check(key, value).and_then(|()| check_for_lab(key, value))
    })
}

/// Reads the documents of texts, each alone, with a check of their own.
pub(crate) fn parse_with(
    texts: &[Text],
    check: impl Fn(&ObjectKey, &Value) -> Result<(), String>,
) -> Parsed {
    let mut parsed = Parsed::default();
    for Text { origin: file, text } in texts {
        for (origin, result) in parse_with_origins(text, file) {
            let mut fail = |message| {
                parsed.errors.push(Invalid {
                    file: file.clone(),
                    message,
                });
            };
            let object = match result {
                Ok(object) => object,
                Err(error) => {
                    fail(error.to_string());
                    continue;
                }
            };
            match check(&object.key, &object.value) {
                Ok(()) => parsed.documents.push(Document {
                    file: file.clone(),
                    origin,
                    key: object.key,
                    value: Value::clone(&object.value),
                }),
                Err(why) => fail(format!("{origin}: {}: {why}", object.key)),
            }
        }
    }
    parsed
}

/// Checks what the API server would refuse.
pub(crate) fn check(key: &ObjectKey, value: &Value) -> Result<(), String> {
    check_name(&key.name).map_err(|why| format!("metadata.name: {why}"))?;
    if !key.namespace.is_empty() {
        check_name(&key.namespace).map_err(|why| format!("metadata.namespace: {why}"))?;
    }
    match (key.group.as_str(), key.kind.as_str()) {
        ("", "Namespace") => decodes::<Namespace>(value),
        ("", "ServiceAccount") => decodes::<ServiceAccount>(value),
        ("", "Pod") => decodes::<Pod>(value),
        ("", "Service") => decodes::<Service>(value),
        ("discovery.k8s.io", "EndpointSlice") => decodes::<EndpointSlice>(value),
        ("apps", "Deployment") => decodes::<Deployment>(value),
        ("gateway.networking.k8s.io", "HTTPRoute") => {
            route::<gateway_api::httproutes::HttpRoute>(value)
        }
        ("gateway.networking.k8s.io", "GRPCRoute") => {
            route::<gateway_api::grpcroutes::GrpcRoute>(value)
        }
        _ => Ok(()),
    }
}

/// Checks what the lab needs to run it.
fn check_for_lab(key: &ObjectKey, value: &Value) -> Result<(), String> {
    match (key.group.as_str(), key.kind.as_str()) {
        ("", "Pod") => check_containers(&value["spec"], "spec"),
        ("apps", "Deployment") => check_selector(value),
        _ => Ok(()),
    }
}

fn decodes<T: DeserializeOwned>(value: &Value) -> Result<(), String> {
    let result: Result<T, _> = serde_path_to_error::deserialize(value);
    result
        .map(drop)
        .map_err(|error| match error.path().to_string().as_str() {
            "." => error.inner().to_string(),
            path => format!("{path}: {}", error.inner()),
        })
}

/// A route's fields must have the right types; an enumeration may have values that weft does not
/// know yet, about which the route's status will speak.
fn route<T: DeserializeOwned>(value: &Value) -> Result<(), String> {
    let mut value = value.clone();
    weft_source::defaults::apply(&mut value);
    match decodes::<T>(&value) {
        Err(why) if why.contains("unknown variant") => Ok(()),
        result => result,
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.len() <= 253
        && name.chars().all(allowed)
        && ends(name.chars().next())
        && ends(name.chars().last())
    {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no DNS subdomain: use lower case letters, digits, - and ."
    ))
}

fn check_containers(spec: &Value, path: &str) -> Result<(), String> {
    let containers = spec["containers"].as_array().map_or(0, Vec::len);
    if containers == 0 {
        return Err(format!("{path}.containers: a pod needs at least one"));
    }
    Ok(())
}

fn check_selector(deployment: &Value) -> Result<(), String> {
    let spec = &deployment["spec"];
    check_containers(&spec["template"]["spec"], "spec.template.spec")?;
    let wanted = spec["selector"]["matchLabels"].as_object();
    let labels = &spec["template"]["metadata"]["labels"];
    match wanted {
        Some(wanted)
            if wanted
                .iter()
                .any(|(key, value)| labels.get(key) != Some(value)) =>
        {
            Err("spec.selector does not match spec.template.metadata.labels".into())
        }
        Some(wanted) if !wanted.is_empty() => Ok(()),
        _ => Err("spec.selector.matchLabels: the lab needs at least one label".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_one(text: &str) -> Parsed {
        parse(&[Text {
            origin: "a.yaml".into(),
            text: text.into(),
        }])
    }

    #[test]
    fn a_malformed_document_is_named_and_spoils_no_other() {
        let parsed = parse_one(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: eighty}]}\n---\n\
             kind: [\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n",
        );
        let names: Vec<_> = parsed
            .documents
            .iter()
            .map(|d| d.key.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(parsed.errors.len(), 2, "{:?}", parsed.errors);
        let error = &parsed.errors[0].message;
        assert!(
            error.starts_with("a.yaml (document 2): Service default/s: "),
            "{error}"
        );
        assert!(error.contains("spec.ports[0].port"), "{error}");
        assert!(
            parsed.errors[1].message.contains("a.yaml (document 3)"),
            "{:?}",
            parsed.errors
        );
    }

    #[test]
    fn a_routes_types_are_checked_but_not_its_enumerations() {
        let route = |weight: &str, kind: &str| {
            let text = format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\n\
                 spec:\n  rules:\n  - matches: [{{path: {{type: {kind}, value: /}}}}]\n    \
                 backendRefs: [{{name: s, port: 80, weight: {weight}}}]\n"
            );
            parse_one(&text).errors
        };
        assert_eq!(route("1", "PathPrefix"), []);
        assert_eq!(route("1", "NotKnownYet"), []);
        let errors = route("ten", "PathPrefix");
        assert!(
            errors[0]
                .message
                .contains("spec.rules[0].backendRefs[0].weight"),
            "{errors:?}"
        );
    }

    #[test]
    fn what_the_api_server_refuses_is_refused() {
        let cases = [
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: Bad_Name}\nspec: {containers: [{name: c}]}",
                "metadata.name",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}",
                "spec.containers",
            ),
            (
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  selector: {matchLabels: {a: b}}\n  \
                 template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c}]}}",
                "spec.selector",
            ),
        ];
        for (text, expected) in cases {
            let parsed = parse_one(text);
            assert!(
                parsed.errors[0].message.contains(expected),
                "{:?}",
                parsed.errors
            );
        }
    }

    #[test]
    fn folders_are_read_with_everything_in_them() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        for name in ["b.yaml", "a.yml", "sub/c.json", "d.txt", ".e.yaml"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let texts = read(&[folder.path().to_owned()]).unwrap();
        let names: Vec<_> = texts
            .iter()
            .map(|t| t.origin.rsplit('/').next().unwrap())
            .collect();
        assert_eq!(names, ["a.yml", "b.yaml", "c.json"]);
        assert!(
            read(&["/does/not/exist".into()])
                .unwrap_err()
                .contains("/does/not/exist")
        );
    }
}
