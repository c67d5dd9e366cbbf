use std::{
    sync::atomic::{AtomicBool, AtomicU32},
    task::Poll,
    time::Instant,
};

use futures::future::{pending, poll_fn};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::timeout,
};

use super::*;

/// Generous: these are conditions, not figures.
const SOON: Duration = Duration::from_secs(20);

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Sets the flag when it is dropped.
struct Dropped(Arc<AtomicU32>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

async fn eventually(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, wait).await.expect("in time");
}

#[tokio::test]
async fn a_thousand_ready_futures_of_one_pod_delay_anothers_by_a_turn_and_not_by_a_thousand() {
    let (loud, quiet) = (Share::with_shards(1, None), Share::with_shards(1, None));
    let polls = Arc::new(AtomicU32::new(0));
    for _ in 0..1_000 {
        let polls = Arc::clone(&polls);
        loud.spawn(async move {
            loop {
                polls.fetch_add(1, Ordering::Relaxed);
                spin(QUANTUM / 2);
                yield_now().await;
            }
        });
    }
    let (told, worst) = oneshot::channel();
    let counted = Arc::clone(&polls);
    quiet.spawn(async move {
        let mut worst = 0;
        for _ in 0..50 {
            let before = counted.load(Ordering::Relaxed);
            yield_now().await; // within its own turn
            tokio::task::yield_now().await; // through the runtime
            worst = worst.max(counted.load(Ordering::Relaxed) - before);
        }
        told.send(worst).ok();
    });
    let worst = timeout(SOON, worst).await.expect("in time").expect("told");
    // A turn is two polls or three. One more may come first, if the runtime had begun it.
    assert!(worst <= 8, "{worst} polls of the other pod came first");
    assert!(polls.load(Ordering::Relaxed) > 50, "it did flood");
}

#[tokio::test]
async fn a_future_that_always_wants_more_lets_others_of_its_pod_go_first() {
    let share = Share::with_shards(1, None);
    share.spawn(async {
        loop {
            yield_now().await;
        }
    });
    let (told, heard) = oneshot::channel();
    share.spawn(async move {
        yield_now().await;
        told.send(()).ok();
    });
    timeout(SOON, heard).await.expect("in time").expect("told");
}

#[tokio::test]
async fn a_future_that_eats_the_runtimes_budget_does_not_stop_its_pod() {
    let share = Share::with_shards(1, None);
    let (send, mut receive) = mpsc::unbounded_channel();
    for n in 0..10_000 {
        send.send(n).expect("somebody listens");
    }
    let (told, heard) = oneshot::channel();
    share.spawn(async move {
        for n in 0..10_000 {
            assert_eq!(receive.recv().await, Some(n));
        }
        told.send(()).ok();
    });
    let (also, other) = oneshot::channel();
    share.spawn(async move {
        also.send(()).ok();
    });
    timeout(SOON, heard).await.expect("in time").expect("told");
    timeout(SOON, other).await.expect("in time").expect("told");
}

#[tokio::test]
async fn a_panic_ends_one_future_alone() {
    let share = Share::with_shards(1, None);
    let dropped = Arc::<AtomicU32>::default();
    let mine = Dropped(Arc::clone(&dropped));
    share.spawn(async move {
        let _mine = mine;
        panic!("as the test wants it");
    });
    let (told, heard) = oneshot::channel();
    share.spawn(async move {
        told.send(()).ok();
    });
    timeout(SOON, heard).await.expect("in time").expect("told");
    assert_eq!(dropped.load(Ordering::Relaxed), 1, "what it held is let go");
}

#[tokio::test]
async fn closing_drops_every_future_and_each_new_one() {
    let share = Share::with_shards(2, None);
    let dropped = Arc::<AtomicU32>::default();
    for _ in 0..100 {
        let mine = Dropped(Arc::clone(&dropped));
        share.spawn(async move {
            let _mine = mine;
            pending::<()>().await;
        });
    }
    tokio::task::yield_now().await;
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
    share.close();
    eventually(|| dropped.load(Ordering::Relaxed) == 100).await;
    let mine = Dropped(Arc::clone(&dropped));
    share.spawn(async move { drop(mine) });
    eventually(|| dropped.load(Ordering::Relaxed) == 101).await;
}

