//! The folder as its users see it: files in, events out.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::mpsc::Receiver, time::timeout};
use weft_api::names::CONTROLLER_NAME;

use super::*;
use crate::{Scope, Writer, open};

/// What a reader of events knows.
#[derive(Default, Debug, PartialEq)]
struct Seen {
    objects: BTreeMap<ObjectKey, Value>,
    invalid: BTreeMap<String, String>,
}

impl Seen {
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Applied(object) => {
                let old = self.objects.insert(object.key, (*object.value).clone());
                assert_ne!(
                    old.as_ref(),
                    Some(&*object.value),
                    "an unchanged object was told"
                );
            }
            Event::Deleted(key) => {
                assert!(self.objects.remove(&key).is_some(), "{key} was never told");
            }
            Event::Invalid { origin, error } => {
                self.invalid.insert(origin, error);
            }
            Event::Valid { origin } => {
                assert!(
                    self.invalid.remove(&origin).is_some(),
                    "{origin} was never told"
                );
            }
            Event::Synced => return true,
        }
        false
    }

    /// Follows events until the condition holds.
    async fn wait(&mut self, events: &mut Receiver<Event>, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            let event = timeout(Duration::from_secs(10), events.recv()).await;
            self.take(
                event
                    .unwrap_or_else(|_| panic!("waited in vain; seen: {self:#?}"))
                    .unwrap(),
            );
        }
    }

    fn names(&self) -> Vec<&str> {
        self.objects.keys().map(|key| key.name.as_str()).collect()
    }
}

async fn synced(folder: &Path) -> (Seen, Receiver<Event>) {
    let mut events = FolderSource::new(folder).watch().await.unwrap();
    let mut seen = Seen::default();
    while !seen.take(events.recv().await.unwrap()) {}
    (seen, events)
}

fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("manifests")).unwrap();
    folder
}

fn account(name: &str, version: u32) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, annotations: {{v: '{version}'}}}}\n"
    )
}

fn key(kind: &str, name: &str) -> ObjectKey {
    let group = if kind == "HTTPRoute" {
        "gateway.networking.k8s.io"
    } else {
        ""
    };
    ObjectKey {
        group: group.into(),
        kind: kind.into(),
        namespace: "default".into(),
        name: name.into(),
    }
}

fn version(value: &Value) -> &str {
    value
        .pointer("/metadata/annotations/v")
        .and_then(Value::as_str)
        .unwrap()
}

#[test]
fn documents_are_read_alone_and_lists_are_expanded() {
    let text = "\
%YAML 1.2
---
# nothing here
---
apiVersion: v1
kind: Pod
metadata: {name: a}
--- # a comment
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: ns, namespace: ignored}}
- {apiVersion: v1, kind: Pod, metadata: {}}
---
a: [
---
{\"apiVersion\": \"apps/v1\", \"kind\": \"Deployment\", \"metadata\": {\"name\": \"d\", \"namespace\": \"x\"}}
---
apiVersion: v1
kind: PodList
items:
- metadata: {name: b}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data:
  text: |
    --- not a document
";
    let found = parse_documents(text, "f.yaml");
    let keys: Vec<String> = found.iter().flatten().map(|o| o.key.to_string()).collect();
    assert_eq!(
        keys,
        [
            "Pod default/a",
            "Namespace ns",
            "Deployment x/d",
            "Pod default/b",
            "ConfigMap default/c"
        ]
    );
    let errors: Vec<String> = found
        .iter()
        .filter_map(|r| r.as_ref().err())
        .map(ToString::to_string)
        .collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert_eq!(
        errors[0],
        "f.yaml (document 2) (item 2): Pod has no metadata.name; add it"
    );
    assert!(
        errors[1].starts_with("f.yaml (document 3): is neither YAML nor JSON")
            && errors[1].contains("at line 16 column 1"),
        "{}",
        errors[1]
    );
}

#[test]
fn what_is_no_object_is_told_with_the_reason() {
    for (text, expected) in [
        ("hello", "is not an object"),
        ("[1, 2]", "is not an object"),
        ("kind: Pod", "has no apiVersion"),
        ("apiVersion: v1", "has no kind"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {generateName: a-}}",
            "generateName",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: 1}}",
            "must be a string",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a/b}}",
            "no valid name",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: ..}}",
            "no valid name",
        ),
        ("a: 1\na: 2", "duplicate"),
        ("{\"apiVersion\": ", "neither YAML nor JSON"),
    ] {
        let found = parse_documents(text, "f");
        let error = found[0].as_ref().unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert!(parse_documents("", "f").is_empty());
    assert!(parse_documents("# only a comment\n---\n", "f").is_empty());
    let merged = "x: &x {a: 1}\ny:\n  <<: *x\napiVersion: v1\nkind: Pod\nmetadata: {name: a}";
    assert_eq!(
        parse_documents(merged, "f")[0].as_ref().unwrap().value["y"],
        json!({"a": 1})
    );
}

