//! A soak: checked load on a lab, and a random but repeatable sequence of events. A time and a seed
//! in; every failure with its cause, and a table, out. The exit code is 0 only if nothing failed that
//! an incident does not explain, and nothing leaked.

mod events;
mod report;
mod scene;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Parser;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::signal::unix::{SignalKind, signal};
use weft_chaos::{
    inventory::{self, Inventory, Leak, as_before},
    judge::{Incident, Places},
    load::Load,
    mesh,
    record::{clock, now},
};
use weft_echo::behaviour::parse_duration;
use weft_lab_tests::Lab;

use report::Step;
use scene::{DRAIN_S, NODES, Scene};

#[derive(Parser)]
#[command(about = "Random events on a lab under checked load; fails if a request does")]
struct Args {
    /// How long, as in 90s, 2m or 1h.
    #[arg(long, default_value = "1h", value_parser = time)]
    time: Duration,
    /// Of the sequence of events; printed at the start [default: a new one].
    #[arg(long)]
    seed: Option<u64>,
    /// Address family of the lab: ipv4, ipv6 or dual.
    #[arg(long, default_value = "ipv4", value_parser = ["ipv4", "ipv6", "dual"])]
    family: String,
    /// Only events of these kinds; may be repeated.
    #[arg(long, value_name = "KIND", value_parser = events::KINDS)]
    only: Vec<String>,
}

fn time(text: &str) -> Result<Duration, String> {
    let hours = text.strip_suffix('h').and_then(|n| n.parse::<f64>().ok());
    let hours = hours.and_then(|n| Duration::try_from_secs_f64(n * 3600.0).ok());
    hours
        .or_else(|| parse_duration(text))
        .ok_or_else(|| "expected a time such as 90s, 2m or 1h".into())
}

/// Failures that are shown one by one: the rest is much of the same.
const SHOWN: usize = 100;

/// Set by the first Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What the threads of a soak share.
struct Soak<'a> {
    lab: &'a Lab,
    steps: Mutex<Vec<Step>>,
    /// Held while joins and leaves have to rest.
    rest: Mutex<()>,
    toggles: AtomicU32,
    over: AtomicBool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("SEED={seed} TIME={:?} FAMILY={}", args.time, args.family);
    listen_for_interrupts()?;
    // Taken down when it is dropped, however this ends.
    let lab = Lab::named();
    let outcome = soak(&lab, &args, seed);
    if outcome.is_err() {
        eprintln!("{}", lab.weft(&["status"]).out);
    }
    keep_logs(&lab);
    drop(lab);
    let passed = outcome?;
    println!("{} SEED={seed}", if passed { "PASSED" } else { "FAILED" });
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Where `WEFT_TEST_KEEP_LOGS` says, as tests do.
fn keep_logs(lab: &Lab) {
    if let Some(to) = std::env::var_os("WEFT_TEST_KEEP_LOGS") {
        let to = std::path::Path::new(&to).join(&lab.name);
        let copied = std::process::Command::new("cp")
            .arg("-r")
            .arg(lab.state_dir())
            .arg(&to)
            .status();
        if copied.is_ok_and(|status| status.success()) {
            println!("logs are in {}", to.display());
        }
    }
}

fn listen_for_interrupts() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if INTERRUPTED.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
                eprintln!("interrupted: taking the lab down (again: at once, leaving it)");
            }
        });
    });
    Ok(())
}

fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Runs it; whether nothing failed that should not, and nothing leaked.
fn soak(lab: &Lab, args: &Args, seed: u64) -> anyhow::Result<bool> {
    let mut scene = Scene::default();
    let file = lab.file("lab.yaml", &scene.manifests());
    let drain = format!("--drain-timeout={DRAIN_S}s");
    let (agent, proxy) = (
        format!("--agent-arg={drain}"),
        format!("--proxy-arg={drain}"),
    );
    let file = file.to_string_lossy().into_owned();
    let mut up = vec![
        "up",
        "-f",
        &file,
        "--detach",
        "--timeout",
        "120",
        &agent,
        &proxy,
    ];
    if args.family != "ipv4" {
        up.extend(["--ip-family", &args.family]);
    }
    mesh::run(lab, &up)?;
    println!("{} lab {} is up", clock(now()), lab.name);

    // What is made once is there before anything is counted.
    let mut warm_up = start(lab)?;
    thread::sleep(Duration::from_secs(3));
    warm_up.stop_all();
    let before = settled(lab)?;

    let mut load = start(lab)?;
    let soak = Soak {
        lab,
        steps: Mutex::default(),
        rest: Mutex::default(),
        toggles: AtomicU32::new(0),
        over: AtomicBool::new(false),
    };
    let mut places = Places::default();
    let mut incidents = Vec::new();
    let happened = thread::scope(|scope| {
        let dice = StdRng::seed_from_u64(seed.wrapping_add(1));
        let toggling = scope.spawn(|| toggle(&soak, dice));
        let run = run_events(
            &soak,
            args,
            seed,
            &mut scene,
            &mut load,
            &mut places,
            &mut incidents,
        );
        soak.over.store(true, Ordering::Relaxed);
        let toggled = toggling
            .join()
            .unwrap_or_else(|_| bail!("a defect in the toggles"));
        run.and(toggled)
    });
    // While clients still run, what they did counts; after Ctrl-C the terminal has ended them.
    load.stop_all();
    let (book, steps) = (load.book(), soak.steps.into_inner());
    let verdict = report::judge(&book.lock(), &incidents, &places);
    if interrupted() {
        report::table(
            &book.lock(),
            &steps,
            soak.toggles.into_inner(),
            &verdict,
            &[],
        );
        bail!("interrupted");
    }
    for (client, failure) in verdict.unexplained.iter().take(SHOWN) {
        report::failure(lab, client, failure, &steps);
    }
    happened?;
    let leaks = leaks(lab, &before, &mut scene)?;
    let toggles = soak.toggles.into_inner();
    report::table(&book.lock(), &steps, toggles, &verdict, &leaks);
    Ok(verdict.unexplained.is_empty() && leaks.is_empty())
}

