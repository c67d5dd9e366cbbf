package chart

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/yannh/kubeconform/pkg/validator"
	"sigs.k8s.io/yaml"
)

// Whose CRDs the monitors are checked against.
const monitoring = "github.com/prometheus-operator/prometheus-operator@v0.85.0"

// kubeconform with the schemas of Kubernetes' own OpenAPI document and of the Prometheus operator's
// CRDs, both out of the Go module cache. Undocumented fields are refused.
func kubeconform(t *testing.T) validator.Validator {
	t.Helper()
	dir := t.TempDir()
	writeKubernetes(t, dir, module(t, "k8s.io/kubernetes@"+KubernetesVersion))
	writeMonitoring(t, dir, module(t, monitoring))
	location := filepath.Join(dir, "{{ .Group }}_{{ .ResourceAPIVersion }}_{{ .ResourceKind }}.json")
	v, err := validator.New([]string{location}, validator.Opts{Strict: true, KubernetesVersion: KubernetesVersion[1:]})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// module is the folder of a module, which is fetched if it is not at hand. It is no requirement of
// go.mod: nothing of its code is used.
func module(t *testing.T, name string) string {
	t.Helper()
	command := exec.Command("go", "mod", "download", "-json", name)
	command.Dir = os.TempDir()
	out, err := command.Output()
	if err != nil {
		t.Fatalf("go mod download %s: %v\n%s", name, err, out)
	}
	var found struct{ Dir string }
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatal(err)
	}
	return found.Dir
}

func writeKubernetes(t *testing.T, dir, from string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(from, "api", "openapi-spec", "swagger.json"))
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Definitions map[string]map[string]any
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	definitions := document.Definitions
	for name, definition := range definitions {
		if _, fields := definition["properties"]; fields {
			definition["additionalProperties"] = false
		}
		// What the document calls a string and the API takes as a number, too.
		if strings.HasSuffix(name, ".IntOrString") || strings.HasSuffix(name, ".Quantity") {
			definition["type"] = []string{"string", "number"}
		}
	}
	for name, definition := range definitions {
		kinds, _ := definition["x-kubernetes-group-version-kind"].([]any)
		for _, entry := range kinds {
			kind := entry.(map[string]any)
			reached := map[string]any{}
			reach(definitions, name, reached)
			group := kind["group"]
			if group == "" {
				group = kind["version"]
			}
			write(t, dir, group, kind["version"], kind["kind"], map[string]any{
				"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/" + name, "definitions": reached,
			})
		}
	}
}

// reach collects a definition and all that it refers to.
func reach(definitions map[string]map[string]any, name string, reached map[string]any) {
	if _, again := reached[name]; again {
		return
	}
	reached[name] = definitions[name]
	var walk func(any)
	walk = func(value any) {
		switch value := value.(type) {
		case map[string]any:
			if ref, ok := value["$ref"].(string); ok {
				reach(definitions, strings.TrimPrefix(ref, "#/definitions/"), reached)
			}
			for _, child := range value {
				walk(child)
			}
		case []any:
			for _, child := range value {
				walk(child)
			}
		}
	}
	walk(any(definitions[name]))
}

func writeMonitoring(t *testing.T, dir, from string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(from, "example", "prometheus-operator-crd", "*monitors.yaml"))
	if len(files) == 0 {
		t.Fatalf("no CRDs in %s", from)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct {
						OpenAPIV3Schema map[string]any `json:"openAPIV3Schema"`
					}
				}
			}
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatal(err)
		}
		for _, version := range crd.Spec.Versions {
			schema := version.Schema.OpenAPIV3Schema
			closed(schema["properties"].(map[string]any)["spec"])
			write(t, dir, crd.Spec.Group, version.Name, crd.Spec.Names.Kind, schema)
		}
	}
}

// closed refuses fields that a schema does not name.
func closed(value any) {
	schema, ok := value.(map[string]any)
	if !ok {
		return
	}
	properties, _ := schema["properties"].(map[string]any)
	if len(properties) > 0 {
		schema["additionalProperties"] = false
	}
	for _, child := range properties {
		closed(child)
	}
	closed(schema["items"])
}

func write(t *testing.T, dir string, group, version, kind any, schema any) {
	t.Helper()
	text, err := json.Marshal(schema)
	if err != nil {
		t.Fatal(err)
	}
	// As kubeconform's location template asks for it.
	name := strings.ToLower(fmt.Sprintf("%v_%v_%v.json", group, version, kind))
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}
