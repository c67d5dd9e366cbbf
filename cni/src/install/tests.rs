#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use super::*;
use crate::testing::until;

struct Node {
    dir: tempfile::TempDir,
    installer: Installer,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (conf_dir, bin_dir) = (dir.path().join("net.d"), dir.path().join("bin"));
        fs::create_dir(&conf_dir).unwrap();
        fs::create_dir(&bin_dir).unwrap();
        let plugin = dir.path().join("plugin");
        fs::write(&plugin, "binary").unwrap();
        let entry = Entry::new("/run/weft".into(), "kubernetes:/k".into(), "n1".into());
        let installer = Installer {
            conf_dir,
            bin_dir,
            entry,
            plugin,
        };
        Self { dir, installer }
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.installer.conf_dir.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        // As network plugins do.
        fs::write(self.dir.path().join("new"), text).unwrap();
        fs::rename(self.dir.path().join("new"), self.conf(name)).unwrap();
    }

    fn types(&self, name: &str) -> Vec<String> {
        let Ok(text) = fs::read(self.conf(name)) else {
            return Vec::new();
        };
        let list: Value = serde_json::from_slice(&text).unwrap();
        let plugins = list["plugins"].as_array().unwrap().iter();
        plugins
            .map(|p| p["type"].as_str().unwrap().to_owned())
            .collect()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.installer.conf_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn keep(&self) -> (watch::Sender<bool>, watch::Receiver<State>, JoinHandle<()>) {
        let (wanted, want) = watch::channel(true);
        let (sender, state) = watch::channel(State::Not("not looked at yet".into()));
        let task = tokio::spawn(keep(self.installer.clone(), want, sender));
        (wanted, state, task)
    }
}

fn list(plugins: &[&str]) -> String {
    let plugins: Vec<_> = plugins.iter().map(|kind| json!({"type": kind})).collect();
    json!({"cniVersion": "1.0.0", "name": "net", "plugins": plugins}).to_string()
}