#[tokio::test]
async fn a_folder_is_told_with_defaults_and_then_followed() {
    let folder = folder();
    let file = |name: &str| folder.path().join("manifests").join(name);
    fs::write(file("a.yaml"), account("a", 1)).unwrap();
    fs::write(file("ignored.txt"), account("x", 1)).unwrap();
    let (mut seen, mut events) = synced(folder.path()).await;
    assert_eq!(seen.names(), ["a"]);
    assert_eq!(
        seen.objects[&key("ServiceAccount", "a")]["metadata"]["namespace"],
        "default"
    );

    // A new folder with a file in it, a rewrite in place, a replacement by rename, a removal.
    fs::create_dir_all(file("deep/er")).unwrap();
    fs::write(file("deep/er/b.yaml"), account("b", 1)).unwrap();
    seen.wait(&mut events, |s| s.names() == ["a", "b"]).await;
    fs::write(file("a.yaml"), account("a", 2)).unwrap();
    seen.wait(&mut events, |s| {
        version(&s.objects[&key("ServiceAccount", "a")]) == "2"
    })
    .await;
    fs::write(file(".a.tmp"), account("a", 3)).unwrap();
    fs::rename(file(".a.tmp"), file("a.yaml")).unwrap();
    seen.wait(&mut events, |s| {
        version(&s.objects[&key("ServiceAccount", "a")]) == "3"
    })
    .await;
    fs::rename(file("deep"), file("renamed")).unwrap();
    fs::write(file("renamed/er/b.yaml"), account("b", 2)).unwrap();
    seen.wait(&mut events, |s| {
        s.objects
            .get(&key("ServiceAccount", "b"))
            .is_some_and(|b| version(b) == "2")
    })
    .await;
    fs::remove_dir_all(file("renamed")).unwrap();
    seen.wait(&mut events, |s| s.names() == ["a"]).await;
    fs::hard_link(file("ignored.txt"), file("linked.yaml")).unwrap();
    seen.wait(&mut events, |s| s.names() == ["a", "x"]).await;
}

#[tokio::test]
async fn a_change_is_told_within_a_fraction_of_a_second() {
    let folder = folder();
    let path = folder.path().join("manifests/a.yaml");
    fs::write(&path, account("a", 0)).unwrap();
    let (mut seen, mut events) = synced(folder.path()).await;
    let mut delays = Vec::new();
    for i in 1..=20 {
        let start = std::time::Instant::now();
        fs::write(&path, account("a", i)).unwrap();
        let wanted = i.to_string();
        seen.wait(&mut events, |s| {
            version(&s.objects[&key("ServiceAccount", "a")]) == wanted
        })
        .await;
        delays.push(start.elapsed());
    }
    delays.sort();
    assert!(
        delays[10] < Duration::from_millis(50),
        "median {:?}",
        delays[10]
    );
}

