use serde_json::{Value, json};

use super::*;

/// Objects as users write them, and a part of what the API shows.
#[test]
fn every_kind_gets_the_apis_defaults() {
    let gateway = "gateway.networking.k8s.io/v1";
    let cases: Vec<(&str, &str, &str, Value, &str, Value)> = vec![
        // apiVersion, kind, field set, its value, pointer, expected
        (
            "v1",
            "Namespace",
            "spec",
            json!({}),
            "/metadata/labels/kubernetes.io~1metadata.name",
            json!("n"),
        ),
        (
            "v1",
            "Namespace",
            "spec",
            json!({}),
            "/status/phase",
            json!("Active"),
        ),
        (
            "v1",
            "Namespace",
            "spec",
            json!({}),
            "/metadata/namespace",
            Value::Null,
        ),
        (
            "v1",
            "Node",
            "spec",
            json!({}),
            "/metadata/namespace",
            Value::Null,
        ),
        (
            "v1",
            "ServiceAccount",
            "secrets",
            json!([]),
            "/metadata/namespace",
            json!("default"),
        ),
        (
            "v1",
            "Pod",
            "spec",
            json!({}),
            "/spec/serviceAccountName",
            json!("default"),
        ),
        (
            "v1",
            "Pod",
            "spec",
            json!({"serviceAccount": "old"}),
            "/spec/serviceAccountName",
            json!("old"),
        ),
        (
            "v1",
            "Pod",
            "spec",
            json!({"serviceAccountName": "a"}),
            "/spec/serviceAccountName",
            json!("a"),
        ),
        (
            "v1",
            "Pod",
            "spec",
            json!({}),
            "/spec/restartPolicy",
            json!("Always"),
        ),
        (
            "v1",
            "Pod",
            "spec",
            json!({}),
            "/spec/terminationGracePeriodSeconds",
            json!(30),
        ),
        (
            "v1",
            "Pod",
            "spec",
            json!({}),
            "/status/phase",
            json!("Pending"),
        ),
        (
            "v1",
            "Pod",
            "spec",
            json!({"containers": [{"ports": [{"containerPort": 80}]}]}),
            "/spec/containers/0/ports/0",
            json!({"containerPort": 80, "protocol": "TCP"}),
        ),
        (
            "v1",
            "Pod",
            "spec",
            json!({"hostNetwork": true, "containers": [{"ports": [{"containerPort": 80}]}]}),
            "/spec/containers/0/ports/0/hostPort",
            json!(80),
        ),
        (
            "v1",
            "Pod",
            "spec",
            json!({"containers": [{"readinessProbe": {"httpGet": {"port": 80}}}]}),
            "/spec/containers/0/readinessProbe",
            json!({
                "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
            }),
        ),
        (
            "v1",
            "Pod",
            "spec",
            json!({"containers": [{"image": "host:5000/a"}, {"image": "a:v1"}, {"image": "a:latest"}]}),
            "/spec/containers/0/imagePullPolicy",
            json!("Always"),
        ),
        (
            "v1",
            "Pod",
            "spec",
            json!({"initContainers": [{"image": "a:v1"}]}),
            "/spec/initContainers/0/imagePullPolicy",
            json!("IfNotPresent"),
        ),
        (
            "apps/v1",
            "Deployment",
            "spec",
            json!({}),
            "/spec/replicas",
            json!(1),
        ),
        (
            "apps/v1",
            "Deployment",
            "spec",
            json!({"replicas": 0}),
            "/spec/replicas",
            json!(0),
        ),
        (
            "apps/v1",
            "Deployment",
            "spec",
            json!({}),
            "/spec/strategy/rollingUpdate/maxSurge",
            json!("25%"),
        ),
        (
            "apps/v1",
            "Deployment",
            "spec",
            json!({"template": {"spec": {"containers": [{}]}}}),
            "/spec/template/spec/serviceAccountName",
            Value::Null,
        ),
        (
            "apps/v1",
            "Deployment",
            "spec",
            json!({"template": {"spec": {"containers": [{}]}}}),
            "/spec/template/spec/restartPolicy",
            json!("Always"),
        ),
        (
            "v1",
            "Service",
            "spec",
            json!({"ports": [{"port": 80}]}),
            "/spec/ports/0",
            json!({"port": 80, "protocol": "TCP", "targetPort": 80}),
        ),
        (
            "v1",
            "Service",
            "spec",
            json!({"ports": [{"port": 80, "targetPort": "http"}]}),
            "/spec/ports/0/targetPort",
            json!("http"),
        ),
        (
            "v1",
            "Service",
            "spec",
            json!({}),
            "/spec/type",
            json!("ClusterIP"),
        ),
        (
            "v1",
            "Service",
            "spec",
            json!({}),
            "/spec/sessionAffinity",
            json!("None"),
        ),
        (
            "v1",
            "Service",
            "spec",
            json!({"clusterIP": "10.0.0.1"}),
            "/spec/clusterIPs",
            json!(["10.0.0.1"]),
        ),
        (
            "v1",
            "Service",
            "spec",
            json!({"clusterIPs": ["fd00::1"]}),
            "/spec/clusterIP",
            json!("fd00::1"),
        ),
        (
            "v1",
            "Service",
            "spec",
            json!({"clusterIPs": ["fd00::1"]}),
            "/spec/ipFamilies",
            json!(["IPv6"]),
        ),
        (
            "v1",
            "Service",
            "spec",
            json!({"clusterIP": "None"}),
            "/spec/clusterIPs",
            json!(["None"]),
        ),
        (
            "v1",
            "Service",
            "spec",
            json!({"clusterIP": "None"}),
            "/spec/ipFamilies",
            Value::Null,
        ),
        (
            "v1",
            "Service",
            "spec",
            json!({"type": "ExternalName"}),
            "/spec/internalTrafficPolicy",
            Value::Null,
        ),
        (
            "discovery.k8s.io/v1",
            "EndpointSlice",
            "ports",
            json!([{"port": 80}]),
            "/ports/0",
            json!({"port": 80, "name": "", "protocol": "TCP"}),
        ),
        (
            gateway,
            "HTTPRoute",
            "spec",
            json!({}),
            "/spec/rules",
            json!([{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]),
        ),
        (
            gateway,
            "HTTPRoute",
            "spec",
            json!({"parentRefs": [{"name": "g"}, {"group": "", "kind": "Service", "name": "s"}]}),
            "/spec/parentRefs",
            json!([
                {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"},
                {"group": "", "kind": "Service", "name": "s"},
            ]),
        ),
        (
            gateway,
            "HTTPRoute",
            "spec",
            json!({"rules": [{"matches": [{"method": "GET"}]}]}),
            "/spec/rules/0/matches/0",
            json!({"method": "GET", "path": {"type": "PathPrefix", "value": "/"}}),
        ),
        (
            gateway,
            "HTTPRoute",
            "spec",
            json!({"rules": [{"matches": [{"path": {"type": null, "value": "/a"}}]}]}),
            "/spec/rules/0/matches/0/path",
            json!({"type": "PathPrefix", "value": "/a"}),
        ),
        (
            gateway,
            "HTTPRoute",
            "spec",
            json!({"rules": [{"matches": [{"headers": [{"name": "a", "value": "b"}], "queryParams": [{"name": "a", "value": "b"}]}]}]}),
            "/spec/rules/0/matches/0",
            json!({
                "path": {"type": "PathPrefix", "value": "/"},
                "headers": [{"type": "Exact", "name": "a", "value": "b"}],
                "queryParams": [{"type": "Exact", "name": "a", "value": "b"}],
            }),
        ),
        (
            gateway,
            "HTTPRoute",
            "spec",
            json!({"rules": [{"backendRefs": [{"name": "a", "port": 80}, {"name": "b", "port": 80, "weight": 0}]}]}),
            "/spec/rules/0/backendRefs",
            json!([
                {"group": "", "kind": "Service", "name": "a", "port": 80, "weight": 1},
                {"group": "", "kind": "Service", "name": "b", "port": 80, "weight": 0},
            ]),
        ),
        (
            gateway,
            "HTTPRoute",
            "spec",
            json!({"rules": [{"filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": "h"}}]}]}),
            "/spec/rules/0/filters/0/requestRedirect",
            json!({"hostname": "h", "statusCode": 302}),
        ),
        (
            gateway,
            "HTTPRoute",
            "spec",
            json!({"rules": [{"backendRefs": [{"name": "a", "filters": [{"requestMirror": {"backendRef": {"name": "m"}, "fraction": {"numerator": 1}}}]}]}]}),
            "/spec/rules/0/backendRefs/0/filters/0/requestMirror",
            json!({"backendRef": {"group": "", "kind": "Service", "name": "m"}, "fraction": {"numerator": 1, "denominator": 100}}),
        ),
        (
            gateway,
            "GRPCRoute",
            "spec",
            json!({"rules": [{"matches": [{"method": {"service": "s"}, "headers": [{"name": "a", "value": "b"}]}]}]}),
            "/spec/rules/0/matches/0",
            json!({"method": {"type": "Exact", "service": "s"}, "headers": [{"type": "Exact", "name": "a", "value": "b"}]}),
        ),
        (
            gateway,
            "GRPCRoute",
            "spec",
            json!({"rules": [{}]}),
            "/spec/rules/0",
            json!({}),
        ),
        (
            "gateway.networking.k8s.io/v1alpha2",
            "TCPRoute",
            "spec",
            json!({"rules": [{"backendRefs": [{"name": "a", "port": 1}]}]}),
            "/spec/rules/0/backendRefs/0/weight",
            json!(1),
        ),
        (
            gateway,
            "TLSRoute",
            "spec",
            json!({"parentRefs": [{"name": "a"}]}),
            "/spec/parentRefs/0/kind",
            json!("Gateway"),
        ),
        (
            gateway,
            "UDPRoute",
            "spec",
            json!({"parentRefs": [{"name": "a", "kind": "Service"}]}),
            "/spec/parentRefs/0/kind",
            json!("Service"),
        ),
        (
            "v1",
            "Pod",
            "future",
            json!({"field": 1}),
            "/future/field",
            json!(1),
        ),
    ];
    for (api_version, kind, field, given, pointer, expected) in cases {
        let mut value = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "n"}});
        value[field] = given.clone();
        apply(&mut value);
        let found = value.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(found, expected, "{kind} with {field} {given}: {pointer}");
        let once = value.clone();
        apply(&mut value);
        assert_eq!(value, once, "defaults of {kind} are idempotent");
    }
}

