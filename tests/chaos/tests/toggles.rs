//! Namespaces join and leave the mesh two hundred times while every kind of traffic goes on, and
//! fewer times in IPv6 and in dual stack. Nothing may fail, and nothing may be left behind.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use weft_chaos::{
    inventory::{self, as_before},
    load::Load,
    mesh,
    record::{Kind, Lane, clock, now},
    stage::{self, Target},
};
use weft_lab_tests::{Family, Lab, eventually, in_families};

/// Label changes in all, where it runs in full, and elsewhere.
const TOGGLES: u32 = 200;
const FEWER_TOGGLES: u32 = 60;
/// Label changes before anything is counted.
const WARM_UP: u32 = 20;
/// Namespaces that change at the same time.
const NAMESPACES: u32 = 4;
/// Time that a leaving pod gives to what it has open.
const DRAIN: Duration = Duration::from_millis(2500);
/// Life of connections that must never be cut: within the drain time, with room for a busy machine.
const LIFE_MS: u64 = 1000;
/// Streams that live longer than the drain: the only ones that the mesh may end.
const LONG: &str = "streams past the drain";
const FROM_BEFORE: &str = "streams from before";
const NODES: [&str; 2] = ["n1", "n2"];
/// For one step of one namespace, on a machine that does other things too.
const STEP: Duration = Duration::from_secs(60);

fn namespace(index: u32) -> String {
    format!("t{index}")
}

fn node(index: u32) -> &'static str {
    NODES[usize::try_from(index).expect("small") % NODES.len()]
}

fn manifests() -> String {
    let mut all = stage::namespace("inside", true)
        + &stage::client("inside", "client", "n2")
        + &stage::namespace("plain", false)
        + &stage::client("plain", "client", "n1")
        + &stage::server("plain", "web", "plain", "n2")
        + &stage::service("plain", "web", "app: web");
    for index in 0..NAMESPACES {
        let ns = namespace(index);
        all += &stage::namespace(&ns, false);
        all += &stage::client(&ns, "client", node(index));
        for (version, at) in [("v1", 0), ("v2", 1)] {
            all += &stage::server(&ns, version, version, node(at));
            all += &stage::service(&ns, version, &format!("app: web, version: {version}"));
        }
        all += &stage::service(&ns, "web", "app: web");
        all += &stage::http_route(&ns, "web", &[("v1", 1), ("v2", 1)]);
        all += &stage::grpc_route(&ns, "web", &[("v1", 2), ("v2", 1)]);
    }
    all
}

fn target<'a>(service: &'a str, versions: &'a [&'a str]) -> Target<'a> {
    Target {
        service,
        versions,
        interval_ms: 200,
        life_ms: LIFE_MS,
    }
}

fn lanes_from(index: u32) -> Vec<Lane> {
    let own = format!("web.{}", namespace(index));
    let next = format!("web.{}", namespace((index + 1) % NAMESPACES));
    let mut lanes = target(&own, &["v1", "v2"]).plain();
    lanes.extend(target(&own, &["v1", "v2"]).routed());
    lanes.push(target(&own, &["v1", "v2"]).streams(LONG, LIFE_MS * 6));
    // Opened before the namespace joins for the first time: outside the mesh, for good.
    lanes.push(target(&own, &["v1", "v2"]).streams(FROM_BEFORE, 0));
    // The far end joins and leaves at other times.
    let across = target(&next, &["v1", "v2"]).plain();
    lanes.extend(across.into_iter().filter(|lane| lane.kind != Kind::Http2));
    let outside = target("web.plain", &["plain"]).plain();
    lanes.extend(outside.into_iter().filter(|lane| lane.kind == Kind::New));
    lanes
}

/// From a pod that stays in the mesh: its proxy sees requests, so connections may be of any age.
fn lanes_from_inside() -> Vec<Lane> {
    let mut lanes = Vec::new();
    for index in 0..NAMESPACES {
        let service = format!("web.{}", namespace(index));
        let target = Target {
            interval_ms: 300,
            life_ms: LIFE_MS * 10,
            ..target(&service, &["v1", "v2"])
        };
        lanes.extend(target.routed());
        let mut streams = target.streams("inside streams", LIFE_MS);
        streams.interval_ms = 200;
        lanes.push(streams);
    }
    for lane in &mut lanes {
        lane.name = lane.name.replace("routed", "inside");
    }
    lanes
}

fn lanes_from_outside() -> Vec<Lane> {
    let services = (0..NAMESPACES).map(|index| format!("web.{}", namespace(index)));
    services
        .flat_map(|service| target(&service, &["v1", "v2"]).outside())
        .collect()
}

/// Joins and leaves until all namespaces together have done their part; how often.
fn toggle(lab: &Lab, index: u32, total: u32, done: &AtomicU32) -> u32 {
    let ns = namespace(index);
    let mut enabled = false;
    let mut own = 0;
    // An even number each: at the end everything is as at the beginning.
    while enabled || done.load(Ordering::Relaxed) < total {
        enabled = !enabled;
        mesh::label(lab, &ns, enabled).expect("the label is set");
        mesh::wait_for(lab, &NODES, &ns, enabled, STEP).expect("the namespace follows");
        done.fetch_add(1, Ordering::Relaxed);
        own += 1;
    }
    own
}