#[test]
fn the_first_usable_configuration_is_chained_into_and_uninstalling_leaves_it_as_it_was() {
    let node = Node::new();
    let (broken, first, second) = ("{", list(&["bridge", "portmap"]), list(&["other"]));
    node.write("01-broken.conflist", broken);
    node.write("10-first.conflist", &first);
    node.write("20-second.conflist", &second);
    fs::set_permissions(
        node.conf("10-first.conflist"),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    let put = node.installer.put().unwrap();
    assert_eq!(put, Chain::Put(node.conf("10-first.conflist")));
    assert_eq!(
        node.installer.put().unwrap(),
        Chain::InPlace(node.conf("10-first.conflist"))
    );
    assert_eq!(
        node.types("10-first.conflist"),
        ["bridge", "portmap", "weft-cni"]
    );
    let mode = fs::metadata(node.conf("10-first.conflist"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(
        fs::read_to_string(node.conf("20-second.conflist")).unwrap(),
        second
    );
    let plugin = node.installer.bin_dir.join("weft-cni");
    assert_eq!(fs::read(&plugin).unwrap(), b"binary");
    assert_eq!(
        fs::metadata(&plugin).unwrap().permissions().mode() & 0o777,
        0o755
    );
    node.installer.write_kubeconfig("secret").unwrap();
    let mode = fs::metadata(node.conf(KUBECONFIG))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    node.installer.remove().unwrap();
    assert_eq!(
        fs::read_to_string(node.conf("10-first.conflist")).unwrap(),
        first
    );
    let left = [
        "01-broken.conflist",
        "10-first.conflist",
        "20-second.conflist",
    ];
    assert_eq!(node.names(), left);
    assert!(!plugin.exists());
    node.installer.remove().unwrap();
}

#[test]
fn a_newer_plugin_takes_the_place_of_an_older_one() {
    let node = Node::new();
    node.write("10-a.conflist", &list(&["bridge"]));
    node.installer.put().unwrap();
    fs::write(&node.installer.plugin, "newer!").unwrap();
    node.installer.put().unwrap();
    assert_eq!(
        fs::read(node.installer.bin_dir.join("weft-cni")).unwrap(),
        b"newer!"
    );
}

#[test]
fn a_single_plugin_becomes_a_list_and_comes_back() {
    let single = r#"{"cniVersion": "0.4.0", "name": "net", "type": "bridge", "x": 1}"#;
    for name in ["10-net.conf", "10-net.json"] {
        let node = Node::new();
        node.write(name, single);
        assert_eq!(
            node.installer.put().unwrap(),
            Chain::Put(node.conf("10-net.conflist"))
        );
        assert_eq!(
            node.installer.put().unwrap(),
            Chain::InPlace(node.conf("10-net.conflist"))
        );
        assert_eq!(node.types("10-net.conflist"), ["bridge", "weft-cni"]);
        let saved = format!("{name}.weft-saved");
        let mut left = [saved.as_str(), "10-net.conflist"];
        left.sort_unstable();
        assert_eq!(node.names(), left);
        node.installer.remove().unwrap();
        assert_eq!(node.names(), [name]);
        assert_eq!(fs::read_to_string(node.conf(name)).unwrap(), single);
    }
}

#[test]
fn a_list_that_others_have_joined_stays_when_weft_goes() {
    let node = Node::new();
    node.write(
        "10-net.conf",
        r#"{"cniVersion": "0.4.0", "name": "net", "type": "bridge"}"#,
    );
    node.installer.put().unwrap();
    node.write(
        "10-net.conflist",
        &list(&["bridge", "weft-cni", "istio-cni"]),
    );
    node.installer.remove().unwrap();
    assert_eq!(node.names(), ["10-net.conflist"]);
    assert_eq!(node.types("10-net.conflist"), ["bridge", "istio-cni"]);
}

#[tokio::test]
async fn whoever_rewrites_the_chain_finds_weft_in_it_again() {
    let node = Node::new();
    let (wanted, mut state, task) = node.keep();
    state
        .wait_for(
            |state| matches!(state, State::Not(why) if why.contains("no network configuration")),
        )
        .await
        .unwrap();
    // The network plugin comes up.
    node.write("10-net.conflist", &list(&["bridge"]));
    state
        .wait_for(|state| *state == State::Chained(1))
        .await
        .unwrap();
    // It restarts and writes its configuration anew.
    node.write("10-net.conflist", &list(&["bridge", "bandwidth"]));
    state
        .wait_for(|state| *state == State::Chained(2))
        .await
        .unwrap();
    assert_eq!(
        node.types("10-net.conflist"),
        ["bridge", "bandwidth", "weft-cni"]
    );
    // Somebody adds a plugin behind ours.
    node.write("10-net.conflist", &list(&["bridge", "weft-cni", "late"]));
    until("ours is last", || {
        node.types("10-net.conflist") == ["bridge", "late", "weft-cni"]
    })
    .await;
    // Another file becomes the first.
    node.write("05-new.conflist", &list(&["new"]));
    until("the new first file has ours", || {
        node.types("05-new.conflist") == ["new", "weft-cni"]
    })
    .await;
    // The binary is wiped.
    fs::remove_file(node.installer.bin_dir.join("weft-cni")).unwrap();
    until("the binary is back", || {
        node.installer.bin_dir.join("weft-cni").exists()
    })
    .await;

    wanted.send(false).unwrap();
    state
        .wait_for(|state| *state == State::Removed)
        .await
        .unwrap();
    assert_eq!(node.types("05-new.conflist"), ["new"]);
    assert_eq!(node.types("10-net.conflist"), ["bridge", "late"]);
    // The order to go is taken back.
    wanted.send(true).unwrap();
    state
        .wait_for(|state| matches!(state, State::Chained(_)))
        .await
        .unwrap();
    assert_eq!(node.types("05-new.conflist"), ["new", "weft-cni"]);
    drop(wanted);
    task.await.unwrap();
}