fn start(lab: &Lab) -> anyhow::Result<Load<'_>> {
    let mut load = Load::new(lab);
    for client in scene::clients() {
        load.start(client.pod, &client.lanes)?;
    }
    Ok(load)
}

#[allow(clippy::too_many_arguments)]
fn run_events(
    soak: &Soak<'_>,
    args: &Args,
    seed: u64,
    scene: &mut Scene,
    load: &mut Load<'_>,
    places: &mut Places,
    incidents: &mut Vec<Incident>,
) -> anyhow::Result<()> {
    let mut dice = StdRng::seed_from_u64(seed);
    let end = Instant::now() + args.time;
    learn_places(soak.lab, places)?;
    while Instant::now() < end && !interrupted() {
        thread::sleep(Duration::from_millis(dice.random_range(0..1500)));
        let event = events::choose(&mut dice, &args.only);
        let rest = event.wants_rest().then(|| soak.rest.lock());
        let from = now();
        let done = events::perform(soak.lab, &event, scene);
        let until = now();
        println!("{} {event} ({} ms)", clock(from), until - from);
        soak.steps.lock().push(Step {
            what: event.to_string(),
            kind: event.kind(),
            from,
            until,
        });
        learn_places(soak.lab, places)?;
        incidents.extend(done.with_context(|| event.to_string())?);
        revive(&event, load, until)?;
        drop(rest);
    }
    Ok(())
}

/// Where pods are; names of pods that are gone stay known.
fn learn_places(lab: &Lab, places: &mut Places) -> anyhow::Result<()> {
    let status = mesh::status(lab)?;
    for pod in status["pods"].as_array().into_iter().flatten() {
        let text = |field: &str| pod[field].as_str().unwrap_or_default().to_owned();
        let (namespace, name, node) = (text("namespace"), text("name"), text("node"));
        places.saw(&format!("{namespace}/{name}"), &node);
        places.saw(&name, &node);
    }
    Ok(())
}

/// A node that reboots takes its clients with it; nothing else may.
fn revive(event: &events::Event, load: &mut Load<'_>, at: u64) -> anyhow::Result<()> {
    for (pod, status) in load.lost() {
        if interrupted() {
            return Ok(());
        }
        let clients = scene::clients();
        let client = clients.iter().find(|client| client.pod == pod);
        let client = client.with_context(|| format!("{pod} is no client"))?;
        if *event != events::Event::Reboot(client.node) {
            bail!(
                "the client in {pod} ended by itself before {}: {status}",
                clock(at)
            );
        }
        load.start(client.pod, &client.lanes)?;
    }
    Ok(())
}

/// `shop` leaves and joins, until the soak is over; it ends inside, as it began.
fn toggle(soak: &Soak<'_>, mut dice: StdRng) -> anyhow::Result<()> {
    let mut enabled = true;
    while !interrupted() && (!soak.over.load(Ordering::Relaxed) || !enabled) {
        let pause = Instant::now() + Duration::from_millis(dice.random_range(0..4000));
        while Instant::now() < pause && !soak.over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(20));
        }
        let _awake = soak.rest.lock();
        enabled = !enabled;
        let from = now();
        mesh::label(soak.lab, "shop", enabled)?;
        let done = mesh::wait_for(soak.lab, &NODES, "shop", enabled, events::FOLLOWS);
        soak.toggles.fetch_add(1, Ordering::Relaxed);
        let what = if enabled { "shop joins" } else { "shop leaves" };
        soak.steps.lock().push(Step {
            what: what.into(),
            kind: "toggle",
            from,
            until: now(),
        });
        done.with_context(|| what)?;
    }
    Ok(())
}

/// The inventory, once it stands still.
fn settled(lab: &Lab) -> anyhow::Result<Inventory> {
    mesh::whole(lab, events::FOLLOWS)?;
    let mut last = inventory::take(lab)?.by_namespace();
    for _ in 0..60 {
        thread::sleep(Duration::from_millis(500));
        let now = inventory::take(lab)?.by_namespace();
        let same = now.leaks(&last, as_before).is_empty() && last.leaks(&now, as_before).is_empty();
        last = now;
        if same {
            break;
        }
    }
    Ok(last)
}

/// Puts everything back and compares, for as long as something may still be on its way out.
fn leaks(lab: &Lab, before: &Inventory, scene: &mut Scene) -> anyhow::Result<Vec<Leak>> {
    let revisions = scene.revisions;
    *scene = Scene {
        revisions,
        ..Scene::default()
    };
    for manifests in [scene.route(), scene.deployment(0), scene.deployment(1)] {
        let output = lab.apply(&manifests);
        if output.code != 0 {
            bail!("weft lab apply: {}{}", output.out, output.err);
        }
    }
    mesh::whole(lab, events::FOLLOWS)?;
    let mut leaks = Vec::new();
    for _ in 0..30 {
        leaks = inventory::take(lab)?
            .by_namespace()
            .leaks(before, as_before);
        if leaks.is_empty() || interrupted() {
            break;
        }
        thread::sleep(Duration::from_secs(1));
    }
    Ok(leaks)
}
