package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"weft.dev/tests/cluster/api"
)

// The application of the tests: two versions of a web server behind one Service, each version on both nodes and
// probed in other ways, and a client on each node.
const shopManifest = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: NS}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: v1, namespace: NS}
spec:
  replicas: 2
  selector: {matchLabels: {app: web, version: v1}}
  template:
    metadata: {labels: {app: web, version: v1}}
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 5
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
         labelSelector: {matchLabels: {app: web, version: v1}}}
      containers:
      - name: web
        image: IMAGE
        args: [server, --http, "8080", --grpc, "9090"]
        env: [{name: VERSION, value: v1}]
        startupProbe: {exec: {command: [/weft-echo, client, "http://127.0.0.1:8080/healthz"]}, periodSeconds: 1,
                       failureThreshold: 60, timeoutSeconds: 5}
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
        livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 2}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: v2, namespace: NS}
spec:
  replicas: 2
  selector: {matchLabels: {app: web, version: v2}}
  template:
    metadata: {labels: {app: web, version: v2}}
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 5
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
         labelSelector: {matchLabels: {app: web, version: v2}}}
      containers:
      - name: web
        image: IMAGE
        args: [server, --http, "8080", --grpc, "9090"]
        env: [{name: VERSION, value: v2}]
        readinessProbe: {grpc: {port: 9090}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: NS}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 9090, appProtocol: kubernetes.io/h2c}]
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: NS}
spec:
  selector: {app: web, version: v1}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 9090, appProtocol: kubernetes.io/h2c}]
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: NS}
spec:
  selector: {app: web, version: v2}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 9090, appProtocol: kubernetes.io/h2c}]
---
# A route says that it is gRPC: of a byte stream nobody knows where a call ends, so it ends with the drain time.
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: web, namespace: NS}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 9090}]
  rules:
  - backendRefs: [{name: web, port: 9090}]
