//! The CA's root in a Secret: made once, whichever replica is first; or the operator's own.

use std::{collections::BTreeMap, time::SystemTime};

use anyhow::{Context, bail};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, Error, api::PostParams};
use weft_certs::{CertificateAuthority, bundle::TrustBundle, ca::ROOT_LIFETIME};

use super::{FIELD_MANAGER, Place, until_answered};

/// Keys of the Secret that weft makes.
const CERTIFICATE: &str = "root.pem";
const KEY: &str = "root.key";

/// Which keys hold what in an operator's Secret.
struct Form {
    certificate: &'static str,
    key: &'static str,
    others: &'static [&'static str],
}

/// As Istio's users know it, and cert-manager's.
const FORMS: [Form; 2] = [
    Form {
        certificate: "ca-cert.pem",
        key: "ca-key.pem",
        others: &["cert-chain.pem", "root-cert.pem"],
    },
    Form {
        certificate: "tls.crt",
        key: "tls.key",
        others: &["ca.crt"],
    },
];

/// Opens the CA: that of the Secret `own` if it is named and there, else that of `place`, which is made
/// if it is not there. Beside it, the roots to trust: those of the CA, and where both Secrets are
/// there those of both, for certificates of the other are still in use.
pub async fn open(
    client: &Client,
    place: &Place,
    own: Option<&str>,
    trust_domain: &str,
) -> anyhow::Result<(CertificateAuthority, TrustBundle)> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &place.namespace);
    let read = |name: String| {
        let api = api.clone();
        async move {
            let what = format!("read the Secret {}/{name}", place.namespace);
            until_answered(&what, || api.get_opt(&name)).await
        }
    };
    if let Some(own) = own {
        if let Some(secret) = read(own.to_owned()).await {
            let named = || format!("use the CA of the Secret {}/{own}", place.namespace);
            let (ca, mut roots) = assemble(&secret, trust_domain).with_context(named)?;
            if let Some(made) = read(place.name.clone()).await {
                let made = load(&made, place, trust_domain)?;
                roots = roots.union(&made.trust_bundle()?);
            }
            tracing::info!(secret = own, "the CA is the operator's own");
            return Ok((ca, roots));
        }
        tracing::info!(
            secret = own,
            "there is no such Secret: the CA is weft's own, and stays so until the controller restarts"
        );
    }
    let secret = match read(place.name.clone()).await {
        Some(secret) => secret,
        None => make(&api, place, trust_domain).await?,
    };
    let ca = load(&secret, place, trust_domain)?;
    let roots = ca.trust_bundle()?;
    Ok((ca, roots))
}

/// Makes a root, unless another replica has done so meanwhile: then that one counts.
async fn make(api: &Api<Secret>, place: &Place, trust_domain: &str) -> anyhow::Result<Secret> {
    let ca = CertificateAuthority::generate(trust_domain, SystemTime::now(), ROOT_LIFETIME)
        .context("make the CA's root")?;
    let (certificate, key) = ca.to_pem();
    let mut secret = Secret {
        data: Some(BTreeMap::from([
            (CERTIFICATE.to_owned(), ByteString(certificate.into_bytes())),
            (KEY.to_owned(), ByteString(key.into_bytes())),
        ])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    secret.metadata.name = Some(place.name.clone());
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let secret = until_answered(&format!("make the Secret {place}"), || async {
        match api.create(&params, &secret).await {
            Ok(made) => {
                tracing::info!(secret = %place, trust_domain, "made a new root");
                Ok(made)
            }
            Err(Error::Api(status)) if status.code == 409 => api.get(&place.name).await,
            Err(error) => Err(error),
        }
    })
    .await;
    Ok(secret)
}

fn load(
    secret: &Secret,
    place: &Place,
    trust_domain: &str,
) -> anyhow::Result<CertificateAuthority> {
    let (Some(certificate), Some(key)) = (text(secret, CERTIFICATE)?, text(secret, KEY)?) else {
        bail!(
            "the Secret {place} lacks {CERTIFICATE} or {KEY}: restore it, or remove it to begin with a \
             new root that no running proxy trusts"
        );
    };
    CertificateAuthority::load(trust_domain, &certificate, &key)
        .with_context(|| format!("load the CA from the Secret {place}"))
}

fn assemble(
    secret: &Secret,
    trust_domain: &str,
) -> anyhow::Result<(CertificateAuthority, TrustBundle)> {
    for form in &FORMS {
        let (Some(certificate), Some(key)) =
            (text(secret, form.certificate)?, text(secret, form.key)?)
        else {
            continue;
        };
        let mut others = String::new();
        for name in form.others {
            if let Some(pem) = text(secret, name)? {
                others.push_str(&pem);
                others.push('\n');
            }
        }
        return Ok(CertificateAuthority::assemble(
            trust_domain,
            &certificate,
            &key,
            &others,
        )?);
    }
    let forms = FORMS.map(|form| format!("{} and {}", form.certificate, form.key));
    bail!("it holds neither {}", forms.join(" nor "))
}

fn text(secret: &Secret, key: &str) -> anyhow::Result<Option<String>> {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value
        .map(|bytes| String::from_utf8(bytes.0.clone()).with_context(|| format!("{key} is no PEM")))
        .transpose()
}

#[cfg(test)]
#[path = "ca_secret_tests.rs"]
mod tests;
