//! The demo is what a newcomer sees first: it must see everything that it promises.

use std::{path::Path, process::Command};

use weft_lab_tests::{Family, Lab, in_families};

in_families!(the_demo_sees_canary_identities_encryption_leaving_and_joining_and_cleans_up: ipv4, ipv6);

fn the_demo_sees_canary_identities_encryption_leaving_and_joining_and_cleans_up(family: Family) {
    let name = format!("demo-{}-{}", family.flag(), std::process::id());
    let mut command = Command::new(Lab::bin("weft"));
    let output = command
        .args(["lab", "demo", "--name", &name])
        .args(["--ip-family", family.flag()])
        .output()
        .expect("weft starts");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let seen = text.matches('✓').count();
    assert!(seen >= 8, "only {seen} things were seen:\n{text}");
    assert!(
        text.contains("spiffe://cluster.local/ns/shop/sa/client"),
        "{text}"
    );
    let state = Path::new("/run/weft/lab").join(&name);
    assert!(!state.exists(), "{} is left", state.display());
}