`

const clientManifest = `
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: NS, labels: {app: client}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: IMAGE, args: [server, --http, "8080"]}]
`

// shop is that application in a namespace.
type shop struct {
	fixture
	namespace string
}

// shop starts the application and waits until it is ready.
func (f fixture) shop(t *testing.T, namespace string) shop {
	t.Helper()
	s := shop{fixture: f, namespace: namespace}
	s.apply(t, s.text(shopManifest))
	s.client(t, namespace, "client-1", "node1")
	s.client(t, namespace, "client-2", "node2")
	for _, name := range []string{"v1", "v2"} {
		if err := f.WaitRollout(f.ctx, "Deployment", namespace, name); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s shop) text(manifest string) string {
	return strings.NewReplacer("NS", s.namespace, "IMAGE", s.echoImage()).Replace(manifest)
}

func (f fixture) echoImage() string {
	version, err := f.Tree.WeftVersion()
	if err != nil {
		panic(err) // the checkout is not weft's
	}
	return "weft.dev/weft-echo:" + version
}

// client starts a client pod on a node, and waits until it is ready.
func (f fixture) client(t *testing.T, namespace, name, node string) {
	t.Helper()
	f.apply(t, strings.NewReplacer("NS", namespace, "IMAGE", f.echoImage(), "NAME", name, "NODE", node).
		Replace(clientManifest))
	f.eventually(t, fmt.Sprintf("pod %s/%s to be Ready", namespace, name), func() error {
		pod, err := f.CoreV1().Pods(namespace).Get(f.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !api.Ready(pod) {
			return fmt.Errorf("%s: %v", pod.Status.Phase, pod.Status.Conditions)
		}
		return nil
	})
}

// address is the ClusterIP of a Service.
func (s shop) address(t *testing.T, service string) string {
	t.Helper()
	found, err := s.CoreV1().Services(s.namespace).Get(s.ctx, service, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return found.Spec.ClusterIP
}

// pods are the pods of a selector that are Ready.
func (s shop) pods(t *testing.T, selector string) []corev1.Pod {
	t.Helper()
	found, err := s.WaitPods(s.ctx, s.namespace, selector)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// summary is what weft-echo's client reports.
type summary struct {
	Requests int
	Failed   int
	Statuses map[string]int
	Versions map[string]int
	Pods     map[string]int
	Errors   map[string]int
}

// send sends requests from a pod and reports what came back; failed requests are no error.
func (f fixture) send(ctx context.Context, namespace, pod, url string, flags ...string) (summary, error) {
	argv := append([]string{"/weft-echo", "client", url, "--summary", "--output", "json"}, flags...)
	out, err := f.Exec(ctx, namespace, pod, argv...)
	var report summary
	if decoded := json.Unmarshal([]byte(out), &report); decoded != nil {
		return report, fmt.Errorf("%v says %q: %w, %w", argv, out, decoded, err)
	}
	return report, nil
}

// get is the status of a single request.
func (f fixture) get(namespace, pod, url string, flags ...string) (string, error) {
	report, err := f.send(f.ctx, namespace, pod, url, append(flags, "--timeout", "5s")...)
	if err != nil {
		return "", err
	}
	for status := range report.Statuses {
		return status, nil
	}
	for cause := range report.Errors {
		return cause, nil
	}
	return "", fmt.Errorf("neither a status nor an error: %+v", report)
}

// load is checked load from a pod of its own: new connections and kept ones, HTTP/1.1, HTTP/2 and gRPC, at a
// steady rate. What it reports is in the pod's logs, so that it outlives a node's kubelet and containerd.
type load struct {
	shop
	manifest string
	node     string
	lanes    []string
}

// loadLasts bounds load that nobody stops.
const loadLasts = 8 * time.Minute

const loadManifest = `
apiVersion: v1
kind: Pod
metadata: {name: load, namespace: NS, labels: {app: load}}
spec:
  nodeName: NODE
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
`

// load runs checked load from a node until it is stopped, which tells of requests that failed.
func (s shop) load(t *testing.T, node string) *load {
	t.Helper()
	http, grpc := "http://"+s.address(t, "web")+"/", "grpc://"+s.address(t, "web")+":9090"
	manifest := strings.NewReplacer("NS", s.namespace, "NODE", node).Replace(loadManifest)
	var lanes []string
	for lane, args := range map[string]string{
		"new":  http,
		"kept": http + `", "--keep-alive`,
		"h2":   http + `", "--keep-alive", "--http2`,
		"grpc": grpc + `", "--keep-alive`,
	} {
		lanes = append(lanes, lane)
		manifest += fmt.Sprintf(`  - {name: %s, image: %s, args: [client, --summary, --output, json, --rate, "50",
     --concurrency, "4", --duration, %ds, "%s"]}`+"\n", lane, s.echoImage(), int(loadLasts.Seconds()), args)
	}
	s.apply(t, manifest)
	running := &load{shop: s, manifest: manifest, node: node, lanes: lanes}
	s.eventually(t, "the load to begin", func() error {
		pod, err := running.pod()
		if err == nil && pod.Status.Phase != corev1.PodRunning {
			err = fmt.Errorf("%s: %v", pod.Status.Phase, pod.Status.Conditions)
		}
		return err
	})
	return running
}

func (l *load) pod() (*corev1.Pod, error) {
	return l.CoreV1().Pods(l.namespace).Get(l.ctx, "load", metav1.GetOptions{})
}

// stop ends the load in order, and fails if a request did.
func (l *load) stop(t *testing.T) {
	t.Helper()
	if pod, err := l.pod(); err != nil || pod.Status.Phase != corev1.PodRunning {
		t.Errorf("the load ended before what was done under it: %v", err)
	}
	if _, err := l.OnNode(l.ctx, l.node, "pkill", "-TERM", "-f", "client --summary"); err != nil {
		t.Error(err)
	}
	l.eventually(t, "the load to end", func() error {
		pod, err := l.pod()
		if err == nil && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			err = fmt.Errorf("%s", pod.Status.Phase)
		}
		return err
	})
	requests := 0
	for _, lane := range l.lanes {
		text, err := l.Logs(l.ctx, l.namespace, "load", lane)
		// What it reports is the last that it says.
		lines := strings.Split(strings.TrimSpace(text), "\n")
		var report summary
		if err == nil {
			err = json.Unmarshal([]byte(lines[len(lines)-1]), &report)
		}
		if err != nil || report.Failed > 0 || report.Requests < 10 {
			t.Errorf("%s: %v %+v %s", lane, err, report, text)
		}
		requests += report.Requests
	}
	if err := l.Delete(l.ctx, l.manifest); err != nil {
		t.Error(err)
	}
	t.Logf("%d requests", requests)
}

// label sets a label of a namespace, or takes it away by null.
func (f fixture) label(t *testing.T, namespace, label, value string) {
	t.Helper()
	if value != "null" {
		value = `"` + value + `"`
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, label, value)
	if err := f.Patch(f.ctx, "Namespace", "", namespace, patch); err != nil {
		t.Fatal(err)
	}
}

// captured waits until all pods of a namespace are in the mesh, or none is.
func (f fixture) captured(t *testing.T, namespace string, wanted bool) {
	t.Helper()
	f.eventually(t, fmt.Sprintf("pods of %s in the mesh: %v", namespace, wanted), func() error {
		pods, err := f.CoreV1().Pods(namespace).List(f.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, pod := range pods.Items {
			over := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
			if !over && pod.DeletionTimestamp == nil && (pod.Annotations["weft.dev/captured"] != "") != wanted {
				return fmt.Errorf("%s: annotations %v, conditions %v", pod.Name, pod.Annotations, pod.Status.Conditions)
			}
		}
		return nil
	})
}

const httpRoute = "HTTPRoute.gateway.networking.k8s.io"

// programmed waits until weft says of a route that every proxy has it in force.
func (f fixture) programmed(t *testing.T, kind, namespace, name string) {
	t.Helper()
	f.eventually(t, fmt.Sprintf("%s %s/%s to be programmed", kind, namespace, name), func() error {
		route, err := f.Get(f.ctx, kind, namespace, name)
		if err != nil {
			return err
		}
		return condition(route, "weft.dev/Programmed", "True")
	})
}

// condition says what is wrong if weft's condition of a route's parents is not as wanted, for the generation that
// there is.
func condition(route *unstructured.Unstructured, kind, wanted string) error {
	parents, _, _ := unstructured.NestedSlice(route.Object, "status", "parents")
	seen := 0
	for _, entry := range parents {
		parent := entry.(map[string]any)
		if parent["controllerName"] != "weft.dev/mesh-controller" {
			continue
		}
		conditions, _, _ := unstructured.NestedSlice(parent, "conditions")
		for _, one := range conditions {
			one := one.(map[string]any)
			if one["type"] != kind {
				continue
			}
			seen++
			if one["status"] != wanted || one["observedGeneration"] != route.GetGeneration() {
				return fmt.Errorf("generation %d: %v", route.GetGeneration(), one)
			}
		}
	}
	if seen == 0 {
		return fmt.Errorf("no condition %s: %v", kind, parents)
	}
	return nil
}
