// Package chart renders charts/weft with Helm's own engine. In: values. Out: the objects that `helm
// install` would apply, in its order, and those of its hooks.
package chart

import (
	"bytes"
	"fmt"
	"path/filepath"
	"runtime"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"
	"sigs.k8s.io/yaml"
)

// KubernetesVersion is what the chart is rendered for and its objects are checked against.
const KubernetesVersion = "v1.34.4"

// Object is one object as JSON knows it.
type Object = map[string]any

// Release is how a chart is rendered.
type Release struct {
	Values    map[string]any
	Namespace string
	// Service is who installs: "Helm", or another tool that applies the same objects.
	Service string
	// AnyValue lets values pass that the schema refuses.
	AnyValue bool
}

// Helm is `helm install --namespace weft-system` with values.
func Helm(values map[string]any) Release {
	return Release{Values: values, Namespace: "weft-system", Service: "Helm"}
}

// Root is the checkout's folder.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Dir is the chart's folder.
func Dir() string {
	return filepath.Join(Root(), "charts", "weft")
}

// Render is `helm template`.
func (r Release) Render() (objects, hooks []Object, err error) {
	weft, err := loader.Load(Dir())
	if err != nil {
		return nil, nil, err
	}
	options := chartutil.ReleaseOptions{
		Name: "weft", Namespace: r.Namespace, Revision: 1, IsInstall: true,
	}
	version, err := chartutil.ParseKubeVersion(KubernetesVersion)
	if err != nil {
		return nil, nil, err
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	capabilities.KubeVersion = *version
	values, err := chartutil.ToRenderValuesWithSchemaValidation(weft, r.Values, options, capabilities, r.AnyValue)
	if err != nil {
		return nil, nil, err
	}
	values["Release"].(map[string]any)["Service"] = r.Service
	files, err := engine.Engine{Strict: true}.Render(weft, values)
	if err != nil {
		return nil, nil, err
	}
	for name := range files {
		if filepath.Ext(name) == ".txt" {
			delete(files, name)
		}
	}
	sortedHooks, sorted, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, nil, err
	}
	parse := func(into *[]Object, name, text string) error {
		var object Object
		if err := yaml.UnmarshalStrict([]byte(text), &object); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, text)
		}
		if len(object) > 0 {
			*into = append(*into, object)
		}
		return nil
	}
	for _, manifest := range sorted {
		if err := parse(&objects, manifest.Name, manifest.Content); err != nil {
			return nil, nil, err
		}
	}
	for _, hook := range sortedHooks {
		if err := parse(&hooks, hook.Path, hook.Manifest); err != nil {
			return nil, nil, err
		}
	}
	return objects, hooks, nil
}

// YAML is the objects as documents of one file, keys in order.
func YAML(objects []Object) ([]byte, error) {
	var out bytes.Buffer
	for _, object := range objects {
		text, err := yaml.Marshal(object)
		if err != nil {
			return nil, err
		}
		out.WriteString("---\n")
		out.Write(text)
	}
	return out.Bytes(), nil
}

// Name is KIND/NAME.
func Name(object Object) string {
	metadata, _ := object["metadata"].(map[string]any)
	return fmt.Sprintf("%v/%v", object["kind"], metadata["name"])
}
