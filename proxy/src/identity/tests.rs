use std::{
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures::FutureExt;
use tokio::time::{Instant, sleep};
use weft_certs::CertificateAuthority;

use super::*;
use crate::telemetry::{AccessLog, Sink};

const LIFETIME: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// Signs for an hour, counts, and can be away.
struct FakeCa {
    ca: CertificateAuthority,
    clock: Clock,
    asked: AtomicUsize,
    away: AtomicBool,
}

impl Ca for FakeCa {
    fn sign<'a>(
        &'a self,
        identity: &'a SpiffeId,
        csr_pem: String,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        async move {
            if self.away.load(Ordering::Relaxed) {
                return Err(CaError("away".to_owned()));
            }
            let now = (self.clock)();
            let signed = self.ca.sign(&csr_pem, identity, Some(LIFETIME), now);
            signed
                .map(|signed| signed.chain_pem)
                .map_err(|error| CaError(error.to_string()))
        }
        .boxed()
    }
}

struct Fixture {
    ca: Arc<FakeCa>,
    clock: Clock,
    telemetry: Arc<Telemetry>,
}

impl Fixture {
    fn new() -> Self {
        weft_certs::tls::install_crypto_provider();
        // A clock that is paused with the runtime's.
        let (start, since) = (SystemTime::now(), Instant::now());
        let clock: Clock = Arc::new(move || start + since.elapsed());
        let ca = CertificateAuthority::generate("cluster.local", start, 1000 * LIFETIME);
        Self {
            ca: Arc::new(FakeCa {
                ca: ca.expect("a CA"),
                clock: Arc::clone(&clock),
                asked: AtomicUsize::new(0),
                away: AtomicBool::new(false),
            }),
            clock,
            telemetry: Telemetry::new(AccessLog::open(&Sink::Off).expect("no log")),
        }
    }

    fn identities(&self, snapshot: Option<Snapshot>) -> Identities {
        Identities::new(
            Arc::clone(&self.ca) as Arc<dyn Ca>,
            snapshot,
            Arc::clone(&self.telemetry),
            Arc::clone(&self.clock),
            Handle::current(),
        )
    }

    fn asked(&self) -> usize {
        self.ca.asked.load(Ordering::Relaxed)
    }

    fn set_away(&self, away: bool) {
        self.ca.away.store(away, Ordering::Relaxed);
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account).expect("an id")
}

fn end(identity: &Identity) -> SystemTime {
    identity.svid().svid().expect("a certificate").not_after()
}

