use weft_api::{discovery::DeltaDiscoveryResponse, names::XDS_PARTIAL};

use super::fake::service;
use crate::{
    model::Locality,
    state::{Kind, State},
    telemetry::{AccessLog, Sink, Telemetry},
    xds::session::Session,
};

fn session() -> Session {
    let telemetry = Telemetry::new(AccessLog::open(&Sink::Off).expect("no log"));
    Session::new(State::new(Locality::default()), telemetry)
}

#[test]
fn a_type_is_answered_once_its_last_part_is_here() {
    let mut session = session();
    for kind in Kind::ALL {
        assert!(!session.is_synced());
        for part in [XDS_PARTIAL, XDS_PARTIAL, ""] {
            assert!(session.missing().contains(kind.label()));
            session.handle(DeltaDiscoveryResponse {
                type_url: kind.type_url().into(),
                system_version_info: part.into(),
                ..DeltaDiscoveryResponse::default()
            });
        }
    }
    assert!(session.is_synced());
}

/// What is not named passes for accepted, so nothing may be left out.
#[test]
fn a_nack_names_every_refused_resource_on_a_line_of_its_own_however_many() {
    let many = 20_000;
    let resources = (0..many).map(|i| {
        let mut bad = service("a", "1", 1);
        bad.name = format!("shop/{i}");
        bad
    });
    let nack = session().handle(DeltaDiscoveryResponse {
        type_url: Kind::Service.type_url().into(),
        resources: resources.collect(),
        ..DeltaDiscoveryResponse::default()
    });
    let message = nack.error_detail.expect("a NACK").message;
    assert!(message.len() < 2 * 1024 * 1024, "{}", message.len());
    let lines: Vec<_> = message.lines().collect();
    assert_eq!(lines.len(), many);
    for (i, line) in lines.iter().enumerate() {
        assert!(
            line.starts_with(&format!("shop/{i}: it is shop/a")),
            "{line}"
        );
    }
}

#[test]
fn a_reason_that_quotes_what_it_refuses_stays_on_its_line() {
    let mut bad = service("a", "1", 1);
    bad.resource.as_mut().expect("a body").type_url = "x\nshop/innocent: refused".into();
    let nack = session().handle(DeltaDiscoveryResponse {
        type_url: Kind::Service.type_url().into(),
        resources: vec![bad],
        ..DeltaDiscoveryResponse::default()
    });
    let message = nack.error_detail.expect("a NACK").message;
    assert_eq!(message.lines().count(), 1, "{message}");
}
