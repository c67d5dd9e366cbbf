package chart

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/yannh/kubeconform/pkg/resource"
	"github.com/yannh/kubeconform/pkg/validator"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"sigs.k8s.io/yaml"
)

// Value sets by name: what they change in the result is each one's check.
var sets = []struct {
	name   string
	values string
	// Objects that are there beside, or instead of, those of the defaults.
	more, less []string
	// What the text of the result has.
	has []string
}{
	{name: "the defaults"},
	{
		name: "a private registry",
		values: `
image: {registry: "registry.example.com:5000/mesh", tag: v9, pullPolicy: Always, pullSecrets: [registry]}`,
		has: []string{
			"image: registry.example.com:5000/mesh/weft-proxy:v9", "image: registry.example.com:5000/mesh/weft-cni:v9",
			"image: registry.example.com:5000/mesh/weft-controller:v9", "imagePullPolicy: Always", "- name: registry",
			"app.kubernetes.io/version: v9",
		},
	},
	{
		name: "one replica",
		values: `
controller: {replicas: 1}`,
		less: []string{"PodDisruptionBudget/weft-controller"},
		has:  []string{"replicas: 1"},
	},
	{
		name: "policies, monitors and quota",
		values: `
networkPolicies: {enabled: true}
monitoring:
  serviceMonitor: {enabled: true, interval: 10s, labels: {release: prometheus}}
  podMonitor: {enabled: true}
resourceQuotas: {enabled: true}`,
		more: []string{
			"NetworkPolicy/weft-controller", "NetworkPolicy/weft-proxy", "ServiceMonitor/weft-controller",
			"PodMonitor/weft-proxy", "ResourceQuota/weft-critical-pods",
		},
		has: []string{"release: prometheus", "interval: 10s"},
	},
	{
		name: "domains, logs, drain and limits",
		values: `
trustDomain: mesh.example.org
clusterDomain: k8s.example.org
log: {level: "info,weft_proxy=debug", format: json}
proxy: {drainTimeout: 2m, accessLog: true, workers: 3, scrapeFrom: [monitoring], limits: ["connections=20000", "connect-timeout=2s"]}`,
		has: []string{
			"--trust-domain=mesh.example.org", "--cluster-domain=k8s.example.org",
			"--controller=https://weft-controller.weft-system.svc.k8s.example.org:15010", "value: info,weft_proxy=debug",
			"--log-format=json", "--drain-timeout=2m", "terminationGracePeriodSeconds: 135", "--access-log=-",
			"--workers=3", "--scrape-from=monitoring", "--limit=connections=20000", "--limit=connect-timeout=2s",
		},
	},
	{
		name: "k3s's folders and an own CA",
		values: `
cni: {binDir: /var/lib/rancher/k3s/data/cni, confDir: /var/lib/rancher/k3s/agent/etc/cni/net.d, maxUnavailable: 10%}
ca: {secret: own-root, existingSecret: ""}`,
		has: []string{
			"path: /var/lib/rancher/k3s/data/cni", "path: /var/lib/rancher/k3s/agent/etc/cni/net.d", "maxUnavailable: 10%",
			"--ca=secret:weft-system/own-root",
		},
	},
	{
		name: "everything of a pod",
		values: `
controller: &part
  resources: {limits: {cpu: 2, memory: 2Gi}}
  priorityClassName: high
  podAnnotations: {example.com/a: b}
  nodeSelector: {pool: system}
  tolerations: [{key: dedicated, operator: Exists}]
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: pool, operator: In, values: [system]}]}]}}}
  extraArgs: ["--one-more=1"]
cni: *part
proxy: *part`,
		has: []string{"priorityClassName: high", "example.com/a: b", "pool: system", "key: dedicated", "--one-more=1", "cpu: 2"},
	},
}