#[tokio::test]
async fn rapid_rewrites_end_in_the_last_state() {
    let folder = folder();
    let path = folder.path().join("manifests/a.yaml");
    fs::write(&path, account("a", 0)).unwrap();
    let (mut seen, mut events) = synced(folder.path()).await;
    let writer = std::thread::spawn(move || {
        for i in 1..=2000 {
            fs::write(&path, account("a", i)).unwrap();
        }
    });
    seen.wait(&mut events, |s| {
        s.objects
            .get(&key("ServiceAccount", "a"))
            .is_some_and(|a| version(a) == "2000")
    })
    .await;
    writer.join().unwrap();
    assert!(seen.invalid.is_empty(), "{seen:?}");
}

#[tokio::test]
async fn bad_input_loses_nothing_and_is_told() {
    let folder = folder();
    let path = folder.path().join("manifests/a.yaml");
    let good = format!("{}---\n{}", account("a", 1), account("b", 1));
    fs::write(&path, &good).unwrap();
    let (mut seen, mut events) = synced(folder.path()).await;
    // b's document breaks while a's changes.
    fs::write(&path, format!("{}---\nkind: [", account("a", 2))).unwrap();
    seen.wait(&mut events, |s| !s.invalid.is_empty()).await;
    assert_eq!(seen.names(), ["a", "b"]);
    assert_eq!(version(&seen.objects[&key("ServiceAccount", "a")]), "2");
    assert!(
        seen.invalid.contains_key("manifests/a.yaml (document 2)"),
        "{seen:?}"
    );
    fs::write(&path, [0xff, 0xfe]).unwrap();
    seen.wait(&mut events, |s| s.invalid.contains_key("manifests/a.yaml"))
        .await;
    assert_eq!(seen.names(), ["a", "b"]);
    fs::write(&path, account("a", 3)).unwrap();
    seen.wait(&mut events, |s| s.invalid.is_empty() && s.names() == ["a"])
        .await;
}

#[tokio::test]
async fn of_two_files_with_one_object_the_first_by_path_counts() {
    let folder = folder();
    let file = |name: &str| folder.path().join("manifests").join(name);
    fs::write(file("b.yaml"), account("x", 2)).unwrap();
    fs::write(file("a.yaml"), account("x", 1)).unwrap();
    let (mut seen, mut events) = synced(folder.path()).await;
    seen.wait(&mut events, |s| s.invalid.contains_key("manifests/b.yaml"))
        .await;
    assert_eq!(version(&seen.objects[&key("ServiceAccount", "x")]), "1");
    assert!(
        seen.invalid["manifests/b.yaml"].contains("manifests/a.yaml"),
        "{seen:?}"
    );
    fs::remove_file(file("a.yaml")).unwrap();
    seen.wait(&mut events, |s| {
        s.invalid.is_empty() && version(&s.objects[&key("ServiceAccount", "x")]) == "2"
    })
    .await;
}

