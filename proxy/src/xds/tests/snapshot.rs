use std::{fs, os::unix::fs::PermissionsExt};

use super::fake::{ca, mesh, service, snapshot};
use crate::{
    model::Locality,
    state::{Delta, Kind, Resource, State},
    xds::snapshot::from_xds,
};

fn filled() -> std::sync::Arc<State> {
    let state = State::new(Locality::default());
    let updated = |resource| vec![from_xds(resource)];
    for (kind, updated) in [
        (Kind::MeshConfig, updated(mesh(&ca()))),
        (Kind::Service, updated(service("a", "7", 1))),
    ] {
        let delta = Delta {
            kind,
            updated,
            removed: vec![],
        };
        assert_eq!(state.apply(delta), []);
    }
    state
}

fn all(state: &State) -> Vec<Resource> {
    Kind::ALL
        .into_iter()
        .flat_map(|kind| state.resources(kind))
        .collect()
}

#[test]
fn what_is_saved_is_loaded_with_its_versions() {
    let dir = tempfile::tempdir().expect("a directory");
    let (snapshot, state) = (snapshot(dir.path()), filled());
    snapshot.save(&state).expect("saved");
    let loaded = State::new(Locality::default());
    assert!(snapshot.load(&loaded));
    assert_eq!(all(&loaded), all(&state));
    assert_eq!(all(&loaded).len(), 2);
}

#[test]
fn only_the_proxys_user_can_read_it_and_nothing_else_is_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let snapshot = snapshot(dir.path());
    for _ in 0..2 {
        snapshot.save(&filled()).expect("saved");
    }
    let mode = |path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(snapshot.path()), 0o600);
    let directory = snapshot.path().parent().expect("a directory").to_owned();
    assert_eq!(fs::read_dir(&directory).expect("readable").count(), 1);
    assert_eq!(mode(directory), 0o700);
}

#[test]
fn a_snapshot_that_is_missing_or_damaged_is_ignored() {
    let dir = tempfile::tempdir().expect("a directory");
    let snapshot = snapshot(dir.path());
    let state = State::new(Locality::default());
    assert!(!snapshot.load(&state), "none is there");

    snapshot.save(&filled()).expect("saved");
    let good = fs::read(snapshot.path()).expect("readable");
    let damaged = |damage: fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        damage(&mut bytes);
        bytes
    };
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("cut", damaged(|b| b.truncate(b.len() - 1))),
        ("cut in the checksum", damaged(|b| b.truncate(20))),
        ("longer", damaged(|b| b.push(0))),
        (
            "another byte",
            damaged(|b| *b.last_mut().expect("not empty") ^= 1),
        ),
        ("another format", damaged(|b| b[0] ^= 1)),
    ] {
        fs::write(snapshot.path(), bytes).expect("written");
        assert!(!snapshot.load(&state), "{name}");
        assert!(all(&state).is_empty(), "{name}");
    }
    fs::write(snapshot.path(), &good).expect("written");
    assert!(snapshot.load(&state));
}
