package chart

import "path/filepath"

// Manifests is the file that `weft install` embeds.
func Manifests() string {
	return filepath.Join(Root(), "cli", "manifests", "weft.yaml")
}

// CLI is the chart as `weft install` applies it: where one of its flags sets a value, the value's
// name stands between two @, and what a flag can add is there.
func CLI() Release {
	hole := func(name string) string { return "@" + name + "@" }
	return Release{
		Namespace: "weft-system",
		Service:   "weft-cli",
		// A hole is none of the words that the schema allows.
		AnyValue: true,
		Values: map[string]any{
			"image": map[string]any{
				"registry": hole("image.registry"), "tag": hole("image.tag"), "pullPolicy": hole("image.pullPolicy"),
				"pullSecrets": []any{hole("image.pullSecrets")},
			},
			"trustDomain":     hole("trustDomain"),
			"clusterDomain":   hole("clusterDomain"),
			"log":             map[string]any{"level": hole("log.level"), "format": hole("log.format")},
			"cni":             map[string]any{"binDir": hole("cni.binDir"), "confDir": hole("cni.confDir")},
			"networkPolicies": map[string]any{"enabled": true},
		},
	}
}

// CLIManifests is the text of that file.
func CLIManifests() ([]byte, error) {
	objects, _, err := CLI().Render()
	if err != nil {
		return nil, err
	}
	text, err := YAML(objects)
	return append([]byte("# Written by `make chart` from charts/weft: change that.\n"), text...), err
}