#[tokio::test]
async fn what_is_written_back_is_laid_over_the_manifest() {
    let folder = folder();
    let foreign = json!({"controllerName": "example.com/other", "parentRef": {"name": "s"}, "conditions": []});
    let manifest = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"},
        "spec": {},
        "status": {"parents": [foreign, {"controllerName": CONTROLLER_NAME, "parentRef": {"name": "stale"}}]},
    });
    let path = folder.path().join("manifests/r.json");
    fs::write(path, manifest.to_string()).unwrap();
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p, annotations: {a: b}}, status: {phase: Running, conditions: [{type: Ready, status: 'True'}]}}";
    fs::write(folder.path().join("manifests/p.yaml"), pod).unwrap();
    let (source, writer) = open(&format!("folder:{}", folder.path().display()), Scope::Mesh)
        .await
        .unwrap();
    let mut events = source.watch().await.unwrap();
    let mut seen = Seen::default();
    while !seen.take(events.recv().await.unwrap()) {}

    let (route, pod) = (key("HTTPRoute", "r"), key("Pod", "p"));
    let own = json!({"controllerName": CONTROLLER_NAME, "parentRef": {"name": "s"}, "conditions": [{"type": "Accepted"}]});
    writer
        .write_route_parents(&route, vec![own.clone()])
        .await
        .unwrap();
    seen.wait(&mut events, |s| {
        s.objects[&route]["status"]["parents"] == json!([foreign, own])
    })
    .await;

    let captured = |status: &str| json!({"type": "weft.dev/Captured", "status": status});
    writer
        .write_condition(&pod, captured("True"))
        .await
        .unwrap();
    writer
        .write_condition(&pod, captured("False"))
        .await
        .unwrap();
    let annotations = BTreeMap::from([("weft.dev/captured".to_owned(), Some("box".to_owned()))]);
    writer.annotate(&pod, annotations).await.unwrap();
    let expected = json!([{"type": "Ready", "status": "True"}, captured("False")]);
    seen.wait(&mut events, |s| {
        s.objects[&pod]["status"]["conditions"] == expected
            && s.objects[&pod]["metadata"]["annotations"]
                == json!({"a": "b", "weft.dev/captured": "box"})
    })
    .await;
    assert_eq!(
        *source.get(&pod).await.unwrap().unwrap().value,
        seen.objects[&pod]
    );

    // Taking everything back leaves no file behind; it needs no object, adding does.
    let nothing = BTreeMap::from([("weft.dev/captured".to_owned(), None)]);
    writer.annotate(&pod, nothing.clone()).await.unwrap();
    writer.write_route_parents(&route, vec![]).await.unwrap();
    seen.wait(&mut events, |s| {
        s.objects[&pod]["metadata"]["annotations"] == json!({"a": "b"})
            && s.objects[&route]["status"]["parents"] == manifest["status"]["parents"]
    })
    .await;
    assert!(
        !folder
            .path()
            .join("annotations/Pod./default/p.json")
            .exists()
    );
    let stranger = key("Pod", "stranger");
    writer.annotate(&stranger, nothing).await.unwrap();
    let refused = writer.write_condition(&stranger, captured("True")).await;
    assert!(
        matches!(refused, Err(SourceError::NotFound(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn writing_what_is_there_already_touches_nothing() {
    let folder = folder();
    fs::write(
        folder.path().join("manifests/p.yaml"),
        "{apiVersion: v1, kind: Pod, metadata: {name: p}}",
    )
    .unwrap();
    let writer = FolderSource::new(folder.path()).writer();
    let condition = json!({"type": "a", "status": "True"});
    writer
        .write_condition(&key("Pod", "p"), condition.clone())
        .await
        .unwrap();
    let path = folder.path().join("status/Pod./default/p.json");
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let before = inode(&path);
    writer
        .write_condition(&key("Pod", "p"), condition)
        .await
        .unwrap();
    assert_eq!(inode(&path), before);
}

#[tokio::test]
async fn an_object_can_be_read_without_a_watch() {
    let folder = folder();
    fs::write(folder.path().join("manifests/b.yaml"), account("x", 2)).unwrap();
    fs::write(folder.path().join("manifests/a.yaml"), account("x", 1)).unwrap();
    fs::write(folder.path().join("manifests/c.yaml"), "kind: [").unwrap();
    let source = FolderSource::new(folder.path());
    let found = source
        .get(&key("ServiceAccount", "x"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(version(&found.value), "1");
    assert_eq!(source.get(&key("ServiceAccount", "y")).await.unwrap(), None);
    assert_eq!(source.get(&key("Pod", "x")).await.unwrap(), None);
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_named_in_the_error() {
    let error = FolderSource::new("/nonexistent/weft")
        .watch()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("/nonexistent/weft"), "{error}");
    for spec in ["folder:", "folder", "s3:bucket"] {
        let error = open(spec, Scope::Mesh).await.err().unwrap().to_string();
        assert!(error.contains("give folder:DIR"), "{error}");
    }
}

#[tokio::test]
async fn when_events_are_lost_the_folder_is_read_again() {
    let folder = folder();
    let file = |name: &str| folder.path().join("manifests").join(name);
    let (_, mut events) = synced(folder.path()).await;
    // More objects than the channel holds: the watcher waits for its reader, and inotify's queue
    // overflows meanwhile.
    let many: Vec<String> = (0..2 * EVENT_QUEUE)
        .map(|i| account(&format!("a{i}"), 1))
        .collect();
    fs::write(file("many.yaml"), many.join("---\n")).unwrap();
    let mut seen = Seen::default();
    seen.wait(&mut events, |s| !s.objects.is_empty()).await;
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    for i in 0..limit.trim().parse::<usize>().unwrap() / 2 {
        let path = file(&format!("{i}.yaml"));
        fs::write(&path, "").unwrap();
        fs::remove_file(path).unwrap();
    }
    fs::write(file("many.yaml"), account("last", 1)).unwrap();
    seen.wait(&mut events, |s| s.names() == ["last"]).await;
}

/// One edit of the folder.
#[derive(Clone, Debug)]
enum Edit {
    Write {
        file: u8,
        objects: Vec<(u8, u32)>,
        broken: bool,
        atomic: bool,
    },
    Remove {
        file: u8,
    },
    RemoveFolder,
    MoveFolder,
    Pause,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let object = (0..4u8, 0..1000u32);
    let edit = prop_oneof![
        6 => (0..6u8, prop::collection::vec(object, 0..3), prop::bool::weighted(0.2), any::<bool>())
            .prop_map(|(file, objects, broken, atomic)| Edit::Write { file, objects, broken, atomic }),
        2 => (0..6u8).prop_map(|file| Edit::Remove { file }),
        1 => Just(Edit::RemoveFolder),
        1 => Just(Edit::MoveFolder),
        2 => Just(Edit::Pause),
    ];
    prop::collection::vec(edit, 1..40)
}

fn path_of(root: &Path, file: u8) -> PathBuf {
    // Half of the files are in a folder that comes and goes.
    let folder = if file.is_multiple_of(2) {
        "manifests"
    } else {
        "manifests/sub"
    };
    root.join(folder).join(format!("{file}.yaml"))
}

fn perform(root: &Path, edit: &Edit) {
    match edit {
        Edit::Write {
            file,
            objects,
            broken,
            atomic,
        } => {
            let mut text: String = objects
                .iter()
                .map(|(name, v)| format!("{}---\n", account(&format!("o{name}"), *v)))
                .collect();
            if *broken {
                text.push_str("kind: [");
            }
            let path = path_of(root, *file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if *atomic {
                let temporary = path.with_file_name(".temporary");
                fs::write(&temporary, text).unwrap();
                fs::rename(temporary, path).unwrap();
            } else {
                fs::write(path, text).unwrap();
            }
        }
        Edit::Remove { file } => drop(fs::remove_file(path_of(root, *file))),
        Edit::RemoveFolder => drop(fs::remove_dir_all(root.join("manifests/sub"))),
        Edit::MoveFolder => drop(fs::rename(
            root.join("manifests/sub"),
            root.join("manifests/zub"),
        )),
        // The watcher gets a chance to see what is there in between.
        Edit::Pause => std::thread::sleep(Duration::from_millis(7)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 40, cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_edits_end_in_the_state_of_a_fresh_reading(edits in edits()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = folder();
            let (mut seen, mut events) = synced(folder.path()).await;
            let root = folder.path().to_owned();
            tokio::task::spawn_blocking(move || {
                for edit in &edits {
                    perform(&root, edit);
                }
                // Broken files keep objects that a fresh reading can't know: mend them.
                let mut files = Vec::new();
                list(&root, Path::new("manifests"), &mut files).unwrap();
                for file in files {
                    let text = fs::read_to_string(root.join(&file)).unwrap();
                    if let Some(good) = text.strip_suffix("kind: [") {
                        fs::write(root.join(&file), good).unwrap();
                    }
                }
                fs::write(root.join("manifests/zzz.yaml"), account("end", 1)).unwrap();
            })
            .await
            .unwrap();
            let fresh = synced(folder.path()).await.0;
            seen.wait(&mut events, |seen| *seen == fresh).await;
        });
    }
}
