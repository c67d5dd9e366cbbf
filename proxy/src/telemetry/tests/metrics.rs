use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use tokio::time::advance;

use super::labels;
use crate::{
    limits::PodLimits,
    model::RouteRef,
    settings::Settings,
    state::Kind,
    telemetry::{AccessLog, Direction, Labels, Peer, Side, Sink, Telemetry, Tunnel, series::IDLE},
};

fn telemetry(cap: usize) -> Arc<Telemetry> {
    Telemetry::with_cap(AccessLog::open(&Sink::Off).expect("no log"), cap)
}

/// The values of the series whose lines contain all of these words.
fn values(telemetry: &Telemetry, words: &[&str]) -> Vec<f64> {
    let text = telemetry.encode();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let matching = lines.filter(|line| words.iter().all(|word| line.contains(word)));
    let values = matching.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok());
    values.collect()
}

#[test]
fn a_request_is_counted_with_who_where_and_how_it_ended() {
    let telemetry = telemetry(10);
    let route = RouteRef {
        kind: "HTTPRoute".into(),
        name: "shop/canary".into(),
        rule: "2".into(),
    };
    let requests = telemetry.requests(&labels("front").route(&route));
    let ms = Duration::from_millis;
    for _ in 0..3 {
        requests.record(200, Some(ms(3)), ms(30));
    }
    requests.record(503, Some(ms(1)), ms(2));
    requests.record(418, None, ms(2));
    requests.record(0, None, Duration::from_secs(60));

    let all = "weft_requests_total{direction=\"outbound\",tls=\"mtls\",source_workload=\"front\",\
        source_namespace=\"web\",source_identity=\"spiffe://cluster.local/ns/web/sa/default\",\
        destination_workload=\"checkout\",destination_namespace=\"shop\",\
        destination_identity=\"spiffe://cluster.local/ns/shop/sa/default\",\
        service=\"shop/checkout\",route=\"shop/canary\",rule=\"2\"";
    for (code, count) in [("200", 3.0), ("503", 1.0), ("4xx", 1.0), ("none", 1.0)] {
        let code = format!(",response_code=\"{code}\"}} ");
        assert_eq!(values(&telemetry, &[all, &code]), [count], "{code}");
    }
    let duration = "weft_request_duration_seconds";
    assert_eq!(values(&telemetry, &[duration, "_count{"]), [6.0]);
    let bucket = |le: &str| values(&telemetry, &[duration, &format!("le=\"{le}\"")]);
    assert_eq!(bucket("0.0025"), [2.0]);
    assert_eq!(bucket("0.05"), [5.0]);
    assert_eq!(bucket("10.0"), [5.0]);
    assert_eq!(bucket("+Inf"), [6.0]);
    let sum = values(&telemetry, &[duration, "_sum{"]);
    assert!((sum[0] - 60.094).abs() < 1e-6, "{sum:?}");
    let first_byte = "weft_request_first_byte_seconds";
    assert_eq!(values(&telemetry, &[first_byte, "_count{"]), [4.0]);
}

#[test]
fn a_connection_is_open_until_its_handle_is_dropped() {
    let telemetry = telemetry(10);
    let connection = telemetry.connection_opened(&labels("front"));
    connection.sent(10);
    connection.sent(5);
    connection.received(1_000);
    let value = |name: &str| values(&telemetry, &[name]);
    assert_eq!(value("weft_tcp_connections_opened_total{"), [1.0]);
    assert_eq!(value("weft_tcp_connections_closed_total{"), [0.0]);
    assert_eq!(value("weft_tcp_sent_bytes_total{"), [15.0]);
    assert_eq!(value("weft_tcp_received_bytes_total{"), [1_000.0]);
    drop(connection);
    assert_eq!(value("weft_tcp_connections_closed_total{"), [1.0]);
}

#[test]
fn rare_events_are_counted_by_the_programs_own_words() {
    let telemetry = telemetry(10);
    telemetry.error(Direction::Inbound, "strict_plaintext");
    telemetry.handshake(Side::Server, Ok(()));
    telemetry.handshake(Side::Client, Err("expired"));
    telemetry.sniff_fallback("timeout");
    telemetry.http_protocol_error("http/1.1", "two_lengths");
    telemetry.xds_rejected(Kind::RouteTable, 2);
    let tunnel = telemetry.tunnel_opened(Side::Client);
    let id = "spiffe://cluster.local/ns/shop/sa/default";
    telemetry.certificate(id, Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000)));
    let certificate = format!("weft_certificate_expiry_timestamp_seconds{{identity=\"{id}\"}}");
    for (line, expected) in [
        (
            "weft_errors_total{direction=\"inbound\",reason=\"strict_plaintext\"}",
            1.0,
        ),
        (
            "weft_handshakes_total{side=\"server\",result=\"ok\",reason=\"\"}",
            1.0,
        ),
        (
            "weft_handshakes_total{side=\"client\",result=\"failed\",reason=\"expired\"}",
            1.0,
        ),
        ("weft_sniff_fallbacks_total{reason=\"timeout\"}", 1.0),
        (
            "weft_http_protocol_errors_total{protocol=\"http/1.1\",reason=\"two_lengths\"}",
            1.0,
        ),
        (
            "weft_xds_rejected_resources_total{type=\"route_table\"}",
            2.0,
        ),
        ("weft_tunnels_open{side=\"client\"}", 1.0),
        (&certificate, 1.8e9),
    ] {
        assert_eq!(values(&telemetry, &[line]), [expected], "{line}");
    }
    drop(tunnel);
    telemetry.certificate(id, None);
    assert_eq!(values(&telemetry, &["weft_tunnels_open{"]), [0.0]);
    assert!(values(&telemetry, &[certificate.as_str()]).is_empty());
}

