package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft.dev/tests/cluster/cluster"
)

// installed brings the cluster up with weft, installed by its chart.
func installed(t *testing.T) fixture {
	t.Helper()
	f := up(t)
	if err := f.InstallWeft(t.Context(), options.Release); err != nil { // which may build
		f.parts(t)
		t.Fatal(err)
	}
	return patient(t)
}

// patient is the cluster for a test of many steps.
func patient(t *testing.T) fixture {
	t.Helper()
	f := up(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*testPatience)
	t.Cleanup(cancel)
	f.ctx = ctx
	return f
}

// parts logs how weft's own pods are, and the last of what they said.
func (f fixture) parts(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pods, err := f.CoreV1().Pods(cluster.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Log(err)
		return
	}
	for _, pod := range pods.Items {
		text, err := f.Logs(ctx, pod.Namespace, pod.Name, "")
		lines := strings.Split(text, "\n")
		lines = lines[max(0, len(lines)-25):]
		t.Logf("%s on %s: %s %v %v\n%s", pod.Name, pod.Spec.NodeName, pod.Status.Phase,
			pod.Status.ContainerStatuses, err, strings.Join(lines, "\n"))
	}
}

const canary = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: NS}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
  - matches: [{headers: [{name: x-tester, value: "yes"}]}]
    backendRefs: [{name: v2, port: 80}]
  - backendRefs: [{name: v1, port: 80, weight: W1}, {name: v2, port: 80, weight: W2}]