#[tokio::test(start_paused = true)]
async fn pods_of_one_account_share_a_certificate_and_other_accounts_do_not() {
    let fixture = Fixture::new();
    let identities = fixture.identities(None);
    let one = identities.hold(&id("web"));
    let two = identities.hold(&id("web"));
    let other = identities.hold(&id("db"));
    one.ready().await;
    other.ready().await;
    assert!(Arc::ptr_eq(&one, &two));
    assert_eq!(fixture.asked(), 2);
    assert_eq!(one.svid().svid().expect("one").id(), &id("web"));
    assert_eq!(other.svid().svid().expect("one").id(), &id("db"));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_about_half_of_its_lifetime() {
    let fixture = Fixture::new();
    let web = fixture.identities(None).hold(&id("web"));
    web.ready().await;
    let first = end(&web);
    // Half of 62 minutes (two of them before now, for clocks that differ), give or take a tenth.
    sleep(25 * MINUTE).await;
    assert_eq!((fixture.asked(), end(&web)), (1, first));
    sleep(9 * MINUTE).await;
    assert_eq!(fixture.asked(), 2);
    assert!(end(&web) > first);
}

#[tokio::test(start_paused = true)]
async fn while_the_ca_is_away_it_is_asked_ever_less_and_the_old_certificate_serves_until_its_end() {
    let fixture = Fixture::new();
    let web = fixture.identities(None).hold(&id("web"));
    web.ready().await;
    let first = end(&web);
    fixture.set_away(true);
    sleep(50 * MINUTE).await;
    let asked = fixture.asked();
    // Every 15 s at the end, for at most the 23 minutes since half-life.
    assert!((20..200).contains(&asked), "asked {asked} times");
    let status = web.status();
    assert_eq!(status.error.as_deref(), Some("away"));
    assert_eq!(status.not_after, Some(first));
    sleep(15 * MINUTE).await;
    assert_eq!(web.status().not_after, None);
    fixture.set_away(false);
    sleep(MINUTE).await;
    let status = web.status();
    assert_eq!(status.error, None);
    assert!(status.not_after.is_some_and(|end| end > first));
}

#[tokio::test(start_paused = true)]
async fn an_identity_without_pods_is_not_renewed() {
    let fixture = Fixture::new();
    let identities = fixture.identities(None);
    let web = identities.hold(&id("web"));
    web.ready().await;
    assert!(fixture.telemetry.encode().contains(id("web").as_str()));
    // A task of the pod may still hold it for a moment.
    identities.sweep(|_| false, false);
    sleep(LIFETIME).await;
    assert_eq!(fixture.asked(), 1);
    assert!(!fixture.telemetry.encode().contains(id("web").as_str()));
}

#[tokio::test(start_paused = true)]
async fn a_successor_serves_from_the_snapshot_while_the_ca_is_away() {
    let fixture = Fixture::new();
    let folder = tempfile::tempdir().expect("a folder");
    let snapshot = Snapshot::open(folder.path().join("identities")).expect("a snapshot");
    let first = fixture.identities(Some(snapshot.clone())).hold(&id("web"));
    first.ready().await;
    let not_after = end(&first);
    drop(first);
    let files: Vec<_> = std::fs::read_dir(folder.path().join("identities"))
        .expect("the folder")
        .map(|entry| entry.expect("a file"))
        .collect();
    assert_eq!(files.len(), 1);
    let mode = files[0].metadata().expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    fixture.set_away(true);
    let successor = fixture.identities(Some(snapshot));
    let web = successor.hold(&id("web"));
    web.ready().await;
    assert_eq!(end(&web), not_after);
    // Keys of identities that no pod has any more do not stay behind.
    drop(web);
    successor.sweep(|_| false, false);
    assert!(!files[0].path().exists());
}

#[tokio::test(start_paused = true)]
async fn a_proxy_deletes_no_key_that_the_other_one_of_an_upgrade_has_saved() {
    let fixture = Fixture::new();
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = || fixture.identities(Some(Snapshot::open(folder.path().to_owned()).expect("it")));
    let file = folder.path().join("cluster.local_shop_web.json");
    let (old, new) = (proxy(), proxy());
    let web = old.hold(&id("web"));
    web.ready().await;
    assert!(file.exists());
    // It ends, and its last pod of the identity goes.
    old.sweep(|_| false, true);
    assert!(file.exists());
    // The other one saves the same identity anew before the first one notices that it needs it no more.
    std::fs::remove_file(&file).expect("there");
    let again = new.hold(&id("web"));
    again.ready().await;
    assert!(file.exists());
    old.sweep(|_| false, false);
    assert!(file.exists(), "it is the other one's");
    new.sweep(|_| false, false);
    assert!(!file.exists());
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_of_a_snapshot_is_not_used() {
    let fixture = Fixture::new();
    let folder = tempfile::tempdir().expect("a folder");
    let snapshot = Snapshot::open(folder.path().to_owned()).expect("a snapshot");
    let identities = fixture.identities(Some(snapshot.clone()));
    let first = identities.hold(&id("web"));
    first.ready().await;
    drop(first);
    sleep(2 * LIFETIME).await;
    fixture.set_away(true);
    let web = fixture.identities(Some(snapshot)).hold(&id("web"));
    sleep(MINUTE).await;
    assert!(web.svid().svid().is_none());
    assert_eq!(web.status().error.as_deref(), Some("away"));
}

/// Signs for somebody else.
struct WrongCa(FakeCa);

impl Ca for WrongCa {
    fn sign<'a>(
        &'a self,
        _: &'a SpiffeId,
        csr_pem: String,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>> {
        async move { self.0.sign(&id("admin"), csr_pem).await }.boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_another_identity_is_not_used() {
    let fixture = Fixture::new();
    let ca = Arc::into_inner(fixture.ca).expect("the only one");
    let identities = Identities::new(
        Arc::new(WrongCa(ca)),
        None,
        fixture.telemetry,
        fixture.clock,
        Handle::current(),
    );
    let web = identities.hold(&id("web"));
    sleep(MINUTE).await;
    assert!(web.svid().svid().is_none());
    let error = web.status().error.expect("an error");
    assert!(error.contains("sa/admin"), "{error}");
}