#[test]
fn label_sets_beyond_the_cap_are_counted_together_and_none_is_lost() {
    let telemetry = telemetry(3);
    for client in 0..10 {
        let requests = telemetry.requests(&labels(&format!("client-{client}")));
        requests.record(200, None, Duration::ZERO);
    }
    let counts = values(&telemetry, &["weft_requests_total{"]);
    assert_eq!(counts.len(), 4, "three and the overflow");
    assert_eq!(counts.iter().sum::<f64>(), 10.0);
    let overflow = [
        "weft_requests_total{direction=\"outbound\"",
        "service=\"overflow\"",
    ];
    assert_eq!(values(&telemetry, &overflow), [7.0]);
    assert_eq!(
        values(&telemetry, &["weft_series_overflowed_total "]),
        [7.0]
    );

    // Who has a series keeps it.
    telemetry
        .requests(&labels("client-0"))
        .record(200, None, Duration::ZERO);
    assert_eq!(
        values(&telemetry, &["weft_requests_total{", "client-0"]),
        [2.0]
    );
}

#[tokio::test(start_paused = true)]
async fn idle_series_end_unless_someone_holds_them_and_make_room() {
    let telemetry = telemetry(2);
    let held = telemetry.requests(&labels("held"));
    held.record(200, None, Duration::ZERO);
    telemetry
        .requests(&labels("idle"))
        .record(200, None, Duration::ZERO);
    let count = |name: &str| values(&telemetry, &["weft_requests_total{", name]).len();
    assert_eq!((count("held"), count("idle")), (1, 1));

    advance(IDLE / 2).await;
    assert_eq!((count("held"), count("idle")), (1, 1), "not yet");
    advance(IDLE).await;
    assert_eq!((count("held"), count("idle")), (1, 0));

    telemetry
        .requests(&labels("new"))
        .record(200, None, Duration::ZERO);
    assert_eq!((count("new"), count("overflow")), (1, 0));
    held.record(200, None, Duration::ZERO);
    assert_eq!(values(&telemetry, &["weft_requests_total{", "held"]), [2.0]);
}

#[tokio::test(start_paused = true)]
async fn a_full_map_finds_room_without_a_scrape() {
    let telemetry = telemetry(1);
    telemetry
        .requests(&labels("old"))
        .record(200, None, Duration::ZERO);
    // The first look notes the activity, the second finds it unchanged.
    telemetry.requests(&labels("a"));
    advance(IDLE + Duration::from_secs(1)).await;
    telemetry
        .requests(&labels("b"))
        .record(200, None, Duration::ZERO);
    assert_eq!(
        values(&telemetry, &["weft_requests_total{", "\"b\""]),
        [1.0]
    );
}

#[test]
fn no_series_is_shown_twice() {
    let telemetry = telemetry(1);
    // Both are plaintext, and both find no room.
    for tunnel in [
        Tunnel::Hbone,
        Tunnel::Plaintext,
        Tunnel::Passthrough,
        Tunnel::None,
    ] {
        for direction in [Direction::Outbound, Direction::Inbound] {
            let labels = Labels::new(direction, tunnel, Peer::unknown(), Peer::unknown());
            telemetry
                .requests(&labels)
                .record(200, None, Duration::ZERO);
            telemetry.connection_opened(&labels);
        }
    }
    let text = telemetry.encode();
    let series = text
        .lines()
        .filter_map(|line| Some(line.rsplit_once(' ')?.0));
    let mut seen = std::collections::HashSet::new();
    for line in series.filter(|line| !line.starts_with('#')) {
        assert!(seen.insert(line), "{line}");
    }
}

#[test]
fn what_users_name_cannot_break_the_format() {
    let telemetry = telemetry(10);
    let requests = telemetry.requests(&labels("a\"b\\c\nd"));
    requests.record(200, None, Duration::ZERO);
    assert_eq!(
        values(&telemetry, &["weft_requests_total{", "a\\\"b\\\\c\\nd"]),
        [1.0]
    );
}

#[test]
fn a_pods_cost_is_shown_while_it_is_served() {
    let telemetry = telemetry(10);
    let (old, new) = (
        Arc::new(AtomicU64::new(1_500_000_000)),
        Arc::new(AtomicU64::new(0)),
    );
    // A pod's old sandbox still drains beside its new one.
    let pods = [&old, &new].map(|busy| {
        let limits = PodLimits::new("shop".into(), "checkout".into(), Settings::default());
        telemetry.pod(&limits, busy);
        limits
    });
    let line = r#"weft_pod_busy_seconds_total{namespace="shop",pod="checkout"} "#;
    new.store(500_000_000, Ordering::Relaxed);
    let text = telemetry.encode();
    assert!(text.contains(&format!("{line}2.0")), "{text}");
    drop(pods);
    assert!(!telemetry.encode().contains("weft_pod_busy"), "it has gone");
}