func values(t *testing.T, text string) map[string]any {
	t.Helper()
	parsed, err := chartutil.ReadValues([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestTheChartPassesHelmsLint(t *testing.T) {
	for _, set := range sets {
		linter := lint.All(Dir(), values(t, set.values), "weft-system", true)
		for _, message := range linter.Messages {
			// Of information there is one: the chart has no icon.
			if message.Severity > support.InfoSev {
				t.Errorf("with %s: %v", set.name, message)
			}
		}
	}
}

func TestEverySetOfValuesRendersObjectsThatKubernetesTakes(t *testing.T) {
	conform := kubeconform(t)
	defaults, _, err := Helm(nil).Render()
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range sets {
		t.Run(set.name, func(t *testing.T) {
			objects, hooks, err := Helm(values(t, set.values)).Render()
			if err != nil {
				t.Fatal(err)
			}
			expected := map[string]bool{}
			for _, object := range defaults {
				expected[Name(object)] = true
			}
			for _, name := range set.more {
				expected[name] = true
			}
			for _, name := range set.less {
				delete(expected, name)
			}
			for _, object := range objects {
				if !expected[Name(object)] {
					t.Errorf("%s is there", Name(object))
				}
				delete(expected, Name(object))
			}
			for name := range expected {
				t.Errorf("%s is missing", name)
			}
			text, err := YAML(append(objects, hooks...))
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range set.has {
				if !bytes.Contains(text, []byte(part)) {
					t.Errorf("nowhere: %s", part)
				}
			}
			for _, object := range append(objects, hooks...) {
				if problem := check(conform, object); problem != "" {
					t.Errorf("%s: %s", Name(object), problem)
				}
			}
		})
	}
}

func check(conform validator.Validator, object Object) string {
	text, err := yaml.Marshal(object)
	if err != nil {
		return err.Error()
	}
	result := conform.ValidateResource(resource.Resource{Bytes: text})
	if result.Status == validator.Valid {
		return ""
	}
	return fmt.Sprintf("%v %v", result.Err, result.ValidationErrors)
}

func TestWhatTheAPIWouldRefuseIsFound(t *testing.T) {
	conform := kubeconform(t)
	for name, object := range map[string]Object{
		"an unknown field":    {"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": "x"}, "spec": map[string]any{"prots": []any{}}},
		"a wrong type":        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "x"}, "spec": map[string]any{"replicas": "two"}},
		"a monitor's typo":    {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": map[string]any{"name": "x"}, "spec": map[string]any{"selector": map[string]any{}, "podMetricEndpoints": []any{}}},
		"a kind of no schema": {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": map[string]any{"name": "x"}},
	} {
		if check(conform, object) == "" {
			t.Errorf("%s passes", name)
		}
	}
}

func TestValuesThatCannotWorkAreRefused(t *testing.T) {
	for text, says := range map[string]string{
		`imgae: {}`:                                    "additional properties 'imgae' not allowed",
		`proxy: {drainTimout: 30s}`:                    "drainTimout",
		`proxy: {drainTimeout: 30}`:                    "drainTimeout",
		`proxy: {drainTimeout: half a minute}`:         "drainTimeout",
		`proxy: {limits: ["connections"]}`:             "limits",
		`image: {pullPolicy: Sometimes}`:               "pullPolicy",
		`image: {registry: "a b"}`:                     "registry",
		`trustDomain: Example.org`:                     "trustDomain",
		`clusterDomain: "cluster.local."`:              "clusterDomain",
		`cni: {binDir: opt/cni}`:                       "binDir",
		`cni: {maxUnavailable: 0}`:                     "maxUnavailable",
		`proxy: {maxSurge: 0}`:                         "maxSurge",
		`log: {format: xml}`:                           "format",
		`controller: {replicas: -1}`:                   "replicas",
		`controller: {resources: {request: {cpu: 1}}}`: "request",
	} {
		_, _, err := Helm(values(t, text)).Render()
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestAnotherNamespaceThanWeftSystemIsRefused(t *testing.T) {
	release := Helm(nil)
	release.Namespace = "default"
	_, _, err := release.Render()
	if err == nil || !strings.Contains(err.Error(), "add --namespace weft-system --create-namespace") {
		t.Fatal(err)
	}
}

func TestTheChartHasTheVersionOfTheWorkspace(t *testing.T) {
	cargo, err := os.ReadFile(filepath.Join(Root(), "Cargo.toml"))
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^version = "(.*)"$`).FindSubmatch(cargo)
	var chart struct{ Version, AppVersion string }
	text, err := os.ReadFile(filepath.Join(Dir(), "Chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &chart); err != nil {
		t.Fatal(err)
	}
	if want := string(version[1]); chart.Version != want || chart.AppVersion != want {
		t.Errorf("Chart.yaml says %+v, Cargo.toml %s", chart, want)
	}
}