`

func (s shop) canary(t *testing.T, first, second string) {
	t.Helper()
	s.apply(t, strings.NewReplacer("W1", first, "W2", second).Replace(s.text(canary)))
}

// The way of a person through the mesh, each step under load; what fails on one is told by name.
func TestInstallEnableCanaryStrictDisableUninstall(t *testing.T) {
	f := installed(t)
	t.Cleanup(func() {
		if t.Failed() {
			f.parts(t)
		}
	})
	const namespace, plain = "shop", "plain"
	f.namespace(t, namespace)
	f.namespace(t, plain)
	s := f.shop(t, namespace)
	f.client(t, plain, "client", "node1")
	url := "http://" + s.address(t, "web") + "/"

	step(t, "pods that run join and leave without a lost request or a restart", func(t *testing.T) {
		under := s.load(t, "node1")
		for range 2 {
			f.label(t, namespace, "weft.dev/mesh", "enabled")
			f.captured(t, namespace, true)
			f.label(t, namespace, "weft.dev/mesh", "null")
			f.captured(t, namespace, false)
		}
		f.label(t, namespace, "weft.dev/mesh", "enabled")
		f.captured(t, namespace, true)
		under.stop(t)
		for _, pod := range s.pods(t, "app=web") {
			if got := f.restarts(t, pod); got != 0 {
				t.Errorf("%s was restarted %d times", pod.Name, got)
			}
		}
	})
	step(t, "pods on the same and on another node are reached", func(t *testing.T) {
		for _, client := range []string{"client-1", "client-2"} {
			report, err := s.send(f.ctx, namespace, client, url, "-n", "200", "-c", "8")
			if err != nil || report.Failed > 0 || len(report.Pods) != 4 {
				t.Errorf("%s: %+v %v", client, report, err)
			}
		}
	})
	step(t, "a canary is in force within a second, and its status says so", func(t *testing.T) {
		s.canary(t, "1", "0")
		f.programmed(t, httpRoute, namespace, "web")
		for _, one := range []struct {
			weights [2]string
			version string
		}{{[2]string{"0", "1"}, "v2"}, {[2]string{"1", "0"}, "v1"}} {
			s.canary(t, one.weights[0], one.weights[1])
			time.Sleep(time.Second) // what is promised
			report, err := s.send(f.ctx, namespace, "client-1", url, "-n", "30", "--keep-alive")
			if err != nil || report.Failed > 0 || report.Versions[one.version] != 30 {
				t.Errorf("all to %s: %+v %v", one.version, report, err)
			}
			f.programmed(t, httpRoute, namespace, "web")
		}
		report, err := s.send(f.ctx, namespace, "client-2", url, "-n", "20", "-H", "x-tester:yes")
		if err != nil || report.Versions["v2"] != 20 {
			t.Errorf("testers: %+v %v", report, err)
		}
		s.canary(t, "3", "1")
		f.programmed(t, httpRoute, namespace, "web")
		report, err = s.send(f.ctx, namespace, "client-1", url, "-n", "80")
		if err != nil || report.Versions["v1"]+report.Versions["v2"] != 80 ||
			report.Versions["v2"] < 18 || report.Versions["v2"] > 22 {
			t.Errorf("three to one: %+v %v", report, err)
		}
	})
	step(t, "another controller's entry in a route's status stays", s.foreignStatus)
	step(t, "an HTTPRoute that can't be read leaves others as they are", s.malformed)
	step(t, "without a controller traffic, new connections and new pods go on", s.withoutController)
	step(t, "an upgrade and its rollback replace every part without a lost request", s.upgraded)
	step(t, "an agent and a containerd that are restarted are not noticed", s.restartedParts)
	step(t, "a proxy gets certificates for the pods of its own node alone", s.foreignCertificate)
	step(t, "in strict mode plaintext is refused, and all probes still pass", func(t *testing.T) {
		if status, err := f.get(plain, "client", url); err != nil || status != "200" {
			t.Errorf("permissive: %s %v", status, err)
		}
		f.label(t, namespace, "weft.dev/mtls", "strict")
		f.eventually(t, "plaintext to be refused", func() error {
			status, err := f.get(plain, "client", url)
			if err == nil && status == "200" {
				err = errors.New("it is answered")
			}
			if err != nil {
				return err
			}
			return nil
		})
		report, err := s.send(f.ctx, namespace, "client-2", url, "-n", "20")
		if err != nil || report.Failed > 0 {
			t.Errorf("in the mesh: %+v %v", report, err)
		}
		time.Sleep(5 * time.Second) // several periods of each probe, with three failures
		for _, pod := range s.pods(t, "app=web") {
			if got := f.restarts(t, pod); got != 0 {
				t.Errorf("%s was restarted %d times", pod.Name, got)
			}
		}
		f.label(t, namespace, "weft.dev/mtls", "null")
	})
	step(t, "a node that reboots starts no pod of the mesh unprotected", s.reboot)
	step(t, "a namespace leaves, and the chart's end leaves nothing on the nodes", func(t *testing.T) {
		before := s.load(t, "node1")
		if _, err := f.Helm(f.ctx, "uninstall", cluster.Release, "--namespace", cluster.Namespace, "--wait",
			"--timeout", "3m"); err != nil {
			t.Fatal(err)
		}
		f.captured(t, namespace, false)
		before.stop(t)
		f.clean(t, namespace)
	})
}

// step runs one step of a way; the next would fail for its failure's sake alone.
func step(t *testing.T, name string, run func(t *testing.T)) {
	t.Helper()
	if !t.Run(name, run) {
		t.FailNow()
	}
}

// foreignStatus has another controller write into a route's status between weft's own writes.
func (s shop) foreignStatus(t *testing.T) {
	const foreign = `{"controllerName":"example.com/other","parentRef":{"group":"","kind":"Service","name":"web",` +
		`"port":80},"conditions":[{"type":"Accepted","status":"False","reason":"NotMine","message":"hands off",` +
		`"lastTransitionTime":"2026-01-01T00:00:00Z","observedGeneration":1}]}`
	routes, err := s.Kind(httpRoute, s.namespace)
	if err != nil {
		t.Fatal(err)
	}
	route, err := routes.Get(s.ctx, "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var entry any
	if err := json.Unmarshal([]byte(foreign), &entry); err != nil {
		t.Fatal(err)
	}
	status := route.Object["status"].(map[string]any)
	status["parents"] = append(status["parents"].([]any), entry)
	if _, err := routes.UpdateStatus(s.ctx, route, metav1.UpdateOptions{FieldManager: "other"}); err != nil {
		t.Fatal(err)
	}
	for _, weights := range [][2]string{{"1", "1"}, {"2", "1"}} {
		s.canary(t, weights[0], weights[1])
		s.programmed(t, httpRoute, s.namespace, "web")
		route, err := routes.Get(s.ctx, "web", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(route.Object["status"])
		if err != nil || !strings.Contains(string(text), "hands off") {
			t.Errorf("%s %v", text, err)
		}
	}
}

// malformed applies a route that weft can't compile, beside one that it can.
func (s shop) malformed(t *testing.T) {
	manifest := s.text(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: bad, namespace: NS}
spec:
  parentRefs: [{group: "", kind: Service, name: v1, port: 80}]
  rules:
  - matches: [{path: {type: RegularExpression, value: "/(unclosed"}}]
    backendRefs: [{name: v1, port: 80}]
`)
	s.apply(t, manifest)
	defer func() {
		if err := s.Delete(s.ctx, manifest); err != nil {
			t.Error(err)
		}
	}()
	s.eventually(t, "the status of the bad route", func() error {
		route, err := s.Get(s.ctx, httpRoute, s.namespace, "bad")
		if err != nil {
			return err
		}
		return condition(route, "Accepted", "False")
	})
	s.canary(t, "0", "1")
	s.programmed(t, httpRoute, s.namespace, "web")
	report, err := s.send(s.ctx, s.namespace, "client-1", "http://"+s.address(t, "web")+"/", "-n", "20")
	if err != nil || report.Versions["v2"] != 20 {
		t.Errorf("the good route: %+v %v", report, err)
	}
	s.canary(t, "1", "1")
	s.programmed(t, httpRoute, s.namespace, "web")
}

