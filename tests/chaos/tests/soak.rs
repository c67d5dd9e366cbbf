//! Two minutes of a soak, as a test: `make soak` runs it for an hour. A test file of its own, so that
//! nothing else runs beside it.

use std::process::Command;

#[test]
fn two_minutes_of_random_events_fail_no_request_that_nothing_explains() {
    // Its output tells the seed, each event, and each failure with its cause.
    let mut soak = Command::new(env!("CARGO_BIN_EXE_weft-soak"));
    soak.args(["--time", "2m"]);
    if let Ok(seed) = std::env::var("SEED") {
        soak.args(["--seed", &seed]);
    }
    let weft = weft_lab_tests::Lab::bin("weft");
    soak.env("WEFT_BIN_DIR", weft.parent().expect("a folder of programs"));
    let output = soak.output().expect("weft-soak starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    println!("{}", text(&output.stdout));
}
