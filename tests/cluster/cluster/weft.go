package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"weft.dev/tests/cluster/api"
	"weft.dev/tests/cluster/kubernetes"
)

// Namespace and Release are where weft is installed, and under which of Helm's names.
const (
	Namespace = "weft-system"
	Release   = "weft"
)

// channel is the Gateway API's channel that is installed: XMesh and other kinds that weft reads are in the
// experimental one alone.
const channel = "experimental"

// InstallGatewayAPI installs the Gateway API's definitions, of the conformance suite's own version. It works
// with any cluster.
func (c *Cluster) InstallGatewayAPI(ctx context.Context, client *api.Client) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dir, err := c.Tree.GatewayAPI(ctx, channel)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "gateway.networking.*.yaml"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no definitions in %s", dir)
	}
	var group errgroup.Group
	for _, file := range files {
		group.Go(func() error {
			if err := client.ApplyFile(ctx, file); err != nil {
				return err
			}
			return waitEstablished(ctx, client, file)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	c.say("Gateway API, channel %s: %d files applied", channel, len(files))
	return nil
}

// waitEstablished waits until the definitions of a file are served.
func waitEstablished(ctx context.Context, client *api.Client, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	objects, err := api.Objects(text)
	if err != nil {
		return err
	}
	for _, object := range objects {
		if object.GetKind() != "CustomResourceDefinition" {
			continue
		}
		err := api.Wait(ctx, object.GetName()+" to be served", func(ctx context.Context) error {
			found, err := client.Get(ctx, "CustomResourceDefinition.apiextensions.k8s.io", "", object.GetName())
			if err != nil {
				return err
			}
			if !api.Condition(found, "Established") {
				return fmt.Errorf("it is not established")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// InstallWeft builds weft, loads its images into the nodes and installs or upgrades its chart.
func (c *Cluster) InstallWeft(ctx context.Context, client *api.Client, nodes []kubernetes.Node, release bool) error {
	specs, err := c.weftSpecs(ctx, release)
	if err != nil {
		return err
	}
	archives, err := c.archives(filepath.Join(c.Tree.Cache, "cluster", "images"), specs)
	if err != nil {
		return err
	}
	if err := c.load(ctx, nodes, archives); err != nil {
		return err
	}
	return c.helmInstall(ctx)
}

// helmInstall installs the chart as a user would.
func (c *Cluster) helmInstall(ctx context.Context) error {
	c.say("weft: helm upgrade --install")
	_, err := c.Helm(ctx, "upgrade", Release, filepath.Join(c.Tree.Repo, "charts/weft"), "--install",
		"--namespace", Namespace, "--create-namespace", "--wait", "--timeout", patience.String())
	if err != nil {
		return err
	}
	c.say("weft is installed")
	return nil
}

// Helm runs helm on the cluster and returns what it printed.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	helm, err := c.Tree.Helm(ctx)
	if err != nil {
		return "", err
	}
	command := exec.CommandContext(ctx, helm, append(args, "--kubeconfig", c.Kubeconfig())...)
	var trouble strings.Builder
	command.Stderr = &trouble
	out, err := command.Output()
	if err != nil {
		return string(out), fmt.Errorf("helm %s: %w: %s", args[0], err, trouble.String())
	}
	return string(out), nil
}