// withoutController kills the controllers, and then has none at all.
func (s shop) withoutController(t *testing.T) {
	scale := func(replicas int) {
		t.Helper()
		patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)
		if err := s.Patch(s.ctx, "Deployment.apps", cluster.Namespace, "weft-controller", patch); err != nil {
			t.Fatal(err)
		}
	}
	const controllers = "app.kubernetes.io/name=weft-controller"
	under := s.load(t, "node2")
	if _, err := s.WaitPods(s.ctx, cluster.Namespace, controllers); err != nil {
		t.Fatal(err)
	}
	now := int64(0)
	err := s.CoreV1().Pods(cluster.Namespace).DeleteCollection(s.ctx, metav1.DeleteOptions{GracePeriodSeconds: &now},
		metav1.ListOptions{LabelSelector: controllers})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WaitRollout(s.ctx, "Deployment", cluster.Namespace, "weft-controller"); err != nil {
		t.Fatal(err)
	}
	scale(0)
	s.eventually(t, "no controller", func() error {
		pods, err := s.CoreV1().Pods(cluster.Namespace).List(s.ctx, metav1.ListOptions{LabelSelector: controllers})
		if err == nil && len(pods.Items) > 0 {
			err = fmt.Errorf("%d are left", len(pods.Items))
		}
		return err
	})
	// Its service account has a certificate on that node already.
	s.client(t, s.namespace, "newcomer", "node1")
	report, err := s.send(s.ctx, s.namespace, "newcomer", "http://"+s.address(t, "web")+"/", "-n", "20")
	if err != nil || report.Failed > 0 {
		t.Errorf("a pod that started without a controller: %+v %v", report, err)
	}
	scale(2)
	if err := s.WaitRollout(s.ctx, "Deployment", cluster.Namespace, "weft-controller"); err != nil {
		t.Fatal(err)
	}
	under.stop(t)
	// Whoever writes status now goes on with it.
	s.canary(t, "1", "2")
	s.programmed(t, httpRoute, s.namespace, "web")
}

// upgraded has Helm replace controllers, agents and proxies on all nodes, and thinks better of it.
func (s shop) upgraded(t *testing.T) {
	under := s.load(t, "node1")
	for _, args := range [][]string{
		{"upgrade", cluster.Release, s.Chart(), "--reuse-values", "--set", "log.level=debug"},
		{"rollback", cluster.Release},
	} {
		args = append(args, "--namespace", cluster.Namespace, "--wait", "--timeout", "3m")
		before := s.partsByUID(t)
		if _, err := s.Helm(s.ctx, args...); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"weft-cni", "weft-proxy"} {
			if err := s.WaitRollout(s.ctx, "DaemonSet", cluster.Namespace, name); err != nil {
				t.Fatal(err)
			}
		}
		for uid := range s.partsByUID(t) {
			if name, stayed := before[uid]; stayed {
				t.Errorf("helm %s left %s as it was", args[0], name)
			}
		}
	}
	under.stop(t)
}

// partsByUID names weft's own pods by UID, but for those that are about to end.
func (f fixture) partsByUID(t *testing.T) map[types.UID]string {
	t.Helper()
	pods, err := f.CoreV1().Pods(cluster.Namespace).List(f.ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	named := map[types.UID]string{}
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil {
			named[pod.UID] = pod.Name
		}
	}
	return named
}

