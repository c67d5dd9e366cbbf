package cluster

import (
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"weft.dev/tests/cluster/machine"
)

// Status prints which machines run, and what on them.
func (c *Cluster) Status(out io.Writer) error {
	running, err := machine.Running(c.state)
	if err != nil {
		return err
	}
	if len(running) == 0 {
		fmt.Fprintln(out, "no cluster is up; `make cluster` brings one up")
		return nil
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MACHINE\tPROCESS 1\tPROGRAM\tPROCESS\tRESTARTS\tLOG")
	for _, name := range slices.Sorted(maps.Keys(running)) {
		m := c.machine(name)
		units, err := m.Units()
		if err != nil {
			fmt.Fprintf(table, "%s\t%d\t%v\n", name, running[name], err)
			continue
		}
		for _, unit := range slices.Sorted(maps.Keys(units)) {
			fmt.Fprintf(table, "%s\t%d\t%s\t%d\t%d\t%s\n", name, running[name], unit, units[unit].PID,
				units[unit].Restarts, m.Log(unit))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, "KUBECONFIG="+c.Kubeconfig())
	return nil
}

// Kubectl is a kubectl of the cluster's own version.
func (c *Cluster) Kubectl(ctx context.Context) (string, error) {
	programs, err := c.Tree.Kubernetes(ctx)
	return filepath.Join(programs, "kubectl"), err
}