#[test]
fn every_object_gets_a_stable_identity_unless_it_has_one() {
    let object =
        |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}});
    let (mut a, mut again, mut b) = (object("a"), object("a"), object("b"));
    for value in [&mut a, &mut again, &mut b] {
        apply(value);
    }
    assert_eq!(a["metadata"]["uid"], again["metadata"]["uid"]);
    assert_ne!(a["metadata"]["uid"], b["metadata"]["uid"]);
    assert_eq!(a["metadata"]["uid"].as_str().map(str::len), Some(36));
    assert_eq!(a["metadata"]["generation"], 1);
    assert_eq!(a["metadata"]["creationTimestamp"], EPOCH);

    let mut own = object("a");
    own["metadata"]["uid"] = json!("mine");
    own["metadata"]["generation"] = json!(7);
    apply(&mut own);
    assert_eq!(
        (&own["metadata"]["uid"], &own["metadata"]["generation"]),
        (&json!("mine"), &json!(7))
    );
}

#[test]
fn fields_of_wrong_types_are_left_alone() {
    for kind in ["Pod", "Service", "Namespace"] {
        for bad in [
            json!(1),
            json!("x"),
            json!([1]),
            json!([[1]]),
            json!({"ports": {"a": 1}, "containers": "x"}),
        ] {
            let mut value =
                json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "n"}, "spec": bad});
            apply(&mut value);
            assert_eq!(value["metadata"]["generation"], 1);
        }
    }
    for kind in ["HTTPRoute", "GRPCRoute", "TCPRoute"] {
        for bad in [
            json!(1),
            json!({"rules": 1}),
            json!({"rules": [1, {"matches": 2, "filters": [3]}], "parentRefs": 4}),
        ] {
            let mut value = json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": "n"}, "spec": bad
            });
            apply(&mut value);
            assert_eq!(value["metadata"]["generation"], 1);
        }
    }
    for mut value in [
        json!(1),
        json!({}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": 3}),
    ] {
        let before = value.clone();
        apply(&mut value);
        assert_eq!(value, before);
    }
}
