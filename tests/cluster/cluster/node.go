package cluster

import (
	"context"
	"fmt"
	"strings"

	"weft.dev/tests/cluster/kubernetes"
	"weft.dev/tests/cluster/machine"
)

// run runs a program on a node, as root in all of its namespaces, and returns its output.
func run(ctx context.Context, node kubernetes.Node, argv ...string) (string, error) {
	command, err := node.Command(ctx, argv...)
	if err != nil {
		return "", err
	}
	var trouble strings.Builder
	command.Stderr = &trouble
	out, err := command.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w: %s", node.Name, strings.Join(argv, " "), err, trouble.String())
	}
	return string(out), nil
}

// OnNode runs a program on a node, as root in all of its namespaces, and returns its output.
func (c *Cluster) OnNode(ctx context.Context, node string, argv ...string) (string, error) {
	found, err := c.Node(node)
	if err != nil {
		return "", err
	}
	return run(ctx, found, argv...)
}

// RestartUnit ends a node's program (containerd, kubelet, kube-proxy) and starts it again, as `systemctl restart`
// would. Containers go on.
func (c *Cluster) RestartUnit(node, unit string) error {
	found, err := c.Node(node)
	if err != nil {
		return err
	}
	for _, known := range []machine.Unit{found.Runtime(), found.Kubelet(), found.Proxy()} {
		if known.Name == unit {
			if err := found.StopUnit(unit); err != nil {
				return err
			}
			return found.StartUnit(known)
		}
	}
	return fmt.Errorf("%s runs no unit %s: it is containerd, kubelet or kube-proxy", node, unit)
}

// Reboot ends a node as a power cut would and starts it again: its memory file systems are empty then, its disk
// is as it was. The node's programs run again when it returns.
func (c *Cluster) Reboot(ctx context.Context, node string, options Options) error {
	found, err := c.Node(node)
	if err != nil {
		return err
	}
	if err := found.Stop(ctx); err != nil {
		return err
	}
	return c.Up(ctx, options)
}