#[tokio::test]
async fn what_a_future_starts_ends_with_its_pod() {
    let share = Share::with_shards(1, None);
    let dropped = Arc::<AtomicU32>::default();
    let started = Arc::new(Notify::new());
    let (mine, tell) = (Dropped(Arc::clone(&dropped)), Arc::clone(&started));
    share.spawn(async move {
        spawn(async move {
            let _mine = mine;
            tell.notify_one();
            pending::<()>().await;
        });
    });
    timeout(SOON, started.notified()).await.expect("in time");
    drop(share);
    eventually(|| dropped.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn a_future_that_starts_others_when_it_is_dropped_can_be_closed() {
    struct Starts(Arc<AtomicU32>);
    impl Drop for Starts {
        fn drop(&mut self) {
            let mine = Dropped(Arc::clone(&self.0));
            spawn(async move {
                let _mine = mine;
                pending::<()>().await;
            });
        }
    }
    let share = Share::with_shards(1, None);
    let dropped = Arc::<AtomicU32>::default();
    let starts = Starts(Arc::clone(&dropped));
    share.spawn(async move {
        let _starts = starts;
        pending::<()>().await;
    });
    tokio::task::yield_now().await;
    share.close();
    eventually(|| dropped.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_from_another_thread_is_lost() {
    let share = Share::new(None);
    let mut ends = Vec::new();
    for _ in 0..64 {
        let (to, mut from) = mpsc::channel::<u32>(1);
        let (told, heard) = oneshot::channel();
        share.spawn(async move {
            let mut sum = 0;
            while let Some(n) = from.recv().await {
                sum += n;
            }
            told.send(sum).ok();
        });
        tokio::spawn(async move {
            for _ in 0..500 {
                to.send(1).await.expect("somebody listens");
            }
        });
        ends.push(heard);
    }
    for heard in ends {
        let sum = timeout(SOON, heard).await.expect("in time").expect("told");
        assert_eq!(sum, 500);
    }
}

#[tokio::test]
async fn time_is_charged_to_the_pod_that_took_it() {
    let (loud, quiet) = (Share::with_shards(1, None), Share::with_shards(1, None));
    let ran = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&ran);
    loud.spawn(async move {
        spin(Duration::from_millis(20));
        done.store(true, Ordering::Relaxed);
    });
    let mut polled = false;
    quiet.spawn(poll_fn(move |_| {
        assert!(!std::mem::replace(&mut polled, true), "nobody woke it");
        Poll::Pending
    }));
    eventually(|| ran.load(Ordering::Relaxed)).await;
    eventually(|| loud.busy().load(Ordering::Relaxed) >= 20_000_000).await;
    let (loud, quiet) = (loud.busy(), quiet.busy());
    assert!(quiet.load(Ordering::Relaxed) < loud.load(Ordering::Relaxed));
}

#[test]
fn a_busy_pod_gets_other_threads_and_comes_back_when_it_is_calm() {
    let home = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("home")
        .enable_all()
        .build()
        .expect("a runtime");
    let threads = busy_threads(1).expect("a runtime");
    let handle = threads.handle().clone();
    home.block_on(async move {
        let share = Share::with_shards(1, Some(handle));
        let at = Arc::new(parking_lot::Mutex::new(String::new()));
        let busy = Arc::new(AtomicBool::new(true));
        let (place, wanted) = (Arc::clone(&at), Arc::clone(&busy));
        share.spawn(async move {
            loop {
                *place.lock() = std::thread::current().name().unwrap_or_default().to_owned();
                if wanted.load(Ordering::Relaxed) {
                    spin(Duration::from_millis(1));
                    yield_now().await;
                } else {
                    // A timer, which only the home runtime has.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        eventually(|| *at.lock() == "busy").await;
        busy.store(false, Ordering::Relaxed);
        eventually(|| *at.lock() == "home").await;
        let dropped = Arc::<AtomicU32>::default();
        let mine = Dropped(Arc::clone(&dropped));
        share.spawn(async move {
            let _mine = mine;
            pending::<()>().await;
        });
        share.close();
        eventually(|| dropped.load(Ordering::Relaxed) == 1).await;
    });
    threads.shutdown_background();
}