// restart replaces the pods of a DaemonSet of weft's.
func (s shop) restart(t *testing.T, name string) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"weft.dev/test":%q}}}}}`,
		time.Now().Format(time.RFC3339Nano))
	if err := s.Patch(s.ctx, "DaemonSet.apps", cluster.Namespace, name, patch); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitRollout(s.ctx, "DaemonSet", cluster.Namespace, name); err != nil {
		t.Fatal(err)
	}
}

// restartedParts replaces the agents, and restarts a node's containerd and kubelet.
func (s shop) restartedParts(t *testing.T) {
	under := s.load(t, "node1")
	s.restart(t, "weft-cni")
	for _, unit := range []string{"containerd", "kubelet"} {
		if err := s.RestartUnit("node1", unit); err != nil {
			t.Fatal(err)
		}
	}
	// A pod that starts now is in the mesh from its first packet on.
	s.eventually(t, "a pod on the node", func() error {
		err := s.Delete(s.ctx, s.text("{apiVersion: v1, kind: Pod, metadata: {name: newcomer, namespace: NS}}"))
		return err
	})
	s.client(t, s.namespace, "newcomer", "node1")
	s.captured(t, s.namespace, true)
	under.stop(t)
}

// reboot cuts a node's power, and looks whether what starts there is protected from the first packet on.
func (s shop) reboot(t *testing.T) {
	s.label(t, s.namespace, "weft.dev/mtls", "strict")
	if err := s.Reboot(s.ctx, "node2", options); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitNodes(s.ctx, options.Nodes); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"weft-cni", "weft-proxy"} {
		if err := s.WaitRollout(s.ctx, "DaemonSet", cluster.Namespace, name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"v1", "v2"} {
		if err := s.WaitRollout(s.ctx, "Deployment", s.namespace, name); err != nil {
			t.Fatal(err)
		}
	}
	s.captured(t, s.namespace, true)
	s.eventually(t, "answers of all pods, on both nodes", func() error {
		report, err := s.send(s.ctx, s.namespace, "client-1", "http://"+s.address(t, "web")+"/", "-n", "200",
			"-c", "8")
		if err == nil && (report.Failed > 0 || len(report.Pods) != 4) {
			err = fmt.Errorf("%+v", report)
		}
		return err
	})
	s.label(t, s.namespace, "weft.dev/mtls", "null")
}

// clean fails if anything of weft is left on a node: redirects in pods, rules, plugin, chain, records.
func (f fixture) clean(t *testing.T, namespace string) {
	t.Helper()
	const look = `
for netns in /run/netns/*; do
	nsenter --net=$netns nft list tables | grep weft && echo "in $netns"
	nsenter --net=$netns ip rule show | grep -w 0x111 && echo "in $netns"
done
nft list tables | grep weft
ls -A /opt/cni/bin | grep weft
ls -A /etc/cni/net.d | grep -E 'weft.(kubeconfig|saved)'
grep -rl weft-cni /etc/cni/net.d
ls -A /run/weft/sandboxes 2>/dev/null
true`
	nodes, err := f.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		// The records are the last that an agent takes along, at its own end.
		f.eventually(t, "nothing of weft's on "+node.Name, func() error {
			left, err := f.OnNode(f.ctx, node.Name, "sh", "-c", look)
			if err == nil && strings.TrimSpace(left) != "" {
				err = errors.New(left)
			}
			return err
		})
	}
}

// weft runs the command line, as a user would.
func (f fixture) weft(t *testing.T, args ...string) string {
	t.Helper()
	bin := os.Getenv("WEFT_BIN_DIR")
	if bin == "" {
		t.Fatal("WEFT_BIN_DIR does not say where weft is; run `make cluster-test`")
	}
	command := exec.CommandContext(f.ctx, filepath.Join(bin, "weft"), args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+f.Kubeconfig())
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("weft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// The same way by the command line alone.
func TestTheCommandLineInstallsEnablesChecksAndUninstalls(t *testing.T) {
	f := patient(t)
	if _, err := f.LoadWeft(t.Context(), options.Release); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			f.parts(t)
		}
	})
	f.weft(t, "check", "--pre")
	f.weft(t, "install")
	const namespace = "store"
	f.namespace(t, namespace)
	s := f.shop(t, namespace)
	f.weft(t, "enable", namespace, "--strict")
	f.captured(t, namespace, true)
	if out := f.weft(t, "check"); strings.Contains(out, "FAIL") {
		t.Error(out)
	}
	if out := f.weft(t, "status"); !strings.Contains(out, namespace) {
		t.Error(out)
	}
	report, err := s.send(f.ctx, namespace, "client-1", "http://"+s.address(t, "web")+"/", "-n", "200",
		"-c", "8")
	if err != nil || report.Failed > 0 || len(report.Pods) != 4 {
		t.Errorf("%+v %v", report, err)
	}
	f.weft(t, "disable", namespace)
	f.captured(t, namespace, false)
	f.weft(t, "enable", namespace)
	f.captured(t, namespace, true)
	f.weft(t, "uninstall")
	f.captured(t, namespace, false)
	f.clean(t, namespace)
}
