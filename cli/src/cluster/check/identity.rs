//! Roots and certificates, by their dates. In: facts. Out: findings. Pure.

use time::{Duration, OffsetDateTime};
use x509_parser::pem::Pem;

use super::{Finding, fail, ok, some, warn};
use crate::cluster::{
    facts::Facts,
    object::{date, list, text},
};

/// Enough time to bring another root.
const ROOT: Duration = Duration::days(30);
/// A certificate lasts a day and is renewed at half of that: with less left, renewing fails.
const LEAF: Duration = Duration::hours(8);

pub(super) fn bundle(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "roots";
    const ANEW: &str = "kubectl -n weft-system delete configmap weft-trust-bundle, and restart the controller, which makes it";
    const BRING: &str = "bring another root: docs/install.md, \"An own CA\"";
    let Some(bundle) = &facts.bundle else {
        return vec![fail(
            CHECK,
            "configmap weft-system/weft-trust-bundle is not there: proxies can't start",
            "the controller makes it: kubectl -n weft-system logs deployment/weft-controller",
        )];
    };
    let pem = text(bundle, "/data/root-cert.pem").as_bytes();
    let mut findings = Vec::new();
    let mut roots = 0;
    for block in Pem::iter_from_buffer(pem) {
        let Some(end) = block.ok().and_then(|block| {
            let certificate = block.parse_x509().ok()?;
            let end = certificate.validity().not_after.timestamp();
            OffsetDateTime::from_unix_timestamp(end).ok()
        }) else {
            findings.push(fail(
                CHECK,
                "configmap weft-system/weft-trust-bundle holds something that is no certificate",
                ANEW,
            ));
            continue;
        };
        roots += 1;
        let left = end - facts.now;
        let end = end.date();
        if left <= Duration::ZERO {
            findings.push(fail(CHECK, format!("a root expired on {end}"), BRING));
        } else if left < ROOT {
            findings.push(warn(CHECK, format!("a root expires on {end}"), BRING));
        }
    }
    if roots == 0 && findings.is_empty() {
        findings.push(fail(
            CHECK,
            "configmap weft-system/weft-trust-bundle has no root-cert.pem",
            ANEW,
        ));
    }
    if findings.is_empty() {
        let days = ROOT.whole_days();
        findings.push(ok(
            CHECK,
            format!("{roots} in the trust bundle, none expires within {days} days"),
        ));
    }
    findings
}

pub(super) fn certificates(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "certificates";
    let mut findings = Vec::new();
    let mut good = 0;
    for (proxy, served) in &facts.served {
        let (mut missing, mut late) = (Vec::new(), Vec::new());
        for pod in list(served, "") {
            let name = text(pod, "/pod").to_owned();
            match date(pod, "/certificate/not_after") {
                None => missing.push(name),
                Some(end) if end - facts.now < LEAF => late.push(name),
                Some(_) => good += 1,
            }
        }
        let fix = format!(
            "kubectl -n weft-system logs {proxy}; does the node reach the controller, and are the clocks right?"
        );
        if !missing.is_empty() {
            let pods = some(&missing);
            findings.push(fail(
                CHECK,
                format!("{proxy} has no certificate for {pods}"),
                fix.clone(),
            ));
        }
        if !late.is_empty() {
            let pods = some(&late);
            findings.push(fail(
                CHECK,
                format!("{proxy} could not renew the certificate of {pods}"),
                fix,
            ));
        }
    }
    if findings.is_empty() && !facts.served.is_empty() {
        let hours = LEAF.whole_hours();
        findings.push(ok(
            CHECK,
            format!("{good} pods have one that lasts {hours} h or longer"),
        ));
    }
    findings
}
