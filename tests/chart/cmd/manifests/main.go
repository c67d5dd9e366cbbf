// Command manifests writes the file that `weft install` embeds.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	chart "weft.dev/tests/chart"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
}

func run() error {
	text, err := chart.CLIManifests()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(chart.Manifests()), 0o755); err != nil {
		return err
	}
	return os.WriteFile(chart.Manifests(), text, 0o644)
}
