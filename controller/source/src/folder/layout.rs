//! Which file holds what, as paths relative to the folder's root. Pure.

use std::path::{Component, Path, PathBuf};

use crate::ObjectKey;

pub(super) const MANIFESTS: &str = "manifests";
pub(super) const STATUS: &str = "status";
pub(super) const ANNOTATIONS: &str = "annotations";
/// Stands for the namespace of cluster-scoped objects.
const NO_NAMESPACE: &str = "_";

/// What a file is read as.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Role {
    Manifest,
    Status(ObjectKey),
    Annotations(ObjectKey),
}

/// What the file at this path is; none for files that are not read.
pub(super) fn role(path: &Path) -> Option<Role> {
    if is_hidden(path) {
        return None;
    }
    let extension = path.extension()?.to_str()?;
    match component(path, 0)? {
        MANIFESTS => matches!(extension, "yaml" | "yml" | "json").then_some(Role::Manifest),
        STATUS => overlay_key(path).map(Role::Status),
        ANNOTATIONS => overlay_key(path).map(Role::Annotations),
        _ => None,
    }
}

pub(super) fn is_read(path: &Path) -> bool {
    role(path).is_some()
}

/// Whether the last component is hidden: editors' and our own temporary files.
pub(super) fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Whether a folder may hold files that are read.
pub(super) fn is_followed(folder: &Path) -> bool {
    match component(folder, 0) {
        None => true,
        Some(top) => [MANIFESTS, STATUS, ANNOTATIONS].contains(&top) && !is_hidden(folder),
    }
}

pub(super) fn status_path(key: &ObjectKey) -> Option<PathBuf> {
    overlay_path(STATUS, key)
}

pub(super) fn annotations_path(key: &ObjectKey) -> Option<PathBuf> {
    overlay_path(ANNOTATIONS, key)
}

/// Whether a name can be part of a path, as the API server demands of names too.
pub(super) fn is_path_segment(name: &str) -> bool {
    !name.is_empty() && !matches!(name, "." | "..") && !name.contains(['/', '%', '\0'])
}

fn overlay_path(top: &str, key: &ObjectKey) -> Option<PathBuf> {
    let namespace = if key.namespace.is_empty() {
        NO_NAMESPACE
    } else {
        &key.namespace
    };
    let parts = [
        &format!("{}.{}", key.kind, key.group),
        namespace,
        &format!("{}.json", key.name),
    ];
    let safe = parts
        .iter()
        .all(|part| is_path_segment(part) && !part.starts_with('.'));
    safe.then(|| [top].into_iter().chain(parts.map(|p| p as &str)).collect())
}

fn overlay_key(path: &Path) -> Option<ObjectKey> {
    let (kind, group) = component(path, 1)?.split_once('.')?;
    let namespace = component(path, 2)?;
    let name = component(path, 3)?.strip_suffix(".json")?;
    let deeper = component(path, 4).is_some();
    (!deeper && !kind.is_empty() && !name.is_empty()).then(|| ObjectKey {
        group: group.to_owned(),
        kind: kind.to_owned(),
        namespace: if namespace == NO_NAMESPACE {
            String::new()
        } else {
            namespace.to_owned()
        },
        name: name.to_owned(),
    })
}

fn component(path: &Path, index: usize) -> Option<&str> {
    match path.components().nth(index)? {
        Component::Normal(name) => name.to_str(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlays_path_leads_back_to_its_object() {
        for (group, kind, namespace, name) in [
            ("", "Pod", "shop", "cart-1"),
            ("", "Node", "", "n1"),
            ("gateway.networking.k8s.io", "HTTPRoute", "shop", "a.b.c"),
        ] {
            let [group, kind, namespace, name] = [group, kind, namespace, name].map(str::to_owned);
            let key = ObjectKey {
                group,
                kind,
                namespace,
                name,
            };
            assert_eq!(
                role(&status_path(&key).unwrap()),
                Some(Role::Status(key.clone()))
            );
            assert_eq!(
                role(&annotations_path(&key).unwrap()),
                Some(Role::Annotations(key))
            );
        }
    }

    #[test]
    fn a_name_never_leads_out_of_the_folder() {
        for name in ["..", "../x", "a/b", ".hidden", ""] {
            let key = ObjectKey {
                group: String::new(),
                kind: "Pod".into(),
                namespace: name.into(),
                name: name.into(),
            };
            if name.is_empty() {
                continue; // no namespace: cluster scoped
            }
            assert_eq!(status_path(&key), None, "{name}");
        }
    }

    #[test]
    fn only_files_with_known_places_and_endings_are_read() {
        for (path, read) in [
            ("manifests/a.yaml", true),
            ("manifests/deep/er/a.yml", true),
            ("manifests/a.json", true),
            ("manifests/a.txt", false),
            ("manifests/.a.yaml", false),
            ("other/a.yaml", false),
            ("status/Pod./ns/a.json", true),
            ("status/Pod./ns/a.yaml", false),
            ("status/Pod/ns/a.json", false),
            ("status/Pod./ns/deeper/a.json", false),
        ] {
            assert_eq!(is_read(Path::new(path)), read, "{path}");
        }
    }
}
