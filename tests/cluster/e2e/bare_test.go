package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.dev/tests/cluster/api"
	"weft.dev/tests/cluster/cluster"
)

// A server on each node, with each kind of probe; the probes wait for nothing so that tests are quick.
const echoManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, namespace: NS}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
         labelSelector: {matchLabels: {app: echo}}}
      containers:
      - name: echo
        image: IMAGE
        args: [--port=8080, --grpc=7070]
        startupProbe: {exec: {command: [client, "http://127.0.0.1:8080/"]}, periodSeconds: 1, failureThreshold: 60,
                       timeoutSeconds: 5}
        livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: NS}
spec:
  type: NodePort
  selector: {app: echo}
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
`

func (f fixture) echo(t *testing.T, namespace string) []corev1.Pod {
	t.Helper()
	f.apply(t, strings.NewReplacer("NS", namespace, "IMAGE", cluster.EchoImage).Replace(echoManifest))
	if err := f.WaitRollout(f.ctx, "Deployment", namespace, "echo"); err != nil {
		t.Fatal(err)
	}
	pods, err := f.WaitPods(f.ctx, namespace, "app=echo")
	if err != nil {
		t.Fatal(err)
	}
	return pods
}

// request calls a URL from a pod, by exec, count times.
func (f fixture) request(pod corev1.Pod, count int, url string) (string, error) {
	return f.Exec(f.ctx, pod.Namespace, pod.Name, "client", "--count", fmt.Sprint(count), "--timeout", "5s", url)
}

func TestABareClusterDoesWhatAKubernetesDoes(t *testing.T) {
	f := up(t)
	const namespace = "bare"
	f.namespace(t, namespace)
	pods := f.echo(t, namespace)
	if len(pods) != 2 || pods[0].Spec.NodeName == pods[1].Spec.NodeName {
		t.Fatalf("want a pod on each of two nodes, have %d", len(pods))
	}
	for i, from := range pods {
		to := pods[1-i]
		t.Run("pods reach each other across nodes with their own addresses, from "+from.Spec.NodeName,
			func(t *testing.T) {
				out, err := f.request(from, 1, fmt.Sprintf("http://%s:8080/", to.Status.PodIP))
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(out, "Hostname="+to.Name) || !strings.Contains(out, "IP="+from.Status.PodIP) {
					t.Error(out)
				}
			})
	}
	t.Run("a Service's name resolves, and its address leads to both nodes", func(t *testing.T) {
		f.eventually(t, "answers of both pods", func() error {
			out, err := f.request(pods[0], 20, "http://echo."+namespace+"/")
			if err != nil {
				return err
			}
			for _, pod := range pods {
				if !strings.Contains(out, "Hostname="+pod.Name) {
					return fmt.Errorf("none from %s: %s", pod.Name, out)
				}
			}
			return nil
		})
	})
	t.Run("a NodePort answers on every node", func(t *testing.T) {
		for number := 1; number <= 2; number++ {
			node, err := f.Node(fmt.Sprintf("node%d", number))
			if err != nil {
				t.Fatal(err)
			}
			f.eventually(t, "NodePort of "+node.Name, func() error {
				return get(fmt.Sprintf("http://%s:30080/", node.Address()))
			})
		}
	})
	t.Run("logs are served", func(t *testing.T) {
		text, err := f.Logs(f.ctx, namespace, pods[0].Name, "echo")
		if err != nil || !strings.Contains(text, "8080") {
			t.Errorf("%v: %s", err, text)
		}
	})
	t.Run("nodes are as strict as a mesh must expect, and see their own processes only", func(t *testing.T) {
		for _, pod := range pods {
			node := pod.Spec.NodeName
			out, err := f.OnNode(f.ctx, node, "sh", "-c", "cat /proc/sys/net/ipv4/conf/all/rp_filter "+
				"/proc/sys/net/ipv4/conf/all/route_localnet; cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(out, "1\n0\n") || strings.Count(out, "--hostname-override=") != 1 {
				t.Errorf("%s: %s", node, out)
			}
		}
	})
	t.Run("pods outlive their node's containerd and kubelet", func(t *testing.T) {
		for _, unit := range []string{"containerd", "kubelet"} {
			if err := f.RestartUnit(pods[0].Spec.NodeName, unit); err != nil {
				t.Fatal(err)
			}
		}
		f.eventually(t, "exec through the new containerd", func() error {
			_, err := f.request(pods[0], 1, fmt.Sprintf("http://%s:8080/", pods[1].Status.PodIP))
			return err
		})
		if got := f.restarts(t, pods[0]); got != 0 {
			t.Errorf("%d restarts of a container", got)
		}
	})
}

func TestAPodWhoseProbeFailsIsNotReadyAndGetsNoTraffic(t *testing.T) {
	f := up(t)
	const namespace = "unready"
	f.namespace(t, namespace)
	manifest := strings.Replace(echoManifest, "httpGet: {path: /, port: 8080}", "tcpSocket: {port: 1}", 1)
	manifest = strings.Replace(manifest, "nodePort: 30080", "nodePort: 30081", 1)
	f.apply(t, strings.NewReplacer("NS", namespace, "IMAGE", cluster.EchoImage).Replace(manifest))
	f.eventually(t, "two pods that run and are not ready", func() error {
		pods, err := f.CoreV1().Pods(namespace).List(f.ctx, metav1.ListOptions{LabelSelector: "app=echo"})
		if err != nil {
			return err
		}
		running := 0
		for _, pod := range pods.Items {
			for _, status := range pod.Status.ContainerStatuses {
				if status.Started != nil && *status.Started {
					running++
				}
			}
			if api.Ready(&pod) {
				t.Fatalf("%s is ready", pod.Name)
			}
		}
		if running != 2 {
			return errNotYet
		}
		return nil
	})
	slices, err := f.DiscoveryV1().EndpointSlices(namespace).List(f.ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, slice := range slices.Items {
		for _, endpoint := range slice.Endpoints {
			if endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready {
				t.Errorf("endpoint %v is ready", endpoint.Addresses)
			}
		}
	}
}

func TestANodeThatIsRebootedComesBackWithItsDiskAndItsPods(t *testing.T) {
	f := up(t)
	const namespace = "reboot"
	f.namespace(t, namespace)
	f.apply(t, strings.NewReplacer("NS", namespace, "IMAGE", cluster.EchoImage, "30080", "30082").Replace(echoManifest))
	pods, err := f.WaitPods(f.ctx, namespace, "app=echo")
	if err != nil {
		t.Fatal(err)
	}
	victim := pods[0]
	node := victim.Spec.NodeName
	if _, err := f.OnNode(f.ctx, node, "touch", "/run/memory", "/var/lib/disk"); err != nil {
		t.Fatal(err)
	}
	if err := f.Reboot(f.ctx, node, options); err != nil {
		t.Fatal(err)
	}
	if out, err := f.OnNode(f.ctx, node, "ls", "/var/lib/disk"); err != nil {
		t.Errorf("the disk was lost: %s %v", out, err)
	}
	if _, err := f.OnNode(f.ctx, node, "ls", "/run/memory"); err == nil {
		t.Error("what was in memory is still there")
	}
	f.eventually(t, "the pod to run again", func() error {
		if f.restarts(t, victim) == 0 {
			return errNotYet
		}
		_, err := f.request(victim, 1, "http://127.0.0.1:8080/")
		return err
	})
}

func (f fixture) restarts(t *testing.T, pod corev1.Pod) int32 {
	t.Helper()
	found, err := f.CoreV1().Pods(pod.Namespace).Get(f.ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var sum int32
	for _, status := range found.Status.ContainerStatuses {
		sum += status.RestartCount
	}
	return sum
}

func get(url string) error {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, body)
	}
	return nil
}
