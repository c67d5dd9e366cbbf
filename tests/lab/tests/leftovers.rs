//! A lab leaves nothing behind, however it ends.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use weft_lab_tests::{Family, Lab, eventually, in_families};

const SHOP: &str = include_str!("../manifests/shop.yaml");

/// What of this lab is on the machine: namespaces, mounts, processes, folders.
fn traces(lab: &Lab) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        found.insert(format!("netns {}", entry.file_name().to_string_lossy()));
    }
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    found.extend(
        mounts
            .lines()
            .map(|l| format!("mount {}", l.split(' ').nth(1).unwrap_or(""))),
    );
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(line) = fs::read_to_string(entry.path().join("cmdline")) else {
            continue;
        };
        found.insert(format!("process {}", line.replace('\0', " ")));
    }
    if lab.state_dir().exists() {
        found.insert(format!("folder {}", lab.state_dir().display()));
    }
    found.retain(|trace| trace.contains(&lab.name));
    found
}

fn links_and_rules() -> String {
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().expect("it runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run("ip", &["-o", "link"]) + &run("nft", &["list", "ruleset"])
}

fn assert_gone(lab: &Lab, links: &str) {
    eventually(Duration::from_secs(15), || match traces(lab) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("left behind: {left:#?}")),
    });
    assert_eq!(
        links_and_rules(),
        links,
        "links and rules of the host are as before"
    );
}

fn foreground(lab: &Lab) -> std::process::Child {
    let file = lab.file("lab.yaml", SHOP);
    let mut command = Command::new(Lab::bin("weft"));
    command
        .args(["lab", "up", "--name", &lab.name, "-f"])
        .arg(file)
        .args(["--ip-family", lab.family.flag()]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("weft starts");
    eventually(Duration::from_secs(90), || {
        let answer = lab.exec("shop/client", &["true"]);
        let up = answer.code == 0 && lab.get("shop/client", "http://checkout/").status == 200;
        if up { Ok(()) } else { Err(answer.err) }
    });
    child
}

fn signal(pid: u32, which: &str) {
    Command::new("kill")
        .args([which, &pid.to_string()])
        .status()
        .expect("kill");
}

in_families!(
    after_down_and_after_ctrl_c_nothing_is_left: ipv4;
    a_lab_whose_every_part_was_killed_is_cleaned_up_by_down: ipv4, dual;
);

fn after_down_and_after_ctrl_c_nothing_is_left(family: Family) {
    let links = links_and_rules();
    let lab = Lab::up_in(family, SHOP);
    assert!(!traces(&lab).is_empty(), "the test can see a lab");
    lab.weft(&["down"]).ok();
    assert_gone(&lab, &links);
    lab.weft(&["down"]).ok();

    let lab = Lab::named_in(family);
    let mut up = foreground(&lab);
    signal(up.id(), "-INT");
    assert!(
        up.wait().expect("it ends").code().is_some(),
        "it ended in order"
    );
    assert_gone(&lab, &links);
}

fn a_lab_whose_every_part_was_killed_is_cleaned_up_by_down(family: Family) {
    let links = links_and_rules();
    let lab = Lab::named_in(family);
    let mut up = foreground(&lab);
    signal(up.id(), "-KILL");
    up.wait().expect("it ends");
    let killed = processes(&lab);
    assert!(killed.len() > 8, "parts and pods were killed: {killed:?}");
    killed.iter().for_each(|pid| signal(*pid, "-KILL"));
    lab.weft(&["down"]).ok();
    assert_gone(&lab, &links);
}

/// Everything that runs for this lab: whatever lives in one of its network namespaces.
fn processes(lab: &Lab) -> Vec<u32> {
    let inode = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let mut own = BTreeSet::new();
    for entry in fs::read_dir("/run/netns").expect("namespaces").flatten() {
        if entry.file_name().to_string_lossy().contains(&lab.name) {
            own.extend(inode(&entry.path()));
        }
    }
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        inode(Path::new(&format!("/proc/{pid}/ns/net"))).is_some_and(|netns| own.contains(&netns))
    })
    .collect()
}
