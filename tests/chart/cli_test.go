package chart

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestTheManifestsInTheBinaryAreTheCharts(t *testing.T) {
	want, err := CLIManifests()
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(Manifests())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Error("cli/manifests/weft.yaml is not what the chart renders: run `make chart`")
	}
}

// The binary comes from WEFT_BIN_DIR, as in all tests that run programs.
func TestWeftInstallAppliesWhatHelmWouldWithTheSameValues(t *testing.T) {
	bin := os.Getenv("WEFT_BIN_DIR")
	if bin == "" {
		t.Fatal("WEFT_BIN_DIR does not say where weft is; build it, or run `make test`, which sets it")
	}
	for name, try := range map[string]struct {
		flags  []string
		values string
	}{
		"no flags": {},
		"an own registry": {
			flags:  []string{"--registry", "registry.example.com:5000/mesh", "--tag", "v9", "--pull-policy", "Always", "--pull-secret", "registry"},
			values: `image: {registry: "registry.example.com:5000/mesh", tag: v9, pullPolicy: Always, pullSecrets: [registry]}`,
		},
		"domains, logs, policies": {
			flags: []string{"--trust-domain", "mesh.example.org", "--cluster-domain", "k8s.example.org", "--log-level", "debug", "--log-format", "json", "--network-policies"},
			values: `
trustDomain: mesh.example.org
clusterDomain: k8s.example.org
log: {level: debug, format: json}
networkPolicies: {enabled: true}`,
		},
		"k3s": {
			flags:  []string{"--cni-bin-dir", "/var/lib/rancher/k3s/data/cni", "--cni-conf-dir", "/var/lib/rancher/k3s/agent/etc/cni/net.d"},
			values: `cni: {binDir: /var/lib/rancher/k3s/data/cni, confDir: /var/lib/rancher/k3s/agent/etc/cni/net.d}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			printed, err := exec.Command(filepath.Join(bin, "weft"), append([]string{"install", "--print"}, try.flags...)...).Output()
			if err != nil {
				t.Fatal(err)
			}
			release := Helm(values(t, try.values))
			release.Service = "weft-cli"
			want, _, err := release.Render()
			if err != nil {
				t.Fatal(err)
			}
			var have []Object
			for _, document := range strings.Split(string(printed), "---\n") {
				var object Object
				if err := yaml.Unmarshal([]byte(document), &object); err != nil {
					t.Fatal(err)
				}
				// The namespace is Helm's own to make.
				if len(object) > 0 && object["kind"] != "Namespace" {
					have = append(have, object)
				}
			}
			if len(have) != len(want) {
				t.Fatalf("%d objects, helm has %d", len(have), len(want))
			}
			for i := range want {
				if !reflect.DeepEqual(have[i], want[i]) {
					t.Errorf("%s differs:\n%v\nhelm has\n%v", Name(want[i]), have[i], want[i])
				}
			}
		})
	}
}