/// All namespaces at the same time; how often each.
fn toggle_all(lab: &Lab, total: u32) -> Vec<u32> {
    let done = AtomicU32::new(0);
    thread::scope(|scope| {
        let done = &done;
        let threads: Vec<_> = (0..NAMESPACES)
            .map(|index| scope.spawn(move || toggle(lab, index, total, done)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("the toggles went through"))
            .collect()
    })
}

in_families!(toggles_under_load_fail_no_request_and_leave_nothing: ipv4, ipv6, dual);

fn toggles_under_load_fail_no_request_and_leave_nothing(family: Family) {
    // One after another: each is all that two processors can do.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock();
    let toggles = if family.is_in_full() {
        TOGGLES
    } else {
        FEWER_TOGGLES
    };
    let lab = Lab::named_in(family);
    let file = lab.file("lab.yaml", &manifests());
    let drain = format!("{}ms", DRAIN.as_millis());
    let up = lab.weft(&[
        "up",
        "-f",
        &file.to_string_lossy(),
        "--detach",
        "--timeout",
        "120",
        "--ip-family",
        family.flag(),
        &format!("--agent-arg=--drain-timeout={drain}"),
    ]);
    up.ok();

    // Some rounds before counting, so that what is made once is there: keys, pools, metrics.
    let mut load = start(&lab);
    toggle_all(&lab, WARM_UP);
    load.stop_all();
    let before = settled(&lab);

    let mut load = start(&lab);
    eventually(STEP, || match load.count() {
        count if count > 100 => Ok(()),
        count => Err(format!("{count} requests")),
    });
    let began = Instant::now();
    let counts = toggle_all(&lab, toggles);
    let took = began.elapsed();
    assert_eq!(load.lost(), [], "clients that ended by themselves");
    load.stop_all();
    report(&load, &counts, took);
    check(&load);

    let last = std::cell::RefCell::new(Vec::new());
    let found = mesh::wait(Duration::from_secs(60), || {
        let after = inventory::take(&lab).map_err(|error| format!("{error:#}"))?;
        *last.borrow_mut() = after.leaks(&before, as_before);
        match last.borrow().len() {
            0 => Ok(()),
            count => Err(format!("{count} leaks")),
        }
    });
    let leaks: Vec<String> = last.borrow().iter().map(ToString::to_string).collect();
    assert!(found.is_ok(), "leaks: {leaks:#?}");
}

fn start(lab: &Lab) -> Load<'_> {
    let mut load = Load::new(lab);
    load.start("plain/client", &lanes_from_outside())
        .expect("the client outside starts");
    load.start("inside/client", &lanes_from_inside())
        .expect("the client inside starts");
    for index in 0..NAMESPACES {
        let pod = format!("{}/client", namespace(index));
        load.start(&pod, &lanes_from(index))
            .expect("the client starts");
    }
    load
}

/// The inventory, once it has not changed between two looks.
fn settled(lab: &Lab) -> inventory::Inventory {
    let mut last = inventory::take(lab).expect("an inventory");
    eventually(Duration::from_secs(60), || {
        thread::sleep(Duration::from_millis(500));
        let now = inventory::take(lab).map_err(|error| format!("{error:#}"))?;
        let same = now.leaks(&last, as_before).is_empty() && last.leaks(&now, as_before).is_empty();
        last = now;
        if same {
            Ok(())
        } else {
            Err("counts still change".into())
        }
    });
    last
}

fn report(load: &Load<'_>, counts: &[u32], took: Duration) {
    eprintln!(
        "{} at the end; toggles by namespace: {counts:?} in {took:.1?}",
        clock(now())
    );
    for (lane, tally) in load.book().lock().sums() {
        eprintln!("{lane:<26} {tally:?}");
    }
}

fn check(load: &Load<'_>) {
    let book = load.book();
    let book = book.lock();
    for (pod, failure) in book.failures.iter().take(40) {
        eprintln!(
            "{} {pod} {}",
            clock(failure.conn.at),
            serde_json::to_string(failure).expect("plain data")
        );
    }
    assert_eq!(book.failures.len(), 0, "requests failed");
    // Only what lives longer than the drain may be ended by the mesh, and in order. On a machine that
    // stands still for a while that may be another stream than those which are meant to.
    let drain = u64::try_from(DRAIN.as_millis()).expect("small");
    let early = book
        .ended
        .iter()
        .find(|(_, conn)| conn.lane == FROM_BEFORE || conn.at.saturating_sub(conn.opened) < drain);
    assert_eq!(early, None, "a stream was ended within the drain time");
    for (lane, tally) in book.sums() {
        assert!(
            tally.ok > 0 || tally.ended > 0,
            "{lane} was carried: {tally:?}"
        );
    }
}
